// The only file that knows Python.  It takes the records and arrays that a kernel reads and writes, checks what memory
// safety needs (format, shape, adjacency, alignment, overlap), releases the interpreter and calls the kernel.  Messages for
// users are made in src/softgrad.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <stdexcept>
#include <string>

#include "gil.h"
#include "kernels.h"

namespace nb = nanobind;
using namespace softgrad;

namespace {

std::atomic<const Kernels*> selected{nullptr};

// --- arrays --------------------------------------------------------------------------------------------------------

enum class Kind { real, whole, natural, record };
struct Element {
  Kind kind;
  int size;
  bool operator==(const Element& e) const { return kind == e.kind && size == e.size; }
};
constexpr Element float32{Kind::real, 4}, float64{Kind::real, 8}, int64{Kind::whole, 8}, bits16{Kind::natural, 2};
constexpr Element record{Kind::record, sizeof(Statistics)};

Element element_of(Storage s) {
  switch (s) {
    case Storage::float32: return float32;
    case Storage::float64: return float64;
    case Storage::float16: return {Kind::real, 2};
    default: return bits16;
  }
}
int size_of(Storage s) { return element_of(s).size; }

// The numbers of a buffer; false for what no kernel reads: foreign byte order, objects, structures other than a record.
bool element_of(const Py_buffer& view, Element& e) {
  const char* f = view.format ? view.format : "B";
  const int size = int(view.itemsize);
  if (*f == '=' || *f == '@' || (*f == '<' && PY_LITTLE_ENDIAN) || (*f == '>' && (PY_BIG_ENDIAN || size == 1))) ++f;
  if (view.itemsize == sizeof(Statistics)) {  // bytes, or the fields in their order
    const char* end = f;
    while (*end >= '0' && *end <= '9') ++end;
    e = record;
    if (end != f) return std::strcmp(end, "x") == 0;
    std::string letters;
    bool name = false;
    for (; *f; ++f) {
      if (*f == ':') name = !name;
      else if (!name && *f != '=' && *f != '@' && *f != '<') letters += *f;
    }
    return letters == "T{ddddddddddddll}" || letters == "T{ddddddddddddqq}";
  }
  if (!*f || f[1]) return false;
  if (std::strchr("efd", *f)) e = {Kind::real, size};
  else if (std::strchr("bhilqn", *f)) e = {Kind::whole, size};
  else if (std::strchr("BHILQN", *f)) e = {Kind::natural, size};
  else return false;
  return size == 1 || size == 2 || size == 4 || size == 8;
}

// A buffer that stays alive as long as its owner.  A matrix has rows that are `stride` items apart and columns that are
// adjacent; a vector is a matrix of one column.
struct Array {
  Py_buffer view = {};
  bool held = false;
  const char* name = "";
  Element element = {};
  int64_t rows = 0, cols = 0, stride = 0;

  Array() = default;
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { if (held) PyBuffer_Release(&view); }

  [[noreturn]] void refuse(const std::string& why) const { throw std::invalid_argument(std::string(name) + ": " + why); }

  void open(nb::handle object, const char* name_, bool writable, int ndim) {
    name = name_;
    if (PyObject_GetBuffer(object.ptr(), &view, PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)))
      throw nb::python_error();
    held = true;
    if (view.ndim != ndim) refuse("has " + std::to_string(view.ndim) + " dimensions instead of " + std::to_string(ndim));
    if (!element_of(view, element)) refuse(std::string("has the unknown format ") + (view.format ? view.format : ""));
    rows = view.shape[0], cols = ndim == 2 ? view.shape[1] : 1;
    const int64_t size = view.itemsize, unit = size > 8 ? 8 : size;
    stride = view.strides[0] / size;
    if (rows <= 1) stride = cols;
    if (rows == 0 || cols == 0) return;
    if (ndim == 2 && cols > 1 && view.strides[1] != size) refuse("columns are not adjacent");
    if (rows > 1 && view.strides[0] % size != 0) refuse("rows are not whole items apart");
    if (reinterpret_cast<uintptr_t>(view.buf) % uintptr_t(unit) != 0) refuse("is not aligned");
    if (writable && rows > 1 && std::abs(stride) < cols) refuse("rows overlap");
  }
  void expect(Element e) const {
    if (!(element == e)) refuse(std::string("has the wrong format ") + (view.format ? view.format : "B"));
  }
  void expect(int64_t want_rows, int64_t want_cols) const {
    if (rows == want_rows && cols == want_cols) return;
    const auto shape = [](int64_t r, int64_t c) { return "(" + std::to_string(r) + ", " + std::to_string(c) + ")"; };
    refuse("has shape " + shape(rows, cols) + " instead of " + shape(want_rows, want_cols));
  }
  void expect_contiguous() const { if (rows > 1 && stride != cols) refuse("is not contiguous"); }

  void* matrix(nb::handle object, const char* name_, Element e, int64_t want_rows, int64_t want_cols,
               bool writable = false) {
    open(object, name_, writable, 2), expect(e), expect(want_rows, want_cols);
    return view.buf;
  }
  // Contiguous.  nullptr for None.
  void* vector(nb::handle object, const char* name_, Element e, int64_t length, bool writable = false) {
    if (object.is_none()) return nullptr;
    open(object, name_, writable, 1), expect(e), expect(length, 1), expect_contiguous();
    return view.buf;
  }

