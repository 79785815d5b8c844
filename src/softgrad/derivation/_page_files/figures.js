// The reader's numbers: sliders, exact fields, the right class, examples.

const RANGE = 10; // of the sliders; the fields take any number

function example(name) {
  const V = name === "textbook" ? 3 : state.z.length;
  const t = Array.isArray(state.t) || state.t >= V ? 0 : state.t;
  const at = (k, x, rest) => Array.from({ length: V }, (_, l) => (l === (k % V) ? x : rest));
  const made = {
    textbook: () => ({ z: [2, 1, 0.1], t: 0 }),
    equal: () => ({ z: at(0, 0, 0), t }),
    right: () => ({ z: at(t, 6, 0), t }),
    wrong: () => ({ z: at(t + 1, 6, 0), t }),
    huge: () => ({ z: at(0, 1e4, 0).map((x, k) => (k % 3 === 1 ? -1e4 : x)), t }),
    masked: () => ({ z: at(t + V - 1, -Infinity, 1).map((x, k) => x - 0.5 * (k % 3)), t }),
  };
  return { e: 0, T: 1, ...made[name]() };
}

function setLogit(k, x) {
  set({ z: state.z.map((old, l) => (l === k ? x : old)) });
}

function controls(numbers) {
  const { V } = numbers;
  if ($("logits").childElementCount !== V + Array.isArray(state.t)) buildLogits();
  all(".logit").forEach((line, k) => {
    const [radio, slider, field] = all("input", line);
    const z = state.z[k];
    radio.checked = state.t === k;
    slider.value = Math.max(-RANGE, Math.min(RANGE, z));
    slider.setAttribute("aria-valuetext", numberText(z));
    if (field !== document.activeElement && field.ariaInvalid !== "true") field.value = writeNumber(z);
  });
  for (const [id, value, shown] of [["V", V, V], ["e", state.e, state.e], ["T", Math.log2(state.T), state.T]]) {
    $(id).value = value;
    $(id).nextElementSibling.value = shown;
    $(id).setAttribute("aria-valuetext", shown);
  }
  $("summary").textContent = `${word("loss")} ${numberText(numbers.L)}`;
}
controls.translate = () => {
  buildLogits();
  $("presets").replaceChildren(
    ...["textbook", "equal", "right", "wrong", "huge", "masked"].map((name) => {
      const button = Object.assign(document.createElement("button"), { type: "button", textContent: word(name) });
      button.onclick = () => restart(example(name));
      return button;
    }),
  );
};
views.push(controls);

function buildLogits() {
  $("logits").innerHTML =
    state.z.map((_, k) => `<div class="logit"><input type="radio" name="t" value="${k}"><span>${k}</span>
<input type="range" min="-${RANGE}" max="${RANGE}" step="0.1"><input inputmode="decimal" autocomplete="off"></div>`).join("") +
    (Array.isArray(state.t) ? `<label class="soft"><input type="radio" name="t" checked> ${word("soft")}</label>` : "");
  all(".logit").forEach((line, k) => {
    const [radio, slider, field] = all("input", line);
    radio.ariaLabel = word("target", k);
    slider.ariaLabel = word("logit", k);
    field.ariaLabel = word("exact", k);
    radio.onchange = () => set({ t: k });
    slider.oninput = () => {
      valid(field, true);
      setLogit(k, Number(slider.value));
    };
    field.oninput = () => {
      const x = readNumber(field.value);
      valid(field, !Number.isNaN(x));
      if (!Number.isNaN(x)) setLogit(k, x);
    };
  });
}

function valid(field, isValid) {
  field.ariaInvalid = String(!isValid);
  const bad = all("#logits [aria-invalid=true]")[0];
  complain(bad ? word("bad-logit", bad.value.slice(0, 40)) : "");
}

function restart(change) {
  set({ i: 10, j: 10, ...change });
  complain("");
  buildLogits();
}

