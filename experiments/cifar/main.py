"""Train one of the ResNet-44 on CIFAR-10 with the command line of the paper's experiments.

    python main.py --dataset_path path/to/cifar --model resnet44_gcp4m

All options have the paper's values by default; ``--rc --hflip`` makes CIFAR10+ of CIFAR10.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from sepgroupy.cli import exit_code, run
from sepgroupy.training import RunConfig

MODELS = {
    "resnet44": "resnet44",
    "resnet44_p4m": "p4m-resnet44",
    "resnet44_gp4m": "g-p4m-resnet44",
    "resnet44_gcp4m": "gc-p4m-resnet44",
}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _train(options))


def _train(options: argparse.Namespace) -> None:
    run(
        RunConfig.for_task(
            "cifar10",
            model=MODELS[options.model],
            data_path=options.dataset_path,
            samples=options.samples,
            crop=options.rc,
            hflip=options.hflip,
            epochs=options.epochs,
            batch_size=options.batch_size,
            test_batch_size=options.test_batch_size,
            lr=options.lr,
            momentum=options.momentum,
            weight_decay=options.wd,
            log_every=options.log_interval,
            device="cpu" if options.no_cuda else "auto",
            seed=options.seed,
        )
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a ResNet-44 on CIFAR-10.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dataset-path", "--dataset_path", metavar="FOLDER", required=True, help="holds cifar-10-batches-py")
    add("--model", choices=MODELS, default="resnet44", help="network")
    add("--batch-size", type=int, default=128, help="images a training step")
    add("--test-batch-size", type=int, default=128, help="images a step of the evaluation")
    add("--samples", type=int, help="train on the first so many images only")
    add("--epochs", type=int, default=300, help="passes over the training images")
    add("--lr", type=float, default=0.05, help="learning rate")
    add("--momentum", type=float, default=0.9, help="momentum of SGD")
    add("--wd", type=float, default=1e-5, help="weight decay")
    add("--rc", action="store_true", help="random crops of the training images")
    add("--hflip", action="store_true", help="random mirrorings of the training images")
    add("--no-cuda", action="store_true", help="train on the CPU even where there is a GPU")
    add("--seed", type=int, default=1, help="of the run's random numbers")
    add("--log-interval", type=int, default=50, help="epochs between evaluations on the test images")
    return parser


if __name__ == "__main__":
    sys.exit(main())
