"""How the NeuS fit goes on from step to step: levels, rates, annealing, looking for the surface."""

import dataclasses
import itertools

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.demo_object import sphere_object
from v3d_core.neus.config import NeusFitConfig
from v3d_core.neus.fit import fit_neus
from v3d_core.procedural import render_object

TINY = NeusFitConfig(
    steps=6,
    rays=64,
    samples=8,
    start_resolution=32,
    levels=3,
    coarsest=8,
    finest=32,
    log2_entries=12,
    hidden=8,
)


@pytest.fixture(scope="module")
def few():
    """Five views of a ball, 32 px."""
    cameras = orbit_cameras(Orbit(num_views=5), 32, 32)
    return render_object(cameras, sphere_object(), supersample=1)


def test_levels_join_one_by_one(few):
    """At a third of the way from 1 to 4 levels two are in; after the way all."""
    seen = []
    config = dataclasses.replace(
        TINY, steps=20, levels=4, active_levels=1, active_until=0.6, finest=32
    )

    def progress(step, total, preview=None, text=""):
        if preview is not None:
            field = preview.__self__.field
            seen.append((step, field.level_weights[::2].tolist()))

    fit = fit_neus(few, config, progress=progress)
    weights = dict(seen)
    assert weights[2] == [1, 0, 0, 0]  # scheduled at step 0
    assert weights[6] == pytest.approx([1, 1, 0, 0]) and weights[20] == [1, 1, 1, 1]
    assert all(b >= a for (_, one), (_, two) in itertools.pairwise(seen) for a, b in zip(one, two))
    assert bool((fit.field.level_weights == 1).all())


def test_surface_is_looked_for_again_as_the_fit_goes_on(few):
    """Only near the start; what is known of the start itself stays."""
    known, exact = [], []

    def progress(step, total, preview=None, text=""):
        if preview is not None:
            run = preview.__self__
            stepper, size = run.stepper, len(run.stepper.known[0])
            cells = (torch.nonzero(stepper.known[1] < stepper.band) + 0.5) / size * 2 - 1
            found = run.field.sdf(run.field.centre + cells * run.field.half_size)
            known.append(stepper.known.clone())
            exact.append((stepper.known[1] < stepper.band, found))

    fit_neus(few, dataclasses.replace(TINY, steps=12, refresh_steps=4), progress=progress)
    start = known[0][1]
    assert torch.equal(known[0][0], start) and torch.equal(known[-1][1], start)
    # told at 2, 4, 6, ...: what is known at 6 was looked up at 4, as the field was then
    for told, looked in ((2, 1), (4, 3)):
        near, found = exact[looked]
        torch.testing.assert_close(known[told][0][near], found, rtol=0, atol=1e-6)
        assert torch.equal(known[told][0][~near], start[~near])
        assert not torch.equal(known[told][0], start)


def test_back_faces_stop_counting_by_the_middle_of_the_run(few):
    seen = []

    def progress(step, total, preview=None, text=""):
        if preview is not None:
            seen.append(float(preview.__self__.stepper.anneal))

    fit_neus(few, dataclasses.replace(TINY, steps=8, anneal_until=0.5), progress=progress)
    assert seen == pytest.approx([0, 0.5, 1, 1])  # as scheduled at steps 0, 2, 4 and 6


def test_rates_rise_and_then_fall_to_their_share(few):
    seen = []

    def progress(step, total, preview=None, text=""):
        if preview is not None:
            groups = preview.__self__.stepper.adam.param_groups
            seen.append({group["name"]: group["lr"] for group in groups})

    config = dataclasses.replace(TINY, steps=20, warm_up=0.2, rates_end=0.1)
    fit_neus(few, config, progress=progress)
    for name in ("table", "network", "inv_s"):
        rate = getattr(config, f"{name}_rate")
        got = [one[name] / rate for one in seen]
        wanted = [max(1e-3, min(1, f / 0.2)) * 0.1**f for f in (k / 10 for k in range(10))]
        assert got == pytest.approx(wanted)
