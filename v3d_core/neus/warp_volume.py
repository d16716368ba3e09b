"""NeuS's compositing kernels, `kernels/neus_volume` and `neus_volume_cuda`, behind autograd.

Same contract as the torch oracle (`torch_volume.Compositor`). Weights and what is left of
each ray are kept for the way back, sigmoids are computed again. Nothing is read back from a device.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.warp_engine import WarpEngine, contiguous
from .torch_volume import Composited


def composite_warp(
    sdf: Tensor,  # [R, S]
    cosines: Tensor,  # [R, S]
    deltas: Tensor,  # [R, S]
    inside: Tensor,  # [R, S]
    values: Tensor,  # [R, S, C]
    inv_s: Tensor,  # []
    anneal: Tensor,  # []
) -> Composited:
    """Compositing on CPU and CUDA; see `volume.composite`."""
    return Composited(*_Composite.apply(sdf, cosines, deltas, inside, values, inv_s, anneal))


def _kernels(device: torch.device) -> ModuleType:
    if device.type == "cuda":
        from ..kernels import neus_volume_cuda

        return neus_volume_cuda
    from ..kernels import neus_volume

    return neus_volume


@cache
def _engine_of(device: torch.device) -> WarpEngine:
    return WarpEngine(device, (_kernels(device),))


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sdf, cosines, deltas, inside, values, inv_s, anneal):
        k, e = _kernels(sdf.device), _engine_of(sdf.device)
        rays, samples, channels = values.shape
        inputs = [
            *(contiguous(t) for t in (sdf, cosines, deltas)), inside.contiguous(),
            *(contiguous(t) for t in (values, inv_s, anneal)),
        ]  # fmt: skip
        composited = sdf.new_empty(rays, channels)
        opacities, left = sdf.new_empty(rays), sdf.new_empty(rays)
        weights = sdf.new_empty(rays, samples)
        e.share(
            k.composite_rays,
            [samples, channels, *inputs, composited, opacities, weights, left],
            rays * k.LANES,
        )
        ctx.save_for_backward(*inputs, weights, left)
        ctx.mark_non_differentiable(weights)
        return composited, opacities, weights

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_composited, grad_opacities, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors
        sdf, cosines, _deltas, _inside, values, inv_s, *_ = saved
        k, e = _kernels(sdf.device), _engine_of(sdf.device)
        rays, samples, channels = values.shape
        by_inputs = [torch.empty_like(t) for t in (sdf, cosines, values)]
        by_sharpness = sdf.new_empty(rays)
        e.share(
            k.differentiate_rays,
            [samples, channels, *saved, contiguous(grad_composited), contiguous(grad_opacities),
             *by_inputs, by_sharpness],
            rays * k.LANES,
        )  # fmt: skip
        by_sdf, by_cosines, by_values = by_inputs
        by_inv_s = by_sharpness.sum().reshape(inv_s.shape)
        return by_sdf, by_cosines, None, None, by_values, by_inv_s, None
