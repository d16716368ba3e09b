"""Projection of 3D Gaussians to the picture plane (EWA splatting; Kerbl et al. 2023, section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..structures import Cameras

NEAR_DEPTH = 0.01  # world units; V3D recon znear 0.01
LOW_PASS_VARIANCE = 0.3  # px^2 added to every footprint; Kerbl et al. 2023 rasteriser
MIN_ALPHA = 1.0 / 255.0  # contributions below one 8-bit step are dropped; Kerbl et al. 2023
MAX_ALPHA = 0.99  # keeps 1 - alpha away from 0 in the gradient; Kerbl et al. 2023
FRUSTUM_MARGIN = (
    1.3  # slopes are clamped at 1.3 x the half frame in the Jacobian; Kerbl et al. 2023
)


class Pinholes(NamedTuple):
    """Cameras of one picture size as inner loops hand them around: no checks, nothing read back."""

    world_to_camera: Tensor  # [V, 4, 4] OpenCV axes
    K: Tensor  # [V, 3, 3] pixels
    width: int
    height: int

    @classmethod
    def of(cls, cameras: Cameras) -> Pinholes:
        """The same cameras without their checks."""
        return cls(cameras.world_to_camera, cameras.K, cameras.width, cameras.height)

    @property
    def centres(self) -> Tensor:  # [V, 3]
        """Camera centres in world units."""
        rotation, shift = self.world_to_camera[:, :3, :3], self.world_to_camera[:, :3, 3:]
        return -(rotation.transpose(1, 2) @ shift)[..., 0]


@dataclass(frozen=True)
class Projected:
    """Footprints of N Gaussians in V pictures.

    Attributes:
        means2d: Centres in pixels. [V, N, 2]
        conics: Inverse covariance (a, b, c) of a x^2 + 2 b x y + c y^2, 1/px^2. [V, N, 3]
        depths: Depth along the optical axis, world units. [V, N]
        extents: Half width and half height in pixels of the box outside which alpha is below
            `MIN_ALPHA`; 0 where the Gaussian is invisible. Carries no gradient. [V, N, 2]
        depth_slopes: Change of the surface depth per pixel, world units/px: the point of highest
            density along the ray through a pixel, linearised at the centre. [V, N, 2]
    """

    means2d: Tensor
    conics: Tensor
    depths: Tensor
    extents: Tensor
    depth_slopes: Tensor


def quats_to_rotations(quats: Tensor) -> Tensor:  # [N, 4] -> [N, 3, 3]
    """Rotation matrices of quaternions wxyz of any length > 0."""
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).reshape(-1, 3, 3)


def project_gaussians(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    cameras: Cameras | Pinholes,
) -> Projected:
    """Footprints by the local affine approximation of the projection (Zwicker et al. 2001).

    Differentiable in means, quats and scales. Gaussians nearer than `NEAR_DEPTH` or whose opacity
    is below `MIN_ALPHA` get extent 0.

    Args:
        means: Centres, world units. [N, 3]
        quats: Rotations wxyz, any length > 0. [N, 4]
        scales: Standard deviations, world units. [N, 3]
        opacities: Peak opacities in [0, 1]; used for the extents only. [N]
        cameras: V cameras.

    Returns:
        The footprints in all V pictures.
    """
    world_to_camera = cameras.world_to_camera
    rotation = world_to_camera[:, :3, :3]  # [V, 3, 3]
    in_camera = means @ rotation.transpose(1, 2) + world_to_camera[:, None, :3, 3]  # [V, N, 3]
    x, y, depth = in_camera.unbind(-1)
    in_front = depth > NEAR_DEPTH
    inverse_depth = 1.0 / torch.where(in_front, depth, torch.ones_like(depth))
    slope_x, slope_y = x * inverse_depth, y * inverse_depth
    fx, fy = cameras.K[:, None, 0, 0], cameras.K[:, None, 1, 1]
    cx, cy = cameras.K[:, None, 0, 2], cameras.K[:, None, 1, 2]
    means2d = torch.stack([fx * slope_x + cx, fy * slope_y + cy], dim=-1)

    # columns of `axes` are the ellipsoid's semi-axes in camera space, so Sigma = axes axes^T
    axes = rotation[:, None] @ (quats_to_rotations(quats) * scales[:, None, :])  # [V, N, 3, 3]
    # slopes outside the frame by more than a margin are clamped; the frame may be a cut-out, so
    # its sides are measured from the principal point
    margin_x = (FRUSTUM_MARGIN - 1) * 0.5 * cameras.width
    margin_y = (FRUSTUM_MARGIN - 1) * 0.5 * cameras.height
    clamped_x = torch.clamp(
        slope_x, min=-(cx + margin_x) / fx, max=(cameras.width - cx + margin_x) / fx
    )
    clamped_y = torch.clamp(
        slope_y, min=-(cy + margin_y) / fy, max=(cameras.height - cy + margin_y) / fy
    )
    row_x = (fx * inverse_depth)[..., None] * (
        axes[..., 0, :] - clamped_x[..., None] * axes[..., 2, :]
    )
    row_y = (fy * inverse_depth)[..., None] * (
        axes[..., 1, :] - clamped_y[..., None] * axes[..., 2, :]
    )
    cov_xx = (row_x * row_x).sum(-1) + LOW_PASS_VARIANCE
    cov_xy = (row_x * row_y).sum(-1)
    cov_yy = (row_y * row_y).sum(-1) + LOW_PASS_VARIANCE
    inverse_det = 1.0 / (cov_xx * cov_yy - cov_xy * cov_xy)
    conics = torch.stack(
        [cov_yy * inverse_det, -cov_xy * inverse_det, cov_xx * inverse_det], dim=-1
    )

    with torch.no_grad():
        # alpha >= MIN_ALPHA  <=>  Mahalanobis^2 <= 2 ln(opacity / MIN_ALPHA); its bounding box
        # has half sides sqrt(that * variance) (Speedy-Splat's SnugBox, arXiv 2412.00578)
        reach = 2.0 * torch.log((opacities / MIN_ALPHA).clamp(min=1.0))
        extents = torch.sqrt(reach[:, None] * torch.stack([cov_xx, cov_yy], dim=-1))
        extents = extents * in_front[..., None]
    # covariance of depth with the picture coordinates, regressed on them: dz = cov(z, uv) cov(uv)^-1
    z_axis = axes[..., 2, :]
    cov_zx, cov_zy = (z_axis * row_x).sum(-1), (z_axis * row_y).sum(-1)
    slope_u = (cov_zx * cov_yy - cov_zy * cov_xy) * inverse_det
    slope_v = (cov_zy * cov_xx - cov_zx * cov_xy) * inverse_det
    return Projected(means2d, conics, depth, extents, torch.stack([slope_u, slope_v], dim=-1))
