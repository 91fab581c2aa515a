"""Study whether a compressed P4CNN is a better start than random parameters.

python -m studies.compress    # train the runs that results/compress/runs.csv lacks, print the table

The P4CNN that the library ships is compressed to kinds g and gc. Each network trains for ten epochs on the bundled
digits, from the compressed parameters and from random ones.
"""

from __future__ import annotations

import argparse
import logging
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch

from sepgroupy import build_model, compress
from sepgroupy.paper import RunConfig, load_digits
from sepgroupy.training import load_model, score, train

from ._table import Row, mean_and_error, read_table, write_table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results" / "compress" / "runs.csv"
HEAD = ("kind", "start", "epochs", "seed", "error")
SEEDS, EPOCHS = (1, 2, 3), 10


def measure(row: Row, folder: Path) -> float:
    """Return the test error of a compressed network, or train one and return its error."""
    kind, name = row["kind"], "-".join(row.values())
    thin, _ = compress(build_model("p4cnn", weights="rotated-digits"), kind)
    if row["epochs"] == "0":
        return score(thin, load_digits().test).error
    config = RunConfig.for_task("rotmnist", model=f"{kind}-p4cnn-small", seed=int(row["seed"]))
    config = replace(config, folder=str(folder / name), epochs=EPOCHS, milestones=(EPOCHS * 4 // 5,), log_every=EPOCHS)
    if row["start"] == "compressed":
        path = folder / f"{kind}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(thin.state_dict(), path)
        config = replace(config, weights=str(path))
    train(config)
    return score(load_model(folder / name), load_digits().test).error


def main() -> None:
    """Run the study."""
    logging.basicConfig(format="%(message)s")
    logging.getLogger("sepgroupy").setLevel(logging.INFO)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "compress", help="folder of the runs")
    args, rows = parser.parse_args(), read_table(RESULTS)
    trained = [(start, str(EPOCHS), str(seed)) for seed in SEEDS for start in ("compressed", "random")]
    for kind in ("g", "gc"):
        for start, epochs, seed in [("compressed", "0", ""), *trained]:
            row = dict(zip(HEAD, (kind, start, epochs, seed), strict=False))
            if not any(row.items() <= known.items() for known in rows):
                rows.append(row | {"error": f"{measure(row, args.runs):.2f}"})
                print(*rows[-1].values(), flush=True)
                write_table(RESULTS, HEAD, rows)
    cells = defaultdict(list)
    for row in rows:
        cells[row["kind"], row["start"], row["epochs"]].append(float(row["error"]))
    print("\n| kind | start | epochs | runs | test error |\n| :-- | :-- | --: | --: | --: |")
    for (kind, start, epochs), errors in cells.items():
        print(f"| {kind} | {start} | {epochs} | {len(errors)} | {mean_and_error(errors)} % |")


if __name__ == "__main__":
    main()
