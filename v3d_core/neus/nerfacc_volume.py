"""NeuS's compositing by nerfacc's dense functions, which are torch's; nothing is compiled."""

from __future__ import annotations

from torch import Tensor

from .. import backends
from .torch_volume import Composited, neus_alphas


def composite_nerfacc(
    sdf: Tensor,  # [R, S]
    cosines: Tensor,  # [R, S]
    deltas: Tensor,  # [R, S]
    inside: Tensor,  # [R, S]
    values: Tensor,  # [R, S, C]
    inv_s: Tensor,  # []
    anneal: Tensor,  # []
) -> Composited:
    """Compositing by nerfacc 0.5; see `volume.composite`.

    Its gradient of the transmittance asks the device whether a sample is opaque, so a step with it
    cannot be captured as a CUDA graph.
    """
    nerfacc = backends.load("nerfacc")
    alphas = neus_alphas(sdf, cosines, deltas, inside, inv_s, anneal)
    weights, _ = nerfacc.render_weight_from_alpha(alphas)
    seen = nerfacc.accumulate_along_rays(weights, values)
    opacities = nerfacc.accumulate_along_rays(weights)[:, 0]
    return Composited(seen, opacities, weights.detach())
