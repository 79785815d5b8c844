// The numbers: softmax, cross-entropy, gradient, curvature and training, stable for logits of any size.

const sum = (a) => a.reduce((x, y) => x + y, 0);
const largest = (a) => a.reduce((x, y) => Math.max(x, y), -Infinity);
const argmax = (a) => a.reduce((best, x, k) => (x > a[best] ? k : best), 0);

function softmax(o) {
  const m = largest(o);
  const e = o.map((x) => Math.exp(x - m));
  const s = sum(e);
  return e.map((x) => x / s);
}

// log Σ exp(o − m) − (o − m), so that nothing of the size of the logits is subtracted after the sum.
function loss(o, y) {
  const m = largest(o);
  const s = Math.log(sum(o.map((x) => Math.exp(x - m))));
  return sum(o.map((x, k) => (y[k] ? y[k] * (s - (x - m)) : 0 * s)));
}

// A state's numbers: logits z, target t (a class or a distribution), smoothing e, temperature T.
function head({ z, t, e, T }) {
  const V = z.length;
  const h = Array.isArray(t) ? t.map((x) => x / sum(t)) : z.map((_, k) => Number(k === t));
  const y = h.map((x) => (1 - e) * x + e / V);
  const o = z.map((x) => x / T);
  const S = softmax(o);
  const G = S.map((x, k) => x - y[k]);
  const J = S.map((x, i) => S.map((u, j) => x * ((i === j) - u)));
  return { V, h, y, o, S, G, J, L: loss(o, y) };
}

function hessianProduct({ S }, v) {
  const along = sum(S.map((x, k) => x * v[k]));
  return S.map((x, k) => x * v[k] - x * along);
}

// Central differences of the loss against S − y.  The step balances the curvature of the loss, which does not grow with
// the logits, against the digits that the logits and the loss have: ∛(ε·size).
function finiteDifferences({ o, y, G, L }) {
  const size = Math.max(1, L, ...o.filter(Number.isFinite).map(Math.abs));
  if (!Number.isFinite(L)) return { state: "undefined", error: NaN };
  const step = Math.cbrt(2 ** -52 * size);
  const error = largest(
    o.map((x, j) => {
      if (x === -Infinity) return Math.abs(G[j]); // no step leads away from −∞
      const [up, down] = [x + step, x - step];
      const at = (moved) => loss(o.map((u, k) => (k === j ? moved : u)), y);
      return Math.abs((at(up) - at(down)) / (up - down) - G[j]);
    }),
  );
  return { state: size > 1e8 ? "rounding" : error < 1e-5 ? "ok" : "wrong", error };
}

// A linear model A, c of two features and three classes: its probabilities, mean loss, gradients and accuracy.
const outputs = ({ A, c }, [x1, x2]) => softmax(A.map(([a, b], k) => a * x1 + b * x2 + c[k]));
const untrained = () => ({ A: [[0, 0], [0, 0], [0, 0]], c: [0, 0, 0] });

function lesson(model, points) {
  const dA = untrained().A, dc = [0, 0, 0];
  let total = 0, right = 0;
  for (const [x1, x2, label] of points) {
    const o = model.A.map(([a, b], k) => a * x1 + b * x2 + model.c[k]);
    const S = softmax(o);
    total += loss(o, S.map((_, k) => Number(k === label)));
    right += argmax(S) === label;
    S.forEach((p, k) => {
      const error = (p - (k === label)) / points.length; // (S − y) xᵀ, averaged
      dA[k][0] += error * x1;
      dA[k][1] += error * x2;
      dc[k] += error;
    });
  }
  return { loss: total / points.length, dA, dc, right };
}

const descended = ({ A, c }, { dA, dc }, rate) => ({
  A: A.map((line, i) => line.map((w, p) => w - rate * dA[i][p])),
  c: c.map((w, i) => w - rate * dc[i]),
});

// Everything the derivation speaks of, for the reader's numbers: a small model that gives just these logits.
function scopeOf(state, { points, constants }) {
  const { V, h, o } = head(state);
  const x = [1, 0.5];
  const first = argmax(h);
  const others = state.z.map((_, k) => (first + 1 + k) % V).slice(0, -1);
  const other = others.find((k) => Number.isFinite(state.z[k])) ?? others[0];
  const masked = (k) => !Number.isFinite(o[k]);
  const b = o.map((u, k) => (masked(k) ? u : (k - 1) / 4));
  const second = o.map((_, k) => ((-1) ** k * (1 + k)) / 4);
  const values = {
    z: state.z, h, x, b, "τ": state.T, "ε": state.e, "η": constants.learning_rate, "λ": constants.z_loss,
    W: o.map((u, k) => [masked(k) ? 1 : u - b[k] - second[k] * x[1], second[k]]),
    w: o.map((_, k) => 1 + 0.5 * (k % 3)),
    r: o.map((_, k) => (k === first ? 1 : k === other ? 0.5 : 0)),
    X: points.map((p) => p.slice(0, 2)), Y: points.map((p) => [0, 1, 2].map((k) => Number(k === p[2]))),
    A: untrained().A, c: untrained().c,
  };
  return { scope: new Scope(values, { V, D: 2, N: points.length, K: 3 }), first, other };
}
// The reader's numbers, the address that holds them, and the language.

