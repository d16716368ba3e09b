"""The fast rasteriser on CPU: `kernels/splat_tiles.py` behind torch's autograd.

Same contract as `torch_raster.rasterize_torch`; about eight times faster on two cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import backends
from .projection import Projected

MAX_THREADS = 8  # more brought nothing for pictures of 512 px (a thousand tiles)


def rasterize_warp(
    projected: Projected,
    colours: Tensor,  # [V, N, 3]
    opacities: Tensor,  # [N]
    width: int,
    height: int,
) -> Tensor:  # [V, H, W, 4]
    """Premultiplied colours and coverage; see `rasterize_torch` for the definition."""
    pictures = [
        _Composite.apply(
            projected.means2d[v],
            projected.conics[v],
            opacities,
            colours[v],
            projected.extents[v],
            projected.depths[v].detach(),
            width,
            height,
        )
        for v in range(len(projected.means2d))
    ]
    return torch.stack(pictures)


@dataclass(frozen=True)
class _TileLists:
    """Which Gaussians lie over which tile, near to far."""

    order: Tensor  # [N] int64, near to far
    tile_start: Tensor  # [tiles + 1] int32
    pair_gaussian: Tensor  # [M] int32
    pair_slot: Tensor  # [M] int32
    gaussian_start: Tensor  # [N + 1] int32
    columns: int
    tiles: int


@contextmanager
def _native_stderr_closed() -> Iterator[None]:
    """Sends file descriptor 2 nowhere.

    Warp's native start-up code warns of a missing NVIDIA driver and cannot be asked not to; on a
    machine without a GPU that is no news.
    """
    try:
        saved = os.dup(2)
    except OSError:  # a windowed program has none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


class _Engine:
    """Warp's module, loaded once, and the threads that share its launches."""

    def __init__(self) -> None:
        warp = backends.load("warp")
        # no banner, and no warning that a machine without a GPU has none
        if hasattr(warp.config, "log_level"):
            warp.config.log_level = warp.LOG_ERROR
        else:  # before Warp 1.16
            warp.config.quiet = True
        with _native_stderr_closed():
            warp.init()
        from ..kernels import splat_tiles

        # threads must find the module compiled: loading is not thread-safe
        warp.load_module(splat_tiles, device="cpu")
        self.warp = warp
        self.kernels = splat_tiles
        self.threads = max(1, min(MAX_THREADS, os.cpu_count() or 1))
        self.pool = ThreadPoolExecutor(self.threads, thread_name_prefix="v3d-raster")

    def launch(self, kernel: object, inputs: list, dim: int = 1) -> None:
        """Run a kernel on the calling thread."""
        self.warp.launch(kernel, dim=dim, inputs=[self._wrap(i) for i in inputs], device="cpu")

    def share(self, kernel: object, inputs: list, items: int) -> None:
        """Run a strided kernel over `items` on all threads."""
        wrapped = [self._wrap(i) for i in inputs]

        def part(first: int) -> None:
            count = len(range(first, items, self.threads))
            if count:
                arguments = [first, self.threads, *wrapped]
                self.warp.launch(kernel, dim=count, inputs=arguments, device="cpu")

        list(self.pool.map(part, range(self.threads)))

    def _wrap(self, value: object) -> object:
        return self.warp.from_torch(value) if isinstance(value, Tensor) else value


@cache
def engine() -> _Engine:
    """The engine of this process; compiles the kernels at the first call ever (seconds)."""
    return _Engine()


def _list_tiles(record: Tensor, depths: Tensor, width: int, height: int) -> _TileLists:
    """Counting sort of all (tile, Gaussian) pairs in depth order."""
    e = engine()
    tile = e.kernels.TILE
    columns, rows = -(-width // tile), -(-height // tile)
    order = torch.argsort(depths, stable=True)
    counts = torch.zeros(columns * rows, dtype=torch.int32)
    gaussian_start = torch.empty(len(order) + 1, dtype=torch.int32)
    flat = record.view(-1)
    e.launch(e.kernels.count_pairs, [flat, order, columns, rows, counts, gaussian_start])
    tile_start = torch.nn.functional.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))
    pairs = int(tile_start[-1])
    pair_gaussian = torch.empty(pairs, dtype=torch.int32)
    pair_slot = torch.empty(pairs, dtype=torch.int32)
    cursor = tile_start[:-1].clone()
    e.launch(e.kernels.list_pairs, [flat, order, columns, rows, cursor, pair_gaussian, pair_slot])
    return _TileLists(
        order, tile_start, pair_gaussian, pair_slot, gaussian_start, columns, columns * rows
    )


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(ctx, means2d, conics, opacities, colours, extents, depths, width, height):
        e = engine()
        record = torch.cat(
            [means2d, conics, opacities[:, None], colours, extents[:, 1:], extents[:, :1],
             torch.zeros_like(depths)[:, None]],
            dim=-1,
        ).float().contiguous()  # fmt: skip
        lists = _list_tiles(record, depths, width, height)
        picture = torch.empty(height, width, 4)
        e.share(
            e.kernels.composite_tiles,
            [record.view(-1), lists.pair_gaussian, lists.tile_start, lists.columns, width, height,
             picture.view(-1)],
            lists.tiles,
        )  # fmt: skip
        ctx.lists = lists
        ctx.save_for_backward(record, picture)
        return picture

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_picture):  # pyright: ignore[reportIncompatibleMethodOverride]
        e = engine()
        record, picture = ctx.saved_tensors
        lists: _TileLists = ctx.lists
        height, width, _ = picture.shape
        # zeros: pairs behind an opaque tile are never visited
        pair_gradients = torch.zeros(len(lists.pair_slot) * e.kernels.PAIR_GRADIENTS)
        e.share(
            e.kernels.differentiate_tiles,
            [record.view(-1), lists.pair_gaussian, lists.pair_slot, lists.tile_start,
             lists.columns, width, height, picture.view(-1),
             grad_picture.contiguous().view(-1), pair_gradients],
            lists.tiles,
        )  # fmt: skip
        gradients = torch.empty(len(record), e.kernels.PAIR_GRADIENTS)
        e.share(
            e.kernels.sum_pair_gradients,
            [lists.order, lists.gaussian_start, pair_gradients, gradients.view(-1)],
            len(record),
        )
        colour, opacity, centre, conic = gradients.split([3, 1, 2, 3], dim=-1)
        return centre, conic, opacity[:, 0], colour, None, None, None, None
