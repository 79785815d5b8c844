"""The front-end as a citizen of PyTorch: modules, autocast, checkpoints, hooks, processes, threads, errors, names."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint
from torch_cases import (
    DTYPES,
    defaults,
    eighths,
    followed,
    formula,
    labels_for,
    near,
    normal,
    same_bits,
    soft_for,
    sparse_for,
)

import softgrad.torch as st
from softgrad import reference
from softgrad.torch import cross_entropy, linear_cross_entropy, prediction_stats

O = normal(3, 5)  # noqa: E741
Y = torch.tensor([1, 4, 0])
X, W, B = normal(3, 2, seed=1), normal(5, 2, seed=2), normal(5, seed=3)


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_public_names() -> None:
    assert sorted(st.__all__) == st.__all__
    assert set(st.__all__) == {
        "CrossEntropyLoss", "LinearCrossEntropyLoss", "PredictionStats", "cross_entropy", "linear_cross_entropy",
        "linear_prediction_stats", "patch_transformers", "prediction_stats", "products", "unpatch_transformers",
    }  # fmt: skip
    for name in st.__all__:
        documentation = getattr(st, name).__doc__
        assert documentation
        for placeholder in ("{input}", "{target}", "{layer}", "{options}"):
            assert placeholder not in documentation, name


def test_signatures_contain_pytorchs() -> None:
    """What is positional there is positional here, in order; every default is the same or means the same."""
    theirs, ours = defaults(F.cross_entropy), defaults(cross_entropy)
    dropped = {"size_average", "reduce"}  # deprecated
    assert [n for n in theirs if n not in dropped][:3] == list(ours)[:3] == ["input", "target", "weight"]
    assert {n: d for n, d in theirs.items() if n not in dropped}.items() <= ours.items()
    theirs, ours = defaults(F.linear_cross_entropy), defaults(linear_cross_entropy)
    assert list(theirs)[:3] == list(ours)[:3]
    same = {n: d for n, d in theirs.items() if n != "ignore_index"}
    assert same.items() <= ours.items()
    assert ours["ignore_index"] == -100  # None there, which means −100 for labels
    assert linear_cross_entropy(X, W, Y, ignore_index=None) == linear_cross_entropy(X, W, Y)
    for module, namesake in (
        (st.CrossEntropyLoss, nn.CrossEntropyLoss), (st.LinearCrossEntropyLoss, nn.LinearCrossEntropyLoss),
    ):  # fmt: skip
        theirs, ours = defaults(namesake), defaults(module)
        assert list(ours)[: len(theirs)] == list(theirs)
        assert theirs.items() <= ours.items()


def test_softgrad_does_not_import_torch() -> None:
    code = "import sys, softgrad; assert not any(m.split('.')[0] == 'torch' for m in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# --- modules ---------------------------------------------------------------------------------------------------------


def test_the_loss_module_is_pytorchs_namesake() -> None:
    for reduction, smoothing in itertools.product(("mean", "sum", "none"), (0.0, 0.1)):
        given: dict[str, Any] = {"ignore_index": 4, "reduction": reduction, "label_smoothing": smoothing}
        ours, theirs = st.CrossEntropyLoss(eighths(5), **given), nn.CrossEntropyLoss(eighths(5), **given)
        assert isinstance(ours, nn.CrossEntropyLoss)
        near(ours(O, Y), theirs(O, Y), torch.float64)
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(theirs.state_dict())
    assert list(st.CrossEntropyLoss(eighths(5)).state_dict()) == ["weight"]
    near(st.CrossEntropyLoss()(O, Y, eighths(3)), formula(O, Y, sample_weight=eighths(3)), torch.float64)
    with pytest.warns(UserWarning, match="deprecated"):
        assert st.CrossEntropyLoss(reduce=False).reduction == "none"


def test_the_linear_module_is_pytorchs_namesake() -> None:
    for out, bias in itertools.product(((), (2, 3)), (True, False)):
        given: dict[str, Any] = {"out_features": out, "bias": bias, "dtype": torch.float64, "weight": eighths(5)}
        ours, theirs = st.LinearCrossEntropyLoss(2, 5, **given), nn.LinearCrossEntropyLoss(2, 5, **given)
        assert ours.state_dict().keys() == theirs.state_dict().keys()
        theirs.load_state_dict(ours.state_dict())
        ours.load_state_dict(theirs.state_dict())
        y = torch.randint(5, (3, *out))
        near(ours(X, y), theirs(X, y), torch.float64)
        assert "num_classes=5" in repr(ours)
    with pytest.raises(ValueError, match="weight"):
        st.LinearCrossEntropyLoss(2, 5, weight=eighths(4))


def test_a_trained_temperature_is_a_parameter_of_the_module() -> None:
    for make, inputs in (
        (lambda t: st.CrossEntropyLoss(temperature=t), (O, Y)),
        (lambda t: st.LinearCrossEntropyLoss(2, 5, dtype=torch.float64, temperature=t), (X, Y)),
    ):
        module = make(nn.Parameter(torch.tensor(1.0, dtype=torch.float64)))
        assert "temperature" in dict(module.named_parameters())
        optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            loss = module(*inputs)
            loss.backward()
            losses.append(float(loss.detach()))
            optimizer.step()
        assert float(module.temperature.detach()) != 1
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < losses[0]


# --- PyTorch's modes -------------------------------------------------------------------------------------------------


def test_autocast_as_pytorch() -> None:
    """Float32 losses of half-precision logits, bfloat16 products of a float32 head."""
    with torch.autocast("cpu", torch.bfloat16):
        for dtype in DTYPES.values():
            o = normal(3, 5, dtype=dtype)
            loss = cross_entropy(o, Y)
            assert loss.dtype == F.cross_entropy(o, Y).dtype
            near(loss, F.cross_entropy(o.double(), Y), torch.float32)
        x, w = (followed(t.float()) for t in (X, W))
        ours, theirs = linear_cross_entropy(x, w, Y), F.cross_entropy(F.linear(x, w), Y)
        assert ours.dtype == theirs.dtype == torch.float32
        near(ours, theirs, torch.bfloat16)
    found = torch.autograd.grad(ours, [x, w])
    expected = torch.autograd.grad(theirs, [x, w])
    for a, e in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        near(a, e, torch.bfloat16, units=2.0**17)


def test_inference_mode_and_no_grad() -> None:
    expected, stats = cross_entropy(O, Y), prediction_stats(O, Y)
    for mode in (torch.inference_mode, torch.no_grad):
        with mode():
            o, x, w = followed(O), followed(X), followed(W)
            assert same_bits(cross_entropy(o, Y), expected)
            assert same_bits(cross_entropy(O.clone(), Y), expected)
            assert not cross_entropy(o, Y).requires_grad
            assert not linear_cross_entropy(x, w, Y).requires_grad
            assert all(same_bits(a, b) for a, b in zip(prediction_stats(o, Y), stats, strict=True))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.usefixtures("passes")
def test_checkpoint(reentrant: bool) -> None:
    for reduction in ("mean", "none"):
        for function, start in (
            (lambda o: cross_entropy(o * 2, Y, reduction=reduction), O),  # noqa: B023
            (lambda x: linear_cross_entropy(x * 2, W, Y, reduction=reduction), X),  # noqa: B023
        ):
            plain, again = followed(start), followed(start)
            function(plain).sum().backward()
            checkpoint(function, again, use_reentrant=reentrant).sum().backward()
            torch.testing.assert_close(again.grad, plain.grad, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.usefixtures("passes")
def test_saved_tensors_go_through_hooks(reduction: str) -> None:
    """As `torch.autograd.graph.save_on_cpu` has it: other tensors come back than were saved."""
    packed: list[Tensor] = []

    def pack(t: Tensor) -> int:
        packed.append(t.detach().clone())
        return len(packed) - 1

    for function, leaves in (
        (lambda o: cross_entropy(o, soft_for(O), eighths(5), reduction=reduction), (O,)),
        (lambda x, w, b: linear_cross_entropy(x, w, Y, linear_bias=b, reduction=reduction), (X, W, B)),
    ):
        plain, hooked = ([followed(t) for t in leaves] for _ in range(2))
        function(*plain).sum().backward()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda i: packed[i].clone()):
            loss = function(*hooked).sum()
        loss.backward()
        for a, e in zip(hooked, plain, strict=True):
            torch.testing.assert_close(a.grad, e.grad, rtol=1e-14, atol=1e-16)
    assert packed


# --- processes and threads -------------------------------------------------------------------------------------------


def test_distributed_data_parallel(tmp_path: Any) -> None:
    """Two processes' averaged gradients are one process's."""
    code = """
