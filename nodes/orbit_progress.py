"""What V3D Sample Orbit shows while it works, and the figures it ends with."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from ..v3d_core.diffusion.edm import SamplerConfig
from ..v3d_core.diffusion.guidance import Guidance
from ..v3d_core.images import contact_sheet
from ..v3d_core.report import peak_memory_mib
from .runtime import NodeProgress, tell

NAME = "V3D Sample Orbit"
SHEET_COLUMNS = 6  # of the preview: 18 frames in three rows
PREVIEW_INTERVAL_S = 1.0  # each picture makes the device wait, so not too many


class OrbitProgress:
    """The node's bar, its picture of the orbit so far, and the figures at the end."""

    def __init__(self, model, sampler: SamplerConfig, guidance: Guidance) -> None:
        self._bar = NodeProgress(True, PREVIEW_INTERVAL_S)
        self._steps, self._scale = sampler.steps, guidance.scale
        self._device = model.load_device
        self._factors = getattr(model.model.latent_format, "latent_rgb_factors", None)
        self._started = self._sampled = time.monotonic()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def sampled(self, step: int, denoised: Tensor, x: Tensor, steps: int) -> None:
        """Show one step; called by the sampler."""
        self._bar(step + 1, self._steps + 1, lambda: self._sheet(denoised), "sampling the orbit")

    def decoding(self, frames: int) -> None:
        """Say that the steps are done."""
        self._sampled = time.monotonic()
        tell(NAME, f"decoding {frames} frames")

    def finish(self, frames: Tensor, decoded: str, notes: list[str]) -> dict:
        """Fill the bar, print the figures, and return them."""
        done = time.monotonic()
        self._bar(self._steps + 1, self._steps + 1, lambda: self._finished_sheet(frames))
        report = {
            "frames": len(frames),
            "width": frames.shape[2],
            "height": frames.shape[1],
            "steps": self._steps,
            "scale": self._scale,
            "seconds_sampling": round(self._sampled - self._started, 2),
            "seconds_decoding": round(done - self._sampled, 2),
            "decoded": decoded,
            "device": str(self._device),
            "notes": notes,
        }
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device) / 2**20
            report["peak_cuda_mib"] = round(peak)
        else:
            report["peak_resident_mib"] = round(peak_memory_mib())
        peak = report.get("peak_cuda_mib", report.get("peak_resident_mib"))
        tell(
            NAME,
            f"{len(frames)} frames of {frames.shape[2]}x{frames.shape[1]} in "
            f"{done - self._started:.1f} s, decoded {decoded}, peak memory {peak} MiB"
            + "".join(f". {note}" for note in notes),
        )
        return report

    def _sheet(self, denoised: Tensor) -> Tensor:
        """All frames of latents in false colours, the host's own approximation of the decoder."""
        if self._factors is None:
            return contact_sheet(denoised[:, :3].float().cpu().movedim(1, -1), SHEET_COLUMNS)
        factors = torch.tensor(self._factors)
        colours = denoised.float().cpu().movedim(1, -1) @ factors
        return contact_sheet(((colours + 1) / 2).clamp(0, 1), SHEET_COLUMNS, gap=1)

    def _finished_sheet(self, frames: Tensor) -> Tensor:
        step = max(1, math.ceil(frames.shape[2] / 128))
        return contact_sheet(frames[:, ::step, ::step].cpu(), SHEET_COLUMNS, gap=1)
