// A vector of one instruction set, as little of it as the kernels need: compiler vectors (GCC and Clang), and an
// intrinsic only where the compilers do not find the instruction.  Included inside the namespace of a variant, thus
// no include guard and no include of its own.
//
// Simd<A> for the arithmetic type A (float or double): `V` the vector, `I` the integers of the same shape.
// load/store convert from and to the storage type: float, double, Bf16, F16.

struct Bf16 { uint16_t bits; };
struct F16 { uint16_t bits; };

#if defined(__AVX512F__)
constexpr int width_bytes = 64;
#elif defined(__AVX2__)
constexpr int width_bytes = 32;
#else
constexpr int width_bytes = 16;
#endif

typedef float Vf __attribute__((vector_size(width_bytes)));
typedef int32_t If __attribute__((vector_size(width_bytes)));
typedef uint32_t Uf __attribute__((vector_size(width_bytes)));
typedef uint16_t Hf __attribute__((vector_size(width_bytes / 2)));
typedef double Vd __attribute__((vector_size(width_bytes)));
typedef int64_t Id __attribute__((vector_size(width_bytes)));

template <class A> struct Simd;

template <> struct Simd<float> {
  using V = Vf;
  using I = If;
  static constexpr int lanes = width_bytes / 4;
  static constexpr float log2e = 1.44269504f, ln2_hi = 0.693359375f, ln2_lo = -2.12194440e-4f;
  static constexpr float round_magic = 12582912.0f;  // 1.5 · 2²³
  static constexpr int bias = 127, mantissa = 23;
  static constexpr float exp_min = -87.33654f, exp_max = 88.72f;  // below: 0, as results are kept out of the denormals
  // (2^f − 1) / f on |f| ≤ ½: Remez, error of 2^f 2.6e-9
  static constexpr float poly[] = {0.69314721497238094653f, 0.24022652783140559874f,  0.055503105425264737132f,
                                   0.0096176929372667969757f, 0.0013406646992725018077f, 0.00015594686084335237692f};
};

template <> struct Simd<double> {
  using V = Vd;
  using I = Id;
  static constexpr int lanes = width_bytes / 8;
  static constexpr double log2e = 1.4426950408889634074, ln2_hi = 0x1.62e42fee00000p-1,
                          ln2_lo = 1.90821492927058770002e-10;
  static constexpr double round_magic = 6755399441055744.0;  // 1.5 · 2⁵²
  static constexpr int bias = 1023, mantissa = 52;
  static constexpr double exp_min = -708.396418532264, exp_max = 709.78;
  // the same, error 1.8e-17
  static constexpr double poly[] = {0.69314718055994569684,    0.24022650695910098012,   0.055504108664790388807,
                                    0.0096181291076069988205,  0.0013333558153440976689, 0.00015403530441578139402,
                                    0.00001525272738452268365, 1.3215442671654156667e-6, 1.0180647825158462409e-7,
                                    7.0725711490389127658e-9,  4.0780628221567176823e-10};
};

template <class A> using V = typename Simd<A>::V;
template <class A> using I = typename Simd<A>::I;
template <class A> constexpr int lanes = Simd<A>::lanes;
template <class A> constexpr A infinity = std::numeric_limits<A>::infinity();

template <class A> inline V<A> splat(A x) { return x - V<A>{}; }
template <class To, class From> inline To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "a cast of bits keeps their number");
  To to;
  std::memcpy(&to, &x, sizeof to);
  return to;
}

// --- maximum: b where a is NaN -------------------------------------------------------------------------------------

template <class T> inline T min_of(T a, T b) { return a < b ? a : b; }
template <class T> inline T max_of(T a, T b) { return a > b ? a : b; }
#if defined(__AVX512F__)
template <> inline Vf max_of(Vf a, Vf b) { return _mm512_max_ps(a, b); }
template <> inline Vd max_of(Vd a, Vd b) { return _mm512_max_pd(a, b); }
FORCE_INLINE inline Vf scale_unless_below(Vf y, Vf n, Vf x, Vf low) {
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, low, _CMP_NLT_US), y, n);
}
FORCE_INLINE inline Vd scale_unless_below(Vd y, Vd n, Vd x, Vd low) {
  return _mm512_maskz_scalef_pd(_mm512_cmp_pd_mask(x, low, _CMP_NLT_US), y, n);
}
#elif defined(__AVX2__)
template <> inline Vf max_of(Vf a, Vf b) { return _mm256_max_ps(a, b); }
template <> inline Vd max_of(Vd a, Vd b) { return _mm256_max_pd(a, b); }
#elif defined(__SSE2__)
template <> inline Vf max_of(Vf a, Vf b) { return _mm_max_ps(a, b); }
template <> inline Vd max_of(Vd a, Vd b) { return _mm_max_pd(a, b); }
#endif

