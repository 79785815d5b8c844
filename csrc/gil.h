// A scope without the interpreter's lock.
#pragma once

#include <Python.h>

#include <chrono>
#include <thread>

namespace softgrad {

// Releases the lock and takes it again at the end of the scope.
//
// While the interpreter shuts down, CPython 3.11 to 3.13 end a thread that asks for the lock with pthread_exit, which unwinds
// its stack like an exception.  Unwinding through a destructor, or through nanobind's noexcept dispatcher, would abort the
// process.  So the unwinding stops here: the thread sleeps until the process has ended.
class Unlocked {
 public:
  Unlocked() : state_(PyEval_SaveThread()) {}
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
  ~Unlocked() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {
      for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
    }
  }

 private:
  PyThreadState* state_;
};

}  // namespace softgrad
