"""The soap film against what is known of such films: shrinking balls, planes, the catenoid."""

import math

import pytest
import torch
from scipy.optimize import brentq

from v3d_core.cameras import Orbit, intrinsics_from_fov, look_at, orbit_cameras
from v3d_core.soap_film import (
    HELD_CELLS,
    SEEN_FACING,
    TIME_STEP,
    flow,
    hang_film,
    unseen_cells,
)
from v3d_core.structures import Cameras, Views

SIZE = 48  # cells a side


def cells(size=SIZE):
    """Positions of cell centres from the middle, in cells. [R, R, R] each"""
    along = torch.arange(size) + 0.5 - size / 2
    return torch.meshgrid(along, along, along, indexing="ij")


def radius_along(values, axis=0):
    """Where the surface crosses the half axis through the middle, in cells from there."""
    half = len(values) // 2
    line = values.movedim(axis, 0)[half:, half - 1 : half + 1, half - 1 : half + 1].mean((1, 2))
    first = int((line > 0).nonzero()[0])
    below, above = float(line[first - 1]), float(line[first])
    return first - 1 + 0.5 + below / (below - above)


def seen_from(cameras):
    flat = torch.ones(len(cameras), cameras.height, cameras.width)
    return Views(flat[..., None].expand(-1, -1, -1, 3), flat, cameras)


def all_around(count=40, size=64):
    k = torch.arange(count) + 0.5
    y, turn = 1 - 2 * k / count, k * math.pi * (3 - math.sqrt(5))
    flat = (1 - y * y).sqrt()
    places = 3 * torch.stack([flat * turn.sin(), y, flat * turn.cos()], dim=-1)
    K = intrinsics_from_fov(math.radians(60), size, size).expand(count, 3, 3).contiguous()
    return Cameras(look_at(places, torch.zeros(3)), K, size, size)


def orbit(size=96):
    return orbit_cameras(Orbit(num_views=18), size, size)


@pytest.mark.parametrize(("curved", "rate"), [("ball", 4.0), ("cylinder", 2.0)])
def test_what_nothing_holds_shrinks_as_its_curvature_says(curved, rate):
    """dr / dt is the sum of the curvatures: r^2 falls by 4 t for a ball, 2 t for a cylinder."""
    x, y, z = cells()
    across = torch.sqrt(x**2 + y**2 + (z**2 if curved == "ball" else 0.0))
    begun, steps = 14.0, 60
    after = flow(across - begun, torch.ones_like(x), steps)
    expected = math.sqrt(begun**2 - rate * TIME_STEP * steps)
    assert expected < begun - 0.5
    assert radius_along(after) == pytest.approx(expected, abs=0.1)


def test_a_plane_at_any_angle_stays():
    x, y, z = cells()
    plane = (0.48 * x + 0.6 * y + 0.64 * z) + 1.3
    after = flow(plane, torch.ones_like(x), 100)
    inside = (slice(12, -12),) * 3  # the cube's faces bend what is beyond them
    near = plane[inside].abs() < 1
    torch.testing.assert_close(after[inside][near], plane[inside][near], atol=0.02, rtol=0)


def test_between_two_rings_hangs_a_catenoid():
    """r = c cosh(z / c) is the film between two rings (Euler 1744); a tube becomes it."""
    x, y, z = cells()
    across = torch.sqrt(x**2 + y**2)
    ring, apart = 15.0, 8.5  # the first cells that are held lie there
    free = (z.abs() < apart).float()
    after = flow(across - ring, free, 1000)
    neck = brentq(lambda c: c * math.cosh(apart / c) - ring, 8, 15)
    assert neck < ring - 2
    assert radius_along(after) == pytest.approx(neck, abs=0.15)
    halfway = after[:, :, int(SIZE / 2 + 4)]  # z = 4.5
    at = float(torch.sqrt(x**2 + y**2)[..., 0][(halfway < 0)].amax())
    assert at == pytest.approx(neck * math.cosh(4.5 / neck), abs=0.6)


def board_with(top):
    """A board above the cameras with a roof, `top` cells high in its middle, that none of them sees."""
    x, y, z = cells(64)
    bulge = top * (1 - torch.maximum(x.abs(), z.abs()) / 20).clamp(min=0)
    up = torch.maximum(y - 14 - bulge, 8 - y)
    out = torch.maximum(x.abs(), z.abs()) - 20
    return torch.maximum(up, out)