// --- a·b + c: fused where the processor can, and the same in every place that is written so (CMakeLists.txt forbids the
// compiler to fuse on its own: a value must not depend on which copy of a loop computes it) --------------------------

#if defined(__FMA__) || defined(__aarch64__)
constexpr bool fused = true;
#else
constexpr bool fused = false;
#endif
template <class V> FORCE_INLINE inline V fma_of(V a, V b, V c) {
#if defined(__aarch64__)
  for (size_t i = 0; i < sizeof(V) / sizeof(a[0]); ++i) c[i] = std::fma(a[i], b[i], c[i]);
  return c;
#else
  return a * b + c;
#endif
}
#if defined(__AVX512F__)
template <> FORCE_INLINE inline Vf fma_of(Vf a, Vf b, Vf c) { return _mm512_fmadd_ps(a, b, c); }
template <> FORCE_INLINE inline Vd fma_of(Vd a, Vd b, Vd c) { return _mm512_fmadd_pd(a, b, c); }
#elif defined(__FMA__)
template <> FORCE_INLINE inline Vf fma_of(Vf a, Vf b, Vf c) { return _mm256_fmadd_ps(a, b, c); }
template <> FORCE_INLINE inline Vd fma_of(Vd a, Vd b, Vd c) { return _mm256_fmadd_pd(a, b, c); }
#endif

// Horizontal, in a fixed order; the compilers turn these trees into shuffles.
template <class A> inline A sum_lanes(V<A> v) {
  A x[lanes<A>];
  std::memcpy(x, &v, sizeof v);
  for (int step = lanes<A> / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) x[i] += x[i + step];
  return x[0];
}
template <class A> inline A max_lanes(V<A> v) {
  A x[lanes<A>];
  std::memcpy(x, &v, sizeof v);
  for (int step = lanes<A> / 2; step > 0; step /= 2)
    for (int i = 0; i < step; ++i) x[i] = max_of(x[i], x[i + step]);
  return x[0];
}
#if defined(__AVX512F__)
template <> inline float sum_lanes<float>(Vf v) { return _mm512_reduce_add_ps(v); }
template <> inline float max_lanes<float>(Vf v) { return _mm512_reduce_max_ps(v); }
#endif

// --- packs: U vectors in lockstep ----------------------------------------------------------------------------------
//
// The exp of one vector is a chain of ten dependent instructions, and the processor's scheduler holds four or five such
// chains at best.  Written for four vectors at a time, step by step, the arithmetic units stay busy: 3.5 → 2.5 ns a vector.

template <class A, int U> struct Pack {
  V<A> v[U];
};
#define PACK_OPERATOR(op)                                                                                      \
  template <class A, int U> FORCE_INLINE inline Pack<A, U> operator op(Pack<A, U> a, const Pack<A, U>& b) {    \
    for (int q = 0; q < U; ++q) a.v[q] = a.v[q] op b.v[q];                                                     \
    return a;                                                                                                  \
  }                                                                                                            \
  template <class A, int U> FORCE_INLINE inline Pack<A, U> operator op(Pack<A, U> a, A b) {                    \
    for (int q = 0; q < U; ++q) a.v[q] = a.v[q] op b;                                                          \
    return a;                                                                                                  \
  }
PACK_OPERATOR(+)
PACK_OPERATOR(-)
PACK_OPERATOR(*)
PACK_OPERATOR(/)
#undef PACK_OPERATOR
template <class A, int U> FORCE_INLINE inline V<A> part_of(const Pack<A, U>& x, int q) { return x.v[q]; }
template <class A> FORCE_INLINE inline V<A> part_of(A x, int) { return splat<A>(x); }
// b and c: packs, or numbers.
template <class A, int U, class B, class C>
FORCE_INLINE inline Pack<A, U> fma(Pack<A, U> a, const B& b, const C& c) {
  for (int q = 0; q < U; ++q) a.v[q] = fma_of<V<A>>(a.v[q], part_of<A>(b, q), part_of<A>(c, q));
  return a;
}
template <class A, int U, class F> FORCE_INLINE inline Pack<A, U> map(Pack<A, U> a, F f) {
  for (int q = 0; q < U; ++q) a.v[q] = f(a.v[q]);
  return a;
}
template <class A> inline A sum_pack(const Pack<A, 4>& s) { return sum_lanes<A>((s.v[0] + s.v[1]) + (s.v[2] + s.v[3])); }

