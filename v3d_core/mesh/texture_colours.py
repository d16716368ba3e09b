"""A texture read where vertices of another mesh touch it."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..mesh_queries import MeshQueries
from ..structures import Mesh
from .surface_error import POINTS_PER_BATCH


def texture_as_colours(
    mesh: Mesh, points: Tensor, tick: Callable[[float], None] = lambda share: None
) -> Tensor:  # [P, 3] -> [P, 3]
    """Colours of a textured mesh at its nearest points, sRGB in [0, 1]; uvs outside [0, 1] repeat."""
    assert mesh.uvs is not None and mesh.texture is not None
    queries = MeshQueries(mesh.vertices, mesh.faces)
    colours = []
    for number, some in enumerate(points.split(POINTS_PER_BATCH)):
        face, weights, _ = queries.closest(some)
        uvs = (mesh.uvs[mesh.faces[face.clamp_min(0)]] * weights.to(mesh.uvs)[..., None]).sum(dim=1)
        uvs = torch.where((uvs < 0) | (uvs > 1), uvs - uvs.floor(), uvs)
        read = F.grid_sample(
            mesh.texture.permute(2, 0, 1)[None].to(uvs), 2 * uvs[None, None] - 1,
            mode="bilinear", padding_mode="border", align_corners=False,
        )  # fmt: skip
        colours.append(read[0, :, 0].T)
        tick(min(1.0, (number + 1) * POINTS_PER_BATCH / len(points)))
    return torch.cat(colours).clamp(0, 1)
