"""The loss of a splat fit: pictures against targets over a background. Torch, and fast on CUDA."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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
    if pictures.is_cuda and choose_engine(pictures.device, pictures.dtype).name == "warp":
        return _FusedLoss.apply(pictures, targets, confidences, batch, backgrounds, weights)
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


class _FusedLoss(torch.autograd.Function):
    """`kernels/photometric_cuda` behind autograd."""

    @staticmethod
    def forward(ctx, pictures, targets, confidences, batch, backgrounds, weights: LossWeights):
        from ..kernels import photometric_cuda as kernels
        from .warp_cuda_raster import engine

        count, height, width, _ = pictures.shape
        columns, rows = -(-width // kernels.TILE), -(-height // kernels.TILE)
        blocks = count * columns * rows
        derivatives = pictures.new_empty(
            count * height * width * kernels.DERIVATIVES if weights.ssim else 1
        )
        sums = pictures.new_empty(blocks, kernels.LOSSES)
        ctx.arguments = [
            pictures.detach().contiguous(), targets, confidences, batch, backgrounds.contiguous(),
            columns, rows, width, height, int(weights.ssim > 0), derivatives,
        ]  # fmt: skip
        ctx.weights, ctx.blocks = weights, blocks
        engine(pictures.device).launch(
            kernels.compare_pictures, [*ctx.arguments, sums], blocks * kernels.BLOCK
        )
        pixels = count * height * width
        shares = (
            (1 - weights.ssim) / (3 * pixels),
            weights.ssim / (3 * pixels),
            weights.mask / pixels,
        )
        ctx.shares = shares
        l1, dissimilarity, coverage, _ = sums.sum(0).unbind()
        return shares[0] * l1 + shares[1] * dissimilarity + shares[2] * coverage

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss):  # pyright: ignore[reportIncompatibleMethodOverride]
        from ..kernels import photometric_cuda as kernels
        from .warp_cuda_raster import engine

        grad = torch.empty_like(ctx.arguments[0])
        engine(grad.device).launch(
            kernels.differentiate_pictures,
            [*ctx.arguments, *ctx.shares, grad],
            ctx.blocks * kernels.BLOCK,
        )
        return grad * grad_loss, None, None, None, None, None
