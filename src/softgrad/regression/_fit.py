"""The fit: from arrays to a solver and back, and an honest account of how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from softgrad._core.blas import single_threaded_blas
from softgrad.regression._handout import hand_out
from softgrad.regression._inputs import ProblemVariables, checked
from softgrad.regression.certificates._separation import Separation, can_be_separated, separation_of
from softgrad.regression.rows._row_sums import RowSums
from softgrad.regression.solvers._exact import MOST_PARAMETERS, Exact
from softgrad.regression.solvers._lbfgs import lbfgs
from softgrad.regression.solvers._lean import fits, lean
from softgrad.regression.solvers._newton import newton
from softgrad.regression.solvers._state import Progress, State
from softgrad.regression.solvers._truncated import Truncated

Float = NDArray[np.float64]

SWITCH_PARAMETERS = 1500  # up to these it is the way out where the preconditioner does not fit the data
SOLVERS = ("auto", "newton-cg", "newton", "lbfgs")

__all__ = ["SOLVERS", "FitInterrupted", "FitResult", "fit"]


@dataclass(frozen=True)
class FitResult:
    """A fitted model and how the fit ended.

    Attributes
    ----------
    coef, intercept : arrays (K, P) and (K,), float64
        One row a class, or one row alone for two classes: the logit of the second against the first.
    n_iter : int
        Iterations of the solver.
    n_passes : float
        Products with the rows: one is ``X @ W`` and ``X.T @ G``.
    objective : float
        C Σ a ℓ + ½‖W‖² at the result (Σ a ℓ when C is ``inf``).
    gap : float
        An upper bound of (objective − optimum) / optimum of this model, from the dual problem or, where that gives
        none, from the Newton decrement. inf if no positive bound was found. Without a penalty, NaN where the classes
        are separable or there are more than 1500 parameters; the message says which.
    history : list of Progress
        One entry an iteration.
    converged : bool
        Whether the fit stopped because it was done.
    message : str
        Why it stopped.
    solver : str
        The solver that was used.
    separation : Separation or None
        Without a penalty, a proof that there is no optimum: a direction along which the loss falls for ever.
    """

    coef: Float
    intercept: Float
    n_iter: int
    n_passes: float
    objective: float
    gap: float
    history: list[Progress]
    converged: bool
    message: str
    solver: str
    separation: Separation | None = None


class FitInterrupted(KeyboardInterrupt):
    """Ctrl-C during a fit; ``result`` is what was reached.

    Attributes
    ----------
    result : FitResult
        The model so far, to be used or to go on from; of a path, of the fit that was running.
    validation : CrossValidation or None
        Of :func:`cross_validate_path`: the values of C that were done with all their folds, if there are any.
    """

    def __init__(self, result: FitResult, validation: Any = None) -> None:
        super().__init__("the fit was interrupted")
        self.result = result
        self.validation = validation


def fit(
    x: Any,
    targets: ArrayLike,
    n_classes: int,
    *,
    C: float = 1.0,
    sample_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    offset: ArrayLike | None = None,
    fit_intercept: bool = True,
    solver: str = "auto",
    tol: float = 1e-6,
    max_iter: int = 1000,
    max_memory: int | None = None,
    n_threads: int | None = None,
    start: tuple[ArrayLike, ArrayLike] | None = None,
    callback: Callable[[Progress], Any] | None = None,
    coef_dtype: Any = np.float64,
    standardize: bool = False,
) -> FitResult:
    """Minimise C Σ_i a_i ℓ_i(W x_i + b) + ½ ‖W‖² to a certified distance from the optimum.

    Replaces ``scipy.optimize.minimize`` on ``cross_entropy(x @ W.T + b, targets)``.

    Parameters
    ----------
    x : array (N, P), CSR matrix or RowBlocks, float32 or float64
        The rows.
    targets : array of integers (N,), or of floats (N, K)
        Labels in [0, K), or soft labels: not negative; rows need not sum to one.
    n_classes : int
        K, at least 2. Two classes are the binomial model with one row of coefficients.
    C : float
        Weight of the loss against the penalty; ``inf`` for no penalty.
    sample_weight : array (N,), optional
        Row weights a_i, not negative.
    class_weight : array (K,), optional
        w_j, multiplies the target's part of class j.
    label_smoothing : float
        ε in [0, 1]: targets become (1 − ε) y + ε / K.
    offset : array (N, K), or (N,) for two classes, optional
        Added to the logits; of two classes, to the logit of the second against the first.
    fit_intercept : bool
        Whether there is an intercept, which is not penalised.
    solver : {"auto", "newton-cg", "newton", "lbfgs"}
        "newton-cg": truncated Newton, preconditioned with the Hessian's diagonal blocks, or a Kronecker product where
        they are too large; "newton": the whole Hessian, for few parameters; "lbfgs": preconditioned L-BFGS. "auto"
        chooses by shape, and first turns fewer rows than features into their row space.
    tol : float
        The fit is done when ``gap`` is at most this. Without a penalty another step is taken from there.
    max_iter : int
        Most iterations.
    max_memory : int, optional
        Bytes for arrays of the shape (N, K); by default two of them and 32 MB, at most 4 GB. What does not fit is
        computed again. What a fit needs besides: X, at most 160 MB for the tiles it works on, and about twelve float64
        arrays of the shape of the coefficients.
    n_threads : int, optional
        Threads; the result's bits do not depend on them.
    start : (coef, intercept), optional
        Where to start.
    callback : callable (Progress), optional
        Called after each iteration.
    coef_dtype : dtype
        Type that the coefficients and intercepts are rounded to: float32 or float64. Objective and gap are those of
        the rounded model.
    standardize : bool
        Penalise each coefficient in the unit of its feature's standard deviation s_j, weighted by rows:
        ½ Σ (s_j W_kj)². That is the fit of standardised features, with coefficients for the given ones. Dense X is not
        copied; of sparse X the numbers that it stores are.

    Returns
    -------
    FitResult

    Raises
    ------
    ValueError
        For data or options that cannot be; the message names the argument and the row.
    FitInterrupted
        On Ctrl-C, with the result so far.

    Examples
    --------
    >>> import numpy as np
    >>> from softgrad.regression import fit
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> result = fit(x, [0, 0, 1, 1], 2)
    >>> result.converged, result.gap <= 1e-6, result.coef.round(2)
    (True, True, array([[0.96]]))

    References
    ----------
    Böhning, "Multinomial logistic regression algorithm", 1992, section 3 (the Kronecker bound); Nash and Sofer,
    "Assessing a search direction within a truncated-Newton method", 1990 (when to stop CG).
    """
    inputs = checked(
        x,
        targets,
        n_classes,
        sample_weight=sample_weight,
        class_weight=class_weight,
        label_smoothing=label_smoothing,
        offset=offset,
        fit_intercept=fit_intercept,
        max_memory=max_memory,
        n_threads=n_threads,
        reduce_rows=solver == "auto",
        standardize=standardize,
    )
    check_options(C, solver, tol, max_iter)
    with single_threaded_blas():
        return solve(
            inputs, C, solver=solver, tol=tol, max_iter=max_iter, start=inputs.inner(start), callback=callback,
            coef_dtype=coef_dtype,
        )  # fmt: skip


def check_options(C: float, solver: str, tol: float, max_iter: int) -> None:
    """Refuse what no fit can do."""
    if not C > 0:
        raise ValueError(f"C must be positive, not {C}: use C=inf for no penalty")
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(map(repr, SOLVERS))}, not {solver!r}")
    if not (tol > 0 and np.isfinite(tol)):
        raise ValueError(f"tol must be positive, not {tol}")
    if max_iter < 1:
        raise ValueError(f"max_iter must be at least 1, not {max_iter}")


def solve(
    inputs: ProblemVariables,
    C: float,
    *,
    solver: str,
    tol: float,
    max_iter: int,
    start: tuple[Float, Float] | None = None,
    callback: Callable[[Progress], Any] | None = None,
    preconditioner: Any = None,
    coef_dtype: Any = np.float64,
) -> FitResult:
    """One fit of a problem that was checked; ``start`` in its own variables."""
    problem = inputs.problem
    kappa = (2.0 if inputs.binomial else 1.0) / C if np.isfinite(C) else 0.0
    scale = C if np.isfinite(C) else 1.0
    weight, bias = inputs.origin() if start is None else start
    state = State(
        problem, weight, bias, kappa=kappa, scale=scale, tol=tol, max_iter=max_iter, callback=callback,
        preconditioner=preconditioner,
    )  # fmt: skip
    given, chosen = inputs, solver
    if solver == "newton" and problem.design.sparse:
        raise ValueError("solver 'newton' needs dense rows; 'newton-cg' takes sparse ones")
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is judged by its value
            chosen = run(problem, state, solver)
            inputs.preconditioner, inputs.last_weight, inputs.last_bias = state.preconditioner, state.weight, state.bias
            if inputs.basis is not None:
                given, state = in_features(inputs, state)
                if not (state.done() or state.gap <= tol):
                    chosen = run(given.problem, state, solver)
    except KeyboardInterrupt as interrupt:
        if given is inputs and inputs.basis is not None:
            given, state = in_features(inputs, state)
        elif problem.small and not np.isfinite(state.gap):
            state.bound_here()  # small problems have a bound only where it may end the fit
        raise FitInterrupted(_result(given, state, chosen, "interrupted", coef_dtype)) from interrupt
    except FloatingPointError as error:
        raise ValueError(
            f"the objective is not finite at iteration {state.iteration}: the features are too large for "
            f"{problem.design.dtype}; scale them"
        ) from error
    return _result(given, state, chosen, "", coef_dtype)


def run(problem: RowSums, state: State, solver: str) -> str:
    """Run a solver to its end, and evaluate its last point in float64; returns the solver that came to the end."""
    parameters = problem.n_classes * (problem.design.n_features + int(problem.fit_intercept))
    exact = solver == "auto" and not problem.design.sparse and parameters <= SWITCH_PARAMETERS
    if exact:
        state.patience = max(60, parameters // 2)
    if fits(problem, state, solver) and lean(problem, state):
        return "newton" if parameters <= MOST_PARAMETERS else "newton-cg"
    if solver == "auto":
        solver = "newton" if exact and parameters <= MOST_PARAMETERS else "newton-cg"
    if solver == "lbfgs":
        lbfgs(problem, state)
    else:
        newton(problem, state, Exact(problem, state) if solver == "newton" else Truncated(problem, state))
    if exact and solver != "newton" and (state.handed_over or (state.stalled and state.gap > state.tol)):
        solver = "newton"
        state.try_again()
        newton(problem, state, Exact(problem, state))
    if not state.evaluated_precisely:
        state.finish()
    if state.stalled and state.gap > state.tol:  # the bounds from a decrement were spent on earlier points
        state.proofs = 0
        state.point = problem.gradient(state.weight, state.bias, precise=True)  # trials moved what is stored
        state.prove()
        state.gap = state.relative(state.bound)
    return solver


def in_features(inputs: ProblemVariables, state: State) -> tuple[ProblemVariables, State]:
    """Return the problem in the caller's features, and a state at the point that was found in its row space."""
    given = inputs.whole()
    start = given.inner(inputs.outer(state.weight, state.bias))
    assert start is not None
    found = State(
        given.problem, *start, kappa=state.kappa, scale=state.scale, tol=state.tol, max_iter=state.max_iter,
        callback=state.callback,
    )  # fmt: skip
    found.continue_from(state)
    found.finish()
    if found.gap > found.tol:
        found.prove()
        found.gap = found.relative(found.bound)
    return given, found


