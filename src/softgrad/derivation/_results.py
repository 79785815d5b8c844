"""Results of the steps: formulas with the reader's numbers, and how their checks went."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from softgrad.derivation._formula import Node
from softgrad.derivation._verify import Check

__all__ = ["Shown", "StepResult"]

Float = NDArray[np.float64]


class Shown(NamedTuple):
    """One formula: in general, with numbers at a few places, and how its proof and its computation went."""

    general: Node
    instances: tuple[Node, ...]
    checks: tuple[Check, ...]


class StepResult(NamedTuple):
    """One step of the derivation, as the reader sees it.

    Attributes
    ----------
    name, part : str
        Its name, and whether it belongs to the ``"derivation"`` or comes ``"beyond"`` it.
    title, sentence : str
        In the reader's language; formulas of the sentence stand between backticks.
    formulas : tuple
        Each in general, with numbers, and with its checks.
    tables : tuple of (Node, ndarray)
        The vectors and matrices of the step.
    facts : tuple of (str, str)
        What was computed besides: the run of the training, the digits that survive.
    against : tuple of Check
        What the reference and the kernels say of the same quantities.
    """

    name: str
    part: str
    title: str
    sentence: str
    formulas: tuple[Shown, ...]
    tables: tuple[tuple[Node, Float], ...]
    facts: tuple[tuple[str, str], ...]
    against: tuple[Check, ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        """All of them."""
        return (*(check for shown in self.formulas for check in shown.checks), *self.against)
