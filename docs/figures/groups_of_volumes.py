"""Plot what every named group of three dimensions does to a volume: docs/images/groups3d.png.

python docs/figures/groups_of_volumes.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from mpl_toolkits.mplot3d.art3d import Line3DCollection, Poly3DCollection

from sepgroupy.groups import as_group, group_names

FILE = Path(__file__).resolve().parents[1] / "images" / "groups3d.png"
FLAG = np.array([[1.0, 0.22, 0.1], [1.0, 0.78, 0.1], [1.0, 0.62, 0.42]])  # on the face z = 1 of a cube, in (z, y, x)
COLOURS = {1: "#1f6feb", -1: "#e5734a"}


def draw(axes: Any, name: str) -> None:
    """Draw a cube and where the elements of a group move a triangle on one of its faces."""
    corners = np.array([[a, b, c] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1)])
    edges = [[p, q] for i, p in enumerate(corners) for q in corners[i:] if np.abs(p - q).sum() == 2]
    axes.add_collection3d(Line3DCollection([np.array(e)[:, ::-1] for e in edges], colors="0.75", linewidths=0.8))
    group = as_group(name, 3)
    for index, matrix in enumerate(group.arrays):
        triangle = (FLAG @ matrix.T)[:, ::-1]  # plotted as (x, y, z)
        colour = COLOURS[round(np.linalg.det(matrix))]
        edge = "black" if index == 0 else colour
        axes.add_collection3d(Poly3DCollection([triangle], facecolors=colour, edgecolors=edge, alpha=0.85))
    axes.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    axes.set_box_aspect((1, 1, 1), zoom=1.02)
    axes.view_init(elev=24, azim=32)
    axes.set_axis_off()
    axes.set_title(f"{name}, {group.order}", fontsize=11, y=1.0)


def main() -> None:
    """Draw all groups."""
    names = group_names(3)
    figure = plt.figure(figsize=(10.5, 6.6))
    for index, name in enumerate(names, start=1):
        draw(figure.add_subplot(3, 6, index, projection="3d"), name)
    figure.subplots_adjust(0.01, 0.0, 0.99, 0.95, 0.02, 0.12)
    FILE.parent.mkdir(exist_ok=True)
    figure.savefig(FILE, dpi=110)


if __name__ == "__main__":
    main()
