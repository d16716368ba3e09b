"""Self-checks: an engine against the torch oracle of its task, values and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import Encoder, HashGrid
from .torch_encoding import encode_torch
from .torch_volume import Compositor, composite_torch

COMPOSITED = ("distances", "cosines", "values", "the sharpness")
CHECK_ERROR = 1e-3  # of the length of each result; sums in another order stay far below


def compare_encoders(
    encoder: Encoder,
    device: torch.device | None = None,
    count: int = 200,
    grid: HashGrid | None = None,
) -> str:
    """What is wrong with a hash grid's engine on random points, or an empty string.

    Features, what is pulled back, and the gradients of both are compared with the oracle, on
    `device` (by default the CPU). No point lies where a slope jumps within rounding.
    """
    generator = torch.Generator().manual_seed(0)
    grid = grid or HashGrid(levels=4, base=5, finest=45, log2_entries=10)  # dense and hashed levels

    def uniform(*shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator) - 1).to(device)

    points, table = 0.5 + 0.6 * uniform(count, 3), uniform(grid.entries, 2)  # some outside
    weights, gradient, pulls = (
        uniform(count, grid.width),
        uniform(count, grid.width),
        uniform(count, 3),
    )
    places = points[..., None] * points.new_tensor(grid.scales)
    far = ((places - places.round()).abs() < 0.499).all(-1) & (points.abs() > 1e-6)
    far &= (points - 1).abs() > 1e-6
    points = points[far.all(-1)]
    weights, gradient, pulls = (t[: len(points)] for t in (weights, gradient, pulls))
    results = []
    for candidate in (encoder, encode_torch):
        leaves = [t.clone().requires_grad_() for t in (table, gradient)]
        features, pull_back = candidate(points, leaves[0], grid, True)
        pulled = pull_back(leaves[1])
        ((features * weights).sum() + (pulled * pulls).sum()).backward()
        alone, _ = candidate(points, leaves[0], grid, False)
        results.append([features, alone, pulled, *(t.grad for t in leaves)])
    names = ("features", "features alone", "gradients of the points", "gradients of the table")
    return difference((*names, "gradients pulled back"), *results)


def compare_compositors(
    compositor: Compositor, device: torch.device | None = None, rays: int = 20, samples: int = 70
) -> str:
    """What is wrong with an engine of the compositing on random rays, or an empty string.

    Results and the gradients of every input are compared with the oracle, on `device` (by default
    the CPU). Distances fall through zero along the rays, as at a surface.
    """
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    along = torch.linspace(1, -1, samples, device=device)
    leaves = (
        0.1 * (along + uniform(rays, samples) - uniform(rays, 1)),
        2 * uniform(rays, samples) - 1,
        uniform(rays, samples, 5),
        torch.full((), 40.0, device=device),
    )
    deltas, inside = 0.02 * uniform(rays, samples), uniform(rays, samples) < 0.9
    anneal = torch.full((), 0.3, device=device)
    weights, more = uniform(rays, 5), uniform(rays)
    results = []
    for candidate in (compositor, composite_torch):
        sdf, cosines, values, inv_s = inputs = [t.clone().requires_grad_() for t in leaves]
        out = candidate(sdf, cosines, deltas, inside, values, inv_s, anneal)
        ((out.values * weights).sum() + (out.opacities * more).sum()).backward()
        results.append([*out, *(t.grad for t in inputs)])
    names = ("values", "opacities", "weights")
    return difference((*names, *(f"gradients of {n}" for n in COMPOSITED)), *results)


def difference(names: tuple[str, ...], mine: list[Tensor], true: list[Tensor]) -> str:
    """The first result that is too far from the true one, or an empty string."""
    for name, a, b in zip(names, mine, true, strict=True):
        if a is None or a.shape != b.shape:
            return f"{name} have the wrong shape"
        error = float((a.detach() - b.detach()).norm() / b.detach().norm())
        if not error < CHECK_ERROR:
            return f"{name} differ by {error:.2g} of their length"
    return ""