// --- exp -----------------------------------------------------------------------------------------------------------

// x = (n + f) ln 2; `ratio` is (2^f − 1) / f, `magic` holds n in its low bits.
template <class A, int U> struct Exponential {
  Pack<A, U> ratio, f, magic;
};
template <class A, int U> FORCE_INLINE inline Exponential<A, U> exponential(const Pack<A, U>& x) {
  using S = Simd<A>;
  const Pack<A, U> t = fma(x, S::log2e, S::round_magic), n = t - S::round_magic;
  Pack<A, U> f;
  if (fused) f = fma(x, S::log2e, n * A(-1));  // exact but for log2e's own rounding: a quarter of that of x
  else f = (x - n * S::ln2_hi - n * S::ln2_lo) * S::log2e;
  constexpr int top = sizeof S::poly / sizeof S::poly[0] - 1;
  Pack<A, U> p = fma(f, S::poly[top], S::poly[top - 1]);
#pragma GCC unroll 16
  for (int i = top - 2; i >= 0; --i) p = fma(p, f, S::poly[i]);
  return {p, f, t};
}
template <class A, int U> FORCE_INLINE inline Pack<A, U> power_of_two(const Pack<A, U>& magic) {
  return map(magic, [](V<A> t) FORCE_INLINE { return bits<V<A>>((bits<I<A>>(t) + Simd<A>::bias) << Simd<A>::mantissa); });
}

// exp x for x ≤ 0 (and a rounding error above); 0 below exp_min, NaN for NaN.
template <class A, int U> FORCE_INLINE inline Pack<A, U> exp_of(const Pack<A, U>& x) {
  const Exponential<A, U> e = exponential(x);
  Pack<A, U> y = fma(e.ratio, e.f, A(1));
#if defined(__AVX512F__)
  const Pack<A, U> n = e.magic - Simd<A>::round_magic;
  for (int q = 0; q < U; ++q) y.v[q] = scale_unless_below(y.v[q], n.v[q], x.v[q], splat<A>(Simd<A>::exp_min));
#else
  y = y * power_of_two(e.magic);
  for (int q = 0; q < U; ++q) y.v[q] = x.v[q] < Simd<A>::exp_min ? V<A>{} : y.v[q];
#endif
  return y;
}
#if defined(__AVX512F__)
// The same with 2^(k/16) from a register: a polynomial of degree three instead of six, error 1.6e-9.
template <int U> FORCE_INLINE inline Pack<float, U> exp_of(const Pack<float, U>& x) {
  using S = Simd<float>;
  constexpr float magic = S::round_magic / 16;  // rounds to sixteenths: k is the low four bits
  const Vf table = {1.0f,         1.044273782f, 1.090507733f, 1.138788635f, 1.189207115f, 1.241857812f,
                    1.296839555f, 1.354255547f, 1.414213562f, 1.476826146f, 1.542210825f, 1.610490332f,
                    1.681792831f, 1.75625216f,  1.834008086f, 1.915206561f};
  const Pack<float, U> t = fma(x, S::log2e, magic), n = t - magic, f = fma(x, S::log2e, n * -1.0f);
  Pack<float, U> y = fma(fma(fma(f, 0.05550213253768096f, 0.24023430358680153f), f, 0.6931471826750848f), f, 1.0f);
  for (int q = 0; q < U; ++q) y.v[q] *= Vf(_mm512_permutexvar_ps(bits<__m512i>(t.v[q]), table));
  for (int q = 0; q < U; ++q) y.v[q] = scale_unless_below(y.v[q], n.v[q], x.v[q], splat<float>(S::exp_min));
  return y;
}
#endif
template <class A> inline A exp_scalar(A x) { return exp_of(Pack<A, 1>{{splat<A>(x)}}).v[0][0]; }

// tanh x = e / (e + 2) with e = expm1(2x), which keeps the small x exact; the limit beyond |x| = 20.
template <class A, int U> FORCE_INLINE inline Pack<A, U> tanh_of(Pack<A, U> x) {
  const V<A> far = splat<A>(20);
  x = map(x, [&](V<A> v) FORCE_INLINE { return v > far ? far : (v < -far ? -far : v); });
  const Exponential<A, U> e = exponential(x + x);
  const Pack<A, U> scale = power_of_two(e.magic), expm1 = fma(e.ratio * e.f, scale, scale - A(1));
  return expm1 / (expm1 + A(2));
}

// --- loads and stores ----------------------------------------------------------------------------------------------

