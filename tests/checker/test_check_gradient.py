"""`check_gradient` on implementations that are right, on calls that are wrong, and what its reports say."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F  # noqa: N812 - as everybody calls it

import softgrad
import softgrad.torch
from softgrad._checker.check import GradientReport, check_gradient

DTYPES = ("float64", "float32", "float16", "bfloat16")
SHAPES = ((1, 2), (4, 5), (5, 5), (3, 17), (2, 3), (7,))
Sample = tuple[Any, Any]


def numpy_sample(shape: tuple[int, ...], kind: str, dtype: str = "float64", seed: int = 0) -> Sample:
    random = np.random.default_rng(seed)
    logits = (2 * random.normal(size=shape)).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    labels = random.integers(0, shape[-1], shape[:-1])
    if kind == "labels":
        return logits, labels
    if kind == "one-hot":
        return logits, np.eye(shape[-1])[labels]
    y = random.random(shape) + 0.01
    return logits, y / y.sum(axis=-1, keepdims=True)


def torch_sample(shape: tuple[int, ...], kind: str, dtype: str = "float32", seed: int = 0) -> Sample:
    logits, targets = numpy_sample(shape, kind, "float64", seed)
    y = torch.tensor(targets)
    kind_ = getattr(torch, dtype)
    return torch.tensor(logits).to(kind_), y.to(kind_) if y.is_floating_point() else y


def passes(report: GradientReport) -> None:
    assert report, str(report)
    assert report.law is None


# --- correct implementations, none accused ---------------------------------------------------------------------------


def textbook(o: Any, y: Any) -> Any:
    rows = np.arange(len(o))
    d = o - o.max(axis=1, keepdims=True)
    e = np.exp(d)
    total = e.sum(axis=1, keepdims=True)
    value = (np.log(total)[:, 0] - d[rows, y]).mean()
    g = e / total
    g[rows, y] -= 1
    return value, g / len(o)


def scipy_loss(o: Any, y: Any) -> Any:
    rows = np.arange(len(o))
    g = scipy.special.softmax(o, axis=1)
    g[rows, y] -= 1
    return -scipy.special.log_softmax(o, axis=1)[rows, y].mean(), g / len(o)


def lse_loss(o: Any, y: Any) -> Any:
    rows = np.arange(len(o))
    lse = scipy.special.logsumexp(o, axis=1)
    g = np.exp(o - lse[:, None])
    g[rows, y] -= 1
    return (lse - o[rows, y]).mean(), g / len(o)


@pytest.mark.parametrize("function", [textbook, scipy_loss, lse_loss])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(
    n=st.integers(1, 6), v=st.integers(2, 12), seed=st.integers(0, 1000), size=st.sampled_from([0.0, 0.1, 1.0, 20.0])
)
@settings(max_examples=25)
def test_numpy(function: Callable[..., Any], dtype: str, n: int, v: int, seed: int, size: float) -> None:
    logits, y = numpy_sample((n, v), "labels", dtype, seed)
    passes(check_gradient(function, logits * np.asarray(size, dtype), y))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("shape", [s for s in SHAPES if len(s) == 2])
def test_numpy_textbook_in_half_precision(dtype: str, shape: tuple[int, ...]) -> None:
    for seed in range(5):
        passes(check_gradient(textbook, *numpy_sample(shape, "labels", dtype, seed)))


def test_numpy_labels_are_made_and_only_the_value_is_enough() -> None:
    report = check_gradient(lambda o, y: textbook(o, y)[0], np.zeros((3, 4)))
    passes(report)
    assert "gradient" not in report.checked
    assert "gradient" in report.unchecked[0]
    passes(check_gradient(lambda o, y: textbook(o, y)[0], [[1, 2], [3, 4]], [0, 1]))


def soft_textbook(o: Any, y: Any) -> Any:
    d = o - o.max(-1, keepdims=True)
    log_s = d - np.log(np.exp(d).sum(-1, keepdims=True))
    value = -np.where(y == 0, 0, y * log_s).sum(-1).mean()
    return value, (np.exp(log_s) * y.sum(-1, keepdims=True) - y) / max(1, math.prod(o.shape[:-1]))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["one-hot", "soft"])
def test_numpy_soft_targets(shape: tuple[int, ...], kind: str) -> None:
    for dtype in ("float64", "float32"):
        logits, y = numpy_sample(shape, kind, dtype)
        passes(check_gradient(soft_textbook, logits, y))
        passes(check_gradient(soft_textbook, logits, 3 * y.astype(np.float32), masked=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["labels", "one-hot", "soft"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reduction": "sum", "label_smoothing": 0.1},
        {"reduction": "none", "temperature": 0.5},
        {"z_loss": 1e-2, "logit_scale": 1.5},
        {"softcap": 5.0, "temperature": 2.0},
        {"label_smoothing": 0.2, "smooth_finite_only": True},
    ],
    ids=str,
)
def test_softgrads_own(dtype: str, shape: tuple[int, ...], kind: str, options: dict[str, Any]) -> None:
    transform = {k: options[k] for k in ("logit_scale", "softcap", "temperature") if k in options}
    passes(
        check_gradient(
            lambda o, y: softgrad.cross_entropy_with_grad(o, y, **options),
            *numpy_sample(shape, kind, dtype),
            softmax=lambda o: softgrad.softmax(o, **transform),
            jacobian=None if transform else softgrad.softmax_jacobian,
            **options,
        )
    )


def test_softgrads_own_with_weights_and_ignored_rows() -> None:
    for seed in range(5):
        logits, y = numpy_sample((6, 4), "labels", "float32", seed)
        weight, rows = np.array([0.5, 1, 2, 3]), np.array([1.0, -0.5, 2, 0, 1, 0.5])
        for options in (
            {"class_weight": weight, "ignore_index": 3},
            {"sample_weight": rows, "reduction": "sum"},
            {"ignore_index": -100, "class_weight": weight, "label_smoothing": 0.1},
        ):

            def own(o: Any, y: Any, options: Any = options) -> Any:
                return softgrad.cross_entropy_with_grad(o, y, **options)

            passes(check_gradient(own, logits, y, **options))


@pytest.mark.parametrize("offset", [1e4, 1e8, 1e30])
def test_softgrad_keeps_the_digits_at_any_offset(offset: float) -> None:
    passes(check_gradient(softgrad.cross_entropy_with_grad, *numpy_sample((4, 5), "labels", "float32"), offset=offset))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["labels", "one-hot", "soft"])
@pytest.mark.parametrize("function", [F.cross_entropy, softgrad.torch.cross_entropy])
def test_torch_cross_entropy(dtype: str, shape: tuple[int, ...], kind: str, function: Callable[..., Any]) -> None:
    for seed, options in enumerate(({}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1})):
        logits, y = torch_sample(shape, kind, dtype, seed)
        passes(check_gradient(lambda o, t, k=options: function(o, t, **k), logits, y, **options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_torch_weights_temperature_and_ignored_rows(dtype: str, reduction: str) -> None:
    logits, y = torch_sample((5, 4), "labels", dtype)
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=logits.dtype)
    for extra in ({"label_smoothing": 0.1}, {}):
        passes(
            check_gradient(
                lambda o, t, k=extra: F.cross_entropy(o / 2, t, weight, ignore_index=-100, reduction=reduction, **k),
                logits,
                y,
                temperature=2.0,
                class_weight=weight.float(),
                ignore_index=-100,
                reduction=reduction,
                **extra,
            )
        )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_torch_log_sum_exp(dtype: str) -> None:
    for seed in range(5):
        passes(
            check_gradient(
                lambda o, t: (torch.logsumexp(o, 1) - o.gather(1, t[:, None])[:, 0]).mean(),
                *torch_sample((4, 6), "labels", dtype, seed),
                softmax=lambda o: o.softmax(1),
                jacobian=lambda o: torch.diag_embed(o.softmax(1)) - o.softmax(1)[:, :, None] * o.softmax(1)[:, None],
            )
        )


class HandWritten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, o: Any, y: Any) -> Any:
        s = o.softmax(1)
        ctx.save_for_backward(s, y)
        return -o.log_softmax(1).gather(1, y[:, None]).mean()

    @staticmethod
    def backward(ctx: Any, upstream: Any) -> Any:
        s, y = ctx.saved_tensors
        return upstream * (s - F.one_hot(y, s.shape[1])) / len(s), None


def test_torch_function_with_its_own_backward() -> None:
    for dtype in DTYPES:
        report = check_gradient(HandWritten.apply, *torch_sample((4, 5), "labels", dtype))
        passes(report)
        assert "upstream gradient ignored" in report.checked


def test_torch_value_with_gradient_and_gradient_alone() -> None:
    logits, y = torch_sample((4, 5), "labels")

    def gradient(o: Any, t: Any) -> Any:
        return (o.softmax(1) - F.one_hot(t, 5)) / 4

    passes(check_gradient(None, logits, y, gradient=gradient))
    passes(check_gradient(F.cross_entropy, logits, y, gradient=gradient))
    passes(check_gradient(lambda o, t: (F.cross_entropy(o, t), gradient(o, t)), logits, y))
    passes(check_gradient(None, torch.nn.Parameter(logits), softmax=lambda o: F.softmax(o, dim=1)))


def test_a_masked_sample() -> None:
    logits, _ = numpy_sample((3, 4), "labels")
    logits[:, 1] = -np.inf
    passes(check_gradient(textbook, logits, [0, 2, 3]))
    passes(check_gradient(soft_textbook, logits, np.eye(4)[[0, 2, 3]]))


def test_functions_of_one_row_in_pure_python() -> None:
    def loss(o: Any, y: Any) -> float:
        m = max(o)
        return math.log(sum(math.exp(x - m) for x in o)) - (o[y] - m)

    passes(check_gradient(loss, [1.0, 2.0, 3.0], 2))


# --- the report ------------------------------------------------------------------------------------------------------


def summed(o: Any, y: Any) -> Any:
    value, gradient = textbook(o, y)
    return value, len(o) * gradient


def test_report_of_a_failure() -> None:
    logits, y = [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], [0, 2]
    report = check_gradient(summed, logits, y)
    assert not report
    assert report.law == "mean against sum" == report.checked[-1]
    first = "gradient[0, 0] is -0.340999, expected -0.170499, on your logits"
    assert report.message.splitlines()[0] == first
    assert repr(report) == f"GradientReport(mean against sum: {first})"
    assert "Fix: divide loss and gradient" in str(report)
    assert str(report).startswith("mean against sum: gradient[0, 0]")
    assert report._repr_markdown_().startswith("**mean against sum.** gradient[0, 0]")
    assert "expected\n[[" in report._repr_markdown_()
    np.testing.assert_array_equal(report.logits, logits)
    np.testing.assert_array_equal(report.targets, y)
    np.testing.assert_allclose(report.found, 2 * report.expected)
    with pytest.raises(AttributeError):
        report.law = None  # type: ignore[misc]


def test_report_of_success() -> None:
    report = check_gradient(textbook, [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], [0, 2])
    assert report.logits is report.targets is report.expected is report.found is None
    assert report.unchecked == ()
    assert repr(report) == f"GradientReport(all {len(report.checked)} laws hold)"
    assert str(report).startswith(f"all laws hold: {len(report.checked)} on 12 inputs (")
    assert report._repr_markdown_().startswith("**All laws hold.**")
    for law in (
        "shape", "changes its input", "sign", "mean against sum", "double softmax", "wrong axis", "value", "gradient",
        "rows sum to zero", "shift invariance", "maximum not subtracted", "log of zero", "0·∞",
        "digits lost to the offset", "one maximum for all rows", "log of a clipped probability",
    ):  # fmt: skip
        assert law in report.checked, law
    assert "rows sum to one" not in report.checked
    assert "forgotten label smoothing" not in report.checked


def test_one_row_cannot_tell_a_mean_from_a_sum_and_says_so() -> None:
    assert "mean against sum" not in check_gradient(summed, [[2.0, 1.0]], [0]).checked


def test_report_of_one_row_and_of_tensors() -> None:
    report = check_gradient(None, [1.0, 2.0, 4.0], 1, gradient=lambda o, y: np.eye(3)[y] - softgrad.softmax(o))
    assert report.law == "sign"
    assert report.message.startswith("gradient[0] is ")
    assert report.found is not None
    assert report.found.shape == (3,)
    report = check_gradient(lambda o, t: -F.cross_entropy(o, t), *torch_sample((2, 3), "labels", "bfloat16"))
    assert report.law == "sign"
    assert report.logits.dtype == torch.bfloat16
    assert not report.logits.requires_grad
    assert isinstance(report.found, np.ndarray)


def test_the_same_call_gives_the_same_report() -> None:
    sample = numpy_sample((4, 5), "labels", "float32")
    for function in (summed, textbook):
        assert str(check_gradient(function, *sample)) == str(check_gradient(function, *sample))


def test_the_callers_arrays_are_unchanged() -> None:
    def greedy(o: Any, y: Any) -> Any:
        o -= o.mean()
        return 0.0

    for sample in (numpy_sample((4, 5), "labels"), torch_sample((4, 5), "labels")):
        before = [np.asarray(part).copy() for part in sample]
        assert check_gradient(greedy, *sample).law == "changes its input"
        for part, old in zip(sample, before, strict=True):
            np.testing.assert_array_equal(part, old)
    assert not torch_sample((4, 5), "labels")[0].requires_grad


def test_an_assertion_reads_well() -> None:
    with pytest.raises(AssertionError, match=r"GradientReport\(mean against sum: gradient\[0, 0\] is "):
        assert check_gradient(summed, [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]], [0, 2])


def test_a_given_tolerance_decides() -> None:
    def rough(o: Any, y: Any) -> Any:
        value, gradient = textbook(o, y)
        return value * (1 + 1e-6), gradient

    sample = numpy_sample((4, 5), "labels")
    report = check_gradient(rough, *sample)
    assert report.law == "digits of float32"
    assert "value is 2.24657" not in report.message or "expected 2.24657," not in report.message
    passes(check_gradient(rough, *sample, rtol=1e-5))


def test_inputs_without_a_finite_answer_are_skipped_and_named() -> None:
    logits, y = numpy_sample((4, 5), "labels", "float16")
    report = check_gradient(lambda o, t: softgrad.cross_entropy(o, t, z_loss=1.0), logits, y, z_loss=1.0)
    passes(report)
    assert "logits offset by +1536 (no finite answer in float16)" in report.unchecked


# --- bad calls: one clear line each ----------------------------------------------------------------------------------


def zero(*_: Any) -> float:
    return 0.0


LOGITS = [[2.0, 1.0, 0.1], [0.5, 2.5, 0.3]]
BAD: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    ((zero, LOGITS, [0, 3]), {}, ValueError, r"targets\[1\] is 3, outside \[0, 3\)"),
    ((zero, LOGITS, [0, -100]), {}, ValueError, r"targets\[1\] is -100, .*ignore_index=-100 would leave"),
    ((zero, [[2.0, "two"], [1.0, 0.5]], [0, 1]), {}, TypeError, r"logits\[0, 1\] is 'two', not a number"),
    ((zero, [[2.0, None]], [0]), {}, TypeError, r"logits\[0, 1\] is None, not a number"),
    ((zero, [[2.0, 1.0], [1.0]], [0, 1]), {}, ValueError, "rows of different lengths"),
    ((zero, LOGITS, [[0.5, 0.5, 0.0], [1.3, -0.3, 0.0]]), {}, ValueError, r"targets\[1, 1\] is -0.3; .*never negative"),
    ((zero, LOGITS, [[0.5, 0.5, 0.0], [np.nan, 1, 0.0]]), {}, ValueError, r"targets\[1, 0\] is nan"),
    ((zero, [[1.0], [2.0]], [0, 0]), {}, ValueError, r"shape \(2, 1\) have one class"),
    ((zero, np.zeros((0, 3))), {}, ValueError, "empty"),
    ((zero, np.zeros((2, 3, 4))), {}, ValueError, r"\(2, 3, 4\); give one row \(V,\) or a batch"),
    ((zero, 3.0), {}, ValueError, r"shape \(\); give one row"),
    ((zero, [[1.0, np.nan]]), {}, ValueError, r"logits\[0, 1\] is nan"),
    ((zero, [[1.0, np.inf]]), {}, ValueError, r"logits\[0, 1\] is inf"),
    ((zero, [[0.0, 1.0], [-np.inf, -np.inf]]), {}, ValueError, "row 1 is −inf throughout"),
    ((zero, [[0.0, -np.inf]], [1]), {}, ValueError, "row 0 is −inf at class 1.*infinite"),
    ((zero, LOGITS, [0, 1, 2]), {}, ValueError, r"targets have shape \(3,\)"),
    ((zero, LOGITS, [0.0, 1.0]), {}, ValueError, r"soft targets have shape \(2,\).*labels are integers"),
    ((zero, LOGITS, ["cat", "dog"]), {}, TypeError, r"targets\[0\] is 'cat', not a number"),
    ((zero, LOGITS, ([[0]], [[1.0]])), {}, TypeError, "targets are a tuple"),
    ((zero, LOGITS, [0, 0]), {"ignore_index": 0}, ValueError, "every row is ignored"),
    ((zero, LOGITS), {"label_smoothing": 1.5}, ValueError, "label_smoothing=1.5 is outside"),
    ((zero, LOGITS), {"smoothing": 0.5}, TypeError, "unexpected keyword argument 'smoothing'"),
    ((zero, LOGITS), {"class_weight": [1.0, 2.0]}, ValueError, r"class_weight has shape \(2,\)"),
    ((zero, LOGITS), {"sample_weight": [1.0]}, ValueError, r"sample_weight has shape \(1,\)"),
    ((zero, torch.zeros(2, 3).to(torch.float8_e5m2)), {}, TypeError, "float8_e5m2 are not supported; use float64"),
    ((zero, LOGITS), {"rtol": -1.0}, ValueError, "rtol=-1.0 must be"),
    ((zero, LOGITS), {"offset": np.inf}, ValueError, "offset=inf must be"),
    ((zero, np.zeros((2, 3), np.float16)), {"offset": 1e6}, ValueError, r"offset=1e\+06 is too large for float16"),
    ((zero, LOGITS), {"masked": 1}, TypeError, "masked must be True, False or None"),
    ((LOGITS, zero), {}, TypeError, "loss is of type list; give a function"),
    ((None, LOGITS), {}, TypeError, "nothing to check"),
    ((zero, LOGITS), {"softmax": 3}, TypeError, "softmax is of type int"),
    ((zero, torch.zeros(2, 3, dtype=torch.int64)), {}, TypeError, "tensor of torch.int64"),
    ((zero, np.zeros((2, 3), np.float16) + 6e4), {}, ValueError, "leave no room for the loss in float16"),
    ((zero, np.zeros((2, 3), complex)), {}, TypeError, "complex128"),
    ((lambda o, y: (0.0, o), LOGITS), {"gradient": zero}, TypeError, "loss returns its own gradient"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "options", "kind", "words"), BAD, ids=[b[3] for b in BAD])
def test_bad_call(arguments: Any, options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        check_gradient(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_what_a_function_raises_names_the_input() -> None:
    def fails(o: Any, y: Any) -> Any:
        if np.isneginf(o).any():
            raise KeyError("no masks here")
        return textbook(o, y)

    words = r"loss raised KeyError on masked logits \(−inf\) \(shape \(2, 3\), float64\)"
    with pytest.raises(RuntimeError, match=words) as caught:
        check_gradient(fails, LOGITS, [0, 1])
    assert isinstance(caught.value.__cause__, KeyError)
    passes(check_gradient(fails, LOGITS, [0, 1], masked=False))


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda o, y: np.zeros(2), r"loss has shape \(2,\), expected \(\) for reduction=mean or sum"),
        (lambda o, y: None, r"loss returned None \(a forgotten return\?\)"),
        (lambda o, y: "much", "loss returned a str, which is no array of numbers"),
        (lambda o, y: (0.91160, np.zeros(3)), r"the gradient that loss returns has shape \(3,\), expected \(2, 3\)"),
        (lambda o, y: (0.91160, None), "loss returned None as its gradient"),
    ],
)
def test_shape(function: Any, words: str) -> None:
    report = check_gradient(function, LOGITS, [0, 1])
    assert report.law == "shape"
    assert re.search(words, report.message)


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, softgrad._checker.check; print([m for m in ('torch', 'scipy', 'sympy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
