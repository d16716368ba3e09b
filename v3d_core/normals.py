"""Normal maps of estimators and renderers, decoded into the camera axes used here."""

from __future__ import annotations

import torch
from torch import Tensor

# Axes a normal map may be encoded in, as signs that lead to OpenCV's (x right, y down, z away from
# the viewer); a surface that faces the viewer is blue in OpenGL maps and dark there in OpenCV's.
NORMALS_CONVENTIONS = {
    "opengl": (1.0, -1.0, -1.0),  # x right, y up, z to the viewer
    "opencv": (1.0, 1.0, 1.0),
}
SHORTEST_NORMAL = 0.5  # a shorter one was blended with its surroundings and points anywhere


def decode_normals(encoded: Tensor, convention: str = "opengl") -> Tensor:
    """Unit normals in OpenCV camera axes from a picture of (n + 1) / 2.

    Args:
        encoded: Red, green, blue = x, y, z from -1 to 1. [..., 3], in [0, 1]
        convention: One of `NORMALS_CONVENTIONS`: the axes of the camera that they are encoded in.

    Returns:
        Unit normals, zero where the picture holds none. [..., 3]

    Raises:
        ValueError: The convention is unknown, or the picture has no three channels.
    """
    if convention not in NORMALS_CONVENTIONS:
        known = ", ".join(NORMALS_CONVENTIONS)
        raise ValueError(f"normals in {convention!r} axes are not known; choose one of {known}")
    if encoded.shape[-1] != 3:
        raise ValueError(f"normals need 3 channels, got {encoded.shape[-1]}; convert them to RGB")
    signs = encoded.new_tensor(NORMALS_CONVENTIONS[convention])
    normals = (encoded * 2 - 1) * signs
    length = normals.norm(dim=-1, keepdim=True)
    return (normals / length.clamp_min(SHORTEST_NORMAL)).where(length > SHORTEST_NORMAL, 0.0)


def normals_of_views(
    encoded: Tensor,  # [V, H, W, 3]
    masks: Tensor,  # [V, H, W]
    convention: str = "opengl",
) -> Tensor:  # [V, H, W, 3]
    """`decode_normals` for the pictures of views: zero outside the object, sizes checked."""
    if encoded.shape[:3] != masks.shape:
        raise ValueError(
            f"normals are {_size(encoded)} but the images are {_size(masks)}; "
            "render or resize them to the same frames"
        )
    return torch.where(masks[..., None] > 0.5, decode_normals(encoded, convention), 0.0)


def _size(pictures: Tensor) -> str:
    return f"{pictures.shape[0]} frames of {pictures.shape[2]}x{pictures.shape[1]}"


def encode_normals(normals: Tensor, convention: str = "opengl") -> Tensor:
    """The picture that `decode_normals` reads: mid grey where there is no normal. [..., 3]"""
    signs = normals.new_tensor(NORMALS_CONVENTIONS[convention])
    return (normals * signs + 1) / 2
