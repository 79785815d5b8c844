// The only file that knows Python.  It turns buffers into pointers, checks what memory safety needs (shape, item size,
// adjacency, labels), releases the interpreter and calls a kernel.  Messages for users are made in src/softgrad.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "gil.h"
#include "kernels.h"

namespace nb = nanobind;
using namespace softgrad;

namespace {

std::atomic<const Kernels*> selected{nullptr};

// A buffer that stays alive as long as its owner; rows are `stride` items apart and adjacent within.
struct Array {
  Py_buffer view = {};
  bool held = false;
  int64_t rows = 0, cols = 0, stride = 0;

  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { if (held) PyBuffer_Release(&view); }

  void* take(nb::handle object, int item, bool writable, int64_t want_rows, int64_t want_cols, const char* name) {
    if (object.is_none()) return nullptr;
    if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_STRIDES | (writable ? PyBUF_WRITABLE : 0))) throw nb::python_error();
    held = true;
    const auto refuse = [&](const char* why) { throw std::invalid_argument(std::string(name) + ": " + why); };
    if (view.itemsize != item) refuse("wrong item size");
    if (view.ndim < 1 || view.ndim > 2) refuse("needs one or two dimensions");
    const bool flat = view.ndim == 1;
    rows = flat && want_cols > 0 ? 1 : view.shape[0];
    cols = flat ? (want_cols > 0 ? view.shape[0] : 1) : view.shape[1];
    if ((want_rows >= 0 && rows != want_rows) || (want_cols > 0 && cols != want_cols)) refuse("wrong shape");
    const Py_ssize_t inner = view.strides[view.ndim - 1], outer = view.strides[0];
    const bool empty = rows == 0 || cols == 0;
    if (!empty && (flat && want_cols <= 0 ? false : cols > 1 && inner != item)) refuse("columns are not adjacent");
    if (!empty && outer % item != 0) refuse("rows are not whole items apart");
    stride = flat ? (want_cols > 0 ? cols : outer / item) : outer / item;
    if (reinterpret_cast<uintptr_t>(view.buf) % (item > 8 ? 8 : item) != 0) refuse("not aligned");
    return view.buf;
  }
};

int size_of(Type t) { return t == Type::f32 ? 4 : t == Type::f64 ? 8 : 2; }

struct Results {
  Outputs out = {};
  Array loss, lse, log_prob, argmax, rank, entropy, grad;
  Results(int64_t rows, int64_t cols, int type, nb::handle loss_, nb::handle lse_, nb::handle log_prob_, nb::handle argmax_,
          nb::handle rank_, nb::handle entropy_, nb::handle grad_, bool stream) {
    const auto vector = [&](Array& a, nb::handle h, const char* name) {
      void* p = a.take(h, 8, true, rows, 0, name);
      if (p && rows > 1 && a.stride != 1) throw std::invalid_argument(std::string(name) + ": not contiguous");
      return p;
    };
    out.loss = static_cast<double*>(vector(loss, loss_, "loss"));
    out.lse = static_cast<double*>(vector(lse, lse_, "lse"));
    out.log_prob = static_cast<double*>(vector(log_prob, log_prob_, "log_prob"));
    out.argmax = static_cast<int64_t*>(vector(argmax, argmax_, "argmax"));
    out.rank = static_cast<int64_t*>(vector(rank, rank_, "rank"));
    out.entropy = static_cast<double*>(vector(entropy, entropy_, "entropy"));
    out.grad = grad.take(grad_, size_of(Type(type)), true, rows, cols, "grad");
    out.grad_stride = grad.stride;
    out.stream = stream && out.grad;
  }
};

// A linear layer in front of a few classes, and where its gradient is added up.
struct Linear {
  const Kernels* kernels = selected.load();
  Type arithmetic, storage;
  Array x, weight, bias, scratch, total, sums;
  const char* rows;
  const void *w, *b;
  char* chunk;  // scratch.rows rows of G at a time, `scratch.stride` apart; columns beyond `cols` are 0
  void* into;
  double* column_sums;
  int64_t cols;

