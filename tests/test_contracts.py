"""What a PyTorch user expects of any module, held for every kind of layer and a small network of each family.

More on single layers: their state in ``test_nn_state``, their derivatives in ``test_nn_gradients``; on cached filters
in ``test_cached_filters`` and on fused networks in ``test_fusion``.
"""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from conftest import build_layer, variants_of
from sepgroupy import cached_filters, fuse
from sepgroupy.backends import constants
from sepgroupy.fusion import restore
from sepgroupy.groups import C4, D4
from sepgroupy.models import ResNet, RotMNISTNet, UNet
from sepgroupy.nn import (
    GroupBatchNorm,
    GroupBatchNorm2d,
    GroupBatchNorm3d,
    GroupConv1d,
    GroupConv3d,
    GroupConvolution,
    GroupConvTranspose1d,
    GroupConvTranspose2d,
    GroupConvTranspose3d,
    GroupPool,
    LiftingConv1d,
    LiftingConv3d,
)

pytestmark = [
    pytest.mark.usefixtures("as_if_large"),
    pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # of vmap over some convolutions
    pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning"),  # PyTorch's own, in jvp
]


def layer(variant: tuple[str, str], kernel: int) -> tuple[nn.Module, tuple[int, ...]]:
    group = C4 if variant[1] == "reference" else D4  # it takes |H|² convolutions
    group_axis = () if variant[0] == "lifting" else (group.order,)
    return build_layer(variant, 2, 3, kernel, padding=kernel // 2, group=group), (2, *group_axis, 5, 6)


def rotmnist(kind: str, **options: Any) -> tuple[nn.Module, tuple[int, ...]]:
    return RotMNISTNet(kind, 3, **options), (1, 28, 28)


def resnet(kind: str, **options: Any) -> tuple[nn.Module, tuple[int, ...]]:
    return ResNet(kind, depth=8, widths=(2, 3, 4), **options), (3, 8, 8)


def volumes_resnet() -> tuple[nn.Module, tuple[int, ...]]:
    return ResNet("gc", depth=8, widths=(2, 2, 3), dimension=3, group="C2v"), (3, 4, 4, 4)


def fused(module: nn.Module, shape: tuple[int, ...]) -> tuple[nn.Module, tuple[int, ...]]:
    return fuse(module), shape


# Not "torch", which selects one of the backends that are named.
SPATIAL, POINTWISE = (
    [variant for variant in variants_of(kernel_size=kernel) if variant.backend != "torch"] for kernel in (3, 1)
)
SUBJECTS = {str(variant): lambda variant=variant: layer(variant, 3) for variant in SPATIAL}
SUBJECTS |= {
    f"{variant}-1x1": lambda variant=variant: layer(variant, 1) for variant in POINTWISE if variant not in SPATIAL
}
for name in ("auto", "expanded", "two_step", "reference"):
    SUBJECTS[f"transposed-{name}"] = lambda name=name: (
        GroupConvTranspose2d(2, 3, 4, 2, 1, group=C4, kind="gc", backend=name),
        (2, 4, 5, 6),
    )
SUBJECTS["norm-pool"] = lambda: (nn.Sequential(GroupBatchNorm2d(2), GroupPool("max")), (2, 8, 5, 6))
SUBJECTS["volumes-gc"] = lambda: (GroupConv3d(2, 3, 3, padding=1, group="C2v", kind="gc"), (2, 4, 4, 4, 4))
SUBJECTS["volumes-dense"] = lambda: (GroupConv3d(2, 3, 3, padding=1, group="C4"), (2, 4, 4, 4, 4))
SUBJECTS["volumes-lifting"] = lambda: (LiftingConv3d(2, 3, 3, stride=2, padding=1, group="C2v"), (2, 5, 3, 3))
SUBJECTS["volumes-transposed"] = lambda: (GroupConvTranspose3d(2, 3, 2, 2, group="C4", kind="gc"), (2, 4, 2, 2, 3))
SUBJECTS["volumes-norm-pool"] = lambda: (
    nn.Sequential(GroupBatchNorm3d(2), GroupPool("mean", dimension=3)),
    (2, 4, 3, 3, 4),
)
SUBJECTS["signals-g"] = lambda: (GroupConv1d(2, 3, 3, padding=1, group="reflection", kind="g"), (2, 2, 9))
SUBJECTS["signals-lifting"] = lambda: (LiftingConv1d(2, 3, 4, stride=2, padding=1, group="reflection"), (2, 8))
SUBJECTS["signals-transposed"] = lambda: (GroupConvTranspose1d(2, 3, 2, 2, group="reflection", kind="gc"), (2, 2, 5))
MODELS = {
    "rotmnist-gc": lambda: rotmnist("gc"),
    "resnet-g": lambda: resnet("g"),
    "resnet-gc": lambda: resnet("gc"),
    "unet-gc": lambda: (UNet("gc", 2, depth=1), (3, 4, 6)),
    "volumes-resnet-gc": lambda: volumes_resnet(),
    "signals-resnet-g": lambda: (ResNet("g", 8, (2, 2, 3), dimension=1, group="reflection"), (3, 8)),
    "fused-volumes-resnet-gc": lambda: fused(*volumes_resnet()),
    "fused-rotmnist-gc": lambda: fused(*rotmnist("gc")),
    "fused-resnet-gc": lambda: fused(*resnet("gc")),
}
SUBJECTS |= MODELS


CACHED = [name for name in SUBJECTS if name.startswith(("gc-", "lifting-native", "dense-fourier"))]


@pytest.fixture(autouse=True)
def _constants_as_in_a_new_process() -> None:
    constants.clear()


@pytest.fixture(params=[*SUBJECTS, *(f"cached:{name}" for name in CACHED)])
def subject(request: pytest.FixtureRequest) -> Iterator[tuple[Any, Tensor]]:
    """Make a layer or network and a batch of three; some under ``cached_filters``."""
    name = request.param.removeprefix("cached:")
    module, x = make(name)
    with cached_filters(module) if name != request.param else nullcontext():
        yield module, x


@pytest.fixture(params=MODELS)
def network(request: pytest.FixtureRequest) -> tuple[Any, Tensor]:
    """Make a network and a batch of three."""
    return make(request.param)


def make(name: str) -> tuple[Any, Tensor]:
    module, shape = SUBJECTS[name]()
    return module, torch.randn(3, *shape)


def gradients(module: nn.Module, x: Tensor, run: Any = None) -> list[Tensor]:
    """Return what a module gives and the gradients of everything that it read."""
    x = x.detach().clone().requires_grad_()  # of the same strides
    y = (run or module)(x)
    module.zero_grad()
    (y * torch.linspace(-1, 1, y.numel(), device=y.device).view_as(y).to(y)).sum().backward()
    return [y, x.grad, *(p.grad for p in module.parameters())]


def assert_close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """Compare lists of tensors, each by its largest value: some gradients are zero but for rounding."""
    found, wanted = ([tensor.detach().float() for tensor in tensors] for tensors in (found, wanted))
    scale = max([1.0, *(float(w.abs().max()) for w in wanted if w.numel())])
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *[(name, "aot_eager") for name in ("lifting-auto", "dense-auto", "g-auto", "gc-auto", "norm-pool")],
        *[(name, "eager") for name in SUBJECTS if name not in ("resnet-g", "fused-rotmnist-gc")],
    ],
)
def test_torch_compile_without_graph_breaks(name: str, backend: str) -> None:
    module, x = make(name)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend=backend)
    assert_close(gradients(compiled, x), gradients(module, x), 1e-4)
    with torch.no_grad():
        assert_close([compiled.eval()(x)], [module.eval()(x)], 1e-4)


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="there is no C++ compiler")
def test_compiles_to_machine_code() -> None:
    module, x = make("gc-auto")
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True)
    assert_close(gradients(compiled, x), gradients(module, x), 1e-4)


