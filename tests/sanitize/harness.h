// What the sanitized programs share: blocks that end where the sanitizer looks, numbers, and a count of failures.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"

using namespace softgrad;

inline int calls = 0, failures = 0;

// A block of exactly `bytes`: on the heap, between the sanitizer's red zones, or in every other case up against a page
// that cannot be touched, which stops what the sanitizer does not see: masked, converting and streaming intrinsics.
inline bool guarded = false;
struct Block {
  char* base = nullptr;
  size_t mapped = 0, bytes = 0;
  char* data = nullptr;
  explicit Block(size_t n, int fill = 0) : bytes(n) {
    if (guarded) {
      const size_t page = size_t(sysconf(_SC_PAGESIZE));
      mapped = (n + page - 1) / page * page + page;
      void* map = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (map == MAP_FAILED || mprotect(static_cast<char*>(map) + mapped - page, page, PROT_NONE)) std::abort();
      base = static_cast<char*>(map), data = base + mapped - page - n;
    } else {
      data = base = new char[n ? n : 1];
    }
    std::memset(data, fill, n);
  }
  Block(const Block&) = delete;
  Block& operator=(Block&& other) {
    std::swap(base, other.base), std::swap(mapped, other.mapped), std::swap(bytes, other.bytes), std::swap(data, other.data);
    return *this;
  }
  ~Block() {
    if (mapped) munmap(base, mapped);
    else delete[] base;
  }
  template <class T> T* as() { return reinterpret_cast<T*>(data); }
  std::string copy() const { return std::string(data, bytes); }
};

inline uint64_t state = 88172645463325252ull;
inline double uniform() {  // xorshift: the same numbers everywhere
  state ^= state << 13, state ^= state >> 7, state ^= state << 17;
  return double(state >> 11) / 9007199254740992.0;
}

inline int size_of(Storage t) { return t == Storage::float32 ? 4 : t == Storage::float64 ? 8 : 2; }

inline void put(Storage t, void* to, int64_t at, double x) {
  const float f = float(x);
  uint32_t b;
  std::memcpy(&b, &f, 4);
  switch (t) {
    case Storage::float32: static_cast<float*>(to)[at] = f; break;
    case Storage::float64: static_cast<double*>(to)[at] = x; break;
    case Storage::bfloat16: static_cast<uint16_t*>(to)[at] = uint16_t(x != x ? 0x7fc0 : b >> 16); break;
    case Storage::float16: {
      const uint32_t sign = b >> 16 & 0x8000, e = b >> 23 & 0xff;  // truncation is good enough; small numbers become 0
      uint32_t h = x != x ? 0x7e00 : e >= 143 ? 0x7c00 : e <= 112 ? 0 : (e - 112) << 10 | (b >> 13 & 0x3ff);
      static_cast<uint16_t*>(to)[at] = uint16_t(sign | h);
    }
  }
}

// Equal bits, but one NaN is as good as another: its sign depends on where a loop started.
inline bool same(Storage t, const Block& a, const Block& b) {
  const size_t item = size_t(size_of(t));
  for (size_t at = 0; at < a.bytes; at += item) {
    uint64_t x = 0, y = 0;
    std::memcpy(&x, a.data + at, item), std::memcpy(&y, b.data + at, item);
    const uint64_t inf = t == Storage::float64 ? 0x7ffull << 52 : t == Storage::float32 ? 0x7f800000 : t == Storage::bfloat16 ? 0x7f80 : 0x7c00;
    const uint64_t magnitude = ~(1ull << (item * 8 - 1));
    if (x != y && !((x & magnitude) > inf && (y & magnitude) > inf)) return false;
  }
  return true;
}

// layer.cpp.  The kernels of a linear layer: X W + b, Gᵀ X, the curvature of stored probabilities, sparse rows.
void layer(const Kernels& k);
void overrun_layer(const Kernels& k, const std::string& kernel);
