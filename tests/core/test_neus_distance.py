"""Distances of the start shape against brute force and closed forms."""

import pytest
import torch

from v3d_core.distance_transform import distance_to_nearest, parabola_minima
from v3d_core.neus.start import distance_to_occupied


def some_cells(share, size=9):
    return torch.rand(size, size, size, generator=torch.Generator().manual_seed(1)) < share


@pytest.mark.parametrize("share", [0.005, 0.1, 0.9])
def test_both_distance_transforms_are_the_nearest_by_brute_force(share):
    cells = some_cells(share)
    everywhere = torch.nonzero(torch.ones_like(cells)).double()
    true = torch.cdist(everywhere, torch.nonzero(cells).double()).amin(-1).view(cells.shape)
    torch.testing.assert_close(parabola_minima(cells).sqrt().double(), true, rtol=0, atol=1e-5)
    torch.testing.assert_close(distance_to_nearest(cells).double(), true, rtol=0, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares CUDA with the CPU")
@pytest.mark.cuda
def test_cuda_gives_the_distances_of_the_cpu():
    cells = some_cells(0.3, 33)
    on_gpu = distance_to_occupied(cells.cuda()).cpu()
    torch.testing.assert_close(on_gpu, distance_to_occupied(cells), rtol=0, atol=1e-4)


def test_distance_to_a_half_space_is_exact_and_zero_on_its_face():
    occupied = torch.zeros(24, 24, 24, dtype=torch.bool)
    occupied[:, :12] = True
    rows = distance_to_occupied(occupied)[10, :, 10]
    # the blur of a plane's distance is the distance itself, away from the array's ends
    torch.testing.assert_close(rows[6:18], torch.arange(6, 18) + 0.5 - 12, rtol=0, atol=1e-4)
