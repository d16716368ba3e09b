"""The splat fit on pictures whose truth is known: quality, repeatability, cancelling, edits."""

import contextlib
import dataclasses

import pytest
import torch

from v3d_core import fit_stream
from v3d_core.cameras import Orbit, orbit_cameras, resize_cameras
from v3d_core.demo_object import demo_robot
from v3d_core.metrics import psnr
from v3d_core.procedural import render_object
from v3d_core.sh import colours_from_dc
from v3d_core.splats.config import SPLAT_PRESETS, SplatFitConfig
from v3d_core.splats.fit import _for_cameras, fit_splats
from v3d_core.splats.init import quats_from_normals, splats_from_hull
from v3d_core.splats.optimise import DRAWS, draw
from v3d_core.splats.projection import quats_to_rotations
from v3d_core.splats.raster import render_splats
from v3d_core.visual_hull import tight_visual_hull

TINY = SplatFitConfig(
    steps=60,
    resolution=64,
    initial_splats=1200,
    max_splats=1800,
    hull_resolution=48,
    coarse_until=0.0,
    align="off",
)


@pytest.fixture(scope="module")
def robot():
    """Twelve training views of the demo object and four between them, 64 px."""
    train = render_object(orbit_cameras(Orbit(num_views=12), 64, 64), demo_robot(), supersample=1)
    between = Orbit(num_views=4, azimuth_start_deg=15.0, elevation_deg=5.0)
    return train, render_object(orbit_cameras(between, 64, 64), demo_robot(), supersample=1)


def on_white(views):
    return views.images * views.masks[..., None] + 1 - views.masks[..., None]


@pytest.fixture(scope="module")
def fitted(robot):
    return fit_splats(robot[0], TINY)


def test_held_out_views_are_matched_and_not_their_mirror_images(robot, fitted):
    test = robot[1]
    rendered = render_splats(fitted.splats, test.cameras, depths=False)
    truth = on_white(test)
    assert psnr(rendered.colours, truth) > 22
    assert psnr(rendered.colours, truth) > psnr(rendered.colours.flip(2), truth) + 4
    assert psnr(rendered.colours, truth) > psnr(rendered.colours.flip(1), truth) + 4


def test_fit_improves_on_its_start(robot, fitted):
    start = fit_splats(robot[0], dataclasses.replace(TINY, steps=1))
    truth = on_white(robot[1])

    def quality(splats):
        return psnr(render_splats(splats, robot[1].cameras, depths=False).colours, truth)

    assert quality(fitted.splats) > quality(start.splats) + 2


def test_same_seed_same_bits_and_another_seed_other_bits(robot):
    config = dataclasses.replace(TINY, steps=12, resolution=48)
    first, again = fit_splats(robot[0], config).splats, fit_splats(robot[0], config).splats
    other = fit_splats(robot[0], dataclasses.replace(config, seed=1)).splats
    for name in ("means", "scales", "quats", "opacities", "sh"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.means, other.means)


def test_global_random_state_is_neither_used_nor_changed(robot):
    config = dataclasses.replace(TINY, steps=3, resolution=32)
    torch.manual_seed(1)
    first = fit_splats(robot[0], config).splats
    torch.manual_seed(2)
    before = torch.random.get_rng_state()
    again = fit_splats(robot[0], config).splats
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.means, again.means)


def test_budget_and_report_are_kept(fitted):
    assert len(fitted.splats) <= TINY.max_splats
    assert fitted.report["splats"] == len(fitted.splats)
    assert fitted.report["steps"] == TINY.steps
    assert fitted.report["resolution"] == 64
    assert float(fitted.report["psnr_train"]) > 22


def test_higher_sh_degree_fits_too(robot):
    config = dataclasses.replace(TINY, steps=15, sh_degree=2)
    splats = fit_splats(robot[0], config).splats
    assert splats.sh.shape[1] == 9 and bool((splats.sh[:, 1:] != 0).any())


def test_progress_counts_every_step_with_a_picture_on_demand_and_can_cancel(robot):
    class Cancelled(BaseException):
        pass

    seen = []

    def progress(step, total, preview=None, text=""):
        seen.append((step, total, text))
        if step == 3:
            picture = preview()
            assert picture.shape == (32, 32, 3)
            assert 0 <= float(picture.min()) and float(picture.max()) <= 1
        if step == 4:
            raise Cancelled

    with pytest.raises(Cancelled):
        fit_splats(robot[0], dataclasses.replace(TINY, resolution=32), progress=progress)
    preparing = [text for step, _, text in seen if step == 0]
    assert len(preparing) >= 4 and set(preparing) == {"Carving the visual hull"}
    assert [step for step, _, _ in seen if step] == [1, 2, 3, 4]
    assert {s[1] for s in seen} == {TINY.steps}
    assert "splats" in seen[-1][2]


def test_inputs_are_not_changed(robot):
    train = robot[0]
    copies = train.images.clone(), train.masks.clone(), train.cameras.camera_to_world.clone()
    fit_splats(train, dataclasses.replace(TINY, steps=2, resolution=32))
    now = train.images, train.masks, train.cameras.camera_to_world
    assert all(torch.equal(a, b) for a, b in zip(copies, now, strict=True))


