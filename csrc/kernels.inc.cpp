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
    sign = std::signbit(k) ? A(-1) : A(1);  // also of a k that underflows to −0
    masked = -sign * infinity<A>;
  }
  A reference(A peak) const { return peak == masked ? -sign * std::numeric_limits<A>::max() : peak; }
};

// `lane_peaks`: those of the columns by their number modulo `block`, times the sign.
template <class T, bool Unit, class A = Arithmetic<T>>
A find_peak(const T* x, int64_t n, Distance<A> u, Pack<A, 4>& lane_peaks) {
  const V<A> low = splat<A>(-infinity<A>);
  Pack<A, 4> m = {{low, low, low, low}};
  each_block<A>(n, [&](int64_t j, int64_t c) FORCE_INLINE {
    Pack<A, 4> v = read<A>(x + j, c, u.masked);
    if (!Unit) v = v * u.sign;
    for (int q = 0; q < 4; ++q) m.v[q] = max_of(v.v[q], m.v[q]);
  });
  lane_peaks = m;
  return u.sign * max_lanes<A>(max_of(max_of(m.v[0], m.v[1]), max_of(m.v[2], m.v[3])));
}

// Σ exp d without the 1 of the peak, where the whole is below 2: a loss near 0 is log1p of that.  Only the lane that holds
// the peak has lost digits to it; its columns are summed again.
template <class T, class A = Arithmetic<T>>
NEVER_INLINE double sum_beside_peak(const T* x, int64_t n, Distance<A> u, A peak, const Pack<A, 4>& lane_peaks,
                                    const Pack<A, 4>& lane_sums) {
  constexpr int64_t L = lanes<A>;
  V<A> number, where = {}, rest = {};
  for (int i = 0; i < L; ++i) number[i] = A(i);
  for (int64_t q = 0; q < 4; ++q) {
    const auto has = lane_peaks.v[q] == u.sign * peak;
    where += has ? number + A(q * L) : V<A>{};
    rest += has ? V<A>{} : lane_sums.v[q];
  }
  if (n > block<A>) {  // or nothing else is in that lane
    const int64_t lane = int64_t(sum_lanes<A>(where)) & (block<A> - 1);
    for (int64_t first = lane; first < n; first += L * block<A>) {
      V<A> v = splat<A>(u.masked);
      const int64_t count = min_of<int64_t>(L, (n - first + block<A> - 1) / block<A>);
      for (int64_t i = 0; i < count; ++i) v = number == A(i) ? splat<A>(A(widen(x[first + i * block<A>]))) : v;
      const V<A> e = exp_of(Pack<A, 1>{{(v - peak) * u.k}}).v[0];
      rest += e == A(1) ? V<A>{} : e;  // all but the peak
    }
  }
  return double(sum_lanes<A>(rest));
}

