"""Exposure of the views evened out, by what they show of the same places."""

from __future__ import annotations

import torch
from torch import Tensor

from ..structures import Views
from .bake import LEAST_WEIGHT, SurfacePoints, look_up
from .visibility import ViewMaps

SAMPLE_TEXELS = 20_000  # places compared; enough for 3 numbers per view
STAY = 0.003  # pull of every gain towards 1: as of every place at colour 0.05; dark ones say little
OUTLIER = 0.1  # sRGB; places where a view is off by more count less
ROUNDS = 3  # of finding what is off
GAIN_RANGE = (0.5, 2.0)  # beyond, it is not exposure


def view_gains(
    points: SurfacePoints,
    views: Views,
    maps: list[ViewMaps],
    generator: torch.Generator,
) -> Tensor:  # [V, 3]
    """Gains of each view's channels that bring views of the same places together.

    Least squares over gains g of sum_s sum_v w_vs (g_v c_vs - m_s)^2 with m_s the mean of what the
    views make of place s, a weak pull to 1, and the mean gain held at 1: pictures that agree stay
    as they are.

    Args:
        points: Places on the surface; a sample of them is compared.
        views: The pictures.
        maps: What each view sees.
        generator: Picks the sample.
    """
    count = len(points.positions)
    chosen = torch.randperm(count, generator=generator)[:SAMPLE_TEXELS]
    some = points[chosen.to(points.positions.device)]
    pairs = [look_up(some, views.cameras[v], views.images[v], m) for v, m in enumerate(maps)]
    weights = torch.stack([w for _, w in pairs]).double().cpu()  # [V, S]
    colours = torch.stack([c for c, _ in pairs]).double().cpu()
    colours = colours / weights.clamp_min(1e-12)[..., None]
    shared = (weights > LEAST_WEIGHT).sum(dim=0) > 1
    weights, colours = weights[:, shared], colours[:, shared]
    gains = torch.ones(len(views), 3, dtype=torch.float64)
    if not bool(shared.any()):
        return gains.to(views.images)
    trusted = weights
    for _ in range(ROUNDS):
        gains = torch.stack([_solve(trusted, colours[..., c]) for c in range(3)], dim=-1)
        seen = colours * gains[:, None]
        mean = (trusted[..., None] * seen).sum(0) / trusted.sum(0).clamp_min(1e-12)[:, None]
        off = (seen - mean).abs().amax(dim=-1)
        trusted = weights * (OUTLIER / off.clamp_min(OUTLIER))
    return gains.clamp(*GAIN_RANGE).to(views.images)


def _solve(weights: Tensor, colours: Tensor) -> Tensor:  # [V, S], [V, S] -> [V]
    count = len(weights)
    weighted = weights * colours
    matrix = torch.diag((weighted * colours).sum(-1))
    matrix -= (weighted / weights.sum(0).clamp_min(1e-12)) @ weighted.T
    stay = STAY * float(weights.sum(-1).mean())
    matrix += stay * torch.eye(count, dtype=matrix.dtype)
    # the constraint of mean gain 1 by a multiplier
    system = torch.ones(count + 1, count + 1, dtype=matrix.dtype)
    system[:count, :count] = matrix
    system[count, count] = 0
    right = torch.full((count + 1,), stay, dtype=matrix.dtype)
    right[count] = count
    return torch.linalg.solve(system, right)[:count]