const DATA = JSON.parse(document.getElementById("data").textContent);
Scope.definitions = DATA.definitions;
Object.assign(RANGES, DATA.ranges);
const LANGUAGES = ["en", "zh"];
const $ = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

const word = (key, ...values) =>
  values.reduce((text, value, k) => text.replaceAll(`{${k}}`, () => value), DATA.words[key][LANGUAGES.indexOf(state.lang)]);

// "1.5", "1e4", "-inf", "−∞"; NaN for anything else.
function readNumber(text) {
  const t = text.trim().replaceAll("−", "-").replace("∞", "inf").toLowerCase();
  if (/^-inf(inity)?$/.test(t)) return -Infinity;
  const x = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/.test(t) ? Number(t) : NaN;
  return Number.isFinite(x) ? x : NaN;
}
const writeNumber = (x) => (x === -Infinity ? "-inf" : String(x));

// The state that a fragment asks for, what it leaves out being as in `base`, and the parts that were not understood.
function readFragment(fragment, base) {
  const result = { ...base }, refused = [];
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const take = (key, read) => {
    if (!given.has(key)) return;
    const value = read(given.get(key));
    if (value === undefined) refused.push(`${key}=${given.get(key)}`.slice(0, 80));
    else result[key] = value;
  };
  const list = (text) => text.split(",").map(readNumber);
  const between = (low, high) => (text) => {
    const x = readNumber(text);
    return x >= low && x <= high ? x : undefined;
  };
  const index = (text) => (/^\d$/.test(text) && Number(text) < result.z.length ? Number(text) : undefined);
  take("z", (text) => {
    const z = list(text);
    return z.length >= 2 && z.length <= 10 && !z.some(Number.isNaN) ? z : undefined;
  });
  take("t", (text) => {
    if (!text.includes(",")) return index(text);
    const t = list(text);
    return t.length === result.z.length && t.every((x) => x >= 0) && Math.abs(sum(t) - 1) < 1e-6 ? t : undefined;
  });
  take("e", between(0, 1));
  take("T", between(0.01, 100));
  take("i", index);
  take("j", index);
  take("lang", (text) => (LANGUAGES.includes(text) ? text : undefined));
  return [fitting(result), refused];
}

// The target and the pair shown are among the classes.
function fitting(s) {
  const V = s.z.length;
  const t = Array.isArray(s.t) ? (s.t.length === V ? s.t : 0) : s.t < V ? s.t : 0;
  const { first, other } = scopeOf({ ...s, t }, DATA);
  return { ...s, t, i: s.i < V ? s.i : first, j: s.j < V ? s.j : other };
}

const writeFragment = (s) =>
  `#z=${s.z.map(writeNumber)}&t=${s.t}&e=${s.e}&T=${s.T}&i=${s.i}&j=${s.j}&lang=${s.lang}`;

let state;
const views = []; // functions that show the state
let frame, writing;

function render() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(draw);
}
function draw() {
  const numbers = head(state);
  for (const view of views) view(numbers);
}

function set(change) {
  const before = state;
  state = fitting({ ...state, ...change });
  if (before.lang !== state.lang) translate();
  render();
  clearTimeout(writing);
  writing = setTimeout(() => history.replaceState(null, "", writeFragment(state)), 250);
}

function translate() {
  document.documentElement.lang = state.lang;
  document.title = word("title");
  for (const node of all("[data-t]")) node.textContent = word(node.dataset.t);
  for (const node of all("[data-l]")) node.setAttribute("aria-label", word(node.dataset.l));
  for (const node of all("[data-lang]")) node.setAttribute("aria-pressed", node.dataset.lang === state.lang);
  views.forEach((view) => view.translate?.());
}

function complain(text) {
  $("mistake").textContent = text;
  $("mistake").hidden = !text;
  if (text) $("controls").open = true;
}

const START = { ...DATA.start, z: DATA.start.z.map((x) => readNumber(String(x))) };

function readAddress() {
  if (location.hash && !location.hash.includes("=")) return; // a place on the page
  const [next, refused] = readFragment(location.hash, { i: 10, j: 10, ...START });
  state = next;
  translate();
  complain(refused.map((part) => word("bad-link", part)).join(" "));
  render();
}
