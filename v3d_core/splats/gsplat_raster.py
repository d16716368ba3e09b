"""gsplat (Apache-2.0, nerfstudio) as an engine, where its CUDA code is already compiled.

Read against gsplat 1.5.3. Its picture is the oracle's except for this:

- A pixel ends *before* the Gaussian that would bring its transmittance to `STOP_TRANSMITTANCE` or
  below; the oracle goes on. What is missing is at most the transmittance in front of that Gaussian,
  which is at most 0.01 while opacities stay below `MAX_ALPHA` and mostly near 1e-4. Pixels whose
  final transmittance stays above `STOP_TRANSMITTANCE` are not touched by this.
- Alpha is clamped at 0.999 instead of `MAX_ALPHA` (0.99): the same while opacities are <= 0.99,
  which the fit sees to. Opacities above that are not lowered here, because clamping an opacity is
  not the same as clamping an alpha.
- A pair whose exponent rounds to just above 0 is dropped: only possible within rounding of a centre.
- CUDA's fast exp (relative error about 1e-6) and float32 only; gradients are summed by atomics, so
  they repeat to rounding, not bit for bit. Transmittance is rebuilt back to front from
  `1 - coverage`: in nearly opaque pixels (1e-4 left) gradients are off by up to 3e-4.

The same in both: cut at 1/255, 0.3 px^2 of low pass, near plane at 0.01, the Jacobian's slopes
clamped 0.3 half frames outside the frame, order by the depth of centres, pixel centres at + 0.5, the pair's gradient 0 where alpha is clamped.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from .. import backends
from .projection import LOW_PASS_VARIANCE, NEAR_DEPTH, Pinholes

TILE = 16  # pixels; gsplat's own default, "other values are not tested"
STOP_TRANSMITTANCE = 1e-4  # compiled into gsplat's kernels


def rasterize_gsplat(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colours: Tensor,  # [V or 1, N, 3]
    cameras: Pinholes,
    pull: Tensor | None = None,  # [N]
) -> Tensor:  # [V, H, W, 4]
    """Premultiplied colours and coverage of all views at once; the engine contract of `engines`."""
    views, width, height = len(cameras.K), cameras.width, cameras.height
    if len(means) == 0:  # gsplat divides by the number of Gaussians
        nothing = means.sum() + quats.sum() + scales.sum() + opacities.sum() + colours.sum()
        return nothing + means.new_zeros(views, height, width, 4)
    gsplat = _gsplat()
    radii, means2d, depths, conics, _ = gsplat.fully_fused_projection(
        means,
        None,
        quats,
        scales,
        cameras.world_to_camera,
        cameras.K,
        width,
        height,
        eps2d=LOW_PASS_VARIANCE,
        near_plane=NEAR_DEPTH,
        packed=False,
        opacities=opacities.detach(),  # for tight boxes only
    )
    if pull is not None and means2d.requires_grad:
        means2d.register_hook(lambda gradient: _add_lengths(pull, gradient))
    columns, rows = -(-width // TILE), -(-height // TILE)
    _, pair_keys, pair_gaussians = gsplat.isect_tiles(
        means2d, radii, depths, TILE, columns, rows, packed=False, n_images=views
    )
    tile_starts = gsplat.isect_offset_encode(pair_keys, views, columns, rows)
    picture, coverage = gsplat.rasterize_to_pixels(
        means2d,
        conics,
        colours.expand(views, -1, -1),
        opacities.expand(views, -1),
        width,
        height,
        TILE,
        tile_starts,
        pair_gaussians,
        packed=False,
    )
    return torch.cat([picture, coverage], dim=-1)


def _add_lengths(pull: Tensor, gradient: Tensor) -> None:  # [N], [V, N, 2]
    pull += gradient.norm(dim=-1).sum(0)


@cache
def _gsplat() -> ModuleType:
    module, reason = backends.load_gsplat()
    if module is None:
        raise backends.MissingPackageError(reason)
    return module
