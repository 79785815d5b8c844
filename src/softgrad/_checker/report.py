"""What the checker says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from softgrad._core.arrays import Array

__all__ = ["GradientReport"]


@dataclass(frozen=True, eq=False, repr=False, slots=True)
class GradientReport:
    """What `check_gradient` found; true when every law holds.

    Attributes
    ----------
    law : str or None
        The first law that fails, None when all hold.
    message : str
        What failed and where, the likely mistake and its fix; or what was checked.
    logits, targets : array or tensor, or None
        The input that shows it, as the functions were given it.
    expected, found : ndarray or None
        The exact answer, in float64, and the function's.
    checked : tuple of str
        The laws that were tested, in order; a failing one is the last.
    unchecked : tuple of str
        What was not tested, and why.
    """

    law: str | None
    message: str
    logits: Any
    targets: Any
    expected: Array | None
    found: Array | None
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.law is None

    def __repr__(self) -> str:
        if self.law is None:
            return f"GradientReport(all {len(self.checked)} laws hold)"
        return f"GradientReport({self.law}: {self.message.splitlines()[0]})"

    def __str__(self) -> str:
        head = "all laws hold" if self.law is None else f"{self.law}"
        return f"{head}: {self.message}" + "".join(f"\nNot checked: {item}." for item in self.unchecked)

    def _repr_markdown_(self) -> str:
        head = "All laws hold" if self.law is None else self.law
        lines = [f"**{head}.** " + self.message.replace("\n", "  \n").replace("|", "\\|")]
        if self.expected is not None and self.found is not None and self.found.size <= 60:
            lines += ["", "```text", f"expected\n{self.expected}", f"found\n{self.found}", "```"]
        return "\n".join(lines + [f"\n*Not checked: {item}.*" for item in self.unchecked])
