"""Arguments that the commands share, and the folder of results."""

from __future__ import annotations

import argparse
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def positive(text: str) -> int:
    """Parse a positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, at least 1")
    return int(text)


def add_common(parser: argparse.ArgumentParser, rounds: int) -> None:
    """Add ``--rounds``, ``--quick`` and ``--out``."""
    parser.add_argument("--rounds", type=positive, default=rounds, help="rounds, whose median counts (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few small rows, into runs/benchmarks")
    parser.add_argument("--out", type=Path, help="folder of results (benchmarks/results)")


def folder(options: argparse.Namespace) -> Path:
    """Return the folder of results that the options name."""
    return options.out or (ROOT / "runs" / "benchmarks" if options.quick else RESULTS)
