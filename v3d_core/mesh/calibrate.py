"""How far the depth of fitted splats lies behind the surface, read off the outlines.

Splats are as wide as about a pixel, so a fit pulls their centres inside to keep the outlines where
the masks have them, and rendered depth inherits the offset. Outlines do not: where the surface
turns away from a view, it must touch that view's outline.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn.functional import grid_sample

from ..cameras import project_points
from .fusion import Evidence, edge_pixels

CELL_PX = 4  # length of the pieces of outline that are looked at one by one
REACH_PX = 4.0  # surface farther than this from a piece of outline does not belong to it
MIN_PIECES = 32  # with fewer pieces of outline there is no telling


def surface_offset(
    vertices: Tensor,  # [N, 3]
    evidence: Evidence,
) -> float:
    """Median gap between the outlines of a surface and the outlines it should have.

    Args:
        vertices: Points spread over the surface, about a pixel apart, world units.
        evidence: The maps the surface was fused from.

    Returns:
        World units; positive when the surface is too small. 0 where outlines are too few.
    """
    cameras = evidence.cameras
    size = vertices.new_tensor([cameras.width, cameras.height])
    pixels, depths = project_points(vertices, cameras)
    gaps = []
    for v in range(len(cameras)):
        outline = evidence.outline_px[v]
        piece = _nearest_piece(outline)  # [H, W]
        inside_frame = (depths[v] > 0) & ((pixels[v] > 0) & (pixels[v] < size)).all(dim=-1)
        xy = pixels[v][inside_frame]
        distance = grid_sample(
            outline[None, None], (2 * xy / size - 1)[None, None], align_corners=False,
            padding_mode="border",
        )[0, 0, 0]  # fmt: skip
        column, row = xy.long().unbind(-1)
        piece = piece[row, column]
        near = (distance > -REACH_PX) & (piece >= 0)
        world = distance * depths[v][inside_frame] / torch.sqrt(
            cameras.K[v, 0, 0] * cameras.K[v, 1, 1]
        )  # fmt: skip
        count = int(piece.max()) + 1 if len(piece) else 0
        if not count or not bool(near.any()):
            continue
        reached = world.new_full((count,), -torch.inf)
        reached.scatter_reduce_(0, piece[near], world[near], reduce="amax")
        gaps.append(-reached[torch.isfinite(reached)])
    every = torch.cat(gaps) if gaps else vertices.new_zeros(0)
    return float(every.median()) if len(every) >= MIN_PIECES else 0.0


def _nearest_piece(outline: Tensor) -> Tensor:  # [H, W] -> [H, W] int64
    # number of the CELL_PX square that holds the outline pixel nearest to each pixel, or -1
    distance = outline.cpu().numpy()
    height, width = distance.shape
    edge, _ = edge_pixels(distance, distance <= 0)
    if not edge.any():
        return torch.full((height, width), -1, dtype=torch.int64, device=outline.device)
    indices = distance_transform_edt(~edge, return_distances=False, return_indices=True)
    rows, columns = np.asarray(indices)
    piece = rows // CELL_PX * (width // CELL_PX + 1) + columns // CELL_PX
    return torch.from_numpy(piece.astype(np.int64)).to(outline.device)
