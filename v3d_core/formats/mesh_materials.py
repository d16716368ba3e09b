"""Meshes of several materials out of files: surfaces, each with the colour its file gives it."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..images import srgb_to_linear
from ..structures import Mesh
from .mesh_read import (
    placed_parts,
    placed_surface,
    readable_errors,
    uvs_and_picture,
    vertex_colours,
)

ALPHA_CUTOFF = 0.5  # glTF 2.0, 3.9.4: the default of alphaCutoff
UNCOLOURED = (0.7, 0.7, 0.7)  # sRGB of surfaces whose file says nothing; white would be background


@dataclass(frozen=True)
class Material:
    """What multiplies a surface's vertex colours (glTF 2.0, 3.9.2: the base colour).

    Attributes:
        colour: Linear light, 0 to 1.
        opacity: 0 to 1; means nothing where `alpha` is `opaque`.
        picture: The texture, any mode of Pillow, or None.
        alpha: `opaque`; `mask`: there or not, by `cutoff`; `blend`: partly there.
        cutoff: The least opacity that is there.
    """

    colour: tuple[float, float, float] = (1.0, 1.0, 1.0)
    opacity: float = 1.0
    picture: Image.Image | None = None
    alpha: str = "opaque"
    cutoff: float = ALPHA_CUTOFF


@dataclass(frozen=True)
class MaterialPart:
    """A surface with normals, with uvs where there is a picture, and its material."""

    surface: Mesh
    material: Material


def read_material_parts(path: str | os.PathLike[str]) -> list[MaterialPart]:
    """The parts of a .glb, .obj, .ply or .stl file, placed in one frame, colours as the file has them.

    Colours are linear in .glb files and sRGB in others, materials' too (as three.js reads .mtl).
    A texture of an .mtl file replaces its plain colour. Faces that have colours of their own get
    corners of their own. trimesh keeps plain colours of .glb files in 8 bits, linear.

    Raises:
        ValueError: Unknown suffix, a damaged file, NaN among positions, or no faces at all.
        FileNotFoundError: No such file.
    """
    path = Path(path)
    linear = path.suffix.lower() == ".glb"
    placed = placed_parts(path)
    with readable_errors(path):
        return [_part(part, placement, linear) for part, placement in placed]


def _part(part: Any, placement: np.ndarray, linear: bool) -> MaterialPart:
    surface, visual = placed_surface(part, placement), part.visual
    if visual.kind == "face":
        return MaterialPart(_with_face_colours(surface, visual.face_colors), Material())
    count = len(surface.vertices)
    uvs, picture = uvs_and_picture(visual, count)
    colours = vertex_colours(visual, count, linear)
    if visual.kind == "texture":
        material = _material(visual.material, picture)
    elif colours is not None:
        material = Material()
    else:
        material = Material(_linear(UNCOLOURED))
    uvs = uvs if picture is not None else None
    return MaterialPart(dataclasses.replace(surface, uvs=uvs, vertex_colours=colours), material)


def _material(material: Any, picture: Any) -> Material:
    if hasattr(material, "baseColorFactor"):  # of a .glb file
        factor = material.baseColorFactor
        values = np.ones(4) if factor is None else np.asarray(factor, np.float64) / 255
        cutoff = material.alphaCutoff
        return Material(
            (float(values[0]), float(values[1]), float(values[2])),
            float(values[3]),
            picture,
            str(material.alphaMode or "opaque").lower(),
            ALPHA_CUTOFF if cutoff is None else float(cutoff),
        )
    if picture is not None:
        return Material(picture=picture)
    diffuse = np.asarray(material.diffuse, np.float64) / 255
    return Material(_linear((float(diffuse[0]), float(diffuse[1]), float(diffuse[2]))))


def _linear(srgb: tuple[float, float, float]) -> tuple[float, float, float]:
    red, green, blue = srgb_to_linear(torch.tensor(srgb, dtype=torch.float64)).tolist()
    return red, green, blue


def _with_face_colours(surface: Mesh, colours: Any) -> Mesh:
    """Every face on three vertices of its own; colours are those of .ply files, sRGB bytes."""
    corners = surface.faces.reshape(-1)
    of_faces = torch.from_numpy(np.asarray(colours)[:, :3].astype(np.float64) / 255).float()
    return Mesh(
        surface.vertices[corners],
        torch.arange(len(corners)).view(-1, 3),
        None if surface.normals is None else surface.normals[corners],
        vertex_colours=of_faces.repeat_interleave(3, dim=0),
    )
