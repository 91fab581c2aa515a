"""Train one of the ResNet-44 on CIFAR-10 with the command line of the paper's experiments.

    python main.py --dataset_path path/to/cifar --model resnet44_gcp4m

All options have the published defaults; ``--hflip --rc 4`` makes CIFAR10+ of CIFAR10. The trained state dict is written
as ``<model>[_aug]_seed_<seed>.pth.tar`` in the working directory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sepgroupy.cli import exit_code, run
from sepgroupy.paper import RunConfig, require_free, save_trained_state

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
    config = RunConfig.for_task(
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
    augmented = "_aug" if options.rc or options.hflip else ""
    after = Path(f"{options.model}{augmented}_seed_{options.seed}.pth.tar")
    require_free(config, after)
    run(config)
    save_trained_state(config, after)
    print(f"state dict after training: {after}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a ResNet-44 on CIFAR-10.", formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--dataset-path", "--dataset_path", metavar="FOLDER", default="./", help="holds cifar-10-batches-py")
    add("--model", choices=MODELS, default="resnet44", help="network")
    add("--batch-size", type=int, default=128, help="images in a training step")
    add("--test-batch-size", type=int, default=1000, help="images in a step of the evaluation")
    add("--samples", type=int, help="train on the first images only, this many")
    add("--epochs", type=int, default=300, help="passes over the training images")
    add("--lr", type=float, default=0.05, help="learning rate")
    add("--momentum", type=float, default=0.9, help="momentum of SGD")
    add("--wd", type=float, default=1e-5, help="weight decay")
    add("--rc", type=int, nargs="?", const=4, default=0, help="random crops after padding by RC pixels; alone, 4")
    add("--hflip", action="store_true", help="random horizontal flips of the training images")
    add("--no-cuda", action="store_true", help="train on the CPU even where there is a GPU")
    add("--seed", type=int, default=1, help="of the run's random numbers")
    add("--log-interval", type=int, default=10, help="epochs between evaluations on the test images")
    return parser


if __name__ == "__main__":
    sys.exit(main())
