// The linear layer in front of a narrow head: X W + b, and Gᵀ X, for dense rows X and a few classes.
//
//   scores   out = X W + b        reads X once, from memory        W (features, cols) stays in the L2 cache
//   back     out += Gᵀ X          reads X once, from the L2 cache   a column block of out stays in registers
//
// A caller takes a few hundred rows at a time through both (`chunk` in bind.cpp), so that X is read from memory once.
// A general matrix product packs X first, which costs as much as the multiplications when there are only some tens of
// classes: measured on 1,024 rows, 256 features and 20 classes, 44 and 55 GFLOP/s against 78 and 109 here.
//
// Precision: products and sums of a row in the arithmetic type A, fused, one feature after the other; rows of `back` are
// added in their order.  X may be stored as float where A is double.  Sums of the columns of G are doubles.
// Aliasing: none.  Rows of W and the bias are readable up to a multiple of `lanes`; columns of G beyond `cols` up to a
// multiple of four are readable and 0.  Reference: `x @ w + b` and `g.T @ x`.

#if defined(__AVX512F__)
// Half vectors, where a whole one would be half empty.
typedef float HalfF __attribute__((vector_size(32)));
typedef double HalfD __attribute__((vector_size(32)));
template <class A> struct HalfOf { using type = HalfF; };
template <> struct HalfOf<double> { using type = HalfD; };
FORCE_INLINE inline HalfF half_fma(HalfF a, HalfF b, HalfF c) { return _mm256_fmadd_ps(a, b, c); }
FORCE_INLINE inline HalfD half_fma(HalfD a, HalfD b, HalfD c) { return _mm256_fmadd_pd(a, b, c); }
FORCE_INLINE inline void store_half(float* p, HalfF v, int64_t n) {
  _mm256_mask_storeu_ps(p, n < 8 ? __mmask8((1u << n) - 1) : __mmask8(0xff), v);
}
FORCE_INLINE inline void store_half(double* p, HalfD v, int64_t n) {
  _mm256_mask_storeu_pd(p, n < 4 ? __mmask8((1u << n) - 1) : __mmask8(0x0f), v);
}
constexpr int registers = 28;
template <class A> constexpr int unit = lanes<A> / 2;
#else
template <class A> struct HalfOf { using type = V<A>; };
template <class W> FORCE_INLINE inline W half_fma(W a, W b, W c) { return fma_of(a, b, c); }
template <class A, class W> inline void store_half(A*, W, int64_t) {}
constexpr int registers = 12;
template <class A> constexpr int unit = lanes<A>;
#endif
template <class A> using Half = typename HalfOf<A>::type;

#define UNROLL _Pragma("GCC unroll 32")  // arrays of vectors become registers only where every loop over them is gone

template <class A, class T> FORCE_INLINE inline V<A> load_as(const T* x) {
  if constexpr (std::is_same<A, T>::value) return load(x);
  else {
    typedef T Narrow __attribute__((vector_size(width_bytes / 2)));
    Narrow narrow;
    std::memcpy(&narrow, x, sizeof narrow);
    return __builtin_convertvector(narrow, V<A>);
  }
}

