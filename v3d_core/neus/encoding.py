"""Multi-resolution hash grid: features of points, and the way from their gradient to the points'."""

from __future__ import annotations

from torch import Tensor

from .engines import HASH_GRIDS
from .grid import Encoded, HashGrid


def encode(
    points: Tensor,  # [N, 3]
    table: Tensor,  # [entries, 2]
    grid: HashGrid,
    *,
    jacobian: bool = True,
) -> Encoded:
    """Trilinear interpolation of a table's entries in every level (Mueller et al. 2022).

    Features and `pull_back` are differentiable in the table, to first order; the points get no
    gradient, `pull_back` is how to form one. So a surface normal costs no second derivative:
    write d sdf / d features by hand, pull it back, and let autograd differentiate that.

    Args:
        points: In the unit cube; what is outside is clamped. [N, 3]
        table: Entries of all levels. [entries, 2]
        grid: Their layout.
        jacobian: Whether `pull_back` will be called.
    """
    if table.shape != (grid.entries, 2):
        raise ValueError(f"encode: table {list(table.shape)}, but {grid} has {grid.entries} rows")
    if points.ndim != 2 or points.shape[1] != 3 or points.device != table.device:
        raise ValueError(
            f"encode: expected points [N, 3] on {table.device}, "
            f"got {list(points.shape)} on {points.device}"
        )
    return HASH_GRIDS.choose(table.device, table.dtype).run(points, table, grid, jacobian)
