"""Step to value: the schedules of the fitters."""

from __future__ import annotations


def exponential(start: float, end: float, fraction: float) -> float:
    """`start` at fraction 0 to `end` at fraction 1, a straight line in the logarithm."""
    return start * (end / start) ** min(max(fraction, 0.0), 1.0)
