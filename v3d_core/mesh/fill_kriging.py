"""Colours for places that no view saw: the light from how they face, the rest by kriging.

Cameras at one height leave tops and undersides unseen, and those differ from what was seen first
of all in the light that falls on them. So colours are taken apart in the logarithm of linear
light. The light's share is linear in the normal, the first order of a Lambertian surface's light
(Ramamoorthi and Hanrahan 2001), and is found from neighbours that face different ways; what no
neighbours tell is assumed to be light from above. The rest is a Gaussian process over place and
normal, whose mean is unknown (ordinary kriging, Matheron 1963): it follows what is near and, far
from all that was seen, falls back to the object's mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..images import linear_to_srgb, srgb_to_linear
from .bake import SurfacePoints

DARKEST = 0.01  # linear; added before the logarithm, so that black has one
FACINGS = 3  # ways to face, along each axis, that do not share a cell
LEAST_SHARE = 0.02  # of the mean weight, below which a cell counts as unseen

LIGHT_CELLS = 6  # along the longest side; neighbours in them are compared for the light
LIGHT_ABOVE = 0.3  # of the logarithm per unit of the upward normal, where nothing else is known
LIGHT_RIDGE = 0.1  # of that against what neighbours tell
LEAST_TURN = 0.3  # length of the difference of two unit normals that are compared
PAINT = 0.4  # logarithm; neighbours that differ by more beyond the light differ in paint
LIGHT_ROUNDS = 8  # of reweighting

CELLS = 24  # along the longest side; each is one reading of the process
MOST_READINGS = 4000  # chosen at random among more; the solver takes their third power
RANGE = 0.15  # of the longest side, in which correlation falls to 1/e
TURN = 0.2  # ranges that a unit of difference between normals counts for
NOISE = 0.3  # variance of a fully seen cell's reading, of the process's
PLACES_AT_ONCE = 4096  # bounds the memory: 64 MB of correlations


@dataclass(frozen=True)
class _Cells:
    """Cells of space, one for each way that places in them face."""

    of: Tensor  # [T] the cell of each place
    count: int

    @staticmethod
    def around(places: Tensor, normals: Tensor, size: int) -> _Cells:  # [T, 3] in 0 to 1, [T, 3]
        space = (places * size).long().clamp(0, size - 1)
        facing = ((normals + 1) / 2 * FACINGS).long().clamp(0, FACINGS - 1)
        key = torch.zeros_like(space[:, 0])
        for part, among in ((space, size), (facing, FACINGS)):
            for axis in part.unbind(1):
                key = key * among + axis
        cell, of = key.unique(return_inverse=True)
        return _Cells(of, len(cell))

    def sums(self, values: Tensor) -> Tensor:  # [T, ...] -> [C, ...]
        return values.new_zeros(self.count, *values.shape[1:]).index_add_(0, self.of, values)

    def means(self, values: Tensor, weights: Tensor) -> Tensor:  # [T, K], [T] -> [C, K]
        return self.sums(values * weights[:, None]) / self.sums(weights).clamp_min(1e-12)[:, None]


def kriged_colours(
    colours: Tensor,  # [T, 3]
    weights: Tensor,  # [T]
    points: SurfacePoints,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:  # [T, 3]
    """Colours that places without weight may have, given those of the others.

    Args:
        colours: What was seen, sRGB in 0 to 1; of places without weight they do not matter. [T, 3]
        weights: How well it was seen; one pixel head-on is 1. [T]
        points: Where the places lie.
        tick: Called between steps.

    Returns:
        Colours in 0 to 1; those given where the weight is above 0, and if it is so nowhere.
    """
    unseen = weights <= 0
    if not bool(unseen.any()) or bool(unseen.all()):
        return colours
    low = points.positions.amin(0)
    extent = (points.positions.amax(0) - low).amax().clamp_min(1e-12)
    places, normals = (points.positions - low) / extent, points.normals
    logs = (srgb_to_linear(colours.clamp(0, 1)) + DARKEST).log()
    believed = weights.clamp(max=1.0)
    shade = normals @ light_by_normal(logs, believed, places, normals)
    tick()
    cells = _Cells.around(places, normals, CELLS)
    paint = _kriged(cells, logs - shade[:, None], believed, places, normals, tick)
    filled = linear_to_srgb((paint + shade[:, None]).exp() - DARKEST).clamp(0, 1)
    return torch.where(unseen[:, None], filled, colours)


def light_by_normal(
    logs: Tensor,  # [T, C]
    weights: Tensor,  # [T]
    places: Tensor,  # [T, 3]
    normals: Tensor,  # [T, 3]
) -> Tensor:  # [3]
    """How the logarithm of colours grows with the normal, told from neighbours.

    Least squares over pairs of neighbouring cells that face different ways, robust (Cauchy's
    weights) against pairs whose paint differs, with light from above as what is likely before.

    Args:
        logs: Logarithms of linear colours. [T, C]
        weights: How well they were seen. [T]
        places: In 0 to 1. [T, 3]
        normals: Unit vectors; +Y is up. [T, 3]
    """
    likely = logs.new_tensor([0.0, LIGHT_ABOVE, 0.0])
    cells = _Cells.around(places, normals, LIGHT_CELLS)
    weight = cells.sums(weights)
    some = weight > LEAST_SHARE * weight.mean()
    place, normal, log = (cells.means(v, weights)[some] for v in (places, normals, logs))
    weight = weight[some] / weight[some].mean()
    near = torch.cdist(place, place) < 1.2 / LIGHT_CELLS
    turned = torch.cdist(normal, normal) > LEAST_TURN
    one, other = torch.nonzero((near & turned).triu(1)).unbind(1)
    turn, change = normal[one] - normal[other], log[one] - log[other]
    fixed = torch.minimum(weight[one], weight[other])
    total = fixed.sum().clamp_min(1e-12)
    light = likely
    for _ in range(LIGHT_ROUNDS):
        error = (change - (turn @ light)[:, None]).square().mean(-1)
        weighted = (fixed / (1 + error / PAINT**2) / total)[:, None] * turn
        matrix = weighted.T @ turn + LIGHT_RIDGE * torch.eye(3).to(logs)
        right = (weighted * change.mean(-1, keepdim=True)).sum(0) + LIGHT_RIDGE * likely
        light = torch.linalg.solve(matrix, right)
    return light


def _kriged(
    cells: _Cells,
    values: Tensor,  # [T, C]
    weights: Tensor,  # [T]
    places: Tensor,  # [T, 3]
    normals: Tensor,  # [T, 3]
    tick: Callable[[], None],
) -> Tensor:  # [T, C]
    """The process's expectation in the middle of every cell that holds an unseen place."""
    weight = cells.sums(weights)
    read = torch.nonzero(weight > LEAST_SHARE * weight[weight > 0].mean())[:, 0]
    if len(read) > MOST_READINGS:
        chance = torch.randperm(len(read), generator=torch.Generator().manual_seed(0))
        read = read[chance[:MOST_READINGS].to(read.device)]
    seen_places, seen_normals, readings = (
        cells.means(v, weights)[read] for v in (places, normals, values)
    )
    noise = NOISE / (weight[read] / weight[read].mean()).clamp(max=1)
    matrix = _correlation(seen_places, seen_normals, seen_places, seen_normals) + noise.diag()
    tick()
    root = torch.linalg.cholesky(matrix)
    tick()
    ones = torch.cholesky_solve(readings.new_ones(len(read), 1), root)
    mean = (ones * readings).sum(0) / ones.sum()  # generalised least squares
    pulls = torch.cholesky_solve(readings - mean, root)
    unseen = (weights <= 0).to(values)
    wanted = torch.nonzero(cells.sums(unseen))[:, 0]
    place, normal = (cells.means(v, unseen)[wanted] for v in (places, normals))
    found = mean.expand(cells.count, -1).clone()
    for start in range(0, len(wanted), PLACES_AT_ONCE):
        some = slice(start, start + PLACES_AT_ONCE)
        tick()
        found[wanted[some]] += (
            _correlation(place[some], normal[some], seen_places, seen_normals) @ pulls
        )
    return found[cells.of]


def _correlation(
    place_a: Tensor,  # [A, 3]
    normal_a: Tensor,  # [A, 3]
    place_b: Tensor,  # [B, 3]
    normal_b: Tensor,  # [B, 3]
) -> Tensor:  # [A, B]
    """Exponential in the distance of place and normal together: rough, as painted things are."""
    a, b = (
        torch.cat([place / RANGE, TURN * normal], dim=-1)
        for place, normal in ((place_a, normal_a), (place_b, normal_b))
    )
    # by products of matrices distances of neighbours would lose half their digits
    return (-torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")).exp()
