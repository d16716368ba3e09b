"""A mesh's texture for files: as a PNG, and sampled at the vertices."""

from __future__ import annotations

import io

import torch
from PIL import Image
from torch import Tensor

from ..images import to_uint8
from ..structures import Mesh


def png_bytes(texture: Tensor) -> bytes:  # [H, W, 3]
    """An 8-bit sRGB PNG file of a texture, row 0 on top."""
    buffer = io.BytesIO()
    Image.fromarray(to_uint8(texture).cpu().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def leaves_the_texture(mesh: Mesh) -> bool:
    """Whether some uvs lie outside [0, 1], which means a repeated texture in every format."""
    uvs = mesh.uvs
    return uvs is not None and len(uvs) > 0 and bool((uvs.amin() < 0) | (uvs.amax() > 1))


def texture_at_vertices(mesh: Mesh) -> Tensor:  # [N, 3]
    """The texture's sRGB colours at the vertices' uvs, between texel centres bilinear.

    The border is continued, or the texture repeated where uvs leave [0, 1], as viewers do.
    """
    if mesh.texture is None or mesh.uvs is None:
        raise ValueError("texture_at_vertices: the mesh has no texture")
    height, width, _ = mesh.texture.shape
    size = mesh.uvs.new_tensor([width, height])
    place = mesh.uvs * size - 0.5  # a texel's centre is at half a texel
    low = place.floor()
    share = place - low

    def texels(right: int, down: int) -> Tensor:
        index = low.long() + torch.tensor([right, down], device=low.device)
        if leaves_the_texture(mesh):
            column, row = index[:, 0] % width, index[:, 1] % height
        else:
            column, row = index[:, 0].clamp(0, width - 1), index[:, 1].clamp(0, height - 1)
        assert mesh.texture is not None
        return mesh.texture[row, column]

    above = torch.lerp(texels(0, 0), texels(1, 0), share[:, :1])
    below = torch.lerp(texels(0, 1), texels(1, 1), share[:, :1])
    return torch.lerp(above, below, share[:, 1:])
