"""Which rays a step looks along, and where on them the field is asked."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import Views
from .trilinear import trilinear

STEPS_ALONG = 96  # places on a ray at which the last known surface is looked up
SHARPNESS = 4.0  # of that surface, in steps: it counts over about one step either side
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


class Samples(NamedTuple):
    """Sections of rays; a section is described at its middle.

    Attributes:
        distances: Of the middles from the origin, world units. [R, S]
        deltas: Lengths of the sections, world units. [R, S]
        inside: Whether a section lies where a surface may be. [R, S] bool
    """

    distances: Tensor
    deltas: Tensor
    inside: Tensor


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
    unit_origins = (origins - centre) / half_size
    unit_directions = directions / half_size
    safe = torch.where(unit_directions.abs() < 1e-9, 1e-9, unit_directions)
    first, second = (-1 - unit_origins) / safe, (1 - unit_origins) / safe
    near = torch.minimum(first, second).amax(-1).clamp(min=0)
    far = torch.maximum(first, second).amin(-1)
    length = (far - near).clamp(min=0)
    share = (torch.arange(STEPS_ALONG, device=origins.device, dtype=origins.dtype) + 0.5) / (
        STEPS_ALONG
    )
    t = near[:, None] + length[:, None] * share
    places = unit_origins[:, None] + unit_directions[:, None] * t[..., None]
    values = trilinear(known, places)  # [2, R, K]
    in_band = (values[1] < band) & (length > 0)[:, None]
    even = in_band.to(t.dtype)
    density = even / even.sum(-1, keepdim=True).clamp(min=1)
    step = length[:, None] / STEPS_ALONG
    density = density * (1 - surface_share) + surface_share * _surface_density(
        values[0], in_band, step, density
    )
    cumulative = F.pad(density.cumsum(-1), (1, 0))  # [R, K + 1]
    total = cumulative[:, -1:]
    wanted = torch.arange(count + 1, device=t.device, dtype=t.dtype) - jitter[:, None]
    wanted = (wanted / count).clamp(0, 1) * total
    wanted[:, -1:] = total
    bins = (torch.searchsorted(cumulative, wanted, right=True) - 1).clamp(0, STEPS_ALONG - 1)
    start = cumulative.gather(1, bins)
    part = ((wanted - start) / density.gather(1, bins).clamp(min=1e-12)).clamp(0, 1)
    edges = (bins + part) / STEPS_ALONG  # share of the way from near to far
    # what lies outside the band between two edges does not belong to the section
    outside = F.pad((~in_band).to(t.dtype).cumsum(-1), (1, 0)) / STEPS_ALONG
    skipped = outside.gather(1, bins) + (~in_band).gather(1, bins) * part / STEPS_ALONG
    deltas = (edges[:, 1:] - edges[:, :-1]) - (skipped[:, 1:] - skipped[:, :-1])
    # half of a section's length lies before its middle, which therefore lies in the band
    within = even.cumsum(-1) / STEPS_ALONG
    halfway = ((edges - skipped)[:, :-1] + (edges - skipped)[:, 1:]) / 2
    at = torch.searchsorted(within, halfway.contiguous()).clamp(0, STEPS_ALONG - 1)
    middles = (at + 1) / STEPS_ALONG - (within.gather(1, at) - halfway)
    inside = in_band.gather(1, at) & (deltas > 0)
    return Samples(
        near[:, None] + length[:, None] * middles, (length[:, None] * deltas).clamp(min=0), inside
    )


def _surface_density(
    values: Tensor,  # [R, K]
    in_band: Tensor,  # [R, K] bool
    step: Tensor,  # [R, 1]
    even: Tensor,  # [R, K]
) -> Tensor:  # [R, K], sums to 1, or to 0 where a ray meets no band
    """NeuS's weights of steps along rays, spread over their neighbours; even where there are none."""
    sharp = torch.sigmoid(values * (SHARPNESS / step.clamp(min=1e-9)))
    after = F.pad(sharp[:, 1:], (0, 1), value=1.0)
    opacity = ((sharp - after) / sharp.clamp(min=1e-6)).clamp(0, 1) * in_band
    clear = torch.exp(F.pad(torch.log1p(-opacity.clamp(max=1 - 1e-6)).cumsum(-1)[:, :-1], (1, 0)))
    weights = opacity * clear
    wide = F.avg_pool1d(F.pad(weights[:, None], (2, 2)), 5, stride=1)[:, 0] * in_band
    total = wide.sum(-1, keepdim=True)
    # a ray that grazes the surface has little weight anywhere
    return torch.where(total > 0.05, wide / total.clamp(min=1e-6), even)
