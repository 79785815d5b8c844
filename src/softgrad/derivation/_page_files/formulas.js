// Formulas: the trees of _formula.py computed, shown and filled with numbers, as _evaluate.py, _notation.py and
// _substitute.py do it, in doubles.  Derivatives are dual numbers: a value and how it changes with one variable.

class Dual {
  constructor(value, slope, of) {
    Object.assign(this, { value, slope, of });
  }
}

let variables = 0;
const SMALLEST = 2.3e-308; // below it a double loses digits

// What the last computation ran into: `range`, a number too large or too small for a double; `largest`, the largest summand.
let trouble = { range: false, largest: 0 };
const lost = (result) => {
  trouble.range = true;
  return result;
};
const fits = (x) => x !== 0 && Number.isFinite(x);
const checked = (result, ...from) =>
  from.every(fits) && !(Math.abs(result) >= SMALLEST && Math.abs(result) < Infinity) ? lost(result) : result;

const isPlain = (...all) => all.every((x) => typeof x === "number");
const plain = (x) => (isPlain(x) ? x : plain(x.value));

// The later of the variables of two numbers, and both numbers' values and slopes by it.
function pair(a, b) {
  const of = Math.max(a.of ?? 0, b.of ?? 0);
  const parts = (x) => (x.of === of ? [x.value, x.slope] : [x, 0]);
  return [of, ...parts(a), ...parts(b)];
}

function add(a, b) {
  if (isPlain(a, b)) {
    for (const x of [a, b]) if (Number.isFinite(x)) trouble.largest = Math.max(trouble.largest, Math.abs(x));
    return a + b;
  }
  const [of, x, dx, y, dy] = pair(a, b);
  return new Dual(add(x, y), add(dx, dy), of);
}
const negative = (a) => (isPlain(a) ? -a : new Dual(negative(a.value), negative(a.slope), a.of));
const minus = (a, b) => add(a, negative(b));

// 0·∞ counts as 0: a class that cannot be right costs nothing.
function times(a, b) {
  if (isPlain(a, b)) return a === 0 || b === 0 ? 0 : checked(a * b, a, b);
  const [of, x, dx, y, dy] = pair(a, b);
  return new Dual(times(x, y), add(times(dx, y), times(x, dy)), of);
}

// 0 above the line is 0, unless the 0 below it is what is left of a number too small for a double.
function over(a, b) {
  if (isPlain(a, b)) return a === 0 ? (b === 0 && trouble.range ? NaN : 0) : checked(a / b, a, b);
  const [of, x, dx, y, dy] = pair(a, b);
  const quotient = over(x, y);
  return new Dual(quotient, over(minus(dx, times(quotient, dy)), y), of);
}

function exp(a) {
  if (isPlain(a)) return Number.isFinite(a) ? checked(Math.exp(a), 1) : Math.exp(a);
  const result = exp(a.value);
  return new Dual(result, times(result, a.slope), a.of);
}

function log(a) {
  if (isPlain(a)) return Math.log(a);
  return new Dual(log(a.value), plain(a) === 0 ? NaN : over(a.slope, a.value), a.of); // at 0 it has no derivative
}

// An operation on all elements of vectors and matrices.
function each(f, a, b) {
  if (Array.isArray(a)) return a.map((x, k) => each(f, x, Array.isArray(b) ? b[k] : b));
  return Array.isArray(b) ? b.map((x) => each(f, a, x)) : f(a, b);
}
const dot = (a, b) => a.reduce((sum, x, k) => add(sum, times(x, b[k])), 0);
const isMatrix = (a) => Array.isArray(a[0]);
const transpose = (a) => (isMatrix(a) ? a[0].map((_, k) => a.map((row) => row[k])) : a);

function matmul(a, b, outer) {
  if (outer) return a.map((x) => b.map((y) => times(x, y))); // a column times a row
  const rows = isMatrix(a) ? a : [a];
  const result = rows.map((row) => (isMatrix(b) ? transpose(b).map((column) => dot(row, column)) : dot(row, b)));
  return isMatrix(a) ? result : result[0];
}

const RANGES = {}; // what an index runs over
const parts = (node) => node.slice(1).filter(Array.isArray);
const namesIn = (node) => [...(["name", "at"].includes(node[0]) ? [node[1]] : []), ...parts(node).flatMap(namesIn)];

function freeIndices(node) {
  const find = ([op, ...args]) => {
    if (op === "name") return args[0] in RANGES ? args : [];
    const inner = args.filter(Array.isArray).flatMap(find);
    return ["sum", "max", "argmax"].includes(op) ? inner.filter((name) => name !== args[0]) : inner;
  };
  const found = find(node);
  return Object.keys(RANGES).filter((name) => found.includes(name));
}

