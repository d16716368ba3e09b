"""Which guess at what no view saw is better on this object: asked of what views saw only just.

Colours of the texels in sight at the flattest angles are guessed as if nobody had seen them, once
from cells of space with faces that look the same way (`fill.cell_means`) and once along the
surface. What guesses these better fills the rest.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..mesh_repair import spread_colours
from ..structures import Mesh
from .atlas_links import AtlasLinks
from .bake import SurfacePoints
from .fill import cell_means, fill_unseen
from .solver import conjugate_gradients
from .texels import Texels

HIDDEN_WEIGHT = 0.02  # of texels that are guessed for the trial; one pixel seen head-on weighs 1
LEAST_KNOWN = 1e-3  # weight of all texels at a vertex that has a colour of its own
HARMONIC_STEPS = 300  # of conjugate gradients along the edges

Guess = Callable[[Tensor], Tensor]  # seen [T] bool -> colours [T, C]


def fill_by_trial(
    colours: Tensor,  # [T, C]
    weights: Tensor,  # [T]
    seen: Tensor,  # [T] bool
    mesh: Mesh,
    points: SurfacePoints,
    texels: Texels,
    links: AtlasLinks,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:  # [T, C]
    """Seen texels as they are, the others as that of two guesses has them that does better.

    Args:
        colours: What was seen. [T, C]
        weights: How well. [T]
        seen: Which texels count as seen; at least one. [T] bool
        mesh: With uvs.
        points: Where the texels lie.
        texels: The atlas.
        links: Neighbours in the atlas and across its seams.
        tick: Called between steps.
    """
    guesses: tuple[Guess, ...] = (
        lambda known: cell_means(colours, known, points),
        lambda known: surface_means(colours, weights * known, mesh, texels),
    )

    def filled(guess: Guess, known: Tensor) -> Tensor:
        return fill_unseen(colours, known, points, texels, links, tick, guess)

    if bool(seen.all()):
        return colours
    clear = seen & (weights > HIDDEN_WEIGHT)
    hidden = seen & ~clear
    chosen = guesses[0]
    if bool(hidden.any()) and bool(clear.any()):
        errors = [float((filled(g, clear) - colours)[hidden].square().mean()) for g in guesses]
        chosen = guesses[errors.index(min(errors))]
    return filled(chosen, seen)


def surface_means(
    colours: Tensor,  # [T, C]
    weights: Tensor,  # [T]
    mesh: Mesh,
    texels: Texels,
) -> Tensor:  # [T, C]
    """The smoothest colours along the mesh's edges between vertices where something was seen.

    Edges pull by their inverse lengths; vertices in one place are one.

    Args:
        colours: Of the texels. [T, C]
        weights: How well each was seen; 0 where it was not. [T]
        mesh: With uvs.
        texels: The atlas.
    """
    places, index = mesh.vertices.unique(dim=0, return_inverse=True)
    faces = index[mesh.faces]
    believed = weights.clamp(max=1.0)[:, None]
    sums = colours.new_zeros(len(places), colours.shape[1] + 1)
    for corner in faces[texels.face].unbind(1):
        sums.index_add_(0, corner, torch.cat([colours * believed, believed], dim=-1))
    total = sums[:, -1]
    known = total > LEAST_KNOWN
    known = known if bool(known.any()) else total > 0
    means = sums[:, :-1] / total.clamp_min(1e-12)[:, None]
    nearest = spread_colours(Mesh(places, faces, vertex_colours=means), known).vertex_colours
    assert nearest is not None
    one, other = torch.cat([faces, faces.roll(-1, 1)], dim=-1).view(-1, 2, 3).unbind(1)
    one, other = one.flatten(), other.flatten()
    pull = 1 / (places[one] - places[other]).norm(dim=-1).clamp_min(1e-12)
    pull = (pull / pull.mean())[:, None]
    free = ~known[:, None]

    def product(values: Tensor) -> Tensor:
        change = pull * (values[one] - values[other])
        result = torch.zeros_like(values)
        return free * result.index_add_(0, one, change).index_add_(0, other, -change)

    diagonal = torch.zeros_like(total)
    diagonal.index_add_(0, one, pull[:, 0]).index_add_(0, other, pull[:, 0])
    inverse = free / diagonal.clamp_min(1e-12)[:, None]
    smooth = nearest + conjugate_gradients(
        product, -product(nearest), inverse, torch.zeros_like(nearest), HARMONIC_STEPS
    )
    return texels.on_surface(mesh, smooth[index])
