"""How many frames are decoded at a time, from the memory that is there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Values alive at the peak, per frame and latent pixel, measured on SVD's decoder in float16 at 64x64
# latents (H200: 9.0 GiB for 18 frames at once; 3.8, 4.3, 5.3, 6.6, 8.4 GiB with 1, 2, 4, 6, 9 of them
# in work), rounded up: all frames at once; each frame while the work is sliced; a frame in work.
WHOLE_VALUES = 68_000
HELD_VALUES = 24_000
WORK_VALUES = 84_000
SPARE_SHARE = 0.9  # of the free memory may be planned with; allocators round up and fragment
SMALLEST_SLICE = 1


@dataclass(frozen=True)
class DecodePlan:
    """All frames at once, or in slices of some frames with the same result."""

    frames_per_slice: int
    count: int

    @property
    def whole(self) -> bool:
        """Whether all frames are decoded at once."""
        return self.frames_per_slice >= self.count

    def __str__(self) -> str:
        if self.whole:
            return f"all {self.count} frames at once"
        return f"{self.count} frames together, {self.frames_per_slice} in work at a time"


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
    """The largest number of frames that fits; a number that is given is taken as it is."""
    if frames_per_slice < 0:
        raise ValueError(f"frames per slice must be 0 (automatic) or more, got {frames_per_slice}")
    count = len(latents)
    if frames_per_slice:
        return DecodePlan(min(frames_per_slice, count), count)
    budget = SPARE_SHARE * (free_bytes(device) if free is None else free)
    for frames in (count, count // 2, count // 4, 2):
        if frames >= 1 and decode_bytes(tuple(latents.shape), dtype, frames) <= budget:
            return DecodePlan(frames, count)
    return DecodePlan(SMALLEST_SLICE, count)
