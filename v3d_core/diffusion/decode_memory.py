"""How many frames are decoded at a time, from the memory that is there."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

# Values alive at the peak, per frame and latent pixel, measured on SVD's decoder in float16 at 64x64
# latents (H200: 9.0 GiB for 18 frames at once; 3.8, 4.3, 5.3, 6.6, 8.4 GiB with 1, 2, 4, 6, 9 of them
# in work), rounded up: all frames at once; each frame while the work is sliced; a frame in work.
WHOLE_VALUES = 68_000
HELD_VALUES = 24_000
WORK_VALUES = 84_000
SPARE_SHARE = 0.9  # of the free memory may be planned with; allocators round up and fragment
LARGEST_CHUNK = 8  # frames decoded apart from the others when memory is too short for all together
SMALLEST_CHUNK = 2  # two frames are the least that have a neighbour


@dataclass(frozen=True)
class DecodePlan:
    """How an orbit is decoded.

    Attributes:
        frames: Frames in work at a time.
        count: Frames of the orbit.
        together: Whether all frames stay together while some are in work, which gives the frames of
            the whole decode; else chunks are decoded apart and blended, which comes near them.
    """

    frames: int
    count: int
    together: bool = True

    @property
    def whole(self) -> bool:
        """Whether all frames are decoded at once."""
        return self.frames >= self.count

    def smaller(self) -> DecodePlan | None:
        """What to try when memory did not suffice, or None when nothing is left to try."""
        if not self.together:
            half = self.frames // 2
            return replace(self, frames=half) if half >= SMALLEST_CHUNK else None
        if self.frames > 1:
            return replace(self, frames=min(self.frames, self.count) // 2)
        chunk = min(LARGEST_CHUNK, self.count - 1)
        return DecodePlan(chunk, self.count, together=False) if chunk >= SMALLEST_CHUNK else None

    def __str__(self) -> str:
        if self.whole:
            return f"all {self.count} frames at once"
        if self.together:
            return f"{self.count} frames together, {self.frames} in work at a time"
        return f"in overlapping chunks of {self.frames} frames, for want of memory"


def decode_bytes(latents_shape: tuple[int, ...], dtype: torch.dtype, frames_per_slice: int) -> int:
    """Estimated device memory for decoding, over the weights. Latents [T, 4, h, w]"""
    count, _, height, width = latents_shape
    per_frame = height * width * dtype.itemsize
    if frames_per_slice >= count:
        return count * per_frame * WHOLE_VALUES
    return per_frame * (count * HELD_VALUES + frames_per_slice * WORK_VALUES)


def free_bytes(device: torch.device) -> int:
    """Memory a new allocation could get on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + cached
    import psutil

    return psutil.virtual_memory().available


def plan_decode(
    latents: Tensor,  # [T, 4, h, w]
    dtype: torch.dtype,
    device: torch.device,
    frames_per_slice: int = 0,
    free: int | None = None,
) -> DecodePlan:
    """The plan that fits and cuts least; a number of frames that is given is taken as it is."""
    if frames_per_slice < 0:
        raise ValueError(f"frames per slice must be 0 (automatic) or more, got {frames_per_slice}")
    count = len(latents)
    if frames_per_slice:
        return DecodePlan(min(frames_per_slice, count), count)
    budget = SPARE_SHARE * (free_bytes(device) if free is None else free)
    plan: DecodePlan | None = DecodePlan(count, count)
    last = plan
    while plan is not None and plan_bytes(plan, latents, dtype) > budget:
        last, plan = plan, plan.smaller()
    return plan or last


def plan_bytes(plan: DecodePlan, latents: Tensor, dtype: torch.dtype) -> int:
    """Estimated device memory of a plan, over the weights."""
    if plan.together:
        return decode_bytes(tuple(latents.shape), dtype, plan.frames)
    return decode_bytes((plan.frames, *latents.shape[1:]), dtype, plan.frames)
