"""Places of samples along rays in `kernels/ray_samples`; on the CPU.

Same contract as the torch oracle (`torch_sampling.place_samples_torch`).
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..kernels import ray_samples
from ..kernels.warp_engine import WarpEngine, contiguous
from .torch_sampling import Samples


@torch.no_grad()
def place_samples_warp(
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    jitter: Tensor,  # [R]
    known: Tensor,  # [2, G, G, G]
    centre: Tensor,  # [3]
    half_size: float,
    band: float,
    count: int,
    surface_share: float,
) -> Samples:
    """See `sampling.place_samples`."""
    rays = len(origins)
    distances, deltas = (origins.new_empty(rays, count) for _ in range(2))
    inside = torch.empty(rays, count, dtype=torch.bool)
    _engine().share(
        ray_samples.place_on_rays,
        [count, known.shape[1], *(contiguous(t) for t in (origins, directions, jitter)),
         contiguous(known.permute(1, 2, 3, 0)), contiguous(centre), float(half_size), float(band),
         float(surface_share), distances, deltas, inside],
        rays,
    )  # fmt: skip
    return Samples(distances, deltas, inside)


@cache
def _engine() -> WarpEngine:
    return WarpEngine(torch.device("cpu"), (ray_samples,))