def heights(values):
    """Highest solid cell over each place of the ground, in cells from the middle. [R, R]"""
    index = torch.arange(values.shape[1]) + 0.5 - values.shape[1] / 2
    solid = torch.where(values < 0, index[:, None], -math.inf)
    return solid.amax(1)


def test_the_top_that_no_view_sees_becomes_flat_and_all_that_is_seen_stays():
    begun = board_with(4.5)
    views = seen_from(orbit())
    after = hang_film(begun, torch.zeros(3), 0.9, views)
    top = slice(32 - 12, 32 + 12)
    assert heights(begun)[top, top].amax() > 17
    # the rim is at 14: cells up to 13.5 are solid
    assert heights(after)[top, top].amax() <= 15
    assert heights(after)[top, top].amin() >= 12  # and no hole came
    free = unseen_cells(begun, torch.zeros(3), 0.9, views)
    assert torch.equal(after[free == 0], begun[free == 0])
    assert 0 < float((free > 0).float().mean()) < 1


def test_a_hole_in_a_thin_sheet_does_not_grow_and_a_bump_on_it_goes():
    """A film with a hole would be gone at once; here it only means that something is missing."""
    x, y, z = cells(64)
    across = torch.sqrt(x**2 + z**2)
    away = torch.sqrt((x - 14) ** 2 + z**2)
    bump = 5 * torch.exp(-((away / 7) ** 2))
    sheet = torch.maximum((y - bump / 2).abs() - 1.5 - bump / 2, 6 - across)
    free = (torch.maximum(x.abs(), z.abs()) < 28).float()
    after = flow(sheet, free, 300)
    middle = after[:, 31:33] < 0
    assert int((~middle)[16:48, :, 16:48].sum()) <= 1.1 * int(
        (sheet[16:48, 31:33, 16:48] >= 0).sum()
    )
    before, then = (heights(values)[46, 32] for values in (sheet, after))
    assert before > 5 and then < 3  # the sheet's own top is at 1.5


def test_a_peak_on_a_board_goes_and_the_board_s_edge_stays_where_it_is():
    """A peak is sharp both ways, the edge of a board one way only."""
    x, y, z = cells(64)
    across = torch.sqrt(x**2 + z**2)
    board = torch.maximum(y.abs() - 1.5, across - 18)
    spike = torch.maximum((across - (15 - y) / 4) * 0.97, -1 - y)  # a cone of 15 cells
    begun = torch.minimum(board, spike)
    free = torch.ones_like(x)
    steps = 60
    assert heights(begun)[31:33, 31:33].amax() > 10
    with_tips, without = (flow(begun, free, steps, tips=tips) for tips in (True, False))
    assert heights(with_tips)[31:33, 31:33].amax() < heights(without)[31:33, 31:33].amax() - 2
    for after in (with_tips, without):
        assert radius_along(after) == pytest.approx(radius_along(begun), abs=0.25)


@pytest.mark.parametrize("thick", [2.0, 3.0, 4.0])
@pytest.mark.parametrize("tips", [True, False])
def test_no_hole_of_a_board_grows(thick, tips):
    x, y, z = cells(64)
    across = torch.sqrt(x**2 + z**2)
    board = torch.maximum(y.abs() - thick / 2, 6 - across)
    free = (torch.maximum(x.abs(), z.abs()) < 28).float()
    after = flow(board, free, 150, tips=tips)
    open_before, open_after = (int((v[16:48, 31:33, 16:48] >= 0).sum()) for v in (board, after))
    assert 0 < open_after <= open_before


def test_a_scrap_that_a_fit_left_where_no_view_looks_is_drawn_in():
    """It would hang there for ever: along it all edges are as sharp as a board's."""
    x, y, z = cells(64)
    stick = torch.maximum(torch.sqrt((y - 16.5) ** 2 + (z - 2) ** 2) - 1.4, x.abs() - 5)
    begun = torch.minimum(board_with(0.0), stick)  # the board's top is at 14
    views = seen_from(orbit())
    above = slice(47, 64)  # centres from 15.5
    free = unseen_cells(begun, torch.zeros(3), 0.9, views)
    scrap = begun[:, above] < 0
    assert int(scrap.sum()) > 30 and bool((free[:, above][scrap] == 1).all())
    after = hang_film(begun, torch.zeros(3), 0.9, views, torn=True)
    assert int((after[:, above] < 0).sum()) == 0
    assert torch.equal(after[free == 0], begun[free == 0])


