"""What a checker tries: the user's sample, checked, and inputs of its shape, kind and dtype that show mistakes."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from softgrad._core.arrays import Array, as_rows, first_bad
from softgrad._core.backend import TargetKind
from softgrad._core.call import refuse_useless
from softgrad._core.options import Options
from softgrad._core.targets import as_targets, label_error
from softgrad._core.weights import class_weights, row_weights

# eps, largest and smallest positive number of each dtype
PRECISION = {
    "float64": (2.0**-52, 1.7e308, 5e-324),
    "float32": (2.0**-23, 3.4e38, 1.4e-45),
    "float16": (2.0**-10, 65504.0, 6e-8),
    "bfloat16": (2.0**-7, 3.3e38, 9e-41),
}


class CheckInput(NamedTuple):
    """One input, as float64 holds what the user's dtype holds."""

    name: str
    o: Array  # (N, V)
    y: Array  # labels (N,) or soft targets (N, V)
    laws: tuple[str, ...] = ()  # those it shows, beyond agreement with the exact answer
    ordinary: bool = False  # moderate logits: a wrong formula is wrong here already


class NumPyBridge:
    """Between the user's NumPy functions and float64; PyTorch's twin is `softgrad.torch._checking`."""

    def __init__(self, logits: Any, targets: Any) -> None:
        self.logits = numeric(logits, "logits")
        if self.logits.dtype.kind in "iu":
            self.logits = self.logits.astype(np.float64)
        self.dtype = self.logits.dtype.name
        self.targets: Any = (
            None if targets is None else np.asarray(targets) if not isinstance(targets, tuple) else targets
        )

    def make(self, o: Array, y: Array, _: bool = False) -> tuple[Any, Any]:
        """Fresh arrays for a user's function."""
        kind = y.dtype if self.targets is None else self.targets.dtype
        shape = self.logits.shape
        made = np.array(y, dtype=kind).reshape(shape if y.ndim == 2 else shape[:-1])
        return np.array(o, dtype=self.logits.dtype).reshape(shape), made[()]

    def hold(self, o: Array) -> Array:
        """What the dtype holds of these numbers."""
        return np.asarray(o.astype(self.logits.dtype).astype(np.float64))

    def hold_soft(self, y: Array) -> Array:
        """What the dtype of the soft targets holds."""
        return y if self.targets is None else np.asarray(y.astype(self.targets.dtype).astype(np.float64))

    @staticmethod
    def numbers(result: Any) -> Array:
        """A result as float64."""
        return np.asarray(np.asarray(result).astype(np.float64))

    @staticmethod
    def loss(function: Callable[..., Any], logits: Any, targets: Any, _: float) -> tuple[Any, Any, bool]:
        """The value, its gradient if the function returns one, and whether it does."""
        result = function(logits, targets)
        return (*result, True) if isinstance(result, tuple) and len(result) == 2 else (result, None, False)

    @property
    def soft_name(self) -> str | None:
        """The dtype of the soft targets."""
        return None if self.targets is None or self.targets.dtype.kind in "iu" else str(self.targets.dtype.name)


def numeric(values: Any, name: str) -> Array:
    """An array of numbers, or one line that names what is none."""
    try:
        array = np.asarray(values)
        if array.dtype.kind in "USO":
            array = np.asarray(values, dtype=object)
    except ValueError:
        raise ValueError(f"{name} have rows of different lengths; every row holds one number a class") from None
    if array.dtype == object:
        for place, value in np.ndenumerate(array):
            if not isinstance(value, numbers.Real):
                raise TypeError(f"{name}{list(place)} is {value!r}, not a number")
        array = array.astype(np.float64)
    return array


def check_sample(logits: Array, targets: Any, options: Options) -> tuple[Array, Array]:
    """The sample as float64 rows and targets; every mistake in it gets one line."""
    if logits.ndim not in (1, 2):
        raise ValueError(f"logits have shape {logits.shape}; give one row (V,) or a batch (N, V)")
    if logits.size == 0:
        raise ValueError(f"logits of shape {logits.shape} are empty; give at least one row")
    rows = as_rows(logits)
    n, classes = rows.array.shape
    if classes == 1:
        raise ValueError(f"logits of shape {logits.shape} have one class, whose probability is always 1; give V ≥ 2")
    o = np.asarray(logits).astype(np.float64).reshape(n, classes)
    wrong = np.isnan(o) | (o == np.inf)
    if wrong.any():
        where = np.unravel_index(int(wrong.argmax()), logits.shape)
        raise ValueError(f"logits{[int(i) for i in where]} is {logits[where]}; logits are finite, or −inf for a mask")
    if (masked := np.isneginf(o).all(axis=1)).any():
        raise ValueError(f"logits row {int(masked.argmax())} is −inf throughout: it has no softmax")
    class_weights(options.class_weight, rows)
    row_weights(options.sample_weight, rows.outer)
    if targets is None:
        return o, np.asarray(np.random.default_rng(1).integers(0, classes, n))
    if isinstance(targets, tuple):
        raise TypeError("targets are a tuple; give labels (integers) or soft targets (floats of the logits' shape)")
    if targets.dtype.kind in "USO":
        targets = numeric(targets, "targets")
    checked = as_targets(targets, rows)
    refuse_useless(checked, options)
    if checked.kind is TargetKind.labels:
        y = np.asarray(targets).reshape(n)
        bad = ((y < 0) | (y >= classes)) & (True if options.ignore_index is None else y != options.ignore_index)
        if bad.any():
            raise label_error(checked, int(bad.argmax()), rows, classes)
        return o, y.astype(np.int64)
    soft = targets.astype(np.float64)
    if (place := first_bad(soft)) is not None:
        raise ValueError(f"targets{list(place)} is {targets[place]}; soft targets are finite")
    if (soft < 0).any():
        place = tuple(int(i) for i in np.argwhere(soft < 0)[0])
        raise ValueError(f"targets{list(place)} is {targets[place]}; soft targets are probabilities, never negative")
    return o, soft.reshape(n, classes)


