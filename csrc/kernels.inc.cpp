// The maths of the head, once, for every instruction set and storage type.  Included inside the namespace of a
// variant (kernels_*.cpp); the contract is kernels.h, the readable twin is src/softgrad/reference.py.
//
// A row is walked in tiles that stay in the L1 cache.  Each loop below does one thing to a tile: find the peak, sum
// the exponentials, dot the distances with targets, write the gradient.  An option that is not used costs nothing,
// because its loop does not run.  Under a softcap the tile is first transformed into a scratch array, which the same
// loops then read.

template <class T> struct ArithmeticOf { using type = float; };
template <> struct ArithmeticOf<double> { using type = double; };
template <class T> using Arithmetic = typename ArithmeticOf<T>::type;

// --- walking a tile ------------------------------------------------------------------------------------------------

// f(j, n): the four vectors at j, of which the first n columns count: all, or what is left at the end.
template <class A> constexpr int64_t block = 4 * lanes<A>;
template <class A, class F> FORCE_INLINE inline void each_block(int64_t n, F f) {
  int64_t j = 0;
  for (; j + block<A> <= n; j += block<A>) f(j, block<A>);
  if (j < n) f(j, n - j);
}
template <class A, class T> FORCE_INLINE inline Pack<A, 4> read(const T* p, int64_t n, A fill) {
  Pack<A, 4> x;
  for (int q = 0; q < 4; ++q, p += lanes<A>, n -= lanes<A>)
    x.v[q] = n >= lanes<A> ? load(p) : n > 0 ? load_part<A>(p, n, fill) : splat<A>(fill);
  return x;
}
template <class A, class T> FORCE_INLINE inline void write(T* p, const Pack<A, 4>& x, int64_t n) {
  for (int q = 0; q < 4; ++q, p += lanes<A>, n -= lanes<A>) {
    if (n >= lanes<A>) store(p, x.v[q]);
    else if (n > 0) store_part<A>(p, x.v[q], n);
  }
}

// u − max u as the loops see it: (x − peak)·k.  Under a softcap x is u itself and k is 1.
template <class A> struct Distance {
  A k, sign, masked;  // masked: the value of x that means probability 0
  explicit Distance(const Problem& p) {
    k = p.softcap ? A(1) : A(p.scale / p.temperature);
    sign = k < 0 ? A(-1) : A(1);
    masked = -sign * infinity<A>;
  }
  A reference(A peak) const { return peak == masked ? -sign * std::numeric_limits<A>::max() : peak; }
};

template <class T, bool Unit, class A = Arithmetic<T>> A find_peak(const T* x, int64_t n, Distance<A> u) {
  const V<A> low = splat<A>(-infinity<A>);
  Pack<A, 4> m = {{low, low, low, low}};
  each_block<A>(n, [&](int64_t j, int64_t c) FORCE_INLINE {
    Pack<A, 4> v = read<A>(x + j, c, u.masked);
    if (!Unit) v = v * u.sign;
    for (int q = 0; q < 4; ++q) m.v[q] = max_of(v.v[q], m.v[q]);
  });
  return u.sign * max_lanes<A>(max_of(max_of(m.v[0], m.v[1]), max_of(m.v[2], m.v[3])));
}

template <class T, bool Unit, bool Moment, bool Keep = false, class A = Arithmetic<T>>
void sum_exp(const T* x, int64_t n, Distance<A> u, A peak, double& sum, double& moment, A* kept = nullptr) {
  Pack<A, 4> s = {}, e = {};
  each_block<A>(n, [&](int64_t j, int64_t c) FORCE_INLINE {
    Pack<A, 4> d = read<A>(x + j, c, u.masked) - peak;
    if (!Unit) d = d * u.k;
    const Pack<A, 4> p = exp_of(d);
    s = s + p;
    if (Keep) write(kept + j, p, c);
    if (!Moment) return;
    Pack<A, 4> m = p * d;
    for (int q = 0; q < 4; ++q) m.v[q] = d.v[q] == -infinity<A> ? V<A>{} : m.v[q];
    e = e + m;
  });
  sum = sum_pack(s);
  moment = Moment ? sum_pack(e) : A(0);
}

// Σ w and Σ w d with 0·∞ = 0; w = 1 everywhere without `weight`.
template <class T, bool Weighted, class A = Arithmetic<T>>
void dot_distance(const T* x, const A* weight, int64_t n, Distance<A> u, A peak, double& mass, double& dot) {
  Pack<A, 4> s = {}, q = {};
  each_block<A>(n, [&](int64_t j, int64_t c) FORCE_INLINE {
    const Pack<A, 4> d = (read<A>(x + j, c, peak) - peak) * u.k;
    if (!Weighted) return void(q = q + d);
    const Pack<A, 4> w = read<A>(weight + j, c, A(0));
    s = s + w;
    Pack<A, 4> wd = w * d;
    for (int i = 0; i < 4; ++i) wd.v[i] = w.v[i] == A(0) ? V<A>{} : wd.v[i];
    q = q + wd;
  });
  mass = Weighted ? double(sum_pack(s)) : double(n);
  dot = sum_pack(q);
}

// How many x lie beyond `own` in the direction of `sign`.
template <class T, class A = Arithmetic<T>> int64_t count_beyond(const T* x, int64_t n, A sign, A own) {
  I<A> count = {};
  each_block<A>(n, [&](int64_t j, int64_t c) FORCE_INLINE {
    const Pack<A, 4> v = read<A>(x + j, c, -sign * infinity<A>) * sign;
    for (int q = 0; q < 4; ++q) count -= v.v[q] > own * sign;
  });
  int64_t total = 0;
  for (int i = 0; i < lanes<A>; ++i) total += count[i];
  return total;
}

// --- scratch tiles -------------------------------------------------------------------------------------------------

template <class T, class A = Arithmetic<T>> void transform_tile(const Problem& p, const T* x, int64_t n, A* u) {
  const A inner = A(p.scale / p.softcap), outer = A(p.softcap / p.temperature);
  each_block<A>(n, [&](int64_t j, int64_t c) FORCE_INLINE {
    const Pack<A, 4> v = read<A>(x + j, c, A(0)) * inner, inf = v - v;  // NaN at ±∞ and NaN, else 0
    Pack<A, 4> z = tanh_of(v) * outer;
    for (int q = 0; q < 4; ++q) z.v[q] = inf.v[q] != inf.v[q] ? v.v[q] : z.v[q];  // −inf stays, +inf and NaN spoil
    write(u + j, z, c);
  });
}

template <class A> void read_values(const void* data, Type type, int64_t at, int64_t n, A* to) {
  switch (type) {
    case Type::f32: for (int64_t j = 0; j < n; ++j) to[j] = A(static_cast<const float*>(data)[at + j]); break;
    case Type::f64: for (int64_t j = 0; j < n; ++j) to[j] = A(static_cast<const double*>(data)[at + j]); break;
    case Type::bf16: for (int64_t j = 0; j < n; ++j) to[j] = A(widen(static_cast<const Bf16*>(data)[at + j])); break;
    case Type::f16: for (int64_t j = 0; j < n; ++j) to[j] = A(widen(static_cast<const F16*>(data)[at + j])); break;
  }
}

