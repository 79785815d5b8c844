"""The languages the derivation is written in."""

from __future__ import annotations

from softgrad.derivation import _chinese, _english

__all__ = ["LANGUAGES", "TEXTS", "WORDS"]

LANGUAGES = {"en": "English", "zh": "中文"}
TEXTS = {"en": _english.TEXTS, "zh": _chinese.TEXTS}
WORDS = {"en": _english.WORDS, "zh": _chinese.WORDS}
