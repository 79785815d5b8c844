// The derivation with the reader's numbers: below each formula the same with numbers, and whether its sides agree.

const seen = new Set(all(".formula")); // those on the screen; at first all, so that nothing moves when it is scrolled to
let current; // the scope of this state, and who has been drawn from it

const formulas = all(".formula").map((node) => {
  const [k, l] = node.dataset.formula.split(" ");
  const filled = Object.assign(document.createElement("div"), { className: "filled" });
  const whole = document.createElement("div");
  const mark = Object.assign(document.createElement("p"), { className: "mark" });
  node.append(filled, whole, mark);
  return { node, filled, whole, mark, ...DATA.steps[k].formulas[l], tables: l === "0" ? DATA.steps[k].tables : [] };
});

function* assignments(free, sizes, distinct) {
  const [name, ...rest] = free;
  if (!name) return yield {};
  for (const at of assignments(rest, sizes, distinct))
    for (let k = 0; k < sizes[RANGES[name]]; k++) if (!(distinct && at.j === k)) yield { [name]: k, ...at };
}

function drawFormula({ filled, whole, mark: line, tree, distinct, tables }) {
  const { scope } = current;
  const free = freeIndices(tree);
  const shown = { i: state.i, j: state.j };
  if (distinct && shown.i === shown.j) shown.j = shown.i ? 0 : 1;
  const at = Object.fromEntries(free.map((name) => [name, shown[name] ?? 0]));
  const isWhole = Array.isArray(scope.value(sides(tree).at(-1), at)); // a vector or a matrix
  filled.innerHTML = isWhole ? "" : chain(substituted(tree, scope, at));
  whole.innerHTML = tables.map((name) => [name, scope.value(name)]).filter(([, value]) => Array.isArray(value))
    .map(([name, value]) => `<div class="table">${math(row(show(name), mark("="), matrix(value)))}</div>`).join("");
  let { state: found, error } = verdict(tree, scope, at);
  for (const other of assignments(free, scope.sizes, distinct)) {
    const next = verdict(tree, scope, other);
    if (next.state === "wrong") found = "wrong";
    if (next.state === found) error = Math.max(error, next.error);
  }
  line.dataset.state = found;
  const text = found === "wrong" ? "no" : found === "ok" && tree[0] === "le" ? "le" : found;
  line.textContent = word(text, numberText(Number(error.toPrecision(1))));
}

function drawSeen() {
  for (const formula of formulas)
    if (seen.has(formula.node) && !current.drawn.has(formula)) {
      current.drawn.add(formula);
      drawFormula(formula);
    }
}

function steps({ V }) {
  current = { scope: scopeOf(state, DATA).scope, drawn: new Set() };
  for (const [id, value] of [["i", state.i], ["j", state.j]]) {
    if ($(id).length !== V) $(id).innerHTML = state.z.map((_, k) => `<option>${k}`).join("");
    $(id).value = value;
  }
  drawSeen();
}
views.push(steps);

$("i").onchange = () => set({ i: Number($("i").value) });
$("j").onchange = () => set({ j: Number($("j").value) });
const watch = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) seen[isIntersecting ? "add" : "delete"](target);
  if (current) drawSeen();
}, { rootMargin: "300px" });
for (const { node } of formulas) watch.observe(node);

function drawAllSteps() {
  for (const { node } of formulas) seen.add(node);
  draw();
}
addEventListener("beforeprint", drawAllSteps);
// A softmax classifier of two features and three classes, trained by gradient descent with (S − y) xᵀ.

const SHAPES = [
  "m-.11 0a.11 .11 0 1 0 .22 0a.11 .11 0 1 0 -.22 0", "m-.1 -.1h.2v.2h-.2z", "m0 -.13l.13 .22h-.26z",
];
let points, model, losses, running;

function startAgain() {
  points = DATA.points.map((p) => [...p]);
  model = untrained();
  losses = [lesson(model, points).loss];
}

function trainOnce() {
  model = descended(model, lesson(model, points), Number($("rate").value));
  losses.push(lesson(model, points).loss);
}

