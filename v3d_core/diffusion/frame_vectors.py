"""diffusers' UNet told a vector of its own for every frame, which SV3D needs and SVD does not.

The network embeds three numbers of a video and adds them to the embedding of the noise level; its
blocks take the sum, once per frame, as `temb`. Here the three numbers count for nothing, and what
the vectors embed to is added at the blocks instead.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_KEPT = "v3d_frame_vectors"  # attribute of the network


class FrameVectors:
    """The vectors of the next calls of one UNetSpatioTemporalConditionModel."""

    @classmethod
    def of(cls, unet: Any) -> FrameVectors:
        """Those of a network, which is hooked into once, for good."""
        if not hasattr(unet, _KEPT):
            setattr(unet, _KEPT, cls(unet))
        return getattr(unet, _KEPT)

    def __init__(self, unet: Any) -> None:
        self._vectors = self._embedded = torch.zeros(0)
        unet.add_time_proj.register_forward_hook(self._ignore_numbers)
        unet.add_embedding.register_forward_hook(self._embed)
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
            block.register_forward_pre_hook(self._add, with_kwargs=True)

    def set(self, vectors: Tensor) -> None:
        """Vectors of all frames of all orbits of a batch. [B, T, C]"""
        self._vectors = vectors

    def _ignore_numbers(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return torch.zeros_like(self._vectors[:, 0])

    def _embed(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        self._embedded = module.forward(self._vectors.to(output)).flatten(0, 1)  # not by its hooks
        return torch.zeros_like(output)

    def _add(self, block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple:
        return args, {**kwargs, "temb": kwargs["temb"] + self._embedded}
