"""What a NeuS fit starts from: the signed distance of the visual hull, of a sphere, or of a splat."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import project_points
from ..progress import Progress, silent
from ..structures import Cameras, GaussianSplats, Views
from ..unseen import trim_unseen
from ..visual_hull import VisualHull, seen_volume, tight_visual_hull
from .config import NeusFitConfig
from .field import start_from_distance

MARGIN_CELLS = (
    8  # around the start shape, so that the band and the closed surface fit into the cube
)
OPAQUE = 0.5  # opacity above which a Gaussian hides what is behind it
DEPTH_CELL = 1.5  # voxels' pictures along the side of a cell of the depth maps
CLEARANCE = 3.0  # voxels in front of the depth map that are left standing
VIEWS_TO_CARVE = 2  # that must see a voxel in front of the surface
HULL_BLUR = 1.0  # cells; takes the steps of the voxels off
MEMBRANE_LEVEL = 0.2  # how boldly what no view saw is cut; less than for splats, nothing grows back


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
    splats: GaussianSplats | None = None,
    progress: Progress = silent,
) -> Start:
    """The shape a fit of `views` begins with.

    Args:
        views: Posed masks.
        config: Its `start`, `start_resolution`, `sphere_radius` and `mask_misses` count.
        splats: A splat of these views whose surface the fit shall begin with, or None.
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
    hull = trim_unseen(hull, views, MEMBRANE_LEVEL)
    if splats is not None:
        hull = carve_in_front_of(splats, hull, views.cameras)
    margin = math.ceil((config.start_resolution - len(hull.occupied)) / 2)
    occupied = F.pad(hull.occupied, (margin,) * 6)
    half_size = hull.half_size * len(occupied) / len(hull.occupied)
    distance = distance_to_occupied(occupied) * (2 / len(occupied))
    return Start(hull.centre, half_size, start_from_distance(distance))


def carve_in_front_of(splats: GaussianSplats, hull: VisualHull, cameras: Cameras) -> VisualHull:
    """The hull without voxels that stand clearly in front of a splat's surface.

    A view's depth map is the nearest opaque Gaussian per cell; its neighbours count too, so that
    a voxel is only taken away where the surface around it is farther.

    Args:
        splats: Fitted to pictures from `cameras`.
        hull: Contains the object.
        cameras: Those whose pictures were fitted.

    Raises:
        ValueError: Nothing would be left: the splat is of another object or another frame.
    """
    solid = splats.opacities > OPAQUE
    index = torch.nonzero(hull.occupied)
    cells = hull.voxel_centres(index)
    pixels, depths = project_points(splats.means[solid], cameras)
    own_pixels, own_depths = project_points(cells, cameras)
    distance = float((hull.centre - cameras.centres).norm(dim=-1).median())
    side = DEPTH_CELL * float(cameras.K[:, 0, 0].median()) * hull.voxel / distance  # px
    columns, rows = (math.ceil(size / side) for size in (cameras.width, cameras.height))

    def cell_of(uv: Tensor) -> tuple[Tensor, Tensor]:  # and whether it is in the picture
        column, row = (uv / side).floor().long().unbind(-1)
        inside = (column >= 0) & (row >= 0) & (column < columns) & (row < rows)
        return row.clamp(0, rows - 1) * columns + column.clamp(0, columns - 1), inside

    where, inside = cell_of(pixels)
    nearest = torch.full((len(cameras), rows * columns), math.inf, device=cells.device)
    front = torch.where(inside & (depths > 0), depths, math.inf)
    nearest.scatter_reduce_(1, where, front, "amin")
    wide = -F.max_pool2d(-nearest.view(-1, 1, rows, columns), 3, stride=1, padding=1)
    own_where, own_inside = cell_of(own_pixels)
    surface = wide.flatten(1).gather(1, own_where)
    in_front = own_inside & torch.isfinite(surface)
    in_front &= own_depths < surface - CLEARANCE * hull.voxel
    kept = in_front.sum(0) < VIEWS_TO_CARVE
    if not bool(kept.any()):
        raise ValueError(
            f"none of the {len(cells):,} voxels inside the masks lies on the splat's surface; "
            "connect the splat that was fitted to these views"
        )
    occupied = hull.occupied.clone()
    occupied[tuple(index[~kept].T)] = False
    return dataclasses.replace(hull, occupied=occupied)


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
    outside = np.asarray(ndimage.distance_transform_edt(~solid)) - 0.5
    inside = np.asarray(ndimage.distance_transform_edt(solid)) - 0.5
    distance = np.where(solid, -inside, outside)
    smooth = ndimage.gaussian_filter(distance.astype(np.float32), HULL_BLUR)
    return torch.from_numpy(smooth).to(occupied.device)