inline int64_t label_at(const Problem& p, int64_t i) {
  switch (p.label_bytes * 2 + p.label_signed) {
    case 2: return static_cast<const uint8_t*>(p.labels)[i];
    case 3: return static_cast<const int8_t*>(p.labels)[i];
    case 4: return static_cast<const uint16_t*>(p.labels)[i];
    case 5: return static_cast<const int16_t*>(p.labels)[i];
    case 8: return static_cast<const uint32_t*>(p.labels)[i];
    case 9: return static_cast<const int32_t*>(p.labels)[i];
    case 16: return int64_t(static_cast<const uint64_t*>(p.labels)[i]);
    default: return static_cast<const int64_t*>(p.labels)[i];
  }
}
template <class A> double class_weight(const Problem& p, int64_t j) {
  return p.class_weight ? double(static_cast<const A*>(p.class_weight)[j]) : 1.0;
}
template <class A> double value_at(const Problem& p, int64_t at) {
  A v;
  read_values<A>(p.values, p.value_type, at, 1, &v);
  return v;
}
// Each target of row i with its value: f(column, value).
template <class A, class F> void each_target(const Problem& p, int64_t i, F f) {
  if (p.target == Target::index) f(label_at(p, i * p.label_stride), 1.0);
  if (p.target == Target::sparse)
    for (int64_t r = 0; r < p.width; ++r)
      if (const int64_t j = label_at(p, i * p.label_stride + r); j >= 0) f(j, value_at<A>(p, i * p.value_stride + r));
}

// to_j = soft·w_j y_j + smooth·w_j over a tile: what the gradient subtracts, and what the loss dots with.
template <class T, class A = Arithmetic<T>>
void target_tile(const Problem& p, int64_t i, const T* x, int64_t col, int64_t n, double soft, double smooth, A* to) {
  const A* w = p.class_weight ? static_cast<const A*>(p.class_weight) + col : nullptr;
  const A a = A(soft), b = A(smooth);
  if (p.target == Target::dense && soft != 0) {
    read_values<A>(p.values, p.value_type, i * p.value_stride + col, n, to);
    for (int64_t j = 0; j < n; ++j) to[j] = a * to[j];
  } else {
    for (int64_t j = 0; j < n; ++j) to[j] = 0;
  }
  if (smooth != 0 && p.finite_only) {
    const A masked = A(p.scale < 0 ? 1 : -1) * infinity<A>;
    for (int64_t j = 0; j < n; ++j) to[j] += A(widen(x[j])) == masked ? A(0) : b;
  } else if (smooth != 0) {
    for (int64_t j = 0; j < n; ++j) to[j] += b;
  }
  if (w) for (int64_t j = 0; j < n; ++j) to[j] *= w[j];
  if (soft != 0)
    each_target<A>(p, i, [&](int64_t j, double y) {
      if (j >= col && j < col + n) to[j - col] += A(soft * class_weight<A>(p, j) * y);
    });
}

// --- statistics ----------------------------------------------------------------------------------------------------

inline void merge_one(double k, Statistics& a, const Statistics& b) {
  const double sign = k < 0 ? -1 : 1, masked = -sign * infinity<double>;
  const double peak = sign * max_of(sign * a.peak, sign * b.peak);
  const auto shifted = [&](Statistics s) {
    if (s.peak == masked || s.peak == peak) return s;
    const double d = (s.peak - peak) * k, scale = std::exp(d);
    if (s.smooth_mass != 0) s.smooth_dot += s.smooth_mass * d;
    if (s.target_mass != 0) s.target_dot += s.target_mass * d;
    if (s.plain_mass != 0) s.plain_dot += s.plain_mass * d;
    s.moment = scale == 0 ? 0 : scale * (s.moment + s.sum * d);
    s.sum *= scale;
    return s;
  };
  const Statistics l = shifted(a), r = shifted(b);
  a.peak = peak;
  a.sum = l.sum + r.sum;
  a.moment = l.moment + r.moment;
  a.smooth_mass = l.smooth_mass + r.smooth_mass;
  a.smooth_dot = l.smooth_dot + r.smooth_dot;
  a.finite = l.finite + r.finite;
  a.target_mass = l.target_mass + r.target_mass;
  a.target_dot = l.target_dot + r.target_dot;
  a.plain_mass = l.plain_mass + r.plain_mass;
  a.plain_dot = l.plain_dot + r.plain_dot;
  if (r.best > l.best) a.best = r.best, a.argmax = r.argmax;
  a.rank = l.rank + r.rank;
}
inline double distance_scale(const Problem& p) { return p.softcap ? 1.0 : p.scale / p.temperature; }
inline Statistics nothing(double k) {
  Statistics s = {};
  s.peak = (k < 0 ? 1 : -1) * infinity<double>;
  s.best = -infinity<double>;
  s.argmax = -1;
  return s;
}

// One tile: `x` is the storage, `z` what the loops read (the storage, or the transformed scratch).
template <class T, class Z, class A = Arithmetic<T>>
Statistics tile_statistics(const Problem& p, int64_t i, const T* x, const Z* z, int64_t col, int64_t n, bool by_products,
                           A* kept = nullptr) {
  const Distance<A> u(p);
  Statistics s = nothing(u.k);
  const bool unit = u.k == A(1);
  const A top = unit ? find_peak<Z, true>(z, n, u) : find_peak<Z, false>(z, n, u), peak = u.reference(top);
  s.peak = top;
  if (kept) sum_exp<Z, true, false, true>(z, n, u, peak, s.sum, s.moment, kept);
  else if (by_products) sum_exp<Z, false, true>(z, n, u, peak, s.sum, s.moment);
  else if (unit) sum_exp<Z, true, false>(z, n, u, peak, s.sum, s.moment);
  else sum_exp<Z, false, false>(z, n, u, peak, s.sum, s.moment);

  A w[tile];
  if (p.smoothing != 0) {
    int64_t finite = 0;
    if (p.finite_only) for (int64_t j = 0; j < n; ++j) finite += A(widen(z[j])) != u.masked;
    s.finite = double(finite);
    if (p.class_weight || p.finite_only) {
      target_tile<T>(p, i, x, col, n, 0.0, 1.0, w);
      dot_distance<Z, true>(z, w, n, u, peak, s.smooth_mass, s.smooth_dot);
    } else {
      dot_distance<Z, false>(z, w, n, u, peak, s.smooth_mass, s.smooth_dot);
    }
  }
  if (p.target == Target::dense) {
    target_tile<T>(p, i, x, col, n, 1.0, 0.0, w);
    dot_distance<Z, true>(z, w, n, u, peak, s.target_mass, s.target_dot);
    s.plain_mass = s.target_mass, s.plain_dot = s.target_dot;
    if (by_products && p.class_weight) {
      read_values<A>(p.values, p.value_type, i * p.value_stride + col, n, w);
      dot_distance<Z, true>(z, w, n, u, peak, s.plain_mass, s.plain_dot);
    }
  }
  if (by_products) {
    const A sign = p.scale < 0 ? A(-1) : A(1);
    Distance<A> raw(p);
    raw.sign = sign, raw.masked = -sign * infinity<A>;
    const A best = p.softcap ? find_peak<T, false>(x, n, raw) : top;
    s.best = sign * best;
    if (p.target == Target::index) {
      const T* row = x - col;
      s.rank = count_beyond<T>(x, n, sign, A(widen(row[label_at(p, i * p.label_stride)])));
    }
  }
  return s;
}

