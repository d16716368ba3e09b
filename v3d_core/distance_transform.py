"""Exact Euclidean distances on a grid of cells, on the CPU and on CUDA."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def distance_to_nearest(cells: Tensor) -> Tensor:  # [R, R, R] bool -> [R, R, R]
    """Euclidean distance from every cell's centre to that of the nearest one given, in cells.

    On CUDA by minima over parabolas axis by axis (Felzenszwalb and Huttenlocher 2012, whose lower
    envelope a GPU does not need); on the CPU by SciPy, which is faster there.
    """
    if not cells.is_cuda:
        from scipy import ndimage

        distance = ndimage.distance_transform_edt(~cells.cpu().numpy())
        return torch.from_numpy(np.asarray(distance, dtype=np.float32)).to(cells.device)
    return parabola_minima(cells).sqrt()


def parabola_minima(cells: Tensor) -> Tensor:  # [R, R, R] bool -> [R, R, R]
    """Squared distances to the nearest of the given cells."""
    size = len(cells)
    found = torch.where(cells, 0.0, float(3 * size**2))
    for axis in range(3):
        least = found.clone()
        for shift in range(1, size):
            near, far = found.narrow(axis, 0, size - shift), found.narrow(axis, shift, size - shift)
            for target, source in ((shift, near), (0, far)):
                part = least.narrow(axis, target, size - shift)
                torch.minimum(part, source + shift**2, out=part)
        found = least
    return found