def test_autocast_computes_in_its_type_close_to_float32(subject: tuple[Any, Tensor]) -> None:
    (module, x), dtype = subject, torch.bfloat16
    module.eval()
    with torch.autocast("cpu", dtype):
        first, second = module(x), module(x)
    reference = module(x)
    assert torch.equal(first, second)
    assert first.dtype == dtype or isinstance(module, (nn.Sequential, RotMNISTNet))  # float32: norms and log_softmax
    assert (first.float() - reference).abs().max() < 0.05 * reference.abs().max()
    with torch.autocast("cpu", dtype):
        loss = module(x).float().square().sum()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


def test_any_memory_format(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    wanted = gradients(module, x)
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    last = [x.to(memory_format=formats[x.ndim])] if x.ndim in formats else []  # there is none of volumes
    for same in (*last, x.transpose(0, -1).contiguous().transpose(0, -1)):
        assert_close(gradients(module, same), wanted)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_compute_the_same_and_hold_nothing_more(subject: tuple[Any, Tensor], duplicate: Any) -> None:
    module, x = subject
    module.eval()
    fresh = len(pickle.dumps(module))
    with torch.no_grad():
        y = module(x)
    assert len(pickle.dumps(module)) == fresh  # what a call has computed is not packed
    other = duplicate(module)
    with torch.no_grad():
        assert torch.equal(other(x), y)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(module(x), y)


def test_one_state_for_training_and_inference(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    keys = list(module.state_dict())
    for mode in (False, True, False):
        with torch.no_grad():
            module.train(mode)(x)
        assert list(module.state_dict()) == keys


@pytest.mark.parametrize("kind", ["dense", "g", "gc"])
def test_a_state_moves_between_backends(kind: str) -> None:
    for build, name in ((rotmnist, "rotmnist-gc"), (resnet, "resnet-gc")):
        module, x = build(kind)[0].eval(), make(name)[1]
        for backend in (variant.backend for variant in SPATIAL if variant.kind == kind):
            other = build(kind, backend=backend)[0].eval()
            other.load_state_dict(module.state_dict(), strict=True)
            assert_close([other(x)], [module(x)])


def test_to_meta_and_back(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    state, y = module.state_dict(), module.eval()(x)
    for name in ("empty", "assigned"):
        with torch.device("meta"):
            other = copy.deepcopy(module).to("meta")
        assert other(x.to("meta")).shape == y.shape
        if name == "empty":
            other.to_empty(device="cpu").load_state_dict(state)
        else:
            other.load_state_dict(state, assign=True)
        assert torch.equal(other(x), y)


@pytest.mark.parametrize(
    ("layer_class", "group"),
    [(GroupConvTranspose1d, "reflection"), (GroupConvTranspose2d, D4), (GroupConvTranspose3d, "C4v")],
)
def test_skipping_the_initialisation(layer_class: Any, group: Any) -> None:
    random = torch.random.get_rng_state()
    layer = torch.nn.utils.skip_init(layer_class, 2, 3, 4, group=group, kind="gc")
    assert torch.equal(torch.random.get_rng_state(), random)
    other = layer_class(2, 3, 4, group=group, kind="gc")
    layer.load_state_dict(other.state_dict())
    x = torch.randn(2, 2, other.group.order, *(5,) * other.dimension)
    assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_precisions_are_as_close_as_they_allow(subject: tuple[Any, Tensor], dtype: torch.dtype) -> None:
    module, x = subject
    reference = copy.deepcopy(module).double().eval()(x.double())
    y = module.to(dtype).eval()(x.to(dtype))
    assert y.dtype == dtype
    assert (y.double() - reference).abs().max() < 30 * torch.finfo(dtype).eps * reference.abs().max()


def test_an_empty_batch_gives_an_empty_output_and_zero_gradients(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    module.eval()
    with torch.no_grad():
        assert module(x[:0]).shape == (0, *module(x).shape[1:])
    _, dx, *grads = gradients(module, x[:0])
    assert dx.shape == (0, *x.shape[1:])
    assert all(not g.any() for g in grads)


def test_vmap_over_stacked_models(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    module.eval()
    others = [copy.deepcopy(module) for _ in range(2)]
    with torch.no_grad():
        for parameter in others[1].parameters():
            parameter.mul_(0.9)
    parameters, buffers = torch.func.stack_module_state(others)

    def loss(parameters: dict[str, Tensor], buffers: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, (parameters, buffers), (x,)).square().mean()

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(0, 0, None))(parameters, buffers, x)
    for index, other in enumerate(others):
        other(x).square().mean().backward()
        assert_close(
            [together[name][index] for name, _ in other.named_parameters()], [p.grad for p in other.parameters()]
        )


def test_gradients_of_each_sample(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    module.eval()
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (x[None],)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for index, sample in enumerate(x):
        module.zero_grad()
        module(sample[None]).square().sum().backward()
        assert_close([each[name][index] for name in parameters], [p.grad for p in module.parameters()])


@pytest.mark.parametrize("training", [True, False])
def test_hooks_on_every_module_fire_whenever_it_is_called(network: tuple[Any, Tensor], training: bool) -> None:
    module, x = network
    module.train(training)
    watched, seen = copy.deepcopy(module), []
    used = {name for name, m in watched.named_modules() if not isinstance(m, nn.ModuleList)}
    for name, part in watched.named_modules():
        part.register_forward_hook(lambda m, args, y, name=name: seen.append(name))
    assert_close(gradients(watched, x), gradients(module, x), 1e-4)
    assert set(seen) == used
    shared = [name for name in seen if name.endswith(("relu", "max_pool", "max_pool.module"))]  # called several times
    assert len(seen) == len(set(seen) - set(shared)) + len(shared)
    assert_close(watched.buffers(), module.buffers())
    again = list(seen)
    seen.clear()
    restore(watched)(x)
    assert seen == again


def test_a_hook_that_changes_what_a_norm_gives(network: tuple[Any, Tensor]) -> None:
    module, x = network
    with torch.no_grad():
        before = module.eval()(x)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                part.register_forward_hook(lambda m, args, y: torch.zeros_like(y))
        assert not torch.allclose(module(x), before)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of every check of a shape
def test_a_trace_computes_any_batch(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    module.eval()
    with torch.no_grad():
        traced = torch.jit.trace(module, x[:2])
        assert_close([traced(x)], [module(x)])  # another batch


def test_exported_for_any_batch(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    module.eval()
    program = torch.export.export(module, (x[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (x, x[:1]):
        assert_close([program.module()(batch)], [module(batch)])


def test_inference_follows_training(network: tuple[Any, Tensor]) -> None:
    module, x = network
    fresh = copy.deepcopy(module)
    optimisers = [torch.optim.SGD(net.parameters(), 0.1, momentum=0.9) for net in (module, fresh)]
    for _ in range(2):
        for net, optimiser in zip((module, fresh), optimisers, strict=True):
            gradients(net.train(), x)
            optimiser.step()
        with torch.no_grad():
            y = module.eval()(x)
            assert torch.equal(module(x), y)
            assert_close([copy.deepcopy(fresh).eval()(x)], [y])  # which has computed nothing before
        with torch.inference_mode():
            assert torch.equal(module(x), y)
        assert_close(gradients(module.train(), x), gradients(copy.deepcopy(fresh).train(), x))
        fresh.load_state_dict(module.state_dict())


def halves(name: str, training: bool) -> tuple[Any, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    module, x = make(name)
    return module.train(training), (x, x.flip(-1) + 1)


WORKER = """
import os, sys, torch
from torch.nn.parallel import DistributedDataParallel
from conftest import AS_IF_LARGE
from test_contracts import SUBJECTS, halves
for setting in AS_IF_LARGE:
    setattr(*setting)
rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
found = {}
for name in SUBJECTS:
    for training in (True, False):
        module, inputs = halves(name, training)
        parallel = DistributedDataParallel(module)
        for _ in range(2):
            parallel.zero_grad()
            parallel(inputs[rank]).square().sum().backward()
        found[name, training] = [p.grad for p in module.parameters()]
if rank == 0:
    torch.save(found, sys.argv[2])
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WORKER, str(tmp_path / "store"), str(tmp_path / "grads.pt")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    here = Path(__file__).parent  # not the root, where another conftest lies
    workers = [
        subprocess.Popen(command, cwd=here, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=240)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    for (name, training), found in torch.load(tmp_path / "grads.pt").items():
        module, inputs = halves(name, training)
        for x in inputs if training else [torch.cat(inputs)]:  # in training each process norms its own half
            module(x).square().sum().backward()
        assert_close(found, [p.grad / 2 for p in module.parameters()])  # DistributedDataParallel takes the mean


def test_checkpointing_recomputes_the_same(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    module.eval()
    assert_close(gradients(module, x, lambda x: checkpoint(module, x, use_reentrant=False)), gradients(module, x))


class Watched(TorchDispatchMode):
    """A mode that sees every operation and changes none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_under_a_dispatch_mode(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    module.eval()
    wanted = gradients(module, x)
    constants.clear()
    with Watched():
        assert_close(gradients(module, x), wanted)


def test_a_whole_model_in_channels_last(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    wanted = gradients(module, x)
    module.to(memory_format=torch.channels_last)
    assert_close(gradients(module, x), wanted)


class Widened(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 1.5 * weight


def test_parametrizations_are_applied_in_every_call(network: tuple[Any, Tensor]) -> None:
    module, x = network
    plain = copy.deepcopy(module)
    for layer in [m for m in module.modules() if isinstance(m, GroupConvolution)]:
        for name in layer.filter_names:
            nn.utils.parametrize.register_parametrization(layer, name, Widened())
    with torch.no_grad():
        for layer in [m for m in plain.modules() if isinstance(m, GroupConvolution)]:
            for name in layer.filter_names:
                getattr(layer, name).mul_(1.5)
    y, dx, *_ = gradients(module, x)
    assert_close([y, dx], gradients(plain, x)[:2])


def test_forward_mode_derivatives(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    module.double().eval()
    x = x.double().requires_grad_()
    y, direction = module(x), torch.randn_like(x)
    cotangent = torch.randn_like(y)
    (back,) = torch.autograd.grad(y, x, cotangent)
    for gradients_enabled in (True, False):
        with torch.set_grad_enabled(gradients_enabled), forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(module(forward_ad.make_dual(x.detach(), direction))).tangent
        torch.testing.assert_close((tangent * cotangent).sum(), (back * direction).sum())
    _, tangent = torch.func.jvp(module, (x.detach(),), (direction,))
    torch.testing.assert_close((tangent * cotangent).sum(), (back * direction).sum())


def test_another_default_device_leaves_what_lies_on_the_cpu(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    module.eval()
    with torch.device("meta"):
        found = gradients(module, x)
    assert all(tensor.is_cpu for tensor in found)
    assert_close(found, gradients(module, x))


def test_training_mode_without_gradients(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    other = copy.deepcopy(module)
    with torch.no_grad():
        expected = module.train()(x)
    with torch.inference_mode():
        assert_close([other.train()(x)], [expected])
    assert_close(other.buffers(), module.buffers())


@pytest.mark.parametrize("name", [*(f"{kind}-auto" for kind in ("lifting", "dense", "g", "gc")), *MODELS])
def test_torch_fx_takes_layers_as_they_are(name: str) -> None:
    module, x = make(name)
    module.eval()
    traced = torch.fx.symbolic_trace(nn.Sequential(module))
    used = {type(m) for m in module.modules() if isinstance(m, GroupConvolution | GroupBatchNorm)}
    assert used <= {type(traced.get_submodule(str(n.target))) for n in traced.graph.nodes if n.op == "call_module"}
    results = []
    for net, prefix in ((traced, "0."), (module, "")):
        y, grad = gradients(net, x)[:2]
        results.append([y, grad, *(net.get_parameter(prefix + n).grad for n, _ in module.named_parameters())])
    assert_close(*results)