// One panel of row i, with the targets that lie in it.
template <class T, class A = Arithmetic<T>>
Statistics panel_statistics(const Problem& p, int64_t i, int64_t lo, int64_t hi, bool by_products, A* kept = nullptr) {
  const T* row = static_cast<const T*>(p.logits) + i * p.stride;
  const double k = distance_scale(p);
  Statistics s = nothing(k);
  A z[tile];
  for (int64_t col = lo; col < hi; col += tile) {
    const int64_t n = min_of<int64_t>(tile, hi - col);
    Statistics t;
    if (p.softcap) {
      transform_tile<T>(p, row + col, n, z);
      t = tile_statistics<T, A>(p, i, row + col, z, col, n, by_products);
    } else {
      t = tile_statistics<T, T>(p, i, row + col, row + col, col, n, by_products, kept);
    }
    if (by_products && t.best > s.best) {  // a search, thus only where the tile has a new maximum
      const A sign = p.scale < 0 ? A(-1) : A(1);
      int64_t j = 0;
      while (double(sign * A(widen(row[col + j]))) != t.best) ++j;
      t.argmax = col + j;
    }
    if (col == lo) s = t; else merge_one(k, s, t);
  }
  const A masked = Distance<A>(p).masked;
  each_target<A>(p, i, [&](int64_t j, double y) {
    if (j < lo || j >= hi) return;
    A x = A(widen(row[j]));
    if (p.softcap) transform_tile<T>(p, row + j, 1, &x);
    const double d = x == masked ? -infinity<double> : (double(x) - s.peak) * k, w = class_weight<A>(p, j);
    s.target_mass += w * y;
    if (w * y != 0) s.target_dot += w * y * d;
    s.plain_mass += y;
    if (y != 0) s.plain_dot += y * d;
  });
  return s;
}

template <class T>
Statistics range_statistics(const Problem& p, int64_t i, int64_t lo, int64_t hi, bool by_products) {
  Statistics s = panel_statistics<T>(p, i, lo, min_of<int64_t>(lo + panel, hi), by_products);
  for (int64_t col = lo + panel; col < hi; col += panel)
    merge_one(distance_scale(p), s, panel_statistics<T>(p, i, col, min_of<int64_t>(col + panel, hi), by_products));
  return s;
}

// --- from statistics to the loss and the coefficients of the gradient ----------------------------------------------

inline double row_weight(const Problem& p, int64_t i) {
  if (p.has_ignore && p.target == Target::index && label_at(p, i * p.label_stride) == p.ignore_index) return 0.0;
  return p.row_weight ? p.row_weight[i] : 1.0;
}

struct Row {  // ∂ℓ/∂u_j = mass·S_j − soft·w_j y_j − smooth·w_j, all times the row's factor
  double lse, log_sum, loss;
  double mass, soft, smooth;
  double z;  // 2 λ times the row's factor of the z-loss
};

inline Row finish_row(const Problem& p, const Statistics& s, double weight) {
  const double k = distance_scale(p);
  const bool void_row = s.peak == (k < 0 ? 1 : -1) * infinity<double>;
  Row r;
  r.log_sum = void_row ? std::numeric_limits<double>::quiet_NaN() : std::log(s.sum);
  r.lse = s.peak * k + r.log_sum;
  const double ce = weight * p.ce_factor, z = weight * p.z_factor;
  const double share = p.smoothing == 0 ? 0 : p.smoothing / (p.finite_only ? s.finite : double(p.cols));
  const double mass = (1 - p.smoothing) * s.target_mass + share * s.smooth_mass;
  double dot = 0;
  if (p.smoothing != 1) dot += (1 - p.smoothing) * s.target_dot;
  if (share != 0) dot += share * s.smooth_dot;
  r.loss = ce * (mass * r.log_sum - dot);
  r.z = 0;
  r.mass = ce * mass;
  if (p.z_loss != 0) {
    r.loss += z * p.z_loss * r.lse * r.lse;
    r.z = 2 * p.z_loss * z;
    r.mass += r.z * r.lse;
  }
  r.soft = ce * (1 - p.smoothing);
  r.smooth = ce * share;
  return r;
}

inline void write_outputs(const Problem& p, const Outputs& out, const Statistics& s, const Row& r, int64_t i) {
  const bool none = r.lse != r.lse;
  if (out.loss) out.loss[i] = r.loss;
  if (out.lse) out.lse[i] = r.lse;
  if (out.log_prob)
    out.log_prob[i] = p.target == Target::none ? std::numeric_limits<double>::quiet_NaN()
                                               : s.plain_dot - s.plain_mass * r.log_sum;
  if (out.argmax) out.argmax[i] = none ? -1 : s.argmax;
  if (out.rank) out.rank[i] = none || p.target != Target::index ? -1 : s.rank;
  if (out.entropy) out.entropy[i] = none ? std::numeric_limits<double>::quiet_NaN() : r.log_sum - s.moment / s.sum;
}
inline void write_ignored(const Outputs& out, int64_t i) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  if (out.loss) out.loss[i] = 0;
  if (out.lse) out.lse[i] = nan;
  if (out.log_prob) out.log_prob[i] = nan;
  if (out.argmax) out.argmax[i] = -1;
  if (out.rank) out.rank[i] = -1;
  if (out.entropy) out.entropy[i] = nan;
}

// --- gradient ------------------------------------------------------------------------------------------------------

