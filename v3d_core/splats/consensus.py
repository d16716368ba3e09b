"""Finding out whether frames disagree, and laying them on one object before the real fit.

A small, coarse splat is fitted to all frames; `align.FrameAligner` compares it with every frame,
moves both. Frames that agree are noticed at the first comparison and stay as they are. Others are
aligned in rounds, each with a hull of the masks corrected so far and a small splat inside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from ..fit_stream import on_fit_stream
from ..images import fit_within
from ..progress import Progress, never, silent
from ..structures import Views
from ..unseen import trim_unseen
from ..visual_hull import tight_visual_hull
from .align import AlignConfig, FrameAligner
from .align_points import SurfacePoints
from .config import SplatFitConfig
from .densify import Parameters
from .engines import cores_for_engine
from .init import splats_from_hull
from .optimise import Stepper, draw, views_around
from .projection import Pinholes
from .raster import rasterize
from .schedule import rates_at

# The small fit. Trials: docs/provenance.md
COARSE = SplatFitConfig(
    resolution=128, initial_splats=4000, max_splats=4000, densify_rounds=0, views_per_step=2
)
GPU_VIEWS_PER_STEP = 6  # costs a GPU no more time than 2
COARSE_HULL = 96  # voxels along the object's longest side
FIRST_STEPS = 60  # before the first comparison
ROUNDS = 2  # of carving a hull, fitting inside it and comparing; a third gained nothing
STEPS_BETWEEN = 30  # of a round's fit
SURFACE_POINTS = 2000  # at which frames are compared with each other
MOST_JOINT_VIEWS = 40  # warps of more views are found one by one: memory grows with the square
MISSES_BEFORE, MISSES_AFTER = 1, 1  # silhouettes that may be wrong about a voxel
TELL_EVERY = 5  # steps; a fifth of a second on two cores
FEWEST_VIEWS = 6  # fewer do not say which of them is wrong


@dataclass(frozen=True)
class Consensus:
    """Frames laid on one object.

    Attributes:
        views: The views, corrected at their own resolution.
        per_view: Consistency figures of each view: pixels moved, gains, dB before and after.
    """

    views: Views
    per_view: list[dict[str, Any]]


def reach_consensus(
    views: Views, config: SplatFitConfig, progress: Progress, finish: Callable[[], bool]
) -> Consensus | None:
    """Align frames that disagree.

    Args:
        views: All frames, at full resolution.
        config: Of the real fit; `align` "on" corrects whatever is found, "auto" only what exceeds
            the noise of agreeing frames.
        progress: Told before every round.
        finish: True ends the rounds.

    Returns:
        The corrected views, or None where the frames agree.
    """
    if config.align == "off" or len(views) < FEWEST_VIEWS:
        return None
    small = fit_within(views, COARSE.resolution)
    always = AlignConfig(agreeing_warp=0.0, agreeing_gain=0.0, least_explained=-math.inf)
    text = "Do the frames agree?"

    def tell() -> None:
        progress(0, config.steps, text=text)

    with closing(_CoarseFit(small, MISSES_BEFORE, config.seed)) as fit:
        aligner = FrameAligner(
            fit.stepper.targets,
            small.cameras,
            fit.hull.centre,
            fit.hull.half_size,
            always if config.align == "on" else None,
        )
        fit.take_steps(FIRST_STEPS, tell)
        fit.align(aligner)
    if not aligner.disagrees():
        return None
    points = SURFACE_POINTS if len(views) <= MOST_JOINT_VIEWS else 0
    for number in range(ROUNDS):
        text = f"Aligning the frames, round {number + 1} of {ROUNDS}"
        if finish():
            break
        # from here on with a hull of corrected masks
        corrected = aligner.corrected_views(small)
        with closing(_CoarseFit(corrected, MISSES_AFTER, config.seed, aligner)) as fit:
            aligner.centre, aligner.half_size = fit.hull.centre, fit.hull.half_size
            fit.take_steps(STEPS_BETWEEN, tell)
            surface = fit.surface_points(corrected, points) if points else None
            tell()
            fit.align(aligner, surface)
    longer = max(views.cameras.width, views.cameras.height)
    return Consensus(aligner.corrected_views(views), aligner.report(longer))


def align_frames(
    views: Views,
    align: str = "auto",
    *,
    seed: int = 0,
    progress: Progress = silent,
    finish: Callable[[], bool] = never,
) -> Consensus | None:
    """Lay frames that disagree on one object, for fits that do not do so themselves.

    Args:
        views: All frames, at full resolution, on the device that shall do the work.
        align: "auto" looks and decides, "on" corrects whatever is found, "off" does nothing.
        seed: Of the small fits.
        progress: Told several times a second, always about step 0; raising in it cancels.
        finish: True ends the work and keeps what there is.

    Returns:
        The corrected views, or None where the frames agree.
    """
    config = SplatFitConfig(align=align, seed=seed)
    with cores_for_engine(views.device, views.images.dtype), on_fit_stream(views.device):
        return reach_consensus(views, config, progress, finish)


class _CoarseFit:
    """A small splat over small frames, fitted a few steps at a time."""

    def __init__(
        self, views: Views, misses: int, seed: int, aligner: FrameAligner | None = None
    ) -> None:
        config = COARSE
        if views.device.type == "cuda":
            config = COARSE.with_changes(views_per_step=GPU_VIEWS_PER_STEP)
        self._generator = generator = torch.Generator().manual_seed(seed)
        hull = tight_visual_hull(views, COARSE_HULL, tolerated_misses=misses)
        self.hull = trim_unseen(hull, views)
        start, spacing = splats_from_hull(self.hull, views, COARSE.initial_splats, 0, generator)
        rates = rates_at(COARSE, self.hull.half_size, 0.0)
        self.parameters = Parameters(start, rates, COARSE.max_splats, COARSE.adam_epsilon)
        if aligner is None:
            masks = views.masks[..., None]
            targets = torch.cat([views.images * masks, masks], dim=-1).contiguous()
        else:
            targets = aligner.targets  # rewritten in place from round to round
        self.pinholes = Pinholes.of(views.cameras)
        self.stepper = Stepper(
            self.parameters,
            targets,
            torch.ones_like(views.masks),
            self.pinholes,
            draw(len(views), config, generator, views.device),
            views_around(self.pinholes, self.hull.centre),
            spacing,
            config,
        )

    def take_steps(self, count: int, tell: Callable[[], None]) -> None:
        """Fit on; `tell` is called often enough to cancel within a second."""
        for number in range(count):
            if number % TELL_EVERY == 0:
                tell()
            self.stepper.step()

    @torch.no_grad()
    def align(self, aligner: FrameAligner, surface: SurfacePoints | None = None) -> None:
        """Compare all frames with the splat as it is now, or over a surface; all move."""
        means = self.parameters.values["means"]
        rendered = rasterize(*self.parameters.activated(), self.pinholes)
        means += aligner.update(rendered, means.detach(), surface)

    def surface_points(self, views: Views, count: int) -> SurfacePoints:
        """Points of the hull as these views see it."""
        return SurfacePoints.of(self.hull, views, count, self._generator)

    def close(self) -> None:
        """Give the memory back."""
        self.stepper.close()
