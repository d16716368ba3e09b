"""Frames that agree are left alone; frames that were moved are laid on one object before the fit."""

import dataclasses

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.demo_object import demo_robot
from v3d_core.images import composite, premultiply, unpremultiply
from v3d_core.metrics import psnr
from v3d_core.procedural import render_object
from v3d_core.progress import never, silent
from v3d_core.splats import consensus
from v3d_core.splats.config import SplatFitConfig
from v3d_core.splats.consensus import FEWEST_VIEWS, align_frames, reach_consensus
from v3d_core.splats.fit import fit_splats
from v3d_core.splats.raster import render_splats

SIZE = 96
CONFIG = SplatFitConfig(
    steps=80,
    resolution=SIZE,
    coarse_until=0.0,
    initial_splats=2000,
    max_splats=3000,
    hull_resolution=64,
    densify_rounds=2,
)


@pytest.fixture(scope="module")
def robot():
    train = render_object(
        orbit_cameras(Orbit(num_views=12), SIZE, SIZE), demo_robot(), supersample=2
    )
    between = Orbit(num_views=6, azimuth_start_deg=15.0, elevation_deg=5.0)
    return train, render_object(orbit_cameras(between, SIZE, SIZE), demo_robot(), supersample=2)


@pytest.fixture(scope="module")
def jittered(robot):
    """Every frame shifted by whole pixels of its own, up and down and to the sides."""
    views = robot[0]
    shifts = torch.randint(-2, 3, (len(views), 2), generator=torch.Generator().manual_seed(5))
    planes = torch.cat([premultiply(views.images, views.masks), views.masks[..., None]], dim=-1)
    moved = torch.stack(
        [torch.roll(p, tuple(s), (0, 1)) for p, s in zip(planes, shifts.tolist(), strict=True)]
    )
    images = unpremultiply(moved[..., :3], moved[..., 3])
    return dataclasses.replace(views, images=images, masks=moved[..., 3]), shifts


@pytest.mark.slow
def test_frames_that_agree_are_left_alone(robot):
    assert reach_consensus(robot[0], CONFIG, silent, never) is None


def test_off_and_too_few_views_are_not_even_looked_at(robot):
    def refused(*_, **__):
        raise AssertionError("nothing to report")

    off = dataclasses.replace(CONFIG, align="off")
    assert reach_consensus(robot[0], off, refused, never) is None
    assert reach_consensus(robot[0][: FEWEST_VIEWS - 1], CONFIG, refused, never) is None


@pytest.mark.slow
def test_moved_frames_are_found_reported_and_fitted_better(robot, jittered):
    views, shifts = jittered
    aligned = fit_splats(views, CONFIG)
    assert aligned.report["frames"] == "disagree"
    per_view = aligned.report["per_view"]
    assert len(per_view) == len(views)
    moved = torch.tensor([row["moved_px"] for row in per_view])
    true = shifts.float().norm(dim=-1)
    assert torch.corrcoef(torch.stack([moved, true]))[0, 1] > 0.5
    assert all(row["db_after"] > row["db_before"] for row in per_view)
    # the views that come out lie nearer to the true ones than those that went in
    truth = composite(robot[0].images, robot[0].masks)
    before = psnr(composite(views.images, views.masks), truth)
    assert psnr(composite(aligned.views.images, aligned.views.masks), truth) > before + 1

    plain = fit_splats(views, dataclasses.replace(CONFIG, align="off"))
    assert plain.views is views and "per_view" not in plain.report
    test = robot[1]
    wanted = composite(test.images, test.masks)

    def quality(fit):
        return psnr(render_splats(fit.splats, test.cameras, depths=False).colours, wanted)

    assert quality(aligned) > quality(plain) + 0.5


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(consensus, "FIRST_STEPS", 15)
    monkeypatch.setattr(consensus, "STEPS_BETWEEN", 10)


def test_on_corrects_whatever_is_found(robot, short):
    always = dataclasses.replace(CONFIG, align="on")
    found = reach_consensus(robot[0], always, silent, lambda: True)  # the first comparison only
    assert found is not None and found.views is not robot[0]


def test_frames_are_aligned_for_other_fits_as_for_the_splats(robot, short):
    assert align_frames(robot[0], "off") is None
    always = dataclasses.replace(CONFIG, align="on", seed=3)
    texts = []
    found = align_frames(
        robot[0],
        "on",
        seed=3,
        progress=lambda step, total, preview=None, text="": texts.append(text),
        finish=lambda: True,
    )
    wanted = reach_consensus(robot[0], always, silent, lambda: True)
    assert found is not None and wanted is not None and texts
    assert torch.equal(found.views.images, wanted.views.images)
    assert found.per_view == wanted.per_view


@pytest.mark.slow
def test_alignment_can_be_cancelled_and_finished(jittered, short):
    class Cancelled(BaseException):
        pass

    always = dataclasses.replace(CONFIG, align="on")  # after so few steps nothing is certain
    texts = []

    def progress(step, total, preview=None, text=""):
        texts.append(text)
        if "round 2" in text:
            raise Cancelled

    with pytest.raises(Cancelled):
        reach_consensus(jittered[0], always, progress, never)
    assert texts[0] == "Do the frames agree?" and len(texts) > 5
    texts.clear()
    assert reach_consensus(jittered[0], always, progress, lambda: True) is not None
    assert not any("round 2" in text for text in texts)
