"""Classifier-free guidance whose scale may change over the frames of an orbit.

The three forms are generative-models' `LinearPredictionGuider` (V3D's, with equal ends: constant)
and `TrianglePredictionGuider`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

GUIDANCE_KINDS = ("constant", "linear", "triangle")


@dataclass(frozen=True)
class Guidance:
    """The guidance scale of every frame.

    `constant` takes `scale` everywhere. `linear` goes from `min_scale` in the first frame to
    `scale` in the last. `triangle` rises from `min_scale` to `scale` at the back of the object and
    falls again; with an even number of frames no frame stands exactly at the peak.
    """

    kind: str = "constant"
    scale: float = 3.5  # V3D scripts/pub/V3D_512.py; its README takes 4.5
    min_scale: float = 1.0  # linear and triangle only; SV3D's triangle starts at 1

    def __post_init__(self) -> None:
        if self.kind not in GUIDANCE_KINDS:
            raise ValueError(f"guidance {self.kind!r} is none of {', '.join(GUIDANCE_KINDS)}")
        for name in ("scale", "min_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"guidance {name} must be a number from 0 up, got {value}")

    def scales(self, num_frames: int) -> Tensor:  # [T]
        """The scale of frames t = 0 .. T-1."""
        if self.kind == "constant" or num_frames == 1:
            return torch.full((num_frames,), self.scale)
        position = torch.linspace(0, 1, num_frames, dtype=torch.float64)
        if self.kind == "triangle":
            position = 2 * (position - (position + 0.5).floor()).abs()
        return (self.min_scale + (self.scale - self.min_scale) * position).float()


def guide(
    uncond: Tensor,  # [T, ...]
    cond: Tensor,  # [T, ...]
    scales: Tensor,  # [T]
) -> Tensor:  # [T, ...]
    """`uncond + scale (cond - uncond)` (Ho and Salimans 2022), each frame with its own scale."""
    shaped = scales.to(cond).reshape(-1, *[1] * (cond.ndim - 1))
    return uncond + shaped * (cond - uncond)
