"""Pictures of Gaussians: one contract, the choice of an engine, and the renderer everybody uses.

An engine turns footprints and colours into premultiplied colours and coverage, differentiable in
means2d, conics, colours and opacities. `torch_raster` is the definition and runs anywhere;
`warp_raster` is the fast one on CPU. `V3D_RASTERIZER=torch` or `warp` forces one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from .. import backends
from ..sh import eval_sh
from ..structures import Cameras, GaussianSplats
from .projection import Projected, project_gaussians
from .torch_raster import rasterize_torch, surface_depths_torch

logger = logging.getLogger(__name__)

ENGINE_VARIABLE = "V3D_RASTERIZER"
# Self-check bounds. A pair at the 1/255 cut may fall on either side in single precision and then
# changes one pixel by up to 1/255, so the mean is bounded tightly and the maximum loosely.
CHECK_MEAN_ERROR = 1e-4
CHECK_MAX_ERROR = 1.5 / 255
CHECK_GRADIENT_ERROR = 2e-2

# (footprints, colours [V, N, 3], opacities [N], width, height) -> [V, H, W, 4]
Rasterizer = Callable[[Projected, Tensor, Tensor, int, int], Tensor]


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
) -> tuple[Tensor, Tensor, Projected]:
    """Differentiable pictures without background.

    Returns:
        Colours premultiplied by coverage [V, H, W, 3], coverage [V, H, W], and the footprints;
        densification reads the gradient of their centres.
    """
    projected = project_gaussians(means, quats, scales, opacities, cameras)
    if projected.means2d.requires_grad:
        projected.means2d.retain_grad()
    to_gaussian = means - cameras.centres[:, None]
    colours = eval_sh(sh, torch.nn.functional.normalize(to_gaussian, dim=-1))
    _, engine = choose_engine(means.device, means.dtype)
    picture = engine(projected, colours, opacities, cameras.width, cameras.height)
    return picture[..., :3], picture[..., 3], projected


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
    size = (cameras.width, cameras.height)
    pictures = []
    for v in range(len(cameras)):  # one at a time: memory stays that of one picture
        camera = cameras[v]
        s = splats
        colours, alpha, projected = rasterize(s.means, s.quats, s.scales, s.opacities, s.sh, camera)
        colours = colours + (1 - alpha[..., None]) * colours.new_tensor(background)
        if depths:
            depth = surface_depths_torch(projected, s.opacities, *size)
        else:
            depth = torch.zeros_like(alpha)
        pictures.append((colours.clamp(0, 1), alpha.clamp(0, 1), depth))
    colours, alphas, depth_maps = (torch.cat(parts) for parts in zip(*pictures, strict=True))
    return Rendered(colours, alphas, depth_maps)


def composite_torch(
    projected: Projected, colours: Tensor, opacities: Tensor, width: int, height: int
) -> Tensor:
    """The oracle as an engine: a channel of ones gives the coverage."""
    features = torch.cat([colours, torch.ones_like(colours[..., :1])], dim=-1)
    return rasterize_torch(projected, features, opacities, width, height)


def choose_engine(device: torch.device, dtype: torch.dtype) -> tuple[str, Rasterizer]:
    """Name and function of the engine for tensors of a device and dtype.

    Raises:
        ValueError: `V3D_RASTERIZER` names an engine that does not exist or cannot run here.
    """
    forced = os.environ.get(ENGINE_VARIABLE, "")
    if forced not in ("", "torch", "warp"):
        raise ValueError(f"{ENGINE_VARIABLE}={forced}: known engines are torch and warp")
    if forced == "torch" or device.type != "cpu" or dtype != torch.float32:
        return "torch", composite_torch
    engine, reason = _warp_engine()
    if engine is None:
        if forced == "warp":
            raise ValueError(f"{ENGINE_VARIABLE}=warp, but {reason}")
        return "torch", composite_torch
    return "warp", engine


@contextmanager
def cores_for_engine(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Scope of a fit: torch keeps to one thread where its idle ones would hinder Warp's.

    torch's OpenMP threads spin for a while after each operation and take the cores from Warp's
    threads; on a busy 2-core machine a fit took 186 s instead of 20 s. With OMP_WAIT_POLICY=PASSIVE,
    which the command line sets, they sleep and help: 49 instead of 65 ms per step (measured).
    """
    before = torch.get_num_threads()
    passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    if choose_engine(device, dtype)[0] == "warp" and not passive:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def _warp_engine() -> tuple[Rasterizer | None, str]:
    """The Warp engine if it imports and agrees with the oracle, and why not otherwise."""
    if not backends.is_installed("warp"):
        reason = "warp is not installed; pip install warp-lang makes fits on CPU 7 times faster"
        logger.warning("rasterizer on CPU: torch (%s)", reason)
        return None, reason
    try:
        from .warp_raster import rasterize_warp

        with torch.inference_mode(False), torch.enable_grad():
            problem = compare_with_oracle(rasterize_warp)
        if not problem:
            logger.info("rasterizer on CPU: warp (agrees with the torch oracle)")
            return rasterize_warp, ""
    except Exception as error:  # a broken native package raises anything; torch still works
        problem = f"it does not run: {error}"
    reason = f"the warp rasteriser is not used: {problem}"
    logger.warning("rasterizer on CPU: torch (%s)", reason)
    return None, reason


def compare_with_oracle(engine: Rasterizer, size: int = 40, count: int = 200) -> str:
    """What is wrong with an engine on a random scene, or an empty string.

    Both the picture and the gradients of every input are compared with the torch oracle.
    """
    generator = torch.Generator().manual_seed(0)
    width, height = size, size - 7  # no multiples of a tile

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    centres = uniform(2, count, 2) * torch.tensor([width, height])
    spread = 1.0 / (0.5 + 4 * uniform(2, count)).square()
    tilt = (uniform(2, count) - 0.5) * spread
    conics = torch.stack([spread, tilt, spread], dim=-1)
    variance = spread / (spread * spread - tilt * tilt)
    opacities = 0.05 + 0.95 * uniform(count)
    reach = 2 * torch.log(opacities * 255)
    extents = (reach * variance).sqrt()[..., None].expand(-1, -1, 2).contiguous()
    depths = uniform(2, count)
    weights = uniform(2, height, width, 4)
    colours = uniform(2, count, 3)

    results = []
    for candidate in (engine, composite_torch):
        inputs = [t.clone().requires_grad_() for t in (centres, conics, colours, opacities)]
        slopes = torch.zeros_like(centres)
        footprints = Projected(inputs[0], inputs[1], depths, extents, slopes)
        picture = candidate(footprints, inputs[2], inputs[3], width, height)
        (picture * weights).sum().backward()
        results.append((picture.detach(), [t.grad for t in inputs]))
    (picture, gradients), (oracle, oracle_gradients) = results
    error = (picture - oracle).abs()
    if not float(error.mean()) < CHECK_MEAN_ERROR or not float(error.max()) < CHECK_MAX_ERROR:
        return (
            f"pictures differ by {float(error.mean()):.2g} (mean), {float(error.max()):.2g} (most)"
        )
    names = ("centres", "conics", "colours", "opacities")
    for name, mine, true in zip(names, gradients, oracle_gradients, strict=True):
        difference = float((mine - true).norm() / true.norm())
        if not difference < CHECK_GRADIENT_ERROR:
            return f"gradients of the {name} differ by {difference:.2g} of their length"
    return ""
