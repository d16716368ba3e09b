"""The tracer of composed objects against its oracle in plain torch, pixel by pixel."""

import pytest
import torch

from v3d_core import procedural
from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.training import objects_table, tracing
from v3d_core.training.objects import random_objects
from v3d_core.training.objects_sdf import analytic_object
from v3d_core.training.tracing import render_orbits

ONE_VIEW = Orbit(num_views=1, azimuth_start_deg=30, elevation_deg=10)
needs_warp = pytest.mark.skipif(
    bool(tracing._warp_problem(torch.device("cpu"))), reason="the kernel needs warp-lang"
)


@pytest.mark.slow
@needs_warp
def test_kernel_and_oracle_agree_in_all_but_few_pixels():
    table = random_objects([0, 1, 3, 6, 20])
    fast = render_orbits(table, ONE_VIEW, 40, 2, "warp").int()
    exact = render_orbits(table, ONE_VIEW, 40, 2, "torch").int()
    alpha = (fast[..., 3] - exact[..., 3]).abs()
    # outlines: a ray counts as a hit a hundredth of a pixel early
    assert (alpha > 0).float().mean() < 0.01
    assert (alpha > 64).float().mean() < 0.0015  # more than one ray of four
    both = (fast[..., 3] == 255) & (exact[..., 3] == 255)
    error = (fast[..., :3] - exact[..., :3]).abs().amax(dim=-1)[both].float()
    # borders of paints and creases: one ray of four may fall on the other side
    assert (error > 2).float().mean() < 0.03 and (error > 16).float().mean() < 0.015
    assert error.median() <= 1 and error.mean() < 1.0


@needs_warp
def test_kernel_draws_what_render_maps_draws():
    table = random_objects([7, 10])
    cameras = orbit_cameras(Orbit(num_views=1), 32, 32)
    fast = render_orbits(table, cameras, 32, 3).float() / 255
    for index in range(len(table)):
        maps = procedural.render_maps(cameras, analytic_object(table, index), supersample=3)
        assert (fast[index, ..., 3] - maps.alphas).abs().mean() < 0.003
        both = (fast[index, ..., 3] == 1) & (maps.alphas == 1)
        error = (fast[index, ..., :3] - maps.colours).abs().amax(dim=-1)[both]
        assert error.median() < 0.004 and error.mean() < 0.01


@needs_warp
@pytest.mark.parametrize("size", [13, 16])
def test_blocks_over_the_edge_and_batches_change_nothing(size, monkeypatch):
    table = random_objects([1, 2, 5])
    orbit = Orbit(num_views=3)
    whole = render_orbits(table, orbit, size)
    assert whole.shape == (3, 3, size, size, 4) and whole.dtype == torch.uint8
    monkeypatch.setattr(tracing, "PIXELS_PER_LAUNCH", 1)
    assert torch.equal(render_orbits(table, orbit, size), whole)
    assert torch.equal(render_orbits(table[1], orbit, size)[0], whole[1])


@needs_warp
def test_starting_as_cones_loses_no_ray(monkeypatch):
    from v3d_core.kernels import shape_tracing

    table = random_objects([2, 9, 14])
    engine = tracing._warp_engine(torch.device("cpu"))
    with_blocks = render_orbits(table, ONE_VIEW, 64).int()
    share = engine.share

    def without_blocks(kernel, inputs, items):
        if kernel is shape_tracing.approach:
            inputs[-1].zero_()  # nothing is known to be free
        else:
            share(kernel, inputs, items)

    monkeypatch.setattr(engine, "share", without_blocks)
    slow = render_orbits(table, ONE_VIEW, 64).int()
    assert ((with_blocks[..., 3] - slow[..., 3]).abs() > 0).float().mean() < 1e-3


def test_light_of_uncovered_pixels_is_black_and_colour_is_straight():
    picture = render_orbits(random_objects([4]), ONE_VIEW, 32)[0, 0]
    assert (picture[picture[..., 3] == 0] == 0).all()
    partly = (picture[..., 3] > 0) & (picture[..., 3] < 255)
    assert partly.any() and picture[partly][:, :3].amax(dim=-1).min() > 5


def test_wrong_sizes_and_engines_are_refused():
    table = random_objects([0])
    with pytest.raises(ValueError, match="0 and 2"):
        render_orbits(table, size=0)
    with pytest.raises(ValueError, match="nothing"):
        render_orbits(table, engine="nothing")
    with pytest.raises(ValueError, match="20 x 10"):
        render_orbits(table, orbit_cameras(Orbit(num_views=1), 20, 10))
    assert render_orbits(random_objects([]), ONE_VIEW, 8).shape == (0, 1, 8, 8, 4)


@needs_warp
def test_numbers_of_kernel_and_table_agree():
    from v3d_core.kernels import shape_parts, shape_tracing

    assert shape_tracing.STROKE_COUNT == len(objects_table.STROKES)
    assert shape_parts.SPANS == objects_table.PROFILE_POINTS - 2
    record = tracing.part_records(random_objects([3]))
    assert record.shape == (1, objects_table.MAX_PARTS, shape_parts.RECORD)
    assert shape_tracing.CAMERA == tracing._camera_records(orbit_cameras(Orbit(), 8, 8)).shape[1]
