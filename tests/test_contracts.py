"""What a PyTorch user expects of any module, held for every kind of layer and a small network of each family.

What a layer keeps between calls is in ``test_nn_state``, derivatives and ensembles of layers in ``test_nn_gradients``.
"""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import ways_of
from sepgroupy.functional import _plan
from sepgroupy.functional._plan import ALGORITHMS
from sepgroupy.groups import D4
from sepgroupy.models import ResNet, RotMNISTNet, UNet
from sepgroupy.nn import Folded, GroupConv2d, GroupConvTranspose2d, GroupPool, LiftingConv2d

pytestmark = [
    pytest.mark.usefixtures("as_if_large"),
    pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning"),
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # of vmap over some convolutions
]


def layer(kind: str, algorithm: str, kernel: int) -> tuple[nn.Module, tuple[int, ...]]:
    options = {"padding": kernel // 2, "group": D4}
    if kind == "lifting":
        return LiftingConv2d(2, 3, kernel, **options), (2, 5, 6)
    return GroupConv2d(2, 3, kernel, kind=kind, algorithm=algorithm, **options), (2, 8, 5, 6)


def rotmnist(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    return RotMNISTNet(kind, 3), (1, 28, 28)


def resnet(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    return ResNet(kind, depth=8, widths=(2, 3, 4)), (3, 8, 8)


SUBJECTS = {
    f"{'-'.join(way)}-{kernel}x{kernel}": lambda way=way, kernel=kernel: layer(*way, kernel)
    for kernel in (1, 3)
    for way in ways_of(kernel_size=kernel)
}
SUBJECTS["transposed"] = lambda: (GroupConvTranspose2d(2, 3, 4, 2, 1, group=D4, kind="gc"), (2, 8, 5, 6))
SUBJECTS["folded"] = lambda: (Folded(nn.BatchNorm2d(2)), (2, 8, 5, 6))
SUBJECTS["pool"] = lambda: (GroupPool("max"), (2, 8, 5, 6))
MODELS = {
    "rotmnist-gc": lambda: rotmnist("gc"),
    "resnet-g": lambda: resnet("g"),
    "resnet-gc": lambda: resnet("gc"),
    "unet-gc": lambda: (UNet("gc", 2, depth=1), (3, 4, 6)),
}
SUBJECTS |= MODELS


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> tuple[Any, Tensor]:
    """Make a layer or network and a batch of three."""
    return make(request.param)


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
    (y * torch.linspace(-1, 1, y.numel()).view_as(y).to(y)).sum().backward()
    return [y, x.grad, *(p.grad for p in module.parameters())]


def assert_close(found: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """Compare lists of tensors, each by its largest value: some gradients are zero but for rounding."""
    found, wanted = ([tensor.detach().float() for tensor in tensors] for tensors in (found, wanted))
    scale = max(1.0, *(float(w.abs().max()) for w in wanted if w.numel()))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *[(f"{kind}-auto-3x3", "aot_eager") for kind in ("dense", "g", "gc")],
        ("lifting-dense-3x3", "aot_eager"),
        ("dense-fourier-1x1", "aot_eager"),
        ("transposed", "aot_eager"),
        ("rotmnist-gc", "eager"),
        ("resnet-gc", "eager"),
    ],
)
def test_compiles_whole(name: str, backend: str) -> None:
    module, x = make(name)
    torch._dynamo.reset()
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend=backend)
    assert_close(gradients(compiled, x), gradients(module, x), 1e-4)
    with torch.no_grad():
        assert_close([compiled.eval()(x)], [module.eval()(x)], 1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(subject: tuple[Any, Tensor], dtype: torch.dtype) -> None:
    module, x = subject
    module.eval()
    with torch.autocast("cpu", dtype):
        first, second = module(x), module(x)
    reference = module(x)
    assert torch.equal(first, second)
    assert first.dtype == dtype or isinstance(module, RotMNISTNet)  # whose log_softmax autocast does in float32
    assert (first.float() - reference).abs().max() < 0.05 * reference.abs().max()
    with torch.autocast("cpu", dtype):
        loss = module(x).float().square().sum()
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in module.parameters())


def test_any_memory_format(subject: tuple[Any, Tensor]) -> None:
    module, x = subject
    wanted = gradients(module, x)
    last = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    for same in (x.to(memory_format=last), x.transpose(0, -1).contiguous().transpose(0, -1)):
        assert_close(gradients(module, same), wanted)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_of_networks(network: tuple[Any, Tensor], duplicate: Any) -> None:
    module, x = network
    module.eval()
    fresh = len(pickle.dumps(module))
    with torch.no_grad():
        y = module(x)
    assert len(pickle.dumps(module)) == fresh  # kept filters are not packed
    other = duplicate(module)
    with torch.no_grad():
        assert torch.equal(other(x), y)
        for parameter in other.parameters():
            parameter.zero_()
        assert torch.equal(module(x), y)


def test_one_state_for_training_evaluation_and_all_algorithms(network: tuple[Any, Tensor]) -> None:
    module, x = network
    keys = list(module.state_dict())
    for mode in (False, True):
        with torch.no_grad():
            module.train(mode)(x)
        assert list(module.state_dict()) == keys
    module.eval()
    settings = {"width": 3} if isinstance(module, RotMNISTNet) else {"depth": 8, "widths": (2, 3, 4)}
    kind = next(m.plan.kind for m in module.modules() if isinstance(m, GroupConv2d))
    for algorithm in ALGORITHMS[kind]:
        if (kind, algorithm) != ("dense", "fourier"):  # which is for 1×1 kernels
            other = type(module)(kind, algorithm=algorithm, **settings).eval()
            other.load_state_dict(module.state_dict(), strict=True)
            assert_close([other(x)], [module(x)])


def test_meta_and_materialised_networks(network: tuple[Any, Tensor]) -> None:
    module, x = network
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


def test_skipping_the_initialisation() -> None:
    random = torch.random.get_rng_state()
    layer = torch.nn.utils.skip_init(GroupConvTranspose2d, 2, 3, 4, group=D4, kind="gc")
    assert torch.equal(torch.random.get_rng_state(), random)
    other = GroupConvTranspose2d(2, 3, 4, group=D4, kind="gc")
    layer.load_state_dict(other.state_dict())
    x = torch.randn(2, 2, 8, 5, 5)
    assert torch.equal(layer(x), other(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_networks_of_other_precisions(network: tuple[Any, Tensor], dtype: torch.dtype) -> None:
    module, x = network
    reference = copy.deepcopy(module).double().eval()(x.double())
    y = module.to(dtype).eval()(x.to(dtype))
    assert y.dtype == dtype
    assert (y.double() - reference).abs().max() < 30 * torch.finfo(dtype).eps * reference.abs().max()


def test_an_empty_batch(subject: tuple[Any, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = subject
    module.eval()
    with torch.no_grad():
        assert module(x[:0]).shape == (0, *module(x).shape[1:])
    monkeypatch.setattr(_plan, "FUSED", 1)  # every map but one of no values
    _, dx, *grads = gradients(module, x[:0])
    assert dx.shape == (0, *x.shape[1:])
    assert all(not g.any() for g in grads)


def test_an_ensemble_of_networks(network: tuple[Any, Tensor]) -> None:
    module, x = network
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


def test_gradients_of_each_sample(network: tuple[Any, Tensor]) -> None:
    module, x = network
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
def test_hooks_on_every_module_fire_once(network: tuple[Any, Tensor], training: bool) -> None:
    module, x = network
    module.train(training)
    watched, seen = copy.deepcopy(module), []
    used = {name for name, m in watched.named_modules() if not isinstance(m, (nn.Sequential, nn.ModuleList))}
    for name, part in watched.named_modules():
        part.register_forward_hook(lambda m, args, y, name=name: seen.append(name))
    assert_close(gradients(watched, x), gradients(module, x), 1e-4)
    assert used <= set(seen)
    assert len(seen) == len(set(seen))
    assert_close(watched.buffers(), module.buffers())


def test_a_hook_that_changes_what_a_norm_gives(network: tuple[Any, Tensor]) -> None:
    module, x = network
    with torch.no_grad():
        before = module.eval()(x)
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.register_forward_hook(lambda m, args, y: torch.zeros_like(y))
        assert not torch.allclose(module(x), before)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of every check of a shape
def test_traced(subject: tuple[Any, Tensor]) -> None:
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


def test_evaluation_follows_training(network: tuple[Any, Tensor]) -> None:
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
            assert_close([copy.deepcopy(fresh).eval()(x)], [y])  # has kept nothing
        with torch.inference_mode():
            assert torch.equal(module(x), y)
        assert_close(gradients(module.train(), x), gradients(copy.deepcopy(fresh).train(), x))
        fresh.load_state_dict(module.state_dict())


WORKER = """
import os, sys, torch
from torch.nn.parallel import DistributedDataParallel
import test_contracts
rank = int(os.environ["RANK"])
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
found = {}
for name in test_contracts.MODELS:
    torch.manual_seed(0)
    module, x = test_contracts.make(name)
    x = torch.cat([x, x.flip(-1)])
    parallel = DistributedDataParallel(module.eval())
    for _ in range(2):
        parallel.zero_grad()
        parallel(x[3 * rank : 3 * rank + 3]).square().sum().backward()
    found[name] = [p.grad for p in module.parameters()]
if rank == 0:
    torch.save(found, sys.argv[2])
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(WORKER), str(tmp_path / "store"), str(tmp_path / "grads.pt")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(command, env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [worker.communicate(timeout=120)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    found = torch.load(tmp_path / "grads.pt")
    for name in MODELS:
        torch.manual_seed(0)
        module, x = make(name)
        module.eval()(torch.cat([x, x.flip(-1)])).square().sum().backward()
        assert_close(found[name], [p.grad / 2 for p in module.parameters()])  # DDP takes the mean
