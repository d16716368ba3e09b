"""What no view shows: trimmed to a membrane, coloured from around; known shapes decide."""

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.demo_object import AnalyticObject
from v3d_core.procedural import render_object
from v3d_core.unseen import (
    MEMBRANE_STEPS,
    _harmonic,
    _pull_push,
    colour_surface,
    see_surface,
    trim_unseen,
)
from v3d_core.visual_hull import tight_visual_hull

ORBIT = Orbit(num_views=12)  # at elevation 0: it sees neither top nor bottom
TOP = 0.25  # above the cameras' height, so that the hull has a pyramid on it


def table():
    """A flat board above the cameras, red outside and blue under its top."""
    half = torch.tensor([0.55, 0.07, 0.55], dtype=torch.float64)

    def sdf(points):
        q = (points - points.new_tensor([0.0, TOP, 0.0])).abs() - half.to(points)
        return q.clamp(min=0).norm(dim=-1) + q.amax(-1).clamp(max=0)

    def albedo(points):
        return points.new_tensor([0.8, 0.2, 0.1]).expand_as(points)

    return AnalyticObject(sdf, albedo, bound=1.0)


def ball():
    return AnalyticObject(
        lambda points: points.norm(dim=-1) - 0.6,
        lambda points: points.new_tensor([0.2, 0.5, 0.9]).expand_as(points),
        bound=0.7,
    )


@pytest.fixture(scope="module")
def table_hull():
    shape = table()
    views = render_object(orbit_cameras(ORBIT, 96, 96), shape, supersample=1)
    return shape, views, tight_visual_hull(views, 96)


def volumes(hull, shape):
    """Share of the true solid that the hull holds, and what it holds besides, of the solid."""
    inside = torch.nonzero(torch.ones_like(hull.occupied))
    true = (shape.sdf(hull.voxel_centres(inside).double()) < 0).reshape(hull.occupied.shape)
    held, solid = hull.occupied & true, float(true.sum())
    return float(held.sum()) / solid, float((hull.occupied & ~true).sum()) / solid


def test_the_pyramid_on_a_table_goes_and_the_table_stays(table_hull):
    shape, views, hull = table_hull
    trimmed = trim_unseen(hull, views)
    before, after = volumes(hull, shape), volumes(trimmed, shape)
    assert before[1] > 0.4  # the pyramid: nearly half the board's volume
    assert after[1] < 0.5 * before[1]
    assert after[0] > 0.7 * before[0]


def test_nothing_is_added_and_seen_surface_stays(table_hull):
    _, views, hull = table_hull
    trimmed = trim_unseen(hull, views)
    assert not (trimmed.occupied & ~hull.occupied).any()
    surface = hull.surface_voxels()
    facing = see_surface(hull.voxel_centres(surface), hull.outward_normals(surface), hull, views)
    assert bool(trimmed.occupied[tuple(surface[facing.amax(0) > 0.5].T)].all())


def test_a_ball_seen_nearly_all_round_keeps_its_volume():
    shape = ball()
    views = render_object(orbit_cameras(ORBIT, 96, 96), shape, supersample=1)
    hull = tight_visual_hull(views, 64)
    kept, _ = volumes(trim_unseen(hull, views), shape)
    assert kept > 0.96


def test_trimming_turns_with_the_object(table_hull):
    """The same views in another order give the same voxels."""
    _, views, hull = table_hull
    order = [5, 0, 11, 3, 8, 1, 2, 10, 4, 9, 6, 7]
    assert torch.equal(trim_unseen(hull, views[order]).occupied, trim_unseen(hull, views).occupied)


def test_field_between_a_held_and_an_open_side_is_a_straight_line():
    """In a slab that is wide against its depth, Laplace's equation has a linear solution."""
    depth = 6
    occupied = torch.zeros(40, 40, depth + 2, dtype=torch.bool)
    occupied[:, :, : depth + 1] = True
    fixed = torch.zeros_like(occupied)
    fixed[:, :, 0] = True
    field = _harmonic(occupied, fixed)[20, 20]
    expected = 1 - torch.arange(depth + 2) / (depth + 1)
    assert MEMBRANE_STEPS >= 5 * depth**2  # enough steps for this depth
    torch.testing.assert_close(field, expected.float(), atol=2e-2, rtol=0)


def test_pull_push_keeps_what_is_known_and_spreads_one_colour():
    volume = torch.zeros(16, 16, 16, 4)
    volume[3, 4, 5] = torch.tensor([0.2, 0.6, 0.4, 1.0])
    colours = _pull_push(volume)
    torch.testing.assert_close(colours[3, 4, 5], torch.tensor([0.2, 0.6, 0.4]))
    torch.testing.assert_close(colours, colours[3, 4, 5].expand_as(colours))
    # two colours far apart: each corner takes the nearer one's
    volume[12, 12, 12] = torch.tensor([0.9, 0.1, 0.1, 1.0])
    colours = _pull_push(volume)
    assert colours[1, 1, 1, 0] < 0.4 and colours[14, 14, 14, 0] > 0.7
    assert colours.min() >= 0.1 - 1e-6 and colours.max() <= 0.9 + 1e-6


def test_surface_takes_the_colour_that_views_see_and_its_neighbours_where_none_does(table_hull):
    _, views, hull = table_hull
    surface = hull.surface_voxels()
    points, normals = hull.voxel_centres(surface), hull.outward_normals(surface)
    colours = colour_surface(points, normals, surface, hull, views)
    facing = see_surface(points, normals, hull, views).amax(0)
    seen, unseen = facing > 0.7, facing < 0.05
    assert seen.any() and unseen.any()
    # lit from above and the side, one paint: hues agree although brightness differs
    hue = colours / colours.sum(-1, keepdim=True)
    mean = hue[seen].mean(0)
    assert float((hue[seen] - mean).abs().amax()) < 0.1
    assert float((hue[unseen] - mean).abs().amax()) < 0.1
