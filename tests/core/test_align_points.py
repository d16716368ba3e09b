"""Frames compared with each other at surface points: closed forms, invariances, a known shift."""

import math

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras, project_points
from v3d_core.splats.align import AlignConfig, FrameAligner
from v3d_core.splats.align_points import PointRows, SurfacePoints, point_rows
from v3d_core.splats.align_solve import JointEquations, field_basis
from v3d_core.structures import Views
from v3d_core.view_warps import (
    evaluate_warps,
    pixel_positions,
    read_at,
    read_displaced,
    view_precision,
    warp_precision,
)
from v3d_core.visual_hull import carve_visual_hull

SIZE, VIEWS, RADIUS = 64, 9, 0.6
CAMERAS = orbit_cameras(Orbit(num_views=VIEWS), SIZE, SIZE)
SETTINGS = {"pixels": 64.0, "residual_std": 0.1, "outlier": 0.5, "offset_std": 0.01}


def sphere_frames() -> torch.Tensor:  # [V, H, W, 4]
    """Ray-cast premultiplied pictures of a sphere with a smooth pattern."""
    fine = orbit_cameras(Orbit(num_views=VIEWS), 4 * SIZE, 4 * SIZE)
    slopes = pixel_positions(4 * SIZE, 4 * SIZE, torch.zeros(1)) * 4 * SIZE / fine.K[0, 0, 0]
    rays = torch.nn.functional.normalize(
        torch.cat([slopes, torch.ones_like(slopes[..., :1])], -1), dim=-1
    )
    rays = torch.einsum("vij,yxj->vyxi", fine.camera_to_world[:, :3, :3], rays)
    centres = fine.centres[:, None, None]
    along = (rays * centres).sum(-1)
    inside = along**2 - centres.square().sum(-1) + RADIUS**2
    points = centres + rays * (-along - inside.clamp(min=0).sqrt())[..., None]
    colours = 0.5 + 0.3 * torch.sin(9 * points + torch.tensor([0.0, 1.0, 2.0]))
    picture = torch.cat([colours, torch.ones_like(colours[..., :1])], -1)
    picture = picture * (inside > 0).float()[..., None]
    return torch.nn.functional.avg_pool2d(picture.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)


@pytest.fixture(scope="module")
def frames():
    return sphere_frames().contiguous()


@pytest.fixture(scope="module")
def surface(frames):
    """The true sphere, seen as the hull of its masks says."""
    views = Views(frames[..., :3], frames[..., 3], CAMERAS)
    hull = carve_visual_hull(views, 48)
    points = SurfacePoints.of(hull, views, 1500, torch.Generator().manual_seed(0))
    points.positions = RADIUS * torch.nn.functional.normalize(points.positions, dim=-1)
    points.normals = points.positions / RADIUS
    return points


def rows_of(surface, frames, warps=None, **changes) -> PointRows:
    planes = frames.permute(0, 3, 1, 2).contiguous()
    warps = torch.zeros(VIEWS, 2, 8, 8) if warps is None else warps
    settings = {**SETTINGS, **changes}
    return point_rows(
        surface, planes, frames[..., 3], CAMERAS, warps, torch.ones(VIEWS, 3), **settings
    )


def test_reading_at_displaced_pixels_is_reading_displaced():
    pictures = torch.rand(2, 3, 20, 30)
    displacements = 0.05 * torch.randn(2, 20, 30, 2)
    at = (pixel_positions(20, 30, pictures) + displacements).flatten(1, 2)
    wanted = read_displaced(pictures, displacements).flatten(2)
    assert torch.allclose(read_at(pictures, at), wanted, atol=1e-5)


def test_points_are_seen_from_the_front_away_from_the_rim(surface):
    towards = torch.nn.functional.normalize(CAMERAS.centres[:, None] - surface.positions, dim=-1)
    true = (towards * surface.normals).sum(-1)
    level = surface.positions[:, 1].abs() < 0.5 * RADIUS  # the hull is a sphere there
    true, facing = true[:, level], surface.facing[:, level]
    # nine silhouettes carve facets, whose normals are a bit off
    assert float((facing[true < 0] > 0).float().mean()) < 0.05
    assert float((facing[true > 0.5] > 0).float().mean()) > 0.9
    # spread over a sphere of that area; a voxel surface counts too many or too few by its corners
    whole = 4 * math.pi * RADIUS**2
    assert surface.area * len(surface.positions) == pytest.approx(whole, rel=0.35)


def test_the_form_is_symmetric_and_never_negative(surface, frames):
    matrix = rows_of(surface, frames).matrix
    assert torch.allclose(matrix, matrix.mT, rtol=1e-3, atol=1e-3 * float(matrix.abs().max()))
    assert float(torch.linalg.eigvalsh(matrix.double()).min()) > -1e-4 * float(matrix.max())


def test_what_all_frames_share_in_brightness_changes_nothing(surface, frames):
    filled = frames.clone()
    filled[..., 3] = 1  # no outline, beside which a straight colour cannot be told
    brighter = filled + torch.tensor([0.1, 0.1, 0.1, 0.0])
    before, after = rows_of(surface, filled), rows_of(surface, brighter)
    scale = float(before.matrix.abs().max())
    assert torch.allclose(before.matrix, after.matrix, atol=1e-4 * scale)
    assert torch.allclose(before.pull, after.pull, atol=1e-3 * float(before.pull.abs().max()))


