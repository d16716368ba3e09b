"""Steps of the extraction that a whole mesh does not show."""

import numpy as np
import pytest
import torch

from v3d_core.neus import extract_blocks
from v3d_core.neus.extract import has_shared_edges
from v3d_core.neus.extract_blocks import BLOCK, FAR, NEAR, Lattice, SparseDistances

TETRAHEDRON = torch.tensor([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])


@pytest.mark.parametrize(
    "faces, shared",
    [
        (TETRAHEDRON, False),
        (TETRAHEDRON[:0], False),
        (torch.cat([TETRAHEDRON, TETRAHEDRON + 4]), False),
        # a second one on the other side of the edge from 0 to 1
        (torch.cat([TETRAHEDRON, torch.tensor([0, 1, 4, 5])[TETRAHEDRON]]), True),
        # at a corner only
        (torch.cat([TETRAHEDRON, torch.tensor([0, 6, 4, 5])[TETRAHEDRON]]), False),
    ],
)
def test_edges_of_more_than_two_faces_are_noticed(faces, shared):
    assert has_shared_edges(faces) is shared


@pytest.fixture(scope="module")
def sampled():
    """A ball that crosses some of 3 x 3 x 3 blocks, and its lattice."""
    side = 3 * BLOCK
    lattice = Lattice(torch.full((3,), -1.0, dtype=torch.float64), 2 / side, (side,) * 3)
    ball = lambda points: points.norm(dim=-1) - 0.5  # noqa: E731
    return SparseDistances(ball, lattice, lambda share: None), lattice, ball


@pytest.mark.parametrize("batch", [1, 5, 1000])
def test_blocks_hold_the_distances_of_their_samples_however_many_are_made_at_once(
    sampled, batch, monkeypatch
):
    monkeypatch.setattr(extract_blocks, "BATCH", batch)
    samples, lattice, ball = sampled
    along = torch.arange(BLOCK + 1)
    inner = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), dim=-1)
    seen = []
    for corner, values in samples.crossed_blocks(lambda share: None):
        exact = ball(lattice.points(inner + torch.tensor(corner))) / lattice.voxel
        near = exact.abs() < 1
        assert np.abs(values - exact.numpy())[near].max() < 1.1 * NEAR  # which none is below
        assert (np.sign(values) == np.sign(exact.numpy()))[exact.abs() > 1e-3].all()
        assert np.abs(values).max() == FAR
        seen.append(corner)
    assert len(set(seen)) == len(seen) > 8 and seen == sorted(seen)