import os, sys, torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from softgrad.torch import CrossEntropyLoss, LinearCrossEntropyLoss
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
torch.manual_seed(0)
x, y = torch.randn(8, 6), torch.randint(9, (8,))
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head, self.loss = torch.nn.Linear(6, 9), LinearCrossEntropyLoss(9, 9), CrossEntropyLoss()
    def forward(self, x, y):
        hidden = self.body(x)
        return self.head(hidden, y) + self.loss(hidden, y)
net = Net()
net(x, y).backward()
expected = [p.grad.clone() for p in net.parameters()]
net.zero_grad(set_to_none=True)
half = slice(4 * rank, 4 * rank + 4)
parallel = DistributedDataParallel(net)
parallel(x[half], y[half]).backward()
for p, e in zip(net.parameters(), expected, strict=True):
    torch.testing.assert_close(p.grad, e, rtol=1e-5, atol=1e-7)
dist.destroy_process_group()
print("equal", flush=True)
os._exit(0)  # A thread of gloo that asks for the interpreter while it shuts down aborts the process (PyTorch 2.13).
"""
    store = str(tmp_path / "store")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), store],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        done = [(*process.communicate(timeout=180), process.returncode) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    for out, err, status in done:
        assert status == 0, err
        assert out.strip().endswith("equal")


def test_calls_from_several_threads_at_once() -> None:
    o, y = normal(64, 300, dtype=torch.float32), torch.arange(64)
    x, w = normal(64, 8, dtype=torch.float32), normal(300, 8, dtype=torch.float32)

    def work(_: int) -> tuple[Tensor, ...]:
        a, b, c = followed(o), followed(x), followed(w)
        first, second = cross_entropy(a, y), linear_cross_entropy(b, c, y, impl="torch")
        return first.detach(), second.detach(), *torch.autograd.grad(first + second, [a, b, c])

    alone = work(0)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(24)):
            assert all(same_bits(a, b) for a, b in zip(found, alone, strict=True))


def test_backward_in_another_thread() -> None:
    a, b = followed(O), followed(O)
    (expected,) = torch.autograd.grad(cross_entropy(a, Y), a)
    loss = cross_entropy(b, Y)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(loss.backward).result()
    assert same_bits(b.grad, expected)


# --- errors ----------------------------------------------------------------------------------------------------------

META = torch.device("meta")
ERRORS: dict[str, tuple[type[Exception], str, Any]] = {
    "list": (TypeError, "input must be a torch.Tensor, not list", lambda: cross_entropy([1.0], Y)),
    "integers": (TypeError, r"input of dtype torch\.int64", lambda: cross_entropy(O.long(), Y)),
    "complex": (TypeError, r"input of dtype torch\.complex", lambda: cross_entropy(torch.complex(O, O), Y)),
    "scalar": (ValueError, "class axis", lambda: cross_entropy(torch.tensor(1.0), torch.tensor(0))),
    "no classes": (ValueError, "no classes", lambda: cross_entropy(torch.ones(3, 0), Y)),
    "target shape": (ValueError, r"target has shape \(2,\).*\(3,\)", lambda: cross_entropy(O, Y[:2])),
    "target extra axis": (ValueError, r"target has shape \(3, 1\)", lambda: cross_entropy(O, Y[:, None])),
    "soft shape": (
        ValueError,
        r"soft target has shape \(3,\).*labels are integers",
        lambda: cross_entropy(O, Y.double()),
    ),
    "bool target": (TypeError, r"torch\.bool", lambda: cross_entropy(O, Y > 0)),
    "numpy target": (TypeError, "target must be a torch.Tensor, not ndarray", lambda: cross_entropy(O, Y.numpy())),
    "triple": (ValueError, "tuple of 3", lambda: cross_entropy(O, (Y, Y, Y))),
    "sparse shapes": (
        ValueError,
        r"indices of shape \(3, 4\)",
        lambda: cross_entropy(O, (sparse_for(O)[0], Y.double())),
    ),
    "sparse float indices": (TypeError, "indices", lambda: cross_entropy(O, sparse_for(O)[::-1])),
    "sparse int values": (TypeError, "values", lambda: cross_entropy(O, (Y[:, None], Y[:, None]))),
    "weight shape": (ValueError, r"weight has shape \(4,\).*\(5,\)", lambda: cross_entropy(O, Y, eighths(4))),
    "weight type": (TypeError, "weight must be a torch.Tensor, not list", lambda: cross_entropy(O, Y, [1.0] * 5)),
    "complex weight": (TypeError, "weight of dtype", lambda: cross_entropy(O, Y, torch.complex(B, B))),
    "sample_weight shape": (
        ValueError,
        r"sample_weight has shape \(5,\)",
        lambda: cross_entropy(O, Y, sample_weight=B),
    ),
    "nan weight": (
        ValueError,
        r"weight.*\b2\b.*nan",
        lambda: cross_entropy(O, Y, torch.tensor([1, 1, torch.nan, 1, 1])),
    ),
    "inf sample_weight": (
        ValueError,
        r"sample_weight\[1\] is inf",
        lambda: cross_entropy(O, Y, sample_weight=torch.tensor([1, torch.inf, 1])),
    ),
    "target device": (ValueError, "target is on meta and the input on cpu", lambda: cross_entropy(O, Y.to(META))),
    "weight device": (ValueError, "weight is on meta", lambda: cross_entropy(O, Y, eighths(5).to(META))),
    "label": (IndexError, r"target\[1\] is 5, outside \[0, 5\)", lambda: cross_entropy(O, torch.tensor([0, 5, 9]))),
    "negative label": (
        IndexError,
        r"target\[2\] is -1, outside \[0, 5\)",
        lambda: cross_entropy(O, torch.tensor([0, 1, -1])),
    ),
    "label in an image": (
        IndexError,
        r"target\[1, 2\] is 7, outside \[0, 5\)",
        lambda: cross_entropy(normal(2, 5, 3), torch.tensor([[0, 1, 2], [0, -100, 7]])),
    ),
    "label and temperature": (
        IndexError,
        r"target\[1\] is 5, outside \[0, 5\)",
        lambda: cross_entropy(O, torch.tensor([0, 5, 9]), temperature=torch.tensor(1.0, requires_grad=True)),
    ),
    "sparse index": (IndexError, "target.*7", lambda: cross_entropy(O, (torch.tensor([[7]] * 3), torch.ones(3, 1)))),
    "reduction": (ValueError, "reduction='average'", lambda: cross_entropy(O, Y, reduction="average")),
    "reduction None": (ValueError, "reduction=None", lambda: cross_entropy(O, Y, reduction=None)),
    "label_smoothing": (ValueError, r"label_smoothing=1\.5", lambda: cross_entropy(O, Y, label_smoothing=1.5)),
    "temperature": (ValueError, r"temperature=0\.0", lambda: cross_entropy(O, Y, temperature=0)),
    "temperature tensor": (
        ValueError,
        r"temperature=-1\.0",
        lambda: cross_entropy(O, Y, temperature=torch.tensor(-1.0)),
    ),
    "temperature parameter": (
        ValueError,
        r"temperature=-1\.0",
        lambda: cross_entropy(O, Y, temperature=torch.tensor(-1.0, requires_grad=True)),
    ),
    "temperature shape": (
        ValueError,
        r"temperature has shape \(2,\)",
        lambda: cross_entropy(O, Y, temperature=torch.ones(2)),
    ),
    "logit_scale": (ValueError, r"logit_scale=0\.0", lambda: cross_entropy(O, Y, logit_scale=0)),
    "softcap": (ValueError, r"softcap=-1\.0", lambda: cross_entropy(O, Y, softcap=-1)),
    "z_loss": (ValueError, "z_loss=nan", lambda: cross_entropy(O, Y, z_loss=float("nan"))),
    "ignore_index": (TypeError, r"ignore_index.*1\.5", lambda: cross_entropy(O, Y, ignore_index=1.5)),
    "ignore_index beside soft": (ValueError, "ignore_index=2", lambda: cross_entropy(O, soft_for(O), ignore_index=2)),
    "n_threads": (ValueError, "n_threads", lambda: cross_entropy(O, Y, n_threads=0)),
    "unknown": (TypeError, "label_smoothin", lambda: cross_entropy(O, Y, label_smoothin=0.1)),
    "linear depth": (
        ValueError,
        r"\(3, 2\) and linear_weight \(5, 3\)",
        lambda: linear_cross_entropy(X, normal(5, 3), Y),
    ),
    "linear bias": (
        ValueError,
        r"linear_bias has shape \(4,\).*\(5,\)",
        lambda: linear_cross_entropy(X, W, Y, linear_bias=B[:4]),
    ),
    "linear dtype": (
        TypeError,
        r"float64 and linear_weight torch\.float32",
        lambda: linear_cross_entropy(X, W.float(), Y),
    ),
    "linear vector": (ValueError, "linear_weight", lambda: linear_cross_entropy(X, W[0], Y)),
    "linear no classes": (ValueError, "no classes", lambda: linear_cross_entropy(X, W[:0], Y)),
    "linear target": (ValueError, r"target has shape \(2,\)", lambda: linear_cross_entropy(X, W, Y[:2])),
    "linear label": (IndexError, r"target\[0\] is 5", lambda: linear_cross_entropy(X, W, Y + 4)),
    "linear label composite": (
        IndexError,
        r"target\[0\] is 5",
        lambda: linear_cross_entropy(X, W, Y + 4, impl="composite"),
    ),
    "linear label deep": (
        IndexError,
        r"target\[1, 0\] is 5",
        lambda: linear_cross_entropy(X[:2, None], W, torch.tensor([[1], [5]])),
    ),
    "linear device": (ValueError, "linear_weight is on meta", lambda: linear_cross_entropy(X, W.to(META), Y)),
    "sparse layout": (TypeError, "layout.*to_dense", lambda: cross_entropy(torch.eye(3).to_sparse(), torch.arange(3))),
    "float8": (TypeError, "float8", lambda: cross_entropy(torch.zeros(2, 3).to(torch.float8_e4m3fn), torch.arange(2))),
    "linear memory": (ValueError, "max_memory=10", lambda: st.linear_prediction_stats(X, W, Y, max_memory=10)),
    "linear memory composite": (
        ValueError,
        "max_memory=0",
        lambda: linear_cross_entropy(X, W, Y, max_memory=0, impl="composite"),
    ),
    "linear memory type": (TypeError, "max_memory", lambda: linear_cross_entropy(X, W, Y, max_memory=1e6)),
    "linear heads": (ValueError, "linear_weight", lambda: linear_cross_entropy(X[None], normal(5, 2, 2), Y)),
    "shift": (ValueError, "shift=True", lambda: linear_cross_entropy(X[0], W, Y[0], shift=True)),
    "stats label": (IndexError, r"target\[0\] is 5", lambda: prediction_stats(O, Y + 4)),
    "linear stats label": (IndexError, r"target\[0\] is 5", lambda: st.linear_prediction_stats(X, W, Y + 4)),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_name_the_argument_and_the_value(case: str) -> None:
    kind, message, call = ERRORS[case]
    with pytest.raises(kind, match=message) as caught:
        call()
    assert "\n" not in str(caught.value), "one message"
    assert caught.value.__cause__ is None


def test_the_place_of_a_label_is_that_of_the_callers_tensor_under_shift() -> None:
    """The first position predicts nothing; the error says where the label stands in what was passed."""
    y = torch.tensor([1, 2, 5])
    with pytest.raises(IndexError, match=r"target\[2\] is 5|shift"):
        linear_cross_entropy(X, W, y, shift=True)


def test_a_failed_call_changes_nothing_for_the_next() -> None:
    expected = cross_entropy(O, Y)
    with pytest.raises(IndexError):
        cross_entropy(O, Y + 4)
    assert same_bits(cross_entropy(O, Y), expected)


def test_tensors_elsewhere_are_computed_in_pytorchs_operations() -> None:
    """The meta device stands for any other: shapes and types come out."""
    o, y = torch.empty(3, 5, device=META, requires_grad=True), torch.empty(3, dtype=torch.int64, device=META)
    loss = cross_entropy(o, y, reduction="none", softcap=2.0, z_loss=0.1)
    assert loss.shape == (3,)
    loss.sum().backward()
    assert o.grad.shape == o.shape
    x, w = torch.empty(3, 2, device=META, requires_grad=True), torch.empty(5, 2, device=META, requires_grad=True)
    linear_cross_entropy(x, w, y).backward()
    assert (x.grad.shape, w.grad.shape) == (x.shape, w.shape)
    assert st.prediction_stats(o, y).rank.shape == (3,)


# --- by-products -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_by_products_against_the_reference(dtype: torch.dtype, instruction_set: str) -> None:
    for shape, options in itertools.product(
        ((6, 7), (2, 70), (5,), (2, 5, 3)), ({}, {"softcap": 1.5, "temperature": 2.0})
    ):
        o = normal(*shape, dtype=dtype)
        soft = soft_for(o).float()
        for y in (None, labels_for(o), soft, sparse_for(o)):
            found = prediction_stats(o, y, **options)
            targets = tuple(t.numpy() for t in y) if isinstance(y, tuple) else None if y is None else y.numpy()
            axis = 1 if len(shape) > 1 else 0
            expected = reference.prediction_stats(o.double().numpy(), targets, axis=axis, **options)
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            for name, tensor in found._asdict().items():
                e = torch.as_tensor(expected[name])
                assert tensor.dtype == (torch.int64 if name in ("argmax", "rank") else wide)
                near(tensor, e, wide, f"{name} {shape} {options}", floor=4.0)


def test_by_products_of_ignored_and_spoiled_rows() -> None:
    o = normal(4, 5)
    o[1], o[2, 3] = -torch.inf, torch.nan
    stats = prediction_stats(o, torch.tensor([-100, 1, 1, 1]), sample_weight=torch.tensor([1.0, 1, 1, 0]))
    for row in range(4):
        assert stats.argmax[row] == stats.rank[row] == -1
        assert all(torch.isnan(t[row]) for t in (stats.lse, stats.log_prob, stats.entropy))


def test_by_products_count_ties_as_the_table_says() -> None:
    stats = prediction_stats(torch.tensor([[1.0, 3.0, 3.0, 0.0]]), torch.tensor([2]))
    assert (stats.argmax, stats.rank) == (1, 0)
    assert st.products() is not None
