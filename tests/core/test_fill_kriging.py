"""Colours of what no view saw: light from the normals, paint by ordinary kriging."""

import dataclasses

import numpy as np
import pytest
import torch
import trimesh

from v3d_core.images import linear_to_srgb, srgb_to_linear
from v3d_core.mesh import fill_kriging
from v3d_core.mesh.bake import SurfacePoints
from v3d_core.mesh.fill_kriging import DARKEST, LIGHT_ABOVE, kriged_colours, light_by_normal

UP = torch.tensor([0.0, 1.0, 0.0])


def ball(count=6000):
    """Places on a unit ball, evenly, and their normals."""
    k = torch.arange(count) + 0.5
    y, turn = 1 - 2 * k / count, k * np.pi * (3 - 5**0.5)
    across = (1 - y * y).sqrt()
    normals = torch.stack([across * turn.cos(), y, across * turn.sin()], dim=-1).float()
    return SurfacePoints(0.4 * normals, normals)


def sheet(count=40, seed=1):
    """Places far apart on a plane, in cells of their own, each a texel."""
    places = torch.rand(count, 3, generator=torch.Generator().manual_seed(seed))
    places[:, 1] = 0
    places[:2] = torch.tensor([[0.0, 0, 0], [1, 0, 1]])
    return SurfacePoints(places, UP.expand(count, 3).clone())


def logs_of(colours):
    return (srgb_to_linear(colours) + DARKEST).log()


def colours_of(logs):
    return linear_to_srgb(logs.exp() - DARKEST)


def textbook(points, seen, readings, wanted):
    """Ordinary kriging as it is written down: weights that sum to one, by a Lagrange multiplier."""
    at = torch.cat(
        [points.positions / fill_kriging.RANGE, points.normals * fill_kriging.TURN], dim=-1
    ).double()
    near = torch.exp(-torch.cdist(at, at))
    n = int(seen.sum())
    system = torch.ones(n + 1, n + 1, dtype=torch.float64)
    system[:n, :n] = near[seen][:, seen] + fill_kriging.NOISE * torch.eye(n)
    system[n, n] = 0
    right = torch.cat([near[seen][:, wanted], torch.ones(1, len(wanted)).double()])
    return torch.linalg.solve(system, right)[:n].T @ readings.double()


def test_it_is_ordinary_kriging():
    points = sheet()
    assert len({tuple((24 * p).long().tolist()) for p in points.positions}) == len(points.positions)
    colours = 0.1 + 0.8 * torch.rand(40, 3, generator=torch.Generator().manual_seed(1))
    seen = torch.arange(40) % 3 > 0
    found = kriged_colours(colours, seen.float(), points)
    # all face the same way: the light is the same everywhere, whatever it is
    wanted = torch.nonzero(~seen)[:, 0]
    expected = colours_of(textbook(points, seen, logs_of(colours)[seen], wanted)).float()
    torch.testing.assert_close(found[~seen], expected, atol=2e-4, rtol=0)
    assert torch.equal(found[seen], colours[seen])


def test_seen_exactly_and_near_it_is_what_was_seen_and_far_away_the_mean(monkeypatch):
    monkeypatch.setattr(fill_kriging, "NOISE", 1e-6)
    monkeypatch.setattr(fill_kriging, "RANGE", 0.02)
    points = sheet()
    points.positions[3] = points.positions[2] + 1e-6
    colours = 0.1 + 0.8 * torch.rand(40, 3, generator=torch.Generator().manual_seed(2))
    seen = torch.arange(40) != 3
    near = kriged_colours(colours, seen.float(), points)[3]
    torch.testing.assert_close(near, colours[2], atol=1e-3, rtol=0)
    apart = (points.positions - points.positions[5]).norm(dim=-1) > 0.2
    seen = apart
    far = kriged_colours(colours, seen.float(), points)[5]
    mean = colours_of(logs_of(colours)[seen].mean(0))
    torch.testing.assert_close(far, mean, atol=1e-2, rtol=0)


LIGHT = torch.tensor([0.2, 0.5, -0.3])


def light_on_a_ball(paint=0.0):
    """What is found of `LIGHT` on a ball whose top is brighter by `paint`."""
    points = ball()
    logs = (points.normals @ LIGHT)[:, None] + torch.tensor([-2.0, -1.5, -1.0])
    logs = logs + paint * (points.positions[:, 1:2] > 0.25)
    return light_by_normal(logs, torch.ones(len(logs)), 0.5 + points.positions, points.normals)


def test_light_is_found_from_neighbours(monkeypatch):
    monkeypatch.setattr(fill_kriging, "LIGHT_RIDGE", 1e-6)
    torch.testing.assert_close(light_on_a_ball(), LIGHT, atol=1e-3, rtol=0)


def test_a_step_of_paint_is_not_taken_for_light(monkeypatch):
    monkeypatch.setattr(fill_kriging, "LIGHT_RIDGE", 1e-6)
    off = float((light_on_a_ball(2.0) - LIGHT).norm())
    monkeypatch.setattr(fill_kriging, "PAINT", 1e6)  # plain least squares
    assert off < 0.25 * float((light_on_a_ball(2.0) - LIGHT).norm())


