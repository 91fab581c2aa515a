"""Cost tables: parameters and formula against the paper, executed counts, memory and times against hand counts."""

from __future__ import annotations

import csv
import io
import time

import pytest
import torch
from torch import nn

from sepgroupy.analysis import RelativeTime, complexity, import_network, peak_memory, relative_times
from sepgroupy.analysis._memory import LiveBytes
from sepgroupy.errors import ArgumentError
from sepgroupy.models import ResNet, build_model
from sepgroupy.nn import GroupConv1d, GroupConv2d, LiftingConv2d, LiftingConv3d
from sepgroupy.paper import cost_table, paper_models, to_csv, to_markdown

# model: parameters, multiply-accumulates by the formula in millions
EXACT = {
    "z2cnn": (25_210, 2.979),
    "c-z2cnn": (25_603, 3.331),
    "p4cnn": (24_810, 11.674),
    "g-p4cnn-small": (8_910, 4.370),
    "g-p4cnn": (25_255, 12.339),
    "gc-p4cnn-small": (3_420, 1.798),
    "gc-p4cnn": (24_640, 13.007),
    "resnet44": (2_636_458, 388.9),
    "p4m-resnet44": (2_621_829, 3_069.9),
    "g-p4m-resnet44": (1_782_381, 2_089.1),
    "gc-p4m-resnet44": (1_884_270, 2_214.7),
}


@pytest.fixture(scope="module")
def rows():
    return cost_table(paper_models())


def test_parameters_and_formula_of_all_eleven(rows):
    assert {row.model: row.cost.parameters for row in rows} == {k: v[0] for k, v in EXACT.items()}
    for row in rows:
        assert row.cost.macs == pytest.approx(EXACT[row.model][1] * 1e6, rel=1e-3)


def test_the_paper_agrees_where_it_counts_alike(rows):
    for row in rows:
        assert row.cost.parameters == pytest.approx(row.paper.parameters, rel=3e-3)
        if row.model != "c-z2cnn":  # there the paper counts the 1×1 at input size
            assert row.cost.macs == pytest.approx(row.paper.macs, rel=3e-2)
    c = next(row for row in rows if row.model == "c-z2cnn")
    assert c.cost.macs_executed == pytest.approx(c.paper.macs, rel=5e-3)


def test_nets_without_a_pointwise_step_execute_the_formula(rows):
    for row in rows:
        if row.model in ("z2cnn", "p4cnn", "resnet44", "p4m-resnet44"):
            assert 0 < row.cost.macs_executed <= row.cost.macs


def test_memory_of_the_plain_nets_is_near_the_papers(rows):
    for row in rows:
        if row.model in ("z2cnn", "resnet44"):
            assert 0.7 < row.cost.memory / row.paper.memory < 1.1


@pytest.mark.parametrize(
    ("layer", "x", "macs"),
    [
        # 7×7 input, 3×3 kernel, stride 2, padding 1: 4×4 output pixels
        (LiftingConv2d(3, 5, 3, 2, 1, group="p4"), (3, 7, 7), 5 * 3 * 4 * 9 * 16),
        (LiftingConv2d(4, 6, 3, 2, 1, groups=2, group="pm"), (4, 7, 7), 6 * 2 * 2 * 9 * 16),
        (GroupConv2d(3, 5, 3, 2, 1, group="p4m"), (3, 8, 7, 7), 5 * 3 * 64 * 9 * 16),
        (GroupConv2d(3, 5, 3, 2, 1, group="p4", kind="g"), (3, 4, 7, 7), 5 * 3 * 4 * (4 + 9) * 16),
        (GroupConv2d(3, 5, 3, 2, 1, group="p4m", kind="gc"), (3, 8, 7, 7), 5 * 8 * (3 * 8 + 9) * 16),
        (GroupConv2d(3, 5, 3, 2, 1, group="p4m", kind="gc", backend="expanded"), (3, 8, 7, 7), 5 * 8 * (24 + 9) * 16),
        (GroupConv2d(4, 6, (1, 3), group="pm", kind="gc", groups=2), (4, 2, 7, 7), 6 * 2 * (2 * 2 + 3) * 35),
        (LiftingConv3d(2, 3, 3, group="O"), (2, 5, 5, 5), 3 * 2 * 24 * 27 * 27),
        (GroupConv1d(3, 5, 3, group="reflection", kind="gc"), (3, 2, 7), 5 * 2 * (3 * 2 + 3) * 5),
        (nn.Conv2d(3, 5, (3, 2), bias=False), (3, 7, 7), 5 * 3 * 6 * 5 * 6),
        (nn.Conv1d(3, 5, 3), (3, 7), 5 * 3 * 3 * 5),
        (nn.Conv3d(3, 5, 3), (3, 7, 7, 7), 5 * 3 * 27 * 125),
        (nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2), 60),
        (nn.ReLU(), (3, 7, 7), 0),
    ],
)
def test_the_formula_of_one_layer(layer, x, macs):
    assert complexity(layer, x).macs == macs