$("V").oninput = (event) => set({ z: Array.from({ length: Number(event.target.value) }, (_, k) => state.z[k] ?? 0) });
$("e").oninput = (event) => set({ e: Number(event.target.value) });
$("T").oninput = (event) => set({ T: Number((2 ** event.target.value).toPrecision(3)) });
$("reset").onclick = () => restart({ ...START, lang: state.lang });
$("theme").onclick = () => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = (root.dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
  render();
};
matchMedia("(prefers-color-scheme: dark)").onchange = render;
for (const button of all("[data-lang]")) button.onclick = () => set({ lang: button.dataset.lang });
for (const form of all("form")) form.onsubmit = (event) => event.preventDefault();
if (matchMedia("(max-width: 62rem)").matches) $("controls").open = false;
// Bars of S, y and S − y, and what must be true of them.

const HEIGHT = 190, EDGE = 22, FOOT = 32;

// Short: 0.659, −0.02; where there is room for little: .66, −.02; what rounds to nothing is 0.
function decimals(x, digits, isTight = false) {
  if (Number.isNaN(x)) return "?";
  const shown = x.toFixed(digits).replace("-", "−");
  return Number(x.toFixed(digits)) === 0 ? "0" : isTight ? shown.replace("0.", ".") : shown;
}

function drawBars(id, name, values, low) {
  const svg = $(id), isTight = values.length > 6;
  const wide = svg.clientWidth || 280; // a unit is a pixel: labels are as large on a phone
  const column = wide / values.length, thick = column * 0.66;
  const at = (x) => EDGE + ((1 - x) / (1 - low)) * (HEIGHT - EDGE - FOOT);
  const zero = at(0);
  const shown = values.map((x, k) => {
    const left = k * column + column * 0.17;
    const end = Number.isNaN(x) ? zero : at(x);
    const sign = low === 0 ? "bar" : x < 0 ? "minus" : "plus";
    const label = x < 0 ? Math.max(end, zero) + 12 : Math.min(end, zero) - 5;
    return `<rect class="${sign}" x="${left}" y="${Math.min(end, zero)}" width="${thick}" height="${Math.abs(end - zero)}" rx="2"/>
<text x="${left + thick / 2}" y="${label}">${isTight && Math.abs(x) < 0.05 ? "" : decimals(x, isTight ? 2 : 3, isTight)}</text>
<text class="soft" x="${left + thick / 2}" y="${HEIGHT - 4}">${k}</text>`;
  });
  const lines = [1, low].map((x) => `<line x1="0" x2="${wide}" y1="${at(x)}" y2="${at(x)}"/>`);
  const grip = id === "bars-S" ? `<rect class="grip" width="${wide}" height="${HEIGHT}"/>` : "";
  svg.classList.toggle("tight", isTight);
  svg.setAttribute("viewBox", `0 0 ${wide} ${HEIGHT}`);
  svg.setAttribute("aria-label", `${name}: ` + values.map((x, k) => `${word("class")} ${k} ${numberText(x)}`).join("; "));
  svg.innerHTML = lines.join("") + shown.join("") + `<line class="axis" x1="0" x2="${wide}" y1="${zero}" y2="${zero}"/>` + grip;
}

function checkSum(label, total, exact) {
  const off = Math.abs(total - exact);
  const state = Number.isNaN(off) ? "undefined" : off < 1e-12 ? "ok" : "wrong";
  return [state, `${label} = ${state === "ok" ? exact : numberText(total)}`];
}

views.push((numbers) => {
  const { S, y, G, L } = numbers;
  drawBars("bars-S", `S, ${word("S")}`, S, 0);
  drawBars("bars-y", `y, ${word("y")}`, y, 0);
  drawBars("bars-G", `S − y, ${word("G")}`, G, -1);
  const { state, error } = finiteDifferences(numbers);
  const checks = [
    ["", `${word("loss")} L = ${numberText(L)}`],
    checkSum(`${word("sums")} ΣS`, sum(S), 1),
    checkSum(`${word("zero")} Σ(S − y)`, sum(G), 0),
    [state, ["ok", "wrong"].includes(state) ? `${word("differences")} ${numberText(Number(error.toPrecision(1)))}` : word(state)],
  ];
  $("checks").replaceChildren(
    ...checks.map(([mark, text]) => {
      const item = Object.assign(document.createElement("li"), { textContent: text, className: mark && "mark" });
      if (mark) item.dataset.state = mark;
      return item;
    }),
  );
  $("checks").lastChild.id = "differences";
});

