"""Conjugate gradients for large sparse least squares, several right-hand sides at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    right: Tensor,  # [N, C]
    inverse_diagonal: Tensor,  # [N, 1]
    start: Tensor,  # [N, C]
    steps: int,
) -> Tensor:  # [N, C]
    """Some steps towards the solution of a symmetric positive semi-definite system, per column.

    Args:
        product: The matrix times values; it may return the same tensor, changed, every time.
            [N, C] -> [N, C]
        right: Right-hand sides. [N, C]
        inverse_diagonal: The Jacobi preconditioner. [N, 1]
        start: Where to begin. [N, C]
        steps: How many; each takes one product.
    """
    solution = start.clone()
    residual = right - product(solution)
    scaled = inverse_diagonal * residual
    direction = scaled.clone()
    room = torch.empty_like(scaled)  # large tensors made anew in every step cost more than the sums
    energy = torch.mul(residual, scaled, out=room).sum(dim=0)
    for _ in range(steps):
        if not bool((energy > 0).any()):
            break
        image = product(direction)
        curvature = torch.mul(direction, image, out=room).sum(dim=0)
        length = torch.where(curvature > 0, energy / curvature.clamp_min(1e-30), 0.0)
        solution.addcmul_(direction, length)
        residual.addcmul_(image, -length)
        torch.mul(inverse_diagonal, residual, out=scaled)
        before, energy = energy, torch.mul(residual, scaled, out=room).sum(dim=0)
        direction.mul_(energy / before.clamp_min(1e-30)).add_(scaled)
    return solution
