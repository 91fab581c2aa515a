"""Train one of the networks for rotated MNIST with the command line of the paper's experiments.

    python main.py --dataset-path path/to/amat/files --planes 30 --equivariance P4 --separable gc

All options have the published defaults. Without ``--dataset-path`` and the two .amat files in the working directory
the bundled digits are used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sepgroupy.cli import exit_code, run
from sepgroupy.data import AMAT_FILES
from sepgroupy.paper import RunConfig, milestones_every, require_free, save_initial_state, save_trained_state

MODELS = {
    ("Z2", None): "z2cnn",
    ("Z2", "g"): "c-z2cnn",
    ("Z2", "gc"): "c-z2cnn",
    ("P4", None): "p4cnn",
    ("P4", "g"): "g-p4cnn",
    ("P4", "gc"): "gc-p4cnn",
}
HERE = "./"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _train(options))


def _train(options: argparse.Namespace) -> None:
    bundled = options.dataset_path == HERE and not any(Path(HERE, name).is_file() for name in AMAT_FILES)
    config = RunConfig.for_task(
        "rotmnist",
        model=MODELS[options.equivariance, "gc" if options.separable == "gi" else options.separable],
        width=options.planes,
        data="digits" if bundled else "amat",
        data_path=None if bundled else options.dataset_path,
        samples=options.samples,
        epochs=options.epochs,
        batch_size=options.batch_size,
        test_batch_size=options.test_batch_size,
        lr=options.lr,
        weight_decay=options.wd,
        milestones=milestones_every(options.step, options.epochs),
        log_every=options.log_interval,
        device="cpu" if options.no_cuda else "auto",
        seed=options.seed,
    ).canonical
    if bundled:
        print(f"no .amat files in {HERE}: using the bundled digits, 4,000 to train on and 1,000 to test on")
    if not options.savestr:
        run(config)
        return
    before, after = (Path(f"{options.savestr}_{what}_{options.planes}.pth.tar") for what in ("init", "trained"))
    require_free(config, after)
    save_initial_state(config, before)
    run(config)
    save_trained_state(config, after)
    print(f"state dicts before and after training: {before}, {after}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a network on rotated MNIST.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dataset-path", "--dataset_path", metavar="FOLDER", default=HERE, help="folder of the two .amat files")
    add("--batch-size", type=int, default=256, help="images in a training step")
    add("--test-batch-size", type=int, default=256, help="images in a step of the evaluation")
    add("--epochs", type=int, default=50, help="passes over the training images")
    add("--lr", type=float, default=0.01, help="learning rate")
    add("--wd", type=float, default=1e-5, help="weight decay")
    add("--no-cuda", action="store_true", help="train on the CPU even where there is a GPU")
    add("--step", type=int, default=40, help="the learning rate drops to a tenth after every STEP epochs")
    add("--planes", type=int, default=20, help="channels of every convolution")
    add("--samples", type=int, help="train on the first images only, this many")
    add("--seed", type=int, default=1, help="of the run's random numbers")
    add("--savestr", metavar="S", help="write the state dicts S_init_<planes>.pth.tar and S_trained_<planes>.pth.tar")
    add("--log-interval", type=int, default=50, help="epochs between evaluations on the test images")
    add("--equivariance", choices=("Z2", "P4"), default="Z2", help="group of the convolutions")
    add("--separable", choices=("g", "gc", "gi"), help="kind of filter, dense if not given; gi is an old name of gc")
    return parser


if __name__ == "__main__":
    sys.exit(main())