def test_where_nothing_tells_light_comes_from_above():
    points = sheet()
    colours = torch.rand(40, 3, generator=torch.Generator().manual_seed(3))
    found = light_by_normal(colours, torch.ones(40), points.positions, points.normals)
    torch.testing.assert_close(found, LIGHT_ABOVE * UP)


def test_what_is_likely_is_a_ridge(monkeypatch):
    """Two faces of one corner in one paint, no light between them: Sherman and Morrison's formula."""
    monkeypatch.setattr(fill_kriging, "PAINT", 1e6)
    normals = torch.tensor([[1.0, 0, 0], [0, 1, 0]])
    found = light_by_normal(torch.zeros(2, 3), torch.ones(2), torch.full((2, 3), 0.5), normals)
    turn, likely = normals[0] - normals[1], LIGHT_ABOVE * UP
    expected = likely - turn * (turn @ likely) / (fill_kriging.LIGHT_RIDGE + turn @ turn)
    torch.testing.assert_close(found, expected)


def lit_ball():
    """A ball of one paint under light, seen between 30 degrees below and above its middle."""
    points = ball(20000)
    light = torch.tensor([0.1, 0.45, -0.2])
    truth = colours_of((points.normals @ light)[:, None] + torch.tensor([-1.2, -1.6, -2.0]))
    return points, truth, points.normals[:, 1].abs() < 0.5


def test_the_top_of_a_lit_ball_is_brighter_than_all_that_was_seen_of_it():
    points, truth, seen = lit_ball()
    found = kriged_colours(torch.where(seen[:, None], truth, 1.0), seen.float(), points)
    off = (found - truth)[~seen].square().mean().sqrt()
    nearest = truth[seen][torch.cdist(points.positions[~seen], points.positions[seen]).argmin(1)]
    assert float(off) < 0.6 * float((nearest - truth[~seen]).square().mean().sqrt())
    top = points.normals[:, 1] > 0.95
    assert float(found[top].mean()) > 1.02 * float(nearest[top[~seen]].mean())


def test_whoever_cancels_is_heard():
    points, truth, seen = lit_ball()

    def cancel():
        raise InterruptedError

    with pytest.raises(InterruptedError):
        kriged_colours(truth, seen.float(), points, cancel)


def test_parts_far_apart_keep_their_own_paint():
    boxes = [trimesh.creation.box((0.1, 0.3, 0.1)) for _ in range(3)]
    paints = torch.tensor([[0.8, 0.2, 0.1], [0.1, 0.6, 0.2], [0.2, 0.2, 0.7]])
    places, normals, part = [], [], []
    for k, box in enumerate(boxes):
        p, face = trimesh.sample.sample_surface(box, 4000, seed=k)
        places.append(torch.from_numpy(p + np.array([0.45 * k, 0, 0])))
        normals.append(torch.from_numpy(box.face_normals[face]))
        part.append(torch.full((4000,), k))
    points = SurfacePoints(torch.cat(places).float(), torch.cat(normals).float())
    truth = paints[torch.cat(part)]
    seen = points.normals[:, 1].abs() < 0.5
    found = kriged_colours(torch.where(seen[:, None], truth, 0.5), seen.float(), points)
    hue = lambda c: c / c.sum(-1, keepdim=True)  # noqa: E731
    assert float((hue(found) - hue(truth))[~seen].abs().max()) < 0.15


def test_order_place_and_size_do_not_matter():
    points, truth, seen = lit_ball()
    truth = truth * (
        0.5 + 0.5 * torch.rand(len(truth), 1, generator=torch.Generator().manual_seed(5))
    )
    found = kriged_colours(truth, seen.float(), points)
    mixed = torch.randperm(len(truth), generator=torch.Generator().manual_seed(6))
    again = kriged_colours(truth[mixed], seen.float()[mixed], points[mixed])
    torch.testing.assert_close(again, found[mixed], atol=1e-4, rtol=0)
    moved = dataclasses.replace(points, positions=4 * points.positions + torch.tensor([1.0, -2, 8]))
    torch.testing.assert_close(kriged_colours(truth, seen.float(), moved), found, atol=2e-2, rtol=0)


def test_with_everything_or_nothing_seen_nothing_changes_and_black_stays_black():
    points, truth, seen = lit_ball()
    assert kriged_colours(truth, torch.ones(len(truth)), points) is truth
    assert kriged_colours(truth, torch.zeros(len(truth)), points) is truth  # nothing to go by
    black = kriged_colours(torch.zeros_like(truth), seen.float(), points)
    torch.testing.assert_close(black, torch.zeros_like(black), atol=0.05, rtol=0)
    assert float(black.min()) >= 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_the_same():
    points, truth, seen = lit_ball()
    found = kriged_colours(truth, seen.float(), points)
    there = SurfacePoints(points.positions.cuda(), points.normals.cuda())
    again = kriged_colours(truth.cuda(), seen.float().cuda(), there).cpu()
    torch.testing.assert_close(again, found, atol=1e-3, rtol=0)
