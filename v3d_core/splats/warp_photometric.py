"""The fit's loss in Warp's kernels, `kernels/photometric` and `photometric_cuda`, behind autograd.

Same contract as the torch oracle, `photometric.photometric_loss_torch`; on two cores ten times as
fast.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.warp_engine import contiguous

if TYPE_CHECKING:
    from .photometric import LossWeights


def photometric_loss_warp(
    pictures: Tensor,  # [B, H, W, 4]
    targets: Tensor,  # [V, H, W, 4]
    confidences: Tensor,  # [V, H, W]
    batch: Tensor,  # [B] int64
    backgrounds: Tensor,  # [B, 3]
    weights: LossWeights,
) -> Tensor:  # []
    """The loss on CPU and CUDA; see `photometric.photometric_loss`."""
    return _FusedLoss.apply(pictures, targets, confidences, batch, backgrounds, weights)


def _kernels(device: torch.device) -> tuple[ModuleType, Callable[[object, list, int], None]]:
    """The loss's kernels on a device, and what runs one of them over so many tiles."""
    if device.type == "cuda":
        from ..kernels import photometric_cuda
        from .warp_cuda_raster import engine as engine_of

        def run(kernel: object, inputs: list, tiles: int) -> None:
            engine_of(device).launch(kernel, inputs, tiles * photometric_cuda.BLOCK)

        return photometric_cuda, run
    from ..kernels import photometric
    from .warp_raster import engine

    return photometric, engine().share


class _FusedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, pictures, targets, confidences, batch, backgrounds, weights: LossWeights):
        kernels, run = _kernels(pictures.device)
        count, height, width, _ = pictures.shape
        columns, rows = -(-width // kernels.TILE_WIDTH), -(-height // kernels.TILE_HEIGHT)
        ctx.tiles = count * columns * rows
        derivatives = pictures.new_empty(
            count * height * width * kernels.DERIVATIVES if weights.ssim else 1
        )
        sums = pictures.new_empty(ctx.tiles, kernels.LOSSES)
        ctx.arguments = [
            *(contiguous(t.detach()) for t in (pictures, targets, confidences)), batch,
            contiguous(backgrounds), columns, rows, width, height, int(weights.ssim > 0),
            derivatives,
        ]  # fmt: skip
        run(kernels.compare_pictures, [*ctx.arguments, sums], ctx.tiles)
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
        kernels, run = _kernels(grad_loss.device)
        grad = torch.empty_like(ctx.arguments[0])
        run(kernels.differentiate_pictures, [*ctx.arguments, *ctx.shares, grad], ctx.tiles)
        grad *= grad_loss
        return grad, None, None, None, None, None
