"""Figures of a running fit: means since the last look, also when the sums begin anew."""

import pytest
import torch

from v3d_core import figures
from v3d_core.figures import RunningMeans


@pytest.fixture
def always(monkeypatch):
    monkeypatch.setattr(figures, "INTERVAL_S", 0.0)


def test_means_are_those_of_the_steps_since_the_last_look(always):
    told, total = [], torch.zeros(())
    means = RunningMeans(lambda step, values: told.append((step, values)), total)
    for step, value in enumerate([4.0, 2.0, 6.0], start=1):
        total += value
        if step != 2:
            means(step, step, 0)
    assert told == [(1, [4.0]), (3, [4.0])]


def test_sums_that_begin_anew_do_not_count_twice(always):
    told, total = [], torch.zeros(())
    means = RunningMeans(lambda step, values: told.append(values), total)
    total += 10.0
    means(1, 1, 0)
    total.zero_()
    total += 5.0 + 7.0
    means(3, 3, 1)
    assert told == [[10.0], [6.0]]


def test_figures_come_a_few_times_a_second_only():
    told, total = [], torch.ones(())
    means = RunningMeans(lambda step, values: told.append(step), total)
    for step in range(1, 50):
        means(step, step, 0)
    assert told == [1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda_the_means_arrive_later_and_are_right(always):
    told, total = [], torch.zeros((), device="cuda")
    means = RunningMeans(lambda step, values: told.append((step, values)), total)
    for step in range(1, 8):
        total += step
        means(step, step, 0)
        torch.cuda.synchronize()
    # whichever steps were told: mean times steps since the last adds up to the sum so far
    steps = [0, *(step for step, _ in told)]
    parts = [
        values[0] * (step - before) for (step, values), before in zip(told, steps, strict=False)
    ]
    assert sum(parts) == pytest.approx(steps[-1] * (steps[-1] + 1) / 2)
    assert steps[-1] >= 6 and told[0] == (1, [1.0])
