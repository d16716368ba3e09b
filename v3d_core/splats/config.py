"""Settings of the splat fit, and the presets. Sources of the numbers: `docs/provenance.md`."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

ALIGN_CHOICES = ("auto", "on", "off")


@dataclass(frozen=True)
class SplatFitConfig:
    """One flat record; fractions are of the whole run, lengths in units of the object's size."""

    # run
    steps: int = 500  # optimiser steps
    views_per_step: int = 2  # pictures rendered per step; more is smoother and slower per step
    resolution: int = 384  # longer side of the pictures that are fitted, px; 0 = as they are
    coarse_until: float = 0.6  # fraction of the run at half the resolution
    seed: int = 0  # start points, order of views, backgrounds
    seconds: float = 0.0  # time budget: fewer steps where they would take longer; 0 = none
    early_stop: bool = False  # when held-out views, or without any the loss, gain no more
    align: str = "auto"  # frames that disagree are aligned while fitting: auto, on, off
    # splats
    initial_splats: int = 8_000  # spread over the visual hull's surface
    max_splats: int = 20_000  # budget that densification grows to
    sh_degree: int = 0  # 0 = colour does not change with the view, as V3D; up to 3
    hull_resolution: int = 128  # voxels along the object's longest side
    # loss
    ssim_weight: float = 0.2  # share of 1 - SSIM against L1
    mask_weight: float = 0.2  # of the L1 distance between coverage and mask
    lpips_weight: float = 0.0  # of LPIPS, where its weights are there
    opacity_weight: float = 0.005  # of the mean opacity; V3D adds 0.1, undocumented
    opaque_weight: float = 0.0  # of half coverage seen from above and below, where no view is
    scale_weight: float = 0.01  # of how far the longest axes exceed the limit, in e-folds
    scale_limit: float = 1.5  # of the distance between neighbours at the start
    random_background: bool = True  # a new background colour per picture and step
    # learning rates of Adam; positions in units of the object's size
    means_rate: float = 6.4e-3
    means_rate_end: float = 6.4e-5  # log-linear to this at the end of the run
    scales_rate: float = 2e-2
    quats_rate: float = 5e-3
    opacities_rate: float = 0.1
    sh_rate: float = 1.5e-2
    rates_end: float = 1.0  # all other rates fall log-linearly to this share of theirs
    adam_epsilon: float = 1e-15  # gradients below it hardly move a Gaussian
    # densification
    densify_from: float = 0.1  # fraction of the run
    densify_until: float = 0.7
    densify_rounds: int = 8
    prune_opacity: float = 0.05  # below this a splat is removed

    def __post_init__(self) -> None:
        positive = ("steps", "views_per_step", "initial_splats", "max_splats", "hull_resolution")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.resolution < 0 or 0 < self.resolution < 16:
            raise ValueError(f"resolution must be 0 or at least 16 px, got {self.resolution}")
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"seconds must be 0 or a positive number, got {self.seconds}")
        if self.align not in ALIGN_CHOICES:
            raise ValueError(f"align must be one of {ALIGN_CHOICES}, got {self.align!r}")
        if self.sh_degree not in (0, 1, 2, 3):
            raise ValueError(f"sh_degree must be 0 to 3, got {self.sh_degree}")

    def with_changes(self, **changes: int | float | bool | str | None) -> SplatFitConfig:
        """Copy with the given fields replaced; `None` keeps the value."""
        kept = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(self, **kept)  # type: ignore[arg-type]


# Of `best`: more steps at the other presets' rates only learn the views by heart.
_CALM: dict[str, Any] = {"means_rate": 1.6e-3, "rates_end": 0.1}

# On the CPU: few pictures a step, most steps at half the resolution.
SPLAT_PRESETS: dict[str, SplatFitConfig] = {
    "draft": SplatFitConfig(
        steps=200,
        resolution=192,
        coarse_until=0.5,
        initial_splats=4_000,
        max_splats=8_000,
        densify_rounds=3,
    ),
    "normal": SplatFitConfig(),
    "best": SplatFitConfig(
        steps=1200,
        resolution=512,
        coarse_until=0.5,
        initial_splats=12_000,
        max_splats=40_000,
        densify_rounds=12,
        **_CALM,
    ),
}

# On NVIDIA GPUs: an orbit's 18 pictures in every step, at their full size.
_GPU = SplatFitConfig(
    steps=200,
    views_per_step=18,
    resolution=512,
    coarse_until=0.0,
    initial_splats=20_000,
    max_splats=50_000,
    densify_rounds=4,
)
GPU_SPLAT_PRESETS: dict[str, SplatFitConfig] = {
    "draft": _GPU.with_changes(steps=60, max_splats=30_000, densify_rounds=2),
    "normal": _GPU,
    "best": _GPU.with_changes(steps=600, resolution=1024, **_CALM),
}


def splat_preset(name: str, device_type: str) -> SplatFitConfig:
    """Settings by name for where the fit runs.

    Args:
        name: draft, normal or best.
        device_type: As in `torch.device.type`; "cuda" takes the GPU's settings.
    """
    presets = GPU_SPLAT_PRESETS if device_type == "cuda" else SPLAT_PRESETS
    if name not in presets:
        raise ValueError(f"no preset {name!r}; there are {', '.join(presets)}")
    return presets[name]


def guide_preset(name: str, device_type: str) -> SplatFitConfig:
    """`splat_preset` for a splat that guides a surface fit: on a CPU `normal` takes that of `best`.

    The fit that follows takes minutes there itself, and its normals are those of its guide.
    """
    longer = name == "normal" and device_type != "cuda"
    return splat_preset("best" if longer else name, device_type)
