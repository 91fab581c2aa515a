"""Point groups as values, and the axioms as laws over all of them."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import pickle
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.functional import hflip, vflip

from sepgroupy.auditing import audit, exact_sizes
from sepgroupy.conversion import convert
from sepgroupy.errors import ArgumentError
from sepgroupy.functional import transform
from sepgroupy.groups import C1, C2, C4, D1, D2, D4, GroupLike, PointGroup, as_group
from sepgroupy.nn import LiftingConv2d
from sepgroupy.testing import assert_equivariant, equivariance_error

NAMED = {"p1": C1, "p2": C2, "p4": C4, "pm": D1, "p2mm": D2, "p4m": D4}
GENERATED_BY = {
    "p1": (lambda x: x,),
    "p2": (lambda x: torch.rot90(x, 2, (-2, -1)),),
    "p4": (lambda x: torch.rot90(x, 1, (-2, -1)),),
    "hflip": (lambda x: x.flip(-1),),
    "vflip": (lambda x: x.flip(-2),),
    "pm": (lambda x: x.flip(-2),),
    "diagonal": (lambda x: x.mT,),
    "antidiagonal": (lambda x: x.flip(-2, -1).mT,),
    "p2mm": (lambda x: x.flip(-1), lambda x: x.flip(-2)),
    "diagonals": (lambda x: x.mT, lambda x: x.flip(-2, -1).mT),
    "p4m": (lambda x: torch.rot90(x, 1, (-2, -1)), lambda x: x.flip(-1)),
}
SCHOENFLIES = {"C1": C1, "C2": C2, "C4": C4, "D1": D1, "D2": D2, "D4": D4}
ORDERS = {
    "p1": 1,
    "p2": 2,
    "p4": 4,
    "pm": 2,
    "p2mm": 4,
    "p4m": 8,
    "diagonal reflection": 2,
    "both diagonals": 4,
    "reflection of a line": 2,
    "prism": 8,
    "octahedral": 24,
    "full octahedral": 48,
    "quaternions": 8,
}


def test_the_order_is_the_number_of_different_elements(group: PointGroup) -> None:
    assert group.order == ORDERS[group.name] == len(group.elements) == len(set(group.elements))


def test_elements_are_signed_permutations(group: PointGroup) -> None:
    assert group.arrays.shape == (group.order, group.dimension, group.dimension)
    for matrix in group.arrays:
        np.testing.assert_array_equal(matrix @ matrix.T, np.eye(group.dimension))


def test_closure_and_cayley_table(group: PointGroup) -> None:
    for g, h in itertools.product(range(group.order), repeat=2):
        product = group.arrays[g] @ group.arrays[h]
        np.testing.assert_array_equal(group.arrays[group.cayley_table[g, h]], product)


def test_associativity(group: PointGroup) -> None:
    table = group.cayley_table
    left = table[table]  # left[a, b, c] is (a·b)·c
    right = table[:, table]  # right[a, b, c] is a·(b·c)
    np.testing.assert_array_equal(left, right)


def test_identity_is_the_first_element(group: PointGroup) -> None:
    everything = np.arange(group.order)
    np.testing.assert_array_equal(group.arrays[0], np.eye(group.dimension))
    np.testing.assert_array_equal(group.cayley_table[0], everything)
    np.testing.assert_array_equal(group.cayley_table[:, 0], everything)


def test_an_element_times_its_inverse_is_the_identity(group: PointGroup) -> None:
    everything = np.arange(group.order)
    assert group.inverses.shape == (group.order,)
    assert (group.cayley_table[everything, group.inverses] == 0).all()
    assert (group.cayley_table[group.inverses, everything] == 0).all()


def test_left_quotients_solve_for_the_right_factor(group: PointGroup) -> None:
    for g, h in itertools.product(range(group.order), repeat=2):
        assert group.cayley_table[g, group.left_quotients[g, h]] == h


def test_tables_are_integers(group: PointGroup) -> None:
    for table in (group.cayley_table, group.inverses, group.left_quotients, group.arrays):
        assert table.dtype == np.int64


def test_the_order_of_p4_and_p4m() -> None:
    rotation, flip = np.array([[0, -1], [1, 0]]), np.diag([-1, 1])
    for r in range(4):
        np.testing.assert_array_equal(C4.arrays[r], np.linalg.matrix_power(rotation, r))
        for m in range(2):  # F^m R^r: first rotate, then flip
            expected = np.linalg.matrix_power(flip, m) @ np.linalg.matrix_power(rotation, r)
            np.testing.assert_array_equal(D4.arrays[4 * m + r], expected)


def test_elements_come_coset_by_coset() -> None:
    rotation, cycle, inversion = (
        [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
        [[-1, 0, 0], [0, -1, 0], [0, 0, -1]],
    )
    chain = [PointGroup.generate([rotation, cycle, inversion][:n]) for n in (1, 2, 3)]
    assert [g.order for g in chain] == [4, 24, 48]
    for smaller, larger in itertools.pairwise(chain):
        assert larger.elements[: smaller.order] == smaller.elements
        for start in range(0, larger.order, smaller.order):
            coset = [larger.arrays[start] @ h for h in smaller.arrays]
            np.testing.assert_array_equal(larger.arrays[start : start + smaller.order], coset)


@st.composite
def signed_permutations(draw: st.DrawFn) -> list[list[list[int]]]:
    dimension = draw(st.integers(1, 3))
    axes = st.permutations(range(dimension))
    signs = st.lists(st.sampled_from([-1, 1]), min_size=dimension, max_size=dimension)
    matrix = st.builds(
        lambda a, s: [[s[i] * (a[i] == j) for j in range(dimension)] for i in range(dimension)], axes, signs
    )
    return draw(st.lists(matrix, min_size=1, max_size=3))


@settings(max_examples=25)
@given(signed_permutations())
def test_any_generators_make_the_smallest_group_that_holds_them(generators: list[list[list[int]]]) -> None:
    group = PointGroup.generate(generators)
    words = {group.elements[0]}
    while True:  # all products of the generators
        longer = words | {tuple(map(tuple, (np.array(g) @ np.array(w)).tolist())) for g in generators for w in words}
        if longer == words:
            break
        words = longer
    assert set(group.elements) == words
    assert 2**group.dimension * math.factorial(group.dimension) % group.order == 0
    for g in range(group.order):
        assert sorted(group.cayley_table[g]) == list(range(group.order)) == sorted(group.cayley_table[:, g])


def test_the_subgroup_relation_of_the_six() -> None:
    holds = {
        "p1": {"p1", "p2", "p4", "pm", "p2mm", "p4m"},
        "p2": {"p2", "p4", "p2mm", "p4m"},
        "p4": {"p4", "p4m"},
        "pm": {"pm", "p2mm", "p4m"},
        "p2mm": {"p2mm", "p4m"},
        "p4m": {"p4m"},
    }
    for (inner, h), (outer, g) in itertools.product(NAMED.items(), repeat=2):
        assert h.is_subgroup_of(g) == (outer in holds[inner]), (inner, outer)


def test_a_subgroup_may_order_its_elements_otherwise() -> None:
    backwards = PointGroup.generate([[[0, 1], [-1, 0]]])
    assert backwards.is_subgroup_of(C4)
    assert C4.is_subgroup_of(backwards)
    assert backwards != C4  # the order of elements is the layout of every map


def test_groups_of_different_dimension_are_no_subgroups_of_each_other() -> None:
    line = PointGroup.generate([[[1]]])
    assert not line.is_subgroup_of(C1)
    assert not C1.is_subgroup_of(line)


def test_equality_and_hash_are_those_of_the_elements() -> None:
    again = PointGroup.generate([[[0, -1], [1, 0]]], "another name")
    assert again == C4
    assert hash(again) == hash(C4)
    assert {again, C4, D4} == {C4, D4}
    assert len(set(NAMED.values())) == 6
    assert C4 != D2  # both of order 4


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda group: pickle.loads(pickle.dumps(group))])
def test_copies_are_equal_and_as_frozen(group: PointGroup, duplicate) -> None:  # type: ignore[no-untyped-def]
    tables = ("cayley_table", "inverses", "left_quotients", "arrays")
    for name in tables:
        getattr(group, name)  # made before the copy, so that the copy may carry them
    other = duplicate(group)
    assert other == group
    assert hash(other) == hash(group)
    assert other.name == group.name
    for name in tables:
        np.testing.assert_array_equal(getattr(other, name), getattr(group, name))
        with pytest.raises(ValueError, match="read-only"):
            getattr(other, name)[0] = 1


def test_a_group_is_a_frozen_value() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        D4.elements = C4.elements  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        D4.name = "p5"  # type: ignore[misc]


def test_names_in_any_case() -> None:
    for name, expected in (NAMED | SCHOENFLIES).items():
        for spelling in (name, name.lower(), name.upper(), name.capitalize()):
            assert as_group(spelling) is expected


def images_of(functions: Sequence[Callable[[Tensor], Tensor]]) -> set[bytes]:
    """Return everything that functions, one after the other in any order, make of an image."""
    x = torch.arange(9).reshape(3, 3)
    found, new = {x.numpy().tobytes()}, [x]
    for image in new:  # grows while it is read
        for function in functions:
            y = function(image).contiguous()
            if y.numpy().tobytes() not in found:
                found.add(y.numpy().tobytes())
                new.append(y)
    return found


@pytest.mark.parametrize("name", GENERATED_BY)
def test_what_the_elements_of_a_named_group_do_to_an_image(name: str) -> None:
    group = as_group(name)
    x = torch.arange(9).reshape(3, 3)
    images = {transform(x, group, t, group_axis=False).contiguous().numpy().tobytes() for t in range(group.order)}
    assert images == images_of(GENERATED_BY[name])


def test_the_table_of_the_guide_is_right() -> None:
    guide = (Path(__file__).parents[1] / "docs" / "guide.md").read_text().partition("## Groups")[2]
    rows = re.findall(r"^\| ((?:`\"\w+\"`(?:, )?)+) \| (.+?) \|", guide, re.MULTILINE)
    assert {name for names, _ in rows for name in re.findall(r"\w+", names)} == set(GENERATED_BY)
    x = torch.randn(2, 3, 4)
    for names, elements in rows:
        for name in re.findall(r"\w+", names):
            group = as_group(name)
            if "at index r" in elements:
                actions = [lambda x, r=r: torch.rot90(x, r, (-2, -1)) for r in range(4)]
                actions += [lambda x, r=r: torch.rot90(x, r, (-2, -1)).flip(-2) for r in range(4)]
                actions = actions[: group.order]
            else:
                texts = re.findall(r"`(.+?)`", elements)
                actions = [lambda x, text=text: eval(text, {"x": x, "torch": torch}) for text in texts]
            assert len(actions) == group.order
            for t, action in enumerate(actions):
                assert torch.equal(transform(x, group, t, group_axis=False), action(x)), (name, t)


def test_a_layer_of_hflip_is_equivariant_to_what_randomhorizontalflip_does() -> None:
    x = torch.randn(1, 3, 6, 6)
    layer = LiftingConv2d(3, 4, 3, group="hflip")
    torch.testing.assert_close(layer(hflip(x)), layer(x)[:, :, [1, 0]].flip(-1))
    layer = LiftingConv2d(3, 4, 3, group="vflip")
    torch.testing.assert_close(layer(vflip(x)), layer(x)[:, :, [1, 0]].flip(-2))


def test_every_subgroup_of_p4m_has_one_name() -> None:
    names = {frozenset(as_group(name).elements): name for name in GENERATED_BY if name != "vflip"}
    assert len(names) == len(GENERATED_BY) - 1
    for generators in itertools.product(D4.elements, repeat=2):
        assert frozenset(PointGroup.generate(generators).elements) in names
    assert all(as_group(name).name == name for name in names.values())
    assert as_group("vflip") is D1


def test_actions_are_calls_of_torch(group: PointGroup) -> None:
    x = torch.randn(2, *(2, 3, 4, 2)[: group.dimension])
    for t, action in enumerate(group.actions):
        assert torch.equal(eval(action, {"x": x}), transform(x, group, t, group_axis=False)), action
    assert len(set(group.actions)) == group.order


def test_an_unknown_name_is_told_which_names_there_are() -> None:
    with pytest.raises(ArgumentError, match=r"'p6'.* is unknown") as caught:
        as_group("p6")
    message = str(caught.value)
    for name in ("hflip", "pm", "p4", "diagonal", "p4m"):
        assert name in message.split("names ")[1].split(", "), name
        as_group(name)
    assert len(message) < 200


def test_the_type_of_a_group_is_one_alias_everywhere() -> None:
    for function in (as_group, transform, equivariance_error, assert_equivariant, audit, exact_sizes, convert):
        assert get_type_hints(function)["group"] == GroupLike, function


USES = """
from sepgroupy.groups import GroupLike, PointGroup, as_group
from sepgroupy.testing import assert_equivariant