inline float widen(float x) { return x; }
inline double widen(double x) { return x; }
inline float widen(Bf16 x) { return bits<float>(uint32_t(x.bits) << 16); }
inline float widen(F16 x) {
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13;
  float y = bits<float>(magnitude) * 0x1p112f;  // moves the exponent's bias; exact for denormals as well
  if (magnitude >= 0x0f800000u) y = bits<float>(magnitude | 0x7f800000u);
  return (x.bits & 0x8000) ? -y : y;
}

inline void narrow(float x, float* to) { *to = x; }
inline void narrow(double x, double* to) { *to = x; }
inline void narrow(float x, Bf16* to) {
  const uint32_t b = bits<uint32_t>(x);
  to->bits = uint16_t(x != x ? (b >> 16) | 0x40 : (b + 0x7fff + ((b >> 16) & 1)) >> 16);
}
inline void narrow(float x, F16* to) {
  const uint32_t b = bits<uint32_t>(x), magnitude = b & 0x7fffffffu;
  uint32_t h;
  if (magnitude > 0x7f800000u) h = 0x7e00;                     // NaN
  else if (magnitude >= 0x477ff000u) h = 0x7c00;               // rounds to infinity
  else if (magnitude >= 0x38800000u) h = (magnitude - 0x38000000u + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  else h = bits<uint32_t>(bits<float>(magnitude) + 0.5f) - 0x3f000000u;  // denormal: the addition rounds to 2⁻²⁴
  to->bits = uint16_t(h | ((b >> 16) & 0x8000u));
}

inline Vf load(const float* p) { Vf v; std::memcpy(&v, p, sizeof v); return v; }
inline Vd load(const double* p) { Vd v; std::memcpy(&v, p, sizeof v); return v; }
inline Vf load(const Bf16* p) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  return bits<Vf>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));  // GCC takes four
#endif
  Hf h;
  std::memcpy(&h, p, sizeof h);
  return bits<Vf>(__builtin_convertvector(h, Uf) << 16);
}
inline void store(float* p, Vf v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, Vd v) { std::memcpy(p, &v, sizeof v); }
inline Hf to_bf16(Vf v) {
  const Uf b = bits<Uf>(v);
  const Uf rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  return __builtin_convertvector(v != v ? Uf{} + 0x7fc0u : rounded, Hf);
}
inline void store(Bf16* p, Vf v) { const Hf h = to_bf16(v); std::memcpy(p, &h, sizeof h); }

#if defined(__AVX512F__)
inline Vf load(const F16* p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p)); }
inline void store(F16* p, Vf v) { _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph(v, 0)); }
inline void stream(float* p, Vf v) { _mm512_stream_ps(p, v); }
inline void stream(double* p, Vd v) { _mm512_stream_pd(p, v); }
inline void stream(Bf16* p, Vf v) { _mm256_stream_si256((__m256i*)p, bits<__m256i>(to_bf16(v))); }
inline void stream(F16* p, Vf v) { _mm256_stream_si256((__m256i*)p, _mm512_cvtps_ph(v, 0)); }
#elif defined(__AVX2__)
inline Vf load(const F16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }
inline void store(F16* p, Vf v) { _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph(v, 0)); }
inline void stream(float* p, Vf v) { _mm256_stream_ps(p, v); }
inline void stream(double* p, Vd v) { _mm256_stream_pd(p, v); }
inline void stream(Bf16* p, Vf v) { _mm_stream_si128((__m128i*)p, bits<__m128i>(to_bf16(v))); }
inline void stream(F16* p, Vf v) { _mm_stream_si128((__m128i*)p, _mm256_cvtps_ph(v, 0)); }
#else
NEVER_INLINE inline Vf load(const F16* p) {
  float x[lanes<float>];
  for (int i = 0; i < lanes<float>; ++i) x[i] = widen(p[i]);
  return load(x);
}
NEVER_INLINE inline void store(F16* p, Vf v) {
  float x[lanes<float>];
  store(x, v);
  for (int i = 0; i < lanes<float>; ++i) narrow(x[i], p + i);
}
template <class T, class W> inline void stream(T* p, W v) { store(p, v); }
#endif

