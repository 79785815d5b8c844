"""The seed of everything: the derivation itself, by symbols, by complex steps, and by finite differences.

    ∂S_i/∂o_i = S_i (1 − S_i)        ∂S_i/∂o_j = −S_i S_j        ∂L/∂o_j = −y_j + S_j Σ_i y_i        S − y

The symbols prove the formulas for V = 3, the differences show that the reference and the kernels compute them, and the
general loss with all its options is differentiated twice by mpmath with 50 digits.
"""

from __future__ import annotations

import itertools
from typing import Any

import mpmath
import numpy as np
import pytest
import sympy

import softgrad
from softgrad import reference

O3 = sympy.symbols("o1:4", real=True)
Y3 = sympy.symbols("y1:4", real=True)
S3 = [sympy.exp(o) / sum(map(sympy.exp, O3)) for o in O3]
LOSS3 = -sum(y * sympy.log(s) for y, s in zip(Y3, S3, strict=True))

LOGITS = np.array([[0.3, -1.2, 0.9], [2.0, 0.1, -0.4]])
TARGETS = {
    "one-hot": np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
    "smoothed": 0.9 * np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]) + 0.1 / 3,
    "any sum": np.array([[0.5, 0.2, 0.7], [-0.3, 1.5, 0.0]]),
}
MODULES = {"reference": reference, "kernel": softgrad}


def is_zero(expression: Any) -> bool:
    return sympy.simplify(expression.rewrite(sympy.exp) if hasattr(expression, "rewrite") else expression) == 0


# --- by symbols ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("i", "j"), list(itertools.product(range(3), repeat=2)))
def test_jacobian_of_softmax_by_symbols(i: int, j: int) -> None:
    derivative = sympy.diff(S3[i], O3[j])
    expected = S3[i] * (1 - S3[i]) if i == j else -S3[i] * S3[j]
    assert is_zero(derivative - expected)
    assert not is_zero(derivative + expected)  # the check can tell a sign


@pytest.mark.parametrize("j", range(3))
def test_gradient_of_the_loss_by_symbols(j: int) -> None:
    derivative = sympy.diff(LOSS3, O3[j])
    assert is_zero(derivative - (-Y3[j] + S3[j] * sum(Y3)))
    through_s = sum(-Y3[i] / S3[i] * sympy.diff(S3[i], O3[j]) for i in range(3))  # the chain rule over ∂L/∂S_i
    assert is_zero(derivative - through_s)


@pytest.mark.parametrize("j", range(3))
@pytest.mark.parametrize("label", range(3))
def test_gradient_is_s_minus_y_when_targets_sum_to_one(label: int, j: int) -> None:
    epsilon = sympy.Symbol("epsilon", positive=True)
    for y in ([int(k == label) for k in range(3)], [(1 - epsilon) * int(k == label) + epsilon / 3 for k in range(3)]):
        derivative = sympy.diff(LOSS3, O3[j]).subs(dict(zip(Y3, y, strict=True)))
        assert is_zero(derivative - (S3[j] - y[j]))


@pytest.mark.parametrize(("i", "j"), list(itertools.combinations_with_replacement(range(3), 2)))
def test_hessian_of_the_loss_is_the_jacobian_by_symbols(i: int, j: int) -> None:
    hessian = sympy.diff(LOSS3, O3[i], O3[j])
    assert is_zero(hessian - sum(Y3) * sympy.diff(S3[i], O3[j]))


def test_gradient_of_a_linear_model_by_symbols() -> None:
    """∂L/∂W = (S − y) xᵀ and ∂L/∂b = S − y for o = W x + b, with Σ y = 1."""
    w = sympy.Matrix(3, 2, sympy.symbols("w:6", real=True))
    x = sympy.Matrix(sympy.symbols("x1 x2", real=True))
    b = sympy.Matrix(sympy.symbols("b1:4", real=True))
    y = [0, 1, 0]
    into = dict(zip(O3, w * x + b, strict=True))
    loss = LOSS3.subs(dict(zip(Y3, y, strict=True))).subs(into)
    residual = [(S3[k] - y[k]).subs(into) for k in range(3)]
    for k in range(3):
        assert is_zero(sympy.diff(loss, b[k]) - residual[k])
        for d in range(2):
            assert is_zero(sympy.diff(loss, w[k, d]) - residual[k] * x[d])


# --- by finite differences -------------------------------------------------------------------------------------------