  // In bytes.
  int64_t width() const { return cols * view.itemsize; }
  int64_t step() const { return stride * view.itemsize; }
  uintptr_t low() const {
    return reinterpret_cast<uintptr_t>(view.buf) + uintptr_t(step() < 0 ? (rows - 1) * step() : 0);
  }
  uintptr_t high() const { return low() + uintptr_t((rows - 1) * std::abs(step()) + width()); }
  bool empty() const { return !held || rows == 0 || cols == 0; }
};

bool overlaps(const Array& a, const Array& b) {
  if (a.empty() || b.empty() || a.high() <= b.low() || b.high() <= a.low()) return false;
  if (a.step() != b.step() || a.step() <= 0) return true;
  // Columns of one larger matrix.
  const int64_t step = a.step(), off = ((int64_t(b.low() - a.low()) % step) + step) % step;
  return off < a.width() || off + b.width() > step;
}
bool same_place(const Array& a, const Array& b) {
  return a.view.buf == b.view.buf && a.rows == b.rows && a.cols == b.cols && a.stride == b.stride && a.element == b.element;
}
// `out` is written while others are read: elsewhere, or (`expect_over`) each element over itself.
void expect_apart(const Array& out, std::initializer_list<const Array*> others) {
  for (const Array* other : others)
    if (overlaps(out, *other)) out.refuse(std::string("overlaps ") + other->name);
}
void expect_over(const Array& out, const Array& other) {
  if (overlaps(out, other) && !same_place(out, other)) out.refuse(std::string("overlaps ") + other.name);
}

// --- records -------------------------------------------------------------------------------------------------------

struct TargetRecord {
  TargetKind kind;
  Array labels, values;
  Storage values_storage;
  int64_t first, classes;

  TargetRecord(TargetKind kind_, nb::handle labels_, nb::handle values_, Storage storage, int64_t first_, int64_t classes_)
      : kind(kind_), values_storage(storage), first(first_), classes(classes_) {
    const bool has_labels = kind == TargetKind::labels || kind == TargetKind::sparse;
    const bool has_values = kind == TargetKind::dense || kind == TargetKind::sparse;
    if (has_labels == labels_.is_none() || has_values == values_.is_none())
      throw std::invalid_argument("targets: labels or values do not go with the kind of the targets");
    if (has_labels) {
      labels.open(labels_, "labels", false, kind == TargetKind::labels ? 1 : 2);
      if (labels.element.kind != Kind::whole && labels.element.kind != Kind::natural) labels.refuse("are not integers");
    }
    if (has_values) {
      values.open(values_, "values", false, 2), values.expect(element_of(storage));
      if (has_labels) values.expect(labels.rows, labels.cols);
    }
    if (first < 0 || classes < 0) throw std::invalid_argument("targets: a slice has a first column and a number of classes");
  }
};

struct OutputRecord {
  Outputs out = {};
  int64_t rows, cols;
  Storage storage;
  Array loss, lse, log_prob, argmax, rank, entropy, grad, along, slope;

  OutputRecord(int64_t rows_, int64_t cols_, Storage storage_, nb::handle loss_, nb::handle lse_, nb::handle log_prob_,
               nb::handle argmax_, nb::handle rank_, nb::handle entropy_, nb::handle grad_, nb::handle along_,
               nb::handle slope_, bool stream)
      : rows(rows_), cols(cols_), storage(storage_) {
    const auto real = [&](Array& a, nb::handle h, const char* name) {
      return static_cast<double*>(a.vector(h, name, float64, rows, true));
    };
    const auto whole = [&](Array& a, nb::handle h, const char* name) {
      return static_cast<int64_t*>(a.vector(h, name, int64, rows, true));
    };
    out.loss = real(loss, loss_, "loss"), out.lse = real(lse, lse_, "lse");
    out.log_prob = real(log_prob, log_prob_, "log_prob"), out.entropy = real(entropy, entropy_, "entropy");
    out.argmax = whole(argmax, argmax_, "argmax"), out.rank = whole(rank, rank_, "rank");
    out.along = real(along, along_, "along"), out.slope = real(slope, slope_, "slope");
    if (!grad_.is_none()) out.grad = grad.matrix(grad_, "grad", element_of(storage), rows, cols, true);
    out.grad_stride = grad.stride;
    out.stream = stream && out.grad;
    const Array* all[] = {&loss, &lse, &log_prob, &argmax, &rank, &entropy, &grad, &along, &slope};
    for (const Array* const* a = all; a != all + 9; ++a)
      for (const Array* const* b = all; b != a; ++b) expect_apart(**a, {*b});
  }
};

// --- the linear layer ----------------------------------------------------------------------------------------------

// A linear layer in front of a few classes, and where its gradient is added up.
struct Linear {
  const Kernels* kernels = selected.load();
  Storage arithmetic, storage;
  Array x, weight, bias, scratch, total, sums;
  int64_t cols;

