// The thread pool and the BLAS limit, for src/softgrad/_core/threads.py and blas.py.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <new>

#include "blas.h"
#include "gil.h"
#include "pool.h"

namespace nb = nanobind;
using namespace softgrad;

void bind_pool(nb::module_& m) {
  if (!init_pool() || !init_blas()) throw std::bad_alloc();
  // Calls of daemon threads are still running when the interpreter has ended; nanobind would list their objects as leaks.
  nb::set_leak_warnings(false);

  m.attr("most_threads") = most_threads;
  m.def(
      "run_blocks",
      [](nb::handle work, int64_t count, int64_t n_threads) {
        if (!run_blocks(work.ptr(), count, n_threads)) throw nb::python_error();
      },
      nb::arg("work"), nb::arg("count"), nb::arg("n_threads"),
      nb::sig("def run_blocks(work: collections.abc.Callable[[int], object], count: int, n_threads: int) -> None"),
      "Call work(0) ... work(count - 1), each once, from up to n_threads threads of which the caller is one.");

  m.def("add_blas_library", &add_blas_library, nb::arg("path"),
        "Limit the loaded BLAS library of this file, too; False where it is none that is known.");
  m.def(
      "reset_blas", [] { const Unlocked unlocked; reset_blas(); },
      "Set every BLAS library's number of threads to what it is: returns only if its locks are free.");
  nb::class_<SingleThreadedBlas>(m, "SingleThreadedBlas", "Matrix products are single-threaded inside a `with` block.")
      .def(nb::init<>())
      .def("__enter__", &SingleThreadedBlas::enter)
      .def("__exit__", [](SingleThreadedBlas& limit, nb::args) { limit.leave(); },
           nb::sig("def __exit__(self, *args: object) -> None"));
}
