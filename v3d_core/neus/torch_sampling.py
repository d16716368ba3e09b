"""Places of samples along rays in plain torch: the definition that all engines are checked against."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .trilinear import trilinear

STEPS_ALONG = 96  # places on a ray at which the last known surface is looked up
SHARPNESS = 4.0  # of that surface, in steps: it counts over about one step either side


class Samples(NamedTuple):
    """Sections of rays; a section is described at its middle.

    Attributes:
        distances: Of the middles from the origin, world units. [R, S]
        deltas: Lengths of the sections, world units. [R, S]
        inside: Whether a section lies where a surface may be. [R, S] bool
    """

    distances: Tensor
    deltas: Tensor
    inside: Tensor


# (origins, directions, jitter, known, centre, half_size, band, count, surface_share) as
# `sampling.place_samples` describes them
Sampler = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, float, int, float], Samples]


def place_samples_torch(
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    jitter: Tensor,  # [R] in [0, 1)
    known: Tensor,  # [2, G, G, G]
    centre: Tensor,  # [3]
    half_size: float,
    band: float,
    count: int,
    surface_share: float,
) -> Samples:
    """See `sampling.place_samples`."""
    unit_origins = (origins - centre) / half_size
    unit_directions = directions / half_size
    safe = torch.where(unit_directions.abs() < 1e-9, 1e-9, unit_directions)
    first, second = (-1 - unit_origins) / safe, (1 - unit_origins) / safe
    near = torch.minimum(first, second).amax(-1).clamp(min=0)
    far = torch.maximum(first, second).amin(-1)
    length = (far - near).clamp(min=0)
    share = (torch.arange(STEPS_ALONG, device=origins.device, dtype=origins.dtype) + 0.5) / (
        STEPS_ALONG
    )
    t = near[:, None] + length[:, None] * share
    places = unit_origins[:, None] + unit_directions[:, None] * t[..., None]
    values = trilinear(known, places)  # [2, R, K]
    in_band = (values[1] < band) & (length > 0)[:, None]
    even = in_band.to(t.dtype)
    density = even / even.sum(-1, keepdim=True).clamp(min=1)
    step = length[:, None] / STEPS_ALONG
    density = density * (1 - surface_share) + surface_share * _surface_density(
        values[0], in_band, step, density
    )
    cumulative = F.pad(density.cumsum(-1), (1, 0))  # [R, K + 1]
    total = cumulative[:, -1:]
    wanted = torch.arange(count + 1, device=t.device, dtype=t.dtype) - jitter[:, None]
    wanted = (wanted / count).clamp(0, 1) * total
    wanted[:, -1:] = total
    bins = (torch.searchsorted(cumulative, wanted, right=True) - 1).clamp(0, STEPS_ALONG - 1)
    start = cumulative.gather(1, bins)
    part = ((wanted - start) / density.gather(1, bins).clamp(min=1e-12)).clamp(0, 1)
    edges = (bins + part) / STEPS_ALONG  # share of the way from near to far
    # what lies outside the band between two edges does not belong to the section
    outside = F.pad((~in_band).to(t.dtype).cumsum(-1), (1, 0)) / STEPS_ALONG
    skipped = outside.gather(1, bins) + (~in_band).gather(1, bins) * part / STEPS_ALONG
    deltas = (edges[:, 1:] - edges[:, :-1]) - (skipped[:, 1:] - skipped[:, :-1])
    # half of a section's length lies before its middle, which therefore lies in the band
    within = even.cumsum(-1) / STEPS_ALONG
    halfway = ((edges - skipped)[:, :-1] + (edges - skipped)[:, 1:]) / 2
    at = torch.searchsorted(within, halfway.contiguous()).clamp(0, STEPS_ALONG - 1)
    middles = (at + 1) / STEPS_ALONG - (within.gather(1, at) - halfway)
    inside = in_band.gather(1, at) & (deltas > 0)
    return Samples(
        near[:, None] + length[:, None] * middles, (length[:, None] * deltas).clamp(min=0), inside
    )


def _surface_density(
    values: Tensor,  # [R, K]
    in_band: Tensor,  # [R, K] bool
    step: Tensor,  # [R, 1]
    even: Tensor,  # [R, K]
) -> Tensor:  # [R, K], sums to 1, or to 0 where a ray meets no band
    """NeuS's weights of steps along rays, spread over their neighbours; even where there are none."""
    sharp = torch.sigmoid(values * (SHARPNESS / step.clamp(min=1e-9)))
    after = F.pad(sharp[:, 1:], (0, 1), value=1.0)
    opacity = ((sharp - after) / sharp.clamp(min=1e-6)).clamp(0, 1) * in_band
    clear = torch.exp(F.pad(torch.log1p(-opacity.clamp(max=1 - 1e-6)).cumsum(-1)[:, :-1], (1, 0)))
    weights = opacity * clear
    wide = F.avg_pool1d(F.pad(weights[:, None], (2, 2)), 5, stride=1)[:, 0] * in_band
    total = wide.sum(-1, keepdim=True)
    # a ray that grazes the surface has little weight anywhere
    return torch.where(total > 0.05, wide / total.clamp(min=1e-6), even)
