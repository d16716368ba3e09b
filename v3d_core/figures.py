"""Figures of a fit while it runs, read from the device without ever waiting for it."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

Figures = Callable[[dict[str, float]], None]  # told {"step": ..., "loss": ..., ...} now and then

INTERVAL_S = 0.1  # between two figures: a fit of a second on a GPU still makes a curve


class RunningMeans:
    """Means of sums that a device adds up step by step, told a few times a second.

    On CUDA the sums are copied behind the steps that are enqueued, and told when a later call
    finds that the copy has arrived. No call waits for the device.
    """

    def __init__(self, tell: Callable[[int, list[float]], None], *sums: Tensor) -> None:
        """`tell` gets a step and the means of `sums`, scalars on one device, up to it."""
        self._tell, self._sums = tell, sums
        on_cuda = sums[0].is_cuda
        self._room = torch.empty(len(sums), pin_memory=True) if on_cuda else None
        self._arrival: torch.cuda.Event | None = None
        self._noted: tuple[int, int, int] | None = None  # step, steps taken, sums begun at
        self._told = (0, 0, [0.0] * len(sums))  # steps taken, sums begun at, sums
        self._next = 0.0

    def __call__(self, step: int, taken: int, begun: int) -> None:
        """Look at the sums after `taken` steps; they began at 0 after `begun` steps."""
        if self._noted is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + INTERVAL_S
            self._noted = (step, taken, begun)
            if self._room is not None:
                self._room.copy_(torch.stack(self._sums), non_blocking=True)
                self._arrival = torch.cuda.Event()
                self._arrival.record()
        if self._noted is not None and (self._arrival is None or self._arrival.query()):
            self._arrived(*self._noted)
            self._noted = None

    def _arrived(self, step: int, taken: int, begun: int) -> None:
        sums = [float(x) for x in (self._sums if self._room is None else self._room)]
        told, same_begin, before = self._told
        self._told = (taken, begun, sums)
        if begun != same_begin:  # begun anew since the last time
            told, before = begun, [0.0] * len(sums)
        if taken > told:
            means = [(now - then) / (taken - told) for now, then in zip(sums, before, strict=True)]
            self._tell(step, means)
