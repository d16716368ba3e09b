"""The worker of a batch on a Ray cluster: an actor, which needs nothing but the shared folder."""

from __future__ import annotations

import os
import platform
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import __version__
from .batch import WATCH_SECONDS, WRITE_SECONDS, Stages, work
from .batch_claims import this_host
from .batch_store import BatchFolder, Item, kept_names

News = list[tuple[str, dict[str, Any]]]  # events and rows, as a `Tell` is told them


@dataclass(frozen=True)
class RayOrder:
    """What a worker needs to begin; its items are not none."""

    items: tuple[Item, ...]
    out: Path
    stale_seconds: float
    make_stages: Callable[[], Stages]
    since: float
    folder: str  # the driver's working folder, which relative paths start from
    mark: Path  # a file that the driver has made in `out`
    version: str = __version__

    def store(self) -> BatchFolder:
        """The shared folder, as this machine sees it.

        Raises:
            FileNotFoundError: This machine does not see it: it would do everything again.
            RuntimeError: Another version of v3d is installed here.
        """
        with suppress(OSError):
            os.chdir(self.folder)
        if self.version != __version__:
            raise RuntimeError(
                f"{platform.node()} has v3d {__version__}, the driver {self.version}; "
                "install one version on all machines of the cluster"
            )
        for path in (self.mark, self.items[0].source):
            if not path.exists():
                raise FileNotFoundError(
                    f"{platform.node()} does not see {path}; all machines of the cluster have to "
                    "see FOLDER, DIR and the models at the same paths"
                )
        return BatchFolder(self.out, self.stale_seconds)


class RayWorker:
    """An actor: `batch.work` in a thread, so that the driver can ask for its news and stop it.

    Every method may be called again when its answer was lost.
    """

    def __init__(self) -> None:
        self.stop_now = threading.Event()
        self.told: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.thread: threading.Thread | None = None
        self.end: News = []  # how the work has ended; told again each time, for answers get lost

    def where(self) -> tuple[str, int]:
        """Host and process id, as they stand in this worker's claims."""
        return this_host(), os.getpid()

    def kept(self, order: RayOrder) -> News:
        """Names of the items whose results are there already, and that this is all."""
        store = order.store()
        names = kept_names(order.items, store, order.make_stages().settings)
        return [("kept", {"names": names}), ("over", {})]

    def begin(self, order: RayOrder) -> News:
        """Start to work; errors of the options and of the machine are raised here."""
        if self.thread is None:
            store, stages = order.store(), order.make_stages()
            self.thread = threading.Thread(
                target=self._work, args=(order, store, stages), daemon=True
            )
            self.thread.start()
        return []

    def news(self) -> News:
        """What `work` has told since, for which it waits a moment, and whether it is over."""
        end, found = self.end, []  # in this order: what is told before the end is there then
        with suppress(queue.Empty):
            found.append(self.told.get(timeout=0 if end else WATCH_SECONDS))
            while True:
                found.append(self.told.get_nowait())
        return found + end

    def stop(self) -> News:
        """End the work and free its items; the last news."""
        self.stop_now.set()
        if self.thread is not None:
            self.thread.join(WRITE_SECONDS + WATCH_SECONDS)  # then it will be killed
        return self.news()

    def _work(self, order: RayOrder, store: BatchFolder, stages: Stages) -> None:
        try:
            work(
                order.items,
                store,
                stages,
                since=order.since,
                tell=lambda event, row: self.told.put((event, row)),
                stop=self.stop_now,
            )
            self.end = [("over", {})]
        except Exception as error:
            self.end = [("broken", {"error": f"{type(error).__name__}: {error}"})]
