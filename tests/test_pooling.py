"""Max-pooling by slices, and by the kernel, has the values and gradients of PyTorch's max-pooling."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sepgroupy.backends import has_windows, max_pool, max_pool_window, native
from sepgroupy.backends.native.library import kernels

needs_kernels = pytest.mark.skipif(not kernels(), reason=kernels().summary)

WINDOWS = [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 2), (1, 3), (1, 0)), ((5, 1), (2, 1), (2, 0))]


def assert_pools(x: Tensor, window: tuple[tuple[int, int], ...]) -> None:
    torch.testing.assert_close(max_pool(x, *window), F.max_pool2d(x, *window), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", [(9, 8), (5, 5)])
def test_the_maximum_is_that_of_pytorch(window: tuple[tuple[int, int], ...], size: tuple[int, int]) -> None:
    assert_pools(torch.randn(2, 3, *size), window)
    assert_pools(torch.randint(0, 2, (2, 3, *size)).double(), window)


@pytest.mark.parametrize("window", WINDOWS)
def test_nan_and_infinity_spread_as_in_pytorch(window: tuple[tuple[int, int], ...]) -> None:
    x = torch.randn(1, 1, 7, 7)
    x[0, 0, 1, 1], x[0, 0, 4, 4], x[0, 0, 6, 0] = torch.nan, torch.inf, -torch.inf
    assert_pools(x, window)


def test_further_axes_and_strided_maps() -> None:
    x = torch.randn(2, 4, 3, 6, 6).transpose(1, 2)
    wanted = F.max_pool2d(x.flatten(0, 1), 3, 2, 1).unflatten(0, x.shape[:2])
    torch.testing.assert_close(max_pool(x, *WINDOWS[1]), wanted, rtol=0, atol=0)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("window", [*WINDOWS, ((8, 8), (3, 3), (4, 4)), ((3, 3), (1, 1), (1, 1))])
@pytest.mark.parametrize("values", ["normal", "equal", "not finite"])
def test_the_kernel_finds_the_places_that_pytorch_finds(
    window: tuple[tuple[int, int], ...], dtype: torch.dtype, values: str
) -> None:
    for size in ((9, 8), (5, 5), (33, 33), (4, 300), (300, 4)):
        x = torch.randn(2, 3, *size, dtype=dtype)
        if values == "equal":
            x = x.sign()
        if values == "not finite":
            x[torch.rand_like(x) < 0.1], x[torch.rand_like(x) < 0.4], x[0, 0] = torch.nan, -torch.inf, -torch.inf
        if not native.supports_max_pool(x, window):  # type: ignore[arg-type]
            continue
        ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y, expected = native.max_pool(ours, window), F.max_pool2d(theirs, *window)  # type: ignore[arg-type]
        grad = torch.randn_like(y)
        y.backward(grad)
        expected.backward(grad)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=0, equal_nan=True)
        with torch.no_grad():  # which stores no places
            y = native.max_pool(x, window)  # type: ignore[arg-type]
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@needs_kernels
def test_the_kernel_has_second_derivatives() -> None:
    x = torch.randn(1, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: native.max_pool(x, WINDOWS[1]), x)


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
