// The thread limit of the BLAS libraries in this process.  The interpreter's lock guards everything here but `reset_blas`.
#pragma once

#include <array>
#include <string>
#include <thread>

namespace softgrad {

inline constexpr int most_blas_libraries = 16;

// Called once, before anything else.
bool init_blas();

// Limit this library, too, from now on.  Returns false where no library of that file is loaded, or it is no BLAS that is known.
bool add_blas_library(const std::string& path);

// Keeps matrix products single-threaded between `enter` and `leave`, whatever thread calls them: the first user sets the limit,
// the last restores what was before.  On OpenMP every thread has a limit of its own: the user's is set and restored, and the
// pool's workers are limited for good.
class SingleThreadedBlas {
 public:
  SingleThreadedBlas() = default;
  SingleThreadedBlas(const SingleThreadedBlas&) = delete;
  SingleThreadedBlas& operator=(const SingleThreadedBlas&) = delete;
  ~SingleThreadedBlas() { leave(); }
  void enter();
  void leave();  // a second time does nothing

 private:
  bool held_ = false;
  std::thread::id thread_;
  std::array<int, most_blas_libraries> own_ = {};
};

// Set every library's number of threads to what it is.  In a child of fork this returns only if their locks are free.
void reset_blas();

// Called in a worker before it computes: while there are users, its limits per thread are 1.
void limit_blas_in_worker();

// Called in the child of a fork: the users are those of the thread that lives on.
void forget_blas_users_of_other_threads();

}  // namespace softgrad
