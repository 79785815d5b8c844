"""What moves on the terminal while a command works; nothing where standard error is no terminal."""

from __future__ import annotations

import math
import time
from typing import Any, Self

from rich.console import Console

__all__ = ["Stages"]

_NAMES = {
    "read": "reading", "prepare": "looking at every row", "features": "making features", "train": "training",
    "measure": "measuring", "predict": "predicting", "write": "writing", "report": "drawing", "export": "converting",
}  # fmt: skip


class Stages:
    """One line for the stage that is running, and the seconds that each took.

    Attributes
    ----------
    seconds : dict
        Of each stage, by name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._console = Console(stderr=True)
        self._progress: Any = None
        self._task: Any = None
        self._stage = ""
        self._began = time.perf_counter()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[note]}"),
                TimeElapsedColumn(), console=self._console, transient=True,
            )  # fmt: skip
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        if self._progress is not None:
            self._progress.stop()

    def tick(self, stage: str, done: int, total: int | None) -> None:
        """So many rows of a stage are done."""
        self.begin(stage)
        if self._progress is not None:
            of = "" if total is None else f" of {total:,}"
            self._progress.update(self._task, completed=done, total=total, note=f"{done:,}{of} rows")

    def begin(self, stage: str) -> None:
        """A stage begins, and the one before ends."""
        if stage == self._stage:
            return
        self._end()
        self._stage, self._began = stage, time.perf_counter()
        if self._progress is not None:
            self._task = self._progress.add_task(_NAMES[stage], total=None, note="")

    def listen(self, tol: float, max_iter: int) -> Any:
        """What hears the iterations of a fit: shows objective, certified gap and time left."""
        left = _Left(tol)

        def hear(what: str, progress: Any) -> None:
            if self._progress is None:
                return
            about = f"{what}; " if what else ""
            note = (
                f"{about}iteration {progress.iteration} of at most {max_iter}, objective {progress.objective:.6g}, "
                f"gap {progress.gap:.1e}{left(what, progress)}"
            )
            self._progress.update(self._task, note=note)

        return hear

    def pause(self) -> None:
        """Take the line away, for something that stays to be printed."""
        if self._progress is not None:
            self._progress.stop()
            self._progress.start()

    def _end(self) -> None:
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + time.perf_counter() - self._began
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
        self._stage = ""


class _Left:
    """Time left of a fit, if its gap goes on falling as it did: log gap is a straight line in time."""

    def __init__(self, tol: float) -> None:
        self.tol = tol
        self.what = ""
        self.points: list[tuple[float, float]] = []

    def __call__(self, what: str, progress: Any) -> str:
        if what != self.what or progress.iteration == 1:
            self.what, self.points = what, []
        if 0 < progress.gap < math.inf:
            self.points.append((progress.seconds, math.log(progress.gap)))
        if len(self.points) < 3:
            return ""
        (t0, g0), (t1, g1) = self.points[max(0, len(self.points) - 8)], self.points[-1]
        if not g1 < g0:
            return ""
        seconds = max(0.0, (g1 - math.log(self.tol)) * (t1 - t0) / (g0 - g1))
        return f", about {seconds:.0f} s left" if seconds >= 1 else ""
