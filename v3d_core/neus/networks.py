"""The two networks of the field: what runs them."""

from __future__ import annotations

from torch import Tensor

from .engines import COLOUR_NETWORKS, DISTANCE_NETWORKS
from .torch_networks import Distances, Layers, Places


def distance_network(places: Places, layers: Layers, *, slopes: bool = True) -> Distances:
    """Residual distance, all outputs, and the residual's slopes.

    Differentiable in the features and the layers, to first order.

    Args:
        places: Points as both networks know them.
        layers: Weights; the first output is the residual.
        slopes: Whether `by_unit` and `by_features` are wanted; without them both are empty.
    """
    run = DISTANCE_NETWORKS.choose(layers.weight1.device, layers.weight1.dtype).run
    return run(places, layers, slopes)


def colour_network(
    outputs: Tensor,  # [N, O]
    places: Places,
    normals: Tensor,  # [N, 3]
    directions: Tensor | None,  # [N, 3]
    layers: Layers,
) -> Tensor:  # [N, 3]
    """Colours in [0, 1].

    Differentiable in the outputs, the features, the normals and the layers, to first order.

    Args:
        outputs: Of the distance network. [N, O]
        places: Points as both networks know them.
        normals: Unit. [N, 3]
        directions: Of the rays, or None where colours do not change with them. [N, 3]
        layers: Weights.
    """
    run = COLOUR_NETWORKS.choose(layers.weight1.device, layers.weight1.dtype).run
    return run(outputs, places, normals, directions, layers)
