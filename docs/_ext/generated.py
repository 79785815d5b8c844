"""Pages that are made when the documentation is built: the derivation, its page to play with, the measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import results
from softgrad.derivation import chapter, explain

# What only the site has to say: where the page to play with is.
_PLAY = {
    "en": 'With your own numbers, to play with: <a href="playground-en.html">playground</a>.',
    "zh": '代入自己的数字、动手试一试：<a href="playground-zh.html">演示</a>。',
}


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_pages(app: Any) -> None:
    """Before the sources are read."""
    source = Path(app.srcdir)
    for lang in _PLAY:
        title, _, rest = chapter(lang).partition("\n")
        _write(source / f"derivation-{lang}.md", f"{title}\n\n{_PLAY[lang]}\n{rest}\n")
    measured = source.parent / "benchmarks" / "results"
    _write(source / "benchmarks.md", results.document(measured))
    # Included by how-to/command-line.md.
    _write(source / "how-to" / "_commands.md", results.command_table(results.read(measured / "commands.csv")))


def write_playground(app: Any, exception: Exception | None) -> None:
    """Beside the finished pages."""
    if exception is None and app.builder.format == "html":
        for lang in _PLAY:
            _write(Path(app.outdir) / f"playground-{lang}.html", explain([2.0, 1.0, 0.1], 0, lang=lang).page())


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("builder-inited", write_pages)
    app.connect("build-finished", write_playground)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
