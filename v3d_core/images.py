"""Pictures as tensors: premultiplying, resizing, 8-bit conversion and contact sheets.

Colours are sRGB in [0, 1] and straight (not premultiplied) unless a name says otherwise.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from .cameras import resize_cameras
from .keying import key_uniform_background
from .structures import Views

__all__ = [
    "compare_side_by_side",
    "composite",
    "contact_sheet",
    "depth_picture",
    "from_uint8",
    "key_uniform_background",
    "premultiply",
    "resize_views",
    "to_uint8",
    "unpremultiply",
]

SMALLEST_ALPHA = 1e-4  # below it a colour is 0: 1/40 of the smallest step of an 8-bit mask
BICUBIC_A = -0.5  # Keys 1981: the kernel that reproduces quadratics; Pillow and torch antialias


def composite(
    images: Tensor,  # [..., H, W, 3]
    masks: Tensor,  # [..., H, W]
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:  # [..., H, W, 3]
    """Straight colours laid over one background colour, in display (sRGB) values."""
    alphas = masks[..., None]
    return images * alphas + images.new_tensor(background) * (1 - alphas)


def srgb_to_linear(colours: Tensor) -> Tensor:
    """Display values to linear light (IEC 61966-2-1). Any shape"""
    curve = ((colours.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4
    return torch.where(colours <= 0.04045, colours / 12.92, curve)


def linear_to_srgb(linear: Tensor) -> Tensor:
    """Linear light to display values (IEC 61966-2-1). Any shape"""
    curve = 1.055 * linear.clamp_min(0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, 12.92 * linear, curve)


def premultiply(images: Tensor, masks: Tensor) -> Tensor:  # [..., 3], [...] -> [..., 3]
    """Straight colours times coverage."""
    return images * masks[..., None]


def unpremultiply(premultiplied: Tensor, masks: Tensor) -> Tensor:  # [..., 3], [...] -> [..., 3]
    """Straight colours of premultiplied ones, clamped to [0, 1]; black where coverage is 0."""
    alphas = masks[..., None]
    straight = premultiplied / alphas.clamp_min(SMALLEST_ALPHA)
    return torch.where(alphas >= SMALLEST_ALPHA, straight, 0.0).clamp(0, 1)


def to_uint8(values: Tensor) -> Tensor:
    """Values in [0, 1] as rounded bytes of the same shape; what lies outside is clamped."""
    return (values.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)


def from_uint8(values: Tensor) -> Tensor:
    """Bytes as float32 in [0, 1] of the same shape."""
    return values.float() / 255


def resize_views(views: Views, width: int, height: int) -> Views:
    """The same views at another picture size; cameras and normals follow.

    Colours are resampled premultiplied, so the background never bleeds into the object. Per axis:
    exact area averaging when shrinking, bicubic (Keys 1981) when enlarging, clamped to [0, 1].

    Args:
        views: Views of any size.
        width: New width in pixels.
        height: New height in pixels.

    Returns:
        Views whose straight colours are black where the coverage is 0.
    """
    if width < 1 or height < 1:
        raise ValueError(f"resize_views: size must be positive, got {width}x{height}")
    if (width, height) == (views.cameras.width, views.cameras.height):
        return views
    masks = resize_pictures(views.masks[..., None], width, height)[..., 0].clamp(0, 1)
    colours = resize_pictures(premultiply(views.images, views.masks), width, height)
    normals = views.normals
    if normals is not None:
        normals = resize_pictures(normals, width, height)
        length = normals.norm(dim=-1, keepdim=True)
        # opposite normals cancel: below half length the direction is unknown
        normals = torch.where(length > 0.5, normals / length.clamp_min(0.5), 0.0)
    return dataclasses.replace(
        views,
        images=unpremultiply(colours, masks),
        masks=masks,
        cameras=resize_cameras(views.cameras, width, height),
        normals=normals,
    )


def fit_within(views: Views, longer_side: int) -> Views:
    """Views scaled down so that their longer side is at most `longer_side` px; 0 = as they are."""
    longer = max(views.cameras.width, views.cameras.height)
    if longer_side == 0 or longer <= longer_side:
        return views
    scale = longer_side / longer
    width = max(1, round(views.cameras.width * scale))
    return resize_views(views, width, max(1, round(views.cameras.height * scale)))


def crop_views(views: Views, margin: int) -> Views:
    """The same views cut to the box around all objects and `margin` pixels more; cameras follow."""
    covered = views.masks.amax(0) > 0
    rows, columns = torch.nonzero(covered.any(1))[:, 0], torch.nonzero(covered.any(0))[:, 0]
    if not len(rows):
        return views
    top, left = max(int(rows[0]) - margin, 0), max(int(columns[0]) - margin, 0)
    box = (
        slice(None),
        slice(top, int(rows[-1]) + 1 + margin),
        slice(left, int(columns[-1]) + 1 + margin),
    )
    images, masks = views.images[box], views.masks[box]
    K = views.cameras.K.clone()
    K[:, 0, 2] -= left
    K[:, 1, 2] -= top
    height, width = masks.shape[1:]
    cameras = dataclasses.replace(views.cameras, K=K, width=width, height=height)
    normals = None if views.normals is None else views.normals[box]
    return dataclasses.replace(views, images=images, masks=masks, cameras=cameras, normals=normals)


def resize_pictures(pictures: Tensor, width: int, height: int) -> Tensor:  # [V, H, W, C]
    """Pictures in another size: areas averaged where it is smaller, bicubic where larger."""
    source_height, source_width = pictures.shape[1:3]
    planes = pictures.permute(0, 3, 1, 2).contiguous()
    if source_height % height == 0 and source_width % width == 0:  # whole blocks: same, faster
        block = (source_height // height, source_width // width)
        resampled = torch.nn.functional.avg_pool2d(planes, block)
    else:
        rows = _resampling_weights(source_height, height).to(pictures)
        columns = _resampling_weights(source_width, width).to(pictures)
        resampled = rows @ planes @ columns.T
    return resampled.permute(0, 2, 3, 1).contiguous()


def _resampling_weights(source: int, target: int) -> Tensor:  # [target, source]
    """Row i holds the weights of the source pixels in target pixel i; each row sums to 1."""
    scale = source / target
    if target <= source:  # share of each source pixel that the target pixel covers
        low = torch.arange(target, dtype=torch.float64)[:, None] * scale
        left = torch.arange(source, dtype=torch.float64)[None]
        overlap = torch.minimum(low + scale, left + 1) - torch.maximum(low, left)
        return overlap.clamp_min(0) / scale
    centre = (torch.arange(target, dtype=torch.float64) + 0.5) * scale - 0.5
    first = centre.floor().long() - 1
    weights = torch.zeros(target, source, dtype=torch.float64)
    for tap in range(4):
        index = first + tap
        value = keys_kernel((centre - index).abs())
        weights.scatter_add_(1, index.clamp(0, source - 1)[:, None], value[:, None])
    return weights / weights.sum(1, keepdim=True)


def keys_kernel(x: Tensor) -> Tensor:
    a = BICUBIC_A
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


def contact_sheet(
    images: Tensor,  # [V, H, W, 3]
    columns: int | None = None,
    gap: int = 4,
) -> Tensor:  # [H', W', 3]
    """All pictures in one, row by row on white.

    Args:
        images: Colours in [0, 1]. [V, H, W, 3]
        columns: Pictures per row; None makes the sheet about square.
        gap: White pixels between neighbours.

    Returns:
        The sheet. [rows * (H + gap) - gap, columns * (W + gap) - gap, 3]
    """
    count, height, width, _ = images.shape
    if count == 0:
        raise ValueError("contact_sheet: no pictures")
    columns = math.ceil(math.sqrt(count)) if columns is None else min(columns, count)
    if columns < 1:
        raise ValueError(f"contact_sheet: columns must be at least 1, got {columns}")
    rows = math.ceil(count / columns)
    sheet = images.new_ones(rows * (height + gap) - gap, columns * (width + gap) - gap, 3)
    for index, image in enumerate(images):
        top = index // columns * (height + gap)
        left = index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


def compare_side_by_side(
    first: Tensor,  # [V, H, W, 3]
    second: Tensor,  # [V, H, W, 3]
    gain: float = 4.0,
) -> Tensor:  # [V, H, 3 * W, 3]
    """Each pair of pictures beside the absolute difference of its channels, times `gain`."""
    difference = ((first - second).abs() * gain).clamp(0, 1)
    return torch.cat([first, second, difference], dim=2)


def depth_picture(
    depths: Tensor,  # [V, H, W]
) -> Tensor:  # [V, H, W, 3]
    """Depth as grey: the nearest surface of all views is 1, the farthest and no surface are 0.

    Args:
        depths: Along the optical axis, world units; 0 = no surface. [V, H, W]
    """
    known = depths > 0
    if not bool(known.any()):
        return depths.new_zeros(*depths.shape, 3)
    near, far = depths[known].min(), depths[known].max()
    # a plane that faces the camera has one depth: it is near
    grey = 1 - (depths - near) / (far - near) if bool(far > near) else torch.ones_like(depths)
    return torch.where(known, grey, 0.0)[..., None].expand(-1, -1, -1, 3).contiguous()
