"""Lets a caller stop a network in the middle of one evaluation, which can take minutes on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def interruptible(network: nn.Module, check: Callable[[], None]) -> Iterator[None]:
    """Call `check` before every block of a network; raising inside it ends the evaluation.

    Blocks are the members of the network's module lists: some dozens in an evaluation, so the cost
    is not measurable.
    """

    def before(module: nn.Module, inputs: object) -> None:
        check()

    lists = [part for part in network.modules() if isinstance(part, (nn.ModuleList, nn.Sequential))]
    blocks = {id(block): block for part in lists for block in part}
    handles = [block.register_forward_pre_hook(before) for block in blocks.values()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
