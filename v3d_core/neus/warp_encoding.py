"""The hash grid's kernels, `kernels/hash_grid` and `hash_grid_cuda`, behind autograd.

Same contract as the torch oracle (`grid.Encoder`). The Jacobian of all features is kept, so that
`pull_back` is a product. Its gradient by the table is not formed from one by the Jacobian: what
comes back for the points goes on to the table, together with the features' gradients, in one pass.
Nothing is read back from a device, so that a step can be captured as a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels.warp_engine import WarpEngine, contiguous
from .grid import Encoded, HashGrid, no_pull_back


def encode_warp(
    points: Tensor,  # [N, 3]
    table: Tensor,  # [entries, 2]
    grid: HashGrid,
    jacobian: bool = True,
) -> Encoded:
    """Interpolation in every level, on CPU and CUDA; see `torch_encoding.encode_torch`."""
    points = contiguous(points.detach().t())
    if not jacobian:
        features, _ = _Encode.apply(points, table, grid, None)
        return Encoded(features, no_pull_back)
    first = _Pull()
    features, handle = _Encode.apply(points, table, grid, first)

    def pull_back(gradient: Tensor) -> Tensor:
        pull, its_handle = first, handle
        if pull.gradient is not None:  # a second call; both must not meet in one handle
            pull = _Pull()
            _, its_handle = _Encode.apply(points, table, grid, pull)
        return _PullBack.apply(gradient, its_handle, pull)

    return Encoded(features, pull_back)


@dataclass
class _Pull:
    """What one call of `pull_back` shares with the encoding it belongs to."""

    jacobian: Tensor | None = None  # [width, 3, N]
    gradient: Tensor | None = None  # [N, width], by the features; None until the call


def _kernels(device: torch.device) -> ModuleType:
    if device.type == "cuda":
        from ..kernels import hash_grid_cuda

        return hash_grid_cuda
    from ..kernels import hash_grid

    return hash_grid


@cache
def _engine_of(device: torch.device) -> WarpEngine:
    return WarpEngine(device, (_kernels(device),))


@cache
def _layout(grid: HashGrid, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scales, and the integers of the kernels' `LEVEL_NUMBERS`, of all levels."""
    mask = 2**grid.log2_entries - 1
    levels = [
        [side, offset, 0 if dense else mask]
        for side, offset, dense in zip(grid.resolutions, grid.offsets, grid.dense, strict=True)
    ]
    return (
        torch.tensor(grid.scales, dtype=torch.float32, device=device),
        torch.tensor(levels, dtype=torch.int32, device=device),
    )


def _with_strides(matrix: Tensor) -> tuple[Tensor, int, int]:
    """A matrix [N, C] as it lies, with its strides; copied only if it has gaps."""
    if matrix.dtype == torch.float32 and matrix.t().is_contiguous():
        return matrix.t(), 1, len(matrix)
    return contiguous(matrix), matrix.shape[1], 1


class _Encode(torch.autograd.Function):
    """Features [N, width], and a handle that carries the gradient by the points back."""

    @staticmethod
    def forward(ctx, points: Tensor, table: Tensor, grid: HashGrid, pull: _Pull | None):
        k, e = _kernels(table.device), _engine_of(table.device)
        layout = _layout(grid, table.device)
        count = points.shape[1]
        chunks = -(-count // k.CHUNK)
        features = points.new_empty(grid.width, count)
        jacobian = points.new_empty((grid.width, 3, count) if pull else 1)
        e.share(
            k.encode_points,
            [chunks, count, points, contiguous(table), *layout, int(pull is not None), features,
             jacobian],
            grid.levels * chunks,
        )  # fmt: skip
        if pull:
            pull.jacobian = jacobian
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(points)
        ctx.grid, ctx.pull, ctx.table_like = grid, pull, table.detach()
        return features.t(), points.new_zeros(1).expand(count, 3)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_features, grad_points):  # pyright: ignore[reportIncompatibleMethodOverride]
        (points,) = ctx.saved_tensors
        k, e, count = _kernels(points.device), _engine_of(points.device), points.shape[1]
        grad_table = torch.zeros_like(ctx.table_like)
        nothing = (points, 0, 0)
        features = nothing if grad_features is None else _with_strides(grad_features)
        pulled = nothing if grad_points is None else _with_strides(ctx.pull.gradient)
        e.share(
            k.scatter_gradients,
            [count, points, *_layout(ctx.grid, points.device),
             int(grad_features is not None), *features,
             int(grad_points is not None), *pulled,
             points if grad_points is None else contiguous(grad_points), grad_table],
            k.scatter_items(ctx.grid.levels, count),
        )  # fmt: skip
        return None, grad_table, None, None


class _PullBack(torch.autograd.Function):
    """Gradient by the features times the Jacobian. [N, 3]"""

    @staticmethod
    def forward(ctx, gradient: Tensor, handle: Tensor, pull: _Pull):
        jacobian = pull.jacobian
        assert jacobian is not None
        pull.gradient = gradient.detach()
        k, e = _kernels(gradient.device), _engine_of(gradient.device)
        width, _, count = jacobian.shape
        pulled = jacobian.new_empty(count, 3)
        e.share(
            k.pull_gradients,
            [count, width, jacobian, *_with_strides(pull.gradient), pulled],
            -(-count // k.CHUNK),
        )
        ctx.save_for_backward(jacobian)
        return pulled

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_points):  # pyright: ignore[reportIncompatibleMethodOverride]
        (jacobian,) = ctx.saved_tensors
        pushed = None
        if ctx.needs_input_grad[0]:
            k, e = _kernels(grad_points.device), _engine_of(grad_points.device)
            width, _, count = jacobian.shape
            pushed = jacobian.new_empty(width, count)
            e.share(
                k.push_gradients,
                [count, width, jacobian, contiguous(grad_points), pushed],
                -(-count // k.CHUNK),
            )
            pushed = pushed.t()
        return pushed, grad_points, None
