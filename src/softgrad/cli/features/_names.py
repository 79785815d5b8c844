"""Names of the features that a transformer makes, each of one feature, and the columns that they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from softgrad.cli.features._frame import Ingredient

__all__ = ["names_of", "origins_of", "plain_names"]


def names_of(transformer: Any, origins: list[str]) -> list[str]:
    """Return a name for each feature: scikit-learn's, with the column before it where two features share a name."""
    found = plain_names([part for part in transformer.transformers_ if part[0] != "remainder"])
    longer: list[Callable[[int, str], str]] = [lambda i, s: f"{origins[i]}: {s}", lambda i, s: f"{s} ({i + 1})"]
    for make in longer:
        counts = Counter(found)
        found = [make(i, name) if counts[name] > 1 else name for i, name in enumerate(found)]
    return found


def plain_names(parts: Sequence[tuple[str, Any, Any]]) -> list[str]:
    """Return what the steps of a column transformer call their features; several may have one name."""
    names: list[str] = []
    for _, step, columns in parts:
        names += map(str, step.get_feature_names_out(None if isinstance(columns, str) else columns))
    return names


def origins_of(transformer: Any, ingredients: list[Ingredient]) -> list[str]:
    """The column that each feature was made of."""
    of_part = {part: item.name for item in ingredients for part in item.parts}
    found: list[str] = []
    for name, step, columns in transformer.transformers_:
        if name == "numeric":
            parts = list(columns)
            flagged = step["fill"].indicator_.features_
            found += [of_part[part] for part in parts] + [of_part[parts[i]] for i in flagged]
        elif name == "categorical":
            for column, levels, rare in zip(columns, step.categories_, step.infrequent_categories_, strict=True):
                found += [column] * (len(levels) - (0 if rare is None else len(rare) - 1))
        elif name.startswith("text "):
            found += [columns] * len(step.vocabulary_)
    return found
