"""What ComfyUI's masks mean: core's nodes make them in both polarities."""

from __future__ import annotations

import torch
from torch import Tensor

MASK_IS = ("auto", "object", "background")
PLACEHOLDER_SIZE = (64, 64)  # LoadImage gives zeros of this size for a picture without alpha
BORDER_SHARE = 0.02  # width of the ring that decides the polarity, of the shorter side


def object_masks(
    masks: Tensor,  # [V, H, W]
    mask_is: str,
) -> tuple[Tensor | None, str]:
    """Masks with 1 = object, or None for a placeholder, and a sentence on what was done.

    Args:
        masks: MASK input, 1 = object (Remove Background) or 1 = background (Load Image).
        mask_is: "object", "background", or "auto" to take the one of the two that makes the
            border of the pictures background.
    """
    if tuple(masks.shape[1:]) == PLACEHOLDER_SIZE and not bool(masks.any()):
        return None, "Ignored an all-zero 64x64 mask, which Load Image makes for opaque files."
    if mask_is == "object":
        return masks, "Masks used as they are (1 = object)."
    if mask_is == "background":
        return 1 - masks, "Masks inverted (1 = background)."
    border = _border_mean(masks)
    if border > 0.5:
        return 1 - masks, f"Masks inverted: {border:.0%} of their border is 1 = background."
    return masks, f"Masks used as they are: {border:.0%} of their border is 1 = object."


def _border_mean(masks: Tensor) -> float:
    height, width = masks.shape[1:]
    ring = max(1, round(BORDER_SHARE * min(height, width)))
    # the ring itself is averaged: a difference of two large sums can come out below zero
    on_border = torch.ones(height, width, dtype=torch.bool, device=masks.device)
    on_border[ring : height - ring, ring : width - ring] = False
    return float(masks[:, on_border].mean())
