// The kernels of a linear layer, `scores`, `back`, `curvature` and `sparse`, against plain loops in float64.
//
// Matrices end with the last element that the contract (csrc/linear.inc.cpp) lets a kernel read, and hold NaN wherever
// it may read but must not use, or must not write: between rows, and in the weights beyond the classes.
#include <cfloat>
#include <cmath>
#include <vector>

#include "harness.h"

namespace {

constexpr int64_t classes[] = {1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 20, 24, 26, 31, 33, 48, 52, 65, 100};
constexpr int64_t features[] = {16, 17, 31, 33, 64, 200};
constexpr int64_t counts[] = {0, 1, 2, 11, 12, 13, 25, 73};  // about the blocks of 12 rows, and more than a block of sums
constexpr Storage pairs[][2] = {{Storage::float32, Storage::float32}, {Storage::float64, Storage::float32}, {Storage::float64, Storage::float64}};  // and storage
constexpr int nan_bytes = 0xff;

int64_t up_to(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
double epsilon(Storage t) { return t == Storage::float64 ? DBL_EPSILON : FLT_EPSILON; }

// Rows `stride` elements apart, of which the last ends with `wide` elements: `cols` numbers, and what else is readable.
struct Matrix {
  Storage type;
  int64_t rows, cols, stride;
  Block block;
  Matrix(Storage t, int64_t rows_, int64_t cols_, int64_t wide, int64_t gap)
      : type(t), rows(rows_), cols(cols_), stride(wide + gap),
        block(rows_ ? size_t(((rows_ - 1) * stride + wide) * size_of(t)) : 0, nan_bytes) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) set(i, j, 2 * uniform() - 1);
  }
  void set(int64_t i, int64_t j, double x) { put(type, block.data, i * stride + j, x); }
  double operator()(int64_t i, int64_t j) const {
    const char* at = block.data + (i * stride + j) * size_of(type);
    if (type == Storage::float64) {
      double x;
      return std::memcpy(&x, at, 8), x;
    }
    uint32_t bits = 0;
    std::memcpy(type == Storage::bfloat16 ? reinterpret_cast<char*>(&bits) + 2 : reinterpret_cast<char*>(&bits), at, size_t(size_of(type)));
    float x;
    return std::memcpy(&x, &bits, 4), x;
  }
  char* row(int64_t i) { return block.data + i * stride * size_of(type); }
  bool only_columns_written() const {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t x = (i * stride + cols) * size_of(type); x < (i + 1) * stride * size_of(type) && x < int64_t(block.bytes); ++x)
        if (block.data[x] != char(nan_bytes)) return false;
    return true;
  }
};

struct Shape {
  const Kernels& k;
  Storage arithmetic, storage;
  int64_t rows, features, cols, gap;
};

void expect(bool ok, const char* what, const Shape& s) {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s: %s, types %d %d, %lld rows, %lld features, %lld classes, gap %lld, %s\n", s.k.name, what,
              int(s.arithmetic), int(s.storage), (long long)s.rows, (long long)s.features, (long long)s.cols,
              (long long)s.gap, guarded ? "guard page" : "heap");
}

bool close(double x, double expected, double terms, int64_t sums, Storage t) {
  return std::fabs(x - expected) <= double(sums + 4) * epsilon(t) * terms;  // NaN is not
}

void scores(const Shape& s) {
  const int64_t padded = up_to(s.cols, widest_lanes);
  Matrix x(s.storage, s.rows, s.features, s.features, s.gap), w(s.arithmetic, s.features, s.cols, padded, 0);
  Matrix b(s.arithmetic, 1, s.cols, padded, 0), out(s.arithmetic, s.rows, s.cols, s.cols, s.gap);
  const std::string before = x.block.copy() + w.block.copy() + b.block.copy();
  s.k.scores(s.arithmetic, s.storage, x.block.data, x.stride, s.rows, s.features, w.block.data, w.stride, b.block.data,
             s.cols, out.block.data, out.stride);
  bool good = true;
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t j = 0; j < s.cols; ++j) {
      double sum = b(0, j), terms = std::fabs(sum);
      for (int64_t f = 0; f < s.features; ++f) sum += x(i, f) * w(f, j), terms += std::fabs(x(i, f) * w(f, j));
      good &= close(out(i, j), sum, terms, s.features, s.arithmetic);
    }
  expect(good, "scores are not X W + b", s);
  expect(out.only_columns_written(), "scores written between rows", s);
  expect(x.block.copy() + w.block.copy() + b.block.copy() == before, "scores changed an input", s);

  Matrix alone(s.arithmetic, s.rows, s.cols, s.cols, s.gap);
  for (int64_t i = 0; i < s.rows; ++i)
    s.k.scores(s.arithmetic, s.storage, x.row(i), x.stride, 1, s.features, w.block.data, w.stride, b.block.data, s.cols,
               alone.row(i), alone.stride);
  expect(same(s.arithmetic, alone.block, out.block), "scores of a row depend on the others", s);
  ++calls;
}

