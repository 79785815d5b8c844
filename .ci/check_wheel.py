"""Check an installed wheel, with nothing but NumPy beside it: every instruction set that this machine runs."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np

import softgrad
from softgrad import reference


def check() -> None:
    """Compare loss and gradient with the reference, in the instruction set that the environment names."""
    rng = np.random.default_rng(0)
    logits, labels = 10 * rng.standard_normal((50, 5000)), rng.integers(0, 5000, 50)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5), (np.float16, 1e-2)):
        mine = logits.astype(dtype)
        loss, gradient = softgrad.cross_entropy_with_grad(mine, labels, reduction="sum")
        right, slope = reference.cross_entropy_with_grad(mine, labels, reduction="sum")
        np.testing.assert_allclose(loss, right, rtol=tolerance)
        np.testing.assert_allclose(gradient, slope, atol=tolerance)


def main() -> None:
    """Run the check once for each instruction set, each in a process of its own."""
    facts = softgrad.info()
    print(facts)
    if facts["fallback_reason"] is not None:
        raise SystemExit("the wheel has no native kernels")
    # The derivation needs NumPy alone, too; only its proofs in letters need SymPy.
    explanation = softgrad.explain([2.0, 1.0, 0.1], 0)
    if not explanation.ok or "<canvas" not in explanation.page() or "<math" not in explanation._repr_html_():
        raise SystemExit("softgrad.explain does not work from the wheel")
    for name in facts["available"]:
        environment = os.environ | {"SOFTGRAD_INSTRUCTION_SET": name}
        subprocess.run([sys.executable, __file__, "--check"], env=environment, check=True)
        print(f"{name}: as the reference")


if __name__ == "__main__":
    if "--check" in sys.argv:
        check()
    else:
        main()
