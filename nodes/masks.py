"""Which pixels are object: alpha, a MASK of either polarity, or a flat background."""

from __future__ import annotations

import torch
from torch import Tensor

from ..v3d_core.images import key_uniform_background

MASK_IS = ("auto", "object", "background")
PLACEHOLDER_SIZE = (64, 64)  # LoadImage gives zeros of this size for a picture without alpha
BORDER_SHARE = 0.02  # width of the ring that decides the polarity, of the shorter side
SMALLEST_OBJECT_PX = 16  # fewer object (or background) pixels than a 4x4 spot fit nothing


def object_masks(
    colours: Tensor,  # [V, H, W, 3]
    alpha: Tensor | None,  # [V, H, W]
    mask: Tensor | None,  # [V, H, W]
    mask_is: str,
) -> tuple[Tensor, Tensor, str]:
    """Straight colours, masks with 1 = object, and a sentence on where the masks come from.

    A connected mask beats alpha, alpha beats keying the background.

    Args:
        colours: Pictures as they came in. [V, H, W, 3]
        alpha: Fourth channel of the pictures, or None. [V, H, W]
        mask: MASK input, or None. [V, H, W]
        mask_is: What 1 means in `mask`: "object", "background", or "auto" to see which of the two
            makes the border of the pictures background.
    """
    note = ""
    if mask is not None and _is_placeholder(mask):
        mask, note = None, "ignored an all-zero 64x64 mask (Load Image makes it for opaque files); "
    if mask is not None:
        masks, text = _from_mask(colours, mask, mask_is)
        straight = colours
    elif alpha is not None:
        straight, masks, text = colours, alpha, "masks are the images' alpha channel"
    else:
        _require_finite(colours)
        straight, masks, text = key_uniform_background(colours)
    require_object_and_background(masks)
    return straight, masks, note + text


def require_object_and_background(masks: Tensor) -> None:  # [V, H, W]
    """Raise unless every mask has some object and some background."""
    pixels = masks[0].numel()
    inside = (masks > 0.5).flatten(1).sum(1)
    for state, bad, remedy in (
        ("empty", inside < SMALLEST_OBJECT_PX, "show the object in every frame, or flip `mask_is`"),
        ("full", inside > pixels - SMALLEST_OBJECT_PX, "cut the object out, or flip `mask_is`"),
    ):
        if bool(bad.any()):
            views = torch.nonzero(bad)[:, 0].tolist()
            raise ValueError(
                f"{len(views)} of {len(masks)} masks are {state}: view {views[0]} has "
                f"{int(inside[views[0]])} object pixels of {pixels}; {remedy}"
            )


def _is_placeholder(mask: Tensor) -> bool:
    return tuple(mask.shape[1:]) == PLACEHOLDER_SIZE and not bool(mask.any())


def _from_mask(colours: Tensor, mask: Tensor, mask_is: str) -> tuple[Tensor, str]:
    if mask.shape != colours.shape[:3]:
        raise ValueError(
            f"{len(mask)} masks of {mask.shape[2]}x{mask.shape[1]} but {len(colours)} images of "
            f"{colours.shape[2]}x{colours.shape[1]}; each image needs its mask in the same size"
        )
    if not bool(torch.isfinite(mask).all()):
        bad = int((~torch.isfinite(mask)).sum())
        raise ValueError(f"{bad} of {mask.numel()} mask values are NaN or infinite; repair them")
    mask = mask.clamp(0, 1)
    if mask_is == "object":
        return mask, "masks used as they are (1 = object)"
    if mask_is == "background":
        return 1 - mask, "masks inverted (1 = background)"
    border = _border_mean(mask)
    if border > 0.5:
        return 1 - mask, f"masks inverted: their border is {border:.0%} set, so 1 = background"
    return mask, f"masks used as they are: their border is {border:.0%} set, so 1 = object"


def _border_mean(mask: Tensor) -> float:
    height, width = mask.shape[1:]
    ring = max(1, round(BORDER_SHARE * min(height, width)))
    inner = mask[:, ring : height - ring, ring : width - ring]
    outside = mask.numel() - inner.numel()
    return float((mask.sum() - inner.sum()) / max(outside, 1))


def _require_finite(colours: Tensor) -> None:
    bad = int((~torch.isfinite(colours)).sum())
    if bad:
        raise ValueError(
            f"{bad} of {colours.numel()} image values are NaN or infinite; repair the images"
        )
