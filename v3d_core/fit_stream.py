"""How fits use CUDA: a stream of their own, and the precision of products of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def on_fit_stream(device: torch.device) -> Iterator[None]:
    """Scope of a fit on CUDA: a stream of its own, on which graphs can be captured.

    It begins after what was enqueued before, and what is enqueued afterwards waits for it.
    """
    if device.type != "cuda":
        yield
        return
    outer, inner = torch.cuda.current_stream(device), _fit_stream(device)
    inner.wait_stream(outer)
    try:
        with torch.cuda.stream(inner):
            yield
    finally:
        outer.wait_stream(inner)


@cache
def _fit_stream(device: torch.device) -> torch.cuda.Stream:
    """One per device: every new stream would take 32 MB for cuBLAS (measured) and keep it."""
    return torch.cuda.Stream(device)


@contextmanager
def tf32_products(wanted: bool) -> Iterator[None]:
    """Scope in which CUDA may multiply matrices in TF32; afterwards all is as it was.

    The setting is the process's, so it is given back also when a fit is cancelled.
    """
    before = torch.get_float32_matmul_precision()
    if wanted:
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