// Names, what they are worth, and what that ran into; what is given hides its definition.
class Scope {
  static definitions = {}; // name → [indices, tree]

  constructor(values, sizes, troubles = {}) {
    Object.assign(this, { values, sizes, troubles });
  }

  // The names whose value changes with this one.
  static users(name) {
    const reached = new Set();
    const reach = (from) => {
      for (const [user, [, tree]] of Object.entries(Scope.definitions))
        if (!reached.has(user) && namesIn(tree).includes(from)) reach(reached.add(user) && user);
    };
    reach(name);
    return reached;
  }

  size(index) {
    return this.sizes[RANGES[index]];
  }

  named(name) {
    const outer = trouble;
    if (!(name in this.values)) {
      trouble = { range: false, largest: 0 };
      const [indices, tree] = Scope.definitions[name];
      const fill = (rest, at) =>
        rest.length ? this.all(rest[0], (k) => fill(rest.slice(1), { ...at, [rest[0]]: k })) : this.value(tree, at);
      this.values[name] = fill([...indices], {});
      this.troubles[name] = trouble;
    }
    const { range, largest } = this.troubles[name] ?? outer;
    trouble = { range: range || outer.range, largest: Math.max(largest, outer.largest) };
    return this.values[name];
  }

  // The derivative by one element: it becomes a variable, and what depends on it is computed anew.
  slope(part, at, name, place) {
    const old = this.named(name);
    const users = (Scope.cache[name] ??= Scope.users(name));
    const values = Object.fromEntries(Object.entries(this.values).filter(([other]) => !users.has(other)));
    const put = (a, [k, ...rest]) =>
      k === undefined ? new Dual(a, 1, ++variables) : a.map((x, l) => (l === k ? put(x, rest) : x));
    values[name] = put(old, place);
    const of = variables;
    const result = new Scope(values, this.sizes, { ...this.troubles }).value(part, at);
    return Number.isNaN(plain(result)) ? NaN : result.of === of ? result.slope : 0;
  }

  all(index, f) {
    return Array.from({ length: this.size(index) }, (_, k) => f(k));
  }

  place(nodes, at) {
    return nodes.map(([op, text]) => (op === "name" ? at[text] : Number(text)));
  }

  value(node, at = {}) {
    const [op, a, b, c] = node;
    const v = (part) => this.value(part, at);
    const over_ = (body) => this.all(a, (k) => this.value(body, { ...at, [a]: k }));
    switch (op) {
      case "number": return Number(a);
      case "name": return at[a] ?? this.sizes[a] ?? this.named(a);
      case "at": return this.place(node.slice(2), at).reduce((x, k) => x[k], this.named(a));
      case "add": return each(add, v(a), v(b));
      case "sub": return each(minus, v(a), v(b));
      case "neg": return each(negative, v(a));
      case "mul": return each(times, v(a), v(b));
      case "div": return each(over, v(a), v(b));
      case "pow": return Array(Number(b[1])).fill(v(a)).reduce(times);
      case "matmul": return matmul(v(a), v(b), b[0] === "transpose" && !isMatrix(v(b)));
      case "transpose": return transpose(v(a));
      case "diag": return v(a).map((x, k, all) => all.map((_, l) => (k === l ? x : 0)));
      case "exp": return exp(v(a));
      case "log": return log(v(a));
      case "delta": return Number(new Set(this.place([a, b], at)).size === 1);
      case "sum": {
        const [without] = b ? this.place([b], at) : [];
        return this.all(a, (k) => (k === without ? 0 : this.value(c, { ...at, [a]: k }))).reduce(add, 0);
      }
      case "max": return over_(b).reduce((best, x) => (plain(x) > plain(best) ? x : best));
      case "argmax": return over_(b).reduce((best, x, k, all) => (plain(x) > plain(all[best]) ? k : best), 0);
      case "d": {
        if (b[0] === "at") return this.slope(a, at, b[1], this.place(b.slice(2), at));
        const walk = (x, place) =>
          Array.isArray(x) ? x.map((y, k) => walk(y, [...place, k])) : this.slope(a, at, b[1], place);
        return walk(this.named(b[1]), []);
      }
    }
    throw Error(op);
  }
}
Scope.cache = {};

const sides = (node) => (["eq", "le"].includes(node[0]) ? node.slice(1) : [node]);

