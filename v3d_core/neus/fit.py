"""Fit a signed distance field to posed pictures of an object (NeuS, Wang et al. 2021)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..cameras import resize_cameras
from ..figures import Figures, RunningMeans
from ..fit_stream import on_fit_stream, tf32_products
from ..fit_threads import cores_for_warp
from ..images import fit_within
from ..progress import Progress, never, silent
from ..soap_film import hang_film
from ..structures import Views
from .config import NeusFitConfig
from .encoding import HashGrid
from .field import SDFField, start_from_distance
from .optimise import Stepper
from .render import normal_picture, render_field
from .sampling import PixelPool
from .start import start_shape
from .trilinear import interleaved

STRIDE = 5  # steps between two looks at `finish` and at Cancel
CPU_STRIDE = 2  # a step takes up to half a second on two busy cores; Cancel waits for one
LOOK_FROM = 0.9  # fraction of the run after which errors count for the report
PREVIEW_SIZE = 192  # px, longer side


@dataclass(frozen=True)
class NeusFit:
    """What a fit leaves behind.

    Attributes:
        field: Signed distance and colour, world frame.
        report: Plain figures about the run, ready for JSON.
        views: Those that were handed in, of their own size.
    """

    field: SDFField
    report: dict[str, Any]
    views: Views


def fit_neus(
    views: Views,
    config: NeusFitConfig,
    *,
    depths: Tensor | None = None,
    progress: Progress = silent,
    finish: Callable[[], bool] = never,
    figures: Figures | None = None,
) -> NeusFit:
    """Fit a signed distance field to all views on the views' device.

    Start: the visual hull's distance. Per step: rays through random pixels near the object over
    random backgrounds, samples mostly where the surface was found last, L1 against the picture,
    cross entropy of the opacity against the mask, unit gradients, Adam. Details join level by
    level. The same seed gives the same bits on CPU.

    Args:
        views: At least two posed pictures with masks; normals that came with them are followed.
        config: Settings; see `neus_preset`.
        depths: Of the surface in every view, world units along the optical axis, 0 where there is
            none, as `render_splats` gives them: a better start than the masks alone. Or None.
            [V, H, W]
        progress: Told about the steps; raising in it cancels the fit.
        finish: Asked every few steps; True ends the fit and keeps what there is.
        figures: Told step, loss and the psnr of the rays a few times a second, without a wait for
            the device. Or None.

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
    tf32 = config.tf32 and views.device.type == "cuda"
    with cores_for_warp(views.device), on_fit_stream(views.device), tf32_products(tf32):
        run = _Run(fit_within(views, config.resolution), config, depths, progress)
        run.optimise(finish, figures)
        run.hang_film()
    field = run.field.requires_grad_(False)
    report = {
        "steps": run.steps,
        "seconds": round(time.perf_counter() - started, 3),
        "psnr_train": round(run.psnr, 3),
        "loss": round(run.loss, 5),
        "inv_s": round(float(field.inv_s), 1),
        "resolution": run.longer_side,
        "seed": config.seed,
        "device": str(views.device),
        "stopped": run.stopped,
    }
    return NeusFit(field, report, views)


class _Run:
    """One fit: the field, the rays it is fitted to, and the loop."""

    def __init__(
        self,
        views: Views,
        config: NeusFitConfig,
        depths: Tensor | None,
        progress: Progress,
    ) -> None:
        self.config, self.progress, self.views = config, progress, views
        self.camera = views.cameras[0]
        self.longer_side = max(views.cameras.width, views.cameras.height)

        def tell(step: int, total: int, preview: object = None, text: str = "") -> None:
            progress(0, config.steps, text=text)

        generator = torch.Generator().manual_seed(config.seed)  # on CPU: the same on every device
        start = start_shape(views, config, depths=depths, progress=tell)
        grid = HashGrid(config.levels, config.coarsest, config.finest, config.log2_entries)
        self.field = SDFField(
            start.centre,
            start.half_size,
            start.grid,
            grid,
            hidden=config.hidden,
            view_direction=config.view_direction,
            inv_s=config.inv_s,
            generator=generator,
        ).to(views.device)
        pool = PixelPool(views, generator)
        self.stepper = Stepper(self.field, pool, start, config, generator)
        self.steps, self.stopped = 0, "all steps"
        self.loss = self.psnr = math.nan

    def optimise(self, finish: Callable[[], bool], figures: Figures | None) -> None:
        """Steps, in strides that are short enough to cancel within a second."""
        config, stepper = self.config, self.stepper
        counted = False  # the report tells of the end of the run
        means = _means(stepper, figures) if figures else None
        stride = CPU_STRIDE if self.field.device.type == "cpu" else STRIDE
        try:
            while self.steps < config.steps:
                if self.steps and self.steps % config.refresh_steps < stride:
                    stepper.refresh()
                stepper.schedule(self.steps / config.steps)
                for number in range(min(stride, config.steps - self.steps)):
                    if number:
                        self._look_for_cancel()
                    stepper.step()
                    self.steps += 1
                stepper.wait_for_last_stride()
                if means is not None:
                    means(self.steps, stepper.taken, stepper.looked)
                self.progress(self.steps, config.steps, preview=self._picture, text="NeuS")
                if finish():
                    self.stopped = "finish now"
                    break
                if not counted and LOOK_FROM * config.steps <= self.steps < config.steps:
                    stepper.forget_errors()
                    counted = True
            self.loss, self.psnr = stepper.look()
        finally:
            stepper.close()

    @torch.no_grad()
    def hang_film(self) -> None:
        """Draw tight what no view sees, which the fit leaves to chance."""
        if not self.config.film_steps:
            return
        self.stepper.refresh()
        field, cells = self.field, len(self.stepper.known[0])
        distance = self.stepper.known[0] * (cells / 2 / field.half_size)
        film = hang_film(
            distance,
            field.centre,
            field.half_size,
            self.views,
            steps=self.config.film_steps,
            torn=True,
            look=self._look_for_cancel,
        )
        field.start += interleaved(start_from_distance((film - distance) * (2 / cells)))

    def _look_for_cancel(self) -> None:
        """Let the caller raise within a stride and within a picture."""
        if self.field.device.type == "cpu":  # where one step or a part of a picture takes long
            self.progress(self.steps, self.config.steps, text="NeuS")

    def _picture(self) -> Tensor:  # [H, W, 3]
        """The surface's normals, at a size that costs a fraction of a second."""
        scale = min(1.0, PREVIEW_SIZE / self.longer_side)
        width, height = self.camera.width, self.camera.height
        camera = resize_cameras(
            self.camera, max(1, round(width * scale)), max(1, round(height * scale))
        )
        stepper = self.stepper
        seen = render_field(
            self.field, stepper.known, stepper.band, camera, tick=self._look_for_cancel
        )
        return normal_picture(seen, camera)


def _means(stepper: Stepper, figures: Figures) -> RunningMeans:
    def tell(step: int, means: list[float]) -> None:
        loss, error = means
        figures({"step": step, "loss": loss, "psnr": -10 * math.log10(max(error, 1e-10))})

    return RunningMeans(tell, stepper.loss, stepper.squared_error)