  Linear(nb::handle x_, nb::handle weight_, nb::handle bias_, int64_t cols_, nb::handle scratch_, nb::handle total_,
         nb::handle sums_)
      : cols(cols_) {
    weight.open(weight_, "weight", false, 2), x.open(x_, "x", false, 2);
    if (!(weight.element == float32 || weight.element == float64)) weight.refuse("is neither float32 nor float64");
    if (!(x.element == float32 || x.element == weight.element)) x.refuse("does not go with the weight");
    arithmetic = weight.element == float64 ? Storage::float64 : Storage::float32;
    storage = x.element == float64 ? Storage::float64 : Storage::float32;
    if (x.cols < widest_lanes) x.refuse("has too few features");
    if (cols < 1 || weight.rows != x.cols || weight.cols < cols || weight.cols % widest_lanes != 0)
      weight.refuse("does not fit");
    bias.vector(bias_, "bias", weight.element, weight.cols);
    if (!bias.held) throw std::invalid_argument("bias: missing");
    if (scratch_.is_none() != total_.is_none() || scratch_.is_none() != sums_.is_none())
      throw std::invalid_argument("scratch, total, sums: all of them or none");
    if (scratch_.is_none()) return;
    scratch.open(scratch_, "scratch", true, 2), scratch.expect(weight.element);
    if (scratch.rows < 1 || scratch.cols < (cols + 3) / 4 * 4) scratch.refuse("is too small");
    total.matrix(total_, "total", weight.element, cols, x.cols, true);
    sums.vector(sums_, "sums", float64, cols, true);
    expect_apart(scratch, {&x, &weight, &bias}), expect_apart(total, {&x, &weight, &bias, &scratch});
    expect_apart(sums, {&x, &weight, &bias, &scratch, &total});
  }
  int item() const { return size_of(arithmetic); }
  char* chunk() const { return static_cast<char*>(scratch.view.buf); }
  const char* row(int64_t i) const { return static_cast<const char*>(x.view.buf) + i * x.step(); }

  void scores(int64_t lo, int64_t hi, void* out, int64_t out_stride) const {
    kernels->scores(arithmetic, storage, row(lo), x.stride, hi - lo, x.cols, weight.view.buf, weight.stride, bias.view.buf,
                    cols, out, out_stride);
  }
  // `back` walks rows a column block at a time: from memory that is three times as slow as from the cache.
  void fetch(int64_t lo, int64_t hi) const {
    for (int64_t i = lo; i < hi; ++i)
      for (int64_t at = 0; at < x.width(); at += 64) __builtin_prefetch(row(i) + at, 0, 2);
  }
  void back(int64_t lo, int64_t hi) const {
    kernels->back(arithmetic, storage, chunk(), scratch.stride, cols, row(lo), x.stride, hi - lo, x.cols, total.view.buf,
                  total.stride, static_cast<double*>(sums.view.buf));
  }
  template <class F> void each_chunk(F f) const {
    for (int64_t lo = 0; lo < x.rows; lo += scratch.rows) f(lo, lo + scratch.rows < x.rows ? lo + scratch.rows : x.rows);
  }

  // out = X W + b.
  void forward(nb::handle out_) const {
    Array out;
    void* to = out.matrix(out_, "out", weight.element, x.rows, cols, true);
    expect_apart(out, {&x, &weight, &bias});
    const Unlocked unlocked;
    scores(0, x.rows, to, out.stride);
  }

  // total += Gᵀ X of G = a (S∘V − S (S·V)), V = X W + b: a Hessian product of the layer.
  void curvature(nb::handle prob_, nb::handle row_weight_) const {
    Array prob, row_weight;
    const char* s = static_cast<const char*>(prob.matrix(prob_, "prob", weight.element, x.rows, cols));
    const double* a = static_cast<const double*>(row_weight.vector(row_weight_, "row_weight", float64, x.rows));
    if (!scratch.held) throw std::invalid_argument("scratch: missing");
    for (const Array* out : {&scratch, &total, &sums}) expect_apart(*out, {&prob, &row_weight});
    const Unlocked unlocked;
    each_chunk([&](int64_t lo, int64_t hi) {
      scores(lo, hi, chunk(), scratch.stride);
      kernels->curvature(arithmetic, s + lo * prob.step(), prob.stride, a ? a + lo : nullptr, chunk(), scratch.stride,
                         hi - lo, cols);
      back(lo, hi);
    });
  }
};

// --- the head ------------------------------------------------------------------------------------------------------

// Gradients of the rows' outputs.  A call in progress keeps the ones that it began with.
struct Upstream {
  Array ce, lse, entropy;
};

struct Head {
  Problem p = {};
  const Kernels* kernels = selected.load();
  nb::object owner;  // of the targets
  const TargetRecord& targets;
  Array logits, weight, row_weight;
  std::shared_ptr<Upstream> upstream;

  Head(nb::handle logits_, Storage storage, nb::handle targets_, const Options& options, nb::handle weight_,
       nb::handle row_weight_)
      : owner(nb::borrow(targets_)), targets(nb::cast<const TargetRecord&>(targets_)) {
    static_cast<Options&>(p) = options;
    p.storage = storage;
    logits.open(logits_, "logits", false, 2), logits.expect(element_of(storage));
    p.logits = logits.view.buf, p.rows = logits.rows, p.cols = logits.cols, p.stride = logits.stride;
    if (p.cols < 1) logits.refuse("has no classes");
    p.first = targets.first, p.classes = targets.classes ? targets.classes : p.cols;
    if (p.first > p.classes || p.classes - p.first < p.cols)
      throw std::invalid_argument("targets: the slice is outside its classes");
    p.target = targets.kind;
    if (targets.labels.held) {
      const Array& labels = targets.labels;
      labels.expect(p.rows, labels.cols);
      p.labels = labels.view.buf, p.label_bytes = labels.element.size;
      p.label_signed = labels.element.kind == Kind::whole;
      p.label_stride = labels.stride, p.width = labels.cols;
    }
    if (targets.values.held) {
      const Array& values = targets.values;
      values.expect(p.rows, p.target == TargetKind::dense ? p.cols : values.cols);
      p.values = values.view.buf, p.value_stride = values.stride;
    }
    p.value_storage = targets.values_storage;
    p.class_weight = weight.vector(weight_, "class_weight", storage == Storage::float64 ? float64 : float32, p.cols);
    p.row_weight = static_cast<const double*>(row_weight.vector(row_weight_, "row_weight", float64, p.rows));
    p.ce_factor = p.z_factor = 1;
  }

