"""The derivation of softmax, cross-entropy and ``S − y``, executed: `explain`, and what shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from softgrad.derivation._explain import explain

if TYPE_CHECKING:
    from softgrad.derivation._chapter import chapter
    from softgrad.derivation._explanation import Explanation
    from softgrad.derivation._results import StepResult
    from softgrad.derivation._verify import Check

__all__ = ["Check", "Explanation", "StepResult", "chapter", "explain"]

# What only a reader of the derivation needs is imported on first use.
_LATER = {
    "Check": "_verify",
    "Explanation": "_explanation",
    "StepResult": "_results",
    "chapter": "_chapter",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"softgrad.derivation.{_LATER[name]}"), name)
