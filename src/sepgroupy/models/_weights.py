"""Trained parameters by name: numpy archives in the package, or files of :func:`save_weights`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .._files import atomic, refuse_compressed_archive, refuse_existing
from ..errors import ArgumentError, DataError
from ._checkpoint import state_dict_differences

FOLDER = Path(__file__).parent.parent / "weights"  # <name of the set>/<model>.npz
SUFFIX = ".npz"

_CARD = "card"  # the array with the card; no parameter has this name


@dataclass(frozen=True)
class WeightsCard:
    """The origin of trained parameters; stored with them, as JSON.

    Args:
        model: name of the network, see :func:`build_model`.
        data: name of the data set.
        recipe: the settings of the training.
        seed: of the training.
        test_error: on the test set of the data, percent.
        parameters: the number of free parameters.
        license: of the data.
        init: the initialization of group convolutions.
        commit: the git commit of sepgroupy that trained them; empty if unknown.
    """

    model: str
    data: str
    recipe: dict[str, Any]
    seed: int
    test_error: float
    parameters: int
    license: str
    init: str
    commit: str


@dataclass(frozen=True)
class WeightSet:
    """Trained parameters that come with the package, one file for each network.

    Args:
        name: for ``build_model(model, weights=name)``.
        cards: the card of each network, by its name.
    """

    name: str
    cards: Mapping[str, WeightsCard]

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the networks."""
        return tuple(self.cards)


def list_weights() -> list[WeightSet]:
    """Return the sets of trained parameters that come with the package.

    Raises:
        DataError: a file of the package is broken.

    >>> (digits,) = list_weights()
    >>> digits.name, digits.models
    ('rotated-digits', ('c-z2cnn', 'g-p4cnn', 'g-p4cnn-small', 'gc-p4cnn', 'gc-p4cnn-small', 'p4cnn', 'z2cnn'))
    >>> digits.cards["gc-p4cnn"].test_error
    3.7
    """
    sets = []
    for folder in sorted(path for path in FOLDER.iterdir() if path.is_dir()):
        cards = [_read(path)[0] for path in sorted(folder.glob(f"*{SUFFIX}"), key=lambda path: path.stem)]
        sets.append(WeightSet(folder.name, {card.model: card for card in cards}))
    return sets


def save_weights(path: str | PathLike[str], model: nn.Module, card: WeightsCard) -> None:
    """Write the parameters and buffers of a network with a card, for ``build_model(card.model, weights=path)``.

    The file is a numpy archive with an array for each entry of the state dict, and one with the card.

    Raises:
        ArgumentError: the file exists already, or its name does not end in ``.npz``.
    """
    path = Path(path)
    if path.suffix != SUFFIX:
        raise ArgumentError(f"path (={str(path)!r}) must end in {SUFFIX}")
    refuse_existing("path", path)
    arrays = {name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    arrays[_CARD] = np.array(json.dumps(asdict(card)))
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # a name is not an option of savez


def load_weights(model: nn.Module, name: str, weights: str | PathLike[str]) -> None:
    """Load trained parameters into a network.

    Args:
        model: the network, from :func:`build_model` with the name.
        name: of the network.
        weights: name of a set that has the network, or path of a file (``….npz``).

    Raises:
        ArgumentError: there is no such set, or it does not have the network.
        DataError: the file is missing or broken, or has another network or arrays of other names, shapes or types.
    """
    path = _find(name, weights)
    wanted = model.state_dict()
    card, state = _read(path, wanted)
    if card.model != name:
        raise DataError(f"{path} holds the weights of {card.model}, not of {name}")
    model.load_state_dict(state)


def _find(name: str, weights: str | PathLike[str]) -> Path:
    if not isinstance(weights, (str, PathLike)):
        raise ArgumentError(f"weights (={weights!r}) must be the name of a set of weights, or a path")
    path = Path(weights)
    if path.suffix == SUFFIX:
        return path
    sets = {found.name: sorted(f.stem for f in found.glob(f"*{SUFFIX}")) for found in FOLDER.iterdir()}
    if str(weights) not in sets:
        raise ArgumentError(f"weights (={str(weights)!r}) is unknown: use {', '.join(sets)}, or a file (….npz)")
    if name not in sets[str(weights)]:
        raise ArgumentError(f"weights (={str(weights)!r}) has no {name}: it has {', '.join(sets[str(weights)])}")
    return FOLDER / str(weights) / f"{name}{SUFFIX}"


def _read(path: Path, wanted: Mapping[str, Tensor] | None = None) -> tuple[WeightsCard, dict[str, Tensor]]:
    """Return the card of a file and, if requested, its tensors. No code from the file is executed."""
    try:
        with path.open("rb") as file:
            refuse_compressed_archive(file)
            with np.load(file, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in (stored.files if wanted is not None else [_CARD])}
        card = _parse(arrays.pop(_CARD))
        state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    except Exception:  # which one depends on where the file is broken
        raise DataError(f"{path} is broken, or was not written by sepgroupy.models.save_weights") from None
    if wanted is not None:
        if text := state_dict_differences(state, wanted):
            raise DataError(f"{path} does not fit the network: {text}")
        for name, value in wanted.items():
            if state[name].dtype != value.dtype:
                raise DataError(f"{path} does not fit the network: {name} is of {state[name].dtype}, not {value.dtype}")
    return card, state


def _parse(array: Any) -> WeightsCard:
    """Read a card.

    Raises:
        ValueError: it is not a card.
        TypeError: a field is missing or unknown.
    """
    card = WeightsCard(**json.loads(array.item()))
    types = {"dict[str, Any]": dict, "str": str, "int": int, "float": float}
    for field in fields(card):
        if type(getattr(card, field.name)) is not types[str(field.type)]:
            raise ValueError(field.name)
    return card
