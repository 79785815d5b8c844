// The contract of softgrad's kernels.
//
// The row primitive maps a row of logits and its target to a few numbers, from which every loss is arithmetic:
//
//   lse             log Σ exp u             gradient in u:  S
//   cross-entropy   t lse − Σ w y' u                        t S − w y'       with t = Σ w y'
//   entropy         lse − Σ S u                             −S∘(log S + entropy)
//
// src/softgrad/reference.py defines them.  Three kernels do all the arithmetic:
//
//   statistics   row statistics of a range of columns                 reads the logits once
//   gradient     the gradient from statistics, for one upstream number a row and output
//                                                                     reads the logits, writes the gradient
//   product      Jacobian and Hessian products                        reads logits and vector twice, writes once
//
// and `rows` runs the first two row by row, while the row is still in the L2 cache, so that a batch costs one read and
// one write of memory.  `distribution` is the gradient kernel with nothing subtracted, or the logarithm instead.
//
// Columns.  A tile in memory, a panel that one thread summarises and a slice of the classes on another machine are the same:
// a range of columns, whose statistics merge.  A problem that is a slice knows its place among all classes.
//
// Rules.  Every kernel is a pure function of a row range [lo, hi): no Python, no thread, no allocation, no global.
// Inputs are never written; the gradient and the distribution may alias the logits exactly (same address and stride), the
// product its vector or the logits, and both dense targets.  Rows are `stride` elements apart, columns are adjacent.  A label
// is read once for each use and bounded there, so that one which another thread changes gives wrong numbers and nothing else.
//
// Precision.  float32, bfloat16 and float16 are computed in float32, float64 in float64; the statistics of a tile of
// `tile` columns are merged in double, and the loss is a double.  A row's bits depend on the row, the options and the
// instruction set alone: tiles and panels are fixed, whoever computes them.
#pragma once

#include <cstdint>
#include <limits>

namespace softgrad {

enum class Storage : int32_t { float32, float64, bfloat16, float16 };
enum class TargetKind : int32_t { none, labels, dense, sparse };

constexpr int64_t tile = 2048;        // columns whose logits stay in the L1 cache between the loops of a kernel
constexpr int64_t panel = 16 * tile;  // columns that one caller of `statistics` summarises: the unit of a column split

struct Options {
  double smoothing = 0;      // ε
  bool finite_only = false;  // spread ε over the classes that are not masked (−inf)
  double scale = 1;          // s
  double softcap = 0;        // c, or 0 for none
  double temperature = 1;    // τ
  double z_loss = 0;         // λ
  bool has_ignore = false;
  int64_t ignore_index = 0;
};

struct Problem : Options {
  const void* logits;
  int64_t rows, cols, stride;
  Storage storage;
  int64_t first, classes;  // the logits are the columns [first, first + cols) of `classes`

  TargetKind target;
  const void* labels;  // labels: one a row; sparse: `width` indices a row, −1 pads, duplicates add up.  Of all classes
  int32_t label_bytes;
  bool label_signed;
  int64_t label_stride, width;
  const void* values;  // dense (these columns') or sparse target values, of any storage type
  Storage value_storage;
  int64_t value_stride;

  const void* class_weight;  // nullptr, or `cols` numbers of the arithmetic type (float, or double for float64)
  const double* row_weight;  // nullptr: all 1.  A row of weight 0 is ignored, whatever it holds
  double ce_factor;          // of the cross-entropy part of every row: 1, or 1 / the mean's denominator
  double z_factor;           // of the z-loss part

