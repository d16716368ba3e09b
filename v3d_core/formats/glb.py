"""Binary glTF 2.0 (Khronos) of one mesh: positions, normals, and linear vertex colours or a texture.

Written here rather than by a library for three things together: vertex colours in 16 bits (8 linear
bits lose the darks), KHR_materials_unlit, and a file that the Khronos validator passes.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

from ..images import srgb_to_linear
from ..structures import Mesh
from .mesh_seams import is_closed_solid
from .mesh_texture import leaves_the_texture, png_bytes

GLB_MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
FLOAT, USHORT, UINT = 5126, 5123, 5125  # component types
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR_FILTER, LINEAR_MIPMAP_LINEAR_FILTER = 9729, 9987
CLAMP_TO_EDGE, REPEAT = 33071, 10497
MOST_USHORT_VERTICES = 65535  # the last 16-bit index, 65535, is reserved (primitive restart)
MOST_BYTES = 2**32 - 1  # the container counts its bytes in 32 bits
_COMPONENTS = {FLOAT: "<f4", USHORT: "<u2", UINT: "<u4"}


def encode_glb(mesh: Mesh, unlit: bool, extras: dict[str, Any] | None = None) -> bytes:
    """The bytes of a .glb file.

    Args:
        mesh: A float32 mesh on the CPU with normals and at least one face. A texture goes before
            vertex colours: glTF would multiply them. It repeats where uvs leave [0, 1].
        unlit: Show colours as they are (KHR_materials_unlit), without a viewer's lights.
        extras: Anything that JSON can hold, kept as `asset.extras`.

    Raises:
        ValueError: The mesh has no normals, or more than 4 GiB of data.
    """
    if mesh.normals is None:
        raise ValueError("encode_glb: the mesh has no normals")
    blob = _Blob()
    positions = blob.add(mesh.vertices.numpy(), FLOAT, "VEC3", ARRAY_BUFFER)
    blob.accessors[positions]["min"] = mesh.vertices.float().amin(0).tolist()
    blob.accessors[positions]["max"] = mesh.vertices.float().amax(0).tolist()
    attributes = {"POSITION": positions}
    attributes["NORMAL"] = blob.add(mesh.normals.numpy(), FLOAT, "VEC3", ARRAY_BUFFER)
    material: dict[str, Any] = {
        "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
        # a solid's inside is seen by nobody, and culling it halves the work of a renderer
        "doubleSided": not is_closed_solid(mesh.vertices, mesh.faces),
    }
    document: dict[str, Any] = {}
    if mesh.texture is not None and mesh.uvs is not None:
        attributes["TEXCOORD_0"] = blob.add(mesh.uvs.numpy(), FLOAT, "VEC2", ARRAY_BUFFER)
        document["images"] = [
            {"bufferView": blob.view(png_bytes(mesh.texture)), "mimeType": "image/png"}
        ]
        wrap = REPEAT if leaves_the_texture(mesh) else CLAMP_TO_EDGE
        filters = {"magFilter": LINEAR_FILTER, "minFilter": LINEAR_MIPMAP_LINEAR_FILTER}
        document["samplers"] = [filters | {"wrapS": wrap, "wrapT": wrap}]
        document["textures"] = [{"source": 0, "sampler": 0}]
        material["pbrMetallicRoughness"]["baseColorTexture"] = {"index": 0}
    elif mesh.vertex_colours is not None:
        linear = srgb_to_linear(mesh.vertex_colours.double().clamp(0, 1)).numpy()
        # four components: rows of three 16-bit numbers would break glTF's 4-byte alignment
        rgba = np.full((len(linear), 4), 65535, np.uint16)
        rgba[:, :3] = np.round(linear * 65535)
        colours = blob.add(rgba, USHORT, "VEC4", ARRAY_BUFFER)
        blob.accessors[colours]["normalized"] = True
        attributes["COLOR_0"] = colours
    component = USHORT if len(mesh.vertices) <= MOST_USHORT_VERTICES else UINT
    corners = mesh.faces.reshape(-1).numpy()
    indices = blob.add(corners, component, "SCALAR", ELEMENT_ARRAY_BUFFER)
    if unlit:
        material["extensions"] = {"KHR_materials_unlit": {}}
        document["extensionsUsed"] = ["KHR_materials_unlit"]
    asset: dict[str, Any] = {"version": "2.0", "generator": "ComfyUI-V3D"}
    document |= {
        "asset": asset | ({"extras": extras} if extras else {}),
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}],
        "materials": [material],
        "accessors": blob.accessors,
        "bufferViews": blob.views,
        "buffers": [{"byteLength": len(blob.data)}],
    }
    return _container(document, bytes(blob.data))


class _Blob:
    """The binary part: 4-byte aligned views and the accessors onto them."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def view(self, data: bytes, target: int | None = None) -> int:
        view = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data)}
        if target is not None:
            view["target"] = target
        self.views.append(view)
        self.data += data + bytes(-len(data) % 4)
        return len(self.views) - 1

    def add(self, values: np.ndarray, component: int, kind: str, target: int) -> int:
        data = values.astype(_COMPONENTS[component]).tobytes()
        view = self.view(data, target)
        accessor = {"bufferView": view, "componentType": component, "type": kind}
        self.accessors.append(accessor | {"count": len(values)})
        return len(self.accessors) - 1


def _container(document: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(data)
    if length > MOST_BYTES:
        raise ValueError(
            f"a .glb file holds at most {MOST_BYTES} bytes and this mesh needs {length}; decimate "
            "it, make the texture smaller, or choose .obj or .ply"
        )
    return b"".join(
        [
            struct.pack("<III", GLB_MAGIC, 2, length),
            struct.pack("<II", len(text), JSON_CHUNK),
            text,
            struct.pack("<II", len(data), BINARY_CHUNK),
            data,
        ]
    )
