"""The documentation builds without a warning, is complete, loads nothing from a network, and refuses what is wrong."""

from __future__ import annotations

import csv
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def build(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(source), str(out)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = build(DOCS, out)
    assert done.returncode == 0, done.stderr
    return out


class Links(HTMLParser):
    """Where a page leads, what it loads, and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.leads: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        have = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := have.get(name))}
        if tag == "a" and have.get("href"):
            self.leads.append(str(have["href"]))
        if tag == "link" and have.get("rel") != "canonical" and have.get("href"):
            self.loads.append(str(have["href"]))
        if have.get("src"):
            self.loads.append(str(have["src"]))


def pages(site: Path) -> Iterator[tuple[Path, Links]]:
    for path in sorted(site.rglob("*.html")):
        yield path, Links(path.read_text(encoding="utf-8"))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for path, links in pages(site):
        for target in links.loads:
            assert not urlsplit(target).netloc, f"{path.name} loads {target}"
    for path in [*site.rglob("*.css"), *site.rglob("*.html")]:
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_every_link_inside_leads_somewhere(site: Path) -> None:
    found = dict(pages(site))
    seen = 0
    for path, links in found.items():
        for target in links.leads:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert file.exists(), f"{path.name} leads to {target}"
            if parts.fragment and file in found:
                assert unquote(parts.fragment) in found[file].anchors | {"top"}, f"{path.name}: {target}"
            seen += 1
    assert seen > 200


@pytest.mark.parametrize(
    "name",
    [
        "softgrad",
        "softgrad.derivation",
        "softgrad.torch",
        "softgrad.torch.parallel",
        "softgrad.sklearn",
        "softgrad.dask",
        "softgrad.regression",
        "softgrad.reference",
    ],
)
def test_every_public_name_is_in_the_reference(site: Path, name: str) -> None:
    anchors = Links((site / "api" / f"{name.rpartition('.')[2]}.html").read_text(encoding="utf-8")).anchors
    module = importlib.import_module(name)
    public = module.__all__
    elsewhere = {"softgrad.torch": {"PredictionStats"}}.get(name, set())
    missing = [p for p in public if p not in elsewhere and not any(a.endswith(f"{name}.{p}") for a in anchors)]
    assert missing == []


def test_the_reference_describes_methods_and_fields(site: Path) -> None:
    from softgrad import sklearn

    anchors = Links((site / "api" / "sklearn.html").read_text(encoding="utf-8")).anchors
    methods = ("fit", "decision_function", "predict", "predict_log_proba", "predict_proba", "score")
    for estimator in (sklearn.SoftmaxRegression, sklearn.SoftmaxRegressionCV):
        assert {f"softgrad.sklearn.{estimator.__name__}.{method}" for method in methods} <= anchors
    for path in site.glob("api/*.html"):
        assert "Alias for field number" not in path.read_text(encoding="utf-8"), path.name


def test_the_playground_is_linked_from_the_first_page(site: Path) -> None:
    leads = Links((site / "index.html").read_text(encoding="utf-8")).leads
    assert {"playground-en.html", "playground-zh.html"} <= set(leads)


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_first_chapter_is_the_derivation(site: Path, lang: str) -> None:
    from softgrad.derivation._languages import TEXTS

    text = (site / f"derivation-{lang}.html").read_text(encoding="utf-8")
    assert f"playground-{lang}.html" in text
    assert (site / f"playground-{lang}.html").stat().st_size > 20_000
    assert text.count("<math") > 150
    assert "✗" not in text
    place = 0
    for title, _ in TEXTS[lang].values():  # all, in order
        place = text.index(title.replace("'", "&#39;") if title not in text else title, place)
    first = re.search(r'toctree-l1"><a[^>]*href="([^"]+)"', (site / "index.html").read_text(encoding="utf-8"))
    assert first
    assert first[1].startswith("derivation-en")


def test_measurements_are_those_of_the_files(site: Path) -> None:
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        results = importlib.import_module("results")
    finally:
        sys.path.pop(0)
    text = (site / "benchmarks.html").read_text(encoding="utf-8")
    for name in ("loss.csv", "small.csv", "torch_loss.csv"):
        rows = results.read(DOCS.parent / "benchmarks" / "results" / name)
        assert rows
        for row in rows:
            assert row["cpu"] in text
            assert row["commit"] in text
            assert results._number(row["wall_ms"]) in text
    for name in ("regression-single.csv", "regression-sweep.csv"):
        rows = [r for r in results.read(DOCS.parent / "benchmarks" / "results" / name) if r["what"] == "time to gap"]
        problems = {(r["threads"], r["target"], r["data"], r["C"]) for r in rows}
        shown = [line for line in results._fits(rows, "a: b").splitlines() if "×" in line and "rows×" not in line]
        assert len(shown) == len(problems)  # those that a method does not finish as well
        assert {results._family(r) for r in rows if not results._own(r)} <= set(re.findall(r"<p>([^<]+)</p>", text))


def test_commands_are_those_of_the_file(site: Path) -> None:
    """On the page of measurements, and on the page about the commands, which includes the table."""
    with (DOCS.parent / "benchmarks" / "results" / "commands.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["data"] for row in rows} == {"digits", "mixed", "letter", "20 newsgroups"}
    for page in ("benchmarks.html", "how-to/command-line.html"):
        text = (site / page).read_text(encoding="utf-8")
        for data, method in {(row["data"], row["method"]) for row in rows}:
            mine = [row for row in rows if (row["data"], row["method"]) == (data, method)]
            assert f"<p>{data}</p>" in text
            assert all(row["cpu"] and row["commit"] for row in mine)  # the machine is kept with the result
            for what in ("accuracy", "log_loss"):
                assert f"<p>{sum(float(row[what]) for row in mine) / len(mine):.4f}</p>" in text


def test_what_a_method_does_not_reach_is_said() -> None:
    sys.path.insert(0, str(DOCS / "_ext"))
    try:
        results = importlib.import_module("results")
    finally:
        sys.path.pop(0)
    row = {"wall_s": "", "cpu_s": "", "at_least_s": "", "unavailable": ""}
    ours = row | {"wall_s": "2", "cpu_s": "4"}
    assert results._against(ours, [row | {"wall_s": "5", "cpu_s": "6"}]) == "2.5 (1.5)"
    assert results._against(ours, [row | {"at_least_s": "8"}, row]) == "> 4"
    assert results._against(ours, [row]) == "never gets there"
    assert results._against(ours, [row | {"unavailable": "True"}]) == "cannot"
    assert results._against(ours, []) == "not run"
    assert results._against(None, [row | {"wall_s": "5", "cpu_s": "6"}]) == "5 s"
    assert results._against(None, [row]) == "not reached"


def formulas_only(folder: Path, texts: list[str]) -> subprocess.CompletedProcess[str]:
    """Build one page for each text, of which a page with the number 0 leads to the others."""
    source = folder / "source"
    source.mkdir()
    (source / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(DOCS / '_ext')!r})\nextensions = ['myst_parser', 'formulas']\n"
        "root_doc = 'page0'\n"
    )
    for number, text in enumerate(texts):
        contents = "```{toctree}\n:glob:\n\npage*\n```\n" * (number == 0)
        (source / f"page{number}.md").write_text(f"# Title\n\n{text}\n\n{contents}", encoding="utf-8")
    return build(source, folder / "out")


FORMULAS = (
    ["```{formula}\nd(L, o[j]) == S[j] - y[j] if sum(i, y[i]) == 1\nd(S[i], o[i]) == S[i] * (1 - S[i])\n```",
     "Inline {formula}`S[i]`.", "{formula}`d(L, o[j]) == -y[j] + S[j] * sum(i, y[i])`.",
     "```{formula}\n:distinct:\nd(S[i], o[j]) == -S[i] * S[j]\n```"]
)  # fmt: skip


def test_formulas_that_hold_are_shown(tmp_path: Path) -> None:
    done = formulas_only(tmp_path, FORMULAS)
    assert done.returncode == 0, done.stderr
    for number in range(len(FORMULAS)):
        assert "<math" in (tmp_path / "out" / f"page{number}.html").read_text(encoding="utf-8"), FORMULAS[number]


WRONG = [
    ("```{formula}\nd(L, o[j]) == y[j] - S[j]\n```", "does not hold"),
    ("{formula}`d(S[i], o[j]) == -S[i] * S[j]`", "does not hold"),
    ("{formula}`d(L, o[j]) == S[j] - y[j]`", "for a target of any sum"),
    ("{formula}`d(L, o[j]) == -y[j] + S[j] * sum(i, y[i]) ** 2`", "for a target of any sum"),
    ("{formula}`d(L, o[j]) == y[j] - S[j] if sum(i, y[i]) == 1`", "does not hold"),
    ("{formula}`S[i] = 1`", "formula"),
    ("{formula}`Q[i] == 1`", "Q"),
]


def test_every_formula_that_does_not_hold_fails_the_build(tmp_path: Path) -> None:
    done = formulas_only(tmp_path, [text for text, _ in WRONG])
    assert done.returncode != 0
    warnings = [line for line in done.stderr.splitlines() if "WARNING" in line or "ERROR" in line]
    for number, (text, message) in enumerate(WRONG):
        assert any(f"page{number}.md" in line and message in line for line in warnings), (text, done.stderr)


def test_no_formula_goes_around_the_check() -> None:
    for path in DOCS.rglob("*.md"):
        if not path.name.startswith("derivation-"):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"\$\$|\{math\}|\\frac|\\sum", text), path
