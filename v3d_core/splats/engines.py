"""Which rasteriser runs: one contract, three engines, each checked against the oracle before use.

`warp` are the built-in kernels (CPU and CUDA), `gsplat` is used on CUDA where somebody has built
it, `torch` is the definition and runs anywhere. The choice is made once per device, with a log
line that says which and why; `V3D_RASTERIZER=warp`, `gsplat` or `torch` forces one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..fit_threads import cores_for_warp
from .projection import Pinholes, project_gaussians
from .torch_raster import rasterize_torch, surface_depths_torch

logger = logging.getLogger(__name__)

ENGINE_VARIABLE = "V3D_RASTERIZER"
# Self-check bounds. A pair at the 1/255 cut may fall on either side in single precision and then
# changes one pixel by up to 1/255, so the mean is bounded tightly and the maximum loosely.
CHECK_MEAN_ERROR = 2e-5
CHECK_MAX_ERROR = 1.5 / 255
CHECK_GRADIENT_ERROR = 1e-2
CHECK_LOW_OPACITY, CHECK_HIGH_OPACITY = 0.02, 0.98  # gsplat cuts alpha at 0.999, the oracle at 0.99

# (means [N, 3], quats [N, 4], scales [N, 3], opacities [N], colours [V or 1, N, 3], cameras,
#  pull [N] or None) -> premultiplied sRGB and coverage [V, H, W, 4], differentiable in the first
# five. The backward pass adds to `pull` how hard the pictures pull at each Gaussian: the sum over
# pictures of the length of the gradient by its projected centre in pixels.
Rasterizer = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Pinholes, Tensor | None], Tensor]


class Engine(NamedTuple):
    """A rasteriser by name."""

    name: str  # torch, warp or gsplat
    rasterize: Rasterizer
    capturable: bool  # whether a step with it can be captured as a CUDA graph


def rasterize_oracle(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colours: Tensor,  # [V or 1, N, 3]
    pinholes: Pinholes,
    pull: Tensor | None = None,  # [N]
) -> Tensor:  # [V, H, W, 4]
    """The definition of an engine in plain torch; a channel of ones gives the coverage."""
    projected = project_gaussians(means, quats, scales, opacities, pinholes)
    if pull is not None and projected.means2d.requires_grad:

        def add_up(grad: Tensor) -> None:
            pull.add_(grad.norm(dim=-1).sum(0))

        projected.means2d.register_hook(add_up)
    colours = colours.expand(len(pinholes.K), -1, -1)
    features = torch.cat([colours, torch.ones_like(colours[..., :1])], dim=-1)
    return rasterize_torch(projected, features, opacities, pinholes.width, pinholes.height)


ORACLE = Engine("torch", rasterize_oracle, capturable=False)


def surface_depths(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, pinholes: Pinholes
) -> Tensor:  # [V, H, W]
    """Depth where the ray's transmittance falls through one half; 0 where it never does."""
    if means.device.type == "cuda" and choose_engine(means.device, means.dtype).name == "warp":
        from .warp_cuda_raster import surface_depths_warp_cuda

        return surface_depths_warp_cuda(means, quats, scales, opacities, pinholes)
    projected = project_gaussians(means, quats, scales, opacities, pinholes)
    return surface_depths_torch(projected, opacities, pinholes.width, pinholes.height)


def choose_engine(device: torch.device, dtype: torch.dtype) -> Engine:
    """The engine for tensors of a device and dtype.

    Raises:
        ValueError: `V3D_RASTERIZER` names an engine that does not exist or cannot run here.
    """
    forced = os.environ.get(ENGINE_VARIABLE, "")
    if forced not in ("", "torch", "warp", "gsplat"):
        raise ValueError(f"{ENGINE_VARIABLE}={forced}: known engines are torch, warp and gsplat")
    if forced == "torch" or device.type not in ("cpu", "cuda") or dtype != torch.float32:
        return ORACLE
    device = _numbered(device)
    if forced:
        engine, reason = find_engine(forced, device)
        if engine is None:
            raise ValueError(f"{ENGINE_VARIABLE}={forced}, but {reason}")
        return engine
    return _best_engine(device)[0]


def explain_choice(device: torch.device) -> tuple[str, list[str]]:
    """The engine of float32 tensors on a device, and why none that comes before it.

    Raises:
        ValueError: As `choose_engine`.
    """
    engine = choose_engine(device, torch.float32)
    if forced := os.environ.get(ENGINE_VARIABLE, ""):
        return engine.name, [f"{ENGINE_VARIABLE}={forced} forces it"]
    if device.type not in ("cpu", "cuda"):
        return engine.name, [f"no other one runs on {device.type}"]
    return engine.name, list(_best_engine(_numbered(device))[1])


