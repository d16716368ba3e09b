"""Fit 3D Gaussians to posed pictures of an object (Kerbl et al. 2023, adapted to orbits)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..images import composite, resize_views
from ..losses import SSIM_RADIUS, ssim
from ..metrics import psnr
from ..progress import Progress, silent
from ..schedules import exponential
from ..structures import Cameras, GaussianSplats, Views
from ..visual_hull import tight_visual_hull
from .config import SplatFitConfig
from .densify import Parameters, split_and_prune
from .init import splats_from_hull
from .projection import LOW_PASS_VARIANCE
from .engines import choose_engine, cores_for_engine
from .raster import rasterize, render_splats

SSIM_MARGIN = 2 * SSIM_RADIUS  # px around the object inside which SSIM windows reach it


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

    Start: flat discs on the visual hull. Per step: a few views over random backgrounds, L1 + SSIM
    against the picture and L1 of the coverage against the mask, Adam. Now and then Gaussians that
    pull hardest on the picture are split until the budget is reached, and faint ones removed.
    The same seed gives the same bits on CPU.

    Args:
        views: At least two posed pictures with masks.
        config: Settings; see `SPLAT_PRESETS`.
        progress: Told about every step; raising in it cancels the fit.
        test_views: Held-out views that are scored and never fitted, or None.
        finish: Asked after every step; True ends the fit and keeps what there is.

    Returns:
        The splat in the world frame, and figures about the run.

    Raises:
        ValueError: Fewer than two views, or masks that have no common volume.
    """
    started = time.perf_counter()
    if len(views) < 2:
        raise ValueError(
            f"a splat needs at least 2 views to have depth, got {len(views)}; "
            "connect the whole orbit"
        )
    with cores_for_engine(views.device, views.images.dtype):
        small = _at_resolution(views, config.resolution)
        fitted, stopped = _optimise(small, config, progress, finish)
        psnr_train = _psnr_on_white(fitted, small)
    splats = _for_cameras(fitted, small.cameras, views.cameras)
    report: dict[str, Any] = {
        "steps": config.steps,
        "splats": len(splats),
        "seconds": round(time.perf_counter() - started, 3),
        "psnr_train": round(psnr_train, 3),
        "resolution": max(small.cameras.width, small.cameras.height),
        "seed": config.seed,
        "engine": choose_engine(views.device, views.images.dtype).name,
        "device": str(views.device),
        "stopped": stopped,
    }
    if test_views is not None:
        report["psnr_test"] = round(_psnr_on_white(splats, test_views), 3)
    return SplatFit(splats, report, views)


def _optimise(
    views: Views, config: SplatFitConfig, progress: Progress, finish: Callable[[], bool]
) -> tuple[GaussianSplats, str]:
    """The loop: pictures of a few views, loss, Adam, and now and then a split."""
    started = time.perf_counter()
    generator = torch.Generator().manual_seed(config.seed)  # on CPU: same draws on every device
    hull = tight_visual_hull(
        views,
        config.hull_resolution,
        progress=lambda step, total, preview=None, text="": progress(0, config.steps, text=text),
    )
    initial = min(config.initial_splats, config.max_splats)
    start = splats_from_hull(hull, views, initial, config.sh_degree, generator)
    parameters = Parameters(start, _rates(config, hull.half_size))
    targets = torch.cat([views.images * views.masks[..., None], views.masks[..., None]], dim=-1)
    windows = _object_windows(views.masks)
    rounds = _densify_steps(config)
    scores = torch.zeros(len(parameters), device=views.device)

    batches = _shuffled_batches(len(views), config.views_per_step, generator)
    for step in range(config.steps):
        rate = exponential(config.means_rate, config.means_rate_end, step / config.steps)
        parameters.set_rate("means", rate * hull.half_size)
        batch = next(batches)
        backgrounds = _backgrounds(len(batch), config.random_background, generator, views.device)

        picture = rasterize(*parameters.activated(), views.cameras[batch], pull=scores)
        colours, alphas = picture[..., :3], picture[..., 3]
        window = _joined(windows[view] for view in batch)
        loss = _loss(colours, alphas, targets[batch], backgrounds, window, config)
        if config.opacity_weight:
            opacities = parameters.values["logit_opacities"].sigmoid()
            loss = loss + config.opacity_weight * opacities.mean()
        parameters.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters.optimizer.step()

        if step in rounds:
            budget = _budget(config, initial, rounds.index(step) + 1)
            split_and_prune(parameters, scores, budget, config.prune_opacity)
            scores = torch.zeros(len(parameters), device=views.device)
        progress(
            step + 1,
            config.steps,
            preview=lambda: _picture(parameters.splats(), views.cameras[0]),
            text=f"{len(parameters):,} splats",
        )
        if finish():
            return parameters.splats(), "finish now"
        if config.seconds and time.perf_counter() - started > config.seconds:
            return parameters.splats(), "time budget"
    return parameters.splats(), "all steps"


