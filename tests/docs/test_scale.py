"""What docs/scaling.md says is what benchmarks/results/scale.csv measured."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import pytest

from softgrad.dask import _graph

ROOT = Path(__file__).parents[2]
ROWS = list(csv.DictReader((ROOT / "benchmarks" / "results" / "scale.csv").read_text(encoding="utf-8").splitlines()))
PAGE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
CONSTANT = 160  # MB of a worker, for the tiles it works on


def number(row: dict[str, str], *names: str) -> list[float]:
    return [float(row[name]) for name in names]


def test_the_table_of_the_page_is_that_of_the_file() -> None:
    shown = [line for line in PAGE.splitlines() if re.match(r"\| (strong|weak|classes) ", line)]
    assert len(shown) == len(ROWS) >= 6
    for line, row in zip(shown, ROWS, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        wall, worker, client, moved = number(row, "wall_ms", "worker_cpu_ms", "client_cpu_ms", "moved_bytes")
        assert cells == [
            row["kind"], row["workers"], f"{int(row['rows']):,}".replace(",", " "), row["classes"], f"{wall:.0f}",
            f"{worker:.0f}", f"{client:.0f}", f"{moved / 1e6:.2f}", f"{float(row['worker_mb']):.0f}",
            f"{float(row['blocks_mb']):.0f}",
        ]  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['kind']} {row['workers']} {row['classes']}")
def test_the_model_of_traffic_and_memory(row: dict[str, str]) -> None:
    """Every block's sum moves once, to the client or to the first node of the tree; what the tree adds is an eighth."""
    blocks, classes, features, workers = number(row, "blocks", "classes", "features", "workers")
    result, argument = 8 * classes * (features + 1), 4 * classes * features
    most = blocks * (result + 1000) * (1 + 2 / _graph.FAN_IN) + workers * (argument + 1000)
    stolen = 2 * workers * (4 * features + 8) * 10_000 / float(row["passes"])  # blocks that went to an idle worker
    most += stolen if workers > 1 else 0
    assert float(row["moved_bytes"]) <= most
    if 8 * classes * features * blocks <= _graph.SMALL_RESULTS:
        assert float(row["moved_bytes"]) >= blocks * result
    assert float(row["worker_mb"]) <= float(row["blocks_mb"]) + CONSTANT + 12 * 8 * classes * features / 2**20


def test_the_arithmetic_does_not_grow_with_the_workers_and_the_optimum_does_not_change() -> None:
    strong = [row for row in ROWS if row["kind"] == "strong"]
    assert len({row["objective"] for row in strong}) == 1
    spent = [float(row["worker_cpu_ms"]) for row in strong]
    assert max(spent) < 2 * min(spent)
