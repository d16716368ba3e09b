"""Fit 3D Gaussians to posed pictures of an object (Kerbl et al. 2023, adapted to orbits)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends import load_lpips_network
from ..figures import Figures, RunningMeans
from ..fit_stream import on_fit_stream
from ..images import composite, crop_views, fit_within, resize_views
from ..progress import Progress, never, silent
from ..structures import Cameras, GaussianSplats, Views
from ..unseen import trim_unseen
from ..visual_hull import PROGRESS_TEXT, VisualHull, tight_visual_hull
from .config import SplatFitConfig
from .consensus import MISSES_AFTER, reach_consensus
from .densify import Parameters, split_and_prune
from .engines import choose_engine, cores_for_engine
from .init import splats_from_hull
from .optimise import Stepper, draw, views_around
from .projection import LOW_PASS_VARIANCE, Pinholes
from .raster import render_splats
from .schedule import Pace, densify_fractions, rates_at
from .watch import Watch, psnr_on_white

logger = logging.getLogger(__name__)

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


def fit_splats(
    views: Views,
    config: SplatFitConfig,
    *,
    progress: Progress = silent,
    test_views: Views | None = None,
    finish: Callable[[], bool] = never,
    figures: Figures | None = None,
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
        figures: Told step, loss and splats a few times a second, and with every preview the psnr
            of view 0; without a wait for the device. Or None.

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
        consensus = reach_consensus(views, config, progress, finish)
        if consensus is not None:
            views = consensus.views
        small = fit_within(views, config.resolution)
        run = _Run(
            small, config, consensus is not None, progress, test_views, finish, figures, started
        )
        run.optimise()
        fitted = run.parameters.splats()
        splats = _for_cameras(fitted, small.cameras, views.cameras)
        report: dict[str, Any] = {
            "steps": run.pace.steps,
            "splats": len(splats),
            "seconds": round(time.perf_counter() - started, 3),
            "psnr_train": round(psnr_on_white(fitted, small), 3),
            "resolution": max(small.cameras.width, small.cameras.height),
            "seed": config.seed,
            "engine": choose_engine(device, dtype).name,
            "device": str(device),
            "stopped": run.pace.reason,
            "frames": "agree" if consensus is None else "disagree",
        }
        if consensus is not None:
            report["per_view"] = consensus.per_view
        if test_views is not None:
            report["psnr_test"] = round(psnr_on_white(splats, test_views), 3)
    return SplatFit(splats, report, views)


class _Run:
    """One fit: the Gaussians, what they are fitted to, and the loop."""

    def __init__(
        self,
        views: Views,
        config: SplatFitConfig,
        disagreed: bool,
        progress: Progress,
        test_views: Views | None,
        finish: Callable[[], bool],
        figures: Figures | None,
        started: float,
    ) -> None:
        self.config, self.progress, self.finish = config, progress, finish
        self.figures = figures
        generator = torch.Generator().manual_seed(config.seed)  # on CPU: the same on every device
        hull = _hull(views, config, MISSES_AFTER if disagreed else 0, progress)
        start, self.spacing = splats_from_hull(
            hull, views, _budget(config, 0), config.sh_degree, generator
        )
        self.centre, self.size = hull.centre, hull.half_size
        rates = rates_at(config, self.size, 0.0)
        self.parameters = Parameters(start, rates, config.max_splats, config.adam_epsilon)
        self.draws = draw(len(views), config, generator, views.device)
        self.cut_out = crop_views(views, MARGIN)
        self.longer_side = max(views.cameras.width, views.cameras.height)
        self.pace = Pace(config, started, views.device)
        self.rounds = 0  # of densification that are done
        self.watch = Watch(config, test_views)
        self.perceptual = _perceptual(config, views.device)

    def optimise(self) -> None:
        """Steps at their pace, first at half the resolution if so set; now and then a split."""
        # half of what is set: pictures that are smaller anyway lose less or nothing
        scale = self.config.resolution / 2 / self.longer_side if self.config.resolution else 0.5
        if self.config.coarse_until > 0 and scale < 1:
            width, height = self.cut_out.cameras.width, self.cut_out.cameras.height
            half = resize_views(
                self.cut_out, max(1, round(width * scale)), max(1, round(height * scale))
            )
            self._take_steps(half, self.config.coarse_until)
        self._take_steps(self.cut_out, 1.0)

    def _take_steps(self, views: Views, until: float) -> None:
        """Fit to views until a fraction of the run."""
        masks = views.masks[..., None]
        pinholes = Pinholes.of(views.cameras)
        stepper = Stepper(
            self.parameters,
            torch.cat([views.images * masks, masks], dim=-1).contiguous(),
            torch.ones_like(views.masks),
            pinholes,
            self.draws,
            views_around(pinholes, self.centre),
            self.spacing,
            self.config,
            self.perceptual,
        )
        stepper.position.fill_(self.pace.steps)
        means = RunningMeans(self._tell, stepper.loss) if self.figures else None
        try:
            while not self.pace.done and self.pace.fraction < until:
                rates = rates_at(self.config, self.size, self.pace.fraction)
                self.parameters.adam.set_rates(rates)
                for _ in range(self.pace.stride):
                    stepper.step()
                self.pace.advance()
                if means is not None:
                    means(self.pace.steps, stepper.taken, stepper.looked)
                self._densify(stepper)
                self.progress(
                    self.pace.steps,
                    self.pace.total,
                    preview=lambda: self._picture(views[:1]),
                    text=f"{_budget(self.config, self.rounds):,} splats",
                )
                if self.finish():
                    self.pace.stop("finish now")
                elif self.watch.stalls(self.pace.fraction, stepper, self.parameters):
                    self.pace.stop("no more gain")
            if stepper.lost_pairs():
                logger.warning("the last steps had too little room for all tiles of large splats")
        finally:
            stepper.close()

    def _tell(self, step: int, means: list[float]) -> None:
        assert self.figures is not None
        self.figures({"step": step, "loss": means[0], "splats": _budget(self.config, self.rounds)})

    def _picture(self, view: Views) -> Tensor:  # [H, W, 3]
        splats = self.parameters.splats()
        picture = render_splats(splats, view.cameras, depths=False).colours[0]
        if self.figures is not None:  # waits for the device, as showing the picture does
            error = (picture - composite(view.images, view.masks)[0]).square().mean()
            psnr = -10 * math.log10(max(float(error), 1e-10))
            self.figures({"step": self.pace.steps, "psnr": psnr})
        return picture

    def _densify(self, stepper: Stepper) -> None:
        due = densify_fractions(self.config)
        while self.rounds < len(due) and self.pace.fraction >= due[self.rounds]:
            self.rounds += 1
            stepper.lost_pairs()
            budget = _budget(self.config, self.rounds)
            split_and_prune(self.parameters, budget, self.config.prune_opacity)


def _budget(config: SplatFitConfig, rounds: int) -> int:
    """Allowed number of Gaussians after so many rounds: straight from the start to the maximum."""
    initial = min(config.initial_splats, config.max_splats)
    growth = rounds / max(1, config.densify_rounds)
    return round(initial + (config.max_splats - initial) * growth)


def _hull(views: Views, config: SplatFitConfig, misses: int, progress: Progress) -> VisualHull:
    def tell(step: int, total: int, preview: object = None, text: str = "") -> None:
        progress(0, config.steps, text=text)

    hull = tight_visual_hull(views, config.hull_resolution, tolerated_misses=misses, progress=tell)
    tell(1, 1, text=PROGRESS_TEXT)  # looks at Cancel: what follows takes up to a second
    hull = trim_unseen(hull, views)
    tell(1, 1, text=PROGRESS_TEXT)
    return hull


def _perceptual(
    config: SplatFitConfig, device: torch.device
) -> Callable[[Tensor, Tensor], Tensor] | None:
    """LPIPS as a loss of pictures [B, H, W, 3] in [0, 1], if it has a weight."""
    if not config.lpips_weight:
        return None
    network, reason = load_lpips_network()
    if network is None:
        raise ValueError(f"lpips_weight is {config.lpips_weight:g}, but {reason}; or set it to 0")
    network = network.to(device)

    def loss(pictures: Tensor, targets: Tensor) -> Tensor:
        pair = [x.permute(0, 3, 1, 2) * 2 - 1 for x in (pictures, targets)]
        return network(*pair).mean()

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
