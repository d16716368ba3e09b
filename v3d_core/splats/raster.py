"""Pictures of Gaussians: the contract of an engine, and the renderer everybody uses.

An engine turns Gaussians and colours into premultiplied pictures, differentiable in all of them.
`rasterize_torch` of `torch_raster` is the definition and runs anywhere; `engines` chooses a faster
one that agrees with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..sh import colours_from_dc, eval_sh
from ..structures import Cameras, GaussianSplats
from .engines import choose_engine, surface_depths
from .projection import Pinholes

RECORDS_AT_ONCE = 2_000_000  # Gaussians times pictures rendered together: 128 MB on a GPU


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
    cameras: Cameras | Pinholes,
    pull: Tensor | None = None,  # [N]
) -> Tensor:  # [V, H, W, 4]
    """Differentiable pictures without background: premultiplied sRGB, and coverage.

    Args:
        means: Centres, world units. [N, 3]
        quats: Rotations wxyz of any length > 0. [N, 4]
        scales: Standard deviations, world units. [N, 3]
        opacities: Peak opacities in [0, 1]. [N]
        sh: Spherical-harmonic coefficients of the colour. [N, K, 3]
        cameras: V cameras.
        pull: As in `engines.Rasterizer`. [N]
    """
    pinholes = Pinholes.of(cameras) if isinstance(cameras, Cameras) else cameras
    if sh.shape[1] == 1:
        colours = colours_from_dc(sh[:, 0]).clamp(min=0)[None]
    else:
        to_gaussian = means - pinholes.centres[:, None]
        colours = eval_sh(sh, torch.nn.functional.normalize(to_gaussian, dim=-1))
    engine = choose_engine(means.device, means.dtype).rasterize
    return engine(means, quats, scales, opacities, colours, pinholes, pull)


@torch.no_grad()
def render_splats(
    splats: GaussianSplats,
    cameras: Cameras,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    *,
    depths: bool = True,
) -> Rendered:
    """Exact sRGB pictures of a splat, the ones the fit optimises, on any device.

    Args:
        splats: What to draw.
        cameras: From where.
        background: sRGB colour behind the splat.
        depths: Whether depth is wanted; without it `Rendered.depths` is zero and time is saved.
    """
    cameras = cameras.to(splats.device, splats.means.dtype)
    pinholes = Pinholes.of(cameras)
    s = splats
    pictures = []
    for v in range(len(cameras)):  # one at a time: memory stays that of one picture
        pinhole = Pinholes(
            pinholes.world_to_camera[v : v + 1], pinholes.K[v : v + 1], *pinholes[2:]
        )
        picture = rasterize(s.means, s.quats, s.scales, s.opacities, s.sh, pinhole)
        colours, alpha = picture[..., :3], picture[..., 3]
        colours = colours + (1 - alpha[..., None]) * colours.new_tensor(background)
        if depths:
            depth = surface_depths(s.means, s.quats, s.scales, s.opacities, pinhole)
        else:
            depth = torch.zeros_like(alpha)
        pictures.append((colours.clamp(0, 1), alpha.clamp(0, 1), depth))
    colours, alphas, depth_maps = (torch.cat(parts) for parts in zip(*pictures, strict=True))
    return Rendered(colours, alphas, depth_maps)
