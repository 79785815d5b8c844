"""The page of measurements, from the CSV files that the benchmarks wrote: nothing in it is typed by hand."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

Row = dict[str, str]

HEAD = """# Measurements

Generated from the files in `benchmarks/results`, each written by one run of a script in `benchmarks/` that checks
results before it times them. The machine is a shared one with two cores whose speed changes by the hour: absolute
times mean little. The rivals are measured in turn with softgrad in the same process, and the ratio is the median of
the rounds' ratios; above 1 softgrad is faster. Measure on your own machine: `python benchmarks/loss.py`, `linear.py`,
`small.py`, `torch_loss.py`, `regression.py`; `--help` says how.
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
    "pyarrow",
)


def document(folder: Path) -> str:
    """The whole page."""
    parts = [HEAD]
    for name, (title, ratio) in _LOSSES.items():
        parts.append(_losses(read(folder / name), title, ratio))
    parts.append(_fits(read(folder / "regression-single.csv"), "Softmax regression: one fit"))
    parts.append(_fits(read(folder / "regression-sweep.csv"), "Softmax regression: a range of C"))
    parts.append(_memory(read(folder / "regression-memory.csv")))
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
    """For each problem softgrad's fastest and the fastest other to the same certified gap."""
    parts = [f"## {title}\n", _machines(rows)]
    timed = [r for r in rows if r["what"] == "time to gap" and r["wall_s"]]
    for threads, target in dict.fromkeys((r["threads"], r["target"]) for r in timed):
        lines = []
        some = [r for r in timed if (r["threads"], r["target"]) == (threads, target)]
        for data, C in dict.fromkeys((r["data"], r["C"]) for r in some):
            group = [r for r in some if (r["data"], r["C"]) == (data, C)]
            own = [r for r in group if r["method"].startswith("softgrad") and "lbfgs" not in r["method"]]
            others = [r for r in group if not r["method"].startswith("softgrad")]
            if own and others:
                a, b = (min(g, key=lambda r: float(r["cpu_s"])) for g in (own, others))
                shape = f"{a['n']}×{a['p']}, {a['K']}"
                lines.append(
                    (
                        data, shape, C, a["method"], _number(a["wall_s"]), _number(a["cpu_s"]), b["method"],
                        _number(b["wall_s"]), _number(b["cpu_s"]), f"{float(b['cpu_s']) / float(a['cpu_s']):.2f}",
                    )
                )  # fmt: skip
        if lines:
            parts.append(
                f"### Gap {float(target):g}, {threads} thread{'s' * (threads != '1')} ({title.split(': ')[1]})\n"
            )
            head = (
                "data",
                "rows×features, classes",
                "C",
                "softgrad",
                "wall s",
                "CPU s",
                "fastest other",
                "wall s",
                "CPU s",
            )
            parts.append(_table((*head, "times faster (CPU)"), lines))
    return "\n".join(parts)


def _memory(rows: list[Row]) -> str:
    lines = [(r["data"], r["what"], r["method"], f"{r['n']}×{r['p']}, {r['K']}", _number(r["peak_mb"])) for r in rows]
    head = ("data", "what", "method", "rows×features, classes", "peak MB")
    return "\n".join(["## Softmax regression: memory\n", _machines(rows), _table(head, lines)])
