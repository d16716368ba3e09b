"""Small meshes with known colours, and what is inside a .glb file."""

import json
import struct

import numpy as np
import torch

from v3d_core.formats.mesh_seams import shared_normals
from v3d_core.structures import Mesh


def coloured_mesh() -> Mesh:
    """An asymmetric tetrahedron whose four colours include a very dark one."""
    vertices = torch.tensor([[0.0, 0, 0], [1, 0, 0], [0, 2, 0], [0, 0, 3]])
    faces = torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]])
    colours = torch.tensor([[1, 0.5, 0], [0.02, 0.01, 0.03], [0.25, 0.75, 1], [0.1, 0.2, 0.3]])
    return Mesh(vertices, faces, shared_normals(vertices, faces), vertex_colours=colours)


def textured_mesh() -> Mesh:
    mesh = coloured_mesh()
    uvs = torch.tensor([[0.1, 0.2], [0.9, 0.2], [0.1, 0.8], [0.6, 0.7]])
    texture = torch.rand(8, 16, 3, generator=torch.Generator().manual_seed(0))
    return Mesh(mesh.vertices, mesh.faces, mesh.normals, uvs, None, texture)


def seamed_cube() -> Mesh:
    """A unit cube split into six charts; every face of it lies on a texel colour of its own."""
    axes = [(axis, sign) for axis in range(3) for sign in (-1.0, 1.0)]
    vertices, faces, uvs = [], [], []
    for chart, (axis, sign) in enumerate(axes):
        across, up = [(1, 2), (2, 0), (0, 1)][axis]  # right-handed with the axis
        for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            point = [0.0, 0.0, 0.0]
            point[axis], point[across], point[up] = sign / 2, a / 2, b / 2
            vertices.append(point)
            column, row = chart % 3, chart // 3
            uvs.append([(column + 0.5 + 0.25 * a) / 3, (row + 0.5 + 0.25 * b) / 2])
        corners = [4 * chart + i for i in (range(4) if sign > 0 else reversed(range(4)))]
        faces += [[corners[0], corners[1], corners[2]], [corners[0], corners[2], corners[3]]]
    levels = torch.tensor(CUBE_COLOURS).reshape(2, 3, 3) / 255
    texture = levels.repeat_interleave(16, dim=0).repeat_interleave(16, dim=1)
    return Mesh(torch.tensor(vertices), torch.tensor(faces), None, torch.tensor(uvs), None, texture)


CUBE_COLOURS = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [128, 64, 26], [5, 128, 250]]


def glb_parts(path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    magic, version, length, size, kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, length, kind) == (b"glTF", 2, len(data), b"JSON")
    document = json.loads(data[20 : 20 + size])
    binary_size, binary_kind = struct.unpack_from("<I4s", data, 20 + size)
    assert binary_kind == b"BIN\0" and binary_size == len(data) - 28 - size
    return document, data[28 + size :]


def accessor(document: dict, binary: bytes, index: int) -> np.ndarray:
    entry = document["accessors"][index]
    view = document["bufferViews"][entry["bufferView"]]
    assert view["byteOffset"] % 4 == 0
    dtype = {5126: "<f4", 5123: "<u2", 5125: "<u4"}[entry["componentType"]]
    data = binary[view["byteOffset"] : view["byteOffset"] + view["byteLength"]]
    return np.frombuffer(data, dtype).reshape(entry["count"], -1)


def quads(places, atlas):
    """One chart per quad: corners in space [Q, 4, 3] and in the atlas [Q, 4, 2], both around it."""
    count = len(places)
    first = torch.arange(count)[:, None, None] * 4
    faces = (first + torch.tensor([[0, 1, 2], [0, 2, 3]])).reshape(-1, 3)
    return Mesh(places.reshape(-1, 3).float(), faces, uvs=atlas.reshape(-1, 2).float())


def square(x0, y0, x1, y1):
    return torch.tensor([[x0, y0], [x0, y1], [x1, y1], [x1, y0]])


def cube(half=0.5):
    """A cube whose sides are six charts of a 3 x 2 atlas, seen from outside as they lie there."""
    sides, atlas = [], []
    for number in range(6):
        axis, sign = number // 2, 1 - 2 * (number % 2)
        normal, right = torch.zeros(3), torch.zeros(3)
        normal[axis], right[(axis + 1) % 3] = sign, 1
        up = torch.linalg.cross(normal, right)
        corners = [(-1, 1), (-1, -1), (1, -1), (1, 1)]  # left up, left down, right down, right up
        sides.append(torch.stack([normal + a * right + b * up for a, b in corners]) * half)
        x, y = number % 3 / 3, number // 3 / 2
        atlas.append(square(x + 0.03, y + 0.03, x + 0.3, y + 0.47))
    return quads(torch.stack(sides), torch.stack(atlas))