def difference(f: Any, at: np.ndarray, h: float = 1e-3) -> np.ndarray:
    """Six-point central differences: d f / d at, in the trailing axis; the truncation error is of order h⁶."""
    columns = []
    for k in range(at.size):
        total = 0.0
        for step, weight in ((1, 3 / 4), (2, -3 / 20), (3, 1 / 60)):
            e = np.zeros(at.size)
            e[k] = step * h
            total = total + weight * (np.asarray(f(at + e)) - np.asarray(f(at - e))) / h
        columns.append(total)
    return np.stack(columns, axis=-1)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("row", range(len(LOGITS)))
def test_jacobian_by_differences(module: str, row: int) -> None:
    m, o = MODULES[module], LOGITS[row]
    s = reference.softmax(o)
    jacobian = m.softmax_jacobian(o)
    np.testing.assert_allclose(difference(m.softmax, o), jacobian, rtol=0, atol=1e-12)
    np.testing.assert_allclose(np.diag(jacobian), s * (1 - s), rtol=1e-14)
    np.testing.assert_allclose(jacobian[0, 1], -s[0] * s[1], rtol=1e-14)
    for v in np.eye(3):
        np.testing.assert_allclose(m.softmax_jvp(o, v), jacobian @ v, rtol=0, atol=1e-15)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("row", range(len(LOGITS)))
def test_gradient_and_hessian_by_differences(module: str, kind: str, row: int) -> None:
    m, o, y = MODULES[module], LOGITS[row], TARGETS[kind][row]
    loss, gradient = m.cross_entropy_with_grad(o, y, reduction="sum")
    s = reference.softmax(o)
    assert float(loss) == pytest.approx(-(y * np.log(s)).sum(), abs=1e-14)
    np.testing.assert_allclose(gradient, -y + s * y.sum(), rtol=0, atol=1e-15)
    if kind != "any sum":
        np.testing.assert_allclose(gradient, s - y, rtol=0, atol=1e-15)
    np.testing.assert_allclose(difference(lambda a: m.cross_entropy(a, y, reduction="sum"), o), gradient, atol=1e-11)
    hessian = np.stack([m.cross_entropy_hvp(o, y, v, reduction="sum") for v in np.eye(3)])
    np.testing.assert_allclose(hessian, y.sum() * m.softmax_jacobian(o), rtol=0, atol=1e-15)
    slope = difference(lambda a: m.cross_entropy_with_grad(a, y, reduction="sum")[1], o)
    np.testing.assert_allclose(slope, hessian, rtol=0, atol=1e-11)


@pytest.mark.parametrize("module", MODULES)
def test_linear_model_by_differences(module: str) -> None:
    m, random = MODULES[module], np.random.default_rng(5)
    x, weight, bias, y = random.normal(size=(4, 2)), random.normal(size=(3, 2)), random.normal(size=3), [0, 2, 1, 2]

    def loss(flat: np.ndarray) -> float:
        a, b, c = np.split(flat, [8, 14])
        return m.linear_cross_entropy(a.reshape(4, 2), b.reshape(3, 2), np.array(y), bias=c)

    at = np.concatenate([x.ravel(), weight.ravel(), bias])
    gradients = m.linear_cross_entropy_with_grad(x, weight, np.array(y), bias=bias)[1]
    expected = np.concatenate([np.ravel(g) for g in gradients])
    np.testing.assert_allclose(difference(loss, at), expected, rtol=0, atol=1e-11)


# --- the general loss, differentiated by 50 digits -------------------------------------------------------------------

GENERAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "scale": {"logit_scale": -1.7},
    "temperature": {"temperature": 0.6},
    "softcap": {"softcap": 1.5},
    "smoothing": {"label_smoothing": 0.2},
    "class weights": {"class_weight": [0.5, 2.0, 1.25]},
    "z-loss": {"z_loss": 0.3},
    "row weight": {"sample_weight": [-1.5]},
    "everything": {
        "logit_scale": 0.8,
        "softcap": 2.0,
        "temperature": 1.4,
        "label_smoothing": 0.3,
        "class_weight": [0.5, 2.0, 1.25],
        "z_loss": 0.2,
        "sample_weight": [2.5],
    },
}


