from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sepgroupy.data import RandomAffine, RandomCropFlip, smooth_field
from sepgroupy.errors import ArgumentError


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def slow(images, padding, hflip, generator):
    """One image after the other, with numpy, the random numbers in the documented order."""
    tops, lefts = torch.randint(2 * padding + 1, (2, len(images)), generator=generator).tolist()
    flips = (torch.rand(len(images), generator=generator) < 0.5).tolist()
    results = []
    for image, top, left, flip in zip(images.numpy(), tops, lefts, flips, strict=True):
        _, height, width = image.shape
        padded = np.pad(image, [(0, 0), (padding, padding), (padding, padding)])
        cropped = padded[:, top : top + height, left : left + width]
        results.append(cropped[:, :, ::-1] if flip and hflip else cropped)
    return torch.from_numpy(np.stack(results))


@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("shape", [(50, 3, 32, 32), (1, 1, 5, 8)])
def test_it_is_the_slow_definition(padding, hflip, shape):
    images = torch.randn(shape, generator=seeded(0))
    before = images.clone()
    result = RandomCropFlip(padding, hflip)(images, seeded(1))
    assert torch.equal(result, slow(images, padding, hflip, seeded(1)))
    assert torch.equal(images, before)
    assert result.is_contiguous()


def test_all_crops_and_flips_are_as_frequent():
    # One bright pixel in the middle tells where each image went; its left neighbour tells whether it is flipped.
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16, 16], image[..., 16, 15] = 2, 1
    count = 81 * 100
    moved = RandomCropFlip()(image.expand(count, 1, 32, 32), seeded(0))
    position = (moved == 2).flatten(1).int().argmax(1)
    flipped = (moved == 1).flatten(1).int().argmax(1) > position
    column = torch.where(flipped, 31 - position % 32, position % 32)
    offset = (20 - position // 32) * 9 + 20 - column
    frequencies = torch.bincount(offset, minlength=81)
    assert len(frequencies) == 81
    assert ((frequencies - 100) ** 2 / 100).sum() < 130  # chi-square of 80 degrees of freedom: 1 in 3,000
    assert abs(flipped.float().mean() - 0.5) < 4 * 0.5 / count**0.5


def test_no_crop_and_no_flip_change_nothing():
    images = torch.randn(9, 3, 32, 32, generator=seeded(0))
    assert torch.equal(RandomCropFlip(padding=0, hflip=False)(images), images)


def test_the_generator_decides():
    images = torch.randn(20, 3, 32, 32, generator=seeded(0))
    augment = RandomCropFlip()
    assert torch.equal(augment(images, seeded(3)), augment(images, seeded(3)))
    assert not torch.equal(augment(images, seeded(3)), augment(images, seeded(4)))
    torch.manual_seed(3)
    assert torch.equal(augment(images), augment(images, seeded(3)))


def test_any_layout_and_type():
    images = torch.randn(20, 3, 32, 32, generator=seeded(0)).half()
    last = images.to(memory_format=torch.channels_last)
    assert torch.equal(RandomCropFlip()(images, seeded(1)), RandomCropFlip()(last, seeded(1)))


def test_it_stays_on_the_device_of_the_images():
    images = torch.empty(20, 3, 32, 32, device="meta")  # refuses to be mixed with any other
    assert RandomCropFlip()(images, seeded(1)).device.type == "meta"


def test_bad_arguments_are_named():
    with pytest.raises(ArgumentError, match=r"padding \(=-1\)"):
        RandomCropFlip(padding=-1)
    with pytest.raises(ArgumentError, match=r"\(3, 32, 32\)"):
        RandomCropFlip()(torch.zeros(3, 32, 32))


@pytest.mark.parametrize("shape", [(6, 3, 32, 32), (5, 1, 28, 28), (4, 1, 20, 30)])
def test_affine_is_torchvisions_image_by_image(shape):
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    # Smooth and dark at the edges: torchvision's bilinear and our bicubic interpolation differ by little.
    images = torch.nn.functional.interpolate(
        torch.rand(*shape[:2], 3, 3, generator=seeded(0)), shape[2:], mode="bicubic"
    )
    images *= torch.hann_window(shape[2])[:, None] * torch.hann_window(shape[3])
    rotation, shift, scale = 170.0, 0.2, 0.3
    result = RandomAffine(rotation, shift, scale)(images, seeded(1))
    angles, factors, down, right = 2 * torch.rand(4, shape[0], generator=seeded(1)) - 1  # in the documented order
    for i, image in enumerate(images):
        expected = functional.affine(
            image[None],
            angle=-rotation * float(angles[i]),  # clockwise there
            translate=[shift * float(right[i]) * shape[3], shift * float(down[i]) * shape[2]],
            scale=1 + scale * float(factors[i]),
            shear=[0.0, 0.0],
            interpolation=functional.InterpolationMode.BILINEAR,
        )
        torch.testing.assert_close(result[i : i + 1], expected, atol=0.06, rtol=0)
        assert (result[i] - expected[0]).abs().mean() < 0.02 * expected.abs().max()


@pytest.mark.parametrize("shape", [(4, 1, 40, 40), (3, 1, 24, 36)])
def test_a_deformed_ramp_tells_where_each_pixel_was_read(shape):
    # Interpolation of a value that grows by 1 with each row (or column) returns the row (or column) itself: exactly
    # if it is bilinear, within 0.05 by the cubic of grid_sample.
    count, _, height, width = shape
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    rotation, shift, scale, elastic = 30.0, 0.05, 0.1, 0.02
    augment = RandomAffine(rotation, shift, scale, elastic)
    read = torch.stack([augment(ramp.expand(shape), seeded(2))[:, 0] for ramp in (rows, columns)], 1).double()
    generator = seeded(2)
    angles, factors, *shifts = (2 * torch.rand(4, count, generator=generator) - 1).double()  # in the documented order
    size = torch.tensor([height, width]).double()
    for i, field in enumerate(smooth_field(count, (height, width), generator).double()):
        angle, factor = math.radians(rotation) * angles[i], 1 + scale * factors[i]
        place = torch.stack([rows, columns]).double() - (size[:, None, None] - 1) / 2
        place = place - shift * torch.stack([shifts[0][i], shifts[1][i]])[:, None, None] * size[:, None, None]
        back = torch.stack([  # by the opposite angle; counter-clockwise is from the columns' axis to rows that decrease
            angle.cos() * place[0] + angle.sin() * place[1], angle.cos() * place[1] - angle.sin() * place[0]
        ])  # fmt: skip
        expected = back / factor + (size[:, None, None] - 1) / 2 + elastic * size[:, None, None] * field
        inside = ((expected >= 1) & (expected <= size[:, None, None] - 2)).all(0)
        assert inside.sum() > 0.5 * inside.numel()
        torch.testing.assert_close(read[i][:, inside], expected[:, inside], atol=0.05, rtol=0)


@pytest.mark.parametrize("size", [(28, 20), (9, 8, 12)])
def test_a_smooth_field_is_standard_normal_at_its_nodes(size):
    fields = smooth_field(3000, size, seeded(0))
    assert fields.shape == (3000, len(size), *size)
    corner = fields[(..., *[0] * len(size))]
    assert abs(corner.mean()) < 4 / 6000**0.5
    assert corner.std() == pytest.approx(1, abs=4 / 12000**0.5)
    steps = fields.diff(dim=-1).abs().amax(dim=tuple(range(1, fields.ndim)))
    assert steps.mean() < 8 * 4 / (size[-1] - 1)  # a few units from node to node, spread over the pixels between


def test_affine_draws_are_uniform_and_each_image_has_its_own():
    # A bright pixel right of the centre tells how far it went and by which angle.
    images = torch.zeros(4000, 1, 65, 65)
    images[..., 31:34, 51:54] = 1  # around 20 pixels to the right
    moved = RandomAffine(rotation=90, shift=0.0, scale=0.25)(images, seeded(0)).flatten(1)
    y, x = (torch.cartesian_prod(torch.arange(65.0), torch.arange(65.0)) - 32).T
    centre = torch.stack([(moved * y).sum(1), (moved * x).sum(1)]) / moved.sum(1)
    angle, radius = torch.rad2deg(torch.atan2(-centre[0], centre[1])), centre.square().sum(0).sqrt() / 20
    for values, low, high in ((angle, -90, 90), (radius, 0.75, 1.25)):
        parts = torch.histc(values, 10, low, high)
        assert parts.sum() > 3980  # of 4,000: a few lie a rounding beyond
        assert ((parts - 400) ** 2 / 400).sum() < 35  # chi-square of 9 degrees of freedom
    assert abs(torch.corrcoef(torch.stack([angle, radius]))[0, 1]) < 0.06


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": -1.0}, "rotation"),
        ({"shift": float("nan")}, "shift"),
        ({"scale": 1.0}, "scale"),
        ({"elastic": -0.1}, "elastic"),
    ],
)
def test_affine_refuses_what_cannot_be(options, message):
    with pytest.raises(ArgumentError, match=rf"{message} \(={options[message]}\)"):
        RandomAffine(**options)
    with pytest.raises(ArgumentError, match="floating point"):
        RandomAffine()(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
