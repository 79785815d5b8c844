"""The walk of a checker: the inputs in order, on each the quantities in order, until a law fails and has its name."""

from __future__ import annotations

import numpy as np

from softgrad._checker.diagnose import ExactAnswers, agrees, mistakes, wrong
from softgrad._checker.functions import Broken, Functions
from softgrad._checker.inputs import PRECISION, CheckInput
from softgrad._checker.laws import explained
from softgrad._checker.report import GradientReport
from softgrad._core.arrays import Array
from softgrad._core.options import TRANSFORM, Options


def _apart(found: float, expected: float) -> str:
    """Both numbers, with the digits it takes to see that they differ."""
    for digits in (6, 9, 12, 17):
        texts = f"{found:.{digits}g}", f"{expected:.{digits}g}"
        if texts[0] != texts[1]:
            break
    return f"{texts[0]}, expected {texts[1]}"


class Walk:
    """One call: the inputs in order, on each the quantities in order, until a law fails."""

    def __init__(self, functions: Functions, truths: list[ExactAnswers], options: Options, skipped: list[str]) -> None:
        self.functions, self.truths, self.skipped = functions, truths, skipped
        self.shifts = options.z_loss == 0 and options.softcap is None
        self.identity = all(getattr(options, name) == getattr(Options(), name) for name in TRANSFORM)
        self.seen: dict[str, None] = {}  # an ordered set

    def run(self) -> GradientReport:
        """Compare input after input."""
        for truth in self.truths:
            try:
                found = self.functions.answers(truth.case)
                self.seen |= dict.fromkeys(("shape", "changes its input"))
                for quantity, result in found.items():
                    law = self.failing(truth, quantity, result)
                    if law is not None:
                        return self.report(truth, law, quantity, result)
                if self.functions.autograd and truth is self.truths[0]:
                    self.upstream(truth)
            except Broken as finding:
                return self.report(truth, finding.law, detail=str(finding))
            self.note(truth, tuple(found))
        return self.report()

    def failing(self, truth: ExactAnswers, quantity: str, found: Array) -> str | None:
        """The law that this result breaks, if any."""
        expected = truth.answers[quantity]
        if wrong(found, expected, truth.tolerance[quantity]).any():
            return self.diagnose(truth, quantity, found)
        keeps = self.keeps_digits(truth) and quantity != "Jacobian"
        if keeps and wrong(found, expected, truth.strict[quantity]).any():
            return "digits lost to the offset"
        return None

    def keeps_digits(self, truth: ExactAnswers) -> bool:
        """Whether digits can be asked for: not where a temperature rounds the logits before anything else."""
        return "digits lost to the offset" in truth.case.laws and self.identity and self.shifts

    def upstream(self, truth: ExactAnswers) -> None:
        """Ask backward for the gradient of three times the loss."""
        found = self.functions.loss(truth.case, upstream=3.0)["gradient"]
        self.seen["upstream gradient ignored"] = None
        if wrong(found, 3 * truth.answers["gradient"], 3 * truth.tolerance["gradient"]).any():
            detail = f"the gradient of 3·loss is not 3 times the gradient of loss, on {truth.case.name}"
            raise Broken("upstream gradient ignored", detail)

    def diagnose(self, truth: ExactAnswers, quantity: str, found: Array) -> str:
        """Name a result that is wrong."""
        case = truth.case
        if not np.isfinite(found).all():
            return self.not_finite(truth, quantity)
        ordinary = [(t, self.other(t, quantity)) for t in self.truths if t.case.ordinary]
        known = [(t, result) for t, result in ordinary if result is not None]
        failing = [t for t, f in known if wrong(f, t.answers[quantity], t.tolerance[quantity]).any()]
        if not failing:
            return self.by_input(case, quantity)
        candidates = [list(mistakes(t, quantity)) for t, _ in known]
        for i, (law, _) in enumerate(candidates[0]):
            if all(agrees(f, c[i][1], t, quantity) for (t, f), c in zip(known, candidates, strict=True)):
                return law
        coarse = 2.0**29  # eps of float32 in eps of float64
        single = self.functions.bridge.dtype == "float64" and not any(
            wrong(f, t.answers[quantity], coarse * t.tolerance[quantity].max()).any() for t, f in known
        )
        if not single and self.moves(known, quantity):
            return "shift invariance"
        near = all(np.abs(f - t.answers[quantity]).max() <= 0.1 * np.abs(t.answers[quantity]).max() for t, f in known)
        if quantity == "value" and near:
            tiny = self.tiny()
            result = None if tiny is None else self.other(tiny, quantity)
            if tiny is not None and result is not None and bool((result < 0.6 * tiny.answers["value"]).any()):
                return "log of a clipped probability"
        if single:
            return "digits of float32"
        return self.fallback(truth, quantity, found)

    def moves(self, known: list[tuple[ExactAnswers, Array]], quantity: str) -> bool:
        """Whether the answer changes when all logits are shifted by 3, by more than their rounding changes it."""
        pair = {t.case.name: (t, f) for t, f in known}
        if not self.shifts or not {"ordinary logits", "logits shifted by 3"} <= pair.keys():
            return False
        (t, plain), (other, moved) = pair["ordinary logits"], pair["logits shifted by 3"]
        change = t.answers[quantity] - other.answers[quantity]
        return bool(wrong(plain - moved, change, 4 * t.tolerance[quantity].max()).any())

    def tiny(self) -> ExactAnswers | None:
        """The input on which the target's probability underflows."""
        return next((t for t in self.truths if "log of a clipped probability" in t.case.laws), None)

    def fallback(self, truth: ExactAnswers, quantity: str, found: Array) -> str:
        """The law of the sums, or the quantity itself."""
        if quantity == "value":
            return quantity
        expected = truth.answers[quantity].sum(axis=-1)
        bound = truth.tolerance[quantity].max() * found.shape[-1]
        off = wrong(found.sum(axis=-1), expected, bound).any()
        zero = bool((np.abs(expected) <= bound).all())
        if off and quantity == "softmax":
            return "rows sum to one"
        return "rows sum to zero" if off and zero else quantity

    def other(self, truth: ExactAnswers, quantity: str) -> Array | None:
        """The function's answer for another input, if it gives a finite one."""
        try:
            result = self.functions.answers(truth.case).get(quantity)
        except (Broken, RuntimeError):
            return None
        return result if result is not None and np.isfinite(result).all() else None

    def by_input(self, case: CheckInput, quantity: str) -> str:
        """A formula that is right on ordinary logits is named by the input on which it is not."""
        if "masked logits" in case.laws or np.isneginf(case.o).any():
            return "masked logits"
        if "log of a clipped probability" in case.laws and quantity == "value":
            return "log of a clipped probability"
        apart = "one maximum for all rows" in case.laws
        return "shift invariance" if self.shifts and (apart or "shift invariance" in case.laws) else quantity

    def not_finite(self, truth: ExactAnswers, quantity: str) -> str:
        """Name an overflow, an underflow, or an indefinite product by what the logits are."""
        u, (_, largest, _) = truth.rows.u, PRECISION[self.functions.bridge.dtype]
        room = np.log(largest) - np.log(u.shape[1])
        top = u.max(axis=1)
        if "one maximum for all rows" in truth.case.laws:
            return "one maximum for all rows"
        if (np.abs(top) > room - 1).any():
            offsets = [t for t in self.truths if "maximum not subtracted" in t.case.laws]
            if all(self.other(t, quantity) is None for t in offsets):
                return "maximum not subtracted"
        if np.isneginf(u).any():
            return "0·∞" if quantity in ("value", "gradient") else "masked logits"
        if (top - u.min(axis=1) > room - 2).any():
            tiny = self.tiny()
            underflows = tiny is not None and self.functions.given["loss"] and self.other(tiny, "value") is None
            if quantity == "value" or underflows:
                return "log of zero"
            return "division by a zero probability" if quantity == "gradient" else "maximum not subtracted"
        return quantity

    def note(self, truth: ExactAnswers, quantities: tuple[str, ...]) -> None:
        """Remember the laws that this input has tested: the mistakes whose answers would have been told apart."""
        for quantity in quantities:
            if truth.case.ordinary:
                for law, other in mistakes(truth, quantity):
                    if wrong(other, truth.answers[quantity], 2 * truth.tolerance[quantity]).any():
                        self.seen[law] = None
                if self.functions.bridge.dtype == "float64":
                    self.seen["digits of float32"] = None
            if quantity != "value":
                self.seen["rows sum to one" if quantity == "softmax" else "rows sum to zero"] = None
            self.seen[quantity] = None
        hidden = set()
        if not self.shifts:
            hidden.add("shift invariance")
        if not self.keeps_digits(truth) or not {"value", "gradient", "softmax"} & set(quantities):
            hidden.add("digits lost to the offset")
        if "value" not in quantities:
            hidden |= {"log of zero", "log of a clipped probability"}
        if "gradient" not in quantities:
            hidden.add("division by a zero probability")
        if not {"value", "gradient"} & set(quantities):
            hidden.add("0·∞")
        self.seen |= dict.fromkeys(law for law in truth.case.laws if law not in hidden)

    def report(
        self,
        truth: ExactAnswers | None = None,
        law: str | None = None,
        quantity: str = "",
        found: Array | None = None,
        detail: str = "",
    ) -> GradientReport:
        """Say it."""
        unchecked = list(self.skipped)
        if self.functions.given["loss"] is not None and not any("gradient" in k for k in self.functions.known.values()):
            unchecked.insert(0, "the gradient (loss returns only a value: return (value, gradient), or pass gradient=)")
        if truth is None or law is None:
            names = ", ".join(self.seen)
            message = f"{len(self.seen)} on {len(self.truths)} inputs ({names})"
            return GradientReport(None, message, None, None, None, None, tuple(self.seen), tuple(unchecked))
        self.seen.pop(law, None)
        shape = self.functions.shape
        expected = None
        if found is not None:
            expected, limit = truth.answers[quantity], truth.tolerance[quantity]
            bad = wrong(found, expected, limit)
            bad = bad if bad.any() else wrong(found, expected, truth.strict[quantity])
            place = tuple(int(i) for i in np.argwhere(bad)[0])
            shown = place[1:] if len(shape) == 1 else place
            where = f"{quantity}{list(shown) if shown else ''}"
            detail = f"{where} is {_apart(found[place], expected[place])}, on {truth.case.name}"
            if len(shape) == 1 and quantity != "value":
                found, expected = found[0], expected[0]
        mistake, fix = explained(law)
        message = f"{detail}\n{mistake}\nFix: {fix}."
        logits, targets = self.functions.bridge.make(truth.case.o, truth.case.y)
        checked = (*self.seen, law)
        return GradientReport(law, message, logits, targets, expected, found, checked, tuple(unchecked))
