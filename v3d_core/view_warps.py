"""Smooth 2-D warps of pictures on a coarse grid of cubic B-splines, and what belongs to them.

Positions and displacements are fractions of the picture's longer side, so a warp means the same at
every resolution; displacement (dx, dy) at a pixel says where the picture is read.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .structures import Cameras


def pixel_positions(height: int, width: int, like: Tensor) -> Tensor:  # [H, W, 2]
    """Pixel centres (x, y) in fractions of the longer side, (0, 0) in the picture's middle."""
    longer = max(height, width)
    x = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5 - width / 2) / longer
    y = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5 - height / 2) / longer
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)


def node_positions(nodes: int, like: Tensor) -> Tensor:  # [nodes]
    """Where the spline nodes lie along an axis: one step beyond either end of [-1/2, 1/2]."""
    return (torch.arange(nodes, device=like.device, dtype=like.dtype) - 1) / (nodes - 3) - 0.5


def spline_basis(nodes: int, positions: Tensor) -> Tensor:  # [P] -> [P, nodes]
    """Uniform cubic B-splines on [-1/2, 1/2] at the given positions; every row sums to 1."""
    distance = ((positions[:, None] - node_positions(nodes, positions)) * (nodes - 3)).abs()
    near = (4 - 6 * distance**2 + 3 * distance**3) / 6
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def evaluate_warps(
    coefficients: Tensor,  # [V, 2, n, n]
    height: int,
    width: int,
) -> Tensor:  # [V, H, W, 2]
    """Displacements at the pixels of a picture; axis 2 of the coefficients runs downwards."""
    nodes = coefficients.shape[-1]
    positions = pixel_positions(height, width, coefficients)
    columns = spline_basis(nodes, positions[0, :, 0])
    rows = spline_basis(nodes, positions[:, 0, 1])
    return torch.einsum("ym,vcmn,xn->vyxc", rows, coefficients, columns)


def warp_precision(
    nodes: int,
    flow_std: float,
    flow_length: float,
    shift_std: float,
    zoom_std: float,
    like: Tensor,
) -> Tensor:  # [n * n, n * n] float64
    """Inverse covariance of one component of a warp's coefficients: how unlikely a warp is.

    A warp is a Gaussian process (Rasmussen and Williams 2006): a smooth part of Matern form
    (nu = 3/2, eq. 4.17), a shift, and a part linear in the position (zoom, roll, shear).
    """
    line = node_positions(nodes, like).double()
    y, x = (axis.reshape(-1) for axis in torch.meshgrid(line, line, indexing="ij"))
    distance = ((x[:, None] - x) ** 2 + (y[:, None] - y) ** 2).sqrt()
    scaled = math.sqrt(3) * distance / flow_length
    covariance = flow_std**2 * (1 + scaled) * torch.exp(-scaled)
    covariance = covariance + shift_std**2 + zoom_std**2 * (x[:, None] * x + y[:, None] * y)
    return torch.linalg.inv(covariance)


def view_precision(
    cameras: Cameras,
    centre: Tensor,  # [3]
    length: float,
    own: float,
) -> Tensor:  # [V, V] float64
    """Inverse correlation of warps seen from different sides.

    What a video model does to a frame it does similarly to the next: Matern (nu = 3/2) in the
    distance of the viewing directions on the unit sphere. The order of the views is not used.

    Args:
        cameras: Of the views.
        centre: Of the object, world units.
        length: Distance over which warps change.
        own: Share of the variance that a view shares with no other.
    """
    towards = F.normalize(cameras.centres - centre, dim=-1).double()
    scaled = math.sqrt(3) / length * (towards[:, None] - towards).norm(dim=-1)
    correlation = (1 - own) * (1 + scaled) * torch.exp(-scaled)
    correlation.diagonal().add_(own)
    return torch.linalg.inv_ex(correlation)[0].contiguous()


def read_displaced(
    pictures: Tensor,  # [V, C, H, W]
    displacements: Tensor,  # [V, H, W, 2]
    *,
    bicubic: bool = False,
) -> Tensor:  # [V, C, H, W]
    """Pictures read at every pixel plus its displacement; edges are extended."""
    height, width = displacements.shape[1:3]
    longer = max(height, width)
    positions = pixel_positions(height, width, displacements) + displacements
    grid = positions * (2 * longer / positions.new_tensor([width, height]))
    mode = "bicubic" if bicubic else "bilinear"
    return F.grid_sample(pictures, grid, mode=mode, padding_mode="border", align_corners=False)


def read_at(
    pictures: Tensor,  # [V, C, H, W]
    positions: Tensor,  # [V, P, 2]
) -> Tensor:  # [V, C, P]
    """Pictures read between pixels at positions as of `pixel_positions`; edges are extended."""
    height, width = pictures.shape[2:]
    grid = positions[:, None] * (2 * max(height, width) / positions.new_tensor([width, height]))
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)[:, :, 0]


def gaussian_blur(pictures: Tensor, sigma: float) -> Tensor:  # [V, C, H, W], px
    """Gaussian blur with extended edges."""
    radius = math.ceil(3 * sigma)
    offsets = torch.arange(-radius, radius + 1, device=pictures.device, dtype=pictures.dtype)
    line = torch.exp(-0.5 * (offsets / sigma) ** 2)
    line = line / line.sum()
    channels = pictures.shape[1]
    across = line.view(1, 1, 1, -1).expand(channels, 1, 1, -1)
    down = line.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    wide = F.pad(pictures, (radius, radius, 0, 0), mode="replicate")
    tall = F.pad(F.conv2d(wide, across, groups=channels), (0, 0, radius, radius), mode="replicate")
    return F.conv2d(tall, down, groups=channels)


def picture_gradients(pictures: Tensor) -> Tensor:  # [V, C, H, W] -> [V, C, H, W, 2]
    """Central differences along x and y per unit of the longer side."""
    longer = max(pictures.shape[2:])
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    along_x = padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]
    along_y = padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]
    return torch.stack([along_x, along_y], dim=-1) * (longer / 2)
