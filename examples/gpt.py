"""A small GPT on real text, three times: with `F.linear` + `F.cross_entropy`, `F.linear_cross_entropy` and softgrad.

The model, the text, the batches and the optimiser are the same; only the line that takes the loss differs.  Each loss
trains in a process of its own, which reports tokens a second, peak memory and its curve.  The three curves are drawn on
one plot, and must coincide.

    python examples/gpt.py                                  # all three, float32
    python examples/gpt.py --loss softgrad --dtype bfloat16 --steps 100
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from typing import Any

import torch
from common import VOCABULARY, batches, corpus, in_fresh_process, peak_memory
from torch import Tensor, nn
from torch.nn import functional

from softgrad.torch import linear_cross_entropy

# The curves may differ by this much, relative to the loss.  In float32 nothing but the order of sums differs.  In
# bfloat16 `F.linear_cross_entropy` returns its loss in bfloat16, which has 8 bits: half a unit is 1/512.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-2}


# The model: GPT-2's, with as few lines as it takes.


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Attention and a perceptron, each added to what it was given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before_attention(x))
        return x + self.mlp(self.before_mlp(x))


class GPT(nn.Module):
    """Token indices (B, T) → hidden states (B, T, D).  The head is the token embedding, and belongs to the loss."""

    def __init__(self, width: int, layers: int, heads: int, context: int) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.last = nn.LayerNorm(width)
        self.apply(self._initialise)

    @staticmethod
    def _initialise(module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        return self.last(self.blocks(x))


# The three losses of hidden states (N, D), head (V, D) and targets (N).


def linear_then_torch(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(functional.linear(hidden, head), target)


def torch_linear(hidden: Tensor, head: Tensor, target: Tensor) -> Tensor:
    chunk = nn.LinearCrossEntropyOptions(batch_chunk_size=min(512, len(hidden)))
    return functional.linear_cross_entropy(hidden, head, target, options=chunk)


LOSSES = {"linear+torch": linear_then_torch, "torch-linear": torch_linear, "softgrad": linear_cross_entropy}


# Training.


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """A plain loop, with one of the losses."""
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    loss_of = LOSSES[arguments.loss]
    context = contextlib.nullcontext()
    if arguments.dtype == "bfloat16":
        context = torch.autocast("cpu", torch.bfloat16)
    model = GPT(arguments.width, arguments.layers, arguments.heads, arguments.context)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.1)
    pieces = batches(corpus(), arguments.steps, arguments.batch, arguments.context)
    before = peak_memory()

    curve, seconds = [], []
    for piece in pieces:
        start = time.perf_counter()
        inputs, target = piece[:, :-1], piece[:, 1:].reshape(-1)
        with context:
            hidden = model(inputs).view(len(target), -1)
            if arguments.dtype == "bfloat16":
                loss = loss_of(hidden.bfloat16(), model.token.weight.bfloat16(), target)
            else:
                loss = loss_of(hidden, model.token.weight, target)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
        seconds.append(time.perf_counter() - start)

    tokens = arguments.batch * arguments.context
    return {
        "loss": arguments.loss,
        "curve": curve,
        "tokens per second": tokens / statistics.median(seconds[1:] or seconds),  # the first one also warms up
        "peak MB": peak_memory(),
        "peak MB of training": peak_memory() - before,
    }


# Comparison.


def report(runs: list[dict[str, Any]], tolerance: float) -> None:
    print(f"{'loss':<14}{'tokens/s':>10}{'peak MB':>10}{'in training':>13}   first → last loss")
    for run in runs:
        curve = run["curve"]
        print(
            f"{run['loss']:<14}{run['tokens per second']:>10.0f}{run['peak MB']:>10.0f}"
            f"{run['peak MB of training']:>13.0f}   {curve[0]:.4f} → {curve[-1]:.4f}"
        )
    if len(runs) > 1:
        curves = torch.tensor([run["curve"] for run in runs], dtype=torch.float64)
        apart = float(((curves.amax(0) - curves.amin(0)) / curves.amin(0)).max())
        print(f"the curves differ by {apart:.1e} of the loss at most; {tolerance:.0e} is allowed")
        if not apart <= tolerance:
            raise SystemExit("the curves do not coincide")


def draw(runs: list[dict[str, Any]], path: str) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for run, width, style in zip(runs, (6, 3.5, 1.2), ("-", "-", "--"), strict=False):  # so that all can be seen
        label = f"{run['loss']}: {run['tokens per second']:.0f} tokens/s, {run['peak MB']:.0f} MB"
        axes.plot(run["curve"], style, linewidth=width, label=label)
    axes.set(xlabel="step", ylabel="cross-entropy (nats a token)", title="One GPT, three ways to take the loss")
    axes.legend()
    figure.savefig(path, dpi=120)
    print(f"the curves are in {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loss", choices=[*LOSSES, "all"], default="all")
    parser.add_argument("--dtype", choices=[*TOLERANCE], default="float32", help="of the matrix products")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, help="of PyTorch; softgrad's are SOFTGRAD_NUM_THREADS")
    parser.add_argument("--plot", default="gpt.png", help="where the picture goes")
    parser.add_argument("--smoke", action="store_true", help="a tiny model and a few steps")
    arguments = parser.parse_args()
    sizes = ("steps", "batch", "context", "width", "layers", "heads", "lr", "threads")
    if arguments.smoke:
        arguments.steps, arguments.batch, arguments.context, arguments.width, arguments.layers = 3, 8, 64, 32, 1
    if arguments.loss != "all":
        run = train(arguments)
        report([run], TOLERANCE[arguments.dtype])
        print(json.dumps(run))
        return
    options = [f"--{name}={value}" for name in sizes if (value := getattr(arguments, name)) is not None]
    runs = [in_fresh_process(__file__, "--loss", loss, "--dtype", arguments.dtype, *options) for loss in LOSSES]
    report(runs, TOLERANCE[arguments.dtype])
    draw(runs, arguments.plot)


if __name__ == "__main__":
    main()
