"""Iteration callbacks: the caller's, the terminal's, and those of scikit-learn 1.9 and newer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from softgrad.sklearn._fit_data import FitData

try:
    from sklearn.callback import CallbackSupportMixin
    from sklearn.callback import with_callbacks as _with_callbacks

    STACK_LEVEL = 3  # of a warning in a method with callbacks, to name the caller's line
except ImportError:  # before scikit-learn 1.9
    CallbackSupportMixin, _with_callbacks, STACK_LEVEL = type("CallbackSupportMixin", (), {}), None, 2


__all__ = ["STACK_LEVEL", "CallbackSupportMixin", "Monitor", "with_callbacks"]

_Method = TypeVar("_Method", bound=Callable[..., Any])


def with_callbacks(method: _Method) -> _Method:
    """Let scikit-learn's callbacks know when the method has ended, however it ends."""
    return method if _with_callbacks is None else cast(_Method, _with_callbacks(method))


class Monitor:
    """Forwards each iteration of a fit to the callbacks.

    With ``most``, the largest number of iterations, each is a task of scikit-learn's callbacks below the task of the
    fit. A callback that asks for the end then ends the fit as Ctrl-C does, but with :attr:`stopped` set: it is no
    interruption. ``reached`` returns the fitted attributes after an iteration, for callbacks that take the fitted
    estimator; ``scale`` divides the objective of the solver.
    """

    def __init__(
        self,
        estimator: Any,
        data: FitData,
        callback: Callable[[Any], Any] | None,
        most: int | None = None,
        *,
        reached: Callable[[int], dict[str, Any]] | None = None,
        scale: float = 1.0,
    ) -> None:
        self.stopped = False
        self._reached, self._scale = reached, scale
        self._model: Callable[[], dict[str, Any]] | None = None
        self._estimator = estimator
        self._callback = callback
        self._task: Any = None
        self._root: Any = None
        if hasattr(estimator, "_init_callback_context"):
            self._data = {
                "X": data.x if data.in_memory else None,
                "y": lambda: data.targets.take(slice(None)),
                "metadata": None if data.sample_weight is None else {"sample_weight": data.sample_weight},
            }
            # One task more than the iterations: the next one's begins as soon as one has ended.
            self._root = estimator._init_callback_context(max_subtasks=0 if most is None else max(most, 1) + 1)
            self._root.call_on_fit_task_begin(estimator=estimator, **self._data)
            if most is not None:
                self._begin()

    def __call__(self, progress: Any) -> None:
        """Pass one iteration on."""
        progress = progress._replace(objective=progress.objective / self._scale)
        if self._estimator.verbose:
            print(
                f"iteration {progress.iteration:4d}   objective {progress.objective:.8g}   gap {progress.gap:.2e}   "
                f"passes {progress.passes:.1f}",
                flush=True,
            )
        if self._callback is not None:
            self._callback(progress)
        if self._task is not None:
            reached, iteration = self._reached, progress.iteration
            self._model = None if reached is None else lambda: reached(iteration)
            self._end_task()
            self._begin()
        if self.stopped:
            raise KeyboardInterrupt

    def end(self) -> None:
        """End the open tasks; the estimator is fitted."""
        if self._task is not None:
            self._task.call_on_fit_task_end(estimator=self._estimator)
        if self._root is not None:
            self._root.call_on_fit_task_end(estimator=self._estimator, reconstruction_attributes={}, **self._data)

    def _begin(self) -> None:
        self._task = self._root.subcontext(task_name="iteration")
        self._task.call_on_fit_task_begin(
            estimator=self._estimator, reconstruction_attributes=self._model, **self._data
        )

    def _end_task(self) -> None:
        self.stopped = self._task.call_on_fit_task_end(
            estimator=self._estimator, reconstruction_attributes=self._model, **self._data
        )
