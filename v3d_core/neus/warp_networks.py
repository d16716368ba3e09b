"""The field's networks in `kernels/field_networks`, behind autograd; on the CPU.

Same contracts as the torch oracles (`torch_networks`). Features and their gradients lie feature by
feature in memory, as the hash grid writes and reads them.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..kernels import field_networks as kernels
from ..kernels.warp_engine import WarpEngine, contiguous
from .torch_networks import (
    Distances,
    Layers,
    Places,
    colour_network_torch,
    distance_network_torch,
)

logger = logging.getLogger(__name__)


def distance_network_warp(places: Places, layers: Layers, slopes: bool) -> Distances:
    """See `torch_networks.distance_network_torch`."""
    if not _fits(layers, len(layers.weight2)):
        return distance_network_torch(places, layers, slopes)
    return Distances(*_Distances.apply(slopes, *places, *layers))


def colour_network_warp(
    outputs: Tensor, places: Places, normals: Tensor, directions: Tensor | None, layers: Layers
) -> Tensor:
    """See `torch_networks.colour_network_torch`."""
    if not _fits(layers, outputs.shape[1]):
        return colour_network_torch(outputs, places, normals, directions, layers)
    return _Colours.apply(outputs, normals, directions, *places, *layers)


def _fits(layers: Layers, outs: int) -> bool:
    """Whether the kernels have room for so many units, and outputs of the distance network."""
    units = max(layers.weight1.shape)
    if units <= kernels.MOST_UNITS and outs <= kernels.MOST_OUTPUTS:
        return True
    _tell_of_torch(units, outs)
    return False


@cache
def _tell_of_torch(units: int, outs: int) -> None:
    """Once for every size, not in every step."""
    logger.warning(
        "a network of %d units and %d outputs runs in torch, which is slower: the kernels have room "
        "for %d and %d",
        units,
        outs,
        kernels.MOST_UNITS,
        kernels.MOST_OUTPUTS,
    )


@cache
def _engine() -> WarpEngine:
    return WarpEngine(torch.device("cpu"), (kernels,))


def _read(places: Places, layers: Layers, outs: int) -> list:
    """The arguments that all four kernels begin with."""
    count, width = places.features.shape
    return [
        count, width, len(layers.bias1), outs, contiguous(places.unit),
        contiguous(places.features.t()), contiguous(places.level_weights),
        *(contiguous(t) for t in layers),
    ]  # fmt: skip


def _pieces(count: int) -> int:
    return -(-count // kernels.PIECE)


def _sum_of_pieces(gradients: Tensor, layers: Layers) -> Layers:  # [pieces, numbers]
    """Gradients of the layers' tensors from the padded ones of every piece."""
    units, inputs = (kernels.padded(size) for size in layers.weight1.shape)
    sizes = [units * inputs, units, kernels.MOST_OUTPUTS * units, kernels.MOST_OUTPUTS]
    weight1, bias1, weight2, bias2 = gradients.sum(0).split(sizes)
    hidden, outs = len(layers.bias1), len(layers.bias2)
    return Layers(
        weight1.view(units, inputs)[:hidden, : layers.weight1.shape[1]],
        bias1[:hidden],
        weight2.view(-1, units)[:outs, :hidden],
        bias2[:outs],
    )


def _room_for_gradients(layers: Layers, count: int) -> Tensor:  # [pieces, numbers]
    units, inputs = (kernels.padded(size) for size in layers.weight1.shape)
    numbers = units * inputs + units + kernels.MOST_OUTPUTS * (units + 1)
    return layers.weight1.new_empty(_pieces(count), numbers)


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx, slopes: bool, *tensors: Tensor):
        places, layers = Places(*tensors[:3]), Layers(*tensors[3:])
        (count, width), outs = places.features.shape, len(layers.bias2)
        residual, outputs = layers.bias1.new_empty(count), layers.bias1.new_empty(count, outs)
        by_unit = layers.bias1.new_empty(count if slopes else 0, 3)
        by_features = layers.bias1.new_empty(width, count if slopes else 0)
        read = _read(places, layers, outs)
        _engine().share(
            kernels.distances,
            [*read, int(slopes), residual, outputs, by_unit, by_features],
            _pieces(count),
        )
        ctx.save_for_backward(*tensors)
        ctx.slopes = slopes
        return residual, outputs, by_unit, by_features.t()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_residual, grad_outputs, grad_by_unit, grad_by_features):  # pyright: ignore[reportIncompatibleMethodOverride]
        places, layers = Places(*ctx.saved_tensors[:3]), Layers(*ctx.saved_tensors[3:])
        count, width = places.features.shape
        if not ctx.slopes:
            grad_by_unit = grad_outputs.new_zeros(count, 3)
            grad_by_features = grad_outputs.new_zeros(count, width)
        grad_features = layers.bias1.new_empty(width, count)
        grad_weights = _room_for_gradients(layers, count)
        _engine().share(
            kernels.differentiate_distances,
            [*_read(places, layers, len(layers.bias2)), contiguous(grad_residual),
             contiguous(grad_outputs), contiguous(grad_by_unit), contiguous(grad_by_features.t()),
             grad_features, grad_weights],
            _pieces(count),
        )  # fmt: skip
        return None, None, grad_features.t(), None, *_sum_of_pieces(grad_weights, layers)


class _Colours(torch.autograd.Function):
    @staticmethod
    def forward(ctx, outputs: Tensor, normals: Tensor, directions: Tensor | None, *tensors: Tensor):
        places, layers = Places(*tensors[:3]), Layers(*tensors[3:])
        count, outs = outputs.shape
        along = normals if directions is None else directions
        seen = [contiguous(t) for t in (outputs, normals, along)]
        ctx.with_directions = int(directions is not None)
        colours = outputs.new_empty(count, 3)
        _engine().share(
            kernels.colours,
            [*_read(places, layers, outs), *seen[:2], ctx.with_directions, seen[2], colours],
            _pieces(count),
        )
        ctx.save_for_backward(*tensors, *seen)
        return colours

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_colours):  # pyright: ignore[reportIncompatibleMethodOverride]
        *tensors, outputs, normals, along = ctx.saved_tensors
        places, layers = Places(*tensors[:3]), Layers(*tensors[3:])
        count, width = places.features.shape
        grad_outputs, grad_normals = torch.empty_like(outputs), torch.empty_like(normals)
        grad_features = layers.bias1.new_empty(width, count)
        grad_weights = _room_for_gradients(layers, count)
        _engine().share(
            kernels.differentiate_colours,
            [*_read(places, layers, outputs.shape[1]), outputs, normals,
             ctx.with_directions, along, contiguous(grad_colours), grad_outputs, grad_normals, grad_features, grad_weights],
            _pieces(count),
        )  # fmt: skip
        by_layers = _sum_of_pieces(grad_weights, layers)
        return grad_outputs, grad_normals, None, None, grad_features.t(), None, *by_layers
