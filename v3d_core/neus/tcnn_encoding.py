"""tiny-cuda-nn's hash grid behind our contract, for who has built it (it is not on PyPI).

Never run with the real package: the tests use a stand-in that follows its documentation and its
source (bindings/torch/tinycudann/modules.py, encodings/grid.h at 03a659d). Slower than it could be,
because the table is laid out anew at every call, and not capturable as a CUDA graph.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from .. import backends
from .grid import FEATURES, Encoded, HashGrid, no_pull_back
from .torch_encoding import encode_torch


def encode_tinycudann(
    points: Tensor,  # [N, 3]
    table: Tensor,  # [entries, 2]
    grid: HashGrid,
    jacobian: bool = True,
) -> Encoded:
    """Interpolation in every level by tiny-cuda-nn; see `torch_encoding.encode_torch`.

    In dense levels tiny-cuda-nn has no vertices for the last half cell of the cube and wraps
    around, so points there go through the oracle.
    """
    module, rows, limit = _module(grid, table.device)
    points = points.detach()
    border = (points > limit).any(-1).nonzero()[:, 0]
    inside = (points >= 0).to(table.dtype)
    place = points.clamp(0, limit).requires_grad_(jacobian)
    parameters = {"params": table[rows].flatten()}
    features = torch.func.functional_call(module, parameters, (place,))
    at_border = encode_torch(points[border], table, grid, jacobian)
    result = features.index_copy(0, border, at_border.features)
    if not jacobian:
        return Encoded(result, no_pull_back)

    def pull_back(gradient: Tensor) -> Tensor:
        (pulled,) = torch.autograd.grad(features, place, gradient, create_graph=True)
        return (pulled * inside).index_copy(0, border, at_border.pull_back(gradient[border]))

    return Encoded(result, pull_back)


@cache
@torch.inference_mode(False)  # kept for later fits, whose backward pass needs the rows
def _module(grid: HashGrid, device: torch.device) -> tuple[torch.nn.Module, Tensor, float]:
    """The encoding, which of our rows each of its entries is, and up to where it is defined."""
    config = {
        "otype": "HashGrid",
        "n_levels": grid.levels,
        "n_features_per_level": FEATURES,
        "log2_hashmap_size": grid.log2_entries,
        "base_resolution": grid.base,
        "per_level_scale": grid.growth,
        "interpolation": "Linear",
    }
    module = backends.load("tinycudann").Encoding(3, config, dtype=torch.float32).to(device)
    rows, limit = [], 1.0
    for level, side in enumerate(grid.resolutions):
        scale, theirs = grid.scales[level], side - 1
        if not grid.dense[level]:
            if theirs**3 <= 2**grid.log2_entries:
                raise ValueError(f"tiny-cuda-nn has a dense level where {grid} hashes")
            rows.append(grid.offsets[level] + torch.arange(grid.sizes[level]))
            continue
        cube = torch.arange(side**3).view(side, side, side)[:theirs, :theirs, :theirs].flatten()
        padding = -len(cube) % 8  # their levels' sizes are multiples of 8
        rows.append(grid.offsets[level] + torch.nn.functional.pad(cube, (0, padding)))
        limit = min(limit, math.nextafter((theirs - 1.501) / scale, 0))
    entries = torch.cat(rows)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if parameters != FEATURES * len(entries):
        raise ValueError(f"tiny-cuda-nn has {parameters} parameters for {grid}")
    return module, entries.to(device), limit