  void expect_range(int64_t lo, int64_t hi, int64_t col_lo, int64_t col_hi) const {
    if (lo < 0 || hi < lo || hi > p.rows || col_lo < 0 || col_hi <= col_lo || col_hi > p.cols)
      throw std::out_of_range("a range outside the batch");
  }
  void expect_whole() const {
    if (p.classes != p.cols)
      throw std::invalid_argument("a slice of the classes has no softmax of its own; merge its statistics");
  }
  void expect_apart(const Array& out) const {
    ::expect_apart(out, {&targets.labels, &weight, &row_weight});
    if (p.target == TargetKind::dense) expect_over(out, targets.values);
    else ::expect_apart(out, {&targets.values});
    if (upstream) ::expect_apart(out, {&upstream->ce, &upstream->lse, &upstream->entropy});
  }
  void expect_fit(const OutputRecord& o) const {
    if (o.rows != p.rows || o.cols != p.cols || o.storage != p.storage) throw std::invalid_argument("outputs: of another batch");
    for (const Array* a : {&o.loss, &o.lse, &o.log_prob, &o.argmax, &o.rank, &o.entropy, &o.along, &o.slope})
      if (a->held) expect_apart(*a), ::expect_apart(*a, {&logits});
    if (o.grad.held) expect_apart(o.grad), expect_over(o.grad, logits);
  }

  Settled settle(bool mean) {
    if (mean && p.classes != p.cols && p.class_weight)
      throw std::invalid_argument("the mean of a slice with class weights needs the statistics of all slices");
    Totals totals;
    const Problem q = p;
    {
      const Unlocked unlocked;
      totals = kernels->totals(q);
    }
    const Settled settled = softgrad::settle(totals, mean, p.z_loss);
    if (settled.bad_row < 0) p.ce_factor = settled.ce_factor, p.z_factor = settled.z_factor;
    return settled;
  }
  void set_factors(double ce, double z) { p.ce_factor = ce, p.z_factor = z; }
  void set_upstream(nb::handle ce, nb::handle lse, nb::handle entropy) {
    auto fresh = std::make_shared<Upstream>();
    p.ce_upstream = static_cast<const double*>(fresh->ce.vector(ce, "ce", float64, p.rows));
    p.lse_upstream = static_cast<const double*>(fresh->lse.vector(lse, "lse", float64, p.rows));
    p.entropy_upstream = static_cast<const double*>(fresh->entropy.vector(entropy, "entropy", float64, p.rows));
    p.has_upstream = true;
    upstream = std::move(fresh);
  }

  void rows(const OutputRecord& o, int64_t lo, int64_t hi) const {
    expect_whole(), expect_fit(o), expect_range(lo, hi, 0, p.cols);
    const auto held = upstream;
    const Problem q = p;
    const Unlocked unlocked;
    kernels->rows(q, o.out, lo, hi);
  }

