"""Binary .stl of one mesh: triangles for a printer, without colours, units or connections."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..structures import Mesh
from .atomic import atomic_path

HEADER = b"ComfyUI-V3D".ljust(80)  # any 80 bytes that do not begin with "solid"


def write_stl(path: Path, mesh: Mesh, size_mm: float | None = None) -> None:
    """Write the triangles; corners at one position get the same numbers, so readers join them.

    Args:
        path: The .stl file.
        mesh: A mesh on the CPU.
        size_mm: Length of the longest side in the file's units, which slicers take as millimetres.
            None writes world units as they are.
    """
    vertices = mesh.vertices.double()
    if size_mm is not None:
        used = vertices[mesh.faces.reshape(-1).unique()]
        longest = float((used.amax(0) - used.amin(0)).amax())
        if not 0 < size_mm < float("inf"):
            raise ValueError(f"{path}: the size must be above 0 mm, got {size_mm:g}")
        if longest == 0:
            raise ValueError(
                f"{path}: the mesh is a single point and cannot be {size_mm:g} mm long"
            )
        vertices = vertices * (size_mm / longest)
    corners = vertices.float()[mesh.faces]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    triangles = np.zeros(
        len(mesh.faces), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]
    )
    triangles["corners"] = corners.numpy()
    triangles["normal"] = torch.nn.functional.normalize(normals, dim=-1, eps=1e-30).numpy()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(HEADER + np.uint32(len(triangles)).astype("<u4").tobytes())
        file.write(triangles.tobytes())
