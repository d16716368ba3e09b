"""What a NeuS fit starts from: the signed distance of the visual hull, of a sphere, or of a splat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..progress import Progress, silent
from ..structures import Views
from ..unseen import trim_unseen
from ..visual_hull import seen_volume, tight_visual_hull
from .config import NeusFitConfig
from .field import start_from_distance

MARGIN_CELLS = (
    8  # around the start shape, so that the band and the closed surface fit into the cube
)
HULL_BLUR = 1.0  # cells; takes the steps of the voxels off
MISSES_WHERE_SOFT = 0  # silhouettes that may be wrong about a voxel


@dataclass(frozen=True)
class Start:
    """The cube a field is defined on and the shape it begins with.

    Attributes:
        centre: Of the cube, world units. [3]
        half_size: Half its side, world units.
        grid: Signed distance in units of half the side, and its gradient. [4, R, R, R]
    """

    centre: Tensor
    half_size: float
    grid: Tensor

    @property
    def distance(self) -> Tensor:  # [R, R, R]
        """Signed distance in units of half the side."""
        return self.grid[0]


def start_shape(
    views: Views, config: NeusFitConfig, *, tolerated_misses: int = 0, progress: Progress = silent
) -> Start:
    """The shape a fit of `views` begins with.

    Args:
        views: Posed masks.
        config: Its `start`, `start_resolution` and `sphere_radius` count.
        tolerated_misses: Silhouettes that may be wrong about a voxel; for masks that disagree.
        progress: Told several times.

    Raises:
        ValueError: The masks have no common volume.
    """
    if config.start == "sphere":
        centre, half_size = seen_volume(views.cameras)
        distance = sphere_distance(config.start_resolution, config.sphere_radius)
        return Start(centre, half_size, start_from_distance(distance.to(views.device)))
    inner = max(8, config.start_resolution - 2 * MARGIN_CELLS)
    hull = tight_visual_hull(views, inner, tolerated_misses=tolerated_misses, progress=progress)
    hull = trim_unseen(hull, views)
    margin = math.ceil((config.start_resolution - len(hull.occupied)) / 2)
    occupied = F.pad(hull.occupied, (margin,) * 6)
    half_size = hull.half_size * len(occupied) / len(hull.occupied)
    distance = distance_to_occupied(occupied) * (2 / len(occupied))
    return Start(hull.centre, half_size, start_from_distance(distance))


def sphere_distance(resolution: int, radius: float) -> Tensor:  # [R, R, R]
    """Signed distance of a sphere in a cube of half side 1."""
    along = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    points = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), dim=-1)
    return points.norm(dim=-1) - radius


def distance_to_occupied(occupied: Tensor) -> Tensor:  # [R, R, R] bool -> [R, R, R]
    """Signed distance to the boundary of occupied cells in cells, negative inside, blurred."""
    from scipy import ndimage

    solid = occupied.cpu().numpy()
    # a cell's centre lies half a cell from its faces
    outside = ndimage.distance_transform_edt(~solid) - 0.5
    inside = ndimage.distance_transform_edt(solid) - 0.5
    distance = np.where(solid, -inside, outside)
    smooth = ndimage.gaussian_filter(distance.astype(np.float32), HULL_BLUR)
    return torch.from_numpy(smooth).to(occupied.device)
