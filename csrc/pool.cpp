#include "pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <utility>

#ifndef _WIN32
#include <pthread.h>
#endif

#include "blas.h"
#include "gil.h"

namespace softgrad {

namespace {

constexpr std::chrono::milliseconds signal_interval{50};  // between checks for signals while the caller waits for workers

// A new worker needs a few kB, and its blocks as much again for the thread-local data of NumPy and its BLAS, which glibc allocates on
// first use and aborts where it cannot.  So a worker starts only while there is far more.
constexpr size_t memory_to_start = 16 << 20;

// Set in a thread that computes a block: parallel code in the block runs inline.  Not `thread_local`: see above.
Py_tss_t inside = Py_tss_NEEDS_INIT;
bool is_inside() { return PyThread_tss_get(&inside) != nullptr; }
bool set_inside(bool value) { return PyThread_tss_set(&inside, value ? &inside : nullptr) == 0; }

bool shutting_down() {
#if PY_VERSION_HEX >= 0x030D0000
  return Py_IsFinalizing();
#else
  return _Py_IsFinalizing();
#endif
}

// The exception that is set, with its traceback, cleared.
PyObject* take_exception() {
#if PY_VERSION_HEX >= 0x030C0000
  return PyErr_GetRaisedException();
#else
  PyObject *type, *value, *traceback;
  PyErr_Fetch(&type, &value, &traceback);
  PyErr_NormalizeException(&type, &value, &traceback);
  if (traceback) PyException_SetTraceback(value, traceback);
  Py_XDECREF(type);
  Py_XDECREF(traceback);
  return value;
#endif
}

void set_exception(PyObject* error) {
#if PY_VERSION_HEX >= 0x030C0000
  PyErr_SetRaisedException(error);
#else
  PyErr_Restore(Py_NewRef(reinterpret_cast<PyObject*>(Py_TYPE(error))), error, PyException_GetTraceback(error));
#endif
}

bool call(PyObject* work, int64_t i) {
  return survive_shutdown([&] {
    PyObject* index = PyLong_FromLongLong(i);
    PyObject* result = index ? PyObject_CallOneArg(work, index) : nullptr;
    Py_XDECREF(index);
    Py_XDECREF(result);
    return result != nullptr;
  });
}

bool check_signals() {
  return survive_shutdown([] { return PyErr_CheckSignals() == 0; });
}

bool run_inline(PyObject* work, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (!check_signals() || !call(work, i)) return false;
  return true;
}

// One parallel call, on its caller's stack.
struct Job {
  // The interpreter's lock guards these.
  PyObject* const work;
  const int64_t count;
  int64_t next = 0;
  PyObject* failure = nullptr;
  // The pool's mutex guards these.
  int64_t wanted;  // workers that may still join
  int64_t working = 0;
  Job* after = nullptr;
  std::condition_variable left;

  Job(PyObject* work_, int64_t count_, int64_t wanted_) : work(work_), count(count_), wanted(wanted_) {}

  void drain() {
    while (!failure && next < count)
      if (!check_signals() || !call(work, next++)) fail();
  }
  // Keeps the first exception, but an interrupt in any case.
  void fail() {
    PyObject* error = take_exception();
    if (!failure || PyErr_GivenExceptionMatches(error, PyExc_KeyboardInterrupt)) std::swap(failure, error);
    survive_shutdown([&] { Py_XDECREF(error); });
  }
};

// Workers, and the jobs that they may join.  A thread that holds the mutex never waits for the interpreter's lock.
class Pool {
 public:
  explicit Pool(PyInterpreterState* interpreter) : interpreter_(interpreter) {}
  bool run(Job& job);

 private:
  void offer(Job& job);
  void withdraw(Job& job);
  void serve();

  PyInterpreterState* const interpreter_;
  std::mutex mutex_;
  std::condition_variable offered_;
  Job* first_ = nullptr;  // the jobs that want workers, oldest first
  int64_t workers_ = 0;
};

// Never destroyed: workers outlive the interpreter.  A child of fork has none of its parent's threads, and its parent's mutex in an
// unknown state: it starts anew and touches nothing of the old pool.
std::atomic<Pool*> pool{nullptr};

void Pool::offer(Job& job) {
  int64_t missing;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    Job** last = &first_;
    while (*last) last = &(*last)->after;
    *last = &job;
    missing = std::max<int64_t>(0, job.wanted - workers_);
    for (int64_t i = std::min(job.wanted, workers_); i > 0; --i) offered_.notify_one();
    workers_ += missing;
  }
  try {
    for (; missing > 0; --missing) std::thread(&Pool::serve, this).detach();
  } catch (const std::exception&) {  // no memory, or too many threads: fewer work
    const std::lock_guard<std::mutex> lock(mutex_);
    workers_ -= missing;
  }
}

void Pool::withdraw(Job& job) {
  for (Job** at = &first_; *at; at = &(*at)->after)
    if (*at == &job) {
      *at = job.after;
      return;
    }
}

void Pool::serve() {
#ifdef __linux__
  pthread_setname_np(pthread_self(), "softgrad");
#endif
  void* trial = std::malloc(memory_to_start);
  PyThreadState* state = nullptr;  // for good, so that `threading.local` data last
  if (trial && set_inside(true)) state = survive_shutdown([&] { return PyThreadState_New(interpreter_); });
  std::free(trial);
  std::unique_lock<std::mutex> lock(mutex_);
  if (!state) {
    --workers_;
    return;
  }
  for (;;) {
    offered_.wait(lock, [&] { return first_ != nullptr; });
    lock.unlock();
    survive_shutdown([&] { PyEval_RestoreThread(state); });
    lock.lock();
    Job* job = first_;  // joined only now: nobody waits for a worker that never gets the interpreter's lock
    if (job) {
      ++job->working;
      if (--job->wanted == 0) withdraw(*job);
    }
    lock.unlock();
    if (job) {
      limit_blas_in_worker();
      job->drain();
    }
    PyEval_SaveThread();
    lock.lock();
    if (job && --job->working == 0) job->left.notify_one();
  }
}

bool Pool::run(Job& job) {
  set_inside(true);
  offer(job);
  job.drain();
  set_inside(false);
  for (;;) {
    if (pool.load() != this) {
      PyErr_SetString(PyExc_RuntimeError, "the process was forked inside a block of this call; its other threads are in the parent");
      return false;
    }
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      withdraw(job);
      if (job.working == 0) break;
    }
    {
      const Unlocked unlocked;
      std::unique_lock<std::mutex> lock(mutex_);
      job.left.wait_for(lock, signal_interval, [&] { return job.working == 0; });
    }
    if (!check_signals()) job.fail();
  }
  if (job.failure) set_exception(job.failure);
  return !job.failure;
}

}  // namespace

bool run_blocks(PyObject* work, int64_t count, int64_t n_threads) {
  const int64_t wanted = std::min({n_threads, count, most_threads}) - 1;
  if (wanted < 1 || is_inside() || shutting_down()) return run_inline(work, count);
  if (!pool.load()) pool.store(new Pool(PyInterpreterState_Get()));
  Job job(work, count, wanted);
  return pool.load()->run(job);
}

bool init_pool() {
#ifndef _WIN32
  pthread_atfork(nullptr, nullptr, [] {
    pool.store(nullptr);
    set_inside(false);
    forget_blas_users_of_other_threads();
  });
#endif
  return PyThread_tss_create(&inside) == 0;
}

}  // namespace softgrad
