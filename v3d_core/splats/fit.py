"""Fit 3D Gaussians to posed pictures of an object (Kerbl et al. 2023, adapted to orbits)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..images import composite, crop_views, resize_views
from ..progress import Progress, silent
from ..structures import Cameras, GaussianSplats, Views
from ..unseen import trim_unseen
from ..visual_hull import VisualHull, tight_visual_hull
from .config import SplatFitConfig
from .densify import Parameters, split_and_prune
from .engines import choose_engine, cores_for_engine
from .init import splats_from_hull
from .optimise import Stepper, draw, on_fit_stream
from .projection import LOW_PASS_VARIANCE, Pinholes
from .raster import render_splats
from .schedule import Pace, densify_fractions, rates_at

MARGIN = 16  # px kept around the objects: SSIM's windows reach 10 px, frames may shift by some


@dataclass(frozen=True)
class SplatFit:
    """What a fit leaves behind.

    Attributes:
        splats: The Gaussians, world frame.
        report: Plain figures about the run, ready for JSON.
        views: The views as they were fitted: aligned where they disagreed, else as they came.
    """

    splats: GaussianSplats
    report: dict[str, Any]
    views: Views


def never() -> bool:
    """A `finish` nobody presses."""
    return False


def fit_splats(
    views: Views,
    config: SplatFitConfig,
    *,
    progress: Progress = silent,
    test_views: Views | None = None,
    finish: Callable[[], bool] = never,
) -> SplatFit:
    """Fit Gaussians to all views on the views' device.

    Start: flat discs on the visual hull. Per step: some views over random backgrounds, L1 + SSIM
    against the picture and L1 of the coverage against the mask, Adam. Now and then Gaussians that
    pull hardest on the picture are split until the budget is reached, and faint ones removed.
    The same seed gives the same bits on CPU.

    Args:
        views: At least two posed pictures with masks.
        config: Settings; see `splat_preset`.
        progress: Told about every step; raising in it cancels the fit.
        test_views: Held-out views that are scored and never fitted, or None.
        finish: Asked every few steps; True ends the fit and keeps what there is.

    Returns:
        The splat in the world frame, figures about the run, and the views as they were fitted.

    Raises:
        ValueError: Fewer than two views, or masks that have no common volume.
    """
    started = time.perf_counter()
    if len(views) < 2:
        raise ValueError(
            f"a splat needs at least 2 views to have depth, got {len(views)}; "
            "connect the whole orbit"
        )
    device, dtype = views.device, views.images.dtype
    with cores_for_engine(device, dtype), on_fit_stream(device):
        small = _at_resolution(views, config.resolution)
        fitted, steps, stopped = _optimise(small, config, progress, finish, started)
        psnr_train = _psnr_on_white(fitted, small)
        splats = _for_cameras(fitted, small.cameras, views.cameras)
        report: dict[str, Any] = {
            "steps": steps,
            "splats": len(splats),
            "seconds": round(time.perf_counter() - started, 3),
            "psnr_train": round(psnr_train, 3),
            "resolution": max(small.cameras.width, small.cameras.height),
            "seed": config.seed,
            "engine": choose_engine(device, dtype).name,
            "device": str(device),
            "stopped": stopped,
        }
        if test_views is not None:
            report["psnr_test"] = round(_psnr_on_white(splats, test_views), 3)
    return SplatFit(splats, report, views)


def _optimise(
    views: Views,
    config: SplatFitConfig,
    progress: Progress,
    finish: Callable[[], bool],
    started: float,
) -> tuple[GaussianSplats, int, str]:
    """The loop: steps at their pace, and now and then a split.

    Returns:
        The Gaussians, how many steps were taken, and why no more.
    """
    generator = torch.Generator().manual_seed(config.seed)  # on CPU: same draws on every device
    hull = _hull(views, config, progress)
    initial = min(config.initial_splats, config.max_splats)
    start, spacing = splats_from_hull(hull, views, initial, config.sh_degree, generator)
    size = hull.half_size
    parameters = Parameters(
        start, rates_at(config, size, 0.0), config.max_splats, config.adam_epsilon
    )
    cropped = crop_views(views, MARGIN)
    masks = cropped.masks[..., None]
    targets = torch.cat([cropped.images * masks, masks], dim=-1).contiguous()
    draws = draw(len(views), config, generator, views.device)
    confidences = torch.ones_like(cropped.masks)
    pinholes = Pinholes.of(cropped.cameras)
    stepper = Stepper(parameters, targets, confidences, pinholes, draws, spacing, config)

    pace = Pace(config, started, views.device)
    rounds = densify_fractions(config)
    densified = 0
    try:
        while not pace.done:
            parameters.adam.set_rates(rates_at(config, size, pace.fraction))
            for _ in range(pace.stride):
                stepper.step()
            pace.advance()
            while densified < len(rounds) and pace.fraction >= rounds[densified]:
                densified += 1
                stepper.lost_pairs()
                budget = _budget(config, densified)
                split_and_prune(parameters, stepper.pull, budget, config.prune_opacity)
                stepper.pull.zero_()
            progress(
                pace.steps,
                pace.total,
                preview=lambda: _picture(parameters.splats(), views.cameras[0]),
                text=f"{_budget(config, densified):,} splats",
            )
            if finish():
                pace.stop("finish now")
        return parameters.splats(), pace.steps, pace.reason
    finally:
        stepper.close()


def _budget(config: SplatFitConfig, rounds: int) -> int:
    """Allowed number of Gaussians after so many rounds: straight from the start to the maximum."""
    initial = min(config.initial_splats, config.max_splats)
    growth = rounds / max(1, config.densify_rounds)
    return round(initial + (config.max_splats - initial) * growth)


def _hull(views: Views, config: SplatFitConfig, progress: Progress) -> VisualHull:
    hull = tight_visual_hull(
        views,
        config.hull_resolution,
        progress=lambda step, total, preview=None, text="": progress(0, config.steps, text=text),
    )
    return trim_unseen(hull, views)


def _picture(splats: GaussianSplats, camera: Cameras) -> Tensor:  # [H, W, 3]
    return render_splats(splats, camera, depths=False).colours[0]


def _psnr_on_white(splats: GaussianSplats, views: Views) -> float:
    """Mean over the views of the PSNR against pictures on white, dB."""
    white = composite(views.images, views.masks)
    pictures = render_splats(splats, views.cameras, depths=False).colours
    errors = (pictures - white).square().mean((1, 2, 3))
    return float((-10 * errors.clamp(min=1e-10).log10()).mean())


def _at_resolution(views: Views, resolution: int) -> Views:
    """Views scaled so that their longer side is `resolution`; never enlarged."""
    longer = max(views.cameras.width, views.cameras.height)
    if resolution == 0 or longer <= resolution:
        return views
    scale = resolution / longer
    width = max(1, round(views.cameras.width * scale))
    return resize_views(views, width, max(1, round(views.cameras.height * scale)))


def _for_cameras(splats: GaussianSplats, fitted: Cameras, wanted: Cameras) -> GaussianSplats:
    """The splat as it should be drawn at the size of `wanted` after a fit at the size of `fitted`.

    The rasteriser widens every footprint by `LOW_PASS_VARIANCE` px^2. At a finer resolution the
    same pixels are smaller, so the widening that the fit relied on is partly missing and surfaces
    look thin. The missing part is added to the Gaussians themselves, at their mean distance, as
    Mip-Splatting's 3D filter does (Yu et al. 2024, eq. 8), here without a change of opacity
    because the fit never compensated for it.
    """
    ratio = float((fitted.K[:, 0, 0] / wanted.K[:, 0, 0]).mean())
    if ratio >= 1:
        return splats
    distances = (splats.means - fitted.centres[:, None]).norm(dim=-1)  # [V, N]
    pixel = (distances / fitted.K[:, :1, 0]).mean(0)  # world size of a fitted pixel [N]
    missing = LOW_PASS_VARIANCE * (1 - ratio**2) * pixel.square()
    scales = (splats.scales.square() + missing[:, None]).sqrt()
    return GaussianSplats(splats.means, scales, splats.quats, splats.opacities, splats.sh)