// to_j = c·exp((x_j − peak)·k) − sub_j, or − `constant` without `sub`.  Begins with the columns before an aligned
// address: streaming needs it, and stores across cache lines take twice as long.
// Meanwhile the next row is fetched into the L2 cache: reading it then overlaps with writing this one.
template <class T, bool Unit, bool Subtract, class A = Arithmetic<T>>
void gradient_loop(const T* x, int64_t n, Distance<A> u, A peak, A c, A constant, const A* sub, T* to, bool streaming,
                   const T* ahead) {
  const auto part = [&](int64_t j, int64_t count, bool whole) FORCE_INLINE {
    Pack<A, 4> d = read<A>(x + j, count, u.masked) - peak;
    if (!Unit) d = d * u.k;
    if (whole && ahead)
      for (int q = 0; q < 4; ++q) __builtin_prefetch(ahead + j + q * lanes<A>, 0, 2);
    const Pack<A, 4> g = Subtract ? fma(exp_of(d), c, read<A>(sub + j, count, A(0)) * A(-1)) : fma(exp_of(d), c, -constant);
    if (streaming && whole) for (int q = 0; q < 4; ++q) stream(to + j + q * lanes<A>, g.v[q]);
    else write(to + j, g, count);
  };
  constexpr int64_t bytes = lanes<A> * int64_t(sizeof(T));
  const int64_t off = int64_t(reinterpret_cast<uintptr_t>(to) % bytes);
  const int64_t head = off ? min_of(n, (bytes - off) / int64_t(sizeof(T))) : 0;
  if (head) part(0, head, false);
  each_block<A>(n - head, [&](int64_t j, int64_t count) FORCE_INLINE {
    part(head + j, count, count == block<A>);
  });
}
// The commonest kind has a loop of its own; multiplying by a k of 1 changes no bit.
template <class T, class A = Arithmetic<T>>
void gradient_tile(const T* x, int64_t n, Distance<A> u, A peak, A c, A constant, const A* sub, T* to, bool streaming,
                   const T* ahead) {
  const auto loop = sub ? gradient_loop<T, false, true> : u.k == A(1) ? gradient_loop<T, true, false> : gradient_loop<T, false, false>;
  loop(x, n, u, peak, c, constant, sub, to, streaming, ahead);
}

// ∂u/∂o of a softcap from u itself: (s/τ)(1 − th²) with th = u τ / c; a masked logit has none.
template <class A>
FORCE_INLINE inline void cap_slopes(const Problem& p, const Pack<A, 4>& u, Pack<A, 4>& slope, Pack<A, 4>& curve) {
  const Pack<A, 4> th = u * A(p.temperature / p.softcap), room = map(th * th, [](V<A> x) { return A(1) - x; });
  slope = room * A(p.scale / p.temperature);
  curve = th * room * A(-2 * p.scale * p.scale / (p.temperature * p.softcap));
  for (int q = 0; q < 4; ++q) {
    slope.v[q] = u.v[q] == -infinity<A> ? V<A>{} : slope.v[q];
    curve.v[q] = u.v[q] == -infinity<A> ? V<A>{} : curve.v[q];
  }
}

// The same from exp((x_j − peak)·k) that the sum has computed: a row of one tile, and a target that is one label.
template <class T, class A = Arithmetic<T>>
void gradient_kept(const A* e, int64_t n, A c, A constant, T* to, bool streaming, const T* ahead) {
  const auto part = [&](int64_t j, int64_t count, bool whole) FORCE_INLINE {
    if (whole && ahead)
      for (int q = 0; q < 4; ++q) __builtin_prefetch(ahead + j + q * lanes<A>, 0, 2);
    const Pack<A, 4> g = fma(read<A>(e + j, count, A(0)), c, -constant);
    if (streaming && whole) for (int q = 0; q < 4; ++q) stream(to + j + q * lanes<A>, g.v[q]);
    else write(to + j, g, count);
  };
  constexpr int64_t bytes = lanes<A> * int64_t(sizeof(T));
  const int64_t off = int64_t(reinterpret_cast<uintptr_t>(to) % bytes);
  const int64_t head = off ? min_of(n, (bytes - off) / int64_t(sizeof(T))) : 0;
  if (head) part(0, head, false);
  each_block<A>(n - head, [&](int64_t j, int64_t count) FORCE_INLINE {
    part(head + j, count, count == block<A>);
  });
}
inline bool keeps(const Problem& p, const Outputs& out) {
  return out.grad && p.cols <= tile && p.target == Target::index && !p.softcap && p.scale == p.temperature &&
         !(p.smoothing != 0 && (p.class_weight || p.finite_only)) && !wants_by_products(out);
}

template <class T, class A = Arithmetic<T>>
void row_gradient(const Problem& p, int64_t i, const Statistics& s, double weight, const T* row, int64_t lo, int64_t hi,
                  T* to, bool streaming, const T* ahead, const A* kept = nullptr) {
  if (weight == 0) {
    for (int64_t j = lo; j < hi; ++j) narrow(A(0), to + j);
    return;
  }
  const Row r = finish_row(p, s, weight);
  const Distance<A> u(p);
  const A peak = A(s.peak);
  const double c = s.peak == double(u.masked) ? std::numeric_limits<double>::quiet_NaN() : r.mass / s.sum;
  const double k = p.softcap ? 1.0 : p.scale / p.temperature;  // du/do of a softcap comes per column
  const bool one_by_one = p.target == Target::index && !(p.class_weight && p.smoothing != 0) && !p.softcap;
  const bool by_tile = !(one_by_one || p.target == Target::none) || (p.finite_only && p.smoothing != 0) || p.softcap;
  // The single target is read before the row may be written over, and its gradient rounded once, at the end.
  const int64_t y = p.target == Target::index ? label_at(p, i * p.label_stride) : -1;
  double own = 0;
  if (!by_tile && y >= lo && y < hi)
    own = k * (c * double(exp_scalar<A>((A(widen(row[y])) - peak) * u.k)) -
               (r.soft + r.smooth) * class_weight<A>(p, y));
  if (kept) {
    gradient_kept<T>(kept, hi - lo, A(k * c), A(k * r.smooth), to, streaming, ahead);
    if (y >= lo && y < hi) narrow(A(own), to + y);
    return;
  }
  A z[tile], sub[tile];
  for (int64_t col = lo; col < hi; col += tile) {
    const int64_t n = min_of<int64_t>(tile, hi - col);
    if (by_tile) target_tile<T>(p, i, row + col, col, n, k * r.soft, k * r.smooth, sub);
    if (!p.softcap) {
      gradient_tile<T>(row + col, n, u, peak, A(k * c), A(k * r.smooth), by_tile ? sub : nullptr, to + col, streaming,
           ahead ? ahead + col : nullptr);
      continue;
    }
    transform_tile<T>(p, row + col, n, z);
    each_block<A>(n, [&](int64_t j, int64_t part) FORCE_INLINE {
      const Pack<A, 4> v = read<A>(z + j, part, u.masked);
      Pack<A, 4> slope, curve;
      cap_slopes(p, v, slope, curve);
      const Pack<A, 4> g = fma(exp_of(v - peak), A(c), read<A>(sub + j, part, A(0)) * A(-1));
      write(to + col + j, g * slope, part);
    });
  }
  if (!by_tile && y >= lo && y < hi) narrow(A(own), to + y);
}

// --- few classes: the lanes of a vector are rows -------------------------------------------------------------------

constexpr int64_t narrow_cols = 32;

inline bool is_narrow(const Problem& p, const Outputs& out) {
  return p.cols <= narrow_cols && p.target == Target::index && !p.softcap && p.smoothing == 0 && !wants_by_products(out);
}

