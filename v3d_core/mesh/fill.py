"""Colours for texels that no view saw: from the seen surface around, whatever chart it is in."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .atlas_links import AtlasLinks
from .solver import conjugate_gradients
from .texels import Texels

MEMBRANE_STEPS = 40  # of conjugate gradients that take the cells' borders out


def fill_unseen(
    colours: Tensor,  # [T, C]
    seen: Tensor,  # [T] bool
    guessed: Tensor,  # [T, C]
    texels: Texels,
    links: AtlasLinks,
    tick: Callable[[], None] = lambda: None,
) -> Tensor:  # [T, C]
    """Seen texels as they are, the others as guessed but for a membrane over the surface.

    Guesses are equal in whole cells of space; the membrane, fixed where something was seen and
    stopped long before it is flat, takes the cells' borders out.

    Args:
        colours: What was seen. [T, C]
        seen: Which texels that is; at least one. [T] bool
        guessed: Colours of the unseen ones, see `fill_kriging`. [T, C]
        texels: The atlas.
        links: Neighbours in the atlas and across its seams.
        tick: Called between steps.
    """
    if bool(seen.all()):
        return colours
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
