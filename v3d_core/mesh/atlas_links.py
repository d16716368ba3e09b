"""Which texels are neighbours on the surface: beside each other in a chart, or across a seam."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..structures import Mesh
from .taps import Taps
from .texels import Texels, bilinear_taps, charts_of_faces


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
        height, width = len(self.across), self.down.shape[1]
        grid = values.view(height, width, -1)
        result = torch.zeros_like(grid)
        step = (grid[:, 1:] - grid[:, :-1]) * (self.smoothness * self.across)[..., None]
        result[:, 1:] += step
        result[:, :-1] -= step
        step = (grid[1:] - grid[:-1]) * (self.smoothness * self.down)[..., None]
        result[1:] += step
        result[:-1] -= step
        result = result.view(height * width, -1)
        if self.seams.rows and self.seam_weight:
            self.seams.adjoint(self.seam_weight * self.seams.apply(values), result)
        return result

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