  Linear(nb::handle x_, nb::handle weight_, nb::handle bias_, nb::handle scratch_, nb::handle total_, nb::handle sums_,
         int64_t cols_, int item, int x_item)
      : arithmetic(item == 8 ? Type::f64 : Type::f32), storage(x_item == 8 ? Type::f64 : Type::f32), cols(cols_) {
    if ((item != 4 && item != 8) || (x_item != 4 && x_item != 8) || x_item > item) throw std::invalid_argument("wrong item size");
    rows = static_cast<const char*>(x.take(x_, x_item, false, -1, -1, "x"));
    w = weight.take(weight_, item, false, x.cols, -1, "weight");
    b = bias.take(bias_, item, false, weight.cols, 0, "bias");
    if (!rows || !w || !b || cols < 1 || x.cols < widest_lanes || weight.cols < cols || weight.cols % widest_lanes != 0 ||
        (bias.rows > 1 && bias.stride != 1))
      throw std::invalid_argument("arrays that do not fit");
    chunk = static_cast<char*>(scratch.take(scratch_, item, true, -1, -1, "scratch"));
    into = total.take(total_, item, true, cols, x.cols, "total");
    column_sums = static_cast<double*>(sums.take(sums_, 8, true, cols, 0, "sums"));
    if (chunk && (scratch.rows < 1 || scratch.cols < (cols + 3) / 4 * 4 || !into || !column_sums || (cols > 1 && sums.stride != 1)))
      throw std::invalid_argument("arrays that do not fit");
  }
  int item() const { return size_of(arithmetic); }

  void scores(int64_t lo, int64_t hi, void* out, int64_t out_stride) const {
    kernels->scores(arithmetic, storage, rows + lo * x.stride * size_of(storage), x.stride, hi - lo, x.cols, w, weight.stride,
                    b, cols, out, out_stride);
  }
  // `back` walks rows a column block at a time: from memory that is three times as slow as from the cache.
  void fetch(int64_t lo, int64_t hi) const {
    const int64_t bytes = x.cols * size_of(storage), stride = x.stride * size_of(storage);
    for (int64_t i = lo; i < hi; ++i)
      for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(rows + i * stride + at, 0, 2);
  }
  void back(int64_t lo, int64_t hi) const {
    kernels->back(arithmetic, storage, chunk, scratch.stride, cols, rows + lo * x.stride * size_of(storage), x.stride,
                  hi - lo, x.cols, into, total.stride, column_sums);
  }
  template <class F> void each_chunk(F f) const {
    for (int64_t lo = 0; lo < x.rows; lo += scratch.rows) f(lo, lo + scratch.rows < x.rows ? lo + scratch.rows : x.rows);
  }

  // out = X W + b.
  void forward(nb::handle out_) const {
    Array out;
    void* to = out.take(out_, item(), true, x.rows, cols, "out");
    const Unlocked unlocked;
    scores(0, x.rows, to, out.stride);
  }

  // total += Gᵀ X of G = a (S∘V − S (S·V)), V = X W + b: a Hessian product of the layer.
  void curvature(nb::handle prob_, nb::handle row_weight_) const {
    Array prob, row_weight;
    const char* s = static_cast<const char*>(prob.take(prob_, item(), false, x.rows, cols, "prob"));
    const double* a = static_cast<const double*>(row_weight.take(row_weight_, 8, false, x.rows, 0, "weight"));
    if (!s || !chunk || (a && x.rows > 1 && row_weight.stride != 1)) throw std::invalid_argument("arrays that do not fit");
    const Unlocked unlocked;
    each_chunk([&](int64_t lo, int64_t hi) {
      scores(lo, hi, chunk, scratch.stride);
      kernels->curvature(arithmetic, s + lo * prob.stride * item(), prob.stride, a ? a + lo : nullptr, chunk,
                         scratch.stride, hi - lo, cols);
      back(lo, hi);
    });
  }
};

