"""What a training run writes down as it goes, and how it is asked to stop."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ..backends import load_summary_writer
from ..formats.atomic import atomic_path

LOG = "log.jsonl"
SAME_SIGNAL_S = 1.0


class TrainingLog:
    """One JSON line for each entry, and the same as curves in TensorBoard where it is asked for.

    Args:
        folder: Gets `log.jsonl`; one that is there is continued.
        step: Where the run stands. Lines of later steps, from a run that died before it saved, go.
        tensorboard: Folder of TensorBoard's events, or None.

    Raises:
        MissingPackageError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, step: int, tensorboard: Path | None = None) -> None:
        self._path = folder / LOG
        self._writer: Any = None
        if tensorboard is not None:
            self._writer = load_summary_writer()(str(tensorboard), purge_step=step + 1)
        if self._path.exists():
            lines = self._path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            with atomic_path(self._path) as temporary:
                temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def add(self, step: int, **values: float | None) -> None:
        """Numbers of one step."""
        given = {name: value for name, value in values.items() if value is not None}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **given}) + "\n")
        for name, value in given.items():
            if self._writer is not None:
                self._writer.add_scalar(name, value, step)

    def show(self, step: int, name: str, picture: Tensor) -> None:  # [H, W, 3] in [0, 1]
        """A picture, for TensorBoard alone."""
        if self._writer is not None:
            self._writer.add_image(name, picture.clamp(0, 1).cpu().numpy(), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is not written yet."""
        if self._writer is not None:
            self._writer.close()


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or a polite kill has come; a second one ends at once.

    Within the block the first signal only raises the flag, so that an update of the weights is
    never cut in half. What comes within a second of it is the same one: torchrun passes on what the
    terminal has sent to all.
    """
    came: list[float] = []

    def note(number: int, frame: object) -> None:
        now = time.monotonic()
        if came and now - came[0] > SAME_SIGNAL_S:
            raise KeyboardInterrupt
        came.append(now)

    before: Mapping[int, Any] = {
        number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
