"""The pure functions under compilers and transforms; values: ``test_nn_conv``, refusals: ``test_nn_arguments``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from conftest import COUNTERPARTS, KINDS, OTHER_DIMENSIONS, LayerVariant, build_layer, random_input, variants_of
from sepgroupy.backends import constants
from sepgroupy.functional import (
    group_conv,
    group_conv2d,
    lifting_conv,
    lifting_conv2d,
    separable_group_conv,
    separable_group_conv2d,
)
from sepgroupy.groups import C4

pytestmark = pytest.mark.usefixtures("as_if_large")
VARIANTS = [variant for variant in variants_of(kernel_size=3) if variant[0] != "lifting"] + [
    LayerVariant("lifting", "auto")
]
LESS = [variant for variant in OTHER_DIMENSIONS if variant.kind in ("lifting", "gc")]


def subject(variant: LayerVariant) -> tuple[Callable[..., Tensor], Any, Tensor]:
    """Make a function of x and parameters, a layer that computes the same, and an input."""
    kind, backend, dimension = variant
    calls: dict[str, Any] = {"lifting": lifting_conv2d, "dense": group_conv2d}
    function = calls.get(kind, separable_group_conv2d)
    if dimension != 2:
        calls = {"lifting": lifting_conv, "dense": group_conv}
        function = calls.get(kind, separable_group_conv)
    options = {} if kind == "lifting" else {"backend": backend}
    group = COUNTERPARTS[dimension][C4]

    def call(x: Tensor, **parameters: Tensor) -> Tensor:
        return function(x, **parameters, padding=1, group=group, **options)

    layer = build_layer(variant, 2, 3, 3, padding=1, group=group)
    return call, layer, random_input(layer, 5, 6, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _constants_as_in_a_new_process() -> None:
    constants.clear()
    torch._dynamo.reset()


@pytest.mark.parametrize("variant", [*VARIANTS, *OTHER_DIMENSIONS], ids=str)
def test_torch_compile_without_graph_breaks(variant: LayerVariant) -> None:
    call, layer, x = subject(variant)
    compiled = torch.compile(call, fullgraph=True, backend="eager")
    parameters = dict(layer.named_parameters())
    torch.testing.assert_close(compiled(x, **parameters), layer(x), atol=1e-5, rtol=1e-5)


def test_a_name_of_a_group_is_read_while_compiling() -> None:
    _, layer, x = subject(LayerVariant("gc", "auto"))
    parameters = dict(layer.named_parameters())
    compiled = torch.compile(
        lambda x, **p: separable_group_conv2d(x, **p, padding=1, group="p4"), fullgraph=True, backend="eager"
    )
    torch.testing.assert_close(compiled(x, **parameters), layer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", [*(LayerVariant(kind, "auto") for kind in KINDS), *LESS], ids=str)
def test_one_program_for_all_sizes(variant: LayerVariant) -> None:
    call, layer, _ = subject(variant)
    programs: list[Any] = []

    def count(program: torch.fx.GraphModule, _inputs: Any) -> Any:
        programs.append(program)
        return program

    compiled = torch.compile(layer, fullgraph=True, backend=count, dynamic=True)
    for rows, columns, batch in ((5, 6, 7), (9, 7, 5), (12, 8, 7), (33, 31, 6)):  # at first all differ
        x = random_input(layer, rows, columns, batch=batch, dtype=torch.float32)
        torch.testing.assert_close(compiled(x), call(x, **dict(layer.named_parameters())), atol=1e-5, rtol=1e-5)
    assert len(programs) == 1


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("variant", [*VARIANTS, *LESS], ids=str)
def test_mapped_over_inputs_and_parameters(variant: LayerVariant) -> None:
    call, layer, x = subject(variant)
    parameters = {name: torch.stack([p.detach(), p.detach() * 2]) for name, p in layer.named_parameters()}
    inputs = torch.stack([x, x + 1])
    together = torch.func.vmap(lambda x, p: call(x, **p))(inputs, parameters)
    for index in range(2):
        alone = call(inputs[index], **{name: p[index] for name, p in parameters.items()})
        torch.testing.assert_close(together[index], alone, atol=1e-5, rtol=1e-5)
