"""The vocabulary-parallel losses, on 2 and 4 real processes of `torchrun` with gloo.

A launch costs seconds, so there is one for each number of processes; it runs every case of `parallel_cases` and
`parallel_mesh_cases`, and each case is a test here.
"""

from __future__ import annotations

import doctest
import inspect
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from parallel_cases import CASES
from parallel_mesh_cases import CASES as MESH_CASES
from torch_cases import same_bits

from softgrad.torch import cross_entropy, linear_cross_entropy, parallel
from softgrad.torch._ranks.agreement import fingerprint

HERE = Path(__file__).parent
ENVIRONMENT = {
    **os.environ, "OMP_NUM_THREADS": "1", "SOFTGRAD_NUM_THREADS": "1",
    "SOFTGRAD_TORCH_PRODUCTS": "numpy",  # measured in each process, the choice may differ between groups
}  # fmt: skip


class Launch:
    """A finished `torchrun`: what each rank says of each case."""

    def __init__(self, ranks: int, folder: Path) -> None:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
            str(HERE / "parallel_worker.py"), str(folder), "parallel_cases", "parallel_mesh_cases",
        ]  # fmt: skip
        self.ranks = ranks
        self.run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        self.outcomes = []
        for rank in range(ranks):
            log = folder / f"rank{rank}.jsonl"
            lines = log.read_text().splitlines() if log.exists() else []
            self.outcomes.append({line["case"]: line for line in map(json.loads, lines)})

    def check(self, name: str) -> None:
        for rank, cases in enumerate(self.outcomes):
            assert name in cases, f"rank {rank} did not come so far: {self.run.stdout[-2000:]}{self.run.stderr[-4000:]}"
            assert cases[name]["problem"] == "", f"rank {rank}: {cases[name]['problem']}"


@pytest.fixture(
    scope="module", params=[pytest.param(2, marks=pytest.mark.exhaustive), 4], ids=["2 processes", "4 processes"]
)
def launch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Launch:
    return Launch(request.param, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", [*CASES, *MESH_CASES])
def test_case(launch: Launch, name: str) -> None:
    launch.check(name)


def test_the_launch_ended_well(launch: Launch) -> None:
    assert launch.run.returncode == 0, launch.run.stderr[-4000:]


@pytest.mark.parametrize(("how", "ranks", "time_out", "at_most"), [("killed", 3, 10.0, 10.0), ("late", 2, 2.0, 8.0)])
def test_a_lost_rank_ends_the_others(how: str, ranks: int, time_out: float, at_most: float, tmp_path: Path) -> None:
    """Within the time-out of the group, and the ranks it may be are named."""
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "parallel_lost.py"), how, str(tmp_path), str(rank), str(ranks), str(time_out)],
            env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    codes = [process.wait(timeout=60) for process in started]
    assert codes == [0] * (ranks - 1) + [-9 if how == "killed" else 0]
    for rank in range(ranks - 1):
        outcome = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert outcome["first"] == pytest.approx(math.log(5 * ranks))
        assert f"rank {rank} lost the others of its group" in outcome["said"]
        assert f"rank {ranks - 1}" in outcome["said"]
        assert outcome["seconds"] < at_most


# --- without a group -------------------------------------------------------------------------------------------------


def test_without_a_process_group() -> None:
    with pytest.raises(RuntimeError, match="torchrun"):
        parallel.vocab_parallel_cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of this process."""
    store = (tmp_path / "store").as_uri()
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone", "fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it where a graph breaks
def test_compiled_code_goes_around_it() -> None:
    logits, target = torch.randn(5, 40, requires_grad=True), torch.randint(40, (5,))
    weight = torch.randn(7, 40, requires_grad=True)

    def step(o: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        loss = parallel.vocab_parallel_cross_entropy(2 * o, target, label_smoothing=0.1)
        return 3 * loss + parallel.vocab_parallel_linear_cross_entropy(o, w, target % 7).sin()

    results = []
    for function in (step, torch.compile(step, backend="eager")):
        loss = function(logits, weight)
        results.append((loss.detach(), *torch.autograd.grad(loss, (logits, weight))))
    for a, b in zip(*results, strict=True):
        assert same_bits(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8, torch.int64, torch.bool])
def test_fingerprints(dtype: torch.dtype) -> None:
    """Of values, wherever they lie; one other value is another fingerprint."""
    values = (torch.arange(4000).reshape(40, 100) % 97).to(dtype)
    prints = {fingerprint(values)}
    for same in (
        values.clone(),
        values.T.clone().T,
        torch.cat([values, values])[40:],
        values.clone().requires_grad_(dtype.is_floating_point),
    ):
        assert fingerprint(same) in prints
    for place in (0, 17, 3999):
        other = values.clone()
        other.view(-1)[place] = 1 - other.view(-1)[place].int()
        prints.add(fingerprint(other))
    prints.add(fingerprint(values.flip(0)))
    assert len(prints) == 5
    assert fingerprint(values[0, 0]) != fingerprint(values[:0]) != ""
    assert fingerprint(None) == ""


def test_fingerprints_of_negative_views() -> None:
    values = torch.complex(torch.zeros(5), torch.arange(5.0)).conj().imag
    assert values.is_neg()
    assert fingerprint(values) == fingerprint(-torch.arange(5.0))


DEPRECATED = {"size_average", "reduce"}  # PyTorch keeps them for old callers
NAMES = {"local_logits": "input", "x": "input", "local_weight": "linear_weight", "bias": "linear_bias"}


@pytest.mark.parametrize(
    ("ours", "single"),
    [
        (parallel.vocab_parallel_cross_entropy, cross_entropy),
        (parallel.vocab_parallel_linear_cross_entropy, linear_cross_entropy),
    ],
)
def test_options_are_those_of_one_process(ours: Any, single: Any) -> None:
    mine, theirs = inspect.signature(ours).parameters, inspect.signature(single).parameters
    assert {NAMES.get(name, name) for name in mine} - {"group", "reduce_x_grad"} == set(theirs) - DEPRECATED
    for name, parameter in mine.items():
        if NAMES.get(name, name) in theirs:
            assert parameter.default == theirs[NAMES.get(name, name)].default, name
        if name not in ("local_logits", "x", "local_weight", "target"):
            assert parameter.kind is parameter.KEYWORD_ONLY, name


@pytest.mark.parametrize("name", parallel.__all__)
def test_documented(name: str) -> None:
    text = inspect.getdoc(getattr(parallel, name)) or ""
    described = set(re.findall(r"^(\w+) : ", text.split("Returns\n---")[0], re.MULTILINE))
    assert described == set(inspect.signature(getattr(parallel, name)).parameters)
    assert "{options}" not in text
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(parallel, name), name, globs={})
    result = doctest.DocTestRunner().run(example)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_losses_do_not_import_dtensors() -> None:
    code = "import softgrad.torch, sys; print('torch.distributed.tensor' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"
