"""The visual hull: the largest shape whose silhouettes are the masks (Laurentini 1994).

Perspective-correct (every voxel is divided by its own depth), unlike V3D's switched-off carving.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import project_points
from .progress import Progress, silent
from .structures import Cameras, Views

INSIDE_MASK = 0.5  # coverage at which the outline is drawn: the half-covered pixel is on it


@dataclass(frozen=True)
class VisualHull:
    """Occupancy of a cube of voxels, and points spread over its surface.

    Attributes:
        occupied: Voxel centre inside all silhouettes; axes are x, y, z. [R, R, R] bool
        centre: Centre of the cube, world units. [3]
        half_size: Half the cube's side, world units.
    """

    occupied: Tensor
    centre: Tensor
    half_size: float

    @property
    def voxel(self) -> float:
        """Side of one voxel, world units."""
        return 2 * self.half_size / self.occupied.shape[0]

    def voxel_centres(self, indices: Tensor) -> Tensor:  # [N, 3] int -> [N, 3]
        """World positions of voxels."""
        return self.centre + (indices + 0.5) * self.voxel - self.half_size

    def surface_voxels(self) -> Tensor:  # [N, 3] int64
        """Occupied voxels with an empty one among their 6 neighbours."""
        solid = F.pad(self.occupied, (1, 1, 1, 1, 1, 1))
        core = solid[1:-1, 1:-1, 1:-1]
        buried = (
            solid[2:, 1:-1, 1:-1] & solid[:-2, 1:-1, 1:-1]
            & solid[1:-1, 2:, 1:-1] & solid[1:-1, :-2, 1:-1]
            & solid[1:-1, 1:-1, 2:] & solid[1:-1, 1:-1, :-2]
        )  # fmt: skip
        return torch.nonzero(core & ~buried)

    def outward_normals(self, indices: Tensor) -> Tensor:  # [N, 3] int -> [N, 3]
        """Unit normals at voxels, from the gradient of the smoothed occupancy."""
        field = self.occupied.float()[None, None]
        for _ in range(2):  # two box blurs of 5 voxels are close to a Gaussian of 2 voxels
            field = F.avg_pool3d(field, 5, stride=1, padding=2)
        padded = F.pad(field, (1, 1, 1, 1, 1, 1), mode="replicate")[0, 0]
        x, y, z = (indices + 1).unbind(-1)
        gradient = torch.stack(
            [
                padded[x + 1, y, z] - padded[x - 1, y, z],
                padded[x, y + 1, z] - padded[x, y - 1, z],
                padded[x, y, z + 1] - padded[x, y, z - 1],
            ],
            dim=-1,
        )
        return F.normalize(-gradient, dim=-1)


def seen_volume(cameras: Cameras) -> tuple[Tensor, float]:
    """Centre and half size of the cube about the point the cameras look at that they all see.

    Returns:
        The point nearest to all optical axes [3], and half the side of the cube that encloses the
        sphere inscribed in every view cone, so that an object in every picture is inside.
    """
    axes = cameras.camera_to_world[:, :3, 2]
    across = torch.eye(3, device=axes.device, dtype=axes.dtype) - axes[:, :, None] * axes[:, None]
    # least squares over the distances to all axes; a little ridge keeps parallel axes solvable
    ridge = 1e-6 * torch.eye(3, device=axes.device, dtype=axes.dtype)
    right = (across @ cameras.centres[..., None]).sum(0) + ridge @ cameras.centres.mean(0)[:, None]
    centre = torch.linalg.solve(across.sum(0) + ridge, right)[:, 0]
    distance = ((centre - cameras.centres) * axes).sum(-1)
    if bool((distance <= 0).any()):
        raise ValueError(
            f"the cameras do not look at one object: {int((distance <= 0).sum())} of "
            f"{len(cameras)} look away from the point nearest to all optical axes; check the poses"
        )
    half_width = distance * cameras.width / 2 / cameras.K[:, 0, 0]
    half_height = distance * cameras.height / 2 / cameras.K[:, 1, 1]
    return centre, float(torch.maximum(half_width, half_height).min())


@torch.no_grad()
def carve_visual_hull(
    views: Views,
    resolution: int = 128,
    *,
    centre: Tensor | None = None,
    half_size: float | None = None,
    tolerated_misses: int = 0,
    progress: Progress = silent,
) -> VisualHull:
    """Voxels inside every silhouette.

    A voxel outside a picture's frame is not carved by that picture: nothing was seen there.

    Args:
        views: Posed masks.
        resolution: Voxels along each side of the cube.
        centre: Centre of the cube, world units; by default where the cameras look. [3]
        half_size: Half side of the cube, world units; by default what the cameras see.
        tolerated_misses: How many silhouettes may exclude a voxel and still keep it; more than 0
            forgives masks that disagree.
        progress: Told after every slab of voxels.

    Raises:
        ValueError: No voxel is inside all silhouettes.
    """
    cameras = views.cameras
    seen_centre, seen_half_size = seen_volume(cameras)
    centre = seen_centre if centre is None else centre
    half_size = seen_half_size if half_size is None else half_size
    line = (torch.arange(resolution, device=views.device) + 0.5) * (2 * half_size / resolution)
    line = line - half_size
    occupied = []
    for slab, x in enumerate(line):  # one slab at a time bounds the memory
        y, z = torch.meshgrid(line, line, indexing="ij")
        points = torch.stack([x.expand_as(y), y, z], dim=-1).reshape(-1, 3) + centre
        misses = count_silhouette_misses(points, views)
        occupied.append((misses <= tolerated_misses).reshape(resolution, resolution))
        progress(slab + 1, resolution, text="Carving the visual hull")
    hull = VisualHull(torch.stack(occupied), centre, half_size)
    if not bool(hull.occupied.any()):
        raise ValueError(
            f"no point lies inside the masks of all {len(views)} views: the masks are inverted, "
            "or the cameras do not belong to these pictures (check their order and direction)"
        )
    return hull


def count_silhouette_misses(points: Tensor, views: Views) -> Tensor:  # [N, 3] -> [N] int
    """How many views see a point inside their frame but outside their mask."""
    pixels, depth = project_points(points, views.cameras)
    size = pixels.new_tensor([views.cameras.width, views.cameras.height])
    in_frame = (depth > 0) & ((pixels > 0) & (pixels < size)).all(-1)
    coverage = sample_pictures(views.masks[..., None], pixels)[..., 0]
    return (in_frame & (coverage < INSIDE_MASK)).sum(0)


def sample_pictures(
    pictures: Tensor,  # [V, H, W, C]
    pixels: Tensor,  # [V, N, 2]
) -> Tensor:  # [V, N, C]
    """Bilinear values at pixel coordinates (centre of pixel (0, 0) at 0.5); edges are extended."""
    size = pixels.new_tensor([pictures.shape[2], pictures.shape[1]])
    grid = (pixels / size * 2 - 1)[:, :, None]
    values = F.grid_sample(
        pictures.permute(0, 3, 1, 2), grid.to(pictures.dtype), align_corners=False,
        padding_mode="border",
    )  # fmt: skip
    return values[..., 0].transpose(1, 2)


def tight_visual_hull(
    views: Views,
    resolution: int = 128,
    *,
    tolerated_misses: int = 0,
    progress: Progress = silent,
) -> VisualHull:
    """The visual hull in the smallest cube that holds it: a coarse pass, then the real one.

    Args:
        views: Posed masks.
        resolution: Voxels along the object's longest side.
        tolerated_misses: As in `carve_visual_hull`.
        progress: Told after every slab of voxels of either pass.
    """
    coarse = carve_visual_hull(
        views, max(32, resolution // 2), tolerated_misses=tolerated_misses, progress=progress
    )
    inside = torch.nonzero(coarse.occupied)
    # two voxels of margin: a part thinner than a coarse voxel can be missed at the outline
    low = coarse.voxel_centres(inside.amin(0)) - 2 * coarse.voxel
    high = coarse.voxel_centres(inside.amax(0)) + 2 * coarse.voxel
    return carve_visual_hull(
        views,
        resolution,
        centre=(low + high) / 2,
        half_size=float((high - low).max()) / 2,
        tolerated_misses=tolerated_misses,
        progress=progress,
    )