struct Head {
  Problem p = {};
  const Kernels* kernels = selected.load();
  Array logits, labels, values, weight, row_weight;

  Head(nb::handle logits_, int type, int target, nb::handle labels_, int label_bytes, bool label_signed, nb::handle values_,
       int value_type, nb::handle weight_, nb::handle row_weight_, std::optional<int64_t> ignore, double smoothing,
       bool finite_only, double scale, double softcap, double temperature, double z_loss) {
    p.type = Type(type);
    p.logits = logits.take(logits_, size_of(p.type), false, -1, -1, "logits");
    p.rows = logits.rows, p.cols = logits.cols, p.stride = logits.stride;
    if (p.cols < 1) throw std::invalid_argument("logits: no classes");
    p.target = Target(target);
    p.label_bytes = label_bytes, p.label_signed = label_signed;
    p.labels = labels.take(labels_, label_bytes, false, p.rows, p.target == Target::index ? 0 : -1, "targets");
    p.label_stride = labels.stride, p.width = labels.cols;
    p.value_type = Type(value_type);
    const int64_t value_cols = p.target == Target::dense ? p.cols : p.width;
    p.values = values.take(values_, size_of(p.value_type), false, p.rows, value_cols > 0 ? value_cols : -1, "values");
    p.value_stride = values.stride;
    const bool wants_labels = p.target == Target::index || p.target == Target::sparse;
    const bool wants_values = p.target == Target::dense || p.target == Target::sparse;
    if (p.rows > 0 && (wants_labels != !labels_.is_none() || wants_values != !values_.is_none()))
      throw std::invalid_argument("targets: labels or values are missing");
    p.class_weight = weight.take(weight_, p.type == Type::f64 ? 8 : 4, false, p.cols, 0, "class_weight");
    p.row_weight = static_cast<const double*>(row_weight.take(row_weight_, 8, false, p.rows, 0, "sample_weight"));
    if ((p.class_weight && p.cols > 1 && weight.stride != 1) || (p.row_weight && p.rows > 1 && row_weight.stride != 1))
      throw std::invalid_argument("weights: not contiguous");
    p.has_ignore = ignore.has_value();
    p.ignore_index = ignore.value_or(0);
    p.smoothing = smoothing, p.finite_only = finite_only;
    p.scale = scale, p.softcap = softcap, p.temperature = temperature, p.z_loss = z_loss;
    p.ce_factor = p.z_factor = 1;
  }

  void range(int64_t lo, int64_t hi, int64_t col_lo, int64_t col_hi) const {
    if (lo < 0 || hi < lo || hi > p.rows || col_lo < 0 || col_hi <= col_lo || col_hi > p.cols)
      throw std::out_of_range("a range outside the batch");
  }

  // (first row with a bad label or −1, Σ a w_y over the kept rows, Σ a, rows kept)
  nb::tuple totals() const {
    Totals t;
    {
      const Unlocked unlocked;
      t = kernels->totals(p);
    }
    checked = t.bad < 0;
    return nb::make_tuple(t.bad, t.labelled, t.total, t.kept);
  }
  mutable bool checked = false;

  void safe() const {
    if ((p.target == Target::index || p.target == Target::sparse) && !checked)
      throw std::logic_error("totals() checks the labels, and comes first");
  }

  void fits(const Results& r) const {
    if (r.out.grad && (r.grad.rows != p.rows || r.grad.cols != p.cols)) throw std::invalid_argument("grad: wrong shape");
    for (const Array* a : {&r.loss, &r.lse, &r.log_prob, &r.argmax, &r.rank, &r.entropy})
      if (a->held && a->rows != p.rows) throw std::invalid_argument("outputs: wrong length");
  }