def test_an_offset_along_the_normal_costs_nothing_where_the_surface_is_unknown(surface, frames):
    loose = rows_of(surface, frames, offset_std=1e3)
    motion = (loose.jacobian * surface.normals[:, None]).sum(-1, keepdim=True)
    cost = (motion.mT @ loose.matrix @ motion).flatten()
    tight = rows_of(surface, frames, offset_std=1e-4)
    assert float(cost.abs().max()) < 1e-3 * float((motion.mT @ tight.matrix @ motion).max())


def test_points_add_up_as_their_quadratic_form_says():
    make = torch.Generator().manual_seed(4)
    count, views, splines, field = 5, 3, 4, 2
    root = torch.randn(count, 2 * views, 2 * views, generator=make, dtype=torch.float64)
    rows = PointRows(
        root @ root.mT,
        torch.randn(count, 2 * views, generator=make, dtype=torch.float64),
        torch.rand(views, count, splines, generator=make, dtype=torch.float64),
        torch.randn(count, 2 * views, 3, generator=make, dtype=torch.float64),
    )
    basis = torch.rand(count, field, generator=make, dtype=torch.float64)
    equations = JointEquations(views, splines, field, basis)
    equations.add_points(rows, basis)
    unknowns = len(equations.right)
    matrix, right = torch.zeros_like(equations.matrix), torch.zeros_like(equations.right)
    for p in range(count):
        motion = torch.zeros(2 * views, unknowns, dtype=torch.float64)  # of the readings
        for v in range(views):
            for component in range(2):
                first = (2 * v + component) * splines
                motion[2 * v + component, first : first + splines] = rows.splines[v, p]
        for node in range(field):
            for axis in range(3):
                column = 2 * views * splines + 3 * node + axis
                motion[:, column] = basis[p, node] * rows.jacobian[p, :, axis]
        matrix += motion.T @ rows.matrix[p] @ motion
        right += motion.T @ rows.pull[p]
    assert torch.allclose(equations.matrix.tril(), matrix.tril())
    assert torch.allclose(equations.right, right)


def test_warps_that_share_nothing_are_found_as_one_by_one(frames):
    aligner = FrameAligner(frames, CAMERAS, torch.zeros(3), 0.7, AlignConfig(resolution=SIZE))
    make = torch.Generator().manual_seed(5)
    slopes = torch.randn(VIEWS, 16, 16, 3, 2, generator=make)
    tensor = slopes.mT @ slopes
    pull = torch.randn(VIEWS, 16, 16, 2, generator=make)
    means = 0.5 * torch.nn.functional.normalize(torch.randn(500, 3, generator=make), dim=-1)
    aligner.warps = 0.01 * torch.randn(VIEWS, 2, 8, 8, generator=make)
    warps, field = aligner._solve(tensor, pull, means)
    equations = JointEquations(VIEWS, 64, 6**3, pull)
    equations.add_rows(*aligner._rows(tensor, pull, means, aligner.config.residual_std))
    alone = view_precision(CAMERAS, torch.zeros(3), 0.8, 1.0)
    equations.add_prior(alone, aligner._precision, aligner.warps, aligner.config.field_std)
    both_warps, both_field = equations.solve()
    assert torch.allclose(both_warps.view_as(warps).float(), warps, atol=1e-4)
    assert torch.allclose(both_field.float(), field, atol=1e-4)


def test_likeness_of_views_depends_on_where_they_are_and_not_on_their_order():
    order = torch.randperm(VIEWS, generator=torch.Generator().manual_seed(6))
    plain = view_precision(CAMERAS, torch.zeros(3), 0.8, 0.3)
    mixed = view_precision(CAMERAS[order], torch.zeros(3), 0.8, 0.3)
    assert torch.allclose(mixed, plain[order][:, order])
    correlation = torch.linalg.inv(plain)
    assert torch.allclose(correlation.diagonal(), torch.ones(VIEWS, dtype=torch.float64))
    assert bool((correlation[0, 1:5].diff() < 0).all())  # the farther apart, the less alike
    alone = view_precision(CAMERAS, torch.zeros(3), 0.8, 1.0)
    assert torch.allclose(alone, torch.eye(VIEWS, dtype=torch.float64))


def test_a_shift_of_one_frame_is_read_off_the_points_and_the_others_stay(surface, frames):
    shift = torch.tensor([1.0, -0.7]) / SIZE
    spoiled = frames.clone()
    planes = frames[4:5].permute(0, 3, 1, 2)
    moved = read_displaced(planes, shift.expand(1, SIZE, SIZE, 2))
    spoiled[4] = moved[0].permute(1, 2, 0)
    warps = torch.zeros(VIEWS, 2, 8, 8)
    precision = warp_precision(8, 0.008, 0.18, 0.02, 0.01, warps)
    basis = field_basis(surface.positions, torch.zeros(3), 0.7, 4)
    alone = view_precision(CAMERAS, torch.zeros(3), 0.8, 1.0)
    for _ in range(2):
        equations = JointEquations(VIEWS, 64, 64, warps)
        equations.add_points(rows_of(surface, spoiled, warps), basis)
        equations.add_prior(alone, precision, warps, 1e-6)  # the object must not move
        warps = warps + equations.solve()[0].view_as(warps).float()
    pixels, _ = project_points(surface.positions, CAMERAS)
    seen = surface.facing > 0.5
    found = evaluate_warps(warps, SIZE, SIZE).permute(0, 3, 1, 2)
    found = read_at(found, (pixels - SIZE / 2) / SIZE).permute(0, 2, 1)  # [V, P, 2]
    assert torch.allclose(found[4][seen[4]].mean(0), -shift, atol=0.15 / SIZE)
    others = torch.arange(VIEWS) != 4
    assert float(found[others][seen[others]].norm(dim=-1).mean()) * SIZE < 0.2