def exact_loss(o: list[Any], y: list[float], options: dict[str, Any]) -> Any:
    """One row of design.md's general loss, written out in mpmath and nowhere else."""
    scale, cap, tau = options.get("logit_scale", 1.0), options.get("softcap"), options.get("temperature", 1.0)
    epsilon, w = options.get("label_smoothing", 0.0), options.get("class_weight", [1.0] * len(o))
    v = [scale * x for x in o]
    if cap is not None:
        v = [cap * mpmath.tanh(x / cap) for x in v]
    u = [x / mpmath.mpf(tau) for x in v]
    lse = mpmath.log(mpmath.fsum(map(mpmath.exp, u)))
    wy = [w[j] * ((1 - mpmath.mpf(epsilon)) * y[j] + mpmath.mpf(epsilon) / len(o)) for j in range(len(o))]
    loss = mpmath.fsum(wy) * lse - mpmath.fsum(a * b for a, b in zip(wy, u, strict=True))
    return options.get("sample_weight", [1.0])[0] * (loss + options.get("z_loss", 0.0) * lse**2)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("case", GENERAL)
def test_general_loss_gradient_and_hessian(case: str, kind: str, module: str) -> None:
    m, options, o, y = MODULES[module], GENERAL[case], LOGITS[0], TARGETS[kind][0]
    at, target = [mpmath.mpf(float(x)) for x in o], [float(t) for t in y]
    with mpmath.workdps(50):

        def loss(*x: Any) -> Any:
            return exact_loss(list(x), target, options)

        units = np.eye(3, dtype=int).tolist()
        value = float(loss(*at))
        gradient = [float(mpmath.diff(loss, at, tuple(e))) for e in units]
        hessian = [
            [float(mpmath.diff(loss, at, tuple(np.add(e, f).tolist()))) for f in units]
            for e in units
        ]  # fmt: skip
    got, got_gradient = m.cross_entropy_with_grad(o[None], y[None], reduction="sum", **options)
    assert float(got) == pytest.approx(value, abs=1e-14, rel=1e-14)
    np.testing.assert_allclose(got_gradient[0], gradient, rtol=0, atol=4e-15)
    products = [m.cross_entropy_hvp(o[None], y[None], v[None], reduction="sum", **options)[0] for v in np.eye(3)]
    np.testing.assert_allclose(products, hessian, rtol=0, atol=8e-15)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("case", ["scale", "temperature", "softcap", "everything"])
def test_jvp_is_the_derivative_of_softmax_with_its_options(case: str, module: str) -> None:
    options = {k: v for k, v in GENERAL[case].items() if k in ("logit_scale", "softcap", "temperature")}
    m, o = MODULES[module], LOGITS[1]
    jacobian = difference(lambda a: reference.softmax(a, **options), o)  # J[i, j] = ∂S_i/∂o_j, D on the right only
    for v in np.eye(3):
        np.testing.assert_allclose(m.softmax_jvp(o, v, **options), jacobian @ v, rtol=0, atol=1e-11)


# --- against PyTorch, where PyTorch has the option -------------------------------------------------------------------

TORCH: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.15},
    "weights": {"class_weight": np.array([0.5, 2.0, 0.0, 1.25, 3.0])},
    "both": {"label_smoothing": 0.15, "class_weight": np.array([0.5, 2.0, 0.0, 1.25, 3.0])},
}


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", ["labels", "labels with ignored", "dense"])
@pytest.mark.parametrize("case", TORCH)
def test_agrees_with_pytorch(case: str, kind: str, reduction: str, module: str) -> None:
    import torch

    random, options = np.random.default_rng(8), TORCH[case]
    o = random.normal(size=(7, 5), scale=2.0)
    labels = random.integers(5, size=7)
    if kind == "labels with ignored":
        labels[[1, 4]] = -100
    y = random.random((7, 5)) if kind == "dense" else labels
    ours = {**options, "reduction": reduction, **({} if kind == "dense" else {"ignore_index": -100})}
    weight = torch.from_numpy(options["class_weight"]) if "class_weight" in options else None
    theirs = torch.from_numpy(o.copy()).requires_grad_()
    loss = torch.nn.functional.cross_entropy(
        theirs,
        torch.from_numpy(y),
        weight=weight,
        label_smoothing=options.get("label_smoothing", 0.0),
        reduction=reduction,
    )
    loss.sum().backward()
    got, gradient = MODULES[module].cross_entropy_with_grad(o, y, **ours)
    np.testing.assert_allclose(got, loss.detach().numpy(), rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-12, atol=1e-15)
