"""When a fit does what: learning rates, splits, and how many steps fit into the time there is."""

from __future__ import annotations

import time
from collections import deque

import torch

from ..schedules import exponential
from .config import SplatFitConfig

CUDA_STRIDE = 10  # steps enqueued between two looks at the clock and at Cancel; a few milliseconds
STRIDES_AHEAD = 2  # strides the host may be ahead of the GPU, so that it never waits for the host
FINISH_SHARE = 0.05  # of a time budget kept for what comes after the last step


def rates_at(config: SplatFitConfig, object_size: float, fraction: float) -> dict[str, float]:
    """Adam's learning rates at a fraction of the run."""
    decay = exponential(1.0, config.rates_end, fraction)
    means = exponential(config.means_rate, config.means_rate_end, fraction) * object_size
    return {
        "means": means,
        "log_scales": config.scales_rate * decay,
        "quats": config.quats_rate * decay,
        "logit_opacities": config.opacities_rate * decay,
        "sh_dc": config.sh_rate * decay,
        "sh_rest": config.sh_rate * decay / 20,  # Kerbl et al. 2023: higher bands 20 times slower
    }


def densify_fractions(config: SplatFitConfig) -> list[float]:
    """Fractions of the run after which Gaussians are split, evenly spread over the span."""
    count, first = config.densify_rounds, config.densify_from
    gap = (config.densify_until - first) / max(1, count - 1)
    return [first + gap * i for i in range(count)]


class Pace:
    """Counts steps, keeps the host close to the device, and ends the run.

    With a time budget the number of steps is what the clock allows, at most that of the settings:
    it is planned from the time per step so far, and the schedules shrink with it.
    """

    def __init__(self, config: SplatFitConfig, started: float, device: torch.device) -> None:
        self.steps, self.total = 0, config.steps
        self._most = config.steps
        self.stride = 1
        self.reason = "all steps"
        self._budget, self._started = config.seconds, started
        self._first_step = time.perf_counter()
        self._on_cuda = device.type == "cuda"
        self._pending: deque[tuple[torch.cuda.Event, int]] = deque()  # strides under way

    @property
    def fraction(self) -> float:
        """How much of the run is done, 0 to 1."""
        return min(1.0, self.steps / self.total)

    @property
    def done(self) -> bool:
        """Whether the run is over."""
        return self.steps >= self.total

    def advance(self) -> None:
        """Count one stride; waits where the host is too far ahead."""
        self.steps += self.stride
        if self._on_cuda:
            event = torch.cuda.Event()
            event.record()
            self._pending.append((event, self.stride))
            if len(self._pending) > STRIDES_AHEAD:
                self._pending.popleft()[0].synchronize()
            if self.steps >= CUDA_STRIDE:
                self.stride = max(1, min(CUDA_STRIDE, self.total - self.steps))
        if self._budget:
            self._plan()

    def stop(self, reason: str) -> None:
        """End the run now."""
        self.total, self.reason = self.steps, reason

    def _plan(self) -> None:
        end = self._started + self._budget * (1 - FINISH_SHARE)
        now = time.perf_counter()
        enqueued = sum(stride for _, stride in self._pending)
        finished = max(1, self.steps - enqueued)
        per_step = (now - self._first_step) / finished
        left = end - now - enqueued * per_step
        affordable = self.steps + max(0, int(left / per_step))
        self.total = min(self._most, affordable)
        self.reason = "time budget" if affordable < self._most else "all steps"