function drawTraining() {
  const now = lesson(model, points);
  $("points").innerHTML = `<path class="axis" d="M-3 0H3M0-3V3" stroke="currentColor"/><text x="2.75" y=".3">x₀</text><text x="-.25" y="-2.7">x₁</text>` +
    points.map(([x, y, label]) => `<path class="c${label}" d="M${x} ${-y}${SHAPES[label]}z"/>`).join("");
  $("points").setAttribute("aria-label", word("plane", points.length, now.right));
  const [first, last] = [losses[0], losses.at(-1)];
  const high = Math.max(...losses.filter(Number.isFinite), 1e-9);
  const line = losses.map((x, k) => `${k ? "L" : "M"}${(300 * k) / Math.max(20, losses.length - 1)} ${115 - (95 * x) / high}`);
  $("curve").innerHTML = `<line class="axis" x2="300" y1="115" y2="115"/><path d="${line.join("")}"/>` +
    `<text class="soft" x="150" y="128">${word("curve", numberText(first), numberText(last))}</text>`;
  $("curve").setAttribute("aria-label", word("curve", numberText(first), numberText(last)));
  $("now").textContent = word("now", losses.length - 1, numberText(last), now.right, points.length);
  const A = (p) => ["at", "A", ["name", "i"], ["number", p]], c = ["at", "c", ["name", "i"]], M = ["name", "M"];
  const heads = [A("0"), A("1"), c].flatMap((w) => [w, ["d", M, w]]);
  $("numbers").innerHTML = `<caption>${word("weights")}</caption><tr><th scope="col">${word("class")}</th>` +
    heads.map((tree) => `<th scope="col">${mathml(tree)}</th>`).join("") + "</tr>" +
    model.A.map((w, i) => `<tr><th scope="row">${i}</th>` +
      [w[0], now.dA[i][0], w[1], now.dA[i][1], model.c[i], now.dc[i]].map((x) => `<td>${decimals(x, 4)}</td>`).join("")).join("");
  drawRegions();
  $("run").textContent = word(running ? "pause" : "run");
}

// The mixture of the classes' colours by their probabilities.
function drawRegions() {
  const size = $("regions").width, context = $("regions").getContext("2d");
  const image = context.createImageData(size, size);
  const rgb = (text) => text.match(/[\d.]+/g).map(Number);
  const paper = rgb(getComputedStyle(document.body).backgroundColor);
  const colours = [0, 1, 2].map((k) => rgb(getComputedStyle(all(`#points .c${k}`)[0]).fill));
  for (let at = 0; at < size * size; at++) {
    const x = [((at % size) + 0.5) * 6 / size - 3, 3 - (Math.floor(at / size) + 0.5) * 6 / size];
    const P = outputs(model, x);
    for (const c of [0, 1, 2])
      image.data[4 * at + c] = 0.7 * paper[c] + 0.3 * (P[0] * colours[0][c] + P[1] * colours[1][c] + P[2] * colours[2][c]);
    image.data[4 * at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

function pause() {
  clearInterval(running);
  running = undefined;
  drawTraining();
}

function addPoint(x, y) {
  points.push([x, y, Number($("label").value)]);
  drawTraining();
}

$("step").onclick = () => {
  trainOnce();
  pause();
};
$("run").onclick = () => {
  if (running) return pause();
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) {
    for (let k = 0; k < 50; k++) trainOnce();
    return drawTraining();
  }
  running = setInterval(() => {
    trainOnce();
    drawTraining();
    if (losses.length > 2000) pause();
  }, 50);
  drawTraining();
};
$("restart").onclick = () => {
  startAgain();
  pause();
};
$("rate").oninput = () => ($("rate").nextElementSibling.value = $("rate").value);
$("points").onclick = (event) => {
  const box = $("points").getBoundingClientRect();
  const at = (part) => Number((6 * part - 3).toFixed(2));
  addPoint(at((event.clientX - box.left) / box.width), -at((event.clientY - box.top) / box.height));
};
$("add").onsubmit = (event) => {
  event.preventDefault();
  const [x, y] = ["x0", "x1"].map((id) => {
    const value = readNumber($(id).value);
    $(id).ariaInvalid = String(!(Math.abs(value) <= 3));
    return value;
  });
  const isGood = Math.abs(x) <= 3 && Math.abs(y) <= 3;
  $("no-point").hidden = isGood;
  $("no-point").textContent = word("bad-point");
  if (isGood) addPoint(x, y);
};

startAgain();
views.push(() => running || drawTraining());
// Everything is in place: show it.

for (const node of all(".live")) node.hidden = false;
for (const node of all(".still")) node.hidden = true;
addEventListener("hashchange", readAddress);
readAddress();

// What the tests compare with the Python package.
globalThis.softgrad = {
  head, hessianProduct, finiteDifferences, lesson, descended, mathml, substituted, scopeOf, verdict, freeIndices, readFragment,
  writeFragment, numberText, assignments, drawAllSteps, set, data: DATA,
  get state() { return state; },
  get training() { return { points, model, losses }; },
};
