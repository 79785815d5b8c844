"""PyTorch's deprecated spelling of reductions."""

from __future__ import annotations

import warnings
from itertools import product

import pytest
import torch
from torch.nn import functional

from softgrad.torch._legacy import legacy_reduction


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_meaning_is_pytorchs(reduction: str) -> None:
    logits, target = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([0, 1])
    for size_average, reduce in product((None, False, True), repeat=2):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = legacy_reduction(size_average, reduce, reduction)
            expected = functional.cross_entropy(logits, target, None, size_average, -100, reduce, reduction)
        assert torch.equal(functional.cross_entropy(logits, target, reduction=found), expected)


def test_a_warning_names_the_replacement() -> None:
    with pytest.warns(UserWarning, match="reduction='sum'"):
        assert legacy_reduction(False, None, "none") == "sum"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert legacy_reduction(None, None, "none") == "none"
