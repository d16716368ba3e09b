"""The visual hull: the largest shape whose silhouettes are the masks (Laurentini 1994).

Perspective-correct (every voxel is divided by its own depth), unlike V3D's switched-off carving.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .progress import Progress, silent
from .structures import Cameras, Views

INSIDE_MASK = 0.5  # coverage at which the outline is drawn: the half-covered pixel is on it
BLOCK = 4  # voxels along the side of the blocks that are decided as a whole where they can be
ROUNDING_PX = 1 / 64  # added around a block's picture; float32 errs by less than 1e-3 px
CHUNK = 1 << 18  # points projected at once: 1 MB of float32, so that temporaries stay in the cache
CHUNK_ON_CUDA = 1 << 21  # few launches; with about 100 bytes a point, temporaries take 200 MB
PROGRESS_TEXT = "Carving the visual hull"


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
        progress: Told several times.

    Raises:
        ValueError: No voxel is inside all silhouettes.
    """
    seen_centre, seen_half_size = seen_volume(views.cameras)
    centre = seen_centre if centre is None else centre
    half_size = seen_half_size if half_size is None else half_size
    misses = _count_silhouette_misses(
        views, resolution, centre, half_size, tolerated_misses, progress
    )
    hull = VisualHull(misses <= tolerated_misses, centre, half_size)
    if not bool(hull.occupied.any()):
        raise ValueError(
            f"no point lies inside the masks of all {len(views)} views: the masks are inverted, "
            "or the cameras do not belong to these pictures (check their order and direction)"
        )
    return hull


