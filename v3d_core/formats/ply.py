"""The standard 3D Gaussian splatting .ply (Kerbl et al. 2023), as viewers and trainers read it.

On disk: splat frame, binary little endian, x y z nx ny nz, f_dc_0..2, f_rest_* (channel-major),
opacity (logit), scale_0..2 (log), rot_0..3 (wxyz). In memory: world frame, activated.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..cameras import flip_splat_frame
from ..structures import GaussianSplats
from .atomic import atomic_path

MAX_HEADER_BYTES = 65_536  # a degree-3 header has about 1,500
# The logit of 0 and of 1 is infinite. 2^-20 is far below one 8-bit step, and exact in float32, so
# that reading and writing again changes nothing.
OPACITY_MARGIN = 2.0**-20
SMALLEST_SCALE = 1e-20  # flat ("2D") splats store log 0 as their third scale
UNIT_QUAT_ROUNDING = 1e-6  # closer to unit length than this, a quaternion stays as it is

_SCALARS = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "<i2"),
    **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("int", "int32"), "<i4"),
    **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("float", "float32"), "<f4"),
    **dict.fromkeys(("double", "float64"), "<f8"),
}
_REQUIRED = (
    *("x", "y", "z"),
    *(f"f_dc_{i}" for i in range(3)),
    "opacity",
    *(f"scale_{i}" for i in range(3)),
    *(f"rot_{i}" for i in range(4)),
)


@dataclass(frozen=True)
class _Header:
    vertex_count: int
    fields: tuple[tuple[str, str], ...]  # name and numpy type of every vertex property
    data_start: int  # byte where the vertices begin


def write_splat_ply(
    path: str | os.PathLike[str], splats: GaussianSplats, pad_sh_degree_3: bool = False
) -> None:
    """Write splats as a standard 3DGS .ply, complete or not at all.

    Args:
        path: The file to write.
        splats: World-frame splats of any SH degree; opacities are kept 2^-20 away from 0 and 1.
        pad_sh_degree_3: Add zero coefficients up to degree 3, for readers that accept only that.
    """
    flipped = flip_splat_frame(splats.to("cpu", torch.float32))
    count = len(flipped)
    sh = flipped.sh.detach().numpy()
    if pad_sh_degree_3:
        sh = np.concatenate([sh, np.zeros((count, 16 - sh.shape[1], 3), np.float32)], axis=1)
    rest = (
        sh[:, 1:].transpose(0, 2, 1).reshape(count, 3 * (sh.shape[1] - 1))
    )  # all of red, then green, then blue
    opacity = flipped.opacities.detach().double().clamp(OPACITY_MARGIN, 1 - OPACITY_MARGIN)
    names = ("x", "y", "z", "nx", "ny", "nz", *(f"f_dc_{i}" for i in range(3)))
    names += tuple(f"f_rest_{i}" for i in range(rest.shape[1]))
    names += ("opacity", *(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4)))
    table = np.concatenate(
        [
            flipped.means.detach().numpy(),
            np.zeros((count, 3), np.float32),
            sh[:, 0],
            rest,
            torch.logit(opacity)[:, None].numpy(),
            flipped.scales.detach().double().log().numpy(),
            flipped.quats.detach().numpy(),
        ],
        axis=1,
    ).astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(table.tobytes())


def read_splat_ply(path: str | os.PathLike[str], drop_invalid: bool = False) -> GaussianSplats:
    """Read a standard 3DGS .ply of degree 0 to 3; properties beyond the standard ones are ignored.

    Nothing is allocated before the header's counts have been compared with the file's size.

    Args:
        path: The file to read.
        drop_invalid: Leave out Gaussians with NaN or infinite values or a zero rotation, which
            some trainers write, instead of refusing the file.

    Returns:
        Splats in the world frame, on the CPU.

    Raises:
        ValueError: The file is not such a .ply, is cut off, or has invalid Gaussians.
    """
    path = Path(path)
    with open(path, "rb") as file:
        head = file.read(MAX_HEADER_BYTES)
        header = _read_header(path, head)
        dtype = np.dtype(list(header.fields))
        available = max(os.fstat(file.fileno()).st_size - header.data_start, 0)
        expected = header.vertex_count * dtype.itemsize
        if available < expected:
            raise ValueError(
                f"{path}: the file is cut off or its header is wrong: {header.vertex_count} "
                f"Gaussians of {dtype.itemsize} bytes need {expected} bytes, {available} are there"
            )
        file.seek(header.data_start)
        table = np.frombuffer(file.read(expected), dtype)
    return _splats_from_table(path, table, drop_invalid)


def _read_header(path: Path, head: bytes) -> _Header:
    if not re.match(rb"ply\r?\n", head):
        raise ValueError(f"{path}: not a .ply file (it does not begin with a line 'ply')")
    end = re.search(rb"^end_header\r?\n", head, re.MULTILINE)
    if end is None:
        raise ValueError(f"{path}: no end of the .ply header in the first {len(head)} bytes")
    lines = head[: end.start()].decode("ascii", errors="replace").splitlines()[1:]
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    for line in lines:
        words = line.split()
        if not words or words[0] in ("comment", "obj_info"):
            continue
        if words[0] == "format":
            _check_format(path, line)
        elif words[0] == "element" and len(words) == 3:
            elements.append((words[1], _count(path, words[1], words[2]), []))
        elif words[0] == "property" and elements and len(words) >= 3:
            elements[-1][2].append(_property(path, elements[-1][0], words))
        else:
            raise ValueError(f"{path}: unknown line in the .ply header: {line[:80]!r}")
    if not any(line.split()[:1] == ["format"] for line in lines):
        raise ValueError(f"{path}: the .ply header has no 'format' line")
    start = end.end()
    for name, count, fields in elements:
        if name == "vertex":
            _check_fields(path, [field for field, _ in fields])
            return _Header(count, tuple(fields), start)
        if any(kind == "list" for _, kind in fields):
            raise ValueError(f"{path}: element {name!r} with lists stands before the vertices")
        start += count * sum(np.dtype(kind).itemsize for _, kind in fields)
    raise ValueError(f"{path}: the .ply has no element 'vertex'")


def _check_format(path: Path, line: str) -> None:
    if line.split() != ["format", "binary_little_endian", "1.0"]:
        raise ValueError(
            f"{path}: {line.strip()[:80]!r} is not supported, a splat .ply must be 'format "
            "binary_little_endian 1.0'; open it in a splat editor and save it as binary .ply"
        )


def _count(path: Path, element: str, text: str) -> int:
    if not re.fullmatch(r"\d{1,15}", text):
        raise ValueError(f"{path}: the header gives {text[:40]!r} as number of {element!r}")
    return int(text)


def _property(path: Path, element: str, words: list[str]) -> tuple[str, str]:
    if words[1] == "list":
        if element == "vertex":
            raise ValueError(
                f"{path}: list property {words[-1][:40]!r} in the vertices; a splat has none"
            )
        return words[-1], "list"
    if words[1] not in _SCALARS or len(words) != 3:
        raise ValueError(
            f"{path}: unknown property {' '.join(words[1:])[:80]!r} in the .ply header"
        )
    return words[2], _SCALARS[words[1]]


def _check_fields(path: Path, names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: property {twice[0]!r} stands twice in the .ply header")
    missing = [name for name in _REQUIRED if name not in names]
    if missing:
        kind = "not a 3D Gaussian splat"
        if "packed_position" in names:
            kind = "a compressed splat; save it as an uncompressed .ply"
        elif "x" in names:
            kind = "a point cloud or mesh, not a 3D Gaussian splat"
        raise ValueError(f"{path}: {kind} (missing: {', '.join(missing)})")
    rest = sorted(int(name[7:]) for name in names if re.fullmatch(r"f_rest_\d{1,4}", name))
    if len(rest) not in (0, 9, 24, 45) or rest != list(range(len(rest))):
        raise ValueError(
            f"{path}: {len(rest)} f_rest properties; 0, 9, 24 or 45 are known, numbered from 0"
        )


def _splats_from_table(path: Path, table: np.ndarray, drop_invalid: bool) -> GaussianSplats:
    def columns(*names: str) -> np.ndarray:  # [N, len(names)] float32
        return np.stack([table[name] for name in names], axis=1).astype(np.float32, copy=False)

    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        means = columns("x", "y", "z")
        # float64 between the stored and the activated form, so that rounding happens once
        scales = np.exp(columns("scale_0", "scale_1", "scale_2").astype(np.float64))
        scales = np.where(scales < SMALLEST_SCALE, SMALLEST_SCALE, scales)
        opacities = 1 / (1 + np.exp(-columns("opacity")[:, 0].astype(np.float64)))
        quats = columns("rot_0", "rot_1", "rot_2", "rot_3").astype(np.float64)
        length = np.linalg.norm(quats, axis=1, keepdims=True)
        near_unit = np.abs(length - 1) <= UNIT_QUAT_ROUNDING
        quats = np.where(near_unit, quats, quats / length)
        sh = columns("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
        rest_count = sum(name.startswith("f_rest_") for name in table.dtype.names or ())
        if rest_count:
            rest = columns(*(f"f_rest_{i}" for i in range(rest_count)))
            rest = rest.reshape(len(table), 3, rest_count // 3).transpose(0, 2, 1)
            sh = np.concatenate([sh, rest], axis=1)
        values = [v.astype(np.float32, copy=False) for v in (means, scales, quats, opacities, sh)]
    valid = np.ones(len(table), bool)
    for v in values:
        valid &= np.isfinite(v.reshape(len(table), math.prod(v.shape[1:]))).all(axis=1)
    if not valid.all() and not drop_invalid:
        raise ValueError(
            f"{path}: {int((~valid).sum())} of {len(table)} Gaussians have NaN or infinite values "
            "or a rotation of length 0; read with drop_invalid=True to leave them out"
        )
    means, scales, quats, opacities, sh = (torch.from_numpy(v[valid]) for v in values)
    return flip_splat_frame(GaussianSplats(means, scales, quats, opacities, sh))
