"""The signed distance of a fitted field, for whoever lays a mesh onto its surface."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .field import SDFField

ON_THE_CUBE = 1e-4  # of its half side: what the cube cuts off is closed there


def field_distance(field: SDFField) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Signed distances and unit normals of a fitted field, for `clean`, on the points' device.

    First-order: the value over the length of its gradient. Points outside the field's cube, and on
    its sides, where what it cuts off is closed, are called on the surface.
    """

    def distance(points: Tensor) -> tuple[Tensor, Tensor]:  # [N, 3] -> [N], [N, 3]
        here = points.to(field.device, torch.float32)
        values, gradients = field.sdf_and_gradient(here)
        values, gradients = values.detach(), gradients.detach()
        values = values / gradients.norm(dim=-1).clamp_min(1e-3)
        away = (here - field.centre).abs().amax(dim=-1)
        values = torch.where(away < (1 - ON_THE_CUBE) * field.half_size, values, 0.0)
        return values.to(points), F.normalize(gradients, dim=-1).to(points)

    return distance