def _picture(splats: GaussianSplats, camera: Cameras) -> Tensor:  # [H, W, 3]
    return render_splats(splats, camera, depths=False).colours[0]


def _psnr_on_white(splats: GaussianSplats, views: Views) -> float:
    """Mean over the views of the PSNR against what was fitted, dB."""
    white = composite(views.images, views.masks)
    pictures = render_splats(splats, views.cameras, depths=False).colours
    return sum(psnr(a, b) for a, b in zip(pictures, white, strict=True)) / len(views)


def _at_resolution(views: Views, resolution: int) -> Views:
    """Views scaled so that their longer side is `resolution`; never enlarged."""
    longer = max(views.cameras.width, views.cameras.height)
    if resolution == 0 or longer <= resolution:
        return views
    scale = resolution / longer
    width = max(1, round(views.cameras.width * scale))
    return resize_views(views, width, max(1, round(views.cameras.height * scale)))


def _rates(config: SplatFitConfig, object_size: float) -> dict[str, float]:
    return {
        "means": config.means_rate * object_size,
        "log_scales": config.scales_rate,
        "quats": config.quats_rate,
        "logit_opacities": config.opacities_rate,
        "sh_dc": config.sh_rate,
        "sh_rest": config.sh_rate / 20,  # Kerbl et al. 2023: higher bands 20 times slower
    }


def _densify_steps(config: SplatFitConfig) -> list[int]:
    """Steps after which Gaussians are split, evenly spread over the densification span."""
    if config.densify_rounds < 1:
        return []
    first, last = config.densify_from * config.steps, config.densify_until * config.steps
    count = config.densify_rounds
    return sorted({round(first + (last - first) * i / max(1, count - 1)) for i in range(count)})


def _budget(config: SplatFitConfig, initial: int, round_number: int) -> int:
    """Allowed number of Gaussians after a round: straight from the start to the maximum."""
    growth = round_number / config.densify_rounds
    return round(initial + (config.max_splats - initial) * growth)


def _shuffled_batches(count: int, size: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Endless batches; every view comes once before any comes again."""
    queue: list[int] = []
    while True:
        batch: list[int] = []
        while len(batch) < min(size, count):
            if not queue:
                queue = torch.randperm(count, generator=generator).tolist()
            view = queue.pop()
            if view not in batch:
                batch.append(view)
        yield batch


def _backgrounds(
    count: int, random: bool, generator: torch.Generator, device: torch.device
) -> Tensor:  # [V, 1, 1, 3]
    if not random:
        return torch.ones(count, 1, 1, 3, device=device)
    return torch.rand(count, 1, 1, 3, generator=generator).to(device)


Window = tuple[int, int, int, int]  # first and end row, first and end column, px


def _object_windows(masks: Tensor) -> list[Window]:  # [V, H, W]
    """Boxes around the objects, wide enough that SSIM is 1 outside them where coverage is right."""
    height, width = masks.shape[1:]
    windows = []
    for mask in masks:
        rows, columns = torch.nonzero(mask.amax(1))[:, 0], torch.nonzero(mask.amax(0))[:, 0]
        # an 11x11 window centred on the outermost pixel of the box still sees the object
        top, left = int(rows[0]) - SSIM_MARGIN, int(columns[0]) - SSIM_MARGIN
        bottom, right = int(rows[-1]) + 1 + SSIM_MARGIN, int(columns[-1]) + 1 + SSIM_MARGIN
        windows.append((max(top, 0), min(bottom, height), max(left, 0), min(right, width)))
    return windows


def _joined(windows: Iterable[Window]) -> Window:
    tops, bottoms, lefts, rights = zip(*windows, strict=True)
    return min(tops), max(bottoms), min(lefts), max(rights)


def _loss(
    colours: Tensor,  # [V, H, W, 3]
    alphas: Tensor,  # [V, H, W]
    targets: Tensor,  # [V, H, W, 4]
    backgrounds: Tensor,  # [V, 1, 1, 3]
    window: Window,
    config: SplatFitConfig,
) -> Tensor:  # []
    """L1 + SSIM over the background, and L1 of the coverage against the mask.

    SSIM, the dearest part on CPU, is taken inside `window` alone and counted as 1 outside.
    """
    image = colours + (1 - alphas[..., None]) * backgrounds
    target = targets[..., :3] + (1 - targets[..., 3:]) * backgrounds
    loss = (1 - config.ssim_weight) * (image - target).abs().mean()
    if config.ssim_weight:
        top, bottom, left, right = window
        box = (slice(None), slice(top, bottom), slice(left, right))
        share = (bottom - top) * (right - left) / alphas[0].numel()
        similarity = ssim(image[box], target[box], padding=SSIM_RADIUS).mean()
        loss = loss + config.ssim_weight * share * (1 - similarity)
    if config.mask_weight:
        loss = loss + config.mask_weight * (alphas - targets[..., 3]).abs().mean()
    return loss


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