template <class T, class A = Arithmetic<T>>
void narrow_rows(const Problem& p, const Outputs& out, int64_t lo, int64_t hi) {
  constexpr int64_t L = lanes<A>;
  const Distance<A> u(p);
  const int64_t cols = p.cols;
  const A ce = A(p.ce_factor), z = A(p.z_loss * p.z_factor), none = std::numeric_limits<A>::quiet_NaN();
  alignas(64) A x[narrow_cols * L];  // columns
  alignas(64) A weight[L], class_share[L], own[L], own_exp[L], sums[L], loss[L], lse[L], target[L];
  int64_t label[L];
  for (int64_t first = lo; first < hi; first += L) {
    const int64_t count = min_of(L, hi - first);  // the last block repeats its last row
    to_columns(static_cast<const T*>(p.logits) + first * p.stride, p.stride, count, cols, x);
    for (int64_t r = 0; r < L; ++r) {
      const int64_t i = first + min_of(r, count - 1);
      weight[r] = A(row_weight(p, i));
      label[r] = weight[r] == 0 ? 0 : label_at(p, i * p.label_stride);
      own[r] = x[label[r] * L + r];
      class_share[r] = p.class_weight ? static_cast<const A*>(p.class_weight)[label[r]] : A(1);
    }
    V<A> peak = splat<A>(-infinity<A>), sum = {};
    for (int64_t j = 0; j < cols; ++j) peak = max_of(load(x + j * L) * u.sign, peak);
    peak *= u.sign;
    each_block<A>(cols * L, [&](int64_t j, int64_t c) FORCE_INLINE {
      const Pack<A, 4> d = map(read<A>(x + j, c, u.masked), [&](V<A> v) FORCE_INLINE { return (v - peak) * u.k; });
      const Pack<A, 4> e = exp_of(d);
      write(x + j, e, c);
      for (int q = 0; q < 4; ++q) sum += q * L < c ? e.v[q] : V<A>{};
    });
    sum = peak == u.masked ? splat<A>(none) : sum;
    store(sums, sum);
    for (int64_t r = 0; r < L; ++r) own_exp[r] = x[label[r] * L + r];
    for (int64_t r = 0; r < L; ++r) sums[r] = std::log(sums[r]);
    const V<A> a = load(weight), log_sum = load(sums), y = load(own), share = a * ce * load(class_share);
    const V<A> d = y == u.masked ? splat<A>(-infinity<A>) : (y - peak) * u.k, all = peak * u.k + log_sum;
    V<A> l = share * (share == A(0) ? log_sum : log_sum - d), mass = share;
    if (p.z_loss != 0) l += a * z * all * all, mass += A(2) * a * z * all;
    const V<A> scale = u.k * mass / sum, nothing = V<A>{};
    store(loss, a == A(0) ? nothing : l);
    store(lse, a == A(0) ? splat<A>(none) : all);
    store(target, a == A(0) ? nothing : scale * load(own_exp) - u.k * share);
    if (out.loss) for (int64_t r = 0; r < count; ++r) out.loss[first + r] = loss[r];
    if (out.lse) for (int64_t r = 0; r < count; ++r) out.lse[first + r] = lse[r];
    if (!out.grad) continue;
    for (int64_t j = 0; j < cols; ++j) store(x + j * L, a == A(0) ? nothing : load(x + j * L) * scale);
    T* to = static_cast<T*>(out.grad) + first * out.grad_stride;
    from_columns(x, count, cols, to, out.grad_stride);
    for (int64_t r = 0; r < count; ++r) narrow(target[r], to + r * out.grad_stride + label[r]);
  }
}

template <class T, class A = Arithmetic<T>>
void narrow_distribution(const Problem& p, bool logarithm, void* out, int64_t out_stride, int64_t lo, int64_t hi) {
  constexpr int64_t L = lanes<A>;
  const Distance<A> u(p);
  alignas(64) A x[narrow_cols * L];
  alignas(64) A sums[L];
  for (int64_t first = lo; first < hi; first += L) {
    const int64_t count = min_of(L, hi - first);
    to_columns(static_cast<const T*>(p.logits) + first * p.stride, p.stride, count, p.cols, x);
    V<A> peak = splat<A>(-infinity<A>), sum = {};
    for (int64_t j = 0; j < p.cols; ++j) peak = max_of(load(x + j * L) * u.sign, peak);
    peak *= u.sign;
    each_block<A>(p.cols * L, [&](int64_t j, int64_t c) FORCE_INLINE {
      const Pack<A, 4> d = map(read<A>(x + j, c, u.masked), [&](V<A> v) FORCE_INLINE { return (v - peak) * u.k; });
      const Pack<A, 4> e = exp_of(d);
      write(x + j, logarithm ? d : e, c);
      for (int q = 0; q < 4; ++q) sum += q * L < c ? e.v[q] : V<A>{};
    });
    sum = peak == u.masked ? splat<A>(std::numeric_limits<A>::quiet_NaN()) : sum;
    if (logarithm) {
      store(sums, sum);
      for (int64_t r = 0; r < L; ++r) sums[r] = std::log(sums[r]);
      const V<A> log_sum = load(sums);
      for (int64_t j = 0; j < p.cols; ++j) store(x + j * L, load(x + j * L) - log_sum);
    } else {
      const V<A> inverse = A(1) / sum;
      for (int64_t j = 0; j < p.cols; ++j) store(x + j * L, load(x + j * L) * inverse);
    }
    from_columns(x, count, p.cols, static_cast<T*>(out) + first * out_stride, out_stride);
  }
}

// --- labels: checked before anything else, once ---------------------------------------------------------------------

template <class L> Totals label_totals(const Problem& p) {
  const L* labels = static_cast<const L*>(p.labels);
  const bool plain = !p.class_weight && !p.row_weight && p.label_stride == 1 && p.target == Target::index;
  Totals t = {-1, 0, 0, 0};
  constexpr int64_t block = 4096;
  for (int64_t lo = 0; lo < p.rows; lo += block) {
    const int64_t hi = min_of(lo + block, p.rows);
    if (plain) {  // without branches, so that it runs at the speed of memory
      int64_t ignored = 0, wrong = 0;
      for (int64_t i = lo; i < hi; ++i) {
        const bool skip = p.has_ignore && int64_t(labels[i]) == p.ignore_index;
        ignored += skip;
        wrong += !skip && uint64_t(labels[i]) >= uint64_t(p.cols);
      }
      if (!wrong) {
        t.kept += hi - lo - ignored;
        continue;
      }
    }
    for (int64_t i = lo; i < hi; ++i) {
      const double a = p.row_weight ? p.row_weight[i] : 1.0;
      double w = 1.0;
      if (p.target == Target::index) {
        const int64_t y = int64_t(labels[i * p.label_stride]);
        if (p.has_ignore && y == p.ignore_index) continue;
        if (uint64_t(y) >= uint64_t(p.cols)) return {i, 0, 0, 0};
        w = p.type == Type::f64 ? class_weight<double>(p, y) : class_weight<float>(p, y);
      } else {
        for (int64_t r = 0; r < p.width; ++r)
          if (const int64_t y = int64_t(labels[i * p.label_stride + r]); y < -1 || y >= p.cols) return {i, 0, 0, 0};
      }
      t.kept += a != 0;
      t.total += a;
      t.labelled += a * w;
    }
  }
  if (plain) t.total = t.labelled = double(t.kept);
  return t;
}
Totals totals(const Problem& p) {
  if (p.target == Target::none || p.target == Target::dense) {
    Totals t = {-1, 0, 0, 0};
    for (int64_t i = 0; i < p.rows; ++i) {
      const double a = p.row_weight ? p.row_weight[i] : 1.0;
      t.kept += a != 0, t.total += a, t.labelled += a;
    }
    return t;
  }
  switch (p.label_bytes * 2 + p.label_signed) {
    case 2: return label_totals<uint8_t>(p);
    case 3: return label_totals<int8_t>(p);
    case 4: return label_totals<uint16_t>(p);
    case 5: return label_totals<int16_t>(p);
    case 8: return label_totals<uint32_t>(p);
    case 9: return label_totals<int32_t>(p);
    default: return label_totals<int64_t>(p);  // a uint64 above 2⁶³ reads negative: outside as well
  }
}