// How far the sides of a statement are from one another: its state and the error.
//   ok | wrong | range: too large or small for doubles | rounding: digits lost | undefined: ∞ times 0
function verdict(node, scope, at) {
  trouble = { range: false, largest: 0 };
  const values = sides(node).map((side) => [scope.value(side, at)].flat(2));
  const first = values[0];
  let state = "ok", error = 0;
  for (const side of values.slice(1))
    for (const k of first.keys()) {
      const a = first[k], b = side[side.length > 1 ? k : 0];
      const off = a === b ? 0 : node[0] === "le" ? Math.max(0, a - b) : Math.abs(a - b);
      if (!Number.isFinite(off) || Number.isNaN(a) || Number.isNaN(b)) state = "undefined";
      else error = Math.max(error, off / Math.max(1, Math.abs(a)));
    }
  if (state === "ok" && error > 1e-9) state = error < 1e-13 * trouble.largest ? "rounding" : "wrong";
  if (state !== "ok" && trouble.range) state = "range";
  return { state, error };
}

// --- notation: MathML, with parentheses where something binds less tightly than what is around it

const ORDER = { eq: 0, le: 0, add: 1, sub: 1, neg: 1.5, sum: 2, mul: 3, matmul: 3, d: 4, pow: 4, div: 4.2 };
const row = (...shown) => `<mrow>${shown.join("")}</mrow>`;
const mark = (sign) => (sign === " " ? '<mspace width="0.17em"/>' : `<mo>${sign}</mo>`);
const within = (node, least) => {
  const order = node[0] === "value" && node[1].startsWith("−") ? 1.5 : (ORDER[node[0]] ?? 9);
  return order < least ? row(mark("("), show(node), mark(")")) : show(node);
};
const called = (name, shown) => row(`<mi>${name}</mi>`, shown);
const inParentheses = (...shown) => row(mark("("), row(...shown), mark(")"));
const under = (sign, below) =>
  `<munder>${sign === "∑" ? mark(sign) : `<mo movablelimits="false">${sign}</mo>`}${below}</munder>`;
const leading = (node) => (["mul", "pow"].includes(node[0]) ? leading(node[1]) : node[0]);
const raised = (base, power) => `<msup>${row(within(base, 4.5))}${power}</msup>`;
const lowered = (base, nodes) => `<msub>${base}${row(...nodes.map(show))}</msub>`;
const list = (nodes, sign) => nodes.flatMap((node, k) => (k ? [mark(sign), show(node)] : [show(node)]));

const number = (shown) => {
  const [mantissa, power] = shown.split("e");
  return power ? `<mrow><mn>${mantissa}</mn><mo>·</mo><msup><mn>10</mn><mn>${power}</mn></msup></mrow>` : `<mn>${mantissa}</mn>`;
};
const NOTATION = {
  number, value: number,
  name: (name) => {
    const [base, word] = name.split("_");
    return word ? `<msup><mi>${base}</mi><mtext>${word}</mtext></msup>` : `<mi>${base}</mi>`;
  },
  at: (name, ...nodes) => {
    const [base, word] = name.split("_");
    if (!word) return lowered(`<mi>${base}</mi>`, nodes);
    return `<msubsup><mi>${base}</mi>${row(...nodes.map(show))}<mtext>${word}</mtext></msubsup>`;
  },
  eq: (...nodes) => row(...list(nodes, "=")),
  le: (a, b) => row(show(a), mark("≤"), show(b)),
  add: (a, b) => row(show(a), mark("+"), within(b, b[0] === "add" ? 1 : 1.6)),
  sub: (a, b) => row(show(a), mark("−"), within(b, 1.6)),
  neg: (a) => row(mark("−"), within(a, 1.6)),
  mul: (a, b) =>
    row(within(a, 2.5), mark(["value", "number"].includes(leading(b)) ? "·" : " "), within(b, b[0] === "sum" ? 2 : 3.5)),
  matmul: (a, b) => row(within(a, 2.5), mark(" "), within(b, 3.5)),
  delta: (...nodes) => lowered("<mi>δ</mi>", nodes),
  over: (name, ...nodes) => called(name, inParentheses(...list(nodes, ","))),
  dots: () => mark("⋯"),
  exp: (a) => `<msup><mi>e</mi>${row(show(a))}</msup>`,
  log: (a) => row("<mi>log</mi>", mark(" "), within(a, 4.5)),
  diag: (a) => row("<mi>diag</mi>", row(mark("("), show(a), mark(")"))),
  pow: (a, b) => raised(a, show(b)),
  transpose: (a) => raised(a, mark("⊤")),
  div: (a, b) => `<mfrac>${row(show(a))}${row(show(b))}</mfrac>`,
  sum: (index, other, body) => {
    const bound = other ? row(show(["name", index]), mark("≠"), show(other)) : show(["name", index]);
    return row(under("∑", bound), mark(" "), within(body, 2));
  },
  max: (index, body) => row(under("max", show(["name", index])), mark(" "), within(body, 2)),
  argmax: (index, body) => row(under("arg max", show(["name", index])), mark(" "), within(body, 2)),
  d: (a, b) => {
    const partial = mark("∂");
    if (a[0] !== "d") return `<mfrac>${row(partial, within(a, 4.5))}${row(partial, show(b))}</mfrac>`;
    const below = row(partial, show(a[2]), partial, show(b));
    return `<mfrac>${row(`<msup>${partial}<mn>2</mn></msup>`, show(a[1]))}${below}</mfrac>`;
  },
};
const show = ([op, ...args]) => NOTATION[op](...args);
const math = (shown, attributes = "") => `<math xmlns="http://www.w3.org/1998/Math/MathML"${attributes}>${shown}</math>`;
const mathml = (node) => math(show(node));