def _separation(inputs: ProblemVariables, state: State) -> Separation | None:
    """Return a proof, in the caller's variables, that there is no optimum; None with a penalty or without a proof."""
    if state.kappa > 0 or not can_be_separated(inputs.problem, state.objective - state.bound):
        return None
    found = separation_of(inputs.problem, state.weight, state.bias)
    if found is None:
        return None
    coef, intercept = inputs.outer(found.coef, found.intercept)
    return found._replace(coef=coef, intercept=intercept)


def _result(inputs: ProblemVariables, state: State, solver: str, reason: str, coef_dtype: Any) -> FitResult:
    """The state in the caller's variables."""
    coef, intercept, objective, gap = hand_out(inputs, state, coef_dtype)
    rounding = 1e-13
    unproved = state.kappa == 0 and not state.provable
    separation = None if reason else _separation(inputs, state)
    separable = state.separable or separation is not None
    shown = float("nan") if unproved or separable else gap
    converged = not reason and not separable
    converged = converged and (state.polished if unproved else gap <= state.tol or (state.stalled and gap <= rounding))
    if reason:
        message = f"{reason} at iteration {state.iteration}; gap {shown:.3g}, tol = {state.tol:g}"
    elif separation is not None:
        message = separation.describe()
    elif separable:
        message = (
            "the loss without a penalty (C = inf) is 0 to within rounding: the classes are separable; use a finite C"
        )
    elif converged:
        message = f"the gap, {shown:.3g}, is within tol = {state.tol:g}"
        if unproved:
            message = (
                "the Newton decrement is within tol; the gap is NaN: without a penalty its proof needs the Hessian, "
                "which is too large here"
            )
    elif state.stalled:
        message = f"float64 has no lower point: gap {shown:.3g}, tol = {state.tol:g}; raise tol or scale the features"
    else:
        message = f"stopped at max_iter = {state.max_iter}; gap {shown:.3g}, tol = {state.tol:g}"
    return FitResult(
        coef=coef,
        intercept=intercept,
        n_iter=state.iteration,
        n_passes=state.problem.passes - state.passes_before,
        objective=objective,
        gap=shown,
        history=state.history,
        converged=bool(converged),
        message=message,
        solver=solver,
        separation=separation,
    )
