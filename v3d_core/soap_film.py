"""Surface that no view shows, as a soap film: it hangs on what is seen and is as small as it can be.

Cameras at one height leave the top of a seat, what is under it and the middle between rungs
without any evidence, and a fit leaves there whatever it began with. The film is found by mean
curvature flow of a level set (Osher and Sethian 1988): where nothing was seen, the surface moves
towards its centres of curvature until it has none; seen surface holds it. Unlike the smallest
surface of all (a minimal cut), which makes a shell of every plate that is only seen at its rim,
the flow keeps what is closed closed. It is right for what is flat, a seat or a board; of what is
round it cuts off the cap that no view sees.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .distance_transform import distance_to_nearest
from .structures import Views
from .unseen import see_surface
from .visual_hull import VisualHull

SEEN_FACING = 0.1  # cosine between normal and view above which a surface holds the film: 84 degrees
HELD_CELLS = 2.0  # around seen surface, that do not move
GRIDS = 3  # each with half as many cells a side as the next
STEPS = 60  # of the flow on each of them
TRIMMING_STEPS = 30  # of the flow that draws in the tips of what a fit has torn
TIME_STEP = 0.2  # cells^2; explicit steps of a surface's diffusion are stable up to 1/4
BAND = 4.0  # cells around the surface that are computed; with 3 a ball shrinks by a tenth too fast
STEPS_OF_BAND = 10  # before it is looked for again
REDISTANCING = 5  # steps then; with the next they reach two cells from the surface
REDISTANCING_STEP = 0.4  # cells; explicit steps are stable up to 1/2
NO_SLOPE = 1e-3  # guards a division where the surface has a crease
SHEET_EDGE = 0.5  # 1 / cells; the edge of a sheet of 4 cells, at which the film does not pull
TIP = 0.5  # share of the larger curvature that the smaller one has, above which it does: a tip
STEEPEST = 1.5  # 1 / cells; curvature of a hollow of 4/3 cells: sharper is a corner of the grid

SIGNS = ((1, 1), (1, -1), (-1, 1), (-1, -1))  # of the two steps to a neighbour across an edge


@torch.no_grad()
def hang_film(
    distance: Tensor,  # [R, R, R]
    centre: Tensor,  # [3]
    half_size: float,
    views: Views,
    *,
    steps: int = STEPS,
    torn: bool = False,
    look: Callable[[], None] = lambda: None,
) -> Tensor:  # [R, R, R]
    """A shape whose surface is a soap film where no view sees it.

    Args:
        distance: Signed distance in cells, negative inside, at cell centres of a cube; axes x, y,
            z. Only cells near the surface have to be exact. [R, R, R]
        centre: Of the cube, world units. [3]
        half_size: Half its side, world units.
        views: What was seen.
        steps: Of the flow on each of `GRIDS` grids.
        torn: The shape comes from a fit, which leaves rags of boards where nothing was seen. Tips
            are drawn in before the coarse grids, on which a board that has holes is all tips.
        look: Called several times a second; may raise to cancel.

    Returns:
        Distances of the same kind, equal to those given where the surface is seen and, unless
        `torn`, wherever the film did not come within `BAND`.
    """
    free = unseen_cells(distance, centre, half_size, views)
    look()
    start = _trimmed(distance, free, look) if torn else distance
    grids = [(start, free)]
    while len(grids) < GRIDS and len(grids[0][0]) % 2 == 0:
        grids.insert(0, _halved(*grids[0]))
    moved = torch.zeros_like(grids[0][0])
    for number, (before, mobile) in enumerate(grids):
        if number:
            moved = F.interpolate(2 * moved[None, None], scale_factor=2.0, mode="trilinear")[0, 0]
        after = flow(before + mobile * moved, mobile, steps, look, tips=not torn)
        moved = after - before
    return start + moved


def _trimmed(distance: Tensor, free: Tensor, look: Callable[[], None]) -> Tensor:
    """Tips drawn in on this grid; distances beyond the cells that the flow computes are new."""
    near = flow(distance, free, TRIMMING_STEPS, look)
    solid = near < 0
    look()  # at Cancel: each of the two takes up to half a second
    # a cell's centre lies half a cell from its faces
    outside = distance_to_nearest(solid) - 0.5
    look()
    far = torch.where(solid, 0.5 - distance_to_nearest(~solid), outside)
    look()
    return torch.lerp(near, far, free * (near.abs() - BAND / 2).clamp(0, 1))


def _halved(distance: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Both on half as many cells a side; what any of the eight holds is held."""
    fewer = F.avg_pool3d(distance[None, None], 2)[0, 0] / 2
    return fewer, -F.max_pool3d(-free[None, None], 2)[0, 0]


