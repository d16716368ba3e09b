"""Fit a signed distance field to posed pictures of an object (NeuS, Wang et al. 2021)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cameras import resize_cameras
from ..images import fit_within
from ..progress import Progress, silent
from ..structures import Cameras, GaussianSplats, Views
from .config import NeusFitConfig
from .encoding import HashGrid
from .field import SDFField
from .optimise import Stepper
from .render import normal_picture, render_field
from .sampling import PixelPool
from .start import start_shape

STRIDE = 5  # steps between two looks at the clock and at `finish`
PREVIEW_SIZE = 192  # px, longer side


@dataclass(frozen=True)
class NeusFit:
    """What a fit leaves behind.

    Attributes:
        field: Signed distance and colour, world frame.
        report: Plain figures about the run, ready for JSON.
        views: The views as they were fitted.
    """

    field: SDFField
    report: dict[str, Any]
    views: Views


def never() -> bool:
    """A `finish` nobody presses."""
    return False


def fit_neus(
    views: Views,
    config: NeusFitConfig,
    *,
    splats: GaussianSplats | None = None,
    progress: Progress = silent,
    finish: Callable[[], bool] = never,
) -> NeusFit:
    """Fit a signed distance field to all views on the views' device.

    Start: the visual hull's distance. Per step: rays through random pixels near the object over
    random backgrounds, samples mostly where the surface was found last, L1 against the picture,
    cross entropy of the opacity against the mask, unit gradients, Adam. Details join level by
    level. The same seed gives the same bits on CPU.

    Args:
        views: At least two posed pictures with masks; normals that came with them are followed.
        config: Settings; see `neus_preset`.
        splats: A splat of the same views to start from, or None.
        progress: Told about the steps; raising in it cancels the fit.
        finish: Asked every few steps; True ends the fit and keeps what there is.

    Returns:
        The field, figures about the run, and the views.

    Raises:
        ValueError: Fewer than two views, or masks that have no common volume.
    """
    started = time.perf_counter()
    if len(views) < 2:
        raise ValueError(
            f"a surface needs at least 2 views to have depth, got {len(views)}; "
            "connect the whole orbit"
        )
    generator = torch.Generator().manual_seed(config.seed)  # on CPU: the same on every device
    small = fit_within(views, config.resolution)

    def tell(step: int, total: int, preview: object = None, text: str = "") -> None:
        progress(0, config.steps, text=text)

    start = start_shape(small, config, progress=tell)
    grid = HashGrid(
        levels=config.levels,
        base=config.coarsest,
        finest=config.finest,
        log2_entries=config.log2_entries,
    )
    field = SDFField(
        start.centre,
        start.half_size,
        start.grid,
        grid,
        hidden=config.hidden,
        view_direction=config.view_direction,
        inv_s=config.inv_s,
        generator=generator,
    ).to(views.device)
    pool = PixelPool(small, generator)
    stepper = Stepper(field, pool, start, config, generator)
    stopped, steps, loss, psnr = "all steps", 0, 0.0, 0.0
    try:
        while steps < config.steps:
            if steps and steps % config.refresh_steps < STRIDE:
                stepper.refresh()
            stepper.schedule(steps / config.steps)
            count = min(STRIDE, config.steps - steps)
            for _ in range(count):
                stepper.step()
            steps += count
            progress(
                steps,
                config.steps,
                preview=lambda: _picture(stepper, views.cameras[0]),
                text="surface",
            )
            if finish():
                stopped = "finish now"
                break
        loss, psnr = stepper.look()
    finally:
        stepper.close()
    field.requires_grad_(False)
    report = {
        "steps": steps,
        "seconds": round(time.perf_counter() - started, 3),
        "psnr_train": round(psnr, 3),
        "loss": round(loss, 5),
        "inv_s": round(float(field.inv_s), 1),
        "resolution": max(small.cameras.width, small.cameras.height),
        "seed": config.seed,
        "device": str(views.device),
        "stopped": stopped,
    }
    return NeusFit(field, report, views)


def _picture(stepper: Stepper, camera: Cameras) -> Tensor:  # [H, W, 3]
    """The surface's normals from a camera, at a size that costs a fraction of a second."""
    longer = max(camera.width, camera.height)
    scale = min(1.0, PREVIEW_SIZE / longer)
    small = resize_cameras(
        camera, max(1, round(camera.width * scale)), max(1, round(camera.height * scale))
    )
    picture = render_field(stepper.field, stepper.known, stepper.band, small)
    return normal_picture(picture, small)