  void rows(const Results& r, int64_t lo, int64_t hi) const {
    safe(), fits(r), range(lo, hi, 0, p.cols);
    const Unlocked unlocked;
    kernels->rows(p, r.out, lo, hi);
  }

  Statistics* take_statistics(Array& a, nb::handle h, int64_t lo, int64_t hi) const {
    auto* s = static_cast<Statistics*>(a.take(h, sizeof(Statistics), true, hi - lo, 0, "statistics"));
    if (!s || (hi - lo > 1 && a.stride != 1)) throw std::invalid_argument("statistics: not contiguous");
    return s;
  }
  void statistics(int64_t lo, int64_t hi, int64_t col_lo, int64_t col_hi, bool by_products, nb::handle into) const {
    safe(), range(lo, hi, col_lo, col_hi);
    Array a;
    Statistics* s = take_statistics(a, into, lo, hi);
    const Unlocked unlocked;
    kernels->statistics(p, lo, hi, col_lo, col_hi, by_products, s);
  }
  void merge(nb::handle into, nb::handle from) const {
    Array a, b;
    auto* x = static_cast<Statistics*>(a.take(into, sizeof(Statistics), true, -1, 0, "statistics"));
    auto* y = static_cast<Statistics*>(b.take(from, sizeof(Statistics), true, a.rows, 0, "statistics"));
    if (!x || !y || (a.rows > 1 && (a.stride != 1 || b.stride != 1))) throw std::invalid_argument("statistics: not contiguous");
    kernels->merge(p, x, y, a.rows);
  }
  void finish(const Results& r, nb::handle stats, int64_t lo, int64_t hi) const {
    safe(), fits(r), range(lo, hi, 0, p.cols);
    Array a;
    kernels->finish(p, r.out, take_statistics(a, stats, lo, hi), lo, hi);
  }
  void gradient(const Results& r, nb::handle stats, int64_t lo, int64_t hi, int64_t col_lo, int64_t col_hi) const {
    safe(), fits(r), range(lo, hi, col_lo, col_hi);
    if (!r.out.grad) throw std::invalid_argument("grad: missing");
    Array a;
    const Statistics* s = take_statistics(a, stats, lo, hi);
    const Unlocked unlocked;
    kernels->gradient(p, r.out, s, lo, hi, col_lo, col_hi);
  }
  void distribution(bool logarithm, nb::handle out, int64_t lo, int64_t hi) const {
    range(lo, hi, 0, p.cols);
    Array a;
    void* to = a.take(out, size_of(p.type), true, p.rows, p.cols, "out");
    const Unlocked unlocked;
    kernels->distribution(p, logarithm, to, a.stride, lo, hi);
  }
  // Rows [lo, hi) as a problem of their own.
  Problem slice(int64_t lo, int64_t hi) const {
    const auto shift = [](const void* at, int64_t bytes) { return at ? static_cast<const char*>(at) + bytes : nullptr; };
    Problem q = p;
    q.rows = hi - lo;
    q.logits = shift(p.logits, lo * p.stride * size_of(p.type));
    q.labels = shift(p.labels, lo * p.label_stride * p.label_bytes);
    q.values = shift(p.values, lo * p.value_stride * size_of(p.value_type));
    if (p.row_weight) q.row_weight = p.row_weight + lo;
    return q;
  }

  // The whole pass of a linear layer: logits ← X W + b (unless `known`), prob ← S (if given), and the gradient of the
  // loss added to `total` = Gᵀ X and `sums`, a chunk of rows at a time.
  void linear(nb::handle logits_again, nb::handle losses, nb::handle prob_, const Linear& layer, bool known) const;

  void product(nb::handle vector, nb::handle out, int64_t lo, int64_t hi) const {
    safe(), range(lo, hi, 0, p.cols);
    Array a, b;
    const void* v = a.take(vector, size_of(p.type), false, p.rows, p.cols, "vector");
    void* to = b.take(out, size_of(p.type), true, p.rows, p.cols, "out");
    const Unlocked unlocked;
    kernels->product(p, v, a.stride, to, b.stride, lo, hi);
  }
};

