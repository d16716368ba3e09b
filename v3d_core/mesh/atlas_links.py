"""Which texels are neighbours on the surface: beside each other in a chart, or across a seam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..structures import Mesh
from .taps import Taps
from .texels import Texels, bilinear_taps, charts_of_faces

TEXELS_AT_ONCE = 1 << 15  # of the atlas, 0.4 MB of colours


@dataclass(frozen=True)
class AtlasLinks:
    """A quadratic form that is 0 where neighbouring texels are equal.

    Attributes:
        across: Whether texel (x, y) and (x + 1, y) belong to one chart. [H, W - 1]
        down: The same of (x, y) and (x, y + 1). [H - 1, W]
        seams: Rows that read one side of a seam minus the other side.
        smoothness: Weight of the first two.
        seam_weight: Weight of a row of `seams`.
    """

    across: Tensor
    down: Tensor
    seams: Taps
    smoothness: float
    seam_weight: float

    def apply(self, values: Tensor) -> Tensor:  # [H * W, C] -> [H * W, C]
        """The form's matrix times values."""
        result = torch.zeros_like(values)
        self.add(values, result)
        return result

    def add(self, values: Tensor, out: Tensor) -> None:  # [H * W, C] added to [H * W, C]
        """What `apply` returns, added to what is there."""
        height, width = len(self.across), self.down.shape[1]
        grid, result = values.view(height, width, -1), out.view(height, width, -1)
        # in bands of rows, so that steps stay in the cache of a CPU
        band = height if values.is_cuda else max(1, TEXELS_AT_ONCE // width)
        for top in range(0, height, band):
            rows, below = slice(top, top + band), slice(top + 1, top + band + 1)
            step = grid[rows, 1:] - grid[rows, :-1]
            step *= (self.smoothness * self.across[rows])[..., None]
            result[rows, 1:] += step
            result[rows, :-1] -= step
            above = slice(top, min(top + band, height - 1))
            step = grid[below] - grid[above]
            step *= (self.smoothness * self.down[above])[..., None]
            result[below] += step
            result[above] -= step
        if self.seams.rows and self.seam_weight:
            self.seams.adjoint(self.seam_weight * self.seams.apply(values), out)

    def among(self, texels: Tensor) -> Callable[[Tensor], Tensor]:
        """The form's matrix between some texels, as a function of their values [U, C] -> [U, C].

        Args:
            texels: Their numbers, all different. [U] int64
        """
        height, width = len(self.across), self.down.shape[1]
        number = torch.full((height * width,), -1, dtype=torch.int32, device=texels.device)
        number[texels] = torch.arange(len(texels), dtype=torch.int32, device=texels.device)
        grid = number.view(height, width)
        ends = []
        for linked, one, other in (
            (self.across, grid[:, 1:], grid[:, :-1]),
            (self.down, grid[1:], grid[:-1]),
        ):
            linked = linked & ((one >= 0) | (other >= 0))
            ends.append(torch.stack([one[linked], other[linked]], dim=1))
        # a row for each link: one end minus the other; an end that is not among them is no variable
        index = torch.cat(ends)
        weight = (index >= 0) * index.new_tensor([1, -1])
        links = Taps(index.clamp_min(0).long(), weight, len(texels))
        seams = self.seams.among(number, len(texels))

        def product(values: Tensor) -> Tensor:
            result = torch.zeros_like(values)
            links.adjoint(self.smoothness * links.apply(values), result)
            if seams.rows and self.seam_weight:
                seams.adjoint(self.seam_weight * seams.apply(values), result)
            return result

        return product

    def diagonal(self) -> Tensor:  # [H * W]
        """Of the form's matrix."""
        height, width = len(self.across), self.down.shape[1]
        links = torch.zeros(height, width, device=self.across.device)
        links[:, 1:] += self.across
        links[:, :-1] += self.across
        links[1:] += self.down
        links[:-1] += self.down
        diagonal = self.smoothness * links.flatten()
        weights = torch.full((self.seams.rows,), self.seam_weight, device=diagonal.device)
        self.seams.squares(weights, diagonal)
        return diagonal


def link_texels(mesh: Mesh, texels: Texels, smoothness: float, seam_weight: float) -> AtlasLinks:
    """The links of an atlas."""
    height, width = texels.height, texels.width
    chart = torch.full((height * width,), -1, dtype=torch.int64, device=mesh.device)
    chart[texels.index] = charts_of_faces(mesh)[texels.face]
    chart = chart.view(height, width)
    return AtlasLinks(
        across=(chart[:, 1:] == chart[:, :-1]) & (chart[:, 1:] >= 0),
        down=(chart[1:] == chart[:-1]) & (chart[1:] >= 0),
        seams=seam_rows(mesh, height, width),
        smoothness=smoothness,
        seam_weight=seam_weight,
    )


def seam_rows(mesh: Mesh, height: int, width: int) -> Taps:
    """One row per texel along every seam: what bilinear sampling reads on both sides, subtracted."""
    first, second = seam_edges(mesh)
    assert mesh.uvs is not None
    ends = [mesh.uvs[side.to(mesh.device)] for side in (first, second)]  # [E, 2, 2] each
    size = ends[0].new_tensor([width, height])
    lengths = torch.stack([((e[:, 1] - e[:, 0]) * size).norm(dim=-1) for e in ends]).amax(0)
    counts = lengths.ceil().long() + 1
    edge = torch.arange(len(counts), device=mesh.device).repeat_interleave(counts)
    number = torch.arange(len(edge), device=mesh.device) - (counts.cumsum(0) - counts)[edge]
    share = ((number + 0.5) / counts[edge])[:, None]
    taps = [
        bilinear_taps((1 - share) * e[edge, 0] + share * e[edge, 1], height, width) for e in ends
    ]
    index = torch.cat([taps[0][0], taps[1][0]], dim=1)
    weight = torch.cat([taps[0][1], -taps[1][1]], dim=1)
    return Taps(index, weight, height * width)


def seam_edges(mesh: Mesh) -> tuple[Tensor, Tensor]:
    """Edges where two faces meet in space and not in the atlas, as vertices of either side.

    Returns:
        Vertex numbers of the edges' two ends on one side and on the other, in the same order in
        space. [E, 2] each
    """
    faces = mesh.faces.cpu().numpy()
    vertices, uvs = mesh.vertices.detach().cpu().numpy(), mesh.uvs
    assert uvs is not None
    place = np.unique(vertices, axis=0, return_inverse=True)[1].reshape(-1)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    turn = place[edges[:, 0]] > place[edges[:, 1]]
    edges[turn] = edges[turn][:, ::-1]
    key = place[edges[:, 0]].astype(np.int64) * len(vertices) + place[edges[:, 1]]
    order = np.argsort(key, kind="stable")
    starts = np.flatnonzero(np.diff(key[order], prepend=-1))
    counts = np.diff(starts, append=len(key))
    pairs = starts[counts == 2]  # an edge of more faces has no two sides
    first, second = edges[order[pairs]], edges[order[pairs + 1]]
    coordinates = uvs.detach().cpu().numpy()
    apart = (coordinates[first] != coordinates[second]).any(axis=(1, 2))
    apart &= place[first[:, 0]] != place[first[:, 1]]
    return torch.from_numpy(first[apart]), torch.from_numpy(second[apart])
