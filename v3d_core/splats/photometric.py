"""The loss of a splat fit: pictures against targets over a background. Torch, and Warp's kernels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..losses import SSIM_RADIUS, ssim_map
from .engines import choose_engine


class LossWeights(NamedTuple):
    """Shares of the loss."""

    ssim: float  # share of 1 - SSIM against L1 of the colours
    mask: float  # of the L1 distance between coverage and mask


def photometric_loss(
    pictures: Tensor,  # [B, H, W, 4]
    targets: Tensor,  # [V, H, W, 4]
    confidences: Tensor,  # [V, H, W]
    batch: Tensor,  # [B] int64
    backgrounds: Tensor,  # [B, 3]
    weights: LossWeights,
) -> Tensor:  # []
    """L1 and SSIM over backgrounds, and L1 of coverage against mask; means over all pixels.

    Args:
        pictures: Rendered premultiplied sRGB and coverage. [B, H, W, 4]
        targets: The same of all V views, as they should be. [V, H, W, 4]
        confidences: How much each target pixel counts, 1 = fully. [V, H, W]
        batch: Which view each picture shows. [B] int64
        backgrounds: sRGB behind each picture. [B, 3]
        weights: Shares of the parts.
    """
    if choose_engine(pictures.device, pictures.dtype).name == "warp":
        from .warp_photometric import photometric_loss_warp

        return photometric_loss_warp(pictures, targets, confidences, batch, backgrounds, weights)
    return photometric_loss_torch(pictures, targets, confidences, batch, backgrounds, weights)


def photometric_loss_torch(
    pictures: Tensor,
    targets: Tensor,
    confidences: Tensor,
    batch: Tensor,
    backgrounds: Tensor,
    weights: LossWeights,
) -> Tensor:
    """The definition of `photometric_loss`."""
    wanted, confidence = targets[batch], confidences[batch][..., None]
    background = backgrounds[:, None, None]
    image = pictures[..., :3] + (1 - pictures[..., 3:]) * background
    target = wanted[..., :3] + (1 - wanted[..., 3:]) * background
    loss = (1 - weights.ssim) * ((image - target).abs() * confidence).mean()
    if weights.ssim:
        similarity = ssim_map(image, target, padding=SSIM_RADIUS)
        loss = loss + weights.ssim * ((1 - similarity) * confidence).mean()
    if weights.mask:
        coverage = (pictures[..., 3] - wanted[..., 3]).abs() * confidence[..., 0]
        loss = loss + weights.mask * coverage.mean()
    return loss