def unseen_cells(
    distance: Tensor,  # [R, R, R] cells
    centre: Tensor,  # [3]
    half_size: float,
    views: Views,
) -> Tensor:  # [R, R, R]
    """1 where the surface is free to move, 0 within `HELD_CELLS` of what some view sees."""
    solid = VisualHull(distance < 0, centre, half_size)
    near = torch.nonzero(distance.abs() < 1)
    x, y, z = near.T
    slope = torch.stack(torch.gradient(distance))[:, x, y, z].T
    normals = F.normalize(slope, dim=-1)
    points = solid.voxel_centres(near) - normals * (distance[x, y, z] * solid.voxel)[:, None]
    seen = see_surface(points, normals, solid, views).amax(0) > SEEN_FACING
    if not bool(seen.any()):
        return torch.zeros_like(distance)  # a film without a frame would vanish
    held, shell = torch.zeros_like(distance), torch.zeros_like(distance)
    held[x[seen], y[seen], z[seen]] = 1
    shell[x, y, z] = 1
    # with a third of the cells around it: the depth buffer has gaps, and one seen through them
    # would hold a peak
    near_by = F.avg_pool3d(torch.stack([held, shell])[:, None], 3, 1, 1)[:, 0]
    held = held * (near_by[0] > near_by[1] / 3)
    # over one more cell the film moves less and less
    return (distance_to_nearest(held > 0) - HELD_CELLS).clamp(0, 1)


def flow(
    distance: Tensor,  # [R, R, R] cells
    free: Tensor,  # [R, R, R]
    steps: int,
    look: Callable[[], None] = lambda: None,
    *,
    tips: bool = True,
) -> Tensor:  # [R, R, R]
    """`steps` of mean curvature flow at a speed of `free` times the curvature.

    Only cells within `BAND` of the surface are computed; their distances are mended on the way.
    Edges of thin sheets stand still; with `tips`, what is sharp both ways is drawn in.
    """
    row = len(distance) + 2
    values = F.pad(distance[None, None], (1,) * 6, mode="replicate").flatten()
    mobile = F.pad(free, (1,) * 6).flatten()
    x, y, z = row * row, row, 1
    faces = [0, x, -x, y, -y, z, -z]
    diagonals = [
        sign_a * a + sign_b * b for a, b in ((x, y), (x, z), (y, z)) for sign_a, sign_b in SIGNS
    ]
    offsets = torch.tensor([*faces, *diagonals], device=values.device)
    for done in range(0, steps, STEPS_OF_BAND):
        look()
        active = torch.nonzero((values.abs() < BAND) & (mobile > 0))[:, 0]
        around = active + offsets[:, None]
        speed = TIME_STEP * mobile[active]
        for _ in range(REDISTANCING if done else 0):
            values[active] = _redistanced(values[around[:7]])
        for _ in range(min(STEPS_OF_BAND, steps - done)):
            near = values[around]
            values[active] = near[0] + speed * _curvature_term(near, tips)
    return values.view(row, row, row)[1:-1, 1:-1, 1:-1]


def _curvature_term(near: Tensor, tips: bool) -> Tensor:  # [19, N] -> [N]
    """Sum of the principal curvatures times the gradient's length, from a cell's neighbourhood.

    It is the Laplacian less the second derivative along the gradient. Order as in `flow`. Sharp
    edges count as flat: a hole in a thin sheet would grow until nothing of it is left. So do tips,
    where the smaller curvature is more than `TIP` of the larger one, unless they are asked for.
    """
    c, xp, xm, yp, ym, zp, zm = near[:7]
    gx, gy, gz = (xp - xm) / 2, (yp - ym) / 2, (zp - zm) / 2
    xx, yy, zz = xp + xm - 2 * c, yp + ym - 2 * c, zp + zm - 2 * c
    xy, xz, yz = ((a - b - d + e) / 4 for a, b, d, e in near[7:].view(3, 4, -1))
    x2, y2, z2 = gx * gx, gy * gy, gz * gz
    slope2 = x2 + y2 + z2 + NO_SLOPE
    across = xx * (y2 + z2) + yy * (x2 + z2) + zz * (x2 + y2)
    mixed = 2 * (gx * gy * xy + gx * gz * xz + gy * gz * yz)
    both = (across - mixed) / slope2
    # the gradient on both sides of the Hessian's adjugate, for the product of the curvatures
    product = (
        x2 * (yy * zz - yz * yz)
        + y2 * (xx * zz - xz * xz)
        + z2 * (xx * yy - xy * xy)
        + 2 * gx * gy * (xz * yz - xy * zz)
        + 2 * gx * gz * (xy * yz - xz * yy)
        + 2 * gy * gz * (xy * xz - yz * xx)
    ) / slope2
    apart = (both * both - 4 * product).clamp(min=0).sqrt()
    still = both + apart > 2 * SHEET_EDGE
    if tips:
        still &= both - apart < TIP * (both + apart)
    return torch.where(still, 0.0, both).clamp(min=-STEEPEST)


def _redistanced(near: Tensor) -> Tensor:  # [7, N] -> [N]
    """One step towards unit slope (Sussman et al. 1994); next to the surface all stays.

    Otherwise the surface would creep towards its inner side.
    """
    c, xp, xm, yp, ym, zp, zm = near
    slope = torch.zeros_like(c)
    for after, before in ((xp, xm), (yp, ym), (zp, zm)):
        behind, ahead = c - before, after - c
        outward = torch.maximum(behind.clamp(min=0) ** 2, ahead.clamp(max=0) ** 2)
        inward = torch.maximum(behind.clamp(max=0) ** 2, ahead.clamp(min=0) ** 2)
        slope += torch.where(c > 0, outward, inward)
    beyond = (c.abs() - 1).clamp(0, 1)
    return c - REDISTANCING_STEP * beyond * c.sign() * (slope.sqrt() - 1)
