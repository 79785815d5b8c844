"""The typed table that a model's pipeline takes: a pandas DataFrame made of a batch by the recipe of the model.

Numbers are float64 with NaN where there is none; true and false are 1 and 0; a date becomes numbers (``when.days``
since 1970, and where it lies in its year, week and day, as points of a circle); a list becomes one column for each
element (``x[0]``); categories and text are str, empty where there is none.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from softgrad.cli.tables._cells import UnreadableError, as_dates, as_lists, as_numbers, as_texts
from softgrad.cli.tables._reader import Reader, RowChunk
from softgrad.cli.terminal._messages import UserError
from softgrad.cli.terminal._results import ROLES

if TYPE_CHECKING:
    import pandas as pd

_CYCLES = ("year", "week", "day")

__all__ = ["Ingredient", "frame", "ingredients_of"]


@dataclass(frozen=True)
class Ingredient:
    """A column that the model reads.

    Attributes
    ----------
    name : str
    role : str
        "numeric", "boolean", "categorical", "text", "date" or "list".
    width : int
        Elements of a list; 0 for others.
    """

    name: str
    role: str
    width: int = 0

    @property
    def parts(self) -> list[str]:
        """Columns of the typed table."""
        if self.role == "list":
            return [f"{self.name}[{i}]" for i in range(self.width)]
        if self.role == "date":
            circles = [f"{self.name}.{cycle}.{way}" for cycle in _CYCLES for way in ("sin", "cos")]
            return [f"{self.name}.days", *circles]
        return [self.name]

    @property
    def is_number(self) -> bool:
        """Whether its parts are numbers."""
        return self.role not in ("categorical", "text")

    def described(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def ingredients_of(description: Any) -> list[Ingredient]:
    """Ingredients as :meth:`Ingredient.described` wrote them; ValueError if they are none."""
    try:
        found = [Ingredient(str(item["name"]), str(item["role"]), int(item["width"])) for item in description]
    except (KeyError, TypeError) as error:
        raise ValueError("the columns are not described") from error
    if not found or any(item.role not in ROLES for item in found):
        raise ValueError("the columns are not described")
    return found


def frame(reader: Reader, batch: RowChunk, ingredients: list[Ingredient]) -> pd.DataFrame:
    """The typed table of a batch; an error that names the first cell that cannot be read."""
    import pandas as pd

    blocks: list[Any] = []
    columns: dict[str, Any] = {}
    for item in ingredients:
        try:
            values = _values(item, batch.columns[item.name])
        except UnreadableError as error:
            raise UserError(f"{reader.where(batch.first + error.row, item.name)}: {error.what}") from error
        if values.ndim == 1:
            columns[item.name] = values
            continue
        if columns:
            blocks.append(pd.DataFrame(columns, copy=False))
            columns = {}
        blocks.append(pd.DataFrame(values, columns=item.parts, copy=False))
    if columns:
        blocks.append(pd.DataFrame(columns, copy=False))
    return blocks[0] if len(blocks) == 1 else pd.concat(blocks, axis=1)


def _values(item: Ingredient, column: Any) -> NDArray[Any]:
    if item.role == "list":
        return as_lists(column, item.width)
    if item.role == "date":
        return _date_parts(as_dates(column))
    return as_numbers(column) if item.is_number else as_texts(column)


def _date_parts(moments: NDArray[np.datetime64]) -> NDArray[np.float64]:
    """Days since 1970, and sine and cosine of the part of the year, week and day that is over."""
    known = ~np.isnat(moments)
    held = np.where(known, moments, np.datetime64(0, "us"))
    days = held.astype(np.int64) / 86_400_000_000
    year = held.astype("datetime64[Y]")
    start, end = (y.astype("datetime64[D]").astype(np.int64) for y in (year, year + 1))
    of_year = (days - start) / (end - start)
    of_week = (days + 3) / 7 % 1  # 1970-01-01 was a Thursday
    angles = [2 * np.pi * part for part in (of_year, of_week, days % 1)]
    parts = np.column_stack([days, *(way(angle) for angle in angles for way in (np.sin, np.cos))])
    parts[~known] = np.nan
    return parts