addEventListener("resize", render);

// A drag of 15 pixels is one unit of the logit.
let drag;
const bars = $("bars-S");
bars.onpointerdown = (event) => {
  const box = bars.getBoundingClientRect();
  const k = Math.floor(((event.clientX - box.left) / box.width) * state.z.length);
  if (event.button || !Number.isFinite(state.z[k])) return;
  drag = { k, y: event.clientY, z: state.z[k] };
  bars.setPointerCapture(event.pointerId);
  event.preventDefault();
};
bars.onpointermove = (event) => {
  if (drag) setLogit(drag.k, Number((drag.z + (drag.y - event.clientY) / 15).toFixed(2)));
};
bars.onpointerup = bars.onpointercancel = () => (drag = undefined);
// The Jacobian as a table of colours; the line below it says the formula and the value of one cell.

const grid = all("#heat table")[0], caption = all("#heat figcaption")[0];
const cells = () => all("td", grid);
let cell = 0; // the one that the line is about, and the Tab key reaches

views.push(({ V, J }) => {
  if (cells().length !== V * V) {
    cell = Math.min(cell, V * V - 1);
    const header = J.map((_, j) => `<th scope="col">${j}</th>`).join("");
    grid.innerHTML = `<thead><tr><th scope="col"><math><mi>i</mi><mo>,</mo><mi>j</mi></math></th>${header}</tr></thead><tbody>` +
      J.map((line, i) => `<tr><th scope="row">${i}</th>${line.map(() => "<td></td>").join("")}</tr>`).join("") + "</tbody>";
    grid.classList.toggle("many", V > 6);
  }
  cells().forEach((td, k) => {
    const i = Math.floor(k / V), j = k % V, x = J[i][j];
    td.tabIndex = k === cell ? 0 : -1;
    td.className = x < 0 ? "minus" : x > 0 ? "plus" : "none";
    td.style.setProperty("--part", `${Math.min(100, Math.abs(x || 0) * 400)}%`);
    td.textContent = decimals(x, V > 6 ? 2 : 3, V > 6);
    td.ariaLabel = `∂S${i}/∂o${j} = ${numberText(x)}`;
    td.ariaSelected = String(i === state.i && j === state.j);
  });
  explainCell(cell);
});

function explainCell(k) {
  const V = state.z.length, at = { i: Math.floor(k / V), j: k % V };
  const [left, ...rest] = sides(DATA.cells[Number(at.i !== at.j)]);
  const { scope } = scopeOf(state, DATA);
  const filled = sides(substituted(["eq", left, rest.at(-1)], scope, at));
  caption.ariaLive = grid.contains(document.activeElement) ? "polite" : "off";
  caption.innerHTML = chain(["eq", filled[0], letters(rest.at(-1), at), ...filled.slice(1)]);
}

const indexOf = (event) => cells().indexOf(event.target.closest("td"));
const choose = () => set({ i: Math.floor(cell / state.z.length), j: cell % state.z.length });
grid.onmouseover = (event) => indexOf(event) >= 0 && explainCell(indexOf(event));
grid.onmouseleave = () => explainCell(cell);
grid.addEventListener("focusin", (event) => {
  if (indexOf(event) < 0) return;
  cells()[cell].tabIndex = -1;
  cell = indexOf(event);
  event.target.tabIndex = 0;
  explainCell(cell);
});
grid.onclick = (event) => indexOf(event) >= 0 && choose();
grid.onkeydown = (event) => {
  const V = state.z.length, column = cell % V, last = V * V - 1;
  const next = {
    ArrowLeft: column ? cell - 1 : cell, ArrowRight: column < V - 1 ? cell + 1 : cell,
    ArrowUp: cell < V ? cell : cell - V, ArrowDown: cell + V > last ? cell : cell + V,
    Home: event.ctrlKey ? 0 : cell - column, End: event.ctrlKey ? last : cell - column + V - 1,
  }[event.key];
  if (event.key === "Enter" || event.key === " ") choose();
  else if (next === undefined) return;
  else cells()[next].focus();
  event.preventDefault();
};
