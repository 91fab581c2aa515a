"""Cached filters never outlive the values that they were made from, and outside the context there are none."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import COPIES, VARIANTS, Build, assert_as_defined, random_input, variants_of
from host_reads import NoMethodReads
from sepgroupy import build_model, cached_filters
from sepgroupy.backends import ConvSpec, Filters, register, unregister
from sepgroupy.backends.expanded import Expanded
from sepgroupy.errors import ArgumentError
from sepgroupy.groups import C4
from sepgroupy.nn import GroupConv2d, GroupConvTranspose2d, LiftingConv2d, filter_cache

pytestmark = pytest.mark.usefixtures("as_if_large")


def step(layer: Any) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    with torch.enable_grad():
        sum(p.sum() for p in layer.parameters()).backward()
    optimizer.step()


def replace(layer: Any) -> None:
    for name, parameter in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(parameter.detach() * 2))


def change_data(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter.data.mul_(2)


def set_data(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter.data = parameter.data * 2


def set_data_of_another_layout(layer: Any) -> None:
    for parameter in layer.parameters():
        doubled = parameter.data * 2
        parameter.data = doubled.transpose(0, -1).contiguous().transpose(0, -1)


def change_in_place(layer: Any) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)


def copy_into(layer: Any) -> None:
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(parameter * 2)


def change_one_entry(layer: Any) -> None:
    with torch.no_grad():
        next(layer.parameters()).view(-1)[-1] += 1


def change_through_numpy(layer: Any) -> None:
    for parameter in layer.parameters():
        parameter.detach().numpy()[...] *= 2


def change_the_storage(layer: Any) -> None:
    for parameter in layer.parameters():
        whole = torch.empty(0, dtype=parameter.dtype).set_(parameter.untyped_storage())
        whole *= 2


def load(layer: Any) -> None:
    layer.load_state_dict({name: value * 2 for name, value in layer.state_dict().items()})


def load_by_assignment(layer: Any) -> None:
    layer.load_state_dict({name: value * 2 for name, value in layer.state_dict().items()}, assign=True)


def swap(layer: Any) -> None:
    for parameter in layer.parameters():
        torch.utils.swap_tensors(parameter, nn.Parameter(parameter.detach() * 2))


def reset(layer: Any) -> None:
    layer.reset_parameters()


CHANGES = [
    step,
    replace,
    change_data,
    set_data,
    set_data_of_another_layout,
    change_in_place,
    copy_into,
    change_one_entry,
    change_through_numpy,
    change_the_storage,
    load,
    load_by_assignment,
    swap,
    reset,
]


def layer_and_input(build: Build) -> tuple[Any, Tensor]:
    layer = build(2, 3, 3, group=C4, dtype=torch.float64).eval()
    return layer, random_input(layer, 5, 5)


EVERY_CHANGE = [(variant, change) for variant in VARIANTS if variant[1] == "auto" for change in CHANGES]
EVERY_VARIANT = [
    (variant, change) for variant in VARIANTS if variant[1] != "auto" for change in (change_through_numpy, replace)
]


@pytest.mark.parametrize(
    ("variant", "change"),
    [
        pytest.param(variant, change, id=f"{variant[0]}-{variant[1]}-{change.__name__}")
        for variant, change in EVERY_CHANGE + EVERY_VARIANT
        if variant in variants_of(kernel_size=3)
    ],
)
def test_the_output_follows_the_parameters(build: Build, change: Any) -> None:
    layer, x = layer_and_input(build)
    with cached_filters(layer):
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                before = layer(x)
                assert torch.equal(layer(x), before)
            change(layer)
            with mode():
                after = layer(x)
            assert not torch.equal(before, after)
            assert_as_defined(layer, x)
    change(layer)
    assert_as_defined(layer, x)


class Counting(Expanded):
    """A backend that counts how often it expands filters, for one call or for reuse."""

    name = "counting"

    def __init__(self) -> None:
        self.expanded = self.reused = 0

    def expand_filters(self, spec: ConvSpec, parameters: Mapping[str, Tensor]) -> Filters:
        self.expanded += 1
        return super().expand_filters(spec, parameters)

    def expand_filters_for_reuse(self, spec: ConvSpec, parameters: Mapping[str, Tensor], x: Tensor) -> Filters:
        self.reused += 1
        return super().expand_filters_for_reuse(spec, parameters, x)

    def counts(self) -> tuple[int, int]:
        """Return how often filters were expanded since the last call: for one call, for reuse."""
        found = self.expanded - self.reused, self.reused
        self.expanded = self.reused = 0
        return found


@pytest.fixture
def counting() -> Iterator[Counting]:
    backend = Counting()
    register(backend)
    yield backend
    unregister("counting")


@pytest.fixture
def layer(counting: Counting) -> GroupConv2d:
    return GroupConv2d(2, 3, 3, group="p4", kind="gc", backend="counting")


X = torch.randn(2, 2, 4, 6, 6)


def test_filters_are_expanded_once_inside_and_in_every_call_outside(counting: Counting, layer: GroupConv2d) -> None:
    with torch.no_grad():
        for _ in range(3):
            layer(X)
        assert counting.counts() == (3, 0)
        with cached_filters(layer) as same:
            assert same is layer
            for _ in range(3):
                layer(X)
            assert counting.counts() == (0, 1)
        layer(X)
        assert counting.counts() == (1, 0)
        with cached_filters(layer):  # a new context begins with nothing
            layer(X)
        assert counting.counts() == (0, 1)


def test_only_the_named_model_is_cached(counting: Counting, layer: GroupConv2d) -> None:
    other = copy.deepcopy(layer)
    with torch.no_grad(), cached_filters(other):
        for _ in range(2):
            layer(X)
        assert counting.counts() == (2, 0)


def test_calls_with_gradients_do_not_use_the_cache(counting: Counting, layer: GroupConv2d) -> None:
    plain = copy.deepcopy(layer)
    with cached_filters(layer):
        with torch.no_grad():
            layer(X)
        assert counting.counts() == (0, 1)
        for _ in range(2):  # twice, since nothing may belong to a graph that is freed
            for module in (layer, plain):
                module.zero_grad()
                module(X).square().sum().backward()
        assert counting.counts() == (4, 0)
        for parameter, other in zip(layer.parameters(), plain.parameters(), strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, other.grad)


def test_an_exception_ends_the_context(counting: Counting, layer: GroupConv2d) -> None:
    with torch.no_grad():
        with pytest.raises(ArgumentError), cached_filters(layer):
            layer(layer(X))  # of three channels
        counting.counts()
        layer(X)
        layer(X)
        assert counting.counts() == (2, 0)
    assert layer.filter_cache is None


def test_contexts_nest(counting: Counting, layer: GroupConv2d) -> None:
    net = nn.Sequential(layer)
    with torch.no_grad():
        with cached_filters(net):
            net(X)
            with cached_filters(layer), cached_filters(net):
                net(X)
            net(X)
            assert counting.counts() == (0, 1)
        net(X)
        assert counting.counts() == (1, 0)


def test_layers_that_occur_twice_and_wrapped_models(counting: Counting) -> None:
    layer = GroupConv2d(2, 2, 3, padding=1, group="p4", backend="counting")
    net = nn.ModuleDict({"a": nn.Sequential(layer, layer), "b": nn.Sequential(nn.Sequential(layer))})
    with torch.no_grad(), cached_filters(net):
        net["a"](X)
        net["b"](X)
        assert counting.counts() == (0, 1)


def test_dtypes_autocast_and_sizes_have_filters_of_their_own(build: Build) -> None:
    layer, x = layer_and_input(build)
    plain = copy.deepcopy(layer)
    with cached_filters(layer), torch.no_grad():
        for _ in range(2):
            for size in (5, 8, 32, 4):
                assert_as_defined(layer, random_input(layer, size, size + 1))
            for dtype in (torch.float32, torch.bfloat16, torch.float64):
                torch.testing.assert_close(layer.to(dtype)(x.to(dtype)), plain.to(dtype)(x.to(dtype)))
                if dtype == torch.float32:
                    for precision in (torch.bfloat16, torch.float16):
                        with torch.autocast("cpu", precision):
                            found, wanted = layer(x.float()), plain(x.float())
                        assert found.dtype == precision
                        torch.testing.assert_close(found, wanted)
            plain.load_state_dict(layer.state_dict())


def test_a_layer_may_move_to_another_device_and_back(build: Build) -> None:
    layer, x = layer_and_input(build)
    state = copy.deepcopy(layer.state_dict())
    with cached_filters(layer), torch.no_grad():
        y = layer(x)
        layer.to("meta")
        for _ in range(2):
            assert layer(x.to("meta")).shape == y.shape
        layer.load_state_dict(state, assign=True)
        assert torch.equal(layer(x), y)


@COPIES
def test_copies_have_no_cache_and_stand_alone(build: Build, duplicate: Any) -> None:
    layer, x = layer_and_input(build)
    before = len(pickle.dumps(layer))
    with cached_filters(layer), torch.no_grad():
        y = layer(x)
        assert len(pickle.dumps(layer)) == before
        assert "filter_cache" not in layer.state_dict()
        other = duplicate(layer)
        assert other.filter_cache is None
        change_data(other)
        assert_as_defined(other, x)
        assert torch.equal(layer(x), y)
    assert_as_defined(duplicate(layer), x)


def test_cached_filters_follow_a_parametrization(build: Build) -> None:
    layer, x = layer_and_input(build)
    name = next(name for name, _ in layer.named_parameters() if "weight" in name)
    torch.nn.utils.parametrizations.weight_norm(layer, name)
    original = dict(layer.named_parameters())[f"parametrizations.{name}.original0"]
    with cached_filters(layer):
        for _ in range(2):
            with torch.no_grad():
                layer(x)
                original.mul_(2)
                assert_as_defined(layer, x)
        layer(x).sum().backward()
        assert original.grad is not None


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of vmap over products in place
def test_function_transforms(build: Build) -> None:
    layer, x = layer_and_input(build)
    with cached_filters(layer), torch.no_grad():
        y = layer(x)
        values = {name: p.detach() * 2 for name, p in layer.named_parameters()}
        other = copy.deepcopy(layer)
        other.load_state_dict(values)
        torch.testing.assert_close(torch.func.functional_call(layer, values, (x,)), other(x))
        stacked = {name: torch.stack([p.detach(), values[name]]) for name, p in layer.named_parameters()}
        together = torch.func.vmap(lambda v: torch.func.functional_call(layer, v, (x,)))(stacked)
        torch.testing.assert_close(together, torch.stack([y, other(x)]))


def test_threads_share_cached_filters(build: Build) -> None:
    layer, _ = layer_and_input(build)
    inputs = [random_input(layer, 4 + index % 5, 6) for index in range(40)]
    with torch.no_grad():
        wanted = [layer(x) for x in inputs]

    def call(x: Tensor) -> Tensor:
        with torch.no_grad():  # which is of a thread
            return layer(x)

    with cached_filters(layer), ThreadPoolExecutor(4) as pool:
        for found, y in zip(pool.map(call, inputs), wanted, strict=True):
            torch.testing.assert_close(found, y)


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_transposed_layers_follow_their_parameters(kind: str) -> None:
    layer = GroupConvTranspose2d(2, 3, 3, stride=2, group=C4, kind=kind, dtype=torch.float64)
    x = random_input(layer, 5, 4)
    with cached_filters(layer):
        for _ in range(2):
            assert_as_defined(layer, x, stride=2)
            change_data(layer)


@pytest.mark.parametrize("name", ["gc-p4cnn", "p4m-unet"])
def test_whole_networks_in_a_moving_average(name: str) -> None:
    """As a momentum encoder or an average of weights is updated: through ``.data``, without a trace."""
    options: dict[str, Any] = {"width": 3} if name == "gc-p4cnn" else {"width": 2, "depth": 1}
    net, source = (build_model(name, **options).eval() for _ in range(2))
    x = torch.randn(1, 1, 28, 28) if name == "gc-p4cnn" else torch.randn(1, 3, 8, 8)
    with cached_filters(net), torch.no_grad():
        for _ in range(5):
            for mine, other in zip(net.parameters(), source.parameters(), strict=True):
                mine.data = 0.5 * mine.data + 0.5 * other.data
            torch.testing.assert_close(net(x), copy.deepcopy(net)(x))


def test_edits_through_data_on_another_device(lazy_device: str) -> None:
    layer = LiftingConv2d(2, 3, 3, group="p4").to(lazy_device)
    x = torch.randn(1, 2, 6, 6)
    with cached_filters(layer), torch.no_grad():
        for _ in range(3):
            y = layer(x.to(lazy_device)).cpu()
            torch.testing.assert_close(y, copy.deepcopy(layer).to("cpu")(x))
            for parameter in layer.parameters():
                parameter.data = parameter.data * 2


# ---- where the comparison of values would wait for the device, here as if a CPU were one -----------------------------

WITHOUT_TRACE = (change_data, change_through_numpy, change_the_storage)


@pytest.fixture
def as_if_comparing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filter_cache, "comparison_synchronizes", lambda parameter: True)


@pytest.mark.usefixtures("as_if_comparing_waits")
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_edit_is_seen_at_once_or_refused_at_the_end(change: Any, mode: Any) -> None:
    layer = GroupConv2d(2, 3, 3, group=C4, kind="gc", backend="two_step", dtype=torch.float64).eval()
    x = random_input(layer, 5, 5)
    refusal = pytest.raises(
        ArgumentError, match=r"edited within cached_filters .* of depthwise_weight, pointwise_weight"
    )
    with refusal if change in WITHOUT_TRACE else nullcontext(), cached_filters(layer):
        with mode():
            before = layer(x)
        change(layer)
        with mode():
            after = layer(x)
        assert torch.equal(before, after) is (change in WITHOUT_TRACE)
    assert layer.filter_cache is None
    assert_as_defined(layer, x)


@pytest.mark.usefixtures("as_if_comparing_waits")
def test_no_call_reads_a_value_where_that_waits(counting: Counting, layer: GroupConv2d) -> None:
    with torch.no_grad(), cached_filters(layer):
        layer(X)
        assert counting.counts() == (0, 1)
        with NoMethodReads():
            layer(X)
        assert counting.counts() == (0, 0)


@pytest.mark.usefixtures("as_if_comparing_waits")
def test_values_that_are_not_numbers_are_no_edit_and_errors_pass(counting: Counting, layer: GroupConv2d) -> None:
    with torch.no_grad():
        layer.pointwise_weight[0] = torch.nan
        with cached_filters(layer):
            layer(X)

    @torch.no_grad()
    def edit_and_fail() -> None:
        with cached_filters(layer):
            layer(X)
            change_data(layer)
            layer(layer(X))  # of three channels

    with pytest.raises(ArgumentError, match="x has"):
        edit_and_fail()
