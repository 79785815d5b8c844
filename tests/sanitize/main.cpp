// Every kernel of every variant under the address and undefined-behaviour sanitizers, without Python; those of a linear
// layer in layer.cpp.
//
// Buffers are heap blocks of exactly the bytes that the contract (csrc/kernels.h) allows a kernel to touch: the last
// row ends where the block ends, so one element too far is a report.  Beside that it checks what needs no oracle:
// inputs unchanged, nothing written between rows, columns split and merged equal to the whole, variants alike.
#include <cmath>
#include <limits>
#include <vector>

#include "harness.h"

namespace {

const double infinity = std::numeric_limits<double>::infinity();

void expect(bool ok, const char* what, const Kernels& k, const Problem& p) {
  if (ok) return;
  ++failures;
  std::printf("FAILED %s: %s, type %d, target %d, %lld x %lld, softcap %g, smoothing %g, scale %g\n", k.name, what,
              int(p.storage), int(p.target), (long long)p.rows, (long long)p.cols, p.softcap, p.smoothing, p.scale);
}

void put_label(void* to, int bytes, int64_t at, int64_t x) { std::memcpy(static_cast<char*>(to) + at * bytes, &x, bytes); }

enum Content { plain, masked, spoiled, extreme };

struct Case {
  Storage type;
  TargetKind target;
  int64_t rows, cols, gap;  // gap: elements between rows
  Content content;
  int label_bytes;
  bool label_signed;
  int options;  // bits, see below
};

// The same rows as three slices of their classes: one column, none of the label's, the rest.
void slices(const Kernels& k, const Problem& p, Block& vectors, Block& grad, const Block& whole) {
  const int64_t edges[] = {0, 1, p.cols / 2, p.cols};
  Block merged(p.rows * sizeof(Statistics)), part(p.rows * sizeof(Statistics));
  const auto slice = [&](int at) {
    Problem q = p;
    const int64_t lo = edges[at], item = size_of(p.storage);
    q.first = lo, q.cols = edges[at + 1] - lo;
    q.logits = static_cast<const char*>(p.logits) + lo * item;
    if (p.class_weight) q.class_weight = static_cast<const char*>(p.class_weight) + lo * (p.storage == Storage::float64 ? 8 : 4);
    if (p.target == TargetKind::dense) q.values = static_cast<const char*>(p.values) + lo * size_of(p.value_storage);
    return q;
  };
  for (int at = 0; at < 3; ++at) {
    if (edges[at] == edges[at + 1]) continue;
    const Problem q = slice(at);
    expect(k.totals(q).bad == -1, "a label of another slice was refused", k, q);
    k.statistics(q, 0, q.rows, 0, q.cols, true, (at ? part : merged).as<Statistics>());
    if (at) k.merge(q, merged.as<Statistics>(), part.as<Statistics>(), q.rows);
  }
  Outputs out = {};
  out.loss = vectors.as<double>(), out.argmax = reinterpret_cast<int64_t*>(out.loss + p.rows);
  k.finish(slice(0), out, merged.as<Statistics>(), 0, p.rows);
  const double* loss = reinterpret_cast<const double*>(whole.data);
  for (int64_t i = 0; i < p.rows; ++i)
    if (std::isfinite(loss[i]))
      expect(std::fabs(out.loss[i] - loss[i]) <= 1e-4 * (1 + std::fabs(loss[i])), "the loss of slices differs", k, p);
  for (int at = 0; at < 3; ++at) {
    if (edges[at] == edges[at + 1]) continue;
    out.grad = grad.data + edges[at] * size_of(p.storage), out.grad_stride = p.stride;
    k.gradient(slice(at), out, merged.as<Statistics>(), 0, p.rows, 0, edges[at + 1] - edges[at]);
  }
}

void run(const Kernels& k, const Case& c, double* fingerprint) {
  state = 88172645463325252ull;
  guarded = !guarded;
  const int item = size_of(c.type);
  const int64_t stride = c.cols + c.gap, span = c.rows ? (c.rows - 1) * stride + c.cols : 0;
  Block logits(span * item, 0x11);
  for (int64_t i = 0; i < c.rows; ++i)
    for (int64_t j = 0; j < c.cols; ++j) {
      double x = 4 * uniform() - 2;
      const double roll = uniform();
      if (c.content == masked && roll < 0.5) x = -infinity;
      if (c.content == masked && i == 1) x = -infinity;
      if (c.content == spoiled && roll < 0.02) x = roll < 0.01 ? infinity : std::nan("");
      if (c.content == extreme) x = roll < 0.5 ? 3e38 : -3e38;
      put(c.type, logits.data, i * stride + j, x);
    }

  Problem p = {};
  p.logits = logits.data, p.rows = c.rows, p.cols = p.classes = c.cols, p.stride = stride, p.storage = c.type;
  p.target = c.target, p.label_bytes = c.label_bytes, p.label_signed = c.label_signed;
  p.width = c.target == TargetKind::sparse ? 3 : 1, p.label_stride = p.width, p.value_stride = p.width;
  p.value_storage = c.options & 1 ? Storage::bfloat16 : c.options & 2 ? Storage::float16 : c.options & 4 ? Storage::float64 : Storage::float32;
  Block labels(c.rows * p.width * c.label_bytes), values(0);
  for (int64_t i = 0; i < c.rows * p.width; ++i) {
    int64_t y = int64_t(uniform() * double(c.cols)) & 127;
    if (y >= c.cols) y = 0;
    if (i == 0) y = c.cols <= 127 ? c.cols - 1 : y;
    if (c.target == TargetKind::sparse && c.label_signed && i % 3 == 1) y = -1;
    if (c.target == TargetKind::labels && c.label_signed && i == 2) y = -5;  // ignored, and far outside
    put_label(labels.data, c.label_bytes, i, y);
  }
  if (c.target == TargetKind::labels || c.target == TargetKind::sparse) p.labels = labels.data;
  if (c.target == TargetKind::dense || c.target == TargetKind::sparse) {
    p.value_stride = c.target == TargetKind::dense ? c.cols : p.width;
    values = Block(c.rows * p.value_stride * size_of(p.value_storage));
    for (int64_t i = 0; i < c.rows * p.value_stride; ++i) put(p.value_storage, values.data, i, uniform() < 0.3 ? uniform() : 0);
    p.values = values.data;
  }
  p.has_ignore = true, p.ignore_index = -5;
  Block weight(c.cols * (c.type == Storage::float64 ? 8 : 4)), row_weight(c.rows * 8);
  for (int64_t j = 0; j < c.cols; ++j) put(c.type == Storage::float64 ? Storage::float64 : Storage::float32, weight.data, j, j % 5 ? 1.5 : 0.0);
  for (int64_t i = 0; i < c.rows; ++i) row_weight.as<double>()[i] = i % 4 == 3 ? 0.0 : 0.5 + double(i % 3);
  if (c.options & 1) p.class_weight = weight.data;
  if (c.options & 2) p.row_weight = row_weight.as<double>();
  p.smoothing = c.options & 4 ? 0.1 : 0.0;
  p.finite_only = (c.options & 8) != 0;
  p.scale = c.options & 16 ? -1.5 : 1.0;
  p.softcap = c.options & 32 ? 3.0 : 0.0;
  p.temperature = c.options & 64 ? 0.7 : 1.0;
  p.z_loss = c.options & 128 ? 0.01 : 0.0;
  p.ce_factor = 0.25, p.z_factor = 0.5;
  Block upstream(3 * c.rows * 8);
  for (int64_t i = 0; i < 3 * c.rows; ++i) upstream.as<double>()[i] = uniform() - 0.5;
  if (c.options & 1024) {
    p.has_upstream = true;
    p.ce_upstream = upstream.as<double>(), p.lse_upstream = p.ce_upstream + c.rows;
    if (c.options & 256) p.entropy_upstream = p.lse_upstream + c.rows;
  }
  const bool by_products = (c.options & 256) != 0, stream = (c.options & 512) != 0, sums = (c.options & 1024) != 0;

  const auto inputs = [&] {
    return logits.copy() + labels.copy() + values.copy() + weight.copy() + row_weight.copy() + upstream.copy();
  };
  const std::string before = inputs();
  const Totals totals = k.totals(p);
  expect(totals.bad == -1, "a good label was refused", k, p);

  const auto outputs = [&](Block& vectors, Block& grad) {
    Outputs out = {};
    double* d = vectors.as<double>();
    out.loss = d, out.lse = d + c.rows, out.grad = grad.data, out.grad_stride = stride, out.stream = stream;
    if (by_products) {
      out.log_prob = d + 2 * c.rows, out.entropy = d + 3 * c.rows;
      out.argmax = reinterpret_cast<int64_t*>(d + 4 * c.rows), out.rank = reinterpret_cast<int64_t*>(d + 5 * c.rows);
    }
    if (sums) out.along = d + 6 * c.rows, out.slope = d + 7 * c.rows;
    return out;
  };
  const auto gaps_untouched = [&](Block& b, int fill) {
    for (int64_t i = 0; i + 1 < c.rows; ++i)
      for (int64_t x = (i * stride + c.cols) * item; x < (i + 1) * stride * item; ++x)
        if (b.data[x] != char(fill)) return false;
    return true;
  };
  Block vectors(8 * c.rows * 8), grad(span * item, 0x22);
  k.rows(p, outputs(vectors, grad), 0, c.rows);
  expect(gaps_untouched(grad, 0x22), "written between rows", k, p);

  Block halves(8 * c.rows * 8), half_grad(span * item, 0x22);  // the rows in two ranges
  const Outputs half = outputs(halves, half_grad);
  k.rows(p, half, 0, c.rows / 2), k.rows(p, half, c.rows / 2, c.rows);
  expect(same(Storage::float64, halves, vectors) && same(c.type, half_grad, grad), "row ranges differ from the whole", k, p);

  if (c.rows) {  // the columns in panels, merged: the same bits, except for the narrow path's own order
    Block stats(c.rows * sizeof(Statistics)), part(c.rows * sizeof(Statistics));
    Block split(8 * c.rows * 8), split_grad(span * item, 0x22), kept(2 * c.rows * 8);
    const Outputs out = outputs(split, split_grad);
    for (int64_t col = 0; col < c.cols; col += panel) {
      const int64_t end = col + panel < c.cols ? col + panel : c.cols;
      k.statistics(p, 0, c.rows, col, end, by_products, col ? part.as<Statistics>() : stats.as<Statistics>());
      if (col) k.merge(p, stats.as<Statistics>(), part.as<Statistics>(), c.rows);
    }
    k.finish(p, out, stats.as<Statistics>(), 0, c.rows);
    double* const total = kept.as<double>();
    for (int64_t col = 0; col < c.cols; col += panel) {
      k.gradient(p, out, stats.as<Statistics>(), 0, c.rows, col, col + panel < c.cols ? col + panel : c.cols);
      for (int64_t i = 0; sums && i < 2 * c.rows; ++i) total[i] = col ? total[i] + out.along[i] : out.along[i];
    }
    if (sums) std::memcpy(out.along, total, size_t(2 * c.rows) * 8);
    if (c.cols > 32)
      expect(same(Storage::float64, split, vectors) && same(c.type, split_grad, grad), "columns split differ", k, p);
    for (int64_t a = 0; a + 1 < c.cols && c.cols < 200; a += 7) {  // any range of columns
      k.statistics(p, 0, c.rows, a, c.cols, by_products, part.as<Statistics>());
      k.gradient(p, out, stats.as<Statistics>(), c.rows - 1, c.rows, a, c.cols);
    }
    if (c.cols > 2) slices(k, p, split, split_grad, vectors);
  }

  p.has_upstream = false;
  Block vector(span * item), product(span * item, 0x33), distribution(span * item, 0x44);
  for (int64_t i = 0; i < span; ++i) put(c.type, vector.data, i, uniform() - 0.5);
  k.product(p, vector.data, stride, product.data, stride, 0, c.rows);
  expect(gaps_untouched(product, 0x33), "product written between rows", k, p);
  k.distribution(p, false, distribution.data, stride, nullptr, 0, c.rows, 0, c.cols);
  Block stats(c.rows * sizeof(Statistics)), again(span * item, 0x44);
  k.statistics(p, 0, c.rows, 0, c.cols, false, stats.as<Statistics>());
  for (int64_t col = 0; col < c.cols; col += 2048)
    k.distribution(p, false, again.data, stride, stats.as<Statistics>(), 0, c.rows, col, col + 2048 < c.cols ? col + 2048 : c.cols);
  if (c.cols > 32 && !p.row_weight && c.target != TargetKind::labels)
    expect(same(c.type, again, distribution), "a distribution from statistics differs", k, p);
  k.distribution(p, true, distribution.data, stride, nullptr, 0, c.rows, 0, c.cols);
  expect(gaps_untouched(distribution, 0x44), "distribution written between rows", k, p);
  expect(inputs() == before, "input changed", k, p);

  p.has_upstream = (c.options & 1024) != 0;
  Outputs own = outputs(vectors, grad);  // in place, last: over the logits, and the product over its vector
  const std::string fresh = grad.copy();
  own.grad = logits.data, own.stream = false;
  k.rows(p, own, 0, c.rows);
  if (c.content == plain && c.gap == 0)
    expect(std::memcmp(logits.data, fresh.data(), fresh.size()) == 0, "in place differs", k, p);
  k.product(p, vector.data, stride, vector.data, stride, 0, c.rows);

  double sum = 0;
  for (int64_t i = 0; i < c.rows; ++i) sum += std::isfinite(vectors.as<double>()[i]) ? vectors.as<double>()[i] : 1;
  *fingerprint = sum;
  ++calls;
}

void bad_labels(const Kernels& k) {
  for (int bytes : {1, 2, 4, 8})
    for (bool is_signed : {false, true})
      for (int64_t bad : {int64_t(5), int64_t(-1), int64_t(127), std::numeric_limits<int64_t>::min()}) {
        Block logits(4 * 5 * 4), labels(4 * bytes);
        for (int i = 0; i < 4; ++i) put_label(labels.data, bytes, i, i == 2 ? bad : i);
        int64_t seen = 0;
        std::memcpy(&seen, labels.data + 2 * bytes, bytes);
        if (seen < 5) continue;  // cut to a width in which it is a label
        Problem p = {};
        p.logits = logits.data, p.rows = 4, p.cols = p.classes = p.stride = 5, p.storage = Storage::float32, p.target = TargetKind::labels;
        p.labels = labels.data, p.label_bytes = bytes, p.label_signed = is_signed, p.label_stride = 1;
        p.scale = p.temperature = 1;
        expect(k.totals(p).bad == 2, "a bad label passed", k, p);
      }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc > 3) {  // "overrun VARIANT KERNEL [guarded]" reads one number too many: proves that somebody is watching
    guarded = argc > 4;
    for (const Kernels* const* k = available(); *k; ++k) {
      if (std::string((*k)->name) != argv[2]) continue;
      overrun_layer(**k, argv[3]);
      if (std::string(argv[3]) != "rows") continue;
      // float64, because its last columns are read one by one: on the heap the sanitizer does not see masked loads.
      Block logits(36 * 8), vectors(8);
      Problem p = {};
      p.logits = logits.data, p.rows = 1, p.cols = p.classes = p.stride = 37, p.storage = Storage::float64, p.scale = p.temperature = 1;
      Outputs out = {};
      out.lse = vectors.as<double>();
      (*k)->rows(p, out, 0, 1);
    }
    return 0;
  }
  const int64_t widths[] = {1, 2, 3, 7, 8, 15, 17, 31, 32, 33, 63, 65, 100, 2047, 2049, 4099};
  const int sets[] = {0, 1, 2, 4, 4 + 8, 16, 32, 64, 128, 256, 512, 1 + 4 + 256, 32 + 4 + 8 + 1, 32 + 128 + 256,
                      16 + 32 + 64, 16 + 256, 255, 511, 1023 - 16, 512 + 2, 8 + 4 + 16, 1024, 1024 + 256, 1024 + 256 + 32 + 16,
                      1024 + 256 + 4 + 8 + 1};
  const int kinds[][2] = {{8, 1}, {4, 1}, {2, 1}, {1, 1}, {1, 0}, {2, 0}, {4, 0}, {8, 0}};
  int variants = 0;
  std::vector<double> first;
  for (const Kernels* const* k = available(); *k; ++k, ++variants) {
    std::vector<double> prints;
    bad_labels(**k);
    int turn = 0;
    for (Storage type : {Storage::float32, Storage::float64, Storage::bfloat16, Storage::float16})
      for (TargetKind target : {TargetKind::none, TargetKind::labels, TargetKind::dense, TargetKind::sparse})
        for (int options : sets)
          for (int64_t cols : widths) {
            const int* kind = kinds[turn % 8];
            const Content content = Content(turn / 3 % 4);
            double print = 0;
            run(**k, {type, target, cols > 2000 ? 2 : 1 + turn % 19, cols, turn % 3 * 2, content, kind[0], kind[1] != 0, options},
                &print);
            prints.push_back(content == plain ? print : 0);
            ++turn;
          }
    for (Storage type : {Storage::float32, Storage::float64, Storage::bfloat16, Storage::float16}) {
      double print = 0;
      for (int options : {0, 4 + 256, 32 + 128, 1024 + 256, 1024 + 32 + 64}) run(**k, {type, TargetKind::labels, 2, 2 * panel + 5, 0, plain, 8, true, options}, &print);
      run(**k, {type, TargetKind::dense, 1, panel + 1, 0, masked, 8, true, 1 + 4 + 8}, &print);
      for (TargetKind target : {TargetKind::none, TargetKind::labels, TargetKind::dense, TargetKind::sparse})
        for (int64_t cols : {3, 40, 2100}) run(**k, {type, target, 0, cols, 0, plain, 4, true, 0}, &print);  // no rows
    }
    if (variants == 0) first = prints;
    for (size_t i = 0; i < prints.size(); ++i)
      if (std::fabs(prints[i] - first[i]) > 1e-3 * (1 + std::fabs(first[i]))) {
        ++failures;
        std::printf("FAILED %s: case %zu gives %g, %s gives %g\n", (*k)->name, i, prints[i], available()[0]->name, first[i]);
      }
    const int head = calls;
    layer(**k);
    std::printf("%s %d %d\n", (*k)->name, head, calls - head);
    calls = 0;
  }
  return failures ? 1 : 0;
}