  static Statistics* take_statistics(Array& a, nb::handle h, const char* name, bool writable) {
    a.open(h, name, writable, 1), a.expect(record), a.expect_contiguous();
    return static_cast<Statistics*>(a.view.buf);
  }
  void statistics(int64_t lo, int64_t hi, int64_t col_lo, int64_t col_hi, bool by_products, nb::handle into) const {
    expect_range(lo, hi, col_lo, col_hi);
    Array a;
    Statistics* s = take_statistics(a, into, "into", true);
    a.expect(hi - lo, 1), expect_apart(a), ::expect_apart(a, {&logits});
    const Problem q = p;
    const Unlocked unlocked;
    kernels->statistics(q, lo, hi, col_lo, col_hi, by_products, s);
  }
  void merge(nb::handle into, nb::handle other) const {
    Array a, b;
    Statistics* x = take_statistics(a, into, "into", true);
    const Statistics* y = take_statistics(b, other, "other", false);
    b.expect(a.rows, 1), ::expect_apart(a, {&b});
    kernels->merge(p, x, y, a.rows);
  }
  void finish(const OutputRecord& o, nb::handle stats, int64_t lo, int64_t hi) const {
    expect_fit(o), expect_range(lo, hi, 0, p.cols);
    Array a;
    const Statistics* s = take_statistics(a, stats, "statistics", false);
    a.expect(hi - lo, 1);
    for (const Array* out : {&o.loss, &o.lse, &o.log_prob, &o.argmax, &o.rank, &o.entropy}) ::expect_apart(*out, {&a});
    kernels->finish(p, o.out, s, lo, hi);
  }
  void gradient(const OutputRecord& o, nb::handle stats, int64_t lo, int64_t hi, int64_t col_lo, int64_t col_hi) const {
    expect_fit(o), expect_range(lo, hi, col_lo, col_hi);
    if (!o.grad.held && !o.along.held && !o.slope.held) throw std::invalid_argument("outputs: no gradient and no sums");
    Array a;
    const Statistics* s = take_statistics(a, stats, "statistics", false);
    a.expect(hi - lo, 1);
    for (const Array* out : {&o.grad, &o.along, &o.slope}) ::expect_apart(*out, {&a});
    const auto held = upstream;
    const Problem q = p;
    const Unlocked unlocked;
    kernels->gradient(q, o.out, s, lo, hi, col_lo, col_hi);
  }
  void distribution(bool logarithm, nb::handle out, int64_t lo, int64_t hi, nb::handle stats, std::optional<int64_t> col_lo,
                    std::optional<int64_t> col_hi) const {
    const int64_t first = col_lo.value_or(0), last = col_hi.value_or(p.cols);
    expect_range(lo, hi, first, last);
    Array a, b;
    void* to = a.matrix(out, "out", element_of(p.storage), p.rows, p.cols, true);
    expect_over(a, logits);
    const Statistics* s = nullptr;
    if (stats.is_none()) {
      expect_whole();
    } else {
      s = take_statistics(b, stats, "statistics", false);
      b.expect(hi - lo, 1), ::expect_apart(a, {&b});
    }
    Problem q = p;
    q.has_upstream = false;
    const Unlocked unlocked;
    kernels->distribution(q, logarithm, to, a.stride, s, lo, hi, first, last);
  }
  // Rows [lo, hi) as a problem of their own.
  Problem slice(int64_t lo, int64_t hi) const {
    const auto shift = [](const void* at, int64_t bytes) { return at ? static_cast<const char*>(at) + bytes : nullptr; };
    Problem q = p;
    q.rows = hi - lo;
    q.logits = shift(p.logits, lo * p.stride * size_of(p.storage));
    q.labels = shift(p.labels, lo * p.label_stride * p.label_bytes);
    q.values = shift(p.values, lo * p.value_stride * size_of(p.value_storage));
    if (p.row_weight) q.row_weight = p.row_weight + lo;
    q.has_upstream = false;
    return q;
  }

  void product(nb::handle vector, nb::handle out, int64_t lo, int64_t hi) const {
    expect_whole(), expect_range(lo, hi, 0, p.cols);
    Array a, b;
    const void* v = a.matrix(vector, "vector", element_of(p.storage), p.rows, p.cols);
    void* to = b.matrix(out, "out", element_of(p.storage), p.rows, p.cols, true);
    expect_over(b, a), expect_over(b, logits), expect_apart(b);
    Problem q = p;
    q.has_upstream = false;
    const Unlocked unlocked;
    kernels->product(q, v, a.stride, to, b.stride, lo, hi);
  }

  // The whole pass of a linear layer: logits ← X W + b (unless `known`), prob ← S (if given), and the gradient of the
  // loss added to `total` = Gᵀ X and `sums`, a chunk of rows at a time.
  void linear(nb::handle logits_again, nb::handle losses_, nb::handle prob_, const Linear& layer, bool known) const {
    expect_whole();
    Array z, losses, prob;
    z.matrix(logits_again, "logits", element_of(p.storage), p.rows, p.cols, true);
    double* loss = static_cast<double*>(losses.vector(losses_, "losses", float64, p.rows, true));
    if (!loss && p.rows) throw std::invalid_argument("losses: missing");
    if (!prob_.is_none()) prob.matrix(prob_, "prob", element_of(p.storage), p.rows, p.cols, true);
    if (!same_place(z, logits)) z.refuse("is not the head's");
    if (layer.arithmetic != p.storage || layer.cols != p.cols || layer.x.rows != p.rows || !layer.scratch.held)
      throw std::invalid_argument("layer: does not fit the head");
    for (const Array* out : {&z, &losses, &prob}) {
      expect_apart(*out);
      ::expect_apart(*out, {&layer.x, &layer.weight, &layer.bias, &layer.scratch, &layer.total, &layer.sums});
    }
    ::expect_apart(z, {&losses, &prob}), ::expect_apart(losses, {&prob});
    for (const Array* out : {&layer.scratch, &layer.total, &layer.sums}) expect_apart(*out);
    char* const to = static_cast<char*>(z.view.buf);
    char* const s = prob.held ? static_cast<char*>(prob.view.buf) : nullptr;
    const Unlocked unlocked;
    layer.each_chunk([&](int64_t lo, int64_t hi) {
      if (known) layer.fetch(lo, hi);
      else layer.scores(lo, hi, to + lo * z.step(), z.stride);
      const Problem q = slice(lo, hi);
      if (s) kernels->distribution(q, false, s + lo * prob.step(), prob.stride, nullptr, 0, q.rows, 0, q.cols);
      Outputs out = {};
      out.loss = loss + lo, out.grad = layer.chunk(), out.grad_stride = layer.scratch.stride;
      kernels->rows(q, out, 0, q.rows);
      layer.back(lo, hi);
    });
  }
};

// --- functions -----------------------------------------------------------------------------------------------------

constexpr int64_t small_elements = 1 << 13;  // computed while holding the interpreter: sooner than another thread wakes