groups: list[GroupLike] = ["p4", as_group("p4"), [[[0, 1], [1, 0]]], (((-1, 0), (0, 1)),)]
generators = [[[0, 1], [1, 0]], [[-1, 0], [0, -1]]]
as_group([[[0, 1], [1, 0]]])
as_group(generators)
PointGroup.generate(generators)
as_group(4)  # wrong
"""


def test_mypy_accepts_what_is_documented(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    path = tmp_path / "uses.py"
    path.write_text(USES)
    options = ["--follow-imports=silent", "--no-site-packages", "--ignore-missing-imports"]
    out, err, _ = api.run([*options, "--cache-dir", str(tmp_path / "cache"), str(path)])
    found = {int(line.split(":")[1]) for line in out.splitlines() if ": error:" in line}
    assert found == {n for n, line in enumerate(USES.splitlines(), start=1) if "# wrong" in line}, out + err


def test_as_group_takes_groups_and_generators() -> None:
    assert as_group(D2) is D2
    assert as_group([[[0, -1], [1, 0]], [[-1, 0], [0, 1]]]) == D4
    assert as_group(np.array([[[0, -1], [1, 0]]])) == C4
    assert as_group(((0, -1), (1, 0)) for _ in range(1)) == C4
    assert as_group([[[1, 0], [0, 1]]]) == C1


@pytest.mark.parametrize("name", ["p5", "", "D8", "p4 m"])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"group \(={name!r}\) is unknown.*p4m$"):
        as_group(name)


@pytest.mark.parametrize("value", [4, None, 4.5])
def test_what_is_no_group_at_all_is_refused(value: object) -> None:
    with pytest.raises(ArgumentError, match=f"group .*{value}"):
        as_group(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "generators",
    [
        [],
        [[[2, 0], [0, 1]]],
        [[[1, 1], [0, 1]]],
        [[[1, 0], [1, 0]]],
        [[[0, 0], [0, 0]]],
        [[[0.5, 0], [0, 1]]],
        [[[1, 0, 0], [0, 1, 0]]],
        [[[1, 0], [0]]],
        [[1, 0], [0, 1]],
        [[[[1]]]],
        [[]],
        [[["a"]]],
        [[[1]], [[1, 0], [0, 1]]],
    ],
    ids=str,
)
def test_bad_generators_are_refused(generators: list) -> None:  # type: ignore[type-arg]
    with pytest.raises(ArgumentError, match="generator"):
        PointGroup.generate(generators)


@pytest.mark.parametrize(
    "elements",
    [
        (),
        (((0, -1), (1, 0)),),
        (((1,),), ((1,),)),
        (((-1,),), ((1,),)),
        (((1, 0), (0, 1)), ((0, -1), (1, 0))),
        (((1, 0), (0, 1)), ((1, 1), (0, -1))),  # closed, but a shear moves no grid
        (((1, 0), (0, 1)), ((0, 0), (0, 0))),  # closed, but no group
    ],
    ids=["none", "no-identity", "repeated", "identity-not-first", "not-closed", "shear", "zero"],
)
def test_elements_that_are_no_group_are_refused(elements: tuple) -> None:  # type: ignore[type-arg]
    with pytest.raises(ArgumentError, match="elements"):
        PointGroup(elements)


def test_repr_says_which_group() -> None:
    assert "p4m" in repr(D4)
    assert "8" in repr(D4)
