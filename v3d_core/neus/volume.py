"""Volume rendering of a signed distance: what rays show (NeuS, Wang et al. 2021)."""

from __future__ import annotations

from torch import Tensor

from .engines import COMPOSITORS
from .torch_volume import Composited


def composite(
    sdf: Tensor,  # [R, S]
    cosines: Tensor,  # [R, S]
    deltas: Tensor,  # [R, S]
    inside: Tensor,  # [R, S]
    values: Tensor,  # [R, S, C]
    inv_s: Tensor,  # []
    anneal: float | Tensor,  # []
) -> Composited:
    """Composite a dense block of samples, near to far on every ray.

    Differentiable in sdf, cosines, values and inv_s, to first order.

    Args:
        sdf: Signed distances at the samples, world units, negative inside. [R, S]
        cosines: Ray direction times gradient of the sdf; negative facing the surface. [R, S]
        deltas: Lengths of the segments around the samples, world units, not negative. [R, S]
        inside: Which samples count; the others are clear. bool [R, S]
        values: What to add up along the rays: colours, maybe normals behind them. [R, S, C]
        inv_s: Sharpness of the logistic density, 1 / world units. []
        anneal: From 0, cosines as in general position, to 1, true cosines. []
    """
    rays, samples = sdf.shape
    shapes = {tuple(t.shape) for t in (cosines, deltas, inside, values[..., 0])}
    if shapes != {(rays, samples)} or inv_s.numel() != 1:
        raise ValueError(
            f"composite: sdf is {list(sdf.shape)}, so must be cosines {list(cosines.shape)}, "
            f"deltas {list(deltas.shape)}, inside {list(inside.shape)} and values "
            f"{list(values.shape)} but for its channels; inv_s is one number"
        )
    if not isinstance(anneal, Tensor):
        anneal = sdf.new_full((), anneal)
    run = COMPOSITORS.choose(sdf.device, sdf.dtype).run
    return run(sdf, cosines, deltas, inside, values, inv_s, anneal)
