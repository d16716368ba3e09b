"""The field's two networks in plain torch: the definition that all engines are checked against."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

SOFTPLUS_BETA = 100.0  # V3D, as NeuS


class Places(NamedTuple):
    """What both networks know of points.

    Attributes:
        unit: Places in the cube, [-1, 1]; they get no gradient. [N, 3]
        features: Of the hash grid. [N, F]
        level_weights: From 0 to 1, how far each feature has joined; they get no gradient. [F]
    """

    unit: Tensor
    features: Tensor
    level_weights: Tensor

    def inputs(self) -> Tensor:  # [N, 3 + F]
        """As the networks read them."""
        return torch.cat([self.unit, self.features * self.level_weights], dim=-1)


class Layers(NamedTuple):
    """A network of one hidden layer.

    Attributes:
        weight1: [H, inputs]
        bias1: [H]
        weight2: [outputs, H]
        bias2: [outputs]
    """

    weight1: Tensor
    bias1: Tensor
    weight2: Tensor
    bias2: Tensor


class Distances(NamedTuple):
    """What the distance network says of points, and how its first output changes with them.

    Attributes:
        residual: The first output. [N]
        outputs: All of them. [N, O]
        by_unit: d residual / d unit. [N, 3]
        by_features: d residual / d features. [N, F]
    """

    residual: Tensor
    outputs: Tensor
    by_unit: Tensor
    by_features: Tensor


# (places, layers, whether slopes are wanted; without them both are empty)
DistanceNetwork = Callable[[Places, Layers, bool], Distances]
# (outputs of the distance network [N, O], places, normals [N, 3], directions [N, 3] or None,
# layers) -> colours in [0, 1] [N, 3]; directions get no gradient
ColourNetwork = Callable[[Tensor, Places, Tensor, Tensor | None, Layers], Tensor]


def distance_network_torch(places: Places, layers: Layers, slopes: bool) -> Distances:
    """Softplus between two linear layers; its slopes written out, so that losses on them need
    first-order gradients only."""
    before = F.linear(places.inputs(), layers.weight1, layers.bias1)
    outputs = F.linear(F.softplus(before, SOFTPLUS_BETA), layers.weight2, layers.bias2)
    if not slopes:
        nothing = outputs.new_zeros(0)
        return Distances(outputs[:, 0], outputs, nothing, nothing)
    # d outputs[0] / d inputs = W1^T (softplus' * w2)
    by_inputs = (torch.sigmoid(SOFTPLUS_BETA * before) * layers.weight2[0]) @ layers.weight1
    return Distances(
        outputs[:, 0], outputs, by_inputs[:, :3], by_inputs[:, 3:] * places.level_weights
    )


def colour_network_torch(
    outputs: Tensor, places: Places, normals: Tensor, directions: Tensor | None, layers: Layers
) -> Tensor:
    """ReLU between two linear layers, a sigmoid behind them."""
    parts = [outputs, places.inputs(), normals]
    inputs = torch.cat(parts if directions is None else [*parts, directions], dim=-1)
    hidden = F.relu(F.linear(inputs, layers.weight1, layers.bias1))
    return torch.sigmoid(F.linear(hidden, layers.weight2, layers.bias2))