// --- the kernels over a row range ----------------------------------------------------------------------------------

template <class T> void finish_range(const Problem& p, const Outputs& out, const Statistics* stats, int64_t lo, int64_t hi) {
  for (int64_t i = lo; i < hi; ++i) {
    const double weight = row_weight(p, i);
    if (weight == 0) write_ignored(out, i);
    else write_outputs(p, out, stats[i - lo], finish_row(p, stats[i - lo], weight), i);
  }
}

template <class T>
void gradient_range(const Problem& p, const Outputs& out, const Statistics* stats, int64_t lo, int64_t hi, int64_t col_lo,
                    int64_t col_hi) {
  for (int64_t i = lo; i < hi; ++i) {
    const T* row = static_cast<const T*>(p.logits) + i * p.stride;
    row_gradient<T>(p, i, stats[i - lo], row_weight(p, i), row, col_lo, col_hi,
                    static_cast<T*>(out.grad) + i * out.grad_stride, out.stream, nullptr);
  }
}

template <class T> void rows_range(const Problem& p, const Outputs& out, int64_t lo, int64_t hi) {
  if (is_narrow(p, out)) return narrow_rows<T>(p, out, lo, hi);
  const bool by_products = wants_by_products(out), keep = keeps(p, out);
  Arithmetic<T> kept[tile];
  for (int64_t i = lo; i < hi; ++i) {
    Statistics s = {};
    if (row_weight(p, i) != 0)
      s = keep ? panel_statistics<T>(p, i, 0, p.cols, false, kept) : range_statistics<T>(p, i, 0, p.cols, by_products);
    finish_range<T>(p, out, &s, i, i + 1);
    if (!out.grad) continue;
    const T* row = static_cast<const T*>(p.logits) + i * p.stride;
    row_gradient<T>(p, i, s, row_weight(p, i), row, 0, p.cols, static_cast<T*>(out.grad) + i * out.grad_stride, out.stream,
                    i + 1 < hi ? row + p.stride : nullptr, keep ? kept : nullptr);
  }
}

template <class T>
void statistics_range(const Problem& p, int64_t lo, int64_t hi, int64_t col_lo, int64_t col_hi, bool by_products,
                      Statistics* out) {
  for (int64_t i = lo; i < hi; ++i)
    out[i - lo] = row_weight(p, i) == 0 ? nothing(distance_scale(p))
                                        : range_statistics<T>(p, i, col_lo, col_hi, by_products);
}

void merge_range(const Problem& p, Statistics* into, const Statistics* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) merge_one(distance_scale(p), into[i], from[i]);
}

// f(u, j, n, x): every tile of row i with the transformed logits that the loops read, storage or scratch.
template <class T, class F, class A = Arithmetic<T>> void each_tile(const Problem& p, int64_t i, F f) {
  const T* row = static_cast<const T*>(p.logits) + i * p.stride;
  A z[tile];
  for (int64_t col = 0; col < p.cols; col += tile) {
    const int64_t n = min_of<int64_t>(tile, p.cols - col);
    if (p.softcap) transform_tile<T>(p, row + col, n, z), f(static_cast<const A*>(z), col, n, row + col);
    else f(row + col, col, n, row + col);
  }
}

template <class T, class A = Arithmetic<T>>
void distribution_range(const Problem& p, bool logarithm, void* out, int64_t out_stride, int64_t lo, int64_t hi) {
  // Not for half precision: few ask for it with few classes, and the binary is large enough.
  if constexpr (sizeof(T) >= 4)
    if (p.cols <= narrow_cols && !p.softcap) return narrow_distribution<T>(p, logarithm, out, out_stride, lo, hi);
  const Distance<A> u(p);
  for (int64_t i = lo; i < hi; ++i) {
    const Statistics s = range_statistics<T>(p, i, 0, p.cols, false);
    const Row r = finish_row(p, s, 1.0);
    const A peak = A(s.peak), log_sum = A(r.log_sum), c = r.log_sum != r.log_sum ? A(r.log_sum) : A(1 / s.sum);
    T* to = static_cast<T*>(out) + i * out_stride;
    each_tile<T>(p, i, [&](const auto* z, int64_t col, int64_t n, const T*) {
      each_block<A>(n, [&](int64_t j, int64_t part) FORCE_INLINE {
        const Pack<A, 4> d = (read<A>(z + j, part, u.masked) - peak) * u.k;
        write(to + col + j, logarithm ? d - log_sum : exp_of(d) * c, part);
      });
    });
  }
}

template <class T, class A = Arithmetic<T>>
void product_range(const Problem& p, const void* vector, int64_t vector_stride, void* out, int64_t out_stride, int64_t lo,
                   int64_t hi) {
  const Distance<A> u(p);
  const A flat = A(p.scale / p.temperature);
  A sub[tile];
  for (int64_t i = lo; i < hi; ++i) {
    const T* v = static_cast<const T*>(vector) + i * vector_stride;
    T* to = static_cast<T*>(out) + i * out_stride;
    const double weight = row_weight(p, i);
    if (weight == 0) {
      for (int64_t j = 0; j < p.cols; ++j) narrow(A(0), to + j);
      continue;
    }
    const Statistics s = range_statistics<T>(p, i, 0, p.cols, false);
    Row r = finish_row(p, s, weight);
    const bool jacobian = p.target == Target::none;  // ∂S/∂o v: one D instead of two, and no ∂ℓ/∂u
    if (jacobian) r.mass = weight;
    const A peak = A(s.peak);
    const A inverse = s.peak == double(u.masked) ? std::numeric_limits<A>::quiet_NaN() : A(1 / s.sum);
    const auto slopes = [&](const auto& z, auto& slope, auto& curve) FORCE_INLINE {
      if (p.softcap) return cap_slopes(p, z, slope, curve);
      slope = map(z, [&](V<A>) FORCE_INLINE { return splat<A>(flat); });
      curve = map(z, [&](V<A>) FORCE_INLINE { return V<A>{}; });
    };
    double along = 0;  // S · D v
    each_tile<T>(p, i, [&](const auto* z, int64_t col, int64_t n, const T*) {
      Pack<A, 4> dots = {};
      each_block<A>(n, [&](int64_t j, int64_t part) FORCE_INLINE {
        const Pack<A, 4> x = read<A>(z + j, part, u.masked);
        Pack<A, 4> slope, curve;
        slopes(x, slope, curve);
        dots = fma(exp_of((x - peak) * u.k), slope * read<A>(v + col + j, part, A(0)), dots);
      });
      along += sum_pack(dots);
    });
    along /= s.sum;
    const A mass = A(r.mass), mean = A(along), pull = A(r.z * along);
    each_tile<T>(p, i, [&](const auto* z, int64_t col, int64_t n, const T* x0) {
      if (p.softcap && !jacobian) target_tile<T>(p, i, x0, col, n, r.soft, r.smooth, sub);
      each_block<A>(n, [&](int64_t j, int64_t part) FORCE_INLINE {
        const Pack<A, 4> x = read<A>(z + j, part, u.masked), dv = read<A>(v + col + j, part, A(0));
        Pack<A, 4> slope, curve;
        slopes(x, slope, curve);
        const Pack<A, 4> prob = exp_of((x - peak) * u.k) * inverse;
        Pack<A, 4> h = prob * ((slope * dv - mean) * mass + pull);
        if (!jacobian) h = h * slope;
        if (p.softcap && !jacobian) h = h + (prob * mass - read<A>(sub + j, part, A(0))) * (curve * dv);
        write(to + col + j, h, part);
      });
    });
  }
}

