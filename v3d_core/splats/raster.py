"""Pictures of Gaussians: one contract for every engine, and the renderer everybody uses.

An engine composites per-Gaussian features front to back as `torch_raster.rasterize_torch` does;
that function is the definition others are checked against.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sh import eval_sh
from ..structures import Cameras, GaussianSplats
from .projection import project_gaussians
from .torch_raster import rasterize_torch, surface_depths_torch


@dataclass(frozen=True)
class Rendered:
    """Pictures of a splat.

    Attributes:
        colours: sRGB composited on the background, in [0, 1]. [V, H, W, 3]
        alphas: Coverage in [0, 1]. [V, H, W]
        depths: Depth of the surface along the optical axis, world units; 0 where the coverage
            stays below one half. [V, H, W]
    """

    colours: Tensor
    alphas: Tensor
    depths: Tensor


def rasterize(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    sh: Tensor,  # [N, K, 3]
    cameras: Cameras,
) -> tuple[Tensor, Tensor, Tensor]:
    """Differentiable pictures without background.

    Returns:
        Colours premultiplied by coverage [V, H, W, 3], coverage [V, H, W], and the projected
        centres in pixels, whose gradient densification reads [V, N, 2].
    """
    projected = project_gaussians(means, quats, scales, opacities, cameras)
    if projected.means2d.requires_grad:
        projected.means2d.retain_grad()
    to_gaussian = means - cameras.centres[:, None]
    colours = eval_sh(sh, torch.nn.functional.normalize(to_gaussian, dim=-1))
    features = torch.cat([colours, torch.ones_like(colours[..., :1])], dim=-1)
    picture = rasterize_torch(projected, features, opacities, cameras.width, cameras.height)
    return picture[..., :3], picture[..., 3], projected.means2d


@torch.no_grad()
def render_splats(
    splats: GaussianSplats,
    cameras: Cameras,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Rendered:
    """Exact sRGB pictures of a splat, the ones the fit optimises, on any device."""
    cameras = cameras.to(splats.device, splats.means.dtype)
    pictures = []
    for v in range(len(cameras)):  # one at a time: memory stays that of one picture
        camera = cameras[v]
        projected = project_gaussians(
            splats.means, splats.quats, splats.scales, splats.opacities, camera
        )
        colours, alpha, _ = rasterize(
            splats.means, splats.quats, splats.scales, splats.opacities, splats.sh, camera
        )
        colours = colours + (1 - alpha[..., None]) * colours.new_tensor(background)
        depth = surface_depths_torch(projected, splats.opacities, camera.width, camera.height)
        pictures.append((colours.clamp(0, 1), alpha.clamp(0, 1), depth))
    colours, alphas, depths = (torch.cat(parts) for parts in zip(*pictures, strict=True))
    return Rendered(colours, alphas, depths)