def test_a_single_cell_that_shows_through_a_gap_holds_nothing(monkeypatch):
    from v3d_core import soap_film

    begun, views = board_with(4.5), seen_from(orbit())
    without = unseen_cells(begun, torch.zeros(3), 0.9, views)
    see = soap_film.see_surface

    def with_a_gap(points, normals, hull, views):
        seen = see(points, normals, hull, views)
        # the cell at the top of the roof's middle
        peak = (points - torch.tensor([0.0, 18.5 * 0.9 / 32, 0.0])).norm(dim=-1).argmin()
        assert float(seen[:, peak].amax()) < SEEN_FACING
        seen[0, peak] = 1.0
        return seen

    monkeypatch.setattr(soap_film, "see_surface", with_a_gap)
    assert torch.equal(unseen_cells(begun, torch.zeros(3), 0.9, views), without)


def test_a_surface_seen_from_all_around_does_not_move():
    x, y, z = cells()
    ball = torch.sqrt(x**2 + y**2 + z**2) - 15
    after = hang_film(ball, torch.zeros(3), 0.9, seen_from(all_around()))
    near = ball.abs() < HELD_CELLS
    assert torch.equal(after[near], ball[near])
    assert torch.equal(after < 0, ball < 0)


def test_of_a_ball_on_an_orbit_only_a_cap_is_cut_off():
    """Above the latitude at which the view becomes grazing a plane is left: a cap's height less."""
    x, y, z = cells(96)
    radius, distance = 36.0, 3.0
    ball = torch.sqrt(x**2 + y**2 + z**2) - radius
    cameras = orbit_cameras(Orbit(num_views=18, radius=distance), 96, 96)
    after = hang_film(ball, torch.zeros(3), 0.9, seen_from(cameras))
    # seen as far as the cosine to the camera stays above SEEN_FACING
    r = 0.9 * radius / 48
    grazing = brentq(
        lambda a: (
            (distance * math.cos(a) - r)
            / math.sqrt(distance**2 + r**2 - 2 * distance * r * math.cos(a))
            - SEEN_FACING
        ),
        0.1,
        1.5,
    )
    flat = radius * math.sin(grazing)
    assert flat - 1.5 < radius_along(after, 1) < radius
    assert radius_along(after, 0) == pytest.approx(radius, abs=0.05)


def test_it_ends_at_once_when_told():
    begun = board_with(4.5)

    def stop():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        hang_film(begun, torch.zeros(3), 0.9, seen_from(orbit()), look=stop)


def test_a_film_without_a_frame_does_not_move():
    """Cameras inside a ball see none of its outside; unheld it would shrink."""
    x, y, z = cells()
    ball = torch.sqrt(x**2 + y**2 + z**2) - 15
    eyes = torch.tensor([[0.0, 0.0, 0.1], [0.1, 0.0, 0.0]])
    K = intrinsics_from_fov(math.radians(60), 64, 64).expand(2, 3, 3).contiguous()
    inside = Cameras(look_at(eyes, torch.tensor([0.0, 0.05, 2.0])), K, 64, 64)
    assert torch.equal(hang_film(ball, torch.zeros(3), 0.9, seen_from(inside)), ball)
    assert not torch.equal(flow(ball, torch.ones_like(ball), 60), ball)


def test_the_same_twice_and_for_views_in_another_order():
    board, views = board_with(4.0), seen_from(orbit())
    once = hang_film(board, torch.zeros(3), 0.9, views)
    assert torch.equal(once, hang_film(board, torch.zeros(3), 0.9, views))
    order = torch.randperm(18, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(once, hang_film(board, torch.zeros(3), 0.9, views[order]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="compares CUDA with the CPU")
@pytest.mark.cuda
def test_cuda_hangs_the_film_of_the_cpu():
    board, views = board_with(4.0), seen_from(orbit())
    on_gpu = hang_film(board.cuda(), torch.zeros(3).cuda(), 0.9, views.to("cuda")).cpu()
    near = board.abs() < 2
    expected = hang_film(board, torch.zeros(3), 0.9, views)
    torch.testing.assert_close(on_gpu[near], expected[near], atol=0.02, rtol=0)