// Softmax or log-softmax along the last axis of contiguous arrays: one call for a small array.
void distribute(nb::handle logits, nb::handle out, Storage storage, bool logarithm, const Options* options) {
  struct Flat {
    Py_buffer view = {};
    bool held = false;
    Flat(nb::handle object, Element e, int flags, const char* name) {
      if (PyObject_GetBuffer(object.ptr(), &view, flags | PyBUF_ND | PyBUF_FORMAT)) throw nb::python_error();
      held = true;
      Element found;
      if (!element_of(view, found) || !(found == e)) throw std::invalid_argument(std::string(name) + ": wrong format");
      if (reinterpret_cast<uintptr_t>(view.buf) % uintptr_t(e.size))
        throw std::invalid_argument(std::string(name) + ": not aligned");
    }
    ~Flat() { if (held) PyBuffer_Release(&view); }
  };
  const Flat in(logits, element_of(storage), 0, "logits"), to(out, element_of(storage), PyBUF_WRITABLE, "out");
  const int size = size_of(storage);
  if (in.view.ndim < 1 || in.view.len != to.view.len) throw std::invalid_argument("out: another shape");
  const char *a = static_cast<const char*>(in.view.buf), *b = static_cast<const char*>(to.view.buf);
  if (a != b && a < b + to.view.len && b < a + in.view.len) throw std::invalid_argument("out: overlaps logits");
  Problem p = {};
  if (options) static_cast<Options&>(p) = *options;
  p.storage = storage, p.logits = a, p.cols = p.classes = p.stride = in.view.shape[in.view.ndim - 1];
  if (p.cols < 1 || in.view.len == 0) return;
  p.rows = in.view.len / (p.cols * size);
  p.ce_factor = p.z_factor = 1;
  const auto run = [&] { selected.load()->distribution(p, logarithm, to.view.buf, p.cols, nullptr, 0, p.rows, 0, p.cols); };
  if (p.rows * p.cols <= small_elements) return run();
  const Unlocked unlocked;
  run();
}

// Total loss and gradient of a small batch of contiguous rows with labels: one call, because a front-end with arrays of
// its own spends more on them than on a few logits.  Returns the first row with a bad label or −1, and the total; a mean
// of nothing is NaN with a gradient of 0.
nb::tuple small_batch(nb::handle logits_, Storage storage, nb::handle labels_, const Options& options, bool mean,
                      nb::handle grad_) {
  Array logits, labels, grad;
  logits.open(logits_, "logits", false, 2), logits.expect(element_of(storage)), logits.expect_contiguous();
  labels.open(labels_, "labels", false, 1), labels.expect(logits.rows, 1), labels.expect_contiguous();
  if (labels.element.kind != Kind::whole && labels.element.kind != Kind::natural) labels.refuse("are not integers");
  if (logits.cols < 1) logits.refuse("has no classes");
  Problem p = {};
  static_cast<Options&>(p) = options;
  p.storage = storage, p.logits = logits.view.buf, p.rows = logits.rows, p.cols = p.classes = p.stride = logits.cols;
  p.target = TargetKind::labels, p.labels = labels.view.buf, p.label_stride = p.width = 1;
  p.label_bytes = labels.element.size, p.label_signed = labels.element.kind == Kind::whole;
  Outputs out = {};
  if (!grad_.is_none()) {
    out.grad = grad.matrix(grad_, "grad", element_of(storage), p.rows, p.cols, true), out.grad_stride = p.cols;
    grad.expect_contiguous(), expect_apart(grad, {&labels}), expect_over(grad, logits);
  }
  const Kernels* kernels = selected.load();
  const Settled settled = settle(kernels->totals(p), mean, p.z_loss);
  if (settled.bad_row >= 0) return nb::make_tuple(settled.bad_row, 0.0);
  if (settled.empty_mean) {
    if (out.grad) std::memset(out.grad, 0, size_t(p.rows) * size_t(grad.width()));
    return nb::make_tuple(int64_t(-1), std::numeric_limits<double>::quiet_NaN());
  }
  p.ce_factor = settled.ce_factor, p.z_factor = settled.z_factor;
  double few[64];
  std::unique_ptr<double[]> many(p.rows > 64 ? new double[size_t(p.rows)] : nullptr);
  out.loss = many ? many.get() : few;
  if (p.rows * p.cols <= small_elements) {
    kernels->rows(p, out, 0, p.rows);
  } else {
    const Unlocked unlocked;
    kernels->rows(p, out, 0, p.rows);
  }
  double total = 0;
  for (int64_t i = 0; i < p.rows; ++i) total += out.loss[i];
  return nb::make_tuple(int64_t(-1), total);
}

// Rows of stored probabilities times vectors, in place.
void curvature(nb::handle prob_, nb::handle weight_, nb::handle vector_) {
  Array prob, weight, vector;
  prob.open(prob_, "prob", false, 2);
  if (!(prob.element == float32 || prob.element == float64)) prob.refuse("is neither float32 nor float64");
  void* v = vector.matrix(vector_, "vector", prob.element, prob.rows, prob.cols, true);
  const double* a = static_cast<const double*>(weight.vector(weight_, "weight", float64, prob.rows));
  expect_apart(vector, {&prob, &weight});
  const Kernels* kernels = selected.load();
  const Unlocked unlocked;
  kernels->curvature(prob.element == float64 ? Storage::float64 : Storage::float32, prob.view.buf, prob.stride, a, v,
                     vector.stride, prob.rows, prob.cols);
}