void back(const Shape& s) {
  const int64_t wide = up_to(s.cols, 4);
  Matrix g(s.arithmetic, s.rows, wide, wide, s.gap), x(s.storage, s.rows, s.features, s.features, s.gap);
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t j = s.cols; j < wide; ++j) g.set(i, j, 0);
  Matrix total(s.arithmetic, s.cols, s.features, s.features, s.gap), sums(Storage::float64, 1, s.cols, s.cols, 0);
  std::vector<double> first;
  for (int64_t j = 0; j < s.cols; ++j) {
    for (int64_t f = 0; f < s.features; ++f) first.push_back(total(j, f));
    first.push_back(sums(0, j));
  }
  const std::string before = g.block.copy() + x.block.copy();
  s.k.back(s.arithmetic, s.storage, g.block.data, g.stride, s.cols, x.block.data, x.stride, s.rows, s.features,
           total.block.data, total.stride, sums.block.as<double>());
  bool good = true;
  for (int64_t j = 0; j < s.cols; ++j)
    for (int64_t f = 0; f <= s.features; ++f) {
      double sum = first[size_t(j * (s.features + 1) + f)], terms = std::fabs(sum);
      for (int64_t i = 0; i < s.rows; ++i) {
        const double term = g(i, j) * (f < s.features ? x(i, f) : 1.0);
        sum += term, terms += std::fabs(term);
      }
      good &= close(f < s.features ? total(j, f) : sums(0, j), sum, terms, s.rows, s.arithmetic);
    }
  expect(good, "back is not added Gᵀ X and column sums", s);
  expect(total.only_columns_written(), "back written between rows", s);
  expect(g.block.copy() + x.block.copy() == before, "back changed an input", s);
  ++calls;
}

void curvature(const Shape& s, bool weighted) {
  Matrix prob(s.arithmetic, s.rows, s.cols, s.cols, s.gap), vector(s.arithmetic, s.rows, s.cols, s.cols, s.gap);
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t j = 0; j < s.cols; ++j) prob.set(i, j, std::fabs(prob(i, j)) / double(s.cols));
  Matrix weight(Storage::float64, 1, s.rows, s.rows, 0), v(s.arithmetic, s.rows, s.cols, s.cols, s.gap);
  std::memcpy(v.block.data, vector.block.data, v.block.bytes);
  const std::string before = prob.block.copy() + weight.block.copy();
  s.k.curvature(s.arithmetic, prob.block.data, prob.stride, weighted ? weight.block.as<double>() : nullptr,
                vector.block.data, vector.stride, s.rows, s.cols);
  bool good = true;
  for (int64_t i = 0; i < s.rows; ++i) {
    double mean = 0, terms = 0;
    for (int64_t j = 0; j < s.cols; ++j) mean += prob(i, j) * v(i, j), terms += std::fabs(prob(i, j) * v(i, j));
    for (int64_t j = 0; j < s.cols; ++j) {
      const double a = (weighted ? weight(0, i) : 1.0) * prob(i, j);
      good &= close(vector(i, j), a * (v(i, j) - mean), std::fabs(a) * (std::fabs(v(i, j)) + terms), s.cols, s.arithmetic);
    }
  }
  expect(good, "curvature is not a (S v - S (S . v))", s);
  expect(vector.only_columns_written(), "curvature written between rows", s);
  expect(prob.block.copy() + weight.block.copy() == before, "curvature changed an input", s);
  ++calls;
}

