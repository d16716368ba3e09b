"""What the NeuS fit minimises, term by term (NeuS, Wang et al. 2021; V3D's additions)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

OPACITY_MARGIN = 1e-3  # of the cross entropy; V3D
FACING = -0.1  # cosine of ray and normal above which a normal says nothing; V3D
SPARSITY_SHARPNESS = 100.0  # 1 / unit of half the cube; V3D


def colour_loss(
    pictures: Tensor,  # [R, 3]
    targets: Tensor,  # [R, 3]
    trimmed: float = 0.0,
) -> Tensor:
    """L1 distance of colours over the same background; the worst share `trimmed` is left out."""
    return trimmed_mean((pictures - targets).abs().mean(-1), trimmed)


def mask_loss(opacities: Tensor, masks: Tensor) -> Tensor:  # [R] in [0, 1], twice
    """Cross entropy between opacity and mask; masks may be soft."""
    return F.binary_cross_entropy(opacities.clamp(OPACITY_MARGIN, 1 - OPACITY_MARGIN), masks)


def eikonal_loss(gradients: Tensor, counts: Tensor) -> Tensor:  # [N, 3], [N] bool
    """Mean of (|gradient| - 1)^2 where `counts`."""
    off = (torch.sqrt(gradients.square().sum(-1) + 1e-12) - 1).square() * counts
    return off.sum() / counts.sum().clamp(min=1)


def normal_loss(
    normals: Tensor,  # [R, 3] composited, any length
    priors: Tensor,  # [R, 3] world, zero where unknown
    directions: Tensor,  # [R, 3] unit
    trimmed: float = 0.0,
) -> Tensor:
    """1 - cosine between the surface's normal and a given one, as V3D weighs it.

    Normals seen head-on count more, by exp |cosine with the ray|; those that face away or lie
    within 6 degrees of sideways, and rays without a normal, not at all. Differs from V3D, whose
    weights add up to 1 with the rays that do not count, so that its loss shrinks with their number:
    here they add up to 1 over those that count. V3D announces a "ranking loss" and computes plain
    sums; here the worst share really is left out.
    """
    facing = (directions * priors).sum(-1)
    counts = facing < FACING
    weights = torch.exp(facing.abs()) * counts
    off = 1 - F.cosine_similarity(normals, priors, dim=-1)
    if trimmed > 0:
        ordered = torch.where(counts, off, torch.inf).sort().values
        last = ((counts.sum() * (1 - trimmed)).long() - 1).clamp(min=0)
        weights = weights * (off <= ordered[last])
    return (off * weights).sum() / weights.sum().clamp(min=1e-6)


def sparsity_loss(sdf: Tensor) -> Tensor:  # [N], in units of half the cube
    """Mean of exp(-100 |distance|): few surfaces besides the one that the pictures ask for."""
    return torch.exp(-SPARSITY_SHARPNESS * sdf.abs()).mean()


def smoothness_loss(gradients: Tensor, beside: Tensor) -> Tensor:  # [N, 3] twice
    """Mean |change| of the gradient's components over a small step; V3D's "3d normal smooth"."""
    return (gradients - beside).abs().mean()


def curvature_loss(
    gradients: Tensor,  # [N, 3]
    beside: Tensor,  # [N, 3]
    tangents: Tensor,  # [N, 3] unit, from the points to those beside
    distance: float,
) -> Tensor:
    """Mean |curvature| along random tangents: how fast the normal turns, 1 / unit of `distance`.

    Rosu and Behnke 2023 (PermutoSDF, eq. 8) compare normals at a tangential step, as here.
    """
    turned = F.normalize(beside, dim=-1) - F.normalize(gradients, dim=-1)
    return (turned * tangents).sum(-1).abs().mean() / distance


def trimmed_mean(errors: Tensor, trimmed: float) -> Tensor:  # [R]
    """Mean of the smallest errors, without the largest share `trimmed`."""
    if trimmed <= 0:
        return errors.mean()
    return errors.topk(_kept(len(errors), trimmed), largest=False, sorted=False).values.mean()


def _kept(count: int, trimmed: float) -> int:
    return max(1, round(count * (1 - trimmed)))