// CSR rows times the first columns of a dense matrix, as many as `out` has.
void sparse_product(nb::handle data_, nb::handle indices_, nb::handle indptr_, nb::handle dense_, nb::handle out_) {
  Array data, indices, indptr, dense, out;
  out.open(out_, "out", true, 2);
  if (!(out.element == float32 || out.element == float64)) out.refuse("is neither float32 nor float64");
  data.open(data_, "data", false, 1), data.expect_contiguous();
  if (!(data.element == float32 || data.element == out.element)) data.refuse("has the wrong format");
  indices.open(indices_, "indices", false, 1), indices.expect(data.rows, 1), indices.expect_contiguous();
  const Element int32{Kind::whole, 4};
  if (!(indices.element == int32 || indices.element == int64)) indices.refuse("has the wrong format");
  indptr.open(indptr_, "indptr", false, 1), indptr.expect(indices.element);
  indptr.expect(out.rows + 1, 1), indptr.expect_contiguous();
  dense.open(dense_, "dense", false, 2);
  const bool half = dense.element == bits16, wide = indices.element == int64;
  if (half ? out.element == float64 || wide : !(dense.element == out.element)) dense.refuse("has the wrong format");
  const int64_t needed = half ? (out.cols + widest_lanes - 1) / widest_lanes * widest_lanes : out.cols;
  if (dense.cols < needed) dense.refuse("has too few columns");
  expect_apart(out, {&data, &indices, &indptr, &dense});
  const Kernels* kernels = selected.load();
  const Storage storage = out.element == float64 ? Storage::float64 : Storage::float32;
  bool good;
  {
    const Unlocked unlocked;
    good = kernels->sparse(storage, data.element == float64 ? Storage::float64 : Storage::float32,
                           half ? Storage::bfloat16 : storage, data.view.buf, indices.view.buf, data.rows,
                           indptr.view.buf, wide, out.rows, dense.view.buf, dense.rows, dense.stride, dense.cols, out.cols,
                           out.view.buf, out.stride);
  }
  if (!good) throw std::invalid_argument("indices outside the matrix");
}

