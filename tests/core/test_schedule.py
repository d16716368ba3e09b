"""When a fit does what, on a clock that the test moves."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from v3d_core.splats import schedule
from v3d_core.splats.config import SPLAT_PRESETS, SplatFitConfig
from v3d_core.splats.schedule import CUDA_STRIDE, STRIDES_AHEAD, Pace, densify_fractions, rates_at

CPU = torch.device("cpu")
CONFIG = SplatFitConfig(steps=300)


class Clock:
    """Time of a host and of a device that works through what the host enqueued."""

    def __init__(self):
        self.now = 100.0
        self.device_done = 100.0

    def perf_counter(self):
        return self.now

    def event(self):
        """Stands in for `torch.cuda.Event`."""
        clock = self

        class Event:
            def record(self):
                self.done = clock.device_done

            def synchronize(self):
                clock.now = max(clock.now, self.done)

        return Event()


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(schedule, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    monkeypatch.setattr(torch.cuda, "Event", clock.event)
    return clock


def run(clock, config, cost, before=0.0, device=CPU):
    """Run a fit whose step k takes `cost(k, fraction)` seconds, after `before` seconds of carving.

    Returns:
        The pace, the fraction before every stride, and the seconds until the device is idle.
    """
    started = clock.now
    clock.now += before
    pace = Pace(config, started, device)
    fractions = []
    while not pace.done:
        fractions.append(pace.fraction)
        for k in range(pace.steps, pace.steps + pace.stride):
            seconds = cost(k, pace.fraction)
            if device.type == "cuda":  # the host only enqueues
                clock.now += 1e-5
                clock.device_done = max(clock.device_done, clock.now) + seconds
            else:
                clock.now += seconds
        pace.advance()
        assert len(fractions) < 100_000, "never ends"
    return pace, fractions, max(clock.now, clock.device_done) - started


DEVICES = [pytest.param(CPU, id="cpu"), pytest.param(torch.device("cuda"), id="cuda")]
COSTS = {
    "even": lambda k, fraction: 0.01,
    "three times slower with more splats": lambda k, fraction: 0.005 * (1 + 2 * fraction),
    "slow first step": lambda k, fraction: 1.0 if k == 0 else 0.01,
    "in waves": lambda k, fraction: 0.01 * (1.5 + math.sin(k / 7)),
    "faster than the clock": lambda k, fraction: 1e-4,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("before", [0.0, 1.3])
@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS.keys())
def test_a_time_budget_is_used_and_kept(clock, device, before, cost):
    config = dataclasses.replace(CONFIG, steps=100_000, seconds=6.0)
    pace, fractions, seconds = run(clock, config, cost, before, device)
    # a GPU also finishes the strides under way, here of slow steps
    assert 0.9 * 6.0 <= seconds <= (6.0 if device == CPU else 1.05 * 6.0)
    assert pace.reason == "time budget" and pace.fraction == 1
    # the schedules have run to their end: nothing is cut off half way
    assert fractions[-1] > 0.9


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seconds", [2.0, 30.0])
def test_a_budget_shrinks_the_schedules(clock, device, seconds):
    """Whatever the budget, half of it is half the run."""
    config = dataclasses.replace(CONFIG, steps=100_000, seconds=seconds)
    half_way = []

    def cost(k, fraction):
        if clock.now - 100 >= seconds * 0.95 / 2:
            half_way.append(fraction)
        return 0.01

    pace, _, _ = run(clock, config, cost, device=device)
    assert pace.steps == pytest.approx(seconds * 0.95 / 0.01, rel=0.1)
    # the host may be two strides ahead of the GPU, and is enqueuing the next
    ahead = 0 if device == CPU else (STRIDES_AHEAD + 1) * CUDA_STRIDE / pace.steps
    assert 0.47 <= half_way[0] <= 0.53 + ahead


@pytest.mark.parametrize("device", DEVICES)
def test_a_generous_budget_adds_no_steps(clock, device):
    config = dataclasses.replace(CONFIG, seconds=50.0)  # 300 steps at 10 ms take 3 s
    pace, fractions, seconds = run(clock, config, lambda k, fraction: 0.01, device=device)
    assert pace.steps == CONFIG.steps and pace.reason == "all steps"
    assert seconds < 4 and fractions == sorted(set(fractions))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("before", [0.0, 0.96, 50.0])
def test_there_is_always_a_step(clock, device, before):
    config = dataclasses.replace(CONFIG, seconds=1.0)
    pace, _, _ = run(clock, config, lambda k, fraction: 7.0, before, device)
    assert 1 <= pace.steps <= (1 if device == CPU else 1 + CUDA_STRIDE)
    assert pace.done and pace.reason == "time budget"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 25, 300])
def test_without_a_budget_every_step_is_taken_and_none_more(clock, device, steps):
    taken = []
    config = dataclasses.replace(CONFIG, steps=steps)
    pace, fractions, _ = run(clock, config, lambda k, fraction: taken.append(k) or 5.0, 0.0, device)
    assert taken == list(range(steps)) and pace.steps == steps
    assert pace.reason == "all steps"
    assert fractions[0] == 0 and fractions == sorted(set(fractions))


def test_the_host_is_only_a_little_ahead_of_the_gpu(clock):
    ahead = []

    def cost(k, fraction):
        ahead.append(clock.device_done - clock.now)
        return 0.01

    run(clock, CONFIG, cost, device=torch.device("cuda"))
    # two strides under way, and the one being enqueued
    assert max(ahead) <= (STRIDES_AHEAD + 1) * CUDA_STRIDE * 0.01
    # ... and never behind: the GPU has work all the time
    assert min(ahead[1:]) > 0


def test_a_run_can_be_stopped(clock):
    pace = Pace(CONFIG, clock.now, CPU)
    pace.advance()
    pace.stop("finish now")
    assert pace.done and pace.steps == 1 and pace.reason == "finish now" and pace.fraction == 1


def test_rates_fall_log_linearly_between_their_ends():
    config = dataclasses.replace(CONFIG, means_rate=1e-2, means_rate_end=1e-4, rates_end=0.25)
    first, middle, last = (rates_at(config, 2.0, fraction) for fraction in (0.0, 0.5, 1.0))
    assert first["means"] == pytest.approx(2e-2) and last["means"] == pytest.approx(2e-4)
    for name in first:
        assert middle[name] == pytest.approx(math.sqrt(first[name] * last[name]))
        if name != "means":
            assert last[name] == pytest.approx(first[name] / 4)


def test_rates_are_those_of_the_settings():
    config = dataclasses.replace(
        CONFIG, scales_rate=0.1, quats_rate=0.2, opacities_rate=0.3, sh_rate=0.4, rates_end=1.0
    )
    small, large = rates_at(config, 1.0, 0.7), rates_at(config, 3.0, 0.7)
    assert large.pop("means") == pytest.approx(3 * small.pop("means"))  # only places have a size
    assert small == large
    assert small == pytest.approx(
        {"log_scales": 0.1, "quats": 0.2, "logit_opacities": 0.3, "sh_dc": 0.4, "sh_rest": 0.02}
    )


@pytest.mark.parametrize("preset", SPLAT_PRESETS)
def test_splits_are_spread_evenly_from_first_to_last(preset):
    config = SPLAT_PRESETS[preset]
    fractions = densify_fractions(config)
    assert len(fractions) == config.densify_rounds
    assert fractions[0] == config.densify_from
    assert fractions[-1] == pytest.approx(config.densify_until)
    gaps = torch.tensor(fractions).diff()
    torch.testing.assert_close(gaps, gaps[:1].expand_as(gaps))


def test_one_round_splits_at_the_start_of_the_span_and_none_never():
    assert densify_fractions(dataclasses.replace(CONFIG, densify_rounds=1)) == [0.1]
    assert densify_fractions(dataclasses.replace(CONFIG, densify_rounds=0)) == []
