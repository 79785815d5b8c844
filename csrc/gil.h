// The interpreter's lock, taken and released so that a thread survives the interpreter's end.
//
// While the interpreter shuts down, CPython 3.11 to 3.13 end a thread that asks for the lock with pthread_exit, which unwinds
// its stack like an exception.  Unwinding through a destructor, or through nanobind's noexcept dispatcher, would abort the
// process.  So the unwinding stops where the lock is asked for: the thread sleeps there until the process has ended.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>

namespace softgrad {

// f(), which asks for the lock or runs Python code, and throws no exception of its own.
template <class F> auto survive_shutdown(F f) noexcept {
  try {
    return f();
  } catch (...) {
    for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
  }
}

// A scope without the interpreter's lock.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    survive_shutdown([&] { PyEval_RestoreThread(state_); });
  }

 private:
  PyThreadState* state_;
};

}  // namespace softgrad
