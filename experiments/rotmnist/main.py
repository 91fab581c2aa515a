"""Train one of the networks for rotated MNIST with the command line of the paper's experiments.

    python main.py --planes 30 --equivariance P4 --separable gc

All options have the paper's values by default. Without ``--dataset-path`` the bundled digits are used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sepgroupy.cli import exit_code, run
from sepgroupy.errors import ArgumentError
from sepgroupy.training import RunConfig

MODELS = {
    ("Z2", None): "z2cnn",
    ("Z2", "gc"): "c-z2cnn",
    ("P4", None): "p4cnn",
    ("P4", "g"): "g-p4cnn",
    ("P4", "gc"): "gc-p4cnn",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _train(options))


def _train(options: argparse.Namespace) -> None:
    chosen = (options.equivariance, options.separable)
    if chosen not in MODELS:
        raise ArgumentError("--separable g (='g') needs --equivariance P4: on Z2 only gc is separable")
    model = MODELS[chosen]
    if options.dataset_path is None:
        print("no --dataset-path: using the bundled digits, 4,000 to train on and 1,000 to test on")
    run(
        RunConfig.for_task(
            "rotmnist",
            model=model,
            width=options.planes,
            data="digits" if options.dataset_path is None else "amat",
            data_path=options.dataset_path,
            samples=options.samples,
            epochs=options.epochs,
            batch_size=options.batch_size,
            test_batch_size=options.test_batch_size,
            lr=options.lr,
            weight_decay=options.wd,
            milestones=(options.step,),
            log_every=options.log_interval,
            device="cpu" if options.no_cuda else "auto",
            seed=options.seed,
            folder=f"runs/rotmnist-{model}-{options.savestr}" if options.savestr else None,
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a network on rotated MNIST.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dataset-path", "--dataset_path", metavar="FOLDER", help="folder of the two .amat files")
    add("--batch-size", type=int, default=256, help="images a training step")
    add("--test-batch-size", type=int, default=256, help="images a step of the evaluation")
    add("--epochs", type=int, default=50, help="passes over the training images")
    add("--lr", type=float, default=0.01, help="learning rate")
    add("--wd", type=float, default=1e-5, help="weight decay")
    add("--no-cuda", action="store_true", help="train on the CPU even where there is a GPU")
    add("--step", type=int, default=40, help="epoch after which the learning rate drops to a tenth")
    add("--planes", type=int, default=20, help="channels of every convolution")
    add("--samples", type=int, help="train on the first so many images only")
    add("--seed", type=int, default=1, help="of the run's random numbers")
    add("--savestr", metavar="TEXT", help="name the run's folder runs/rotmnist-<model>-TEXT")
    add("--log-interval", type=int, default=50, help="epochs between evaluations on the test images")
    add("--equivariance", choices=("Z2", "P4"), default="Z2", help="group of the convolutions")
    add("--separable", choices=("g", "gc"), help="kind of filter, dense if not given")
    return parser


if __name__ == "__main__":
    sys.exit(main())
