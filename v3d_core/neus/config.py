"""Settings of the NeuS fit, and the presets. Sources of the numbers: `docs/provenance.md`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

START_CHOICES = ("hull", "sphere")


@dataclass(frozen=True)
class NeusFitConfig:
    """One flat record; fractions are of the whole run, lengths in units of the cube's half side."""

    # run
    steps: int = 2400  # optimiser steps
    rays: int = 768  # per step, drawn from the pixels around the object
    samples: int = 32  # along a ray, most of them near the surface
    resolution: int = 512  # longer side of the pictures that are fitted, px; 0 = as they are
    seed: int = 0  # order of the pixels, places of the samples, start of the networks
    # start
    start: str = "hull"  # hull: signed distance of the visual hull; sphere: as V3D
    mask_misses: int = 0  # masks that may be wrong about a point; 1 for frames that disagreed
    start_film_steps: int = 60  # of the soap film that it becomes where no view saw it; 0 = none
    membrane_level: float = 0.0  # how boldly it is cut there besides; 0 = not at all
    start_resolution: int = 128  # cells along the cube for that distance and for finding surfaces
    band: float = 0.075  # distance outside the start within which surfaces are looked for
    sphere_radius: float = 0.5  # of the start "sphere"
    # field
    levels: int = 12  # of the hash grid
    coarsest: int = 16  # its vertices along the cube at the first level
    finest: int = 384  # and at the last
    log2_entries: int = 17  # entries of a level at most
    hidden: int = 48  # units of the one hidden layer, of the distance and of the colour
    view_direction: bool = False  # may colour change with the view? V3D switched it off
    active_levels: int = 4  # at the start; the others join one by one
    active_until: float = 0.6  # fraction of the run at which all levels are in
    # what no view sees
    film_steps: int = 60  # of the soap film that it becomes at the end, on each grid; 0 = none
    # rendering
    inv_s: float = 20.0  # sharpness at the start; learned
    anneal_until: float = 0.5  # fraction of the run at which back faces stop counting
    surface_share: float = 0.75  # of the samples that gather where the surface was found last
    refresh_steps: int = 100  # between two looks for the surface
    tf32: bool = True  # products of matrices in TF32 where the GPU has it
    # loss
    colour_weight: float = 1.0  # of the L1 distance to the picture
    mask_weight: float = 0.1  # of the cross entropy between opacity and mask
    eikonal_weight: float = 0.05  # of (|gradient| - 1)^2 at the samples
    sparsity_weight: float = 0.0  # of exp(-100 |distance|) at points all over the band
    smoothness_weight: float = 0.0  # of the change of the gradient over a small step
    smoothness_step: float = 0.01  # standard deviation of that step; the curvature's step
    curvature_weight: float = 0.0  # of the mean |curvature| at points all over the band
    normal_weight: float = 0.1  # of normals that came with the views; V3D's README sets 0.1
    normal_until: float = 0.0  # fraction of the run at which that weight is down to 0; 0 = it stays
    trimmed: float = 0.0  # share of the rays with the largest error that are left out
    extra_points: int = 2048  # for the three losses off the rays
    # learning rates of Adam
    table_rate: float = 1e-2
    network_rate: float = 2e-3
    inv_s_rate: float = 2e-3
    rates_end: float = 0.1  # all fall exponentially to this share
    warm_up: float = 0.03  # fraction of the run over which they rise

    def __post_init__(self) -> None:
        for name in ("steps", "rays", "samples", "levels", "hidden", "refresh_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("band", "inv_s", "sphere_radius"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name):g}")
        if self.start_resolution < 32:
            raise ValueError(
                f"start_resolution must be at least 32 cells, got {self.start_resolution}"
            )
        if self.mask_misses < 0:
            raise ValueError(f"mask_misses must not be negative, got {self.mask_misses}")
        if not 0 <= self.membrane_level <= 1:
            raise ValueError(f"membrane_level must lie in [0, 1], got {self.membrane_level:g}")
        if self.start not in START_CHOICES:
            raise ValueError(f"start must be one of {START_CHOICES}, got {self.start!r}")
        if self.resolution < 0 or 0 < self.resolution < 16:
            raise ValueError(f"resolution must be 0 or at least 16 px, got {self.resolution}")
        if not 0 <= self.trimmed < 1:
            raise ValueError(f"trimmed must lie in [0, 1), got {self.trimmed:g}")
        if not 0 <= self.surface_share < 1:
            raise ValueError(f"surface_share must lie in [0, 1), got {self.surface_share:g}")

    def with_changes(self, **changes: int | float | bool | str | None) -> NeusFitConfig:
        """Copy with the given fields replaced; `None` keeps the value."""
        kept = {name: value for name, value in changes.items() if value is not None}
        return dataclasses.replace(self, **kept)  # type: ignore[arg-type]


NEUS_PRESETS: dict[str, NeusFitConfig] = {
    "draft": NeusFitConfig(steps=800),
    "normal": NeusFitConfig(),
    "best": NeusFitConfig(steps=8000),
}

# On NVIDIA GPUs a step of many rays takes hardly longer than one of few.
_GPU = NeusFitConfig(steps=1400, rays=3072)
GPU_NEUS_PRESETS: dict[str, NeusFitConfig] = {
    "draft": _GPU.with_changes(steps=600),
    "normal": _GPU,
    "best": _GPU.with_changes(steps=6000, rays=4096),
}

# Frames that disagreed still do so by a pixel or two once they are aligned; that is no relief.
ALIGNED_MISSES = 1
ALIGNED_MEMBRANE = 0.3  # in place of a film: a hull that forgives has webs that a film would keep
ALIGNED_SMOOTHNESS = 0.03


def neus_preset(name: str, device_type: str) -> NeusFitConfig:
    """Settings by name for where the fit runs.

    Args:
        name: draft, normal or best.
        device_type: As in `torch.device.type`; "cuda" takes the GPU's settings.
    """
    presets = GPU_NEUS_PRESETS if device_type == "cuda" else NEUS_PRESETS
    if name not in presets:
        raise ValueError(f"no preset {name!r}; there are {', '.join(presets)}")
    return presets[name]


def for_aligned_frames(config: NeusFitConfig) -> NeusFitConfig:
    """Settings for frames that disagreed and were aligned: a hull that forgives, a calmer surface.

    Normals of a splat's depth are better left out then (`guides.guided`): they carry its ripples.
    """
    return config.with_changes(
        mask_misses=max(config.mask_misses, ALIGNED_MISSES),
        start_film_steps=0,
        membrane_level=max(config.membrane_level, ALIGNED_MEMBRANE),
        smoothness_weight=max(config.smoothness_weight, ALIGNED_SMOOTHNESS),
    )