void Head::linear(nb::handle logits_again, nb::handle losses_, nb::handle prob_, const Linear& layer, bool known) const {
  safe();
  Array logits_, losses, prob;
  char* z = static_cast<char*>(logits_.take(logits_again, size_of(p.type), true, p.rows, p.cols, "logits"));
  double* loss = static_cast<double*>(losses.take(losses_, 8, true, p.rows, 0, "losses"));
  char* s = static_cast<char*>(prob.take(prob_, size_of(p.type), true, p.rows, p.cols, "prob"));
  if (z != p.logits || !loss || (p.rows > 1 && losses.stride != 1) || layer.arithmetic != p.type || layer.cols != p.cols ||
      layer.x.rows != p.rows || !layer.chunk)
    throw std::invalid_argument("arrays that do not fit");
  const Unlocked unlocked;
  layer.each_chunk([&](int64_t lo, int64_t hi) {
    if (known) layer.fetch(lo, hi);
    else layer.scores(lo, hi, z + lo * p.stride * layer.item(), p.stride);
    const Problem q = slice(lo, hi);
    if (s) kernels->distribution(q, false, s + lo * prob.stride * layer.item(), prob.stride, 0, q.rows);
    Outputs out = {};
    out.loss = loss + lo, out.grad = layer.chunk, out.grad_stride = layer.scratch.stride;
    kernels->rows(q, out, 0, q.rows);
    layer.back(lo, hi);
  });
}

// Softmax or log-softmax along the last axis of contiguous arrays: one call for a small array.
void distribute(nb::handle logits, nb::handle out, int64_t cols, int type, bool logarithm, double scale, double softcap,
                double temperature) {
  struct Flat {
    Py_buffer view = {};
    bool held = false;
    Flat(nb::handle object, int flags) {
      if (PyObject_GetBuffer(object.ptr(), &view, flags | PyBUF_ND)) throw nb::python_error();
      held = true;
    }
    ~Flat() { if (held) PyBuffer_Release(&view); }
  };
  const Flat in(logits, PyBUF_SIMPLE), to(out, PyBUF_WRITABLE);
  const int size = size_of(Type(type));
  if (cols < 1 || in.view.len != to.view.len || in.view.itemsize != size || to.view.itemsize != size ||
      in.view.len % (cols * size) != 0)
    throw std::invalid_argument("arrays that do not fit");
  Problem p = {};
  p.type = Type(type), p.logits = in.view.buf, p.cols = p.stride = cols, p.rows = in.view.len / (cols * size);
  p.scale = scale, p.softcap = softcap, p.temperature = temperature, p.ce_factor = p.z_factor = 1;
  selected.load()->distribution(p, logarithm, to.view.buf, cols, 0, p.rows);
}

