"""The page of measurements, from the CSV files that the benchmarks wrote: nothing in it is typed by hand."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, median

Row = dict[str, str]

HEAD = """# Measurements

Generated from the files in `benchmarks/results`, each written by one run of a script in `benchmarks/` that checks
results before it times them. The machine is a shared one with two cores whose speed changes by the hour: absolute
times mean little. The rivals are measured in turn with softgrad in the same process, and the ratio is the median of
the rounds' ratios; above 1 softgrad is faster. Measure on your own machine: `python benchmarks/loss.py`, `linear.py`,
`small.py`, `torch_loss.py`, `regression.py`, `commands.py`; `--help` says how.
"""
FITS = """Seconds of softgrad's fastest type to the same gap (F − F*)/F*, then for each of the others how many times
longer its fastest method and type took: wall time, and CPU time in brackets. `>` is a bound: none of its methods got
there, and those that were stopped had run that long. "never gets there": they ended by themselves with a larger gap.
"cannot": they do not take such data.
"""
MEMORY = """Of a dense fit the peak above its inputs; of an X of more than 2 GB the peak of anonymous memory above the
imports, which counts X where it is in memory, and not the pages of a mapped file.
"""
COMMANDS = """Whole processes, from their start to a model on disk and its measures on the test rows:
`softgrad fit train.csv -t LABEL --test test.csv --C auto` against a script with pandas and scikit-learn's
`LogisticRegressionCV` (`benchmarks/commands_rival.py`). Seconds and MB are medians over the runs, and the ratios are
medians of the rounds' ratios; what is measured on the test rows are means. The CPU time is what `n_jobs` would not make
less.
"""
_LOSSES = {
    "loss.csv": ("Loss and gradient on NumPy arrays", "ratio to softgrad out="),
    "small.csv": ("Small calls", "ratio to softgrad.log_softmax"),
    "torch_loss.csv": ("PyTorch: cross_entropy, forward and backward", "ratio to softgrad"),
}
_VERSIONS = (
    "python",
    "softgrad",
    "numpy",
    "scipy",
    "scikit-learn",
    "scikit-learn-intelex",
    "cyanure",
    "torch",
    "jax",
    "optax",
    "cut-cross-entropy",
    "liger-kernel",
    "triton",
    "pyarrow",
    "pandas",
    "skops",
)


def document(folder: Path) -> str:
    """The whole page."""
    parts = [HEAD]
    for name, (title, ratio) in _LOSSES.items():
        parts.append(_losses(read(folder / name), title, ratio))
    parts.append(_fits(read(folder / "regression-single.csv"), "Softmax regression: one fit"))
    parts.append(_fits(read(folder / "regression-sweep.csv"), "Softmax regression: a range of C"))
    parts.append(_memory(read(folder / "regression-memory.csv")))
    parts.append(commands(read(folder / "commands.csv")))
    return "\n".join(parts)


def read(path: Path) -> list[Row]:
    """The rows of one file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    lines += ["| " + " | ".join(cell.replace("|", "/") or " " for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _number(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return text
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _machines(rows: list[Row]) -> str:
    """Machine and versions of each state of the code that was measured."""
    said = []
    for row in {(r["commit"], r["cpu"], r["instruction_set"]): r for r in rows}.values():
        versions = [f"{name} {row[name]}" for name in _VERSIONS if row.get(name) and row[name] != "not installed"]
        said.append(
            f"{row['cpu']}, {row['cores']} cores, {row['instruction_set']}; {', '.join(versions)}; {row['commit']}."
        )
    return "\n".join(f"- {line}" for line in said) + "\n"


def _losses(rows: list[Row], title: str, ratio: str) -> str:
    parts = [f"## {title}\n", _machines(rows)]
    ours = ratio.removeprefix("ratio to ")
    for key in dict.fromkeys((r["case"], r["dtype"], r["threads"]) for r in rows):
        mine = [r for r in rows if (r["case"], r["dtype"], r["threads"]) == key]
        parts.append(f"### {key[0]}, {key[1]}, {key[2]} thread{'s' * (key[2] != '1')} ({title.split(':')[0]})\n")
        parts.append(
            _table(
                ("", "allocator", "wall ms", "CPU ms", "MB beyond the result", f"time / {ours}", "quartiles"),
                (
                    (
                        r["rival"] + (f" ({r['note']})" if r["note"] else ""),
                        r["state"],
                        _number(r["wall_ms"]),
                        _number(r["cpu_ms"]),
                        _number(r.get("beyond_result_mb", "")),
                        _number(r[ratio]),
                        r[f"{ratio}, quartiles"],
                    )
                    for r in mine
                ),
            )
        )
    return "\n".join(parts)


def _fits(rows: list[Row], title: str) -> str:
    """How many times faster softgrad's fastest type was than the fastest of each family, or why there is no number."""
    parts = [f"## {title}\n", _machines(rows), FITS]
    timed = [r for r in rows if r["what"] == "time to gap"]
    families = dict.fromkeys(_family(r) for r in timed if not _own(r))
    for threads, target in dict.fromkeys((r["threads"], r["target"]) for r in timed):
        lines = []
        some = [r for r in timed if (r["threads"], r["target"]) == (threads, target)]
        for data, C in dict.fromkeys((r["data"], r["C"]) for r in some):
            group = [r for r in some if (r["data"], r["C"]) == (data, C)]
            ours = _fastest([r for r in group if _own(r)])
            shape = f"{group[0]['n']}×{group[0]['p']}, {group[0]['K']}"
            seconds = [_number(ours["wall_s"]), _number(ours["cpu_s"])] if ours else ["not reached", ""]
            cells = [_against(ours, [r for r in group if not _own(r) and _family(r) == name]) for name in families]
            lines.append((data, shape, C, *seconds, *cells))
        parts.append(f"### Gap {float(target):g}, {threads} thread{'s' * (threads != '1')} ({title.split(': ')[1]})\n")
        head = ("data", "rows×features, classes", "C", "softgrad wall s", "CPU s", *families)
        parts.append(_table(head, lines))
    return "\n".join(parts)


def commands(rows: list[Row]) -> str:
    """What whole commands cost, and how good their models are."""
    title = "From a table to a model\n"
    return "\n".join([f"## {title}", _machines(rows), COMMANDS, command_table(rows)])


def command_table(rows: list[Row]) -> str:
    """One line for each data set and method: means of what is measured on the test rows, medians of the costs."""
    head = (
        "data", "rows", "classes", "rounds", "", "accuracy", "log-loss", "wall s", "CPU s", "MB", "wall / softgrad",
        "CPU / softgrad",
    )  # fmt: skip
    lines = []
    for data, method in dict.fromkeys((r["data"], r["method"]) for r in rows):
        ours, mine = ([r for r in rows if (r["data"], r["method"]) == (data, name)] for name in ("softgrad", method))
        costs = [_number(str(median(float(r[key]) for r in mine))) for key in ("wall_s", "cpu_s", "peak_mb")]
        ratios = [
            _number(str(median(float(b[key]) / float(a[key]) for a, b in zip(ours, mine, strict=True))))
            for key in ("wall_s", "cpu_s")
        ]
        first = mine[0]
        quality = [f"{mean(float(r[key]) for r in mine):.4f}" for key in ("accuracy", "log_loss")]
        lines.append((data, first["rows"], first["classes"], str(len(mine)), method, *quality, *costs, *ratios))
    return _table(head, lines)


def _own(row: Row) -> bool:
    return row["method"].startswith("softgrad")


def _family(row: Row) -> str:
    """A library where single fits are compared; a library's way to do it where sweeps are."""
    return row["method"].split(" ")[0] if row["kind"] == "single" else row["method"].rpartition(" ")[0]


def _fastest(rows: list[Row]) -> Row | None:
    return min((r for r in rows if r["wall_s"]), key=lambda r: float(r["wall_s"]), default=None)


def _against(ours: Row | None, theirs: list[Row]) -> str:
    """Ratios of wall and CPU time; a bound for those that ran out of time; in words where there is neither."""
    best = _fastest(theirs)
    if ours is None:
        return _number(best["wall_s"]) + " s" if best else "not reached"
    if best:
        wall, cpu = (float(best[key]) / float(ours[key]) for key in ("wall_s", "cpu_s"))
        return f"{_number(str(wall))} ({_number(str(cpu))})"
    limits = [float(r["at_least_s"]) for r in theirs if r["at_least_s"]]
    if limits:
        return f"> {_number(str(min(limits) / float(ours['wall_s'])))}"
    if any(not r["unavailable"] for r in theirs):
        return "never gets there"
    return "cannot" if theirs else "not run"


def _memory(rows: list[Row]) -> str:
    keys = ("wall_s", "cpu_s", "passes")
    lines = [
        (
            r["what"] + (f", {r['data']}" if r["data"] else ""), r["method"], f"{r['n']}×{r['p']}, {r['K']}", r["tol"],
            *(_number(r[key]) for key in ("peak_mb", *keys)), r["note"],
        )
        for r in rows
    ]  # fmt: skip
    head = ("what", "method", "rows×features, classes", "tol", "peak MB", "wall s", "CPU s", "passes", "note")
    return "\n".join(["## Softmax regression: memory\n", _machines(rows), MEMORY, _table(head, lines)])
