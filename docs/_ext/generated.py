"""Pages that are made when the documentation is built: the derivation, its page to play with, the measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import results
from softgrad.derivation import chapter
from softgrad.derivation.page import page

_PLAY = {
    "en": "The same as a page to play with, with your own numbers: [playground]({file}) (`softgrad explain --open`).",
    "zh": "可以代入自己的数字、动手试一试的页面：[演示]({file})（`softgrad explain --open --lang zh`）。",
}


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def write_pages(app: Any) -> None:
    """Before the sources are read."""
    source = Path(app.srcdir)
    for lang in _PLAY:
        title, _, rest = chapter(lang).partition("\n")
        link = f'<a href="playground-{lang}.html">'
        words = _PLAY[lang].replace("[", link, 1).replace("]({file})", "</a>")
        _write(source / f"derivation-{lang}.md", f"{title}\n\n{words.replace('`', '')}\n{rest}\n")
    _write(source / "benchmarks.md", results.document(source.parent / "benchmarks" / "results"))


def write_playground(app: Any, exception: Exception | None) -> None:
    """Beside the finished pages."""
    if exception is None and app.builder.format == "html":
        for lang in _PLAY:
            _write(Path(app.outdir) / f"playground-{lang}.html", page(lang=lang))


def setup(app: Any) -> dict[str, bool]:
    """Sphinx calls this."""
    app.connect("builder-inited", write_pages)
    app.connect("build-finished", write_playground)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