// The Jacobian product from stored probabilities: no exp.  Few classes in float32 are computed with rows in the lanes:
// sums across lanes, and loads that wait for the row before to be stored, cost four times as much there.
template <class A>
void narrow_curvature(const A* prob, int64_t prob_stride, const double* weight, A* vector, int64_t vector_stride,
                      int64_t rows, int64_t cols) {
  constexpr int64_t L = lanes<A>;
  alignas(64) A s[narrow_cols * L];
  alignas(64) A v[narrow_cols * L];
  alignas(64) A a[L];
  for (int64_t first = 0; first < rows; first += L) {
    const int64_t count = min_of(L, rows - first);
    to_columns(prob + first * prob_stride, prob_stride, count, cols, s);
    to_columns(vector + first * vector_stride, vector_stride, count, cols, v);
    for (int64_t r = 0; r < L; ++r) a[r] = weight ? A(weight[first + min_of(r, count - 1)]) : A(1);
    V<A> mean = {};
    for (int64_t j = 0; j < cols; ++j) mean = fma_of(load(s + j * L), load(v + j * L), mean);
    const V<A> h = load(a);
    for (int64_t j = 0; j < cols; ++j) store(v + j * L, (load(v + j * L) - mean) * (load(s + j * L) * h));
    from_columns(v, count, cols, vector + first * vector_stride, vector_stride);
  }
}

template <class A>
void curvature_range(const A* prob, int64_t prob_stride, const double* weight, A* vector, int64_t vector_stride,
                     int64_t rows, int64_t cols) {
  if (sizeof(A) == 4 && cols <= narrow_cols) return narrow_curvature(prob, prob_stride, weight, vector, vector_stride, rows, cols);
  constexpr int64_t L = lanes<A>;
  const int64_t whole = cols / L * L, rest = cols - whole;
  for (int64_t i = 0; i < rows; ++i, prob += prob_stride, vector += vector_stride) {
    V<A> dots = {}, s_end = {}, v_end = {};
    for (int64_t j = 0; j < whole; j += L) dots = fma_of(load(prob + j), load(vector + j), dots);
    if (rest) {
      s_end = load_part<A>(prob + whole, rest, A(0)), v_end = load_part<A>(vector + whole, rest, A(0));
      dots = fma_of(s_end, v_end, dots);
    }
    const A mean = sum_lanes<A>(dots), h = weight ? A(weight[i]) : A(1);
    for (int64_t j = 0; j < whole; j += L) store(vector + j, (load(vector + j) - mean) * (load(prob + j) * h));
    if (rest) store_part<A>(vector + whole, (v_end - mean) * (s_end * h), rest);
  }
}

// Rows of a CSR matrix times a dense one: each stored number adds a row of the dense matrix to registers.  The rows to
// come are known, those of the next row as well, and are fetched ahead: they lie anywhere in a matrix that no cache holds.
// Where rows of the dense matrix are far enough apart, their last vector is read whole: a part of a vector costs more than
// all the others.
template <int N, bool Whole, class A, class T, class I, class D>
void sparse_panel(const T* data, const I* indices, int64_t count, const I* last, const D* dense, int64_t stride,
                  int64_t width, A* to) {
  constexpr int64_t L = lanes<A>, ahead = 32, line = 64 / sizeof(D) / L;
  const int64_t rest = width - (N - 1) * L;
  V<A> sum[N] = {};
  for (int64_t j = 0; j < count; ++j) {
    const D* next = dense + *min_of(indices + j + ahead, last) * stride;
    for (int q = 0; q < N; q += int(line)) __builtin_prefetch(next + q * L);
    const D* row = dense + indices[j] * stride;
    const V<A> x = splat<A>(A(data[j]));
    for (int q = 0; q < N - !Whole; ++q) sum[q] = fma_of(x, load(row + q * L), sum[q]);
    if (!Whole) sum[N - 1] = fma_of(x, load_part<A>(row + (N - 1) * L, rest, A(0)), sum[N - 1]);
  }
  for (int q = 0; q + 1 < N; ++q) store(to + q * L, sum[q]);
  if (rest == L) store(to + (N - 1) * L, sum[N - 1]);
  else store_part<A>(to + (N - 1) * L, sum[N - 1], rest);
}

template <class A, class T, class I, class D>
void sparse_range(const T* data, const I* indices, const I* indptr, int64_t rows, const D* dense, int64_t stride,
                  int64_t cols, A* out, int64_t out_stride) {
  constexpr int64_t L = lanes<A>, most = sizeof(D) == 2 && L == 8 ? 8 : 4;
  const I* last = indices + indptr[rows] - 1;
  for (int64_t i = 0; i < rows; ++i) {
    const T* x = data + indptr[i];
    const I* at = indices + indptr[i];
    const int64_t count = indptr[i + 1] - indptr[i];
    for (int64_t col = 0; col < cols; col += most * L) {
      const int64_t width = min_of(most * L, cols - col), vectors = (width + L - 1) / L;
      A* to = out + i * out_stride + col;
      const auto run = [&](auto n) {
        constexpr int N = decltype(n)::value;
        if (sizeof(D) == 2 || width % L == 0 || col + N * L <= stride)
          sparse_panel<N, true, A, T, I, D>(x, at, count, last, dense + col, stride, width, to);
        else if constexpr (sizeof(D) != 2)
          sparse_panel<N, false, A, T, I, D>(x, at, count, last, dense + col, stride, width, to);
      };
      switch (vectors) {
        case 1: run(std::integral_constant<int, 1>{}); break;
        case 2: run(std::integral_constant<int, 2>{}); break;
        case 3: run(std::integral_constant<int, 3>{}); break;
        case 4: run(std::integral_constant<int, 4>{}); break;
        case 5: run(std::integral_constant<int, most == 8 ? 5 : 4>{}); break;
        case 6: run(std::integral_constant<int, most == 8 ? 6 : 4>{}); break;
        case 7: run(std::integral_constant<int, most == 8 ? 7 : 4>{}); break;
        default: run(std::integral_constant<int, most>{});
      }
    }
  }
}

