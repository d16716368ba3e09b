"""Wavefront .obj of one mesh, with .mtl and .png beside it when it has a texture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..structures import Mesh
from .atomic import atomic_folder
from .mesh_seams import merged_rows
from .mesh_texture import png_bytes

LINES_PER_BATCH = 1 << 16  # a few MB of text at a time
ROUGHEST_EXPONENT = 0  # Ns: no highlight


def write_obj(path: Path, mesh: Mesh) -> None:
    """Write positions, normals, uvs, sRGB vertex colours (as `v x y z r g b`) and the texture.

    Positions are joined across texture seams, which the format can say, so that the surface stays
    connected. The texture's and material's names are the file's, without characters at which
    readers split or that systems refuse.

    Args:
        path: The .obj file; all files appear, or none.
        mesh: A float32 mesh on the CPU with normals.
    """
    stem = file_stem(path)
    textured = mesh.texture is not None and mesh.uvs is not None
    with atomic_folder(path.parent) as folder:
        if textured:
            assert mesh.texture is not None
            (folder / f"{stem}.png").write_bytes(png_bytes(mesh.texture))
            (folder / f"{stem}.mtl").write_text(_material(stem), encoding="utf-8")
        with open(folder / path.name, "w", encoding="utf-8", newline="\n") as file:
            if textured:
                file.write(f"mtllib {stem}.mtl\nusemtl material\n")
            file.writelines(_lines(mesh))


def file_stem(path: Path) -> str:
    """The name, without suffix, of files that another file names."""
    return re.sub(r"[^\w.-]+", "_", path.stem) or "mesh"


def _material(stem: str) -> str:
    lines = ["newmtl material", "Ka 0 0 0", "Kd 1 1 1", "Ks 0 0 0", f"Ns {ROUGHEST_EXPONENT}"]
    return "\n".join([*lines, "d 1", "illum 1", f"map_Kd {stem}.png", ""])


def _lines(mesh: Mesh) -> Iterator[str]:
    rows = mesh.vertices.numpy()
    if mesh.vertex_colours is not None:
        rows = np.concatenate([rows, mesh.vertex_colours.clamp(0, 1).numpy()], axis=1)
    first, places = merged_rows(rows)
    # nine digits bring back the very same float32
    yield from _rows("v" + " %.9g" * rows.shape[1], rows[first])
    assert mesh.normals is not None
    yield from _rows("vn %.6g %.6g %.6g", mesh.normals.numpy())
    faces = mesh.faces.numpy()
    corners = [places[faces] + 1, faces + 1]  # of positions, and of uvs and normals
    if mesh.uvs is None:
        yield from _rows("f" + " %d//%d" * 3, np.stack(corners, axis=-1).reshape(-1, 6))
        return
    upward = mesh.uvs.double().numpy() * [1, -1] + [0, 1]  # obj counts v from below
    yield from _rows("vt %.9g %.9g", upward)
    corners = [corners[0], corners[1], corners[1]]
    yield from _rows("f" + " %d/%d/%d" * 3, np.stack(corners, axis=-1).reshape(-1, 9))


def _rows(form: str, rows: np.ndarray) -> Iterator[str]:
    """The rows as lines, many at once: a single format call is several times faster."""
    for start in range(0, len(rows), LINES_PER_BATCH):
        batch = rows[start : start + LINES_PER_BATCH]
        yield (form + "\n") * len(batch) % tuple(batch.reshape(-1).tolist())
