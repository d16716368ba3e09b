"""How many threads torch takes beside Warp's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .backends import problem


@contextmanager
def cores_for_warp(device: torch.device, warp_runs: bool | None = None) -> Iterator[None]:
    """Scope of work on the CPU in turn by torch and Warp: torch keeps to one thread.

    torch's OpenMP threads spin for a while after each operation and take the cores from Warp's
    threads; on a busy 2-core machine a splat's fit took 186 s instead of 20 s, and a step of NeuS
    1080 ms instead of 116 ms (measured). With OMP_WAIT_POLICY=PASSIVE, which the command line
    sets, they sleep and help.

    Args:
        device: Where the work is done; on any but the CPU nothing changes.
        warp_runs: Whether Warp's kernels are used; None: where Warp imports.
    """
    before = torch.get_num_threads()
    passive = os.environ.get("OMP_WAIT_POLICY", "").upper() == "PASSIVE"
    if device.type == "cpu" and not passive:
        if not problem("warp") if warp_runs is None else warp_runs:
            torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