// Whether CSR parts describe rows that lie within their arrays and within a dense matrix.
template <class I> bool sound(const I* indices, int64_t stored, const I* indptr, int64_t rows, int64_t dense_rows) {
  if (indptr[0] < 0 || indptr[rows] > stored) return false;
  bool good = true;
  for (int64_t i = 0; i < rows; ++i) good &= indptr[i] <= indptr[i + 1];
  using U = std::make_unsigned_t<I>;
  const U last = U(min_of<int64_t>(dense_rows - 1, std::numeric_limits<I>::max()));
  U outside = 0;  // its sign
  for (int64_t j = 0; j < stored; ++j) outside |= U(indices[j]) | (last - U(indices[j]));
  return good && I(outside) >= 0;
}

#include "linear.inc.cpp"

// --- storage types -------------------------------------------------------------------------------------------------

template <class F> inline void with_storage(Type type, F f) {
  switch (type) {
    case Type::f32: f(float{}); break;
    case Type::f64: f(double{}); break;
    case Type::bf16: f(Bf16{}); break;
    case Type::f16: f(F16{}); break;
  }
}

// The types of the linear layer: float32, or float64 from either.
template <class F> inline void with_types(Type arithmetic, Type storage, F f) {
  if (arithmetic == Type::f32) f(float{}, float{});
  else storage == Type::f32 ? f(double{}, float{}) : f(double{}, double{});
}

inline void fence() {
#if defined(__SSE2__)
  _mm_sfence();  // streamed stores become visible before the caller is told that the rows are done
#endif
}

extern const Kernels kernels;
const Kernels kernels = {
    SOFTGRAD_VARIANT,
    totals,
    [](const Problem& p, const Outputs& out, int64_t lo, int64_t hi) {
      with_storage(p.type, [&](auto t) { rows_range<decltype(t)>(p, out, lo, hi); });
      if (out.stream) fence();
    },
    [](const Problem& p, int64_t lo, int64_t hi, int64_t col_lo, int64_t col_hi, bool by_products, Statistics* out) {
      with_storage(p.type, [&](auto t) { statistics_range<decltype(t)>(p, lo, hi, col_lo, col_hi, by_products, out); });
    },
    merge_range,
    [](const Problem& p, const Outputs& out, const Statistics* stats, int64_t lo, int64_t hi) {
      with_storage(p.type, [&](auto t) { finish_range<decltype(t)>(p, out, stats, lo, hi); });
    },
    [](const Problem& p, const Outputs& out, const Statistics* stats, int64_t lo, int64_t hi, int64_t col_lo,
       int64_t col_hi) {
      with_storage(p.type, [&](auto t) { gradient_range<decltype(t)>(p, out, stats, lo, hi, col_lo, col_hi); });
      if (out.stream) fence();
    },
    [](const Problem& p, bool logarithm, void* out, int64_t out_stride, int64_t lo, int64_t hi) {
      with_storage(p.type, [&](auto t) { distribution_range<decltype(t)>(p, logarithm, out, out_stride, lo, hi); });
    },
    [](const Problem& p, const void* vector, int64_t vector_stride, void* out, int64_t out_stride, int64_t lo, int64_t hi) {
      with_storage(p.type, [&](auto t) { product_range<decltype(t)>(p, vector, vector_stride, out, out_stride, lo, hi); });
    },
    [](Type type, const void* prob, int64_t prob_stride, const double* weight, void* vector, int64_t vector_stride,
       int64_t rows, int64_t cols) {
      const auto run = [&](auto t) {
        using A = decltype(t);
        curvature_range<A>(static_cast<const A*>(prob), prob_stride, weight, static_cast<A*>(vector), vector_stride, rows, cols);
      };
      type == Type::f64 ? run(double{}) : run(float{});
    },
    [](Type arithmetic, Type storage, Type of_dense, const void* data, const void* indices, int64_t stored,
       const void* indptr, bool wide, int64_t rows, const void* dense, int64_t dense_rows, int64_t stride, int64_t cols,
       void* out, int64_t out_stride) {
      const auto run = [&](auto a, auto t, auto i, auto d) {
        using A = decltype(a);
        using T = decltype(t);
        using I = decltype(i);
        using D = decltype(d);
        const I* at = static_cast<const I*>(indices);
        const I* ends = static_cast<const I*>(indptr);
        if (!sound(at, stored, ends, rows, dense_rows)) return false;
        sparse_range<A, T, I, D>(static_cast<const T*>(data), at, ends, rows, static_cast<const D*>(dense), stride, cols,
                                 static_cast<A*>(out), out_stride);
        return true;
      };
      if (of_dense == Type::bf16) return run(float{}, float{}, int32_t{}, Bf16{});
      bool good = false;
      with_types(arithmetic, storage, [&](auto a, auto t) { good = wide ? run(a, t, int64_t{}, a) : run(a, t, int32_t{}, a); });
      return good;
    },
    [](const float* from, int64_t from_stride, uint16_t* to, int64_t to_stride, int64_t rows, int64_t cols) {
      for (int64_t i = 0; i < rows; ++i, from += from_stride, to += to_stride)
        for (int64_t j = 0; j < cols; ++j) {
          const uint32_t b = bits<uint32_t>(from[j]);
          to[j] = uint16_t((b + ((b & 0x7f800000u) == 0x7f800000u ? 0u : 0x8000u)) >> 16);
        }
    },
    [](Type arithmetic, Type storage, const void* x, int64_t x_stride, int64_t rows, int64_t features, const void* weight,
       int64_t weight_stride, const void* bias, int64_t cols, void* out, int64_t out_stride) {
      with_types(arithmetic, storage, [&](auto a, auto t) {
        using A = decltype(a);
        using T = decltype(t);
        scores_range<A, T>(static_cast<const T*>(x), x_stride, rows, features, static_cast<const A*>(weight), weight_stride,
                           static_cast<const A*>(bias), cols, static_cast<A*>(out), out_stride);
      });
    },
    [](Type arithmetic, Type storage, const void* g, int64_t g_stride, int64_t cols, const void* x, int64_t x_stride,
       int64_t rows, int64_t features, void* out, int64_t out_stride, double* column_sums) {
      with_types(arithmetic, storage, [&](auto a, auto t) {
        using A = decltype(a);
        using T = decltype(t);
        back_range<A, T>(static_cast<const A*>(g), g_stride, cols, static_cast<const T*>(x), x_stride, rows, features,
                         static_cast<A*>(out), out_stride, column_sums);
      });
    }};
