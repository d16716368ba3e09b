"""Pictures that disagree, laid on a known surface before their colours are mixed.

The pictures of a video model drift by pixels and in exposure from frame to frame; their mean over
a surface is a ghost. The mesh says where every point is in every picture, so that what remains per
view is a smooth 2-D warp and a factor of each colour. They are found together by Gauss-Newton
steps from coarse to fine (Lucas and Kanade 1981), from colours that views do not share and from
outlines that are not the mesh's, under a prior by which warps are small, smooth and alike for
neighbouring views. Views that agree stay as they are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..images import fit_within, premultiply, unpremultiply
from ..mesh_queries import NOTHING, MeshQueries, cast_pixels
from ..progress import Progress, silent
from ..structures import Mesh, Views
from ..view_warps import (
    evaluate_warps,
    gaussian_blur,
    picture_gradients,
    read_displaced,
    view_precision,
    warp_precision,
)
from .align_equations import (
    SurfaceReadings,
    outline_blocks,
    read_colours,
    solve_gains,
    solve_warps,
)

NO_COVERAGE = 1e-3  # below it a blurred picture has no colour to speak of


@dataclass(frozen=True)
class AlignViewsConfig:
    """Settings of the alignment; lengths are fractions of the picture's longer side."""

    resolution: int = 256  # longer side of the pictures compared, px
    lattice: int = 48  # rays along the longer side of a view that choose the surface's points
    blurs_px: tuple[float, ...] = (4.0, 2.5, 1.5, 1.0, 1.0)  # one step each, px of `resolution`
    # the prior of a warp: standard deviations and the length over which it changes
    flow_std: float = 0.008
    flow_length: float = 0.18
    shift_std: float = 0.004
    zoom_std: float = 0.01
    view_length: float = 0.8  # distance of directions on the unit sphere over which warps change
    view_own: float = 0.3  # share of a warp's variance that no other view shares
    warp_nodes: int = 9  # B-spline nodes along a side of the picture
    # the comparison
    residual_std: float = 0.1  # of one pixel of `resolution`, in [0, 1]; above the true noise
    outline_std: float = 0.2  # the same for coverage
    outlier: float = 0.15  # residual of all channels together at which a reading counts half
    outline_outlier: float = 0.5  # the same for coverage
    cells: int = 64  # along a side, over which the outline's equations are summed up
    least_facing: float = 0.2  # cosine to the view; at more grazing angles a reading says little
    edge_px: float = 2.0  # of `resolution`; nearer to another part of the surface nothing is read
    edge_depth: float = 0.03  # off the tangent plane, world units, from where a part is another
    solver_iterations: int = 12  # of conjugate gradients in a step
    # below this rms warp, and rms change of colours in [0, 1], views agree and stay as they are
    agreeing_warp: float = 0.001
    agreeing_shade: float = 0.004
    # ... and also where warps and gains explain less than this share of the squared residual
    least_explained: float = 0.5

    def __post_init__(self) -> None:
        for name, low, high in (
            ("resolution", 32, 4096),
            ("lattice", 4, 512),
            ("warp_nodes", 4, 32),
            ("solver_iterations", 1, 1000),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(
                    f"AlignViewsConfig.{name}: must lie in {low} to {high}, got {value:g}"
                )
        if not self.blurs_px or min(self.blurs_px) <= 0:
            raise ValueError(
                f"AlignViewsConfig.blurs_px: needs one positive blur or more, got {self.blurs_px}"
            )


@dataclass(frozen=True)
class AlignedViews:
    """Views laid on a surface.

    Attributes:
        views: Corrected at their own resolution; the very views that came in where `moved` and
            `shaded` are false. Normals do not survive a warp and are dropped.
        per_view: Of each view: `moved_px`, rms over the object in its own pixels; `gain`, three
            factors; `db_before` and `db_after`, agreement of colours with the other views
            (PSNR of blurred readings of the surface).
        moved: Whether warps were applied.
        shaded: Whether factors of the colours were applied.
        warps: B-spline coefficients that were applied, else 0. [V, 2, n, n]
        gains: Factors of the colours that were applied, else 1. [V, 3]
        disagreement: Rms warp over the object (fraction of the longer side), rms change of colours,
            and share of the squared colour residual that both explain, as found before deciding.
    """

    views: Views
    per_view: list[dict[str, float | list[float]]]
    moved: bool
    shaded: bool
    warps: Tensor
    gains: Tensor
    disagreement: tuple[float, float, float]


@torch.no_grad()
def align_views(
    mesh: Mesh,
    views: Views,
    config: AlignViewsConfig | None = None,
    *,
    progress: Progress = silent,
) -> AlignedViews:
    """Find what bends and shades each view against a surface, and undo it.

    The mesh is trusted: where its outline is not the mask's, or colours of one point differ, the
    pictures are wrong.

    Args:
        mesh: The surface; orientation does not matter.
        views: Pictures and cameras of any size, on the mesh's device.
        config: Settings.
        progress: Told before every step; raising in it cancels.

    Raises:
        ValueError: The mesh has no faces, or no camera sees it.
    """
    c = config or AlignViewsConfig()
    if not len(mesh.faces):
        raise ValueError(
            f"align_views: the mesh has {len(mesh.vertices)} vertices but 0 faces; give a surface"
        )
    total = len(c.blurs_px) + 2
    progress(0, total, text="Looking at the surface from all views")
    small = fit_within(views, c.resolution)
    frames = premultiplied_planes(small)
    queries = MeshQueries(mesh.vertices, mesh.faces)
    coverage = mesh_coverage(queries, small)
    if not bool(coverage.any()):
        raise ValueError(
            f"align_views: none of the {len(views)} cameras sees the mesh; mesh and cameras must "
            "be in one world frame"
        )
    progress(1, total, text="Looking for points that several views see")
    readings = SurfaceReadings.of(
        queries,
        small.cameras,
        lattice=c.lattice,
        resolution=c.resolution,
        least_facing=c.least_facing,
        edge_px=c.edge_px,
        edge_depth=c.edge_depth,
        nodes=c.warp_nodes,
    )
    centre = (mesh.vertices.amin(0) + mesh.vertices.amax(0)) / 2
    between = view_precision(small.cameras, centre, c.view_length, c.view_own)
    stds = (c.flow_std, c.flow_length, c.shift_std, c.zoom_std)
    within = warp_precision(c.warp_nodes, *stds, frames)

    still = warps = frames.new_zeros(len(frames), 2, c.warp_nodes, c.warp_nodes)
    equal = gains = frames.new_ones(len(frames), 3)
    planes = colour_planes(frames, c.blurs_px[-1])
    before = read_colours(readings, planes, still, equal, c.outlier)
    for number, blur in enumerate(c.blurs_px):
        progress(2 + number, total, text="Laying the views on the surface")
        planes = colour_planes(frames, blur)
        rows = read_colours(readings, planes, warps, gains, c.outlier)
        gains = solve_gains(readings, rows)
        rows = read_colours(readings, planes, warps, gains, c.outlier)
        outline = outline_equations(frames, coverage, warps, blur, c)
        warps = warps + solve_warps(
            readings,
            rows,
            1 / c.residual_std**2,
            outline,
            between,
            within,
            warps,
            c.solver_iterations,
        )
    rows = read_colours(readings, planes, warps, gains, c.outlier)
    gains = solve_gains(readings, rows)
    after = read_colours(readings, planes, warps, gains, c.outlier)

    moves = moved_rms(warps, small.masks)  # [V]
    shades = (rows.value * (gains - 1)[readings.view]).square().mean().sqrt()
    explained = 1 - after.error() / before.error().clamp(min=1e-12)
    disagreement = (float(moves.square().mean().sqrt()), float(shades), float(explained))
    believed = disagreement[2] > c.least_explained
    moved = believed and disagreement[0] > c.agreeing_warp
    shaded = believed and disagreement[1] > c.agreeing_shade
    warps = warps if moved else still
    if not shaded:
        gains = equal
    elif not moved:  # those found go with warps that are not applied
        gains = solve_gains(readings, read_colours(readings, planes, warps, gains, c.outlier))
    after = read_colours(readings, planes, warps, gains, c.outlier)
    progress(total, total, text="Views laid on the surface" if moved or shaded else "Views agree")
    return AlignedViews(
        corrected_views(views, warps, gains) if moved or shaded else views,
        report(warps, gains, views, before.errors(readings), after.errors(readings)),
        moved,
        shaded,
        warps,
        gains,
        disagreement,
    )


def corrected_views(
    views: Views,
    warps: Tensor,  # [V, 2, n, n]
    gains: Tensor,  # [V, 3]
) -> Views:
    """Pictures and masks read where warps say, colours times gains; normals are dropped."""
    planes = premultiplied_planes(views)
    displaced = evaluate_warps(warps, *planes.shape[2:])
    planes = read_displaced(planes, displaced, bicubic=True).clamp(0, 1).permute(0, 2, 3, 1)
    images = unpremultiply(planes[..., :3], planes[..., 3]) * gains[:, None, None]
    return dataclasses.replace(views, images=images.clamp(0, 1), masks=planes[..., 3], normals=None)


def premultiplied_planes(views: Views) -> Tensor:  # [V, 4, H, W]
    """Premultiplied colours and coverage."""
    colours = premultiply(views.images, views.masks)
    return torch.cat([colours, views.masks[..., None]], dim=-1).permute(0, 3, 1, 2)


def mesh_coverage(queries: MeshQueries, views: Views) -> Tensor:  # [V, 1, h, w]
    """Which part of every pixel the mesh covers, from 2 x 2 rays."""
    total = torch.zeros_like(views.masks)
    for x in (-0.25, 0.25):
        for y in (-0.25, 0.25):
            total += cast_pixels(queries, views.cameras, (x, y)).face != NOTHING
    return total[:, None] / 4


def colour_planes(frames: Tensor, blur: float) -> Tensor:  # [V, 4, h, w] -> [V, 10, h, w]
    """Blurred straight colours, their slopes, and where they are free of background."""
    blurred = gaussian_blur(frames, blur)
    # straight colours: blurred premultiplied ones would darken towards the outline
    colours = blurred[:, :3] / blurred[:, 3:].clamp(min=NO_COVERAGE)
    slopes = picture_gradients(colours).permute(0, 1, 4, 2, 3).flatten(1, 2)
    solid = -F.max_pool2d(-F.pad(frames[:, 3:], (1, 1, 1, 1), mode="replicate"), 3, 1)
    return torch.cat([colours, slopes, solid], dim=1)


def outline_equations(
    frames: Tensor,  # [V, 4, h, w]
    coverage: Tensor,  # [V, 1, h, w]
    warps: Tensor,  # [V, 2, n, n]
    blur: float,
    config: AlignViewsConfig,
) -> tuple[Tensor, Tensor]:
    """Weighted equations of the masks against the mesh's outline, as of `outline_blocks`."""
    masks, outline = gaussian_blur(frames[:, 3:], blur), gaussian_blur(coverage, blur)
    masks = read_displaced(masks, evaluate_warps(warps, *frames.shape[2:]))
    slopes = picture_gradients((masks + outline) / 2)
    matrix, right = outline_blocks(
        masks, outline, slopes, config.warp_nodes, config.cells, config.outline_outlier
    )
    return matrix / config.outline_std**2, right / config.outline_std**2


def moved_rms(warps: Tensor, masks: Tensor) -> Tensor:  # [V, 2, n, n], [V, h, w] -> [V]
    """Root mean square of warps over the object, fractions of the longer side."""
    lengths = evaluate_warps(warps, *masks.shape[1:]).square().sum(-1)
    return ((lengths * masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1)).sqrt()


def report(
    warps: Tensor, gains: Tensor, views: Views, before: Tensor, after: Tensor
) -> list[dict[str, float | list[float]]]:
    """What `AlignedViews.per_view` holds; `before` and `after` are mean square residuals. [V] each"""
    moves = moved_rms(warps, views.masks) * max(views.cameras.width, views.cameras.height)
    decibels = (-10 * errors.clamp(min=1e-10).log10() for errors in (before, after))
    columns = [values.tolist() for values in (moves, gains, *decibels)]
    return [
        {
            "moved_px": round(moved, 3),
            "gain": [round(gain, 4) for gain in gain_of_view],
            "db_before": round(first, 2),
            "db_after": round(last, 2),
        }
        for moved, gain_of_view, first, last in zip(*columns, strict=True)
    ]