void to_half(nb::handle source_, nb::handle to_) {
  Array source, to;
  source.open(source_, "source", false, 2), source.expect(float32);
  void* halves = to.matrix(to_, "to", bits16, source.rows, source.cols, true);
  expect_apart(to, {&source});
  const Kernels* kernels = selected.load();
  const Unlocked unlocked;
  kernels->to_half(static_cast<const float*>(source.view.buf), source.stride, static_cast<uint16_t*>(halves), to.stride,
                   source.rows, source.cols);
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
  using nb::arg;
  bind_pool(m);
  selected.store(available()[0]);
  m.attr("tile") = tile;
  m.attr("panel") = panel;
  m.attr("statistics_size") = sizeof(Statistics);
  m.def(
      "statistics_fields",
      [] {
        nb::list fields;
        for (const char* name : {"peak", "at_peak", "rest", "moment", "smooth_mass", "smooth_dot", "finite",
                                 "target_mass", "target_dot", "plain_mass", "plain_dot", "best"})  // struct Statistics
          fields.append(nb::make_tuple(name, "f8"));
        fields.append(nb::make_tuple("argmax", "i8")), fields.append(nb::make_tuple("rank", "i8"));
        return fields;
      },
      nb::sig("def statistics_fields() -> list[tuple[str, str]]"), "Names and types of a row's statistics, as stored.");
  m.attr("linear_lanes") = widest_lanes;
  m.def("variants", &variants, "Instruction sets that were compiled and that this processor runs, best first.");
  m.def("variant", [] { return std::string(selected.load()->name); }, "The instruction set in use.");
  m.def("select", &select_variant, arg("name"), "Use another instruction set for every head made from now on.");

  nb::enum_<Storage>(m, "Storage", "How logits are stored; bfloat16 as its bits in uint16.")
      .value("float32", Storage::float32).value("float64", Storage::float64)
      .value("bfloat16", Storage::bfloat16).value("float16", Storage::float16);
  nb::enum_<TargetKind>(m, "TargetKind", "Kinds of targets.")
      .value("none", TargetKind::none).value("labels", TargetKind::labels)
      .value("dense", TargetKind::dense).value("sparse", TargetKind::sparse);

  nb::class_<Options>(m, "Options", "Options of a head; they have been validated.")
      .def("__init__",
           [](Options* o, double smoothing, bool finite_only, double scale, double softcap, double temperature,
              double z_loss, std::optional<int64_t> ignore) {
             new (o) Options{smoothing, finite_only, scale, softcap, temperature, z_loss, ignore.has_value(),
                             ignore.value_or(0)};
           },
           arg("label_smoothing") = 0.0, arg("smooth_finite_only") = false, arg("logit_scale") = 1.0,
           arg("softcap") = 0.0, arg("temperature") = 1.0, arg("z_loss") = 0.0, arg("ignore_index") = nb::none())
      .def_ro("label_smoothing", &Options::smoothing)
      .def_ro("smooth_finite_only", &Options::finite_only)
      .def_ro("logit_scale", &Options::scale)
      .def_ro("softcap", &Options::softcap)
      .def_ro("temperature", &Options::temperature)
      .def_ro("z_loss", &Options::z_loss)
      .def_prop_ro("ignore_index", [](const Options& o) {
        return o.has_ignore ? std::optional<int64_t>(o.ignore_index) : std::nullopt;
      });

  nb::class_<TargetRecord>(m, "Targets",
                           "Targets of a head.  The logits are the columns [first, first + cols) of `classes` (0: cols); "
                           "labels and sparse indices count all classes, dense values are those of the columns.")
      .def(nb::init<TargetKind, nb::handle, nb::handle, Storage, int64_t, int64_t>(), arg("kind"),
           arg("labels") = nb::none(), arg("values") = nb::none(), arg("values_storage") = Storage::float32,
           arg("first") = 0, arg("classes") = 0);

  nb::class_<Settled>(m, "Settled", "The labels' check and the factors of a mean.")
      .def_ro("bad_row", &Settled::bad_row, "The first row with a label outside the classes, or -1.")
      .def_ro("empty_mean", &Settled::empty_mean, "Whether a mean has a denominator of 0: NaN, with a gradient of 0.")
      .def_ro("ce_factor", &Settled::ce_factor)
      .def_ro("z_factor", &Settled::z_factor);

  nb::class_<OutputRecord>(m, "Outputs",
                           "Arrays that a head writes into, one entry a row; None for what is not wanted.  along and slope "
                           "are the sums over the head's columns of G u and of G du/ds with G = d/du of the row.")
      .def(nb::init<int64_t, int64_t, Storage, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle, nb::handle,
                    nb::handle, nb::handle, nb::handle, bool>(),
           arg("rows"), arg("cols"), arg("storage"), arg("loss") = nb::none(), arg("lse") = nb::none(),
           arg("log_prob") = nb::none(), arg("argmax") = nb::none(), arg("rank") = nb::none(), arg("entropy") = nb::none(),
           arg("grad") = nb::none(), arg("along") = nb::none(), arg("slope") = nb::none(), arg("stream") = false)
      .def_prop_ro("sums", [](const OutputRecord& o) { return o.along.held || o.slope.held; },
                   "Whether along or slope is wanted.");

  nb::class_<Linear>(m, "Linear", "Dense rows times the weights of a few classes, in float32 or float64.")
      .def(nb::init<nb::handle, nb::handle, nb::handle, int64_t, nb::handle, nb::handle, nb::handle>(), arg("x"),
           arg("weight"), arg("bias"), arg("cols"), arg("scratch") = nb::none(), arg("total") = nb::none(),
           arg("sums") = nb::none())
      .def("forward", &Linear::forward, arg("out"))
      .def("curvature", &Linear::curvature, arg("prob"), arg("row_weight").none());

  nb::class_<Head>(m, "Head", "A batch of logits with its targets and options, whose row ranges can be computed.")
      .def(nb::init<nb::handle, Storage, nb::handle, const Options&, nb::handle, nb::handle>(), arg("logits"),
           arg("storage"), arg("targets"), arg("options"), arg("class_weight") = nb::none(), arg("row_weight") = nb::none())
      .def("settle", &Head::settle, arg("mean"), "Check the labels, and set the factors of a mean.")
      .def("set_factors", &Head::set_factors, arg("ce"), arg("z"))
      .def("set_upstream", &Head::set_upstream, arg("ce").none(), arg("lse").none(), arg("entropy").none(),
           "From now on the gradient is that of ce CE + lse LSE + entropy H, row by row; None is 0.")
      .def("rows", &Head::rows, arg("outputs"), arg("lo"), arg("hi"))
      .def("statistics", &Head::statistics, arg("lo"), arg("hi"), arg("col_lo"), arg("col_hi"), arg("by_products"),
           arg("into"))
      .def("merge", &Head::merge, arg("into"), arg("other"))
      .def("finish", &Head::finish, arg("outputs"), arg("statistics"), arg("lo"), arg("hi"))
      .def("gradient", &Head::gradient, arg("outputs"), arg("statistics"), arg("lo"), arg("hi"), arg("col_lo"),
           arg("col_hi"))
      .def("distribution", &Head::distribution, arg("logarithm"), arg("out"), arg("lo"), arg("hi"),
           arg("statistics") = nb::none(), arg("col_lo") = nb::none(), arg("col_hi") = nb::none())
      .def("product", &Head::product, arg("vector"), arg("out"), arg("lo"), arg("hi"))
      .def("linear", &Head::linear, arg("logits"), arg("losses"), arg("prob").none(), arg("layer"), arg("known"));

  m.def("distribute", &distribute, arg("logits"), arg("out"), arg("storage"), arg("logarithm"),
        arg("options").none() = nb::none(), "Softmax or log-softmax along the last axis of contiguous arrays.");
  m.def("small_batch", &small_batch, arg("logits"), arg("storage"), arg("labels"), arg("options"), arg("mean"),
        arg("grad") = nb::none(),
        nb::sig("def small_batch(logits: object, storage: Storage, labels: object, options: Options, mean: bool, "
                "grad: object | None = None) -> tuple[int, float]"),
        "Total loss of a small batch, and its gradient: (first bad row or -1, total).");
  m.def("curvature", &curvature, arg("prob"), arg("weight").none(), arg("vector"),
        "In place, vector = weight (S vector - S (S . vector)), from stored probabilities.");
  m.def("sparse_product", &sparse_product, arg("data"), arg("indices"), arg("indptr"), arg("dense"), arg("out"),
        "CSR rows times a dense matrix, whose type may be wider than theirs, or the bits of bfloat16.");
  m.def("to_half", &to_half, arg("source"), arg("to"), "float32 to the bits of the nearest bfloat16.");
}
