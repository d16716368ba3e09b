"""A small surface field for the tests of files."""

import torch

from v3d_core.neus.field import SDFField
from v3d_core.neus.grid import HashGrid


def small_field(view_direction=False) -> SDFField:
    generator = torch.Generator().manual_seed(3)
    start = torch.randn(4, 8, 8, 8, generator=generator)
    field = SDFField(
        torch.tensor([0.1, -0.2, 0.3]),
        0.9,
        start,
        HashGrid(levels=3, base=4, finest=16, log2_entries=8),
        hidden=8,
        view_direction=view_direction,
        generator=generator,
    )
    with torch.no_grad():
        for parameter in field.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        field.level_weights[-2:] = 0.5
    return field
