"""How long work reports where it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

Preview = Callable[[], Tensor]  # renders an [H, W, 3] sRGB picture when somebody wants to see it


class Progress(Protocol):
    """Called once per step; raising inside it is how a caller cancels the work.

    The callee renders `preview` only if it shows pictures, so an unseen preview costs nothing.
    """

    def __call__(
        self, step: int, total: int, preview: Preview | None = None, text: str = ""
    ) -> None:
        """Report that `step` of `total` steps are done, with a line of text for people."""
        ...


def silent(step: int, total: int, preview: Preview | None = None, text: str = "") -> None:
    """A `Progress` nobody watches."""


def never() -> bool:
    """A `finish` nobody presses."""
    return False
