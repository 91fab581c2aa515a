"""Draw docs/images/fourier-blocks.png: a convolution over a group as a matrix, before and after the Fourier transform.

``python docs/figures/fourier_blocks.py`` needs ``sepgroupy[train]``. The values of the filter are random.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

from sepgroupy import as_group
from sepgroupy.groups import fourier_basis

OUTPUT = Path(__file__).parents[1] / "images" / "fourier-blocks.png"
GROUPS = (("p4", "rotations of the square"), ("p4m", "and its reflections"), ("O", "rotations of the cube"))


def main() -> None:
    """Draw a column for each group."""
    figure, axes = plt.subplots(2, len(GROUPS), figsize=(9, 6.2), layout="constrained")
    random = np.random.default_rng(0)
    for column, (name, meaning) in zip(axes.T, GROUPS, strict=True):
        group = as_group(name)
        basis = fourier_basis(group)
        filters = random.uniform(0.3, 1, group.order) * random.choice((-1, 1), group.order)
        before = filters[group.left_quotients]  # row g, column h: p[g⁻¹h]
        after = basis.matrix @ before @ basis.matrix.T
        for axis, matrix, count in zip(column, (before, after), (group.order**2, basis.multiplications), strict=True):
            drawn = np.where(np.abs(matrix) < 1e-9, np.nan, matrix)
            axis.imshow(drawn, cmap="PuOr", vmin=-1.5, vmax=1.5)
            axis.set(xticks=[], yticks=[], xlabel=f"{count} multiplications")
            for block in basis.blocks if axis is column[1] else ():
                for copy in range(block.copies):
                    corner = block.start + copy * block.size - 0.5
                    axis.add_patch(plt.Rectangle((corner, corner), block.size, block.size, fill=False, lw=1))
        column[0].set_title(f"{name}: {meaning}", fontsize=11)
    for axis, label in zip(axes[:, 0], ("group elements", "Fourier domain"), strict=True):
        axis.set_ylabel(label)
    figure.savefig(OUTPUT, dpi=110)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
