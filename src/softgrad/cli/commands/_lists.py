"""Options that take several words: ``--drop a b`` becomes ``--drop=a --drop=b``, which is how Typer takes lists."""

from __future__ import annotations

__all__ = ["gathered"]

_LISTS = {
    "explain": ("--logits", "--target"),
    "fit": ("--features", "--drop", "--text", "--categorical", "--target-proba"),
    "predict": ("--id",),
}


def gathered(arguments: list[str]) -> list[str]:
    """The arguments with each word of a list as an option of its own; a list ends at the next option."""
    if not arguments or arguments[0] not in _LISTS:
        return arguments
    lists, numbers = _LISTS[arguments[0]], arguments[0] == "explain"
    result: list[str] = []
    current = ""
    for word in arguments:
        if word in lists:
            current = word
            result.append(word)  # stays alone, for Typer to complain of, if no word follows
        elif current and (not word.startswith("-") or (numbers and _is_number(word))):
            if result[-1] == current:
                result.pop()
            result += [f"{current}={part}" for part in (word.split(",") if numbers else [word])]
        else:
            current = ""
            result.append(word)
    return result


def _is_number(word: str) -> bool:
    try:
        float(word.split(",")[0].replace("−", "-"))
    except ValueError:
        return False
    return True