// The features are the rows of the dense matrix; the last row of it and the last stored number are used.  `readable`: its
// columns, with `gap` elements between rows that no kernel may read; `half`: in bfloat16.
template <class I> void sparse(const Shape& s, int64_t readable, int64_t gap, bool half) {
  std::vector<int64_t> at, ends = {0};
  for (int64_t i = 0; i < s.rows; ++i) {
    const int64_t count = i % 4 == 1 ? 0 : i % 4 == 2 ? 1 : 13 + i % 7;  // more than are fetched ahead
    for (int64_t n = 0; n < count; ++n) at.push_back(n ? int64_t(uniform() * double(s.features)) : s.features - 1);
    ends.push_back(int64_t(at.size()));
  }
  const int64_t stored = int64_t(at.size());
  const Storage kind = half ? Storage::bfloat16 : s.arithmetic;
  Matrix data(s.storage, 1, stored, stored, 0), dense(kind, s.features, s.cols, readable, gap);
  Matrix out(s.arithmetic, s.rows, s.cols, s.cols, s.gap);
  Block indices(size_t(stored) * sizeof(I)), indptr(ends.size() * sizeof(I));
  for (size_t n = 0; n < at.size(); ++n) indices.as<I>()[n] = I(at[n]);
  for (size_t n = 0; n < ends.size(); ++n) indptr.as<I>()[n] = I(ends[n]);
  const std::string before = data.block.copy() + indices.copy() + indptr.copy() + dense.block.copy();
  bool good = s.k.sparse(s.arithmetic, s.storage, kind, data.block.data, indices.data, stored, indptr.data, sizeof(I) == 8,
                         s.rows, dense.block.data, s.features, dense.stride, readable, s.cols, out.block.data, out.stride);
  for (int64_t i = 0; i < s.rows; ++i)
    for (int64_t j = 0; j < s.cols; ++j) {
      double sum = 0, terms = 0;
      for (int64_t n = ends[size_t(i)]; n < ends[size_t(i) + 1]; ++n) {
        const double term = data(0, n) * dense(at[size_t(n)], j);
        sum += term, terms += std::fabs(term);
      }
      good &= close(out(i, j), sum, terms, ends[size_t(i) + 1] - ends[size_t(i)], s.arithmetic);
    }
  expect(good, "sparse is not the product", s);
  expect(out.only_columns_written(), "sparse written between rows", s);
  expect(data.block.copy() + indices.copy() + indptr.copy() + dense.block.copy() == before, "sparse changed an input", s);
  ++calls;
}

}  // namespace

void layer(const Kernels& k) {
  for (bool page : {false, true})
    for (const Storage* types : pairs)
      for (int64_t cols : classes)
        for (int64_t rows : counts) {
          guarded = page;
          Shape s = {k, types[0], types[1], rows, 0, cols, 4 * (cols % 2)};
          for (int64_t count : features) {
            s.features = count;
            if (rows < 64 || count == 33) scores(s), back(s);
          }
          s.features = 19;
          sparse<int32_t>(s, cols, s.gap, false), sparse<int64_t>(s, up_to(cols, widest_lanes), 0, false);
          if (types[0] == Storage::float32)
            sparse<int32_t>(s, up_to(cols, 16), s.gap, true), sparse<int32_t>(s, up_to(cols, 32), 0, true);
          if (types[0] == types[1]) curvature(s, false), curvature(s, true);
        }
}

// One element too many, of float64: what the sanitizer does not see are masked loads of float32.
void overrun_layer(const Kernels& k, const std::string& kernel) {
  const Storage d = Storage::float64;
  Matrix x(d, 3, 17, 17, 0), w(d, 17, 16, 16, 0), b(d, 1, 16, 16, 0), total(d, 5, 17, 17, 0), g(d, 3, 8, 8, 0), sums(d, 1, 5, 5, 0);
  Block indices(8), ends(16);
  ends.as<int64_t>()[1] = 1;
  if (kernel == "scores") k.scores(d, d, x.block.data + 8, 17, 3, 17, w.block.data, 16, b.block.data, 5, total.block.data, 17);
  if (kernel == "back") k.back(d, d, g.block.data, 8, 5, x.block.data + 8, 17, 3, 17, total.block.data, 17, sums.block.as<double>());
  if (kernel == "curvature") k.curvature(d, b.block.data, 5, nullptr, sums.block.data + 8, 5, 1, 5);
  if (kernel == "sparse") 
    k.sparse(d, d, d, b.block.data, indices.data, 1, ends.data, true, 1, sums.block.data + 8, 1, 5, 5, 5, b.block.data, 16);
}
