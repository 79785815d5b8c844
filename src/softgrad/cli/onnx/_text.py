r"""TF-IDF of text in ONNX operators, word for word as scikit-learn makes it.

skl2onnx's own converter reads ``[a-zA-Z0-9_]+`` for words, single letters included, and lower-cases with a locale of
the machine that runs the model, without which the model does not even load. Here a word is what Python's ``\w`` says,
written out as ranges of characters, and is lower-cased by a table of the characters of the vocabulary:

    text → words (Tokenizer of onnxruntime) → the different ones → their lower case → numbers → counts → TF-IDF

Two rules of Python's ``str.lower`` reach beyond one character. İ becomes an i and a dot that is no letter, so that a
word ends there; a capital Σ that ends a word becomes ς. (Python also looks at what follows the word: before an
apostrophe, a full stop, a colon or a combining accent that a letter follows it makes σ, and before a digit ς. That is
not done here.)
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Iterable

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from softgrad.cli.onnx._graph import Graph

_DEFAULT_PATTERN = TfidfVectorizer().token_pattern
_DOTTED = "İ"  # the one character whose lower case is two


def refuse_text(step: TfidfVectorizer, demand: Callable[[bool, str], None]) -> None:
    """One line for an option that cannot be expressed."""
    demand(step.analyzer == "word", f"analyzer is {step.analyzer!r}: only 'word' can be expressed")
    same = step.token_pattern == _DEFAULT_PATTERN
    demand(same, f"token_pattern is {step.token_pattern!r}: only scikit-learn's own pattern can be expressed")
    for option in ("tokenizer", "preprocessor", "strip_accents", "stop_words"):
        value = getattr(step, option)
        demand(value is None, f"{option} is {value!r:.40}: only None can be expressed")


def tfidf(graph: Graph, step: TfidfVectorizer) -> None:
    """Counts of the words and their n-grams, weighted and normalised."""
    words = [tuple(term.split(" ")) for term in step.vocabulary_]
    single = sorted({word for term in words for word in term})
    numbers = _word_numbers(graph, single, lowercase=step.lowercase)
    x = _counts(graph, step, {word: i for i, word in enumerate(single)}, numbers)
    if step.dtype == np.float64:
        x = graph.cast(x, np.float64)

    def one(value: float) -> str:
        return graph.constant(np.array(value, dtype=step.dtype))

    if step.binary:
        x = graph.node("Min", x, one(1))
    if step.sublinear_tf:
        logs = graph.node("Add", graph.node("Log", graph.node("Max", x, one(1))), one(1))
        x = graph.node("Where", graph.node("Greater", x, one(0)), logs, one(0))
    if step.use_idf:
        x = graph.node("Mul", x, graph.constant(step.idf_.astype(step.dtype)))
    if step.norm:
        size = graph.node({"l1": "ReduceL1", "l2": "ReduceL2"}[step.norm], x, graph.constant([1]), keepdims=1)
        x = graph.node("Div", x, graph.node("Where", graph.node("Equal", size, one(0)), one(1), size))
    graph.finish(x)


def _word_numbers(graph: Graph, known: list[str], *, lowercase: bool) -> str:
    """For each text the numbers of its words in ``known``, in order; −1 for others and behind the last."""
    texts = graph.node("Reshape", graph.source(), graph.constant([-1]))
    words = _pieces(graph, texts, _word_pattern(lowercase))
    distinct, _, place, _ = graph.nodes("Unique", graph.node("Reshape", words, graph.constant([-1])), outputs=4)
    if lowercase:
        distinct = _lower(graph, distinct, known)
    numbers = graph.node(
        "LabelEncoder",
        distinct,
        domain="ai.onnx.ml",
        keys_strings=known,
        values_int64s=list(range(len(known))),
        default_int64=-1,
    )
    return graph.node("Reshape", graph.node("Gather", numbers, place), graph.node("Shape", words), allowzero=1)


def _lower(graph: Graph, words: str, known: list[str]) -> str:
    """The lower case of the words that can become one of the known; of others the empty text.

    Only characters of the known words matter, in either case, and only words that are not longer than they: that keeps
    the table small, and the characters of a word of any length out of memory.
    """
    alphabet = set("".join(known))
    table = {c: low for c, low in _lowered().items() if low in alphabet} | {c: c for c in alphabet if c.lower() == c}
    finals = {}
    if alphabet & {"σ", "ς"}:
        table["Σ"] = "σ"
        finals = {c + "Σ": low for c in sorted(table) if (low := (c + "Σ").lower()).endswith("ς")}
    if "i" in alphabet:
        table[_DOTTED] = "i"
    longest = max(map(len, known))
    short = graph.node("RegexFullMatch", words, pattern=f"{_among(table)}{{2,{longest}}}")
    words = graph.node("Where", short, words, graph.constant([""]))
    # One more word, which nothing asks for, makes the matrix of characters as wide as joining in pairs wants it.
    width = 1 << (longest - 1).bit_length()
    words = graph.node("Concat", words, graph.constant(["-" * width]), axis=0)
    end = f"{_among(pair[0] for pair in finals)}Σ$|" if finals else ""
    rules = dict(sorted((table | finals).items()))
    letters = graph.node(
        "LabelEncoder",
        _pieces(graph, words, f"{end}."),
        domain="ai.onnx.ml",
        keys_strings=list(rules),
        values_strings=list(rules.values()),
        default_string="",
    )
    return _joined(graph, letters, width)


def _joined(graph: Graph, letters: str, width: int) -> str:
    """The rows of a matrix of text, each joined: neighbours, then neighbouring pairs, and so on.

    Not a Scan: onnxruntime (1.32) leaves the text of earlier rounds in what a loop carries along.
    """
    while width > 1:
        width //= 2
        pairs = graph.node("Reshape", letters, graph.constant([-1, width, 2]))
        letters = graph.node("StringConcat", *(graph.node("Gather", pairs, graph.constant(i), axis=2) for i in (0, 1)))
    return graph.node("Reshape", letters, graph.constant([-1]))


def _pieces(graph: Graph, texts: str, pattern: str) -> str:
    """A row for each text with its matches from left to right, then empty texts."""
    return graph.node("Tokenizer", texts, domain="com.microsoft", tokenexp=pattern, mark=0, mincharnum=1, pad_value="")


def _counts(graph: Graph, step: TfidfVectorizer, number: dict[str, int], numbers: str) -> str:
    """How often each term of the vocabulary is in each text: float32, exact."""
    least, most = step.ngram_range
    terms = sorted(
        (len(words), column, words) for term, column in step.vocabulary_.items() if (words := term.split(" "))
    )
    starts = [sum(length * (length < n) for length, *_ in terms) for n in range(1, most + 1)]
    return graph.node(
        "TfIdfVectorizer",
        numbers,
        mode="TF",
        min_gram_length=least,
        max_gram_length=most,
        max_skip_count=0,
        ngram_counts=starts,
        ngram_indexes=[int(column) for _, column, _ in terms],
        pool_int64s=[number[word] for *_, words in terms for word in words],
    )


def _word_pattern(lowercase: bool) -> str:
    r"""Python's ``\b\w\w+\b`` without its ``\b``: the longest run of ``\w``, of two at least."""
    letters = set(_word_characters())
    if not lowercase:
        return f"{_among(letters)}{{2,}}"
    plain = _among(letters - {_DOTTED})
    return f"{plain}+{_DOTTED}|{plain}{{2,}}"


def _among(characters: Iterable[str]) -> str:
    """A character class, as ranges."""
    codes = np.array(sorted(map(ord, characters)))
    breaks = np.flatnonzero(np.diff(codes) > 1)
    first, last = codes[np.append(0, breaks + 1)], codes[np.append(breaks, len(codes) - 1)]
    return "[" + "".join(f"\\x{{{a:x}}}-\\x{{{b:x}}}" for a, b in zip(first, last, strict=True)) + "]"


@functools.cache
def _word_characters() -> list[str]:
    return re.findall(r"\w", "".join(map(chr, range(sys.maxunicode + 1))))


@functools.cache
def _lowered() -> dict[str, str]:
    """The characters that change in lower case, and into what."""
    return {c: low for c in map(chr, range(sys.maxunicode + 1)) if (low := c.lower()) != c and c != _DOTTED}
