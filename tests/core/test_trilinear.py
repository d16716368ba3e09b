"""Values between the samples of a volume: torch's own, bit by bit, however points and memory lie."""

import pytest
import torch
import torch.nn.functional as F

from v3d_core.neus.trilinear import interleaved, trilinear


@pytest.mark.parametrize("shape", [(64,), (61,), (8, 12), (7, 3), (1,), (0,)])
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_values_are_those_of_torch_bit_by_bit(shape, channels):
    generator = torch.Generator().manual_seed(len(shape) + channels)
    volume = torch.randn(channels, 9, 9, 9, generator=generator)
    unit = torch.rand(*shape, 3, generator=generator) * 2.6 - 1.3  # some lie outside
    expected = F.grid_sample(
        volume[None],
        unit.flip(-1).reshape(1, 1, 1, unit[..., 0].numel(), 3),
        align_corners=False,
        padding_mode="border",
    )[0, :, 0, 0]
    for stored in (volume, interleaved(volume)):
        assert torch.equal(stored, volume)
        assert torch.equal(trilinear(stored, unit), expected.reshape(channels, *shape))


def test_a_linear_function_is_met_exactly_between_the_outermost_centres():
    along = (torch.arange(8, dtype=torch.float64) + 0.5) / 8 * 2 - 1
    x, y, z = torch.meshgrid(along, along, along, indexing="ij")
    volume = torch.stack([2 * x - 3 * y + 0.5 * z + 1, z])
    unit = torch.rand(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    unit = (unit * 2 - 1) * (7 / 8)
    expected = torch.stack([unit @ unit.new_tensor([2.0, -3.0, 0.5]) + 1, unit[:, 2]])
    torch.testing.assert_close(trilinear(interleaved(volume), unit), expected)
