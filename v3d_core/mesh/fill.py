"""Colours for texels that no view saw: from the seen surface around, whatever chart it is in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .atlas_links import AtlasLinks
from .bake import SurfacePoints
from .solver import conjugate_gradients
from .texels import Texels

FIRST_CELLS = 512  # along the longest side, of the finest cells that colours spread through
MEMBRANE_STEPS = 40  # of conjugate gradients that take the cells' borders out


def fill_unseen(
    colours: Tensor,  # [T, C]
    seen: Tensor,  # [T] bool
    points: SurfacePoints,
    texels: Texels,
    links: AtlasLinks,
    tick: Callable[[], None] = lambda: None,
    guess: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:  # [T, C]
    """Seen texels as they are, the others by the seen ones around them on the surface.

    First every unseen texel takes the mean colour of the smallest cell of space around it that
    holds seen texels facing its way; then a membrane over the surface, fixed where it was seen,
    takes the borders of the cells out.

    Args:
        colours: What was seen. [T, C]
        seen: Which texels that is; at least one. [T] bool
        points: Where the texels lie.
        texels: The atlas.
        links: Neighbours in the atlas and across its seams.
        tick: Called between steps.
        guess: Other colours of unseen texels [T, C] from `seen`, in place of those of the cells.
    """
    if bool(seen.all()):
        return colours
    guessed = cell_means(colours, seen, points) if guess is None else guess(seen)
    start = torch.where(seen[:, None], colours, guessed)
    tick()
    dense = colours.new_zeros(texels.height * texels.width, colours.shape[1])
    dense[texels.index] = start
    free = texels.index[~seen]
    right = -links.apply(dense)[free]
    tick()
    among = links.among(free)  # seen texels stay, so they are no variables
    inverse = 1 / links.diagonal()[free].clamp_min(1e-12)[:, None]

    def product(values: Tensor) -> Tensor:
        tick()
        return among(values)

    start[~seen] += conjugate_gradients(
        product, right, inverse, torch.zeros_like(right), MEMBRANE_STEPS
    )
    return start


def cell_means(colours: Tensor, seen: Tensor, points: SurfacePoints) -> Tensor:  # [T, C]
    """Mean colour of the smallest cell with seen texels around each texel, cells doubling."""
    low = points.positions.amin(0)
    extent = float((points.positions.amax(0) - low).amax()) or 1.0
    cells = ((points.positions - low) / extent * (FIRST_CELLS - 1e-3)).long().clamp_min(0)
    # faces that look apart do not share a cell, so that colours do not pass through thin walls
    octant = ((points.normals > 0).long() * points.normals.new_tensor([1, 2, 4]).long()).sum(-1)
    keys = torch.cat([cells, octant[:, None]], dim=-1)
    sums = torch.cat([colours * seen[:, None], seen[:, None].to(colours)], dim=-1)
    levels = []
    size = FIRST_CELLS
    while True:
        flat = ((keys[:, 3] * size + keys[:, 0]) * size + keys[:, 1]) * size + keys[:, 2]
        cell, inverse = flat.unique(return_inverse=True)
        total = sums.new_zeros(len(cell), sums.shape[1]).index_add_(0, inverse, sums)
        levels.append((inverse, total))
        if size == 1 and len(cell) == 1:
            break
        parent = torch.empty(len(cell), 4, dtype=torch.int64, device=cell.device)
        parent[inverse] = keys
        if size == 1:  # at last the ways that faces look are put together
            parent[:, 3] = 0
        parent[:, :3] //= 2
        size = max(1, size // 2)
        keys, sums = parent, total
    result = levels[-1][1]
    for inverse, total in reversed(levels):
        mixed = torch.where(total[:, -1:] > 0, total, result)
        result = mixed[inverse]
    return result[:, :-1] / result[:, -1:].clamp_min(1e-12)