def _numbered(device: torch.device) -> torch.device:
    """`cuda` as the device that it stands for."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


@cache
def _best_engine(device: torch.device) -> tuple[Engine, tuple[str, ...]]:
    """The first engine that runs and agrees; says which it is, and what to do for a better one."""
    reasons: list[str] = []
    for name in ("warp", "gsplat") if device.type == "cuda" else ("warp",):
        engine, reason = find_engine(name, device)
        if engine is not None:
            logger.info("rasterizer on %s: %s (agrees with the torch oracle)", device, name)
            for missed in reasons:
                logger.warning("rasterizer on %s: %s", device, missed)
            return engine, tuple(reasons)
        reasons.append(reason)
    logger.warning("rasterizer on %s: torch, which is slow (%s)", device, "; ".join(reasons))
    return ORACLE, tuple(reasons)


@cache
def find_engine(name: str, device: torch.device) -> tuple[Engine | None, str]:
    """An engine if it imports and agrees with the oracle, or None and why not."""
    if name == "torch":
        return ORACLE, ""
    if name == "warp" and not backends.is_installed("warp"):
        return None, "warp is not installed; pip install warp-lang makes fits many times faster"
    if name == "gsplat":
        built, reason = backends.gsplat_is_built()
        if device.type != "cuda" or not built:
            return None, reason if not built else "gsplat runs on CUDA only"
    try:
        engine = _load(name, device)
        with torch.inference_mode(False), torch.enable_grad():
            problem = compare_with_oracle(engine.rasterize, device)
    except torch.OutOfMemoryError:  # says nothing about the engine
        raise
    except Exception as error:  # a broken native package raises anything; torch still works
        problem = f"it does not run: {error}"
    else:
        if not problem:
            return engine, ""
    return None, f"the {name} rasteriser is not used: {problem}"


def available_engines(device: torch.device) -> list[Engine]:
    """All engines that run on a device and agree with the oracle, the oracle last."""
    found = [find_engine(name, device)[0] for name in ("warp", "gsplat")]
    return [engine for engine in found if engine is not None] + [ORACLE]


def _load(name: str, device: torch.device) -> Engine:
    if name == "gsplat":
        from .gsplat_raster import rasterize_gsplat

        return Engine(name, rasterize_gsplat, capturable=False)
    if device.type == "cuda":
        from .warp_cuda_raster import rasterize_warp_cuda

        return Engine(name, rasterize_warp_cuda, capturable=True)
    from .warp_raster import rasterize_warp

    return Engine(name, rasterize_warp, capturable=False)


@contextmanager
def cores_for_engine(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Scope of a fit: torch keeps to one thread where its idle ones would hinder Warp's."""
    on_cpu = device.type == "cpu"
    with cores_for_warp(device, on_cpu and choose_engine(device, dtype).name == "warp"):
        yield


def compare_with_oracle(
    engine: Rasterizer, device: torch.device | None = None, size: int = 40, count: int = 200
) -> str:
    """What is wrong with an engine on a random scene, or an empty string.

    Both the picture and the gradients of every input are compared with the torch oracle, on
    `device` (by default the CPU).
    """
    generator = torch.Generator().manual_seed(0)
    width, height = size, size - 7  # no multiples of a tile

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    world_to_camera = torch.eye(4, device=device).repeat(2, 1, 1)
    world_to_camera[:, 2, 3] = 2.0
    world_to_camera[1, :3, :3] = world_to_camera.new_tensor([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
    K = torch.tensor([[size, 0, width / 2], [0, size, height / 2], [0, 0, 1.0]], device=device)
    pinholes = Pinholes(world_to_camera, K.repeat(2, 1, 1), width, height)
    span = CHECK_HIGH_OPACITY - CHECK_LOW_OPACITY
    scene = (
        0.5 * normal(count, 3),
        normal(count, 4),
        0.06 * torch.exp(0.7 * normal(count, 3)),
        CHECK_LOW_OPACITY + span * uniform(count),
        uniform(2, count, 3),
    )
    weights = uniform(2, height, width, 4)
    results = []
    for candidate in (engine, rasterize_oracle):
        inputs = [t.clone().requires_grad_() for t in scene]
        pull = torch.zeros(count, device=device)
        picture = candidate(*inputs, pinholes, pull)  # type: ignore[arg-type]
        (picture * weights).sum().backward()
        results.append((picture.detach(), [*(t.grad for t in inputs), pull]))
    (picture, gradients), (oracle, oracle_gradients) = results
    error = (picture - oracle).abs()
    if not float(error.mean()) < CHECK_MEAN_ERROR or not float(error.max()) < CHECK_MAX_ERROR:
        return (
            f"pictures differ by {float(error.mean()):.2g} (mean), {float(error.max()):.2g} (most)"
        )
    names = ("centres", "quaternions", "scales", "opacities", "colours", "projected centres")
    for name, mine, true in zip(names, gradients, oracle_gradients, strict=True):
        difference = float((mine - true).norm() / true.norm())
        if not difference < CHECK_GRADIENT_ERROR:
            return f"gradients of the {name} differ by {difference:.2g} of their length"
    return ""
