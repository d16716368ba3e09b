"""What a NeuS fit starts from: the signed distance of the visual hull or of a sphere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import project_points, resize_cameras
from ..distance_transform import distance_to_nearest
from ..progress import Progress, silent
from ..soap_film import hang_film
from ..structures import Cameras, Views
from ..unseen import trim_unseen
from ..visual_hull import PROGRESS_TEXT, VisualHull, seen_volume, tight_visual_hull
from .config import NeusFitConfig
from .field import start_from_distance

MARGIN_CELLS = (
    8  # around the start shape, so that the band and the closed surface fit into the cube
)
RIM_PX = 2  # around a pixel whose depths count too
CLEARANCE = 3.0  # voxels in front of a depth map that are left standing
VIEWS_TO_CARVE = 2  # that must see a voxel in front of the surface
HULL_BLUR = 1.0  # cells; takes the steps of the voxels off


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
    views: Views,
    config: NeusFitConfig,
    *,
    depths: Tensor | None = None,
    progress: Progress = silent,
) -> Start:
    """The shape a fit of `views` begins with.

    Args:
        views: Posed masks.
        config: Its `start`, `start_resolution`, `sphere_radius`, `mask_misses`,
            `start_film_steps` and `membrane_level` count.
        depths: Of the surface in these views, for instance of a splat's, as `carve_in_front_of`
            takes them; or None.
        progress: Told several times.

    Raises:
        ValueError: The masks have no common volume.
    """
    if config.start == "sphere":
        centre, half_size = seen_volume(views.cameras)
        distance = sphere_distance(config.start_resolution, config.sphere_radius)
        return Start(centre, half_size, start_from_distance(distance.to(views.device)))
    inner = max(8, config.start_resolution - 2 * MARGIN_CELLS)
    hull = tight_visual_hull(views, inner, tolerated_misses=config.mask_misses, progress=progress)

    def look() -> None:  # at Cancel: what follows takes up to half a second each
        progress(1, 1, text=PROGRESS_TEXT)

    look()
    if depths is not None:
        hull = carve_in_front_of(depths, hull, views.cameras)
    hull = trim_unseen(hull, views, config.membrane_level)
    look()
    margin = math.ceil((config.start_resolution - len(hull.occupied)) / 2)
    occupied = F.pad(hull.occupied, (margin,) * 6)
    half_size = hull.half_size * len(occupied) / len(hull.occupied)
    distance = distance_to_occupied(occupied, look)
    if config.start_film_steps:
        film = hang_film(
            distance, hull.centre, half_size, views, steps=config.start_film_steps, look=look
        )
        distance = distance_to_occupied(film < 0, look)
    distance *= 2 / len(occupied)
    look()
    return Start(hull.centre, half_size, start_from_distance(distance))


def carve_in_front_of(
    depths: Tensor,  # [V, H, W]
    hull: VisualHull,
    cameras: Cameras,
) -> VisualHull:
    """The hull without voxels that stand clearly in front of a known surface.

    Args:
        depths: Of the surface along each optical axis, world units, 0 where there is none. [V, H, W]
        hull: Contains the object.
        cameras: Of the views that the depths belong to, of any picture size.

    Raises:
        ValueError: The depths are not those of the views, or nothing would be left.
    """
    if len(depths) != len(cameras):
        raise ValueError(
            f"{len(depths)} depth maps but {len(cameras)} views; render the depths of these views"
        )
    height, width = depths.shape[1:]
    far = torch.where(depths > 0, depths, math.inf)[:, None]
    # the nearest of a pixel's surroundings, so that what stands at a rim is left alone
    nearest = -F.max_pool2d(-far, 2 * RIM_PX + 1, stride=1, padding=RIM_PX)[:, 0]
    index = torch.nonzero(hull.occupied)
    cells = hull.voxel_centres(index)
    pixels, own = project_points(cells, resize_cameras(cameras, width, height))
    column, row = pixels.floor().long().unbind(-1)
    inside = (column >= 0) & (row >= 0) & (column < width) & (row < height)
    where = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    surface = nearest.flatten(1).gather(1, where)
    in_front = inside & torch.isfinite(surface) & (own < surface - CLEARANCE * hull.voxel)
    kept = in_front.sum(0) < VIEWS_TO_CARVE
    if not bool(kept.any()):
        raise ValueError(
            f"all {len(cells):,} voxels inside the masks lie in front of the given depths; "
            "the depths belong to another object, or are not in world units"
        )
    occupied = hull.occupied.clone()
    occupied[tuple(index[~kept].T)] = False
    return dataclasses.replace(hull, occupied=occupied)


def sphere_distance(resolution: int, radius: float) -> Tensor:  # [R, R, R]
    """Signed distance of a sphere in a cube of half side 1."""
    along = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    points = torch.stack(torch.meshgrid(along, along, along, indexing="ij"), dim=-1)
    return points.norm(dim=-1) - radius


def distance_to_occupied(
    occupied: Tensor,  # [R, R, R] bool
    look: Callable[[], None] = lambda: None,
) -> Tensor:  # [R, R, R]
    """Signed distance to the boundary of occupied cells in cells, negative inside, blurred.

    `look` is called on the way and may raise to cancel.
    """
    # a cell's centre lies half a cell from its faces
    outside = distance_to_nearest(occupied) - 0.5
    look()
    inside = distance_to_nearest(~occupied) - 0.5
    look()
    return _blurred(torch.where(occupied, -inside, outside))


def _blurred(values: Tensor) -> Tensor:  # [R, R, R]
    """Gaussian blur by `HULL_BLUR` cells; what is beyond an edge equals the edge."""
    reach = math.ceil(4 * HULL_BLUR)
    weights = [math.exp(-0.5 * (k / HULL_BLUR) ** 2) for k in range(-reach, reach + 1)]
    for axis in range(3):
        padding = [0] * 6
        padding[4 - 2 * axis] = padding[5 - 2 * axis] = reach
        padded = F.pad(values[None, None], padding, mode="replicate")[0, 0]
        # sums of slices: a convolution would be in TF32 on CUDA
        values = torch.zeros_like(values)
        for shift, weight in enumerate(weights):
            part = padded.narrow(axis, shift, values.shape[axis])
            values += part * (weight / sum(weights))
    return values
