"""One word for each thing: the words that the project does not use, in code, comments, messages and pages."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "csrc", "docs", "benchmarks", "experiments", "studies", "tests")
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
SUFFIXES = {".py", ".md", ".h", ".hpp", ".cpp", ".html", ".css", ".js", ".svg", ".toml"}

INSTEAD = {
    r"pictures?": "image, or plot",
    r"turned": "rotated",
    r"mirrored": "reflected",
    r"quarter turns?": "90° rotation",
    r"anew": "again, or recomputed",
    r"kept": "cached, saved or stored",
    r"so many": "a number, or the name of the argument",
    r"is to be had": "is available",
    r"held (?:to|against)": "compared with",
    r"shortcuts?": "residual, or skip connection",
    r"moments": "batch statistics, or optimizer state",
    r"map that is gone": "freed tensor",
    r"no number": "NaN or infinite",
    r"errs": "has an error of",
}
_WORD = re.compile(rf"\b(?:{'|'.join(INSTEAD)})\b", re.IGNORECASE)


def _files() -> list[Path]:
    folders = [file for folder in FOLDERS for file in (ROOT / folder).rglob("*") if file.suffix in SUFFIXES]
    return [*(file for file in folders if file != Path(__file__)), *(ROOT / page for page in PAGES)]


def _words(line: str) -> list[str]:
    """Find the words in a line of code or text, and in the name of a test."""
    return _WORD.findall(line.replace("_", " ") if line.lstrip().startswith("def test_") else line)


def _instead(word: str) -> str:
    return next(better for pattern, better in INSTEAD.items() if re.fullmatch(pattern, word, re.IGNORECASE))


def test_code_and_pages_use_the_vocabulary() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{number}: {word!r}, use {_instead(word)}"
        for file in _files()
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        for word in _words(line)
    ]
    assert not found, "\n".join(found)


def test_the_lint_reads_whole_words() -> None:
    assert [_instead(word) for word in _words("Pictures kept as returned by a Quarter Turn")] == [
        "image, or plot",
        "cached, saved or stored",
        "90° rotation",
    ]


def test_the_lint_reads_the_names_of_tests() -> None:
    assert _words("    def test_a_picture_is_kept() -> None:") == ["picture", "kept"]
    assert not _words("kept_bytes = 3")
