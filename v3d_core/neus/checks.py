"""Self-checks: an engine against the torch oracle of its task, values and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import Encoder, HashGrid
from .torch_encoding import encode_torch
from .torch_networks import (
    ColourNetwork,
    DistanceNetwork,
    Layers,
    Places,
    colour_network_torch,
    distance_network_torch,
)
from .torch_sampling import Sampler, Samples, place_samples_torch
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


def compare_distance_networks(
    network: DistanceNetwork, device: torch.device | None = None, count: int = 600
) -> str:
    """What is wrong with an engine of the distance network on random points, or an empty string.

    Results and the gradients of the features and of all weights are compared with the oracle, on
    `device` (by default the CPU).
    """
    generator = torch.Generator().manual_seed(0)
    unit, features, level_weights = _random_places(count, 8, generator, device)
    layers = _random_layers(11, 24, 16, generator, device)
    weights = [_normal(generator, device, *shape) for shape in ((count,), (count, 16))]
    slopes = [_normal(generator, device, count, size) for size in (3, 8)]
    results = []
    for candidate in (network, distance_network_torch):
        leaves = [t.clone().requires_grad_() for t in (features, *layers)]
        places = Places(unit, leaves[0], level_weights)
        out = candidate(places, Layers(*leaves[1:]), True)
        gains = [(a * b).sum() for a, b in zip(out, [*weights, *slopes], strict=True)]
        torch.stack(gains).sum().backward()
        alone = candidate(places, Layers(*leaves[1:]), False).residual
        results.append([*out, alone, *(t.grad for t in leaves)])
    names = ("residuals", "outputs", "slopes by place", "slopes by feature", "residuals alone")
    gradients = ("features", *Layers._fields)
    return difference((*names, *(f"gradients of {n}" for n in gradients)), *results)


def compare_colour_networks(
    network: ColourNetwork, device: torch.device | None = None, count: int = 600
) -> str:
    """What is wrong with an engine of the colour network on random points, or an empty string.

    With and without directions; otherwise as `compare_distance_networks`.
    """
    generator = torch.Generator().manual_seed(0)
    unit, features, level_weights = _random_places(count, 8, generator, device)
    outputs = _normal(generator, device, count, 16)
    normals, directions = (_normal(generator, device, count, 3) for _ in range(2))
    weights = _normal(generator, device, count, 3)
    for along in (None, directions):
        inputs = 16 + 11 + 3 + 3 * (along is not None)
        layers = _random_layers(inputs, 24, 3, generator, device)
        results = []
        for candidate in (network, colour_network_torch):
            leaves = [t.clone().requires_grad_() for t in (outputs, features, normals, *layers)]
            places = Places(unit, leaves[1], level_weights)
            colours = candidate(leaves[0], places, leaves[2], along, Layers(*leaves[3:]))
            (colours * weights).sum().backward()
            results.append([colours, *(t.grad for t in leaves)])
        names = ("outputs", "features", "normals", *Layers._fields)
        if wrong := difference(("colours", *(f"gradients of {n}" for n in names)), *results):
            return wrong
    return ""


def compare_samplers(
    sampler: Sampler, device: torch.device | None = None, rays: int = 300, cells: int = 24
) -> str:
    """What is wrong with an engine of the samples along rays, or an empty string.

    Rays pass through a cube with a ball in it, some of them beside either; where they enter the
    band and its surface within rounding of a place that is looked at, engines may differ.
    """
    generator = torch.Generator().manual_seed(0)
    side = (torch.arange(cells) + 0.5) / cells * 2 - 1
    x, y, z = torch.meshgrid(side, side, side, indexing="ij")
    ball = (x * x + y * y + z * z).sqrt() - 0.5
    known = torch.stack([ball + 0.05 * torch.sin(9 * x), ball]).to(device)
    origins = _normal(generator, device, rays, 3)
    origins = 2.5 * origins / origins.norm(dim=-1, keepdim=True)
    towards = 0.6 * _normal(generator, device, rays, 3) - origins
    towards = towards / towards.norm(dim=-1, keepdim=True)
    jitter = torch.rand(rays, generator=generator).to(device)
    centre = torch.zeros(3, device=device)
    mine, true = (
        candidate(origins, towards, jitter, known, centre, 1.0, 0.2, 16, 0.75)
        for candidate in (sampler, place_samples_torch)
    )
    for name, a, b in zip(Samples._fields, mine, true, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{name} have the wrong shape"
    both = mine.inside & true.inside
    if (mine.inside != true.inside).float().mean() > CHECK_ERROR or not both.any():
        return "samples count where they must not, or do not where they must"
    for name, a, b in zip(Samples._fields[:2], mine[:2], true[:2], strict=True):
        off = (a - b).abs()[both] > CHECK_ERROR
        if off.float().mean() > CHECK_ERROR:
            return f"{name} differ by more than {CHECK_ERROR}"
    return ""


def _normal(generator: torch.Generator, device: torch.device | None, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator).to(device)


def _random_places(
    count: int, width: int, generator: torch.Generator, device: torch.device | None
) -> Places:
    """Points in the cube with features, whose levels have joined more or less."""
    unit = 2 * torch.rand(count, 3, generator=generator) - 1
    joined = torch.linspace(1, 0, width)
    features = torch.randn(count, width, generator=generator)
    return Places(*(t.to(device) for t in (unit, features, joined)))


def _random_layers(
    inputs: int, hidden: int, outputs: int, generator: torch.Generator, device: torch.device | None
) -> Layers:
    """Layers whose units are neither all on nor all off."""
    first = _normal(generator, device, hidden, inputs) * (2 / inputs) ** 0.5
    second = _normal(generator, device, outputs, hidden) / hidden**0.5
    biases = (0.1 * _normal(generator, device, size) for size in (hidden, outputs))
    bias1, bias2 = biases
    return Layers(first, bias1, second, bias2)


def difference(names: tuple[str, ...], mine: list[Tensor], true: list[Tensor]) -> str:
    """The first result that is too far from the true one, or an empty string."""
    for name, a, b in zip(names, mine, true, strict=True):
        if a is None or a.shape != b.shape:
            return f"{name} have the wrong shape"
        error = float((a.detach() - b.detach()).norm() / b.detach().norm())
        if not error < CHECK_ERROR:
            return f"{name} differ by {error:.2g} of their length"
    return ""
