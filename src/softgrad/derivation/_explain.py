"""`softgrad.explain`; what it needs is imported when it is called, so that `import softgrad` stays quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softgrad.derivation._explanation import Explanation

__all__ = ["explain"]


def explain(
    logits: Any, target: Any, *, label_smoothing: float = 0.0, temperature: float = 1.0, lang: str = "en"
) -> Explanation:
    """Derive softmax, cross-entropy and ``S − y`` with these numbers, and check every step.

    Replaces ``S = exp(o) / exp(o).sum(); L = -log(S[target]); g = S.copy(); g[target] -= 1``, believed, by the same
    proved: each step is shown in general and with the numbers, proved in letters (by SymPy, if it is installed),
    computed with fifty digits, and compared with `softgrad.reference` and the compiled kernels.

    Parameters
    ----------
    logits : array_like of shape (V,)
        One row, of 2 to 10 classes; −inf masks a class that is no target.
    target : int or array_like of shape (V,)
        The class, counted from 0, or the parts of all classes, which sum to 1.
    label_smoothing : float
        ``ε`` in ``y = (1 − ε) h + ε/V``.
    temperature : float
        ``τ``: the logits are divided by it.
    lang : str
        ``"en"`` or ``"zh"``.

    Returns
    -------
    Explanation
        Shown as a page in a notebook; its attributes are the intermediate values.

    Raises
    ------
    ValueError
        For a target outside the classes, negative or not summing to one; logits that are NaN, +inf, more than 10 or
        fewer than 2; a target at a masked class, whose loss is infinite.
    TypeError
        For what is not a number.

    Examples
    --------
    >>> import softgrad
    >>> e = softgrad.explain([2.0, 1.0, 0.1], 0)
    >>> e.probabilities.round(3)
    array([0.659, 0.242, 0.099])
    >>> e.gradient.round(3)
    array([-0.341,  0.242,  0.099])

    References
    ----------
    Bridle, "Probabilistic interpretation of feedforward classification network outputs", 1990; Bishop, "Pattern
    Recognition and Machine Learning", 2006, section 4.3.4.
    """
    from softgrad.derivation._explanation import Explanation

    return Explanation(logits, target, label_smoothing, temperature, lang)
