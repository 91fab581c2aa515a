"""Draw docs/images/rotating-maps.gif: feature maps of two networks while the image rotates.

``python docs/figures/rotating_maps.py`` needs ``sepgroupy[train]``. Image: a test digit; networks: Z2CNN and gc-P4CNN
with the weights of the package, behind their second ReLU.
"""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from sepgroupy import build_model
from sepgroupy.data import rotate
from sepgroupy.paper import load_digits

OUTPUT = Path(__file__).parents[1] / "images" / "rotating-maps.gif"
SIZE, TILE, IMAGE = (800, 366), 116, 244
INK, FAINT, GROUND = (28, 28, 30), (93, 93, 99), (255, 255, 255)
FRAMES = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167))  # blue, orange, green, purple of Okabe and Ito
STEPS = 10  # frames of a rotation by 90°
MOVE, HOLD = 70, 1300  # ms


def font(size: int) -> ImageFont.FreeTypeFont:
    """Return the font that comes with matplotlib."""
    return ImageFont.truetype(str(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


@torch.no_grad()
def feature_maps(model: nn.Module, image: Tensor) -> Tensor:
    """Return what is behind the second ReLU, (C, |H|, Y, X); |H| is 1 in a plain network."""
    x = image
    for index in (1, 2):
        x = torch.relu(model.get_submodule(f"bn{index}")(model.get_submodule(f"conv{index}")(x)))
    return x[0] if x.ndim == 5 else x[0].unsqueeze(1)


def rotated(maps: Tensor) -> Tensor:
    """Return the maps as they would be if they rotated with the image, by 90°: each also moves on by one place."""
    return torch.rot90(maps, 1, (-2, -1)).roll(1, 1)


def difference(model: nn.Module, image: Tensor) -> float:
    """Return ``|f(rotated image) - rotated f(image)| / |f(image)|``."""
    expected = rotated(feature_maps(model, image))
    return float((feature_maps(model, torch.rot90(image, 1, (-2, -1))) - expected).norm() / expected.norm())


def paint(values: Tensor, size: int, colours: str, top: float) -> Image.Image:
    """Return a feature map as an image."""
    pixels = (mpl.colormaps[colours](np.clip(values.numpy() / top, 0, 1))[..., :3] * 255).round().astype(np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.NEAREST)


def draw(image: Tensor, angle: float, rows: list[tuple[str, Tensor, float, int | None]]) -> Image.Image:
    """Draw one frame; a row is its title, four maps, the error under 90° and by how many places its maps moved."""
    canvas = Image.new("RGB", SIZE, GROUND)
    pen = ImageDraw.Draw(canvas)
    canvas.paste(paint(image[0, 0], IMAGE, "gray", 1.0), (16, 62))
    pen.text((16, 32), f"image, rotated by {round(angle) % 360}°", INK, font(17))
    for row, (title, maps, error, moved) in enumerate(rows):
        top = 32 + 172 * row
        pen.text((288, top), title, INK, font(17))
        for place in range(4):
            left = 288 + place * (TILE + 8)
            canvas.paste(paint(maps[place], TILE, "viridis", float(maps.max())), (left, top + 26))
            if moved is not None:
                box = (left, top + 26, left + TILE - 1, top + 25 + TILE)
                pen.rectangle(box, outline=FRAMES[(place - moved) % 4], width=5)
        number = f"{error:.2f}" if error > 1e-3 else f"{error:.0e}"
        pen.text((288, top + 28 + TILE), f"by another 90°: difference from the rotated maps {number}", FAINT, font(13))
    return canvas


def frames() -> tuple[list[Image.Image], list[int]]:
    """Return the frames and how long each is shown."""
    test = load_digits(rotated=False).test
    upright = test.images[test.labels == 4][:1]
    plain, group = (build_model(name, weights="rotated-digits") for name in ("z2cnn", "gc-p4cnn"))
    first = [feature_maps(model, upright) for model in (plain, group)]
    channels = first[0][:, 0].flatten(1).std(1).argsort(descending=True)[:4]
    channel = int(first[1].flatten(2).std(2).mean(1).argmax())
    pages, times = [], []
    for step in range(4 * STEPS):
        angle = 90 * step / STEPS
        image = rotate(upright, math.radians(angle))
        moved = round(angle / 90) % 4
        rows = [
            ("ordinary convolutions: four feature maps", feature_maps(plain, image)[channels, 0], plain, None),
            ("group convolutions: one map, four orientations", feature_maps(group, image)[channel], group, moved),
        ]
        compared = [(title, maps, difference(model, image), by) for title, maps, model, by in rows]
        pages.append(draw(image, angle, compared))
        times.append(HOLD if step % STEPS == 0 else MOVE)
    return pages, times


def main() -> None:
    """Write the animation."""
    pages, times = frames()
    both = Image.new("RGB", (SIZE[0], 2 * SIZE[1]))
    both.paste(pages[0])
    both.paste(pages[STEPS // 2], (0, SIZE[1]))
    palette = both.quantize(192, Image.Quantize.MAXCOVERAGE)
    small = [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]
    small[0].save(OUTPUT, save_all=True, append_images=small[1:], duration=times, loop=0, optimize=True)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size:,} bytes, {len(pages)} frames")


if __name__ == "__main__":
    main()
