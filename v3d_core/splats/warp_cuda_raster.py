"""The built-in rasteriser on NVIDIA GPUs: `kernels/splat_records` and `splat_tiles_cuda`.

Same contract as the torch oracle (`engines.Rasterizer`). By default one number per call, the count
of pairs, is read back to make room for exactly so many. Inside `fixed_pair_capacity` nothing is
read back, as a CUDA graph needs it, and what exceeds the capacity is left out of the pictures.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels import adam_cuda, photometric_cuda, splat_records, splat_tiles_cuda
from ..kernels.warp_engine import WarpEngine, contiguous
from .projection import Pinholes
from .warp_raster import contiguous_pinholes, differentiate, project


@dataclass
class PairCapacity:
    """Room for pairs (tile, Gaussian) of one call, and how many were wanted at most.

    Attributes:
        pairs: Room for so many.
        wanted: The largest number of pairs any call wanted; stays on the device. [1] int32
    """

    pairs: int
    wanted: Tensor


_here = threading.local()  # fits on other threads have room of their own


@contextmanager
def fixed_pair_capacity(capacity: PairCapacity) -> Iterator[None]:
    """Scope in which calls take this much room and never wait for the device."""
    before = getattr(_here, "capacity", None)
    _here.capacity = capacity
    try:
        yield
    finally:
        _here.capacity = before


def rasterize_warp_cuda(
    means: Tensor,  # [N, 3]
    quats: Tensor,  # [N, 4]
    scales: Tensor,  # [N, 3]
    opacities: Tensor,  # [N]
    colours: Tensor,  # [V or 1, N, 3]
    pinholes: Pinholes,
    pull: Tensor | None = None,  # [N]
) -> Tensor:  # [V, H, W, 4]
    """Premultiplied colours and coverage on CUDA; see `engines.Rasterizer`."""
    return _Rasterize.apply(means, quats, scales, opacities, colours, pinholes, pull)


def engine(device: torch.device) -> WarpEngine:
    """A GPU's engine, with all kernels of a step."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return _engine_of(index)


@cache
def _engine_of(index: int) -> WarpEngine:
    modules = (splat_records, splat_tiles_cuda, photometric_cuda, adam_cuda)
    return WarpEngine(torch.device("cuda", index), modules)


@torch.no_grad()
def surface_depths_warp_cuda(
    means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, pinholes: Pinholes
) -> Tensor:  # [V, H, W]
    """Depth where the ray's transmittance falls through one half; see `surface_depths_torch`."""
    e = engine(means.device)
    inputs = [contiguous(t) for t in (means, quats, scales, opacities)]
    pinholes = contiguous_pinholes(pinholes)
    records = project(e, inputs, torch.zeros_like(inputs[0])[None], pinholes)
    lists = _list_tiles(e, records, pinholes)
    depths = torch.empty(len(records), pinholes.height, pinholes.width, device=means.device)
    e.launch(
        splat_tiles_cuda.depth_tiles,
        [*lists.arguments(records), pinholes.width, pinholes.height, depths],
        lists.tiles * splat_tiles_cuda.BLOCK,
    )
    return depths


@dataclass(frozen=True)
class _TileLists:
    """Which Gaussians lie over which tile of all pictures, near to far."""

    keys: Tensor  # [capacity] int64: depth bits above the Gaussian's number
    tile_start: Tensor  # [tiles + 1] int32
    capacity: int
    columns: int
    rows: int

    @property
    def tiles(self) -> int:
        return len(self.tile_start) - 1

    def arguments(self, records: Tensor) -> list:
        """What the tile kernels take first."""
        return [
            records.shape[1], records, self.keys, self.tile_start, self.capacity, self.columns,
            self.rows,
        ]  # fmt: skip


def _list_tiles(e: WarpEngine, records: Tensor, pinholes: Pinholes) -> _TileLists:
    """Count, make room, list, sort."""
    k = splat_tiles_cuda
    views, count, _ = records.shape
    columns, rows = -(-pinholes.width // k.TILE), -(-pinholes.height // k.TILE)
    tiles = views * columns * rows
    tile_start = torch.zeros(tiles + 1, dtype=torch.int32, device=records.device)
    e.launch(k.count_tiles, [count, records, columns, rows, tile_start[1:]], views * count)
    tile_start = torch.cumsum(tile_start, 0, dtype=torch.int32)
    fixed: PairCapacity | None = getattr(_here, "capacity", None)
    if fixed is None:
        capacity = max(1, int(tile_start[-1]))
    else:
        capacity = fixed.pairs
        torch.maximum(fixed.wanted, tile_start[-1:], out=fixed.wanted)
    keys = torch.empty(capacity, dtype=torch.int64, device=records.device)
    spare = torch.empty_like(keys)
    cursor = tile_start[:-1].clone()
    e.launch(k.list_tiles, [count, records, columns, rows, cursor, capacity, keys], views * count)
    e.launch(k.sort_tiles, [tile_start, capacity, keys, spare], tiles * k.BLOCK)
    return _TileLists(keys, tile_start, capacity, columns, rows)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means, quats, scales, opacities, colours, pinholes: Pinholes, pull):
        e = engine(means.device)
        inputs = [contiguous(t) for t in (means, quats, scales, opacities)]
        pinholes = contiguous_pinholes(pinholes)
        colours = contiguous(colours)
        records = project(e, inputs, colours, pinholes)
        lists = _list_tiles(e, records, pinholes)
        pictures = records.new_empty(len(records), pinholes.height, pinholes.width, 4)
        e.launch(
            splat_tiles_cuda.composite_tiles,
            [*lists.arguments(records), pinholes.width, pinholes.height, pictures],
            lists.tiles * splat_tiles_cuda.BLOCK,
        )
        ctx.lists, ctx.pinholes, ctx.pull = lists, pinholes, pull
        ctx.shared_colours = len(colours) == 1
        ctx.save_for_backward(*inputs, records, pictures)
        return pictures

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_pictures):  # pyright: ignore[reportIncompatibleMethodOverride]
        *inputs, records, pictures = ctx.saved_tensors
        e = engine(records.device)
        lists: _TileLists = ctx.lists
        gradients = records.new_zeros(*records.shape[:2], splat_records.RECORD_GRADIENT)
        e.launch(
            splat_tiles_cuda.differentiate_tiles,
            [*lists.arguments(records), ctx.pinholes.width, ctx.pinholes.height, pictures,
             grad_pictures.contiguous(), gradients],
            lists.tiles * splat_tiles_cuda.BLOCK,
        )  # fmt: skip
        found = differentiate(e, inputs, ctx.shared_colours, ctx.pinholes, gradients, ctx.pull)
        return (*found, None, None)
