"""An asymmetric coloured object made of Gaussians, exact cameras and pictures of it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
import trimesh

REPOSITORY = Path(__file__).resolve().parents[3]
PACK = REPOSITORY.as_posix().replace(".", "_x_")  # as ComfyUI names a pack it imports


def pack(module: str):
    """A module of the pack, loaded the way ComfyUI loads it."""
    __import__(f"{PACK}.{module}")
    return sys.modules[f"{PACK}.{module}"]


def asymmetric_splats(degree: int = 0):
    """A red ball right, a green ball on top, a blue ball towards +Z, a grey bar left: no symmetry."""
    structures = pack("v3d_core.structures")
    colours = [(0.9, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.2, 0.9), (0.5, 0.5, 0.5)]
    centres = [(0.5, 0.0, 0.0), (0.0, 0.55, 0.0), (0.0, -0.1, 0.5), (-0.45, -0.25, -0.1)]
    spreads = [(0.1, 0.1, 0.1), (0.08, 0.16, 0.08), (0.07, 0.07, 0.07), (0.2, 0.06, 0.06)]
    count = 300
    generator = torch.Generator().manual_seed(5)
    means, dc = [], []
    for centre, spread, colour in zip(centres, spreads, colours, strict=True):
        direction = torch.nn.functional.normalize(
            torch.randn(count, 3, generator=generator), dim=-1
        )
        means.append(torch.tensor(centre) + direction * torch.tensor(spread))
        dc.append(((torch.tensor(colour) - 0.5) / 0.28209479).expand(count, 3))
    total = count * len(centres)
    sh = torch.zeros(total, (degree + 1) ** 2, 3)
    sh[:, 0] = torch.cat(dc)
    if degree:
        sh[:, 1:] = 0.2 * torch.randn(sh[:, 1:].shape, generator=generator)
    return structures.GaussianSplats(
        means=torch.cat(means),
        scales=torch.full((total, 3), 0.025),
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(total, 1),
        opacities=torch.full((total,), 0.95),
        sh=sh,
    )


def orbit_frames(views: int = 6, size: int = 64):
    """White-background frames, masks and cameras of the asymmetric object, by our own renderer."""
    cameras_module = pack("v3d_core.cameras")
    render = pack("v3d_core.splats.raster").render_splats
    cameras = cameras_module.orbit_cameras(cameras_module.Orbit(num_views=views), size, size)
    picture = render(asymmetric_splats(), cameras)
    return picture.colours, picture.alphas, cameras


def open_mesh(path):
    """The one mesh of a file, with the transforms of its scene applied."""
    scene = trimesh.load(path, force="scene", process=False)
    (node,) = scene.graph.nodes_geometry
    matrix, name = scene.graph[node]
    return scene.geometry[name].apply_transform(matrix)


def display_colours(opened, suffix):
    """sRGB colours at the vertices in [0, 1], of the texture where there is one.

    trimesh keeps vertex colours beside the material.
    """
    material = getattr(opened.visual, "material", None)
    image = getattr(material, "baseColorTexture", None)
    if image is not None:
        return trimesh.visual.color.uv_to_color(opened.visual.uv, image)[:, :3] / 255
    stored = getattr(opened.visual, "vertex_attributes", {}).get("color")
    stored = np.asarray(opened.visual.vertex_colors if stored is None else stored)
    whole = np.iinfo(stored.dtype).max if stored.dtype.kind == "u" else 1
    colours = stored[:, :3] / whole
    if suffix != "glb":
        return colours
    return pack("v3d_core.images").linear_to_srgb(torch.tensor(colours)).numpy()