def test_one_view_is_refused(robot):
    with pytest.raises(ValueError, match="at least 2 views to have depth, got 1"):
        fit_splats(robot[0][0], TINY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"resolution": 8}, "at least 16 px, got 8"),
        ({"sh_degree": 4}, "0 to 3, got 4"),
        ({"max_splats": 0}, "max_splats must be at least 1, got 0"),
    ],
)
def test_impossible_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SPLAT_PRESETS["normal"], **change)


def drawn(views, views_per_step, steps=TINY.steps, seed=0, **changes):
    config = dataclasses.replace(TINY, views_per_step=views_per_step, steps=steps, **changes)
    return draw(views, config, torch.Generator().manual_seed(seed), torch.device("cpu"))


@pytest.mark.parametrize(("views", "views_per_step"), [(6, 2), (12, 3), (4, 4), (5, 1)])
def test_every_view_comes_once_before_any_comes_again(views, views_per_step):
    rounds = drawn(views, views_per_step).batches.reshape(-1)
    for start in range(0, len(rounds) - views + 1, views):
        assert sorted(rounds[start : start + views].tolist()) == list(range(views))


@pytest.mark.parametrize(("views", "views_per_step"), [(7, 3), (18, 4), (3, 2), (2, 9)])
def test_no_view_comes_twice_in_a_step_and_all_come_about_equally_often(views, views_per_step):
    batches = drawn(views, views_per_step, steps=600).batches
    assert batches.shape == (600, min(views, views_per_step))
    assert all(len(set(batch)) == len(batch) for batch in batches.tolist())
    counts = torch.bincount(batches.reshape(-1), minlength=views)
    assert float(counts.max()) <= 1.1 * float(counts.min())


def test_draws_follow_the_seed_and_last_as_long_as_the_run():
    one, again, other = drawn(7, 2), drawn(7, 2), drawn(7, 2, seed=1)
    assert torch.equal(one.batches, again.batches)
    assert torch.equal(one.backgrounds, again.backgrounds)
    assert not torch.equal(one.batches, other.batches)
    assert one.backgrounds.shape == (TINY.steps, 2, 3)
    assert 0 <= float(one.backgrounds.min()) and float(one.backgrounds.max()) <= 1
    assert bool((drawn(7, 2, random_background=False).backgrounds == 1).all())
    assert len(drawn(7, 2, steps=10 * DRAWS).batches) == DRAWS


def test_a_splat_fitted_small_looks_the_same_large(robot, fitted):
    """Shrunk by area, the large picture of the widened splat is the small picture of the fitted."""
    small = robot[0].cameras[:2]
    large = resize_cameras(small, 256, 256)
    wanted = render_splats(fitted.splats, small, depths=False).colours

    def shrunk(splats):
        picture = render_splats(splats, large, depths=False).colours.permute(0, 3, 1, 2)
        return torch.nn.functional.avg_pool2d(picture, 4).permute(0, 2, 3, 1)

    widened = psnr(shrunk(_for_cameras(fitted.splats, small, large)), wanted)
    assert widened > psnr(shrunk(fitted.splats), wanted) + 3
    assert _for_cameras(fitted.splats, large, small) is fitted.splats


def test_start_lies_on_the_object_with_its_colours(robot):
    train = robot[0]
    hull = tight_visual_hull(train, 64)
    splats, spacing = splats_from_hull(hull, train, 3000, 1, torch.Generator().manual_seed(0))
    assert len(splats) == 3000 and splats.sh.shape[1] == 4
    rendered = render_splats(splats, train.cameras, depths=False)
    assert psnr(rendered.colours, on_white(train)) > 15
    colours = colours_from_dc(splats.sh[:, 0])
    assert float(colours.min()) >= 0 and float(colours.max()) <= 1
    # as many discs as would tile the surface at this distance
    area = len(hull.surface_voxels()) * hull.voxel**2
    assert spacing == pytest.approx((area / 3000) ** 0.5, rel=1e-5)
    # thin along the normal: the shortest axis is the third one, which points outward
    assert bool((splats.scales.argmin(-1) == 2).all())


def test_quats_turn_z_to_the_normal():
    normals = torch.nn.functional.normalize(
        torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    normals = torch.cat([normals, torch.tensor([[0, 0, 1.0], [0, 0, -1.0]])])
    turned = quats_to_rotations(quats_from_normals(normals))[..., 2]
    torch.testing.assert_close(turned, normals, rtol=0, atol=1e-5)


def test_a_gpus_fit_comes_after_what_was_enqueued_before_and_before_what_follows(monkeypatch):
    log = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    @contextlib.contextmanager
    def on(stream):
        log.append(f"on {stream.name}")
        yield

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("outer"))
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(fit_stream, "_fit_stream", lambda device: Stream("inner"))
    with pytest.raises(KeyError), fit_stream.on_fit_stream(torch.device("cuda", 0)):
        raise KeyError  # also when the fit is cancelled
    assert log == ["inner waits for outer", "on inner", "outer waits for inner"]