def _count_silhouette_misses(
    views: Views,
    resolution: int,
    centre: Tensor,  # [3]
    half_size: float,
    tolerated: int,
    progress: Progress,
) -> Tensor:  # [R, R, R] int32
    """How many views see a voxel's centre inside their frame but outside their mask.

    Blocks of voxels are looked at first. What is left are pairs (view, block) where an outline
    passes through the block's picture; only there voxels are looked at one by one. Blocks that
    more than `tolerated` views miss as a whole are left at that: their counts are lower bounds.
    """
    masks, device, dtype = views.masks.contiguous(), views.device, centre.dtype
    side, voxel = -(-resolution // BLOCK), 2 * half_size / resolution
    chunk = CHUNK_ON_CUDA if masks.is_cuda else CHUNK
    projection = _projections(views.cameras)
    edges = torch.arange(side + 1, device=device, dtype=dtype) * (BLOCK * voxel) - half_size
    table, cell = _outline_table(masks, resolution)
    certain = torch.zeros(side**3, dtype=torch.int32, device=device)
    uncertain = []
    at_once = max(1, chunk // (side + 1) ** 3)
    for first in range(0, len(views), at_once):
        some = slice(first, first + at_once)
        missed, unsure = _decide_blocks(
            projection[some], centre + edges[:, None], voxel, table[some], cell, masks
        )
        certain += missed.sum(0, dtype=torch.int32)
        uncertain.append(unsure)
    view, block = torch.nonzero(torch.cat(uncertain) & (certain <= tolerated), as_tuple=True)

    misses = certain[:, None].repeat(1, BLOCK**3)
    numbers = torch.arange(BLOCK**3, device=device)
    within = (torch.arange(BLOCK, device=device, dtype=dtype) - (BLOCK - 1) / 2) * voxel
    offsets = torch.stack(torch.meshgrid(within, within, within, indexing="ij")).flatten(1)
    steps = (projection[..., :3, None] * offsets).sum(2)  # [V, 3, BLOCK^3]
    at_once = max(1, chunk // BLOCK**3)
    chunks = list(zip(view.split(at_once), block.split(at_once), strict=True))
    progress(1, len(chunks) + 1, text=PROGRESS_TEXT)
    for done, (v, b) in enumerate(chunks):
        index = torch.stack([b // side**2, b // side % side, b % side], dim=-1).to(dtype)
        middle = centre + (index + 0.5) * (BLOCK * voxel) - half_size
        middle = (projection[v, :, :3] * middle[:, None]).sum(-1) + projection[v, :, 3]
        outside = _outside_mask(middle[..., None] + steps[v], v, masks)
        voxels = (b[:, None] * BLOCK**3 + numbers).flatten()
        misses.view(-1).index_add_(0, voxels, outside.flatten().int())
        progress(done + 2, len(chunks) + 1, text=PROGRESS_TEXT)
    cube = misses.view(side, side, side, BLOCK, BLOCK, BLOCK).permute(0, 3, 1, 4, 2, 5)
    return cube.reshape(BLOCK * side, BLOCK * side, -1)[:resolution, :resolution, :resolution]


def _projections(cameras: Cameras) -> Tensor:  # [V, 3, 4]
    """World to (x depth, y depth, depth) in pixels; by products and sums, never in TF32."""
    world_to_camera = cameras.world_to_camera[:, :3]
    pixels = (cameras.K[:, :2, :, None] * world_to_camera[:, None]).sum(2)
    return torch.cat([pixels, world_to_camera[:, 2:]], dim=1)


def _outline_table(masks: Tensor, resolution: int) -> tuple[Tensor, int]:
    """Summed-area table (Crow 1984) of cells: 0 = no pixel in the mask, 2 = all, 1 = some.

    Returns:
        The table, with a row and a column of zeros first [V, h + 1, w + 1] int32, and the side of
        a cell: about half a voxel's picture, px.
    """
    cell = max(1, max(masks.shape[1:]) // (2 * resolution))
    tables = []
    for part in masks.split(max(1, CHUNK_ON_CUDA // masks[0].numel())):
        inside = (part >= INSIDE_MASK).to(masks.dtype)[:, None]
        if cell > 1:
            some = F.max_pool2d(inside, cell, ceil_mode=True)
            every = 1 - F.max_pool2d(1 - inside, cell, ceil_mode=True)
        else:
            some = every = inside
        kinds = (some + every)[:, 0].int()
        sums = kinds.cumsum(1, dtype=torch.int32).cumsum(2, dtype=torch.int32)
        tables.append(F.pad(sums, (1, 0, 1, 0)))
    return torch.cat(tables), cell


def _decide_blocks(
    projection: Tensor,  # [V, 3, 4]
    edges: Tensor,  # [side + 1, 3]
    voxel: float,
    table: Tensor,  # [V, h + 1, w + 1]
    cell: int,
    masks: Tensor,  # [*, H, W]
) -> tuple[Tensor, Tensor]:  # [V, side^3] bool each
    """Whether a view misses all of a block for certain, and whether it is uncertain about it.

    A block's picture lies in the box around the pictures of its corners. Bilinear values there
    are all below `INSIDE_MASK`, or none is, when this holds for the pixels they come from.
    """
    height, width = masks.shape[1:]
    along = projection[..., :3, None] * edges.T  # [V, 3, xyz, side + 1]
    x, y, z = (
        a[:, 0, :, None, None] + a[:, 1, None, :, None] + (a[:, 2] + shift[:, None])[:, None, None]
        for a, shift in zip(along.unbind(1), projection[..., 3].unbind(1), strict=True)
    )
    nearest, farthest = _block_range(z)
    z = z.clamp(min=voxel)
    left, right = _block_range(x / z)
    top, bottom = _block_range(y / z)
    left, top = left - ROUNDING_PX, top - ROUNDING_PX
    right, bottom = right + ROUNDING_PX, bottom + ROUNDING_PX

    def cells(low: Tensor, high: Tensor, size: int) -> tuple[Tensor, Tensor]:
        first = (low - 0.5).floor().clamp(0, size - 1).long() // cell
        last = (high + 0.5).floor().clamp(0, size - 1).long() // cell
        return first, last + 1

    x0, x1 = cells(left, right, width)
    y0, y1 = cells(top, bottom, height)
    flat, stride = table.reshape(-1), table.shape[2]
    start = torch.arange(len(table), device=table.device)[:, None, None, None] * table[0].numel()
    y0_row, y1_row = start + y0 * stride, start + y1 * stride
    found = flat.take(y1_row + x1) - flat.take(y1_row + x0)
    found = found - flat.take(y0_row + x1) + flat.take(y0_row + x0)

    in_front = nearest > voxel
    in_frame = (left > 0) & (top > 0) & (right < width) & (bottom < height)
    beside = (right <= 0) | (bottom <= 0) | (left >= width) | (top >= height)
    missed = in_front & in_frame & (found == 0)
    kept = in_front & (beside | (found == 2 * (x1 - x0) * (y1 - y0)))
    unsure = ~(missed | kept | (farthest <= 0))
    return missed.flatten(1), unsure.flatten(1)


def _block_range(corners: Tensor) -> tuple[Tensor, Tensor]:  # [V, s + 1, s + 1, s + 1]
    """Smallest and largest of every block's eight corners. [V, s, s, s] each"""
    low = high = corners
    for dim in (1, 2, 3):
        count = corners.shape[dim] - 1
        low = torch.minimum(low.narrow(dim, 0, count), low.narrow(dim, 1, count))
        high = torch.maximum(high.narrow(dim, 0, count), high.narrow(dim, 1, count))
    return low, high


def _outside_mask(
    homogeneous: Tensor,  # [P, 3, N] x depth, y depth, depth
    view: Tensor,  # [P] int64
    masks: Tensor,  # [V, H, W]
) -> Tensor:  # [P, N] bool
    """Whether points are in front, inside the frame, and where the bilinear mask is too low."""
    _, height, width = masks.shape
    x, y, depth = homogeneous.unbind(1)
    inverse = 1 / depth.clamp(min=1e-9)
    x, y = x * inverse, y * inverse
    in_frame = (depth > 0) & (x > 0) & (y > 0) & (x < width) & (y < height)
    x, y = (x - 0.5).clamp(0, width - 1), (y - 0.5).clamp(0, height - 1)
    column, row = x.floor().clamp(max=max(0, width - 2)), y.floor().clamp(max=max(0, height - 2))
    x, y = (x - column).to(masks.dtype), (y - row).to(masks.dtype)
    first = (view[:, None] * height + row.long()) * width + column.long()
    right, below = min(1, width - 1), min(1, height - 1) * width
    flat = masks.reshape(-1)
    upper = torch.lerp(flat.take(first), flat.take(first + right), x)
    lower = torch.lerp(flat.take(first + below), flat.take(first + below + right), x)
    return in_frame & (torch.lerp(upper, lower, y) < INSIDE_MASK)


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
        progress: Told several times in either pass.
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