  // The gradient of row i is that of ce_i CE_i + lse_i LSE_i + entropy_i H_i, instead of the row's share of the total.
  // A nullptr is 0 in every row.  Ignored rows stay exactly 0.
  bool has_upstream;
  const double *ce_upstream, *lse_upstream, *entropy_upstream;
};

// What a range of columns says about a row; `merge` in kernels.inc.cpp makes two into one.
// Distances d = u − max u are taken before anything is multiplied or added, so offsets of ±1e30 cost nothing.
// Records of disjoint ranges with the same peak add up, field by field, to the record of their union.
struct Statistics {
  double peak;                      // the logit (softcap: the transformed logit) of the largest u
  double at_peak, rest;             // Σ exp d in two parts: the peaks' own ones, and Σ over the other columns
  double moment;                    // Σ d exp d; NaN where by-products were not asked for
  double smooth_mass, smooth_dot;   // Σ w, Σ w d over the classes that smoothing reaches
  double finite;                    // how many those are
  double target_mass, target_dot;   // Σ w y, Σ w y d with 0·∞ = 0
  double plain_mass, plain_dot;     // Σ y, Σ y d: the target's log-probability
  double best;                      // the largest s·o up to |s|: what the arg-max is about
  int64_t argmax, rank;             // the class of `best`, among all classes; how many s·o are above the label's
};

struct Outputs {       // each may be nullptr
  double* loss;        // the row's share of the total
  double* lse;
  double* log_prob;
  int64_t* argmax;
  int64_t* rank;       // −1 for a slice: the label's logit may be another's
  double* entropy;
  void* grad;          // of the logits' type
  int64_t grad_stride;
  // With G = ∂/∂u of the row, over these columns: Σ G_j u_j, and Σ G_j ∂u_j/∂s.  Derivatives by the temperature
  // (−along/τ), the logit scale (slope) and the softcap ((along − s slope)/c).  Masked columns add 0.
  double* along;
  double* slope;
  bool stream;         // bypass the cache: pays where the gradient is larger than it, and is not the logits
};

struct Totals {        // what `mean` divides by; a == 0 and ignored rows do not count
  int64_t bad;         // the first row with a label outside [0, classes), or −1
  double labelled;     // Σ a w_y
  double total;        // Σ a
  int64_t kept;
};

// The rule of the mean: the cross-entropy is divided by `labelled` and the z-loss by `total`.
struct Settled {
  int64_t bad_row;
  bool empty_mean;  // the mean of nothing: NaN, with a gradient of 0
  double ce_factor, z_factor;
};
inline Settled settle(const Totals& t, bool mean, double z_loss) {
  if (t.bad >= 0 || !mean) return {t.bad, false, 1, 1};
  if (t.kept == 0 || t.labelled == 0) return {-1, true, 0, 0};
  return {-1, false, 1 / t.labelled, t.total != 0 ? 1 / t.total : z_loss != 0 ? std::numeric_limits<double>::quiet_NaN() : 0};
}

struct Kernels {
  const char* name;
  Totals (*totals)(const Problem&);  // the only function that reads labels which were not checked
  void (*rows)(const Problem&, const Outputs&, int64_t lo, int64_t hi);
  // Columns [col_lo, col_hi) of the rows [lo, hi) into out[0 … hi−lo): one panel at most, or whole panels.
  void (*statistics)(const Problem&, int64_t lo, int64_t hi, int64_t col_lo, int64_t col_hi, bool by_products,
                     Statistics* out);
  void (*merge)(const Problem&, Statistics* into, const Statistics* from, int64_t count);
  // From whole-row statistics stats[0 … hi−lo): the loss and by-products; the gradient of columns [col_lo, col_hi), and
  // `along` and `slope` over them, to which the first of all columns adds what all columns share.
  void (*finish)(const Problem&, const Outputs&, const Statistics* stats, int64_t lo, int64_t hi);
  void (*gradient)(const Problem&, const Outputs&, const Statistics* stats, int64_t lo, int64_t hi, int64_t col_lo,
                   int64_t col_hi);
  // out = S, or log S, of columns [col_lo, col_hi): from whole-row statistics, or (nullptr) from the logits.
  void (*distribution)(const Problem&, bool logarithm, void* out, int64_t out_stride, const Statistics* stats, int64_t lo,
                       int64_t hi, int64_t col_lo, int64_t col_hi);
  // out = H v, the Hessian of the row's share of the total; with TargetKind::none, out = ∂S/∂o v.
  void (*product)(const Problem&, const void* vector, int64_t vector_stride, void* out, int64_t out_stride, int64_t lo,
                  int64_t hi);
  // vector ← a (S∘vector − S (S·vector)) row by row, from stored float32 or float64 probabilities S: what an iteration
  // that multiplies with one Hessian many times calls.  weight (a): nullptr, or one a row.
  void (*curvature)(Storage, const void* prob, int64_t prob_stride, const double* weight, void* vector,
                    int64_t vector_stride, int64_t rows, int64_t cols);
  // out = X dense for CSR rows X (data, indices, indptr; `wide`: indices of 64 bits), types as of the linear layer: the
  // one product that no BLAS has.  Each row of X is read once for every four vectors of columns, eight of bf16.  false, and
  // nothing is written, where an index is outside.  The dense matrix is of type `arithmetic`, or bf16 where the rest is f32
  // and not `wide`: half the memory to gather from.  `readable`: its columns, of which the first `cols` are multiplied and
  // the others may be read; of bf16 at least a multiple of 16.
  bool (*sparse)(Storage arithmetic, Storage storage, Storage of_dense, const void* data, const void* indices, int64_t stored,
                 const void* indptr, bool wide, int64_t rows, const void* dense, int64_t dense_rows, int64_t stride,
                 int64_t readable, int64_t cols, void* out, int64_t out_stride);
  // float32 to the nearest bfloat16, halves away from 0; what is not finite is cut off.
  void (*to_half)(const float* from, int64_t from_stride, uint16_t* to, int64_t to_stride, int64_t rows, int64_t cols);
  // The linear layer of a few classes, linear.inc.cpp: out = X W + b, and out += Gᵀ X with the column sums of G.  All of
  // type `arithmetic` (f32 or f64) but X, which may be f32 for f64.  There are at least `lanes` features.
  void (*scores)(Storage arithmetic, Storage storage, const void* x, int64_t x_stride, int64_t rows, int64_t features,
                 const void* weight, int64_t weight_stride, const void* bias, int64_t cols, void* out, int64_t out_stride);
  void (*back)(Storage arithmetic, Storage storage, const void* g, int64_t g_stride, int64_t cols, const void* x,
               int64_t x_stride, int64_t rows, int64_t features, void* out, int64_t out_stride, double* column_sums);
};

constexpr int64_t widest_lanes = 16;  // what `scores` and `back` ask of their arrays, for every variant

namespace baseline { extern const Kernels kernels; }
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }

// dispatch.cpp.  The variants that were compiled and that this processor runs, best first; nullptr ends the list.
const Kernels* const* available();

}  // namespace softgrad
