"""How far two surfaces lie apart, measured both ways at random points of both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..mesh_queries import MeshQueries
from ..mesh_repair import face_areas
from ..structures import Mesh

ERROR_SAMPLES = 100_000  # points on either surface: 100 lie above the percentile
ERROR_PERCENTILE = 0.999
POINTS_PER_BATCH = 1 << 16  # a fraction of a second on a CPU


@dataclass(frozen=True)
class SurfaceError:
    """Distances between two surfaces, as shares of the reference's diagonal.

    Attributes:
        mean: The larger one of the means of both directions.
        high: The larger one of the 99.9th percentiles.
        largest: Of all samples of both directions.
    """

    mean: float
    high: float
    largest: float


def diagonal(mesh: Mesh) -> float:
    """Length of the diagonal of the box around the faces, world units."""
    corners = mesh.vertices[mesh.faces.reshape(-1)].double()
    return float((corners.amax(dim=0) - corners.amin(dim=0)).norm())


def surface_error(
    mesh: Mesh,
    reference: Mesh,
    *,
    queries: MeshQueries | None = None,
    samples: int = ERROR_SAMPLES,
    seed: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> SurfaceError:
    """Distances from points of each surface to the nearest point of the other one.

    Args:
        mesh: One surface.
        reference: The other one, whose diagonal is the unit.
        queries: Nearest points of the reference, where they were built before.
        samples: Points on each surface, equally likely everywhere.
        seed: Of the points.
        tick: Called several times a second; raising in it cancels.
    """
    queries = MeshQueries(reference.vertices, reference.faces) if queries is None else queries
    tick()
    own = MeshQueries(mesh.vertices, mesh.faces)
    ways = [
        nearest_distances(queries, surface_points(mesh, samples, seed), tick),
        nearest_distances(own, surface_points(reference, samples, seed + 1), tick),
    ]
    unit = diagonal(reference)
    shares = [way.double() / unit for way in ways]
    return SurfaceError(
        mean=max(float(share.mean()) for share in shares),
        high=max(float(torch.quantile(share, ERROR_PERCENTILE)) for share in shares),
        largest=max(float(share.max()) for share in shares),
    )


def surface_points(mesh: Mesh, count: int, seed: int) -> Tensor:  # [count, 3]
    """Random points on the faces, equally likely everywhere on the surface, world units."""
    generator = torch.Generator().manual_seed(seed)
    ends = face_areas(mesh).cumsum(0)
    draws = torch.rand(count, 3, generator=generator, dtype=torch.float64).to(ends)
    chosen = torch.searchsorted(ends, draws[:, 0] * ends[-1]).clamp_max(len(ends) - 1)
    # a square folded at its diagonal is a triangle
    u, v = draws[:, 1:].unbind(-1)
    folded = u + v > 1
    u, v = torch.where(folded, 1 - u, u), torch.where(folded, 1 - v, v)
    a, b, c = mesh.vertices[mesh.faces[chosen]].double().unbind(1)
    points = a + u[:, None] * (b - a) + v[:, None] * (c - a)
    return points.to(mesh.vertices.dtype)


def nearest_distances(
    queries: MeshQueries,
    points: Tensor,  # [P, 3]
    tick: Callable[[], None] = lambda: None,
) -> Tensor:  # [P]
    """Distances to the nearest point of a mesh, world units, in batches."""
    found = []
    for some in points.split(POINTS_PER_BATCH):
        found.append(queries.closest(some).distance)
        tick()
    return torch.cat(found)