// The first n < lanes elements; the others read as `fill` and are not written.
template <class A, class T> NEVER_INLINE inline V<A> load_part(const T* p, int64_t n, A fill) {
  A x[lanes<A>];
  for (int i = 0; i < lanes<A>; ++i) x[i] = i < n ? A(widen(p[i < n ? i : 0])) : fill;
  return load(x);
}
template <class A, class T> NEVER_INLINE inline void store_part(T* p, V<A> v, int64_t n) {
  A x[lanes<A>];
  store(x, v);
  for (int i = 0; i < n; ++i) narrow(x[i], p + i);
}
#if defined(__AVX512F__)
inline __mmask16 first(int64_t n) { return __mmask16((1u << n) - 1); }
template <> inline Vf load_part<float, float>(const float* p, int64_t n, float fill) {
  return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), first(n), p);
}
template <> inline Vf load_part<float, Bf16>(const Bf16* p, int64_t n, float fill) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
  return _mm512_mask_mov_ps(_mm512_set1_ps(fill), first(n), bits<Vf>(_mm512_slli_epi32(wide, 16)));
}
template <> inline Vf load_part<float, F16>(const F16* p, int64_t n, float fill) {
  return _mm512_mask_mov_ps(_mm512_set1_ps(fill), first(n), _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first(n), p)));
}
template <> inline void store_part<float, float>(float* p, Vf v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
template <> inline void store_part<float, Bf16>(Bf16* p, Vf v, int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), bits<__m256i>(to_bf16(v)));
}
template <> inline void store_part<float, F16>(F16* p, Vf v, int64_t n) {
  _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtps_ph(v, 0));
}
#endif

// --- rows to columns, and back -------------------------------------------------------------------------------------
//
// Element j of row r of a block of `lanes` rows lies at x + j lanes + r.  A block of fewer repeats its last row.

template <class A, class T> inline void to_columns(const T* rows, int64_t stride, int64_t count, int64_t cols, A* x) {
  for (int64_t r = 0; r < lanes<A>; ++r) {
    const T* row = rows + min_of(r, count - 1) * stride;
#pragma GCC unroll 8
    for (int64_t j = 0; j < cols; ++j) x[j * lanes<A> + r] = A(widen(row[j]));
  }
}
template <class A, class T> inline void from_columns(const A* x, int64_t count, int64_t cols, T* rows, int64_t stride) {
  for (int64_t r = 0; r < count; ++r) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < cols; ++j) narrow(x[j * lanes<A> + r], rows + r * stride + j);
  }
}
#if defined(__AVX512F__)
FORCE_INLINE inline void transpose(Vf (&v)[16]) {
  Vf t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(v[i], v[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  }
  for (int i = 0; i < 16; i += 4)
    for (int k = 0; k < 2; ++k) {
      const Vd a = bits<Vd>(t[i + k]), b = bits<Vd>(t[i + k + 2]);
      v[i + 2 * k] = bits<Vf>(Vd(_mm512_unpacklo_pd(a, b)));
      v[i + 2 * k + 1] = bits<Vf>(Vd(_mm512_unpackhi_pd(a, b)));
    }
  for (int k = 0; k < 4; ++k) {  // v[i + k]: columns k, 4 + k, 8 + k, 12 + k of the rows i … i + 3
    const Vf a = _mm512_shuffle_f32x4(v[k], v[4 + k], 0x88), b = _mm512_shuffle_f32x4(v[k], v[4 + k], 0xdd);
    const Vf c = _mm512_shuffle_f32x4(v[8 + k], v[12 + k], 0x88), d = _mm512_shuffle_f32x4(v[8 + k], v[12 + k], 0xdd);
    t[k] = _mm512_shuffle_f32x4(a, c, 0x88), t[4 + k] = _mm512_shuffle_f32x4(b, d, 0x88);
    t[8 + k] = _mm512_shuffle_f32x4(a, c, 0xdd), t[12 + k] = _mm512_shuffle_f32x4(b, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) v[i] = t[i];
}
template <class T> inline void to_columns(const T* rows, int64_t stride, int64_t count, int64_t cols, float* x) {
  for (int64_t j = 0; j < cols; j += 16) {
    const int64_t n = min_of<int64_t>(16, cols - j);
    Vf v[16];
    for (int64_t r = 0; r < 16; ++r) v[r] = load_part<float>(rows + min_of(r, count - 1) * stride + j, n, 0.0f);
    transpose(v);
    for (int64_t k = 0; k < 16; ++k) if (k < n) store(x + (j + k) * 16, v[k]);
  }
}
template <class T> inline void from_columns(const float* x, int64_t count, int64_t cols, T* rows, int64_t stride) {
  for (int64_t j = 0; j < cols; j += 16) {
    const int64_t n = min_of<int64_t>(16, cols - j);
    Vf v[16];
    for (int64_t k = 0; k < 16; ++k) v[k] = k < n ? load(x + (j + k) * 16) : Vf{};
    transpose(v);
    for (int64_t r = 0; r < 16; ++r) if (r < count) store_part<float>(rows + r * stride + j, v[r], n);
  }
}
#endif
