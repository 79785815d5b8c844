"""The GPT of `gpt.py` with its head spread over 1, 2 and 4 processes: vocabulary parallelism under `torchrun`.

Every process has the whole body and some rows of the head.  The loss is the same on all of them, and so is the gradient
that goes back into the body, bit for bit: the copies of the body stay equal without another word between them.
The curves of the three runs must coincide.

    python examples/parallel_gpt.py                       # launches torchrun for 1, 2 and 4 processes
    python examples/parallel_gpt.py --processes 2 --steps 100
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from common import VOCABULARY, batches, corpus
from gpt import GPT
from torch import Tensor, nn

from softgrad.torch.parallel import vocab_parallel_linear_cross_entropy

TOLERANCE = 1e-4  # of the loss: nothing but the order of sums differs


class Head(nn.Module):
    """This rank's rows of the head, and the loss of all ranks' rows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        whole = 0.02 * torch.randn(VOCABULARY, width, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(whole.tensor_split(dist.get_world_size())[dist.get_rank()].clone())

    def forward(self, hidden: Tensor, target: Tensor) -> Tensor:
        return vocab_parallel_linear_cross_entropy(hidden, self.weight, target)


def train(arguments: argparse.Namespace) -> None:
    """One rank's plain loop: nothing in it knows of the others but the head."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)  # the same body everywhere
    torch.set_num_threads(1)
    body, head = GPT(arguments.width, arguments.layers, arguments.heads, arguments.context), Head(arguments.width)
    parameters = [*body.parameters(), *head.parameters()]
    curve, seconds = [], []
    for piece in torch.load(arguments.worker):
        start = time.perf_counter()
        loss = head(body(piece[:, :-1]), piece[:, 1:])
        loss.backward()
        with torch.no_grad():
            for parameter in parameters:  # plain gradient descent: it starts faster than `torch.optim` is imported
                parameter -= arguments.lr * parameter.grad
                parameter.grad = None
        curve.append(loss.item())
        seconds.append(time.perf_counter() - start)

    weights = torch.cat([p.detach().reshape(-1) for p in body.parameters()])
    state = (curve, hashlib.sha256(weights.numpy().tobytes()).hexdigest())
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, state)
    if any(other != state for other in everyone):
        raise SystemExit("the ranks' losses or bodies differ")
    if dist.get_rank() == 0:
        run = {
            "processes": dist.get_world_size(),
            "rows": len(head.weight),
            "tokens per second": arguments.batch * arguments.context / statistics.median(seconds[1:] or seconds),
            "curve": curve,
        }
        print(json.dumps(run), flush=True)
    dist.destroy_process_group()
    os._exit(0)  # A thread of gloo that asks for the interpreter while it shuts down aborts the process (PyTorch 2.13).


def launch(processes: int, pieces: Path, options: list[str]) -> dict[str, Any]:
    """Run this script under `torchrun`; a free port is found by itself."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SOFTGRAD_NUM_THREADS": "1"}
    command += [__file__, f"--worker={pieces}", *options]
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.splitlines()[-1])


def report(runs: list[dict[str, Any]]) -> None:
    print(f"{'processes':>9}{'rows of the head':>18}{'tokens/s':>10}   first → last loss")
    for run in runs:
        curve = run["curve"]
        own = f"{run['processes']:>9}{run['rows']:>18}{run['tokens per second']:>10.0f}"
        print(f"{own}   {curve[0]:.4f} → {curve[-1]:.4f}")
    if len(runs) > 1:
        curves = torch.tensor([run["curve"] for run in runs], dtype=torch.float64)
        apart = float(((curves.amax(0) - curves.amin(0)) / curves.amin(0)).max())
        print(f"the curves differ by {apart:.1e} of the loss at most; {TOLERANCE:.0e} is allowed")
        if not apart <= TOLERANCE:
            raise SystemExit("the curves do not coincide")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float, default=0.5)
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a few steps")
    parser.add_argument("--worker", help=argparse.SUPPRESS)  # the text, for a rank
    arguments = parser.parse_args()
    if arguments.worker:
        train(arguments)
        return
    if arguments.smoke:
        arguments.steps, arguments.batch, arguments.context, arguments.width, arguments.layers = 3, 2, 32, 16, 1
    options = [
        f"--{name}={getattr(arguments, name)}" for name in ("batch", "context", "width", "layers", "heads", "lr")
    ]
    with tempfile.TemporaryDirectory() as folder:
        pieces = Path(folder) / "pieces.pt"
        torch.save(batches(corpus(), arguments.steps, arguments.batch, arguments.context), pieces)
        report([launch(processes, pieces, options) for processes in arguments.processes])


if __name__ == "__main__":
    main()
