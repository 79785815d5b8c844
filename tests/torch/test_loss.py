"""`cross_entropy`: value and gradient against float64 PyTorch, against the reference, and the edge-case table."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812
from torch_cases import (
    DTYPES,
    INTEGERS,
    REDUCTIONS,
    axis_of,
    eighths,
    followed,
    formula,
    labels_for,
    near,
    normal,
    oracle,
    outer_of,
    same_bits,
    soft_for,
    sparse_for,
    upstream_for,
    value_and_grads,
)

from softgrad import reference
from softgrad._core import backend
from softgrad.torch import _rows, cross_entropy
from softgrad.torch._call import make_call

INF, NAN = math.inf, math.nan
SHAPES = ((7,), (5, 7), (3, 70), (3, 7, 2), (2, 5, 2, 3))
each_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
each_reduction = pytest.mark.parametrize("reduction", REDUCTIONS)


def check(o: Tensor, y: Any, expected: Any = formula, context: Any = "", **options: Any) -> None:
    """Loss, its dtype, and gradient against an oracle in float64, for a non-uniform upstream gradient."""
    leaf, truth = followed(o), followed(o.double())
    loss, (gradient,) = value_and_grads(cross_entropy, [leaf], leaf, y, **options)
    if isinstance(y, tuple):
        wide = (y[0], y[1].double())
    else:
        wide = y.double() if y.is_floating_point() else y.long()
    loss64, (gradient64,) = value_and_grads(expected, [truth], truth, wide, **oracle(options))
    assert loss.dtype == gradient.dtype == o.dtype
    near(loss, loss64, o.dtype, f"loss {context}")
    near(gradient, gradient64, o.dtype, f"gradient {context}")


def test_the_oracle_is_pytorchs() -> None:
    """`formula` against F.cross_entropy, where that has the options."""
    for shape, reduction, smoothing in itertools.product(SHAPES, REDUCTIONS, (0.0, 0.2)):
        o = normal(*shape)
        w = eighths(shape[axis_of(shape)])
        for y in (labels_for(o), soft_for(o)):
            options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing, "weight": w}
            torch.testing.assert_close(formula(o, y, **options), F.cross_entropy(o, y, **options))


# --- what PyTorch has ------------------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_combination_of_pytorchs_options(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    every_combination(shape, dtype)


@pytest.mark.parametrize("shape", [(5, 7), (3, 70)], ids=str)
def test_every_combination_the_long_way(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_rows, "SMALL_BYTES", 0)
    every_combination(shape, torch.float32)


def every_combination(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    o = normal(*shape, dtype=dtype)
    classes = shape[axis_of(shape)]
    ignoring = labels_for(o)
    if ignoring.ndim:
        ignoring.view(-1)[::3] = 2
    for soft, weighted, ignored, smoothing, reduction in itertools.product(
        (False, True), (False, True), (False, True), (0.0, 0.1, 1.0), REDUCTIONS
    ):
        if soft and ignored:
            continue
        options: dict[str, Any] = {"reduction": reduction, "label_smoothing": smoothing}
        if weighted:
            options["weight"] = eighths(classes).to(dtype)
        if ignored and ignoring.ndim:
            options["ignore_index"] = 2
        y = soft_for(o) if soft else ignoring
        check(o, y, F.cross_entropy, options, **options)


@pytest.mark.parametrize("integer", INTEGERS, ids=str)
@pytest.mark.usefixtures("passes")
def test_labels_of_every_integer_type(integer: torch.dtype) -> None:
    for shape in ((), (6,), (2, 3)):
        o = normal(*(shape[:1] or ()), 9, *shape[1:], dtype=torch.float32)
        y = labels_for(o, integer)
        check(o, y)
        if y.ndim and integer != torch.uint8:
            y.view(-1)[1] = -1
            check(o, y, ignore_index=-1)
        elif y.ndim:
            y.view(-1)[1] = 255
            check(o, y, ignore_index=255, label_smoothing=0.1)


@each_dtype
def test_soft_targets_of_another_float_type(dtype: torch.dtype) -> None:
    o = normal(4, 9, dtype=dtype)
    for kind in DTYPES.values():
        exact = soft_for(o, torch.bfloat16).to(kind)  # what float32 arithmetic sees exactly
        check(o, exact, formula, kind)
        check(o, sparse_for(o, torch.bfloat16), formula, kind)


# --- what PyTorch has not --------------------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[Any, ...]] = {
    "weight": ("eighths",),
    "sample_weight": ("signed", "with zeros"),
    "ignore_index": (2,),
    "label_smoothing": (0.1,),
    "smooth_finite_only": (True,),
    "logit_scale": (0.5, -1.5),
    "softcap": (2.0,),
    "temperature": (0.75,),
    "z_loss": (0.0625,),
    "reduction": ("sum", "none"),
}
PAIRS = [
    {a: x, b: y} for a, b in itertools.combinations(OPTIONS, 2) for x, y in itertools.product(OPTIONS[a], OPTIONS[b])
]


def concrete(chosen: dict[str, Any], o: Tensor) -> dict[str, Any]:
    options = dict(chosen)
    if "weight" in options:
        options["weight"] = eighths(o.shape[axis_of(o.shape)])
    if "sample_weight" in options:
        a = eighths(*outer_of(o.shape))
        a[::2] *= -0.25 if options["sample_weight"] == "signed" else 0.0
        options["sample_weight"] = a
    return options


def rows(o: Tensor) -> Any:
    """A tensor as the reference reads it."""
    return o.detach().double().numpy()


def against_reference(o: Tensor, y: Any, options: dict[str, Any]) -> None:
    leaf = followed(o)
    loss, (gradient,) = value_and_grads(cross_entropy, [leaf], leaf, y, **options)
    names = {"weight": "class_weight"}
    given = {names.get(k, k): v.numpy() if isinstance(v, Tensor) else v for k, v in options.items()}
    targets = tuple(rows(t) if t.is_floating_point() else t.numpy() for t in y) if isinstance(y, tuple) else y.numpy()
    expected, slope = reference.cross_entropy_with_grad(rows(o), targets, axis=axis_of(o.shape), **given)
    loss64, slope64 = torch.tensor(expected, dtype=torch.float64), torch.from_numpy(slope)
    g = upstream_for(loss).double()
    signed = "sample_weight" in options and options.get("reduction") != "none"  # the rows cancel
    near(loss, loss64, o.dtype, f"loss {options}", floor=4.0 if signed else 0.0)
    near(gradient, slope64 * (g.unsqueeze(axis_of(o.shape)) if g.ndim else g), o.dtype, f"gradient {options}")


@pytest.mark.parametrize("target", ["labels", "labels, the long way", "soft", "sparse"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_pairs_of_options_against_the_reference(
    dtype: torch.dtype, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "long" in target:
        target = "labels"
        monkeypatch.setattr(_rows, "SMALL_BYTES", 0)
    for chosen, shape in itertools.product(PAIRS, ((6, 7), (3, 70))):
        if target != "labels" and "ignore_index" in chosen:
            continue
        o = normal(*shape, dtype=dtype)
        y = labels_for(o) if target == "labels" else soft_for(o).float() if target == "soft" else sparse_for(o)
        if chosen.get("smooth_finite_only"):  # some classes are masked, for which the labels and shares must not ask
            o[:, 1] = -INF if chosen.get("logit_scale", 1) > 0 else 0.5
            y = torch.where(y == 1, 2, y) if target == "labels" else y
            if target == "soft":
                y[:, 1] = 0
            if target == "sparse":
                y = (torch.where(y[0] == 1, 2, y[0]), y[1])
        against_reference(o, y, concrete(chosen, o))


@pytest.mark.parametrize("target", ["labels", "soft", "sparse"])
def test_options_on_every_instruction_set(target: str, instruction_set: str) -> None:
    chosen: dict[str, Any] = {
        "weight": True, "sample_weight": "signed", "label_smoothing": 0.1, "softcap": 3.0, "temperature": 2.0,
        "z_loss": 0.125, "logit_scale": -0.5,
    }  # fmt: skip
    for dtype, reduction, shape in itertools.product(DTYPES.values(), REDUCTIONS, ((5, 7), (3, 130), (2, 7, 3))):
        o = normal(*shape, dtype=dtype)
        y = labels_for(o) if target == "labels" else soft_for(o).float() if target == "soft" else sparse_for(o)
        against_reference(o, y, concrete({"reduction": reduction}, o))
        against_reference(o, y, concrete({**chosen, "reduction": reduction}, o))


def test_few_rows_of_many_classes_are_split_by_columns(instruction_set: str) -> None:
    o = normal(2, 66_000, dtype=torch.float32)
    for reduction, threads in itertools.product(REDUCTIONS, (1, 2)):
        check(o, torch.tensor([65_999, 3]), reduction=reduction, n_threads=threads)


def test_weights_and_masks_of_any_real_type() -> None:
    o, a = normal(4, 5), torch.tensor([True, False, True, True])
    y = labels_for(o)
    expected = formula(o, y, sample_weight=a)
    for kind in (torch.bool, torch.int32, torch.float16, torch.float32):
        near(cross_entropy(o, y, sample_weight=a.to(kind)), expected, torch.float64)
    near(
        cross_entropy(o, y, torch.tensor([1, 2, 3, 4, 5])),
        formula(o, y, torch.arange(1.0, 6.0)),
        torch.float64,
    )


# --- the two ways of computing ---------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("target", ["labels", "soft", "sparse"])
def test_pytorchs_operations_agree_with_the_kernels(dtype: torch.dtype, target: str) -> None:
    for chosen in [{}, *PAIRS]:
        if target != "labels" and "ignore_index" in chosen:
            continue
        o = normal(5, 7, dtype=dtype)
        y = labels_for(o) if target == "labels" else soft_for(o) if target == "soft" else sparse_for(o)
        options = concrete(chosen, o)
        kernels, composite = followed(o), followed(o)
        loss, (gradient,) = value_and_grads(cross_entropy, [kernels], kernels, y, **options)

        def operations(logits: Tensor, target: Any, weight: Any = None, sample_weight: Any = None, **given: Any) -> Any:
            names = (
                "ignore_index", "reduction", "label_smoothing", "smooth_finite_only", "logit_scale", "softcap",
                "temperature", "z_loss",
            )  # fmt: skip
            usual = (-100 if isinstance(target, Tensor) and not target.is_floating_point() else None, "mean", 0.0,
                     False, 1.0, None, 1.0, 0.0)  # fmt: skip
            call = make_call(1, logits.dtype, *(given.get(n, u) for n, u in zip(names, usual, strict=True)))
            pair = target if isinstance(target, tuple) else (target, None)
            return _rows.formula_loss([logits, *pair, weight, sample_weight], call)

        again, (slope,) = value_and_grads(operations, [composite], composite, y, **options)
        near(loss, again.double(), dtype, chosen, 128, floor=4.0)
        near(gradient, slope.double(), dtype, chosen, 128)


@each_reduction
def test_numbers_as_tensors_give_the_same(reduction: str) -> None:
    """A temperature that is trained takes the other way, and the same loss and gradient come of it."""
    o, y = normal(4, 6), labels_for(normal(4, 6))
    for name in ("temperature", "logit_scale"):
        first, second = followed(o), followed(o)
        loss, (gradient,) = value_and_grads(cross_entropy, [first], first, y, reduction=reduction, **{name: 0.5})
        number = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
        again, (slope,) = value_and_grads(cross_entropy, [second], second, y, reduction=reduction, **{name: number})
        near(again, loss, torch.float64)
        near(slope, gradient, torch.float64)
        assert cross_entropy(o, y, **{name: number.detach()}) == cross_entropy(o, y, **{name: 0.5})


# --- inputs as they lie ----------------------------------------------------------------------------------------------

LAYOUTS = {
    "transposed": lambda o: o.t().contiguous().t(),
    "every other column": lambda o: torch.stack([o, o + 1], -1).reshape(len(o), -1)[:, ::2],
    "every other row": lambda o: torch.stack([o, o + 1], 1).reshape(-1, o.shape[1])[::2],
    "expanded": lambda o: o[:1].expand(o.shape),
    "a view with an offset": lambda o: torch.cat([o[:1], o])[1:],
    "negated lazily": lambda o: torch.complex(o, -o).conj().imag if o.dtype == torch.float64 else o,
}


@each_dtype
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.usefixtures("passes")
def test_inputs_lie_as_they_like(layout: str, dtype: torch.dtype) -> None:
    o = LAYOUTS[layout](normal(4, 70, dtype=dtype))
    y = soft_for(o).t().contiguous().t()
    for targets in (labels_for(o), y, torch.stack([labels_for(o)] * 2, 1)[:, 0]):
        expected, slope = value_and_grads(formula, [w := followed(o.double())], w, targets, reduction="none")
        source = o.detach().requires_grad_()  # keeps the layout
        loss, (gradient,) = value_and_grads(cross_entropy, [source], source, targets, reduction="none")
        near(loss, expected, dtype, layout)
        near(gradient, slope[0], dtype, layout)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[1::4], ids=str)
def test_images_in_any_memory_order(order: tuple[int, ...]) -> None:
    """Channels last, and every other order of the axes in memory."""
    back = [order.index(i) for i in range(4)]
    o = normal(2, 5, 3, 4).permute(order).contiguous().permute(back)
    assert o.shape == (2, 5, 3, 4)
    check(o, labels_for(o), F.cross_entropy, reduction="none")
    assert losses_and_gradient(o, labels_for(o))[1].shape == o.shape


@each_dtype
@each_reduction
@pytest.mark.usefixtures("passes")
def test_inputs_are_not_changed(reduction: str, dtype: torch.dtype) -> None:
    o, w, a = normal(5, 70, dtype=dtype), eighths(70).to(dtype), eighths(5).to(dtype)
    for y in (labels_for(o), soft_for(o), sparse_for(o)):
        tensors = [o, w, a, *(y if isinstance(y, tuple) else (y,))]
        before = [t.clone() for t in tensors]
        leaf = o.detach().requires_grad_()  # shares the memory
        loss = cross_entropy(leaf, y, w, sample_weight=a, reduction=reduction, label_smoothing=0.1)
        g = torch.ones_like(loss)
        loss.backward(g)
        assert all(same_bits(t, b) for t, b in zip(tensors, before, strict=True))
        assert (g == 1).all()
        assert leaf._version == 0


def test_nothing_is_kept_or_asked_when_no_gradient_is_needed() -> None:
    o = normal(3, 5)
    assert not cross_entropy(o, labels_for(o)).requires_grad
    with torch.no_grad():
        assert not cross_entropy(followed(o), labels_for(o)).requires_grad


def test_threads_do_not_change_the_bits() -> None:
    o = normal(300, 500, dtype=torch.float32)  # more than one thread's block
    found = []
    for threads in (1, 2, 3):
        leaf = followed(o)
        loss, grads = value_and_grads(cross_entropy, [leaf], leaf, labels_for(o), n_threads=threads)
        found.append((loss, *grads))
    for others in found[1:]:
        assert all(same_bits(a, b) for a, b in zip(found[0], others, strict=True))


# --- the edge-case table ---------------------------------------------------------------------------------------------


def losses_and_gradient(o: Tensor, y: Any, function: Any = cross_entropy, **options: Any) -> tuple[Tensor, Tensor]:
    """Row losses unless told otherwise, and the gradient of their sum."""
    leaf = followed(o)
    loss = function(leaf, y, **{"reduction": "none", **options})
    return loss.detach(), torch.autograd.grad(loss, leaf, torch.ones_like(loss))[0]


SPOILS: dict[str, Any] = {"all masked": -INF, "nan": NAN, "+inf": INF}


def spoiled(how: str, dtype: torch.dtype, columns: int) -> Tensor:
    o = normal(3, columns, dtype=dtype)
    if how == "all masked":
        o[1] = -INF
    else:
        o[1, columns // 2] = SPOILS[how]
    return o


@each_dtype
@pytest.mark.parametrize("how", SPOILS)
@pytest.mark.parametrize("columns", [6, 70])
@pytest.mark.usefixtures("passes")
def test_a_row_without_a_softmax_is_nan_and_no_other(columns: int, how: str, dtype: torch.dtype) -> None:
    clean, bad = normal(3, columns, dtype=dtype), spoiled(how, dtype, columns)
    for y in (labels_for(bad), soft_for(bad), sparse_for(bad)):
        loss, gradient = losses_and_gradient(bad, y)
        others, slopes = losses_and_gradient(clean, y)
        assert loss[1].isnan()
        assert gradient[1].isnan().all()
        for row in (0, 2):
            assert same_bits(loss[row], others[row])
            assert same_bits(gradient[row], slopes[row])
        assert cross_entropy(bad, y).isnan()


@each_dtype
@each_reduction
@pytest.mark.parametrize("how", SPOILS)
@pytest.mark.parametrize("by", ["ignore_index", "sample_weight", "sample_weight that is followed"])
@pytest.mark.usefixtures("passes")
def test_ignored_rows_never_poison(by: str, how: str, reduction: str, dtype: torch.dtype) -> None:
    """PyTorch gives NaN gradients to such rows."""
    o, y = spoiled(how, dtype, 70), labels_for(normal(3, 70))
    options: dict[str, Any] = {"sample_weight": torch.tensor([1.0, 0.0, 2.0])}
    if by == "ignore_index":
        options, y[1] = {}, -100
    elif "followed" in by:
        options["sample_weight"].requires_grad_()
    loss, gradient = losses_and_gradient(o, y, reduction=reduction, **options)
    assert (gradient[1] == 0).all()
    assert gradient.isfinite().all()
    assert loss.isfinite().all()
    if reduction == "none":
        assert loss[1] == 0
    kept = torch.tensor([0, 2])
    weights = {} if by == "ignore_index" else {"sample_weight": options["sample_weight"].detach()[kept]}
    expected = formula(o[kept], y[kept], reduction=reduction, **weights)
    near(loss[kept] if reduction == "none" else loss, expected, dtype)
    if by == "ignore_index" and dtype in (torch.float64, torch.float32):
        leaf = followed(o)
        F.cross_entropy(leaf, y, reduction="sum").backward()
        assert leaf.grad[1].isnan().any(), "PyTorch has changed; so must the table of differences in the docs"


@each_dtype
@pytest.mark.usefixtures("passes")
def test_all_rows_ignored(dtype: torch.dtype) -> None:
    o, y = normal(3, 70, dtype=dtype), torch.full((3,), -100)
    o[1] = NAN
    for options in ({}, {"z_loss": 0.1}, {"label_smoothing": 0.1}):
        loss, gradient = losses_and_gradient(o, y, reduction="mean", **options)
        assert loss.isnan()
        assert (gradient == 0).all()
        for reduction in ("sum", "none"):
            loss, gradient = losses_and_gradient(o, y, reduction=reduction, **options)
            assert (loss == 0).all()
            assert (gradient == 0).all()
    assert F.cross_entropy(normal(3, 70), y).isnan()


@pytest.mark.usefixtures("passes")
def test_mean_over_weights_that_add_up_to_nothing() -> None:
    o, y = normal(3, 5), torch.tensor([1, 1, 1])
    for options in (
        {"weight": torch.tensor([1.0, 0, 1, 1, 1])},
        {"sample_weight": torch.zeros(3)},
        {"sample_weight": torch.tensor([1.0, -2.0, 1.0])},
    ):
        loss, gradient = losses_and_gradient(o, y, reduction="mean", **options)
        assert loss.isnan(), options
        assert (gradient == 0).all(), options


@each_dtype
@pytest.mark.parametrize("classes", [5, 70, 2049])
@pytest.mark.usefixtures("passes")
def test_masked_classes(classes: int, dtype: torch.dtype) -> None:
    """Probability 0 and gradient 0; 0·∞ counts as 0, where PyTorch's soft targets give NaN."""
    o = normal(3, classes, dtype=dtype)
    o[:, : classes // 2] = -INF
    y = torch.tensor([classes - 1, classes // 2, classes - 2])
    soft = torch.zeros(3, classes, dtype=dtype)
    soft[torch.arange(3), y] = 1
    expected = F.cross_entropy(o.double(), y, reduction="none")
    for targets in (y, soft, (y[:, None], torch.ones(3, 1))):
        loss, gradient = losses_and_gradient(o, targets)
        near(loss, expected, dtype)
        assert (gradient[:, : classes // 2] == 0).all()
        assert gradient.isfinite().all()
        capped, slopes = losses_and_gradient(o, targets, softcap=3.0)
        near(capped, formula(torch.where(o.isinf(), -1e9, o)[:, classes // 2 :], y - classes // 2, softcap=3.0,
                             reduction="none"), dtype)  # fmt: skip
        assert (slopes[:, : classes // 2] == 0).all()
    assert F.cross_entropy(o, soft, reduction="none").isnan().all(), "PyTorch has changed"


@each_dtype
@pytest.mark.usefixtures("passes")
def test_a_masked_target_costs_infinity_and_has_a_finite_gradient(dtype: torch.dtype) -> None:
    o, y = normal(2, 5, dtype=dtype), torch.tensor([1, 2])
    o[0, 1] = -INF
    loss, gradient = losses_and_gradient(o, y)
    assert loss[0] == INF
    expected = torch.softmax(o.double(), 1)
    expected[torch.arange(2), y] -= 1
    near(gradient, expected, dtype)


@each_dtype
@pytest.mark.usefixtures("passes")
def test_smoothing_over_masked_classes(dtype: torch.dtype) -> None:
    o, y = normal(2, 5, dtype=dtype), torch.tensor([1, 2])
    o[0, 3] = -INF
    assert cross_entropy(o, y, label_smoothing=0.1) == INF == F.cross_entropy(o, y, label_smoothing=0.1)
    check(o, y, label_smoothing=0.1, smooth_finite_only=True, reduction="none")


@each_dtype
@each_reduction
def test_empty_batches_single_classes_and_single_rows(reduction: str, dtype: torch.dtype) -> None:
    for shape in ((0, 5), (0, 70), (2, 5, 0), (0, 5, 3)):
        o = normal(*shape, dtype=dtype)
        for y in (labels_for(o), soft_for(o), sparse_for(o)):
            loss, gradient = losses_and_gradient(o, y, reduction=reduction)
            assert gradient.shape == o.shape
            assert loss.shape == (outer_of(shape) if reduction == "none" else ())
            assert reduction == "none" or (loss == 0 if reduction == "sum" else loss.isnan())
    for shape in ((4, 1), (1, 5), (1,), (1, 1)):
        o = normal(*shape, dtype=dtype)
        check(o, labels_for(o), F.cross_entropy, reduction=reduction)
        check(o, soft_for(o), F.cross_entropy, reduction=reduction)


@pytest.mark.parametrize("offset", [1e30, -1e30, 1e4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("passes")
def test_offsets_cancel(dtype: torch.dtype, offset: float) -> None:
    o = (normal(3, 70, scale=abs(offset) * 2.0**-6 if offset != 1e4 else 1.0) + offset).to(dtype)
    o[:, 0] = o[:, 3] = o.max()  # two classes share the probability
    y = torch.tensor([0, 3, 0])
    expected, slope = losses_and_gradient(o.double() - o.double().max(), y, formula)
    loss, gradient = losses_and_gradient(o, y)
    near(loss, expected, dtype)
    near(gradient, slope, dtype)


def test_float16_does_not_overflow() -> None:
    """Σ exp of 100,000 zeros exceeds float16: PyTorch's loss is infinite."""
    o, y = torch.zeros(2, 100_000, dtype=torch.float16), torch.tensor([0, 99_999])
    loss, gradient = losses_and_gradient(o, y)
    near(loss, torch.full((2,), math.log(100_000)), torch.float16)
    assert gradient[0, 0] == -1
    assert gradient[0, 1] == torch.tensor(1e-5, dtype=torch.float16)
    assert F.cross_entropy(o, y) == INF, "PyTorch has changed; so must the table of differences in the docs"


def test_a_total_beyond_float16_is_infinite_without_a_warning() -> None:
    o = torch.zeros(2, 3, dtype=torch.float16)
    o[:, 0] = 60_000
    assert cross_entropy(o, torch.tensor([1, 1]), reduction="sum") == INF
    assert cross_entropy(o, torch.tensor([1, 1])) == 60_000
    big = torch.tensor([[3e38, -3e38]])
    assert cross_entropy(big, torch.tensor([1]), reduction="sum") == INF


@pytest.mark.usefixtures("passes")
def test_an_upstream_of_zero_silences_a_row() -> None:
    """Nothing is asked of a row whose upstream gradient is 0, whatever it holds."""
    for dtype in DTYPES.values():
        leaf = followed(spoiled("nan", dtype, 70))
        loss = cross_entropy(leaf, labels_for(leaf), reduction="none")
        loss.backward(torch.tensor([1.0, 0.0, 1.0], dtype=dtype))
        assert (leaf.grad[1] == 0).all()
        assert (leaf.grad[0] != 0).any()


@pytest.mark.parametrize("options", [{}, {"softcap": 2.0}, {"logit_scale": 1.5}, {"softcap": 2.0, "temperature": 0.5}])
def test_gradient_at_a_masked_label(options: dict[str, float]) -> None:
    """``D (S − y)`` with the slope of the transform, also in PyTorch's operations."""
    o = torch.tensor([[0.1, -math.inf, 0.3]], dtype=torch.float64, requires_grad=True)
    expected = {"softcap": 0.0, "logit_scale": -1.5}.get(next(iter(options), ""), -1.0)
    for name in ("numpy", backend.current()):
        with backend.use(name):
            (gradient,) = torch.autograd.grad(cross_entropy(o, torch.tensor([1]), **options), o)
        assert gradient[0, 1] == expected, name
