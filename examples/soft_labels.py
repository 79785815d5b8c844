"""Digits with mixed labels: mixup and label smoothing, through softgrad and through PyTorch.

Mixup adds two images and asks for both labels, so that each target is a distribution over the classes with two that are
not 0.  softgrad takes it as that, a pair (indices, values); `torch.nn.functional.cross_entropy` takes the dense rows.
The same network learns with either, from the same batches; the two curves must coincide.

    python examples/soft_labels.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from softgrad.torch import CrossEntropyLoss, cross_entropy

CLASSES = 10
SMOOTHING = 0.1
TOLERANCE = 1e-3  # by which the curves may differ: float32 sums in another order, over all the steps


class Mixed(NamedTuple):
    """A batch of images, each of them two, and how much it is of either label."""

    images: Tensor
    labels: Tensor  # (N, 2)
    shares: Tensor  # (N, 2), rows sum to 1


def mix(images: Tensor, labels: Tensor, generator: torch.Generator) -> Mixed:
    """Mixup (Zhang et al., 2018) with shares drawn from Beta(½, ½), the arcsine law."""
    share = torch.sin(torch.rand(len(images), 1, generator=generator) * torch.pi / 2) ** 2
    other = torch.randperm(len(images), generator=generator)
    mixture = share[..., None, None] * images + (1 - share[..., None, None]) * images[other]
    return Mixed(mixture, torch.stack([labels, labels[other]], 1), torch.cat([share, 1 - share], 1))


softgrad_loss = CrossEntropyLoss(label_smoothing=SMOOTHING)


def with_softgrad(logits: Tensor, batch: Mixed) -> Tensor:
    return softgrad_loss(logits, (batch.labels, batch.shares))


def with_torch(logits: Tensor, batch: Mixed) -> Tensor:
    dense = torch.zeros_like(logits).scatter_add_(1, batch.labels, batch.shares)
    return functional.cross_entropy(logits, dense, label_smoothing=SMOOTHING)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, CLASSES),
    )  # fmt: skip


def train(
    loss_of: Callable[[Tensor, Mixed], Tensor], images: Tensor, labels: Tensor, epochs: int
) -> tuple[nn.Module, list[float]]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    curve = []
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(128):
            batch = mix(images[rows], labels[rows], generator)
            loss = loss_of(model(batch.images), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
    return model, curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--smoke", action="store_true", help="a few epochs")
    arguments = parser.parse_args()
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    labels = torch.tensor(digits)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    held_out, rest = order[:360], order[360:]

    curves = {}
    for name, loss_of in (("softgrad", with_softgrad), ("torch", with_torch)):
        model, curves[name] = train(loss_of, images[rest], labels[rest], 5 if arguments.smoke else arguments.epochs)
        with torch.no_grad():
            logits = model.eval()(images[held_out])
        accuracy = float((logits.argmax(1) == labels[held_out]).float().mean())
        log_loss = float(cross_entropy(logits, labels[held_out]))
        print(f"{name:<9} held-out accuracy {accuracy:.3f}  log-loss {log_loss:.4f}  last loss {curves[name][-1]:.4f}")
    apart = max(abs(a - b) for a, b in zip(curves["softgrad"], curves["torch"], strict=True))
    print(f"the curves differ by {apart:.1e} at most; {TOLERANCE:.0e} is allowed")
    if not apart <= TOLERANCE:
        raise SystemExit("the curves do not coincide")


if __name__ == "__main__":
    main()