POINTWISE, DEPTHWISE = 3 * 8, 8 * 9  # multiply-accumulates a pixel of the layers below


@pytest.mark.parametrize(
    ("between", "pixels"),
    [((), 16), ((nn.ReLU(),), 64), ((nn.ReLU(inplace=True),), 64), ((nn.BatchNorm2d(8),), 64)],
)
def test_a_pointwise_layer_straight_before_a_depthwise_one_counts_at_its_pixels(between, pixels):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), *between, nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8))
    cost = complexity(net, (3, 8, 8))
    assert cost.macs == POINTWISE * pixels + DEPTHWISE * 16
    assert cost.macs_executed == POINTWISE * 64 + DEPTHWISE * 16


def test_a_pointwise_layer_beside_a_depthwise_one_counts_by_itself():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.pointwise, self.depthwise = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)

        def forward(self, x):
            return self.pointwise(x).mean() + self.depthwise(x)

    assert complexity(Beside(), (8, 8, 8)).macs == 64 * 64 + 72 * 16


def test_executed_multiply_accumulates_of_a_plain_net_by_hand():
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 5, stride=2, groups=2), nn.Flatten(), nn.Linear(6 * 2 * 2, 7),
    )  # fmt: skip
    cost = complexity(net, (3, 16, 16))
    by_hand = 8 * 3 * 9 * 256 + 6 * 4 * 25 * 4 + 24 * 7
    assert (cost.macs, cost.macs_executed) == (by_hand, by_hand)
    assert cost.parameters == (8 * 27 + 8) + 16 + (6 * 100 + 6) + (24 * 7 + 7)


def test_what_a_two_step_layer_executes():
    """The pointwise step runs at the 7×7 pixels before the stride, or not at all once the factors are multiplied."""
    options = {"group": "p4m", "kind": "gc"}
    two_steps = GroupConv2d(3, 5, 3, 2, 1, backend="two_step", **options)
    assert complexity(two_steps, (3, 8, 7, 7)).macs_executed == 5 * 8 * (3 * 8 * 49 + 9 * 16)
    full = GroupConv2d(3, 5, 3, 2, 1, backend="expanded", **options)
    assert complexity(full, (3, 8, 7, 7)).macs_executed == 5 * 3 * 64 * 9 * 16


def test_matrix_products_outside_modules_are_executed():
    class Product(nn.Module):
        def forward(self, x):
            return torch.einsum("bcyx,cd->bdyx", x, x.new_ones(3, 4))

    cost = complexity(Product(), (3, 5, 5))
    assert (cost.macs, cost.macs_executed) == (0, 3 * 4 * 25)


def test_shared_parameters_count_once_and_their_calls_each_time():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    cost = complexity(nn.Sequential(layer, layer), (3, 4, 4))
    assert cost.parameters == 84
    assert cost.macs == cost.macs_executed == 2 * 81 * 16


MIB = 2**20


