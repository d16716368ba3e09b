"""Colours of mesh vertices from pictures of the surface."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from ..cameras import project_points
from ..mesh_repair import spread_colours, with_normals
from ..structures import Cameras, Mesh

COSINE_POWER = 4  # weights fall steeply with the viewing angle, so that few views mix and blur
MIN_ALPHA = 0.9  # pixels less covered than this carry background


def colour_vertices(
    mesh: Mesh,
    cameras: Cameras,
    colours: Tensor,  # [V, H, W, 3]
    alphas: Tensor,  # [V, H, W]
    depths: Tensor,  # [V, H', W']
    tolerance: float,
) -> Mesh:
    """Blend straight sRGB pictures into vertex colours, each vertex from the views that see it.

    Args:
        mesh: The surface, faces outward.
        cameras: Where the pictures were taken.
        colours: Straight sRGB. [V, H, W, 3]
        alphas: Coverage. [V, H, W]
        depths: Depth of the visible surface, 0 where there is none, world units; may be of
            another size than the pictures. [V, H', W']
        tolerance: A vertex this much behind the visible depth is hidden, world units.
    """
    mesh = mesh if mesh.normals is not None else with_normals(mesh)
    assert mesh.normals is not None
    total = torch.zeros_like(mesh.vertices)
    weights = mesh.vertices.new_zeros(len(mesh.vertices), 1)
    size = mesh.vertices.new_tensor([cameras.width, cameras.height])
    for v in range(len(cameras)):
        camera = cameras[v]
        pixels, depth = project_points(mesh.vertices, camera)
        place = (2 * pixels / size - 1)[:, None]  # [1, 1, N, 2]
        picture = torch.cat([colours[v], alphas[v][..., None]], dim=-1).permute(2, 0, 1)
        smooth = _sample(picture[None], place, "bilinear")
        visible_depth = _sample(depths[v][None, None], place, "nearest")[:, 0]
        towards = torch.nn.functional.normalize(camera.centres - mesh.vertices, dim=-1)
        cosine = (towards * mesh.normals).sum(dim=-1).clamp_min(0)
        seen = (
            (depth[0] > 0)
            & ((pixels[0] > 0) & (pixels[0] < size)).all(dim=-1)
            & (smooth[:, 3] >= MIN_ALPHA)
            & (visible_depth > 0)
            & (depth[0] - visible_depth < tolerance)
        )
        weight = torch.where(seen, cosine**COSINE_POWER, 0.0)[:, None]
        total += weight * smooth[:, :3]
        weights += weight
    known = weights[:, 0] > 1e-6
    blended = torch.where(known[:, None], total / weights.clamp_min(1e-12), 0.5)
    coloured = dataclasses.replace(mesh, vertex_colours=blended.clamp(0, 1))
    return spread_colours(coloured, known)


def _sample(maps: Tensor, place: Tensor, mode: str) -> Tensor:  # [1, C, H, W] -> [N, C]
    sampled = grid_sample(maps, place, mode=mode, padding_mode="border", align_corners=False)
    return sampled[0, :, 0].T
