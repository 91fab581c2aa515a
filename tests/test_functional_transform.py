"""The action on tensors: exact for images, feature maps and filters, and nothing more than flips and transpositions."""

from __future__ import annotations

import itertools
import re
import tracemalloc

import numpy as np
import pytest
import torch

import oracle
from sepgroupy.errors import ArgumentError
from sepgroupy.functional import transform
from sepgroupy.groups import C4, D4, GroupLike, PointGroup, as_group

SIZE = (2, 3, 4, 2)


@pytest.mark.parametrize("group_axis", [False, True])
def test_transform_is_the_action(group: PointGroup, group_axis: bool) -> None:
    size = SIZE[: group.dimension]
    x = torch.randn(2, 3, *((group.order, *size) if group_axis else size))
    for g, matrix in enumerate(group.arrays):
        expected = oracle.move_feature_map(x.numpy(), group, g) if group_axis else oracle.move(x.numpy(), matrix)
        np.testing.assert_array_equal(transform(x, group, g, group_axis).numpy(), expected)


@pytest.mark.parametrize("group_axis", [False, True])
def test_one_element_after_another_is_their_product(plane_group: PointGroup, group_axis: bool) -> None:
    x = torch.randn(1, plane_group.order, 3, 4)
    for g, h in itertools.product(range(plane_group.order), repeat=2):
        twice = transform(transform(x, plane_group, h, group_axis), plane_group, g, group_axis)
        assert torch.equal(twice, transform(x, plane_group, int(plane_group.cayley_table[g, h]), group_axis))


def test_transform_is_rot90_and_flip_of_torch() -> None:
    x = torch.randn(2, 3, 5)
    for m, r in itertools.product(range(2), range(4)):
        rotated = torch.rot90(x, r, (-2, -1))
        assert torch.equal(transform(x, "p4m", 4 * m + r, group_axis=False), rotated.flip(-2) if m else rotated)


def test_a_rotation_of_a_feature_map_on_p4_moves_the_group_axis_too() -> None:
    f = torch.randn(2, 4, 3, 3)
    expected = torch.stack([torch.rot90(f[:, (g - 1) % 4], 1, (-2, -1)) for g in range(4)], 1)
    assert torch.equal(transform(f, C4, 1, group_axis=True), expected)


@pytest.mark.parametrize("group_axis", [False, True])
def test_the_gradient_goes_back_by_the_inverse(group_axis: bool) -> None:
    x = torch.randn(2, 8, 3, 4, requires_grad=True)
    for g in range(8):
        y = transform(x, D4, g, group_axis)
        grad = torch.randn_like(y)
        (back,) = torch.autograd.grad(y, x, grad)
        assert torch.equal(back, transform(grad, D4, int(D4.inverses[g]), group_axis))


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.complex64]
)
def test_any_dtype(dtype: torch.dtype) -> None:
    f = torch.randint(0, 9, (2, 8, 3, 3))
    for g in range(8):
        expected = oracle.move_feature_map(f.numpy(), D4, g)
        assert torch.equal(transform(f.to(dtype), D4, g, group_axis=True), torch.from_numpy(expected.copy()).to(dtype))


def test_on_the_device_of_its_input() -> None:
    x = torch.zeros(2, 8, 3, 5, device="meta")
    for g in range(8):
        y = transform(x, D4, g, group_axis=True)
        assert (y.device.type, y.shape) == ("meta", (2, 8, *((5, 3) if g % 2 else (3, 5))))


@pytest.mark.parametrize("group_axis", [False, True])
def test_the_result_is_always_new_memory(group: PointGroup, group_axis: bool) -> None:
    size = SIZE[: group.dimension]
    x = torch.randn((group.order, *size) if group_axis else size)
    before = x.clone()
    for g in range(group.order):
        transform(x, group, g, group_axis).zero_()
    assert torch.equal(x, before)


def test_no_index_table_of_the_size_of_an_image_is_built() -> None:
    f = torch.zeros(1, 8, 512, 512, dtype=torch.uint8)
    transform(f, D4, 3, group_axis=True)  # whatever is built once
    tracemalloc.start()
    for g in range(8):
        transform(f, D4, g, group_axis=True)
    assert tracemalloc.get_traced_memory()[1] < 2**16  # of Python and numpy; the table had 8·512² entries
    tracemalloc.stop()
    with torch.profiler.profile(profile_memory=True) as profile:
        y = transform(f, D4, 3, group_axis=True)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert allocated <= 2 * y.numel() + 2**10


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")
@pytest.mark.parametrize("group_axis", [False, True])
def test_vmap_and_forward_mode(group_axis: bool) -> None:
    x, v = torch.randn(2, 5, 8, 3, 4)
    for g in range(8):

        def act(x: torch.Tensor, g: int = g) -> torch.Tensor:
            return transform(x, "p4m", g, group_axis)

        assert torch.equal(torch.vmap(act)(x), act(x))
        y, tangent = torch.func.jvp(act, (x,), (v,))
        assert torch.equal(y, act(x))
        assert torch.equal(tangent, act(v))


@pytest.mark.parametrize("group", ["hflip", C4], ids=str)
def test_compiles_without_a_break_for_any_size(group: GroupLike) -> None:
    order = as_group(group).order
    for element in range(order):
        torch._dynamo.reset()
        compiled = torch.compile(
            lambda x, t=element: transform(x, group, t, group_axis=True), fullgraph=True, dynamic=True, backend="eager"
        )
        for size in (4, 5, 6):
            x = torch.randn(2, order, size, size + 1)
            assert torch.equal(compiled(x), transform(x, group, element, group_axis=True))


def test_compiles_with_a_list_of_generators() -> None:
    torch._dynamo.reset()
    function = torch.compile(lambda x: transform(x, [[[0, 1], [1, 0]]], 1, True), fullgraph=True, backend="eager")
    x = torch.randn(3, 2, 4, 5)
    assert torch.equal(function(x), x.flip(1).mT)


@pytest.mark.parametrize("element", [-1, 4, 100])
def test_an_element_that_is_none_is_refused(element: int) -> None:
    with pytest.raises(ArgumentError, match=rf"element \(={element}\).*0 to 3"):
        transform(torch.zeros(4, 3, 3), "p4", element, group_axis=True)


@pytest.mark.parametrize(
    ("shape", "group_axis"), [((3,), False), ((3, 3), True), ((3, 3, 3), True), ((4, 8, 3, 3), True)]
)
def test_a_shape_that_the_group_does_not_act_on_is_refused(shape: tuple[int, ...], group_axis: bool) -> None:
    with pytest.raises(ArgumentError, match=re.escape(f"x has shape {shape}")):
        transform(torch.zeros(shape), "p4", 1, group_axis=group_axis)