// Total loss and gradient of a small batch of contiguous rows with labels, in one call without arrays: a front-end with
// tensors of its own spends more on arrays than on a few logits.  Addresses must be those of live memory of these sizes.
// Returns the first row with a bad label or −1, and the total; a mean over nothing is NaN with a gradient of 0.
nb::tuple small_batch(uintptr_t logits, int64_t rows, int64_t cols, int type, uintptr_t labels, int label_bytes,
                      bool label_signed, std::optional<int64_t> ignore, double smoothing, bool finite_only, double scale,
                      double softcap, double temperature, double z_loss, bool mean, uintptr_t grad) {
  if (rows < 1 || cols < 1 || !logits || !labels) throw std::invalid_argument("an empty batch");
  Problem p = {};
  p.type = Type(type), p.logits = reinterpret_cast<const void*>(logits), p.rows = rows, p.cols = p.stride = cols;
  p.target = Target::index, p.labels = reinterpret_cast<const void*>(labels), p.label_stride = 1, p.width = 1;
  p.label_bytes = label_bytes, p.label_signed = label_signed;
  p.has_ignore = ignore.has_value(), p.ignore_index = ignore.value_or(0);
  p.smoothing = smoothing, p.finite_only = finite_only, p.scale = scale, p.softcap = softcap;
  p.temperature = temperature, p.z_loss = z_loss, p.ce_factor = p.z_factor = 1;
  const Kernels* kernels = selected.load();
  const Totals totals = kernels->totals(p);
  if (totals.bad >= 0) return nb::make_tuple(totals.bad, 0.0);
  const double nothing = std::numeric_limits<double>::quiet_NaN();
  if (mean && (totals.kept == 0 || totals.labelled == 0)) {
    if (grad) std::memset(reinterpret_cast<void*>(grad), 0, size_t(rows) * size_t(cols) * size_t(size_of(p.type)));
    return nb::make_tuple(int64_t(-1), nothing);
  }
  if (mean) p.ce_factor = 1 / totals.labelled, p.z_factor = totals.total != 0 ? 1 / totals.total : z_loss != 0 ? nothing : 0;
  std::vector<double> losses(static_cast<size_t>(rows));
  Outputs out = {};
  out.loss = losses.data(), out.grad = reinterpret_cast<void*>(grad), out.grad_stride = cols;
  double total = 0;
  {
    const Unlocked unlocked;
    kernels->rows(p, out, 0, rows);
  }
  for (const double loss : losses) total += loss;
  return nb::make_tuple(int64_t(-1), total);
}

// Rows of stored probabilities times vectors, in place.
void curvature(nb::handle prob_, nb::handle weight_, nb::handle vector_) {
  Array prob, weight, vector;
  Py_buffer view;
  if (PyObject_GetBuffer(prob_.ptr(), &view, PyBUF_STRIDES)) throw nb::python_error();
  const Py_ssize_t item = view.itemsize;
  PyBuffer_Release(&view);
  if (item != 4 && item != 8) throw std::invalid_argument("prob: wrong item size");
  const void* s = prob.take(prob_, int(item), false, -1, -1, "prob");
  void* v = vector.take(vector_, int(item), true, prob.rows, prob.cols > 0 ? prob.cols : -1, "vector");
  const void* a = weight.take(weight_, 8, false, prob.rows, 0, "weight");
  if (!s || !v || (a && prob.rows > 1 && weight.stride != 1)) throw std::invalid_argument("arrays that do not fit");
  const Kernels* kernels = selected.load();
  const Unlocked unlocked;
  kernels->curvature(item == 8 ? Type::f64 : Type::f32, s, prob.stride, static_cast<const double*>(a), v, vector.stride,
                     prob.rows, prob.cols);
}

// CSR rows times a dense matrix.
void sparse_product(nb::handle data_, nb::handle indices_, nb::handle indptr_, int data_item, int index_item,
                    nb::handle dense_, nb::handle out_, int item, bool half) {
  if ((item != 4 && item != 8) || (data_item != 4 && data_item != item) || (index_item != 4 && index_item != 8) ||
      (half && (item != 4 || index_item != 4)))
    throw std::invalid_argument("wrong item size");
  Array data, indices, indptr, dense, out;
  const void* x = data.take(data_, data_item, false, -1, 0, "data");
  const void* at = indices.take(indices_, index_item, false, data.rows, 0, "indices");
  const void* ends = indptr.take(indptr_, index_item, false, -1, 0, "indptr");
  const void* b = dense.take(dense_, half ? 2 : item, false, -1, -1, "dense");
  void* to = out.take(out_, item, true, indptr.rows - 1, dense.cols > 0 ? dense.cols : -1, "out");
  const auto tight = [](const Array& a) { return a.rows <= 1 || a.stride == 1; };
  if (half && (dense.stride % widest_lanes != 0 || dense.stride < dense.cols)) throw std::invalid_argument("dense: not padded");
  if (indptr.rows < 1 || !tight(data) || !tight(indices) || !tight(indptr)) throw std::invalid_argument("not contiguous");
  const Kernels* kernels = selected.load();
  const Type type = item == 8 ? Type::f64 : Type::f32;
  bool good;
  {
    const Unlocked unlocked;
    good = kernels->sparse(type, data_item == 8 ? Type::f64 : Type::f32, half ? Type::bf16 : type, x, at, data.rows, ends,
                           index_item == 8, out.rows, b, dense.rows, half || dense.rows > 1 ? dense.stride : dense.cols, dense.cols,
                           to, out.stride);
  }
  if (!good) throw std::invalid_argument("indices outside the matrix");
}

