"""Fit 3D Gaussians to posed pictures of an object (Kerbl et al. 2023, adapted to orbits)."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..images import resize_views
from ..losses import SSIM_RADIUS, ssim
from ..progress import Progress, silent
from ..schedules import exponential
from ..structures import Cameras, GaussianSplats, Views
from ..visual_hull import tight_visual_hull
from .config import SplatFitConfig
from .densify import Parameters, split_and_prune
from .init import splats_from_hull
from .projection import LOW_PASS_VARIANCE
from .raster import choose_engine, rasterize, render_splats


@dataclass(frozen=True)
class SplatFit:
    """What a fit leaves behind: the splat, and plain figures about the run."""

    splats: GaussianSplats
    report: dict[str, float | int | str]


def fit_splats(
    views: Views,
    config: SplatFitConfig,
    *,
    progress: Progress = silent,
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
    generator = torch.Generator().manual_seed(config.seed)  # on CPU: same draws on every device
    full_cameras = views.cameras
    views = _at_resolution(views, config.resolution)
    hull = tight_visual_hull(views, config.hull_resolution)
    initial = min(config.initial_splats, config.max_splats)
    start = splats_from_hull(hull, views, initial, config.sh_degree, generator)
    parameters = Parameters(start, _rates(config, hull.half_size))
    targets = torch.cat([views.images * views.masks[..., None], views.masks[..., None]], dim=-1)
    rounds = _densify_steps(config)
    scores = torch.zeros(len(parameters), device=views.device)
    mean_error = torch.zeros((), device=views.device)

    batches = _shuffled_batches(len(views), config.views_per_step, generator)
    for step in range(config.steps):
        fraction = step / config.steps
        rate = exponential(config.means_rate, config.means_rate_end, fraction)
        parameters.set_rate("means", rate * hull.half_size)
        batch = next(batches)
        backgrounds = _backgrounds(len(batch), config.random_background, generator, views.device)

        means, quats, scales, opacities, sh = parameters.activated()
        if config.drop_rate:
            kept = torch.rand(len(means), generator=generator).to(means.device) >= config.drop_rate
            opacities = (opacities * kept / (1 - config.drop_rate)).clamp(max=1.0)
        colours, alphas, means2d = rasterize(
            means, quats, scales, opacities, sh, views.cameras[batch]
        )
        loss, mean_error = _loss(colours, alphas, targets[batch], backgrounds, config)
        if config.opacity_weight:
            opacities = parameters.values["logit_opacities"].sigmoid()
            loss = loss + config.opacity_weight * opacities.mean()
        if config.flat_weight:
            loss = loss + config.flat_weight * scales.amin(-1).mean() / hull.half_size
        if config.needle_weight:
            top = torch.log(scales).sort(-1).values
            loss = loss + config.needle_weight * torch.relu(top[:, 2] - top[:, 1] - 1.0).mean()
        parameters.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters.optimizer.step()

        scores += means2d.grad.norm(dim=-1).sum(0)  # type: ignore[union-attr]
        if step in rounds:
            budget = _budget(config, initial, rounds.index(step) + 1)
            split_and_prune(parameters, scores, budget, config.prune_opacity)
            scores = torch.zeros(len(parameters), device=views.device)
        progress(
            step + 1,
            config.steps,
            preview=lambda: render_splats(parameters.splats(), views.cameras[0]).colours[0],
            text=f"{len(parameters):,} splats",
        )

    splats = _for_cameras(parameters.splats(), views.cameras, full_cameras)
    psnr = -10 * math.log10(max(float(mean_error), 1e-10))
    report: dict[str, float | int | str] = {
        "steps": config.steps,
        "splats": len(splats),
        "seconds": round(time.perf_counter() - started, 3),
        "psnr_train": round(psnr, 3),
        "resolution": max(views.cameras.width, views.cameras.height),
        "seed": config.seed,
        "engine": choose_engine(views.device, views.images.dtype)[0],
        "device": str(views.device),
    }
    return SplatFit(splats, report)


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


def _loss(
    colours: Tensor,  # [V, H, W, 3]
    alphas: Tensor,  # [V, H, W]
    targets: Tensor,  # [V, H, W, 4]
    backgrounds: Tensor,  # [V, 1, 1, 3]
    config: SplatFitConfig,
) -> tuple[Tensor, Tensor]:
    """L1 + SSIM over the background and L1 of the coverage; also the mean squared error."""
    image = colours + (1 - alphas[..., None]) * backgrounds
    target = targets[..., :3] + (1 - targets[..., 3:]) * backgrounds
    loss = (1 - config.ssim_weight) * (image - target).abs().mean()
    if config.ssim_weight:
        similarity = ssim(image, target, padding=SSIM_RADIUS).mean()
        loss = loss + config.ssim_weight * (1 - similarity)
    if config.mask_weight:
        loss = loss + config.mask_weight * (alphas - targets[..., 3]).abs().mean()
    return loss, (image - target).detach().square().mean()


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
