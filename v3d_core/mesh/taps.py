"""Pixels of a view as weighted sums of texels: a sparse matrix, applied both ways."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor

from ..cameras import camera_rays
from ..mesh_queries import MeshQueries
from ..structures import Cameras, Mesh
from .texels import bilinear_taps
from .visibility import pixel_shifts, uvs_of_hits


class Taps:
    """Rows that read a few texels each.

    On the CPU scipy's compressed rows over the texels that any row reads, with repeated texels
    merged: a view reads a fraction of a large atlas, and what it spreads is no larger. On CUDA
    gathers and sums.

    Args:
        index: Texels that each row reads, repeats allowed. [R, K] int64
        weight: Their shares. [R, K]
        texels: Number of texels there are.
    """

    def __init__(self, index: Tensor, weight: Tensor, texels: int) -> None:
        self.texels = texels
        self.rows = len(index)
        self._matrix: csr_matrix | None = None
        if index.device.type == "cpu":
            read = index.flatten().numpy()
            used = np.zeros(texels, bool)
            used[read] = True
            self._columns = np.flatnonzero(used)
            number = np.empty(texels, np.int32)  # of each texel among those used
            number[self._columns] = np.arange(len(self._columns), dtype=np.int32)
            starts = np.arange(self.rows + 1) * index.shape[1]
            data = (weight.float().flatten().numpy(), number[read], starts)
            self._matrix = csr_matrix(data, shape=(self.rows, len(self._columns)))
            self._matrix.sum_duplicates()
        else:
            self._index, self._weight = index.int(), weight.float()

    def apply(self, values: Tensor) -> Tensor:  # [texels, C] -> [R, C]
        """What the rows read."""
        if self._matrix is not None:
            return torch.from_numpy(self._matrix @ values.numpy()[self._columns])
        return torch.einsum("rk,rkc->rc", self._weight, values[self._index])

    def adjoint(self, values: Tensor, out: Tensor) -> None:  # [R, C] added to [texels, C]
        """Spread what the rows hold over their texels."""
        if self._matrix is not None:
            out.numpy()[self._columns] += self._matrix.T @ values.numpy()
            return
        spread = self._weight[..., None] * values[:, None]
        out.index_add_(0, self._index.flatten(), spread.flatten(0, 1))

    def squares(self, row_weights: Tensor, out: Tensor) -> None:  # [R] added to [texels]
        """Diagonal of A^T diag(row_weights) A."""
        if self._matrix is not None:
            squared = self._matrix.multiply(self._matrix)
            out.numpy()[self._columns] += squared.T @ row_weights.numpy()
            return
        # repeats in a row are taken as different texels, which is near enough to precondition
        spread = self._weight.square() * row_weights[:, None]
        out.index_add_(0, self._index.flatten(), spread.flatten())

    def among(self, number: Tensor, count: int) -> Taps:
        """The same rows, as far as they read some of the texels.

        Args:
            number: The new number of each texel, -1: it is left out. [texels] int32
            count: How many are kept.
        """
        result = copy(self)
        result.texels = count
        if self._matrix is not None:
            new = number.numpy()[self._columns]
            kept = np.flatnonzero(new >= 0)
            result._columns, result._matrix = new[kept], self._matrix[:, kept]
        else:
            new = number[self._index]
            result._index = new.clamp_min(0)
            result._weight = torch.where(new >= 0, self._weight, 0.0)
        return result


@dataclass(frozen=True)
class ViewPixels:
    """The pixels of one view that count."""

    index: Tensor  # [R] int64
    colours: Tensor  # [R, 3]
    weights: Tensor  # [R]
    taps: Taps


def taps_of_view(
    queries: MeshQueries,
    mesh: Mesh,
    camera: Cameras,
    pixels: Tensor,  # [R]
    resolution: int,
    samples: int,
) -> Taps:
    """The rows of chosen pixels of one view: the mean of bilinear samples over each pixel.

    A part of a pixel that misses the mesh reads what the pixel's centre reads.

    Args:
        queries: The mesh.
        mesh: The same with uvs in 0..1.
        camera: One view.
        pixels: Numbers of pixels whose centres hit the mesh. [R] int64
        resolution: Texels along a side of the atlas.
        samples: Rays along each side of a pixel.
    """
    origins, directions = (t[0].reshape(-1, 3)[pixels] for t in camera_rays(camera))
    # a pixel's step to the right and down, in the plane of unit depth
    right, down = camera.camera_to_world[0, :3, :2].T / camera.K[0].diagonal()[:2, None]
    indices, shares = [], []
    for x, y in pixel_shifts(samples):
        face, barycentric, _ = queries.cast(origins, directions + (x * right + y * down))
        missed = (face < 0).nonzero()[:, 0]
        centre = queries.cast(origins[missed], directions[missed])
        face[missed], barycentric[missed] = centre.face, centre.barycentric
        index, share = bilinear_taps(uvs_of_hits(mesh, face, barycentric), resolution, resolution)
        indices.append(index)
        shares.append(share / samples**2)
    return Taps(torch.cat(indices, dim=1), torch.cat(shares, dim=1), resolution**2)