def test_live_bytes_follow_storages():
    x = torch.zeros(MIB // 4)
    with LiveBytes() as live:
        y = x.exp()
        assert live.now == MIB
        z = y[::2].view(-1, 2)
        assert live.now == MIB, "views share a storage"
        y.add_(1), x.mul_(2)
        assert live.now == MIB, "nothing new in place, and x was there before"
        del y
        assert live.now == MIB, "z still needs the storage"
        del z
        assert (live.now, live.peak) == (0, MIB)
        w = x.exp() + x.sin()  # two factors and their sum at once
    assert (live.now, live.peak) == (MIB, 3 * MIB)
    del w
    assert live.now == 0


def test_live_bytes_see_what_autograd_keeps():
    x = torch.zeros(MIB // 4, requires_grad=True)
    with LiveBytes() as live:
        y = x.exp().exp().exp()  # each needs its own result for its derivative
        assert (live.now, live.peak) == (3 * MIB, 3 * MIB)
        with torch.no_grad():
            z = x.exp().exp().exp()
        assert (live.now, live.peak) == (4 * MIB, 5 * MIB)
        del y, z
    assert live.now == 0


class Scale(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * self.factor


def test_peak_memory_by_hand():
    """x·factor takes 2n and goes; the backward pass holds the sum, its gradient, x·gradient (2n) and the result (n)."""
    n = 1000
    assert complexity(Scale(n), (n,)).memory == 4 * (2 * n + n + 2)
    assert complexity(Scale(n).double(), (n,)).memory == 8 * (2 * n + n + 2)


def test_peak_memory_of_a_chain_by_hand():
    """Three exponentials keep 3·2n numbers; each backward step adds one gradient, and frees what the next lacks."""
    n = 1000

    class Chain(Scale):
        def forward(self, x):
            return super().forward(x).exp().exp().exp()

    # Deepest in the first product: y₃ and y₂·g are needed together with y₁, y₂ and the two scalars.
    assert complexity(Chain(n), (n,)).memory == 4 * (4 * 2 * n + 2)


def test_a_module_without_parameters_has_a_forward_pass_alone():
    assert complexity(nn.ReLU(), (1000,)).memory == 4 * (2000 + 1)


def test_memory_grows_with_the_batch_by_what_is_saved():
    net = build_model("z2cnn")
    two, four = (peak_memory(net.train(), torch.zeros(count, 1, 28, 28)) for count in (2, 4))
    saved = 4 * 20 * (26**2 + 2 * 24**2)  # of one image, by convolutions 1 and 2 alone
    assert four - two > 2 * saved


def test_the_module_is_left_as_it_was():
    net = ResNet("gc", 8, (2, 3, 4)).train()
    net(torch.randn(2, 3, 8, 8)).sum().backward()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    gradients = [p.grad.clone() for p in net.parameters()]
    cost_table({"mine": (net, (3, 8, 8))}, measure=True, batch_size=2, rounds=1)
    assert net.training
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, net.parameters(), strict=True))
    assert not any(m._forward_hooks for m in net.modules())


def test_the_module_is_measured_in_evaluation_and_training_mode():
    modes = []

    class Mode(Scale):
        def forward(self, x):
            modes.append((self.training, len(x)))
            return super().forward(x)

    complexity(Mode(4), (4,))
    assert modes == [(False, 1), (True, 2)]


class Clock(nn.Module):
    """Takes seconds of a clock of its own, more with every round."""

    now = 0.0

    def __init__(self, training, evaluation):
        super().__init__()
        self.seconds, self.calls = {True: training, False: evaluation}, 0

    def forward(self, x):
        self.calls += 1
        Clock.now += self.seconds[self.training] * self.calls
        return x


def test_times_are_ratios_within_a_round(monkeypatch):
    monkeypatch.setattr(time, "perf_counter", lambda: Clock.now)
    clocks = [Clock(2.0, 1.0), Clock(6.0, 0.5)]
    assert relative_times(clocks, (4,), rounds=3) == [
        RelativeTime(1.0, 1.0),
        RelativeTime(3.0, 0.5),
    ]
    assert [clock.calls for clock in clocks] == [0, 0]


def test_a_training_step_trains_and_evaluation_needs_no_gradient():
    seen = []

    class Watch(Scale):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled(), len(x)))
            return super().forward(x)

    relative_times([Watch(4)], (4,), batch_size=3, rounds=2)
    assert seen == [(True, True, 3)] * 3 + [(False, False, 3)] * 3


def test_each_shape_has_its_own_reference():
    models = {
        "small": (nn.Conv2d(1, 2, 3), (1, 8, 8)),
        "other": (nn.Conv2d(3, 2, 3), (3, 8, 8)),
        "large": (nn.Conv2d(1, 2, 3), (1, 8, 8)),
    }
    rows = cost_table(models, measure=True, batch_size=1, rounds=1)
    assert [row.model for row in rows] == ["small", "other", "large"]
    assert rows[0].time == rows[1].time == RelativeTime(1.0, 1.0)
    assert rows[2].time.training > 0
    assert to_markdown(rows).count("| :--") == 2


