"""Scores of rendered views against held-out pictures.

The definitions are those of common evaluation scripts, so figures can be compared: PSNR of the
whole frame composited on one background, PSNR over the object's pixels alone, Gaussian-window
SSIM as in scikit-image, and intersection over union of the two masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from .losses import ssim
from .progress import Progress, silent

MASK_THRESHOLD = 0.5  # coverage above which a pixel belongs to the object
PERFECT_PSNR = 100.0  # dB reported for equal pictures, so that means stay finite

Lpips = Callable[[Tensor, Tensor], Tensor]  # ([V, H, W, 3], [V, H, W, 3]) in [0, 1] -> [V]


def psnr(images: Tensor, targets: Tensor, pixels: Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of values in [0, 1], over all pixels or the chosen ones.

    Args:
        images: [..., C]
        targets: [..., C]
        pixels: Which pixels count, bool, or None for all. [...]
    """
    error = (images.double() - targets.double()).square().mean(-1)
    if pixels is not None:
        if not bool(pixels.any()):
            return PERFECT_PSNR
        error = error[pixels]
    mean = float(error.mean())
    return PERFECT_PSNR if mean < 1e-10 else -10.0 * math.log10(mean)


def mask_iou(first: Tensor, second: Tensor) -> float:
    """Intersection over union of two coverage maps cut at `MASK_THRESHOLD`; 1 if both are empty."""
    a, b = first > MASK_THRESHOLD, second > MASK_THRESHOLD
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def score_views(
    colours: Tensor,  # [V, H, W, 3]
    alphas: Tensor,  # [V, H, W]
    true_colours: Tensor,  # [V, H, W, 3]
    true_masks: Tensor,  # [V, H, W]
    *,
    background: float = 1.0,
    lpips: Lpips | None = None,
) -> dict[str, float | list[dict[str, float]] | None]:
    """Scores of straight colours with alphas against straight true colours with masks.

    Args:
        colours: Rendered sRGB in [0, 1], not premultiplied. [V, H, W, 3]
        alphas: Rendered coverage in [0, 1]. [V, H, W]
        true_colours: The same of the truth. [V, H, W, 3]
        true_masks: The same of the truth. [V, H, W]
        background: Grey level both are composited on; 1 = white.
        lpips: A perceptual distance of composited pictures, or None.

    Returns:
        Means over views of `psnr`, `psnr_object` (pixels of either mask), `ssim`, `alpha_iou` and
        `lpips` (None without a function), and the single values under `per_view`.
    """
    rows = []
    for v in range(len(colours)):
        image = _composite(colours[v], alphas[v], background)
        target = _composite(true_colours[v], true_masks[v], background)
        seen = (true_masks[v] > 0) | (alphas[v] > MASK_THRESHOLD)
        row = _scores_of_one(image, target, seen, lpips)
        rows.append({**row, "alpha_iou": mask_iou(alphas[v], true_masks[v])})
    return _with_means(rows, ("psnr", "psnr_object", "ssim", "alpha_iou", "lpips"))


def score_pictures(
    images: Tensor,  # [V, H, W, 3]
    targets: Tensor,  # [V, H, W, 3]
    masks: Tensor | None = None,  # [V, H, W]
    *,
    lpips: Lpips | None = None,
    progress: Progress = silent,
) -> dict[str, float | list[dict[str, float]] | None]:
    """Scores of two batches of opaque pictures, picture by picture.

    Args:
        images: sRGB in [0, 1]. [V, H, W, 3]
        targets: What they are compared with. [V, H, W, 3]
        masks: Where the object is, 1 = object, or None. [V, H, W]
        lpips: A perceptual distance of pictures, or None.
        progress: Told about every picture; raising in it stops the work.

    Returns:
        Means over the pictures of `psnr`, `psnr_object` (pixels where the mask is above 0; None
        without masks), `ssim` and `lpips` (None without a function); single values in `per_view`.

    Raises:
        ValueError: The batches differ in number or size; the message has both.
    """
    require_same_frames(images, targets, "first pictures", "second pictures")
    if masks is not None:
        require_same_frames(images, masks, "pictures", "masks")
    rows = []
    for v in range(len(images)):
        seen = None if masks is None else masks[v] > 0
        rows.append(_scores_of_one(images[v], targets[v], seen, lpips))
        progress(v + 1, len(images), text=f"{rows[-1]['psnr']:.2f} dB")
    return _with_means(rows, ("psnr", "psnr_object", "ssim", "lpips"))


def require_same_frames(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    """Raise unless two batches [V, H, W, ...] have as many pictures of one size."""
    if len(first) != len(second):
        raise ValueError(
            f"{first_name}: {len(first)} frames, but {second_name}: {len(second)}; they are "
            "compared one by one, so give both the same frames"
        )
    (height, width), (other_height, other_width) = first.shape[1:3], second.shape[1:3]
    if (height, width) != (other_height, other_width):
        raise ValueError(
            f"{first_name}: {width}x{height} px, but {second_name}: {other_width}x{other_height} "
            "px; scale one to the size of the other"
        )


def _scores_of_one(
    image: Tensor,  # [H, W, 3]
    target: Tensor,  # [H, W, 3]
    pixels: Tensor | None,  # [H, W]
    lpips: Lpips | None,
) -> dict[str, float]:
    row = {"psnr": psnr(image, target)}
    if pixels is not None:
        row["psnr_object"] = psnr(image, target, pixels)
    # float32 is within 2e-6 of float64 here and 37 times faster on CPU
    row["ssim"] = float(ssim(image.float()[None], target.float()[None]))
    if lpips is not None:
        row["lpips"] = float(lpips(image[None].float(), target[None].float()))
    return row


def _with_means(
    rows: list[dict[str, float]], keys: Sequence[str]
) -> dict[str, float | list[dict[str, float]] | None]:
    means: dict[str, float | None] = {
        key: sum(row[key] for row in rows) / len(rows) if key in rows[0] else None for key in keys
    }
    return {**means, "per_view": rows}


def _composite(colours: Tensor, alphas: Tensor, background: float) -> Tensor:
    alpha = alphas[..., None]
    return colours * alpha + background * (1 - alpha)