void to_half(nb::handle source_, nb::handle to_) {
  Array source, to;
  const void* from = source.take(source_, 4, false, -1, -1, "source");
  void* halves = to.take(to_, 2, true, source.rows, source.cols > 0 ? source.cols : -1, "to");
  const Kernels* kernels = selected.load();
  const Unlocked unlocked;
  kernels->to_half(static_cast<const float*>(from), source.stride, static_cast<uint16_t*>(halves), to.stride, source.rows,
                   source.cols);
}

std::vector<std::string> variants() {
  std::vector<std::string> names;
  for (const Kernels* const* k = available(); *k; ++k) names.emplace_back((*k)->name);
  return names;
}
void select_variant(const std::string& name) {
  for (const Kernels* const* k = available(); *k; ++k)
    if (name == (*k)->name) return selected.store(*k);
  throw std::invalid_argument("no such instruction set: " + name);
}

}  // namespace

void bind_pool(nb::module_& m);  // bind_pool.cpp

NB_MODULE(_native, m) {
  bind_pool(m);
  selected.store(available()[0]);
  m.attr("tile") = tile;
  m.attr("panel") = panel;
  m.attr("statistics_size") = sizeof(Statistics);
  m.def("variants", &variants, "Instruction sets that were compiled and that this processor runs, best first.");
  m.def("variant", [] { return std::string(selected.load()->name); }, "The instruction set in use.");
  m.def("select", &select_variant, nb::arg("name"), "Use another instruction set for every head made from now on.");

  m.def("distribute", &distribute, nb::arg("logits"), nb::arg("out"), nb::arg("cols"), nb::arg("type"), nb::arg("logarithm"),
        nb::arg("logit_scale"), nb::arg("softcap"), nb::arg("temperature"),
        "Softmax or log-softmax along the last axis of contiguous arrays.");
  m.def("small_batch", &small_batch, nb::arg("logits"), nb::arg("rows"), nb::arg("cols"), nb::arg("type"), nb::arg("labels"),
        nb::arg("label_bytes"), nb::arg("label_signed"), nb::arg("ignore_index").none(), nb::arg("label_smoothing"),
        nb::arg("smooth_finite_only"), nb::arg("logit_scale"), nb::arg("softcap"), nb::arg("temperature"),
        nb::arg("z_loss"), nb::arg("mean"), nb::arg("grad"), nb::sig("def small_batch(logits: int, rows: int, cols: int, type: int, "
        "labels: int, label_bytes: int, label_signed: bool, ignore_index: int | None, label_smoothing: float, smooth_finite_only: bool, "
        "logit_scale: float, softcap: float, temperature: float, z_loss: float, mean: bool, grad: int) -> tuple[int, float]"),
        "Total loss of a small batch at an address, and its gradient: (first bad row or -1, total).");
  m.def("curvature", &curvature, nb::arg("prob"), nb::arg("weight").none(), nb::arg("vector"),
        "In place, vector = weight (S vector - S (S . vector)), from stored probabilities.");
  m.def("sparse_product", &sparse_product, nb::arg("data"), nb::arg("indices"), nb::arg("indptr"),
        nb::arg("data_item"), nb::arg("index_item"), nb::arg("dense"), nb::arg("out"), nb::arg("item"), nb::arg("half"),
        "CSR rows times a dense matrix, whose type may be wider than theirs, or (half) the bits of bfloat16.");
  m.def("to_half", &to_half, nb::arg("source"), nb::arg("to"), "float32 to the bits of the nearest bfloat16.");
  nb::class_<Results>(m, "Results", "Buffers that a head writes into; None for what is not wanted.")
      .def(nb::init<int64_t, int64_t, int, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle,
                    bool>(),
           nb::arg("rows"), nb::arg("cols"), nb::arg("type"), nb::arg("loss").none(), nb::arg("lse").none(),
           nb::arg("log_prob").none(), nb::arg("argmax").none(), nb::arg("rank").none(), nb::arg("entropy").none(),
           nb::arg("grad").none(), nb::arg("stream"));
  m.attr("linear_lanes") = widest_lanes;
  nb::class_<Linear>(m, "Linear", "Dense rows times the weights of a few classes, in float32 or float64.")
      .def(nb::init<nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, int64_t, int, int>(),
           nb::arg("x"), nb::arg("weight"), nb::arg("bias"), nb::arg("scratch").none(), nb::arg("total").none(),
           nb::arg("sums").none(), nb::arg("cols"), nb::arg("item"), nb::arg("x_item"))
      .def("forward", &Linear::forward, nb::arg("out"))
      .def("curvature", &Linear::curvature, nb::arg("prob"), nb::arg("row_weight").none());
  nb::class_<Head>(m, "Head", "A batch of logits with its targets and options, whose row ranges can be computed.")
      .def(nb::init<nb::handle, int, int, nb::handle, int, bool, nb::handle, int, nb::handle, nb::handle,
                    std::optional<int64_t>, double, bool, double, double, double, double>(),
           nb::arg("logits"), nb::arg("type"), nb::arg("target"), nb::arg("labels").none(), nb::arg("label_bytes"),
           nb::arg("label_signed"), nb::arg("values").none(), nb::arg("value_type"), nb::arg("class_weight").none(),
           nb::arg("row_weight").none(), nb::arg("ignore_index").none(), nb::arg("label_smoothing"),
           nb::arg("smooth_finite_only"), nb::arg("logit_scale"), nb::arg("softcap"), nb::arg("temperature"),
           nb::arg("z_loss"))
      .def("totals", &Head::totals, nb::sig("def totals(self) -> tuple[int, float, float, int]"))
      .def("set_factors", [](Head& h, double ce, double z) { h.p.ce_factor = ce, h.p.z_factor = z; }, nb::arg("ce"), nb::arg("z"))
      .def("rows", &Head::rows, nb::arg("results"), nb::arg("lo"), nb::arg("hi"))
      .def("statistics", &Head::statistics, nb::arg("lo"), nb::arg("hi"), nb::arg("col_lo"), nb::arg("col_hi"),
           nb::arg("by_products"), nb::arg("into"))
      .def("merge", &Head::merge, nb::arg("into"), nb::arg("other"))
      .def("finish", &Head::finish, nb::arg("results"), nb::arg("statistics"), nb::arg("lo"), nb::arg("hi"))
      .def("gradient", &Head::gradient, nb::arg("results"), nb::arg("statistics"), nb::arg("lo"), nb::arg("hi"),
           nb::arg("col_lo"), nb::arg("col_hi"))
      .def("distribution", &Head::distribution, nb::arg("logarithm"), nb::arg("out"), nb::arg("lo"), nb::arg("hi"))
      .def("product", &Head::product, nb::arg("vector"), nb::arg("out"), nb::arg("lo"), nb::arg("hi"))
      .def("linear", &Head::linear, nb::arg("logits"), nb::arg("losses"), nb::arg("prob").none(), nb::arg("layer"),
           nb::arg("known"));
}