def cases(
    bridge: Any, o: Array, y: Array, dtype: str, options: Options, offset: float | None, masked: bool
) -> list[CheckInput]:
    """The sample first, then what shows one mistake after another; the same for the same call."""
    eps, largest, _ = PRECISION[dtype]
    size = min(1e4, 1.5 / eps) if offset is None else offset
    # exp(−gap) is 0 in every dtype, and N·V·gap, which smoothing may sum, still a number.
    gap = float(round(min(2000.0, max(24.0, largest / (8 * o.size)))))
    random = np.random.default_rng(0)
    n, classes = o.shape
    line = np.arange(n)

    def targets() -> Array:
        if y.ndim == 2:
            return np.asarray(y[random.permutation(n)][:, random.permutation(classes)])
        labels: Array = np.asarray(random.integers(0, classes, n))
        if options.ignore_index is not None and n > 1:
            labels[labels == options.ignore_index] += 1 if options.ignore_index == 0 else -1
            labels[random.integers(n)] = options.ignore_index
        return labels

    def draw(spread: float = 1.5) -> Array:
        return random.normal(size=(n, classes)) * spread

    def own(labels: Array) -> Array:
        return labels.argmax(axis=1) if labels.ndim == 2 else labels.clip(0, classes - 1)

    first = draw(), targets()
    made = [
        CheckInput("your logits", o, y, ordinary=bool(np.abs(o).max() < 10)),
        CheckInput("ordinary logits", *first, ordinary=True),
        CheckInput("small logits", draw(0.5), targets(), ordinary=True),
        CheckInput("logits shifted by 3", first[0] + 3, first[1], ("shift invariance",), ordinary=True),
        CheckInput("equal logits", np.zeros_like(o), targets()),
    ]
    spread = max(1.5, eps * size)
    overflow = ("maximum not subtracted", "shift invariance", "digits lost to the offset")
    made.append(CheckInput(f"logits offset by {size:+g}", draw(spread) + size, targets(), overflow))
    made.append(CheckInput(f"logits offset by {-size:+g}", draw(spread) - size, targets(), overflow))
    if n > 1:
        apart = draw() + np.where(line % 2, size, -size)[:, None]
        made.append(CheckInput("rows far apart", apart, targets(), ("one maximum for all rows",)))
    for name, height, law in (
        ("a peak of 12 at the target", 12.0, ()),
        (f"a peak of {gap:g} at the target", gap, ("log of zero", "division by a zero probability")),
        (f"the target's logit {gap:g} lower", -gap, ("log of zero", "log of a clipped probability")),
    ):
        logits, labels = draw(), targets()
        logits[line, own(labels)] += height
        made.append(CheckInput(name, logits, labels, law))
    if masked:
        logits, labels = draw(), targets()
        hidden = random.random((n, classes)) < 0.4
        hidden[line, (own(labels) + 1) % classes] = True
        hidden[line, own(labels)] = False
        logits[hidden] = -np.inf
        if labels.ndim == 2:
            mass = labels.sum(axis=1, keepdims=True)
            labels = np.where(hidden, 0.0, labels)
            left = labels.sum(axis=1, keepdims=True)
            labels = labels * np.divide(mass, left, out=np.zeros_like(mass), where=left > 0)
        made.append(CheckInput("masked logits (−inf)", logits, labels, ("0·∞", "masked logits")))

    def held(case: CheckInput) -> CheckInput:
        logits = bridge.hold(np.where(np.isneginf(case.o), -np.inf, case.o.clip(-largest, largest)))
        return case._replace(o=logits, y=bridge.hold_soft(case.y) if case.y.ndim == 2 else case.y)

    return made[:1] + [held(case) for case in made[1:]]
