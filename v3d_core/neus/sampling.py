"""Which rays a step looks along, and where on them the field is asked."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import Views
from .engines import SAMPLERS
from .torch_sampling import Samples

GOLDEN = 2654435769  # of 2^32, the golden section: its multiples fill [0, 1) evenly (Weyl 1916)
MARGIN = 0.024  # of the longer side around the masks, where rays shall find nothing (12 px of 512)


class Rays(NamedTuple):
    """Rays and what was seen along them.

    Attributes:
        origins: World units. [R, 3]
        directions: Unit. [R, 3]
        colours: sRGB, straight. [R, 3]
        masks: Coverage. [R]
        normals: World frame, zero where unknown; or None. [R, 3]
        jitter: Of `place_samples`, in [0, 1). [R]
    """

    origins: Tensor
    directions: Tensor
    colours: Tensor
    masks: Tensor
    normals: Tensor | None
    jitter: Tensor


class PixelPool:
    """All pixels near the object, in a random order that repeats when it is used up."""

    def __init__(self, views: Views, generator: torch.Generator) -> None:
        """Pixels of `views` within `MARGIN` of a mask; order from a CPU generator."""
        cameras = views.cameras
        reach = math.ceil(MARGIN * max(cameras.width, cameras.height))
        side = 2 * reach + 1  # of the square, in two passes: six times as fast on the CPU
        near = F.max_pool2d(views.masks, (side, 1), stride=1, padding=(reach, 0))
        near = F.max_pool2d(near, (1, side), stride=1, padding=(0, reach)) > 0
        pixels = torch.nonzero(near.flatten())[:, 0].to(torch.int32)
        order = torch.randperm(len(pixels), generator=generator).to(pixels.device)
        self.order = pixels[order]  # flat indices of [V, H, W]
        self.size = (cameras.height, cameras.width)
        self.K, self.camera_to_world = cameras.K, cameras.camera_to_world
        self.pictures = torch.cat([views.images, views.masks[..., None]], dim=-1).reshape(-1, 4)
        self.normals = None
        if views.normals is not None:
            rotation = cameras.camera_to_world[:, None, :3, :3]  # camera to world, row by row
            world = (rotation @ views.normals.flatten(1, 2)[..., None])[..., 0]
            self.normals = world.reshape(-1, 3)

    def rays(self, position: Tensor, count: int) -> Rays:
        """Batch number `position` [1] of `count` rays each, in the pool's order; on the device."""
        number = position * count + torch.arange(count, device=self.order.device)
        flat = self.order[number % len(self.order)].long()
        # in whole numbers, for devices without float64
        jitter = ((number * GOLDEN) % 2**32).to(self.pictures.dtype) / 2**32
        return self._rays_of(flat, jitter)

    def _rays_of(self, flat: Tensor, jitter: Tensor) -> Rays:
        height, width = self.size
        view, pixel = flat // (height * width), flat % (height * width)
        x, y = pixel % width + 0.5, pixel // width + 0.5
        origins, directions = pixel_rays(self.K[view], self.camera_to_world[view], x, y)
        seen = self.pictures[flat]
        normals = None if self.normals is None else self.normals[flat]
        return Rays(origins, directions, seen[:, :3], seen[:, 3], normals, jitter)


def pixel_rays(
    K: Tensor,  # [R, 3, 3]
    camera_to_world: Tensor,  # [R, 4, 4]
    x: Tensor,  # [R] px
    y: Tensor,  # [R] px
) -> tuple[Tensor, Tensor]:
    """Origins and unit directions [R, 3] of rays through pixel positions, world frame."""
    in_camera = torch.stack(
        [(x - K[:, 0, 2]) / K[:, 0, 0], (y - K[:, 1, 2]) / K[:, 1, 1], torch.ones_like(x)], dim=-1
    )
    directions = (camera_to_world[:, :3, :3] * in_camera[:, None]).sum(-1)
    return camera_to_world[:, :3, 3], F.normalize(directions, dim=-1)


def place_samples(
    origins: Tensor,  # [R, 3]
    directions: Tensor,  # [R, 3]
    jitter: Tensor,  # [R] in [0, 1)
    known: Tensor,  # [2, G, G, G]
    centre: Tensor,  # [3]
    half_size: float,
    band: float,
    count: int,
    surface_share: float,
) -> Samples:
    """Sections of each ray through the band around the start shape, shortest at the surface.

    The distance found last is read at `STEPS_ALONG` places; NeuS's weights of these, mixed with
    an even distribution over the band, are the density of the samples (importance sampling, as
    Mildenhall et al. 2020 and NeuS do with networks).

    Args:
        origins: World units. [R, 3]
        directions: Unit. [R, 3]
        jitter: How much earlier than at its even place every edge lies, as share of a section, in
            [0, 1); the first section is shorter by it, the last one longer. [R]
        known: Signed distance found last, and of the start shape, world units, at cell centres,
            axes x, y, z. [2, G, G, G]
        centre: Of the cube. [3]
        half_size: Half the cube's side, world units.
        band: Distance from the start shape below which surfaces are looked for, world units.
        count: Sections of a ray, S.
        surface_share: Share of the samples that follow the surface; the others are spread evenly.
    """
    run = SAMPLERS.choose(known.device, known.dtype).run
    return run(origins, directions, jitter, known, centre, half_size, band, count, surface_share)