// A chain of equations as one element for each side, so that lines break between them.
const chain = (node) =>
  (node[0] === "eq" ? sides(node) : [node])
    .map((side, k) => math(k ? row(mark("="), show(side)) : show(side), ' displaystyle="true"')).join(" ");

const matrix = (rows) =>
  row(mark("("), `<mtable>${rows.map((line) =>
    `<mtr>${[line].flat().map((x) => `<mtd>${number(numberText(x))}</mtd>`).join("")}</mtr>`).join("")}</mtable>`, mark(")"));

// --- numbers in the place of letters

// Four significant digits, halves to even as in Python.
function numberText(x) {
  if (Number.isNaN(x)) return "?";
  if (!Number.isFinite(x)) return x > 0 ? "∞" : "−∞";
  const size = Math.abs(x);
  const digits = x && (size < 1e-4 || size >= 1e6) ? 4 : Math.max(4, String(Math.trunc(size)).length);
  let [mantissa, power] = size.toExponential(digits - 1).split("e");
  const [exact] = size.toExponential(20).split("e");
  if (/^50*$/.test(exact.slice(digits + 1)) && exact[digits] % 2 === 0) mantissa = exact.slice(0, digits + 1);
  const shown = x && (size < 1e-4 || size >= 1e6)
    ? mantissa.replace(/\.?0+$/, "") + "e" + Number(power)
    : String(Number(mantissa + "e" + power));
  return ((x < 0 ? "-" : "") + shown).replaceAll("-", "−");
}

const letters = (node, at) =>
  node[0] === "name" && node[1] in at
    ? ["number", String(at[node[1]])]
    : node.map((part) => (Array.isArray(part) ? letters(part, at) : part));

const few = (terms) => (terms.length > 4 ? [...terms.slice(0, 2), ["dots"], terms.at(-1)] : terms);

function numbers(node, scope, at) {
  const [op, a, b, c] = node;
  const worth = () => ["value", numberText(scope.value(node, at))];
  if (["at", "d", "delta"].includes(op) || (op === "name" && !(a in RANGES))) return worth();
  const over_ = (body, without) =>
    few(scope.all(a, (k) => k !== without && numbers(body, scope, { ...at, [a]: k })).filter(Boolean));
  if (op === "sum") {
    const terms = over_(c, b ? scope.place([b], at)[0] : undefined);
    return terms.length ? terms.reduce((sum, term) => ["add", sum, term]) : ["number", "0"];
  }
  if (op === "max" || op === "argmax") return ["over", op === "max" ? op : "arg max", ...over_(b)];
  return node.map((part) => (Array.isArray(part) ? numbers(part, scope, at) : part));
}

const same = (a, b) => JSON.stringify(a) === JSON.stringify(b);

// The statement at these indices: its first side in letters, the others in numbers, and what they come to.
function substituted(node, scope, at) {
  if (node[0] === "le") return ["le", ...sides(node).map((side) => numbers(side, scope, at))];
  const [first, ...rest] = sides(node);
  const shown = [letters(first, at)];
  for (const side of rest) {
    const written = numbers(side, scope, at);
    if (!same(written, shown.at(-1))) shown.push(written);
  }
  const result = numberText(scope.value(rest.at(-1) ?? first, at));
  if (!same(shown.at(-1), ["value", result]) && !same(shown.at(-1), ["number", result])) shown.push(["value", result]);
  return ["eq", ...shown];
}