def test_markdown_has_every_model_and_figure(rows):
    digits, photos = to_markdown(rows).split("\n\n")
    assert [line.split(" | ")[0] for line in digits.splitlines()[2:]] == [f"| {name}" for name in list(EXACT)[:7]]
    assert [line.split(" | ")[0] for line in photos.splitlines()[2:]] == [f"| {name}" for name in list(EXACT)[7:]]
    cells = next(line for line in digits.splitlines() if "| gc-p4cnn |" in line).strip("| ").split(" | ")
    assert cells[:8] == ["gc-p4cnn", "1×28×28", "30", "1.74 ± 0.070", "24,640", "24.64 k", "13.007 M", "13.01 M"]
    assert cells[-1] == "5.83 MiB"
    assert "training" not in digits
    for table in (digits, photos):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_csv_has_plain_numbers(rows):
    table = list(csv.DictReader(io.StringIO(to_csv(rows))))
    assert [row["model"] for row in table] == list(EXACT)
    for row, cost in zip(table, rows, strict=True):
        assert (int(row["parameters"]), int(row["macs"])) == (cost.cost.parameters, cost.cost.macs)
        assert (int(row["macs_executed"]), int(row["memory"])) == (cost.cost.macs_executed, cost.cost.memory)
        assert float(row["memory_paper"]) == cost.paper.memory
        assert row["training_time"] == row["inference_time"] == ""
    assert table[-1]["width"] == "28, 56, 112"


def test_a_users_module_in_the_table(tmp_path, monkeypatch):
    (tmp_path / "users_nets.py").write_text(
        "from torch import nn\n"
        "def net():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))\n"
        "ready = net()\n"
        "def wrong():\n    return 3\n"
        "def broken():\n    raise KeyError('no weights')\n"
    )
    monkeypatch.chdir(tmp_path)
    for path in ("users_nets:net", "users_nets:ready"):
        (row,) = cost_table({path: (import_network(path), (3, 4, 4))})
        assert (row.cost.parameters, row.cost.macs) == (112 + 34, 4 * 27 * 4 + 32)
        assert row.paper is None
        assert to_markdown([row]).splitlines()[2].startswith(f"| {path} | 3×4×4 | 146 |")
    with pytest.raises(ArgumentError, match=r"module \(='users_nets:wrong'\) gives a int"):
        import_network("users_nets:wrong")
    with pytest.raises(ArgumentError, match=r"module \(='users_nets:broken'\) cannot be built: KeyError: 'no weights'"):
        import_network("users_nets:broken")
    with pytest.raises(ArgumentError, match="has no attribute 'nothing'"):
        import_network("users_nets:nothing")
    with pytest.raises(ArgumentError, match="No module named 'nowhere'"):
        import_network("nowhere:net")


@pytest.mark.parametrize("path", ["", "users_nets", ":net", "users_nets:"])
def test_what_is_no_import_path_is_refused(path):
    with pytest.raises(ArgumentError, match="must be an import path"):
        import_network(path)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ArgumentError, match=r"module Conv2d fails on an image of shape \(1, 8, 8\)"):
        complexity(nn.Conv2d(3, 4, 3), (1, 8, 8))
    with pytest.raises(ArgumentError, match=r"module LSTM returns a tuple"):
        complexity(nn.LSTM(3, 4), (2, 3))
    for shape in ((), (3, 0, 4), (3, -1, 4), (3, 4.0)):
        with pytest.raises(ArgumentError, match="must be positive integers"):
            complexity(nn.ReLU(), shape)
    for option in ("batch_size", "rounds"):
        with pytest.raises(ArgumentError, match=rf"{option} \(=0\) must be at least 1"):
            relative_times([nn.ReLU()], (3, 4, 4), **{option: 0})
    with pytest.raises(ArgumentError, match=r"model \(='resnet18'\) is in none of the paper's tables"):
        paper_models(["z2cnn", "resnet18"])


def test_names_are_read_in_any_case():
    assert list(paper_models(["GC-P4CNN"])) == ["gc-p4cnn"]