// at_peak and rest: Σ exp d.
template <class T, bool Unit, bool Moment, bool Keep = false, class A = Arithmetic<T>>
void sum_exp(const T* x, int64_t n, Distance<A> u, A peak, const Pack<A, 4>& lane_peaks, Statistics& to,
             A* kept = nullptr) {
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
  const A sum = sum_pack(s);
  to.at_peak = to.peak == double(u.masked) ? 0 : 1;
  to.rest = to.at_peak != 0 && sum < A(2) ? sum_beside_peak(x, n, u, peak, lane_peaks, s) : double(sum) - to.at_peak;
  to.moment = Moment ? double(sum_pack(e)) : std::numeric_limits<double>::quiet_NaN();
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

template <class A> void read_values(const void* data, Storage type, int64_t at, int64_t n, A* to) {
  switch (type) {
    case Storage::float32: for (int64_t j = 0; j < n; ++j) to[j] = A(static_cast<const float*>(data)[at + j]); break;
    case Storage::float64: for (int64_t j = 0; j < n; ++j) to[j] = A(static_cast<const double*>(data)[at + j]); break;
    case Storage::bfloat16: for (int64_t j = 0; j < n; ++j) to[j] = A(widen(static_cast<const Bf16*>(data)[at + j])); break;
    case Storage::float16: for (int64_t j = 0; j < n; ++j) to[j] = A(widen(static_cast<const F16*>(data)[at + j])); break;
  }
}

// One read: another thread may write labels meanwhile.  A uint64 beyond int64 is a class that no row has.
template <class L> inline int64_t label_value(const void* labels, int64_t i) {
  const L label = static_cast<const volatile L*>(labels)[i];
  if constexpr (sizeof(L) == 8 && !std::is_signed<L>::value)
    return label > uint64_t(std::numeric_limits<int64_t>::max()) ? std::numeric_limits<int64_t>::max() : int64_t(label);
  else return int64_t(label);
}
inline int64_t label_at(const Problem& p, int64_t i) {
  switch (p.label_bytes * 2 + p.label_signed) {
    case 2: return label_value<uint8_t>(p.labels, i);
    case 3: return label_value<int8_t>(p.labels, i);
    case 4: return label_value<uint16_t>(p.labels, i);
    case 5: return label_value<int16_t>(p.labels, i);
    case 8: return label_value<uint32_t>(p.labels, i);
    case 9: return label_value<int32_t>(p.labels, i);
    case 16: return label_value<uint64_t>(p.labels, i);
    default: return label_value<int64_t>(p.labels, i);
  }
}
// A label as a column of the logits, or −1 where it is ignored, not a class, or a class of another slice.
inline int64_t column_of(const Problem& p, int64_t label) {
  const uint64_t column = uint64_t(label) - uint64_t(p.first);
  return column < uint64_t(p.cols) ? int64_t(column) : -1;
}
template <class A> double class_weight(const Problem& p, int64_t j) {
  return p.class_weight ? double(static_cast<const A*>(p.class_weight)[j]) : 1.0;
}
template <class A> double value_at(const Problem& p, int64_t at) {
  A v;
  read_values<A>(p.values, p.value_storage, at, 1, &v);
  return v;
}
// Each target of row i among the columns of the logits, with its value: f(column, value).
template <class A, class F> void each_target(const Problem& p, int64_t i, F f) {
  if (p.target == TargetKind::labels)
    if (const int64_t j = column_of(p, label_at(p, i * p.label_stride)); j >= 0) f(j, 1.0);
  if (p.target == TargetKind::sparse)
    for (int64_t r = 0; r < p.width; ++r)
      if (const int64_t j = column_of(p, label_at(p, i * p.label_stride + r)); j >= 0)
        f(j, value_at<A>(p, i * p.value_stride + r));
}

// to_j = soft·w_j y_j + smooth·w_j over a tile: what the gradient subtracts, and what the loss dots with.
template <class T, class A = Arithmetic<T>>
void target_tile(const Problem& p, int64_t i, const T* x, int64_t col, int64_t n, double soft, double smooth, A* to) {
  const A* w = p.class_weight ? static_cast<const A*>(p.class_weight) + col : nullptr;
  const A a = A(soft), b = A(smooth);
  if (p.target == TargetKind::dense && soft != 0) {
    read_values<A>(p.values, p.value_storage, i * p.value_stride + col, n, to);
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
  const double sign = std::signbit(k) ? -1 : 1, masked = -sign * infinity<double>;
  const double peak = sign * max_of(sign * a.peak, sign * b.peak);
  const auto shifted = [&](Statistics s) {
    if (s.peak == masked || s.peak == peak) return s;
    const double d = (s.peak - peak) * k, scale = std::exp(d);
    if (s.smooth_mass != 0) s.smooth_dot += s.smooth_mass * d;
    if (s.target_mass != 0) s.target_dot += s.target_mass * d;
    if (s.plain_mass != 0) s.plain_dot += s.plain_mass * d;
    const double sum = s.at_peak + s.rest;
    s.moment = scale == 0 ? 0 : scale * (s.moment + sum * d);
    s.rest = scale * sum;
    s.at_peak = 0;
    return s;
  };
  const Statistics l = shifted(a), r = shifted(b);
  a.peak = peak;
  a.at_peak = l.at_peak + r.at_peak;
  a.rest = l.rest + r.rest;
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
inline double sum_of(const Statistics& s) { return s.at_peak + s.rest; }
inline double distance_scale(const Problem& p) { return p.softcap ? 1.0 : p.scale / p.temperature; }
inline double masked_peak(double k) { return (std::signbit(k) ? 1 : -1) * infinity<double>; }
inline Statistics nothing(double k) {
  Statistics s = {};
  s.peak = masked_peak(k);
  s.best = -infinity<double>;
  s.argmax = -1;
  return s;
}

// By-products that cost a loop.
struct Wanted {
  bool moment, best, rank, plain;  // plain: the target's own log-probability
};
inline bool has_rank(const Problem& p) { return p.target == TargetKind::labels && p.classes == p.cols; }
inline Wanted all_wanted(const Problem& p) { return {true, true, has_rank(p), true}; }
inline Wanted wanted(const Problem& p, const Outputs& out) {
  const bool bends = p.has_upstream && p.entropy_upstream && (out.grad || out.along || out.slope);
  return {out.entropy || bends, out.argmax != nullptr, out.rank && has_rank(p), out.log_prob != nullptr};
}

// The first column with the peak.  Only the lanes that hold it are searched, one column in `block`.
template <class T, class A = Arithmetic<T>>
int64_t first_at_peak(const T* x, int64_t n, A peak, A sign, const Pack<A, 4>& lane_peaks) {
  A lane_peak[block<A>];
  write(lane_peak, lane_peaks, block<A>);
  int64_t first = n - 1;
  for (int64_t lane = 0; lane < min_of(block<A>, n); ++lane) {
    if (lane_peak[lane] != sign * peak) continue;
    for (int64_t j = lane; j < first; j += block<A>) if (A(widen(x[j])) == peak) first = j;
  }
  return first;
}

// One tile: `x` is the storage, `z` what the loops read (the storage, or the transformed scratch).  Its arg-max matters
// where it is above `best`.
template <class T, class Z, class A = Arithmetic<T>>
Statistics tile_statistics(const Problem& p, int64_t i, const T* x, const Z* z, int64_t col, int64_t n, Wanted want,
                           double best, A* kept = nullptr) {
  const Distance<A> u(p);
  Statistics s = nothing(u.k);
  const bool unit = u.k == A(1);
  Pack<A, 4> lane_peaks;
  const A top = unit ? find_peak<Z, true>(z, n, u, lane_peaks) : find_peak<Z, false>(z, n, u, lane_peaks);
  const A peak = u.reference(top);
  s.peak = top;
  if (kept) sum_exp<Z, true, false, true>(z, n, u, peak, lane_peaks, s, kept);
  else if (want.moment) sum_exp<Z, false, true>(z, n, u, peak, lane_peaks, s);
  else if (unit) sum_exp<Z, true, false>(z, n, u, peak, lane_peaks, s);
  else sum_exp<Z, false, false>(z, n, u, peak, lane_peaks, s);

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
  if (p.target == TargetKind::dense) {
    target_tile<T>(p, i, x, col, n, 1.0, 0.0, w);
    dot_distance<Z, true>(z, w, n, u, peak, s.target_mass, s.target_dot);
    s.plain_mass = s.target_mass, s.plain_dot = s.target_dot;
    if (want.plain && p.class_weight) {
      read_values<A>(p.values, p.value_storage, i * p.value_stride + col, n, w);
      dot_distance<Z, true>(z, w, n, u, peak, s.plain_mass, s.plain_dot);
    }
  }
  const A sign = p.scale < 0 ? A(-1) : A(1);
  if (want.best) {
    Distance<A> raw(p);
    raw.sign = sign, raw.masked = -sign * infinity<A>;
    const A most = p.softcap ? find_peak<T, false>(x, n, raw, lane_peaks) : top;
    s.best = sign * most;
    if (s.best > best) s.argmax = p.first + col + first_at_peak<T>(x, n, most, sign, lane_peaks);
  }
  if (want.rank)
    if (const int64_t y = column_of(p, label_at(p, i * p.label_stride)); y >= 0)
      s.rank = count_beyond<T>(x, n, sign, A(widen((x - col)[y])));
  return s;
}

// One panel of row i, with the targets that lie in it.
template <class T, class A = Arithmetic<T>>
Statistics panel_statistics(const Problem& p, int64_t i, int64_t lo, int64_t hi, Wanted want, A* kept = nullptr) {
  const T* row = static_cast<const T*>(p.logits) + i * p.stride;
  const double k = distance_scale(p);
  Statistics s = nothing(k);
  A z[tile];
  for (int64_t col = lo; col < hi; col += tile) {
    const int64_t n = min_of<int64_t>(tile, hi - col);
    Statistics t;
    if (p.softcap) {
      transform_tile<T>(p, row + col, n, z);
      t = tile_statistics<T, A>(p, i, row + col, z, col, n, want, s.best);
    } else {
      t = tile_statistics<T, T>(p, i, row + col, row + col, col, n, want, s.best, kept);
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
Statistics range_statistics(const Problem& p, int64_t i, int64_t lo, int64_t hi, Wanted want) {
  Statistics s = panel_statistics<T>(p, i, lo, min_of<int64_t>(lo + panel, hi), want);
  for (int64_t col = lo + panel; col < hi; col += panel)
    merge_one(distance_scale(p), s, panel_statistics<T>(p, i, col, min_of<int64_t>(col + panel, hi), want));
  return s;
}

// --- from statistics to the loss and the coefficients of the gradient ----------------------------------------------

inline double row_weight(const Problem& p, int64_t i, int64_t label) {
  if (p.has_ignore && label == p.ignore_index) return 0.0;
  return p.row_weight ? p.row_weight[i] : 1.0;
}
inline double row_weight(const Problem& p, int64_t i) {
  if (!p.has_ignore || p.target != TargetKind::labels) return p.row_weight ? p.row_weight[i] : 1.0;
  return row_weight(p, i, label_at(p, i * p.label_stride));
}

// Whether nothing comes from upstream of row i: its gradient is exactly 0, whatever its logits hold.
inline bool is_silent(const Problem& p, int64_t i) {
  const auto zero = [&](const double* upstream) { return !upstream || upstream[i] == 0; };
  return p.has_upstream && zero(p.ce_upstream) && zero(p.lse_upstream) && zero(p.entropy_upstream);
}

struct Row {  // G_j = ∂ℓ/∂u_j = (mass − bend·d_j) S_j − soft·w_j y_j − smooth·w_j
  double lse, log_sum, loss;
  double mass, bend, soft, smooth;
  double z;      // 2 λ times the row's factor of the z-loss
  double total;  // Σ_j G_j
};

inline Row finish_row(const Problem& p, const Statistics& s, double weight, int64_t i) {
  const double k = distance_scale(p);
  const double others = s.rest + (s.at_peak - 1);  // Σ exp d is 1 + others
  Row r;
  // The quotient is what the rounding of the sum takes away: log1p, at half its price.
  const double sum = 1 + others, lost = others < 1 ? others / (sum - 1) : 1;
  if (s.peak == masked_peak(k)) r.log_sum = std::numeric_limits<double>::quiet_NaN();
  else r.log_sum = sum == 1 ? others : std::log(sum) * lost;
  r.lse = s.peak * k + r.log_sum;
  const double ce = weight * p.ce_factor, z = weight * p.z_factor;
  const double share = p.smoothing == 0 ? 0 : p.smoothing / (p.finite_only ? s.finite : double(p.classes));
  const double mass = (1 - p.smoothing) * s.target_mass + share * s.smooth_mass;
  double dot = 0;
  if (p.smoothing != 1) dot += (1 - p.smoothing) * s.target_dot;
  if (share != 0) dot += share * s.smooth_dot;
  r.loss = ce * (mass * r.log_sum - dot);
  r.z = r.total = r.bend = 0;
  if (p.z_loss != 0) {
    r.loss += z * p.z_loss * r.lse * r.lse;
    r.z = 2 * p.z_loss * z;
    r.total = r.z * r.lse;
  }
  double g = ce;  // of the cross-entropy
  if (p.has_upstream) {
    const auto at = [&](const double* upstream) { return upstream ? upstream[i] : 0.0; };
    g = at(p.ce_upstream), r.total = at(p.lse_upstream), r.bend = at(p.entropy_upstream);
  }
  r.mass = g * mass + r.total;
  if (r.bend != 0) r.mass += r.bend * (s.moment / sum_of(s));
  r.soft = g * (1 - p.smoothing);
  r.smooth = g * share;
  return r;
}

inline void write_outputs(const Problem& p, const Outputs& out, const Statistics& s, const Row& r, int64_t i) {
  const bool none = r.lse != r.lse;
  if (out.loss) out.loss[i] = r.loss;
  if (out.lse) out.lse[i] = r.lse;
  if (out.log_prob)
    out.log_prob[i] = p.target == TargetKind::none ? std::numeric_limits<double>::quiet_NaN()
                                               : s.plain_dot - s.plain_mass * r.log_sum;
  if (out.argmax) out.argmax[i] = none ? -1 : s.argmax;
  if (out.rank) out.rank[i] = none || !has_rank(p) ? -1 : s.rank;
  if (out.entropy) out.entropy[i] = none ? std::numeric_limits<double>::quiet_NaN() : r.log_sum - s.moment / sum_of(s);
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
// Under a softcap, with an upstream of the entropy, or with sums: G of a tile as it is defined.  g_j = G_j is multiplied by
// ∂u/∂o on its way to `to`, which may be nullptr.  x: the storage behind z.
struct Sums {
  double along, slope;
};
template <bool Sum, class T, class Z, class A = Arithmetic<T>>
Sums bent_tile(const Problem& p, const T* x, const Z* z, int64_t n, Distance<A> u, A peak, A c, A bend, A constant,
               const A* sub, T* to) {
  const V<A> lowest = splat<A>(2 * Simd<A>::exp_min);  // exp is 0 there: what −inf counts as
  const A flat = A(p.scale / p.temperature);
  Pack<A, 4> along = {}, slopes = {};
  each_block<A>(n, [&](int64_t j, int64_t count) FORCE_INLINE {
    const Pack<A, 4> v = read<A>(z + j, count, u.masked), d = (v - peak) * u.k;
    const Pack<A, 4> near = map(d, [&](V<A> w) FORCE_INLINE { return max_of(lowest, w); });
    Pack<A, 4> g = exp_of(d) * (near * -bend + c);
    g = sub ? g - read<A>(sub + j, count, A(0)) : g - constant;
    Pack<A, 4> slope, curve;
    if (p.softcap) cap_slopes(p, v, slope, curve);
    if (Sum) {
      Pack<A, 4> gd = g * d;
      for (int q = 0; q < 4; ++q) gd.v[q] = d.v[q] == -infinity<A> ? V<A>{} : gd.v[q];
      along = along + gd;
      if (p.softcap) {
        Pack<A, 4> go = g * slope * read<A>(x + j, count, A(0));
        for (int q = 0; q < 4; ++q) go.v[q] = d.v[q] == -infinity<A> ? V<A>{} : go.v[q];
        slopes = slopes + go;
      }
    }
    if (to) write(to + j, p.softcap ? g * slope : g * flat, count);
  });
  return {double(sum_pack(along)), double(sum_pack(slopes))};
}
// Whether a loss and its gradient by the logits are all there is to compute.
inline bool is_plain(const Problem& p, const Outputs& out) {
  const Wanted want = wanted(p, out);
  return !(want.moment || want.best || out.rank || want.plain || out.along || out.slope);
}
inline bool keeps(const Problem& p, const Outputs& out) {
  return out.grad && p.cols <= tile && p.target == TargetKind::labels && !p.softcap && p.scale == p.temperature &&
         !(p.smoothing != 0 && (p.class_weight || p.finite_only)) && is_plain(p, out);
}

// The gradient of columns [lo, hi) of row i, and the sums over them.
template <class T, class A = Arithmetic<T>>
void row_gradient(const Problem& p, const Outputs& out, int64_t i, const Statistics& s, double weight, int64_t lo,
                  int64_t hi, const T* ahead, const A* kept = nullptr) {
  const T* row = static_cast<const T*>(p.logits) + i * p.stride;
  T* to = out.grad ? static_cast<T*>(out.grad) + i * out.grad_stride : nullptr;
  if (weight == 0 || is_silent(p, i)) {
    for (int64_t j = lo; to && j < hi; ++j) narrow(A(0), to + j);
    if (out.along) out.along[i] = 0;
    if (out.slope) out.slope[i] = 0;
    return;
  }
  const Row r = finish_row(p, s, weight, i);
  const Distance<A> u(p);
  const A peak = A(s.peak);
  const double c = s.peak == double(u.masked) ? std::numeric_limits<double>::quiet_NaN() : r.mass / sum_of(s);
  const double k = p.softcap ? 1.0 : p.scale / p.temperature;  // du/do of a softcap comes per column
  const double bend = r.bend / sum_of(s);
  const bool sums = out.along || out.slope, bent = sums || r.bend != 0 || p.softcap;
  const bool one_by_one = p.target == TargetKind::labels && !(p.class_weight && p.smoothing != 0) && !p.softcap;
  const bool by_tile = !(one_by_one || p.target == TargetKind::none) || (p.finite_only && p.smoothing != 0) || p.softcap;
  // The single target is read before the row may be written over, and its gradient rounded once, at the end.
  int64_t y = p.target == TargetKind::labels && !by_tile ? column_of(p, label_at(p, i * p.label_stride)) : -1;
  if (y < lo || y >= hi) y = -1;
  double own = 0, own_distance = 0, own_share = 0;
  if (y >= 0) {
    const A d = (A(widen(row[y])) - peak) * u.k, e = exp_scalar<A>(d);
    own_distance = double(d), own_share = r.soft * class_weight<A>(p, y);
    own = k * (e == 0 ? c * 0 - own_share - r.smooth * class_weight<A>(p, y)
                      : double(e) * (c - bend * own_distance) - own_share - r.smooth * class_weight<A>(p, y));
  }
  if (kept) {
    gradient_kept<T>(kept, hi - lo, A(k * c), A(k * r.smooth), to, out.stream, ahead);
    if (y >= 0) narrow(A(own), to + y);
    return;
  }
  A z[tile], sub[tile];
  const double f = bent ? 1.0 : k;
  // What all columns share, Σ G times the peak, goes with the first of them; panels add up in their order.
  const bool shares = p.first + lo == 0 && r.total != 0;
  Sums total = {shares ? r.total * s.peak * distance_scale(p) : 0.0, 0.0}, part = {};
  for (int64_t col = lo; col < hi; col += tile) {
    const int64_t n = min_of<int64_t>(tile, hi - col);
    if (by_tile) target_tile<T>(p, i, row + col, col, n, f * r.soft, f * r.smooth, sub);
    const A* less = by_tile ? sub : nullptr;
    if (!bent) {
      gradient_tile<T>(row + col, n, u, peak, A(k * c), A(k * r.smooth), less, to + col, out.stream,
                       ahead ? ahead + col : nullptr);
      continue;
    }
    const auto run = [&](const auto* v) {
      using Z = std::decay_t<decltype(*v)>;
      return (sums ? bent_tile<true, T, Z> : bent_tile<false, T, Z>)(
          p, row + col, v, n, u, peak, A(c), A(bend), A(r.smooth), less, to ? to + col : nullptr);
    };
    if (p.softcap) transform_tile<T>(p, row + col, n, z);
    const Sums found = p.softcap ? run(static_cast<const A*>(z)) : run(row + col);
    part.along += found.along, part.slope += found.slope;
    if (y >= col && y < col + n && own_distance != -infinity<double>) part.along -= own_share * own_distance;
    if ((col + n - lo) % panel == 0 || col + n == hi) {
      total.along += part.along, total.slope += part.slope;
      part = {};
    }
  }
  if (y >= 0 && to) narrow(A(own), to + y);
  if (!sums) return;
  if (c != c) total.along = total.slope = c;
  if (out.along) out.along[i] = total.along;
  if (out.slope) out.slope[i] = (p.softcap ? total.slope : total.along) / p.scale;
}

// --- few classes: the lanes of a vector are rows -------------------------------------------------------------------

constexpr int64_t narrow_cols = 32;

inline bool is_narrow(const Problem& p, const Outputs& out) {
  return p.cols <= narrow_cols && p.target == TargetKind::labels && !p.softcap && p.smoothing == 0 && p.classes == p.cols &&
         is_plain(p, out);
}

// Adds exponentials to the sum of the others or, those of the peak, to their number.
template <class A> FORCE_INLINE inline void add_exp(V<A> e, V<A>& rest, I<A>& tops) {
  tops -= e == A(1);
  rest += e == A(1) ? V<A>{} : e;
}
// log(1 + others) with sum = 1 + others, or NaN.  The quotient is how much the rounding of the sum has taken away.
template <class A> inline V<A> log1p_of(V<A> others, V<A> sum) {
  alignas(64) A logs[lanes<A>];
  store(logs, sum);
  for (int64_t r = 0; r < lanes<A>; ++r) logs[r] = std::log(logs[r]);
  return sum == A(1) ? others : load(logs) * (others / (sum - A(1)));
}

template <class T, class A = Arithmetic<T>>
void narrow_rows(const Problem& p, const Outputs& out, int64_t lo, int64_t hi) {
  constexpr int64_t L = lanes<A>;
  const Distance<A> u(p);
  const int64_t cols = p.cols;
  const bool told = p.has_upstream;
  const A ce = A(p.ce_factor), z = A(p.z_loss * p.z_factor), none = std::numeric_limits<A>::quiet_NaN();
  alignas(64) A x[narrow_cols * L];  // columns
  alignas(64) A weight[L], open[L], own[L], own_exp[L], loss[L], lse[L], target[L];
  alignas(64) A class_share[L], by_ce[L], by_lse[L], told_live[L];
  const A* const live = told ? told_live : open;
  const bool weighs = p.has_ignore || p.row_weight;
  store(class_share, splat<A>(1)), store(weight, splat<A>(1)), store(open, splat<A>(1));
  int64_t label[L];
  for (int64_t first = lo; first < hi; first += L) {
    const int64_t count = min_of(L, hi - first);  // the last block repeats its last row
    to_columns(static_cast<const T*>(p.logits) + first * p.stride, p.stride, count, cols, x);
    for (int64_t r = 0; r < L; ++r) {
      const int64_t i = first + min_of(r, count - 1);
      const int64_t y = label_at(p, i * p.label_stride);
      if (weighs) {
        const double a = row_weight(p, i, y);
        weight[r] = A(a), open[r] = A(a != 0);
      }
      label[r] = uint64_t(y) < uint64_t(cols) ? y : 0;  // 0 also for an ignored row, of which nothing is used
      own[r] = x[label[r] * L + r];
    }
    for (int64_t r = 0; p.class_weight && r < L; ++r) class_share[r] = static_cast<const A*>(p.class_weight)[label[r]];
    for (int64_t r = 0; told && r < L; ++r) {
      const int64_t i = first + min_of(r, count - 1);
      by_ce[r] = p.ce_upstream ? A(p.ce_upstream[i]) : A(0);
      by_lse[r] = p.lse_upstream ? A(p.lse_upstream[i]) : A(0);
      told_live[r] = is_silent(p, i) ? A(0) : open[r];
    }
    V<A> peak = splat<A>(-infinity<A>), rest = {};
    I<A> tops = {};
    for (int64_t j = 0; j < cols; ++j) peak = max_of(load(x + j * L) * u.sign, peak);
    peak *= u.sign;
    each_block<A>(cols * L, [&](int64_t j, int64_t c) FORCE_INLINE {
      const Pack<A, 4> d = map(read<A>(x + j, c, u.masked), [&](V<A> v) FORCE_INLINE { return (v - peak) * u.k; });
      const Pack<A, 4> e = exp_of(d);
      write(x + j, e, c);
      for (int q = 0; q < 4; ++q) add_exp<A>(q * L < c ? e.v[q] : V<A>{}, rest, tops);
    });
    const V<A> others = rest + __builtin_convertvector(tops - 1, V<A>);
    const V<A> sum = peak == u.masked ? splat<A>(none) : others + A(1), log_sum = log1p_of<A>(others, sum);
    for (int64_t r = 0; r < L; ++r) own_exp[r] = x[label[r] * L + r];
    const V<A> a = load(weight), kept = load(open), y = load(own), all = peak * u.k + log_sum;
    const V<A> loss_share = a * ce * load(class_share), share = told ? load(by_ce) * load(class_share) : loss_share;
    const V<A> d = y == u.masked ? splat<A>(-infinity<A>) : (y - peak) * u.k;
    V<A> l = loss_share * (loss_share == A(0) ? log_sum : log_sum - d), mass = share;
    if (p.z_loss != 0) l += a * z * all * all;
    if (told) mass += load(by_lse);
    else if (p.z_loss != 0) mass += A(2) * a * z * all;
    const V<A> scale = u.k * mass / sum, nothing = V<A>{};
    store(loss, kept == A(0) ? nothing : l);
    store(lse, kept == A(0) ? splat<A>(none) : all);
    store(target, load(live) == A(0) ? nothing : scale * load(own_exp) - u.k * share);
    if (out.loss) for (int64_t r = 0; r < count; ++r) out.loss[first + r] = loss[r];
    if (out.lse) for (int64_t r = 0; r < count; ++r) out.lse[first + r] = lse[r];
    if (!out.grad) continue;
    for (int64_t j = 0; j < cols; ++j) store(x + j * L, load(live) == A(0) ? nothing : load(x + j * L) * scale);
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
  for (int64_t first = lo; first < hi; first += L) {
    const int64_t count = min_of(L, hi - first);
    to_columns(static_cast<const T*>(p.logits) + first * p.stride, p.stride, count, p.cols, x);
    V<A> peak = splat<A>(-infinity<A>), rest = {};
    I<A> tops = {};
    for (int64_t j = 0; j < p.cols; ++j) peak = max_of(load(x + j * L) * u.sign, peak);
    peak *= u.sign;
    each_block<A>(p.cols * L, [&](int64_t j, int64_t c) FORCE_INLINE {
      const Pack<A, 4> d = map(read<A>(x + j, c, u.masked), [&](V<A> v) FORCE_INLINE { return (v - peak) * u.k; });
      const Pack<A, 4> e = exp_of(d);
      write(x + j, logarithm ? d : e, c);
      for (int q = 0; q < 4; ++q) add_exp<A>(q * L < c ? e.v[q] : V<A>{}, rest, tops);
    });
    const V<A> others = rest + __builtin_convertvector(tops - 1, V<A>);
    const V<A> sum = peak == u.masked ? splat<A>(std::numeric_limits<A>::quiet_NaN()) : others + A(1);
    if (logarithm) {
      const V<A> log_sum = log1p_of<A>(others, sum);
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
  const bool plain = !p.class_weight && !p.row_weight && p.label_stride == 1 && p.target == TargetKind::labels;
  // Compared in the labels' own type: no value of another width or sign is mistaken for ignore_index.
  const L ignored = L(p.ignore_index);
  const bool ignores = p.has_ignore && int64_t(ignored) == p.ignore_index && (ignored < 0) == (p.ignore_index < 0);
  Totals t = {-1, 0, 0, 0};
  constexpr int64_t block = 4096;
  for (int64_t lo = 0; lo < p.rows; lo += block) {
    const int64_t hi = min_of(lo + block, p.rows);
    if (plain) {  // without branches, so that it runs at the speed of memory
      int64_t skipped = 0, wrong = 0;
      for (int64_t i = lo; i < hi; ++i) {
        const bool skip = ignores && labels[i] == ignored;
        skipped += skip;
        wrong += !skip && uint64_t(int64_t(labels[i])) >= uint64_t(p.classes);
      }
      if (!wrong) {
        t.kept += hi - lo - skipped;
        continue;
      }
    }
    for (int64_t i = lo; i < hi; ++i) {
      const double a = p.row_weight ? p.row_weight[i] : 1.0;
      double w = 1.0;
      if (p.target == TargetKind::labels) {
        const L label = static_cast<const volatile L*>(labels)[i * p.label_stride];
        if (ignores && label == ignored) continue;
        if (uint64_t(int64_t(label)) >= uint64_t(p.classes)) return {i, 0, 0, 0};
        const int64_t y = column_of(p, int64_t(label));
        if (y >= 0) w = p.storage == Storage::float64 ? class_weight<double>(p, y) : class_weight<float>(p, y);
      } else {
        for (int64_t r = 0; r < p.width; ++r) {
          const L y = labels[i * p.label_stride + r];
          if (!(std::is_signed<L>::value && y == L(-1)) && uint64_t(int64_t(y)) >= uint64_t(p.classes)) return {i, 0, 0, 0};
        }
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
  if (p.target == TargetKind::none || p.target == TargetKind::dense) {
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
    case 16: return label_totals<uint64_t>(p);
    default: return label_totals<int64_t>(p);
  }
}

// --- the kernels over a row range ----------------------------------------------------------------------------------

template <class T> void finish_range(const Problem& p, const Outputs& out, const Statistics* stats, int64_t lo, int64_t hi) {
  for (int64_t i = lo; i < hi; ++i) {
    const double weight = row_weight(p, i);
    if (weight == 0) write_ignored(out, i);
    else write_outputs(p, out, stats[i - lo], finish_row(p, stats[i - lo], weight, i), i);
  }
}

template <class T>
void gradient_range(const Problem& p, const Outputs& out, const Statistics* stats, int64_t lo, int64_t hi, int64_t col_lo,
                    int64_t col_hi) {
  for (int64_t i = lo; i < hi; ++i)
    row_gradient<T>(p, out, i, stats[i - lo], row_weight(p, i), col_lo, col_hi, nullptr);
}

template <class T> void rows_range(const Problem& p, const Outputs& out, int64_t lo, int64_t hi) {
  if (is_narrow(p, out)) return narrow_rows<T>(p, out, lo, hi);
  const Wanted want = wanted(p, out);
  const bool keep = keeps(p, out);
  Arithmetic<T> kept[tile];
  for (int64_t i = lo; i < hi; ++i) {
    Statistics s = {};
    if (row_weight(p, i) != 0)
      s = keep ? panel_statistics<T>(p, i, 0, p.cols, want, kept) : range_statistics<T>(p, i, 0, p.cols, want);
    finish_range<T>(p, out, &s, i, i + 1);
    if (!out.grad && !out.along && !out.slope) continue;
    const T* ahead = i + 1 < hi ? static_cast<const T*>(p.logits) + (i + 1) * p.stride : nullptr;
    row_gradient<T>(p, out, i, s, row_weight(p, i), 0, p.cols, ahead, keep ? kept : nullptr);
  }
}

template <class T>
void statistics_range(const Problem& p, int64_t lo, int64_t hi, int64_t col_lo, int64_t col_hi, bool by_products,
                      Statistics* out) {
  const Wanted want = by_products ? all_wanted(p) : Wanted{};
  for (int64_t i = lo; i < hi; ++i)
    out[i - lo] = row_weight(p, i) == 0 ? nothing(distance_scale(p)) : range_statistics<T>(p, i, col_lo, col_hi, want);
}

void merge_range(const Problem& p, Statistics* into, const Statistics* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) merge_one(distance_scale(p), into[i], from[i]);
}

// f(u, j, n, x): every tile of columns [lo, hi) of row i with the transformed logits that the loops read, storage or
// scratch.
template <class T, class F, class A = Arithmetic<T>>
void each_tile(const Problem& p, int64_t i, int64_t lo, int64_t hi, F f) {
  const T* row = static_cast<const T*>(p.logits) + i * p.stride;
  A z[tile];
  for (int64_t col = lo; col < hi; col += tile) {
    const int64_t n = min_of<int64_t>(tile, hi - col);
    if (p.softcap) transform_tile<T>(p, row + col, n, z), f(static_cast<const A*>(z), col, n, row + col);
    else f(row + col, col, n, row + col);
  }
}

template <class T, class A = Arithmetic<T>>
void distribution_range(const Problem& p, bool logarithm, void* out, int64_t out_stride, const Statistics* stats, int64_t lo,
                        int64_t hi, int64_t col_lo, int64_t col_hi) {
  // Not for half precision: few ask for it with few classes, and the binary is large enough.
  if constexpr (sizeof(T) >= 4)
    if (p.cols <= narrow_cols && !p.softcap && !stats) return narrow_distribution<T>(p, logarithm, out, out_stride, lo, hi);
  const Distance<A> u(p);
  for (int64_t i = lo; i < hi; ++i) {
    const Statistics s = stats ? stats[i - lo] : range_statistics<T>(p, i, 0, p.cols, {});
    const Row r = finish_row(p, s, 1.0, i);
    const A peak = A(s.peak), log_sum = A(r.log_sum), c = r.log_sum != r.log_sum ? A(r.log_sum) : A(1 / sum_of(s));
    T* to = static_cast<T*>(out) + i * out_stride;
    each_tile<T>(p, i, col_lo, col_hi, [&](const auto* z, int64_t col, int64_t n, const T*) {
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
    const Statistics s = range_statistics<T>(p, i, 0, p.cols, {});
    Row r = finish_row(p, s, weight, i);
    const bool jacobian = p.target == TargetKind::none;  // ∂S/∂o v: one D instead of two, and no ∂ℓ/∂u
    if (jacobian) r.mass = weight;
    const A peak = A(s.peak);
    const A inverse = s.peak == double(u.masked) ? std::numeric_limits<A>::quiet_NaN() : A(1 / sum_of(s));
    const auto slopes = [&](const auto& z, auto& slope, auto& curve) FORCE_INLINE {
      if (p.softcap) return cap_slopes(p, z, slope, curve);
      slope = map(z, [&](V<A>) FORCE_INLINE { return splat<A>(flat); });
      curve = map(z, [&](V<A>) FORCE_INLINE { return V<A>{}; });
    };
    double along = 0;  // S · D v
    each_tile<T>(p, i, 0, p.cols, [&](const auto* z, int64_t col, int64_t n, const T*) {
      Pack<A, 4> dots = {};
      each_block<A>(n, [&](int64_t j, int64_t part) FORCE_INLINE {
        const Pack<A, 4> x = read<A>(z + j, part, u.masked);
        Pack<A, 4> slope, curve;
        slopes(x, slope, curve);
        dots = fma(exp_of((x - peak) * u.k), slope * read<A>(v + col + j, part, A(0)), dots);
      });
      along += sum_pack(dots);
    });
    along /= sum_of(s);
    const A mass = A(r.mass), mean = A(along), pull = A(r.z * along);
    each_tile<T>(p, i, 0, p.cols, [&](const auto* z, int64_t col, int64_t n, const T* x0) {
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
// Where the dense matrix has columns to spare, its last vector is read whole: a part of a vector costs more than all the
// others.
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
                  int64_t readable, int64_t cols, A* out, int64_t out_stride) {
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
        if (sizeof(D) == 2 || width % L == 0 || col + N * L <= readable)
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

template <class F> inline void with_storage(Storage type, F f) {
  switch (type) {
    case Storage::float32: f(float{}); break;
    case Storage::float64: f(double{}); break;
    case Storage::bfloat16: f(Bf16{}); break;
    case Storage::float16: f(F16{}); break;
  }
}

// The types of the linear layer: float32, or float64 from either.
template <class F> inline void with_types(Storage arithmetic, Storage storage, F f) {
  if (arithmetic == Storage::float32) f(float{}, float{});
  else storage == Storage::float32 ? f(double{}, float{}) : f(double{}, double{});
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
      with_storage(p.storage, [&](auto t) { rows_range<decltype(t)>(p, out, lo, hi); });
      if (out.stream) fence();
    },
    [](const Problem& p, int64_t lo, int64_t hi, int64_t col_lo, int64_t col_hi, bool by_products, Statistics* out) {
      with_storage(p.storage, [&](auto t) { statistics_range<decltype(t)>(p, lo, hi, col_lo, col_hi, by_products, out); });
    },
    merge_range,
    [](const Problem& p, const Outputs& out, const Statistics* stats, int64_t lo, int64_t hi) {
      with_storage(p.storage, [&](auto t) { finish_range<decltype(t)>(p, out, stats, lo, hi); });
    },
    [](const Problem& p, const Outputs& out, const Statistics* stats, int64_t lo, int64_t hi, int64_t col_lo,
       int64_t col_hi) {
      with_storage(p.storage, [&](auto t) { gradient_range<decltype(t)>(p, out, stats, lo, hi, col_lo, col_hi); });
      if (out.stream) fence();
    },
    [](const Problem& p, bool logarithm, void* out, int64_t out_stride, const Statistics* stats, int64_t lo, int64_t hi,
       int64_t col_lo, int64_t col_hi) {
      with_storage(p.storage, [&](auto t) {
        distribution_range<decltype(t)>(p, logarithm, out, out_stride, stats, lo, hi, col_lo, col_hi);
      });
    },
    [](const Problem& p, const void* vector, int64_t vector_stride, void* out, int64_t out_stride, int64_t lo, int64_t hi) {
      with_storage(p.storage, [&](auto t) { product_range<decltype(t)>(p, vector, vector_stride, out, out_stride, lo, hi); });
    },
    [](Storage type, const void* prob, int64_t prob_stride, const double* weight, void* vector, int64_t vector_stride,
       int64_t rows, int64_t cols) {
      const auto run = [&](auto t) {
        using A = decltype(t);
        curvature_range<A>(static_cast<const A*>(prob), prob_stride, weight, static_cast<A*>(vector), vector_stride, rows, cols);
      };
      type == Storage::float64 ? run(double{}) : run(float{});
    },
    [](Storage arithmetic, Storage storage, Storage of_dense, const void* data, const void* indices, int64_t stored,
       const void* indptr, bool wide, int64_t rows, const void* dense, int64_t dense_rows, int64_t stride,
       int64_t readable, int64_t cols, void* out, int64_t out_stride) {
      const auto run = [&](auto a, auto t, auto i, auto d) {
        using A = decltype(a);
        using T = decltype(t);
        using I = decltype(i);
        using D = decltype(d);
        const I* at = static_cast<const I*>(indices);
        const I* ends = static_cast<const I*>(indptr);
        if (!sound(at, stored, ends, rows, dense_rows)) return false;
        sparse_range<A, T, I, D>(static_cast<const T*>(data), at, ends, rows, static_cast<const D*>(dense), stride, readable, cols,
                                 static_cast<A*>(out), out_stride);
        return true;
      };
      if (of_dense == Storage::bfloat16) return run(float{}, float{}, int32_t{}, Bf16{});
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
    [](Storage arithmetic, Storage storage, const void* x, int64_t x_stride, int64_t rows, int64_t features, const void* weight,
       int64_t weight_stride, const void* bias, int64_t cols, void* out, int64_t out_stride) {
      with_types(arithmetic, storage, [&](auto a, auto t) {
        using A = decltype(a);
        using T = decltype(t);
        scores_range<A, T>(static_cast<const T*>(x), x_stride, rows, features, static_cast<const A*>(weight), weight_stride,
                           static_cast<const A*>(bias), cols, static_cast<A*>(out), out_stride);
      });
    },
    [](Storage arithmetic, Storage storage, const void* g, int64_t g_stride, int64_t cols, const void* x, int64_t x_stride,
       int64_t rows, int64_t features, void* out, int64_t out_stride, double* column_sums) {
      with_types(arithmetic, storage, [&](auto a, auto t) {
        using A = decltype(a);
        using T = decltype(t);
        back_range<A, T>(static_cast<const A*>(g), g_stride, cols, static_cast<const T*>(x), x_stride, rows, features,
                         static_cast<A*>(out), out_stride, column_sums);
      });
    }};
