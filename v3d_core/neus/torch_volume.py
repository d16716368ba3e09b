"""NeuS's compositing in plain torch: the definition that all other engines are checked against."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ALPHA_EPSILON = 1e-5  # NeuS models/renderer.py; keeps the ratio defined deep inside


class Composited(NamedTuple):
    """What rays show.

    Attributes:
        values: Sums over a ray's samples of weight times value. [R, C]
        opacities: Sums of the weights, in [0, 1]. [R]
        weights: Share of every sample; no gradient flows through them. [R, S]
    """

    values: Tensor
    opacities: Tensor
    weights: Tensor


# (sdf, cosines, deltas, inside, values, inv_s, anneal []) as `volume.composite` describes them
Compositor = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Composited]


def composite_torch(
    sdf: Tensor,  # [R, S]
    cosines: Tensor,  # [R, S]
    deltas: Tensor,  # [R, S]
    inside: Tensor,  # [R, S]
    values: Tensor,  # [R, S, C]
    inv_s: Tensor,  # []
    anneal: Tensor,  # []
) -> Composited:
    """See `volume.composite`."""
    alphas = neus_alphas(sdf, cosines, deltas, inside, inv_s, anneal)
    weights = alphas * transmittances(alphas)
    return Composited((weights[..., None] * values).sum(1), weights.sum(1), weights.detach())


def neus_alphas(
    sdf: Tensor, cosines: Tensor, deltas: Tensor, inside: Tensor, inv_s: Tensor, anneal: Tensor
) -> Tensor:  # [R, S]
    """Opacities of ray segments from signed distances at their middles (Wang et al. 2021, eq. 13).

    The distance at both ends of a segment is extrapolated with the cosine, which is at first half
    that of a surface in general position and only with `anneal` the true one (NeuS renderer.py).
    """
    general, true = (0.5 - 0.5 * cosines).relu(), (-cosines).relu()
    half = -(general * (1 - anneal) + true * anneal) * deltas / 2
    before = torch.sigmoid((sdf - half) * inv_s)
    after = torch.sigmoid((sdf + half) * inv_s)
    alphas = ((before - after + ALPHA_EPSILON) / (before + ALPHA_EPSILON)).clamp(0, 1)
    return torch.where(inside, alphas, torch.zeros_like(alphas))


def transmittances(alphas: Tensor) -> Tensor:  # [R, S]
    """Products of 1 - alpha over the samples before each.

    By doubling steps: unlike the gradient of torch's cumprod it needs no division, so opaque
    samples do no harm, and asks the device nothing, so it can be captured as a CUDA graph.
    """
    samples = alphas.shape[1]
    product = torch.nn.functional.pad(1 - alphas[:, :-1], (1, 0), value=1.0)
    reach = 1
    while reach < samples:
        before = torch.nn.functional.pad(product[:, :-reach], (reach, 0), value=1.0)
        product = product * before
        reach *= 2
    return product