// `Rows` rows times `Whole` vectors of columns and perhaps half a one.
template <class A, class T, int Rows, int Whole, bool Part>
void scores_block(const T* x, int64_t x_stride, const A* weight, int64_t weight_stride, int64_t features, const A* bias,
                  A* out, int64_t out_stride, int64_t cols) {
  constexpr int L = lanes<A>, W = Whole ? Whole : 1, triples = (Rows + 2) / 3;
  V<A> sum[Rows][W];
  Half<A> end[Rows];
  UNROLL for (int r = 0; r < Rows; ++r) {
    UNROLL for (int v = 0; v < Whole; ++v) sum[r][v] = load(bias + v * L);
    if (Part) std::memcpy(&end[r], bias + Whole * L, sizeof end[r]);
  }
  const T* row[triples];  // three rows a pointer: there are not enough general registers for one each
  UNROLL for (int t = 0; t < triples; ++t) row[t] = x + 3 * t * x_stride;
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t first = 0; first < features; first += line) {
    UNROLL for (int r = 0; r < Rows; ++r) __builtin_prefetch(row[r / 3] + (Rows + r % 3) * x_stride);
    const A* stop = weight + min_of(line, features - first) * weight_stride;
    for (; weight != stop; weight += weight_stride) {
      V<A> w[W];
      Half<A> w_end;
      UNROLL for (int v = 0; v < Whole; ++v) w[v] = load(weight + v * L);
      if (Part) std::memcpy(&w_end, weight + Whole * L, sizeof w_end);
      UNROLL for (int r = 0; r < Rows; ++r) {
        const A a = A(row[r / 3][(r % 3) * x_stride]);
        UNROLL for (int v = 0; v < Whole; ++v) sum[r][v] = fma_of(splat<A>(a), w[v], sum[r][v]);
        if (Part) end[r] = half_fma(a - Half<A>{}, w_end, end[r]);
      }
      UNROLL for (int t = 0; t < triples; ++t) ++row[t];
    }
  }
  UNROLL for (int r = 0; r < Rows; ++r) {
    A* to = out + r * out_stride;
    UNROLL for (int v = 0; v < Whole; ++v) {
      if ((v + 1) * L <= cols) store(to + v * L, sum[r][v]);
      else store_part<A>(to + v * L, sum[r][v], cols - v * L);
    }
    if (Part) store_half(to + Whole * L, end[r], cols - Whole * L);
  }
}

template <class A, class T>
void scores_range(const T* x, int64_t x_stride, int64_t rows, int64_t features, const A* weight, int64_t weight_stride,
                  const A* bias, int64_t cols, A* out, int64_t out_stride) {
  constexpr int most = 3;  // vectors of columns at a time
  const auto run = [&](auto whole, auto part, int64_t col, int64_t width) {
    constexpr int Whole = decltype(whole)::value;
    constexpr bool Part = decltype(part)::value;
    constexpr int size = Whole + Part, fit = registers / size - (size > 1), Rows = fit > 12 ? 12 : fit;
    int64_t i = 0;
    for (; i + Rows <= rows; i += Rows)
      scores_block<A, T, Rows, Whole, Part>(x + i * x_stride, x_stride, weight + col, weight_stride, features, bias + col,
                                            out + i * out_stride + col, out_stride, width);
    for (; i < rows; ++i)
      scores_block<A, T, 1, Whole, Part>(x + i * x_stride, x_stride, weight + col, weight_stride, features, bias + col,
                                         out + i * out_stride + col, out_stride, width);
  };
  using std::integral_constant;
  for (int64_t col = 0; col < cols; col += most * lanes<A>) {
    const int64_t width = min_of<int64_t>(most * lanes<A>, cols - col);
    const int units = int((width + unit<A> - 1) / unit<A>) * (unit<A> == lanes<A> ? 2 : 1);
    switch (units) {
#if defined(__AVX512F__)
      case 1: run(integral_constant<int, 0>{}, integral_constant<bool, true>{}, col, width); break;
      case 3: run(integral_constant<int, 1>{}, integral_constant<bool, true>{}, col, width); break;
      case 5: run(integral_constant<int, 2>{}, integral_constant<bool, true>{}, col, width); break;
#endif
      case 2: run(integral_constant<int, 1>{}, integral_constant<bool, false>{}, col, width); break;
      case 4: run(integral_constant<int, 2>{}, integral_constant<bool, false>{}, col, width); break;
      default: run(integral_constant<int, 3>{}, integral_constant<bool, false>{}, col, width);
    }
  }
}

// The last `keep` lanes of a vector, added.
template <class A> NEVER_INLINE void add_last(A* to, V<A> v, int64_t keep) {
  A last[lanes<A>];
  store(last, v);
  for (int64_t f = lanes<A> - keep; f < lanes<A>; ++f) to[f] += last[f];
}

