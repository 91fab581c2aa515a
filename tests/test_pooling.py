"""Max-pooling by slices has the values and gradients of PyTorch's max-pooling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from sepgroupy.backends import has_windows, max_pool, max_pool_window

WINDOWS = [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 3), (1, 0)), ((5, 1), (2, 1), (2, 0))]


def both(x: Tensor, window: tuple[tuple[int, int], ...]) -> list[list[Tensor]]:
    """Return output and gradient of both ways."""
    found = []
    pools: tuple[Callable[..., Tensor], ...] = (max_pool, F.max_pool2d)
    for pool in pools:
        leaf = x.clone().requires_grad_()
        y = pool(leaf, *window)
        found.append([y, *torch.autograd.grad(y, leaf, torch.linspace(1, 2, y.numel(), dtype=x.dtype).view_as(y))])
        with torch.no_grad():
            torch.testing.assert_close(pool(x, *window), y, rtol=0, atol=0, equal_nan=True)
    return found


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", [(9, 8), (5, 5)])
def test_values_and_gradients(window: tuple[tuple[int, int], ...], size: tuple[int, int]) -> None:
    torch.testing.assert_close(*both(torch.randn(2, 3, *size), window), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_first_of_equal_values_has_the_gradient(window: tuple[tuple[int, int], ...]) -> None:
    torch.testing.assert_close(*both(torch.randint(0, 2, (4, 3, 9, 8)).double(), window))


def test_nan_and_infinity_spread_as_in_pytorch() -> None:
    x = torch.randn(1, 1, 7, 7)
    x[0, 0, 1, 1], x[0, 0, 4, 4], x[0, 0, 6, 0] = torch.nan, torch.inf, -torch.inf
    torch.testing.assert_close(max_pool(x, *WINDOWS[1]), F.max_pool2d(x, *WINDOWS[1]), equal_nan=True)
    x.requires_grad_()
    (dx,) = torch.autograd.grad(max_pool(x, *WINDOWS[0]).nan_to_num().sum(), x)
    assert (
        dx[0, 0, 1, 1] == 0
    )  # nan_to_num passes nothing on to a NaN, and no other pixel of its window was the maximum
    assert (dx[0, 0, :2, :2] == 0).all()


def test_further_axes_and_strided_maps() -> None:
    x = torch.randn(2, 4, 3, 6, 6).transpose(1, 2)
    wanted = F.max_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, x.shape[:2])
    torch.testing.assert_close(max_pool(x, *WINDOWS[1]), wanted, rtol=0, atol=0)


def test_first_and_second_derivatives() -> None:
    x = torch.randperm(2 * 6 * 5).double().view(1, 2, 6, 5).requires_grad_()
    assert gradcheck(lambda t: max_pool(t, *WINDOWS[1]) ** 2, x)
    assert gradgradcheck(lambda t: max_pool(t, *WINDOWS[1]) ** 2, x)


@pytest.mark.parametrize(
    "module",
    [
        nn.MaxPool2d(2, ceil_mode=True),
        nn.MaxPool2d(2, return_indices=True),
        nn.MaxPool2d(2, dilation=2),
        nn.MaxPool2d(2, padding=(0, 2)),
        nn.AvgPool2d(2),
    ],
)
def test_other_poolings_are_left_to_pytorch(module: nn.Module) -> None:
    assert max_pool_window(module) is None


@pytest.mark.parametrize("x", [torch.randn(1, 1, 1, 9), torch.zeros(0, 2, 9, 9), torch.randint(9, (1, 2, 9, 9))])
def test_inputs_without_windows(x: Tensor) -> None:
    window = max_pool_window(nn.MaxPool2d(2))
    assert window is not None
    assert has_windows(torch.randn(1, 1, 2, 3), window)
    assert not has_windows(x, window)
