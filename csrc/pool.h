// Threads that compute the blocks of a Python call.
#pragma once

#include <Python.h>

#include <cstdint>

namespace softgrad {

inline constexpr int64_t most_threads = 256;  // of one call, its caller among them

// work(0) … work(count − 1), each once, from up to n_threads threads of which the caller is one.  Needs the interpreter's lock.
//
// After a failure no further block begins.  Returns false with a Python exception set: the first one, or an interrupt.  When it
// returns, no thread is inside a block.  A call that finds no free worker is computed by its caller alone; so is one inside a
// block, and one while the interpreter shuts down.
bool run_blocks(PyObject* work, int64_t count, int64_t n_threads);

// Called once, before anything else.  Every child of fork begins with a pool of its own.
bool init_pool();

}  // namespace softgrad
