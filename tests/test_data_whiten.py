from __future__ import annotations

import numpy as np
import pytest
import torch

from sepgroupy.data import ZCA, contrast_normalize
from sepgroupy.errors import ArgumentError

SHAPE = (2, 3, 4)  # 24 values an image


def make(count, seed=0, offset=0.0):
    """Images whose values are correlated, with deviations that spread over two decades."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(24, 24, generator=torch.Generator().manual_seed(9)) * torch.logspace(0, -2, 24)
    return (torch.randn(count, 24, generator=generator) @ mixing.T + offset).view(count, *SHAPE)


def definition(train, images):
    """Apply the formula of the docstring word for word, in float64, also where nothing varies."""
    train, images = (x.flatten(1).double().numpy() for x in (train, images))
    mean = train.mean(0)
    _, singular, rows = np.linalg.svd(train - mean)
    deviations = np.zeros(train.shape[1])
    deviations[: len(singular)] = singular / np.sqrt(len(train) - 1)
    matrix = rows.T @ np.diag(1 / (deviations + 1e-5)) @ rows
    return torch.from_numpy((images - mean) @ matrix).view(-1, *SHAPE), matrix


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_contrast_normalisation_is_the_definition(dtype):
    images = torch.randint(256, (5000, *SHAPE), generator=torch.Generator().manual_seed(0)).to(dtype)
    result = contrast_normalize(images)
    assert result.dtype == torch.float32
    for image, normalized in zip(images[[0, 17, 4999]].double().numpy(), result[[0, 17, 4999]], strict=True):
        expected = (image - image.mean()) / image.std(ddof=1)
        np.testing.assert_allclose(normalized, expected, atol=3e-7)


def test_images_without_contrast_are_only_centred():
    flat = torch.full((1, *SHAPE), 77, dtype=torch.uint8)
    assert torch.equal(contrast_normalize(flat), torch.zeros(1, *SHAPE))
    faint = 1e-9 * torch.linspace(-1, 1, 24, dtype=torch.float64).view(1, *SHAPE)
    torch.testing.assert_close(contrast_normalize(3 + faint).double(), faint, atol=1e-15, rtol=0)
    assert contrast_normalize(100 * faint).std() == pytest.approx(1)


def test_contrast_normalisation_accepts_any_layout():
    images = make(6).to(memory_format=torch.channels_last)
    assert torch.equal(contrast_normalize(images), contrast_normalize(images.contiguous()))


@pytest.mark.parametrize("count", [25, 300, 5000])
@pytest.mark.parametrize(("offset", "rounding"), [(0.0, 1e-6), (1000.0, 1e-4)])
def test_zca_is_the_definition(count, offset, rounding):
    train, test = make(count, offset=offset), make(50, seed=1, offset=offset)
    zca = ZCA.fit(train)
    for images in (train, test):
        expected, matrix = definition(train, images)
        torch.testing.assert_close(zca(images).double(), expected, atol=rounding * np.linalg.norm(matrix), rtol=0)
    np.testing.assert_allclose(zca.matrix, matrix, atol=1e-6 * np.abs(matrix).max())


def test_whitened_training_images_have_unit_covariance_and_no_mean():
    train = make(2000)
    whitened = ZCA.fit(train)(train).flatten(1).double()
    assert whitened.mean(0).abs().max() < 1e-3
    torch.testing.assert_close(torch.cov(whitened.T), torch.eye(24).double(), atol=0.02, rtol=0)


def test_the_constant_image_is_no_direction_after_contrast_normalisation():
    train, test = contrast_normalize(make(500)), contrast_normalize(make(50, seed=1))
    zca = ZCA.fit(train)
    assert zca.matrix.sum(1).abs().max() < 1e-3  # the formula alone would give 1e5
    covariance = torch.cov(zca(train).flatten(1).T)
    others = torch.eye(24) - 1 / 24
    torch.testing.assert_close(covariance, others, atol=0.02, rtol=0)
    for images in (train, test):  # the formula sees the same, but for the rounding that it multiplies by 1e5
        expected, _ = definition(train, images)
        torch.testing.assert_close(zca(images).double(), expected, atol=1e-2, rtol=0)


@pytest.mark.parametrize("count", [2, 10, 24])
def test_fewer_images_than_directions(count):
    train, test = make(count), make(50, seed=1)
    zca = ZCA.fit(train)
    expected, _ = definition(train, train)
    torch.testing.assert_close(zca(train).double(), expected, atol=5e-3, rtol=0)
    axes = torch.linalg.svd((train - train.mean(0)).flatten(1), full_matrices=False)[2][: count - 1]
    seen = axes.T @ axes
    whitened = zca(test).flatten(1)
    torch.testing.assert_close(whitened @ seen, whitened, atol=1e-3, rtol=1e-3)


def test_images_that_do_not_vary_become_zero():
    same = make(1).expand(30, *SHAPE)
    assert torch.equal(ZCA.fit(same)(same), torch.zeros(30, *SHAPE))


def test_test_images_use_the_statistics_of_the_training_images():
    train, test = make(300), make(40, seed=1)
    zca = ZCA.fit(train)
    torch.testing.assert_close(zca(test)[:1], zca(test[:1]), atol=1e-4, rtol=1e-4)
    shift = make(1, seed=2)
    expected = zca(test) + (shift.flatten() @ zca.matrix).view(SHAPE)  # not centred by a mean of its own
    torch.testing.assert_close(zca(test + shift), expected, atol=1e-2, rtol=1e-4)


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentError, match="contrast"):
        contrast_normalize(torch.zeros(3, 1, 1, 1))
    with pytest.raises(ArgumentError, match=r"shape \(N, C, Y, X\), not \(7,\)"):
        contrast_normalize(torch.zeros(7))
    with pytest.raises(ArgumentError, match="at least two"):
        ZCA.fit(make(1))
    with pytest.raises(ArgumentError, match="finite"):
        ZCA.fit(make(30) / 0)
    with pytest.raises(ArgumentError, match=r"\(2, 3, 4\).*\(5, 24\)"):
        ZCA.fit(make(30))(make(5).flatten(1))
    with pytest.raises(ArgumentError, match="square with 24 rows"):
        ZCA(torch.zeros(SHAPE), torch.zeros(24, 23))