// `Classes` columns of G times `Wide` vectors of features; `classes` of them are real, and the last `keep` features are
// new: the others were added before.
template <class A, class T, int Classes, int Wide>
void back_block(const A* g, int64_t g_stride, const T* x, int64_t x_stride, int64_t rows, A* out, int64_t out_stride,
                int64_t classes, int64_t keep) {
  constexpr int L = lanes<A>, ahead = 8;
  V<A> sum[Classes][Wide];
  UNROLL for (int j = 0; j < Classes; ++j) UNROLL for (int v = 0; v < Wide; ++v) sum[j][v] = V<A>{};
  for (int64_t i = 0; i < rows; ++i, x += x_stride, g += g_stride) {
    V<A> features[Wide];
    UNROLL for (int v = 0; v < Wide; ++v) features[v] = (load_as<A, T>(x + v * L));
    __builtin_prefetch(x + ahead * x_stride);
    UNROLL for (int j = 0; j < Classes; ++j) {
      const V<A> a = splat<A>(g[j]);
      UNROLL for (int v = 0; v < Wide; ++v) sum[j][v] = fma_of(a, features[v], sum[j][v]);
    }
  }
  UNROLL for (int j = 0; j < Classes; ++j) {
    if (j >= classes) break;
    A* to = out + j * out_stride;
    if (keep < L) {
      add_last(to, sum[j][0], keep);
    } else {
      UNROLL for (int v = 0; v < Wide; ++v) store(to + v * L, load(to + v * L) + sum[j][v]);
    }
  }
}

template <class A, class T>
void back_range(const A* g, int64_t g_stride, int64_t cols, const T* x, int64_t x_stride, int64_t rows, int64_t features,
                A* out, int64_t out_stride, double* column_sums) {
  constexpr int L = lanes<A>, most = registers / 4 * 4;  // columns of G at a time
  const auto run = [&](auto count, int64_t col, int64_t classes) {
    constexpr int Classes = decltype(count)::value, fit = registers / (Classes + 1), Wide = fit > 4 ? 4 : fit < 1 ? 1 : fit;
    A* to = out + col * out_stride;
    int64_t f = 0;
    for (; f + Wide * L <= features; f += Wide * L)
      back_block<A, T, Classes, Wide>(g + col, g_stride, x + f, x_stride, rows, to + f, out_stride, classes, L);
    for (; f < features; f += L) {
      const int64_t at = min_of<int64_t>(f, features - L);
      back_block<A, T, Classes, 1>(g + col, g_stride, x + at, x_stride, rows, to + at, out_stride, classes, L - (f - at));
    }
  };
  using std::integral_constant;
  const int64_t fours = (cols + 3) / 4, parts = (4 * fours + most - 1) / most, part = (fours + parts - 1) / parts * 4;
  for (int64_t col = 0; col < cols; col += part) {
    const int64_t classes = min_of(part, cols - col);
    switch ((classes + 3) / 4) {
      case 1: run(integral_constant<int, 4>{}, col, classes); break;
      case 2: run(integral_constant<int, 8>{}, col, classes); break;
#if defined(__AVX512F__)
      case 4: run(integral_constant<int, 16>{}, col, classes); break;
      case 5: run(integral_constant<int, 20>{}, col, classes); break;
      case 6: run(integral_constant<int, 24>{}, col, classes); break;
      case 7: run(integral_constant<int, 28>{}, col, classes); break;
#endif
      default: run(integral_constant<int, 12>{}, col, classes);
    }
  }
  for (int64_t col = 0; col < cols; col += 4) {
    for (int64_t first = 0; first < rows; first += 64) {
      A sum[4] = {};
      for (int64_t i = first; i < min_of(first + 64, rows); ++i)
        for (int j = 0; j < 4; ++j) sum[j] += g[i * g_stride + col + j];
      for (int j = 0; j < 4; ++j) if (col + j < cols) column_sums[col + j] += double(sum[j]);
    }
  }
}

#undef UNROLL
