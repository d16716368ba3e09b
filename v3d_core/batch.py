"""Many items by several processes: claimed, prepared, computed and written in overlapping steps.

`work` is what one process does; it needs nothing but the shared folder, so any scheduler may start
it anywhere. `batch_workers` starts it in processes of this machine.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .batch_claims import BEAT_SECONDS, MAX_ATTEMPTS, Claim
from .batch_store import LOGS, BatchFolder, Item, ItemLog, Stopped, Tell, fingerprint, settings_hash

POLL_SECONDS = 1.0  # between looks at items that others hold
WATCH_SECONDS = 0.2  # between looks at a stop
WRITE_SECONDS = 0.5  # after a stop, for what is nearly written


class Stages(Protocol):
    """What is done to an item, in three steps that overlap with those of its neighbours.

    `prepare` and `finish` run in threads beside `compute` and keep off the accelerator, whose
    work they could break (CUDA forbids most calls while another thread captures a graph).
    """

    def settings(self, item: Item) -> dict[str, Any]:
        """All that decides about the result besides the input."""
        ...

    def prepare(self, item: Item, log: ItemLog) -> Any:
        """Read the input."""
        ...

    def compute(self, item: Item, prepared: Any, folder: Path, log: ItemLog) -> Any:
        """The work itself, in the main thread; may write files into the item's new folder."""
        ...

    def finish(self, item: Item, computed: Any, folder: Path, log: ItemLog) -> dict[str, Any]:
        """Write what is left; returns what goes into the item's record, such as `scores`."""
        ...


@dataclass
class _Job:
    """An item on its way through the stages."""

    item: Item
    claim: Claim
    log: ItemLog
    input: dict[str, Any] | None = None
    value: Any = None
    folder: Path | None = None
    seconds: float = 0.0  # of its steps, without waiting between them


def work(
    items: Sequence[Item],
    store: BatchFolder,
    stages: Stages,
    *,
    since: float,
    tell: Tell = lambda event, row: None,
    stop: threading.Event | None = None,
) -> None:
    """Do the items that nobody else does, until all have ended; see the module.

    Args:
        items: All of the batch, in any order; each is done by one of the processes that share it.
        store: The folder they share.
        stages: What to do.
        since: Time of `store.claims.now` when the batch began; what failed before is tried again.
        tell: Told of every item that is taken and that ended here.
        stop: Ends the work when set; all claims are released.
    """
    _Worker(items, store, stages, since, tell, stop or threading.Event()).run()


class _Worker:
    def __init__(
        self,
        items: Sequence[Item],
        store: BatchFolder,
        stages: Stages,
        since: float,
        tell: Tell,
        stop: threading.Event,
    ) -> None:
        self.items, self.store, self.stages = items, store, stages
        self.since, self.tell, self.stop = since, tell, stop
        self.room = threading.Semaphore(1)  # one item is claimed and prepared ahead
        self.ready: queue.Queue[_Job | None] = queue.Queue()
        self.computed: queue.Queue[_Job | None] = queue.Queue(maxsize=1)
        self.broken: list[BaseException] = []  # what ended a thread
        self.over = threading.Event()
        self.alone = False  # whether the item claimed last has to end before the next

    def run(self) -> None:
        targets = (self._prepare_all, self._finish_all, self._beat)
        reader, writer, beater = (threading.Thread(target=t, daemon=True) for t in targets)
        for thread in (reader, writer, beater):
            thread.start()
        try:
            while (job := self._next(self.ready)) is not None:
                self.room.release()
                if self._guard(job, self._compute):
                    self._put(job)
            self._put(None)
            while writer.is_alive() and not self.stop.is_set():
                writer.join(WATCH_SECONDS)
        finally:
            if self.stop.is_set():
                writer.join(WRITE_SECONDS)  # what is nearly there shall be kept
            self.over.set()
            for claim in self.store.claims.release_all():
                self.store.remove_staging(claim)
        if self.broken:
            raise self.broken[0]

    # --- the three steps

    def _prepare_all(self) -> None:
        try:
            for job in self._jobs():
                if self._guard(job, self._prepare):
                    self.ready.put(job)
                else:
                    self.room.release()
        except Stopped:
            pass
        except BaseException as error:
            self.broken.append(error)
        self.ready.put(None)

    def _prepare(self, job: _Job) -> None:
        self.store.clean(job.item.name)
        if job.claim.attempt > MAX_ATTEMPTS:
            raise RuntimeError(
                f"{MAX_ATTEMPTS} processes died at work on it; they may have been short of memory"
            )
        self.store.check_free(job.item.name)
        job.folder = self.store.staging(job.claim)
        job.input = fingerprint(job.item)
        job.value = self.stages.prepare(job.item, job.log)

    def _compute(self, job: _Job) -> None:
        assert job.folder is not None
        job.value = self.stages.compute(job.item, job.value, job.folder, job.log)

    def _finish_all(self) -> None:
        try:
            while (job := self._next(self.computed)) is not None:
                self._guard(job, self._finish)
        except BaseException as error:
            self.broken.append(error)
            self.stop.set()

    def _finish(self, job: _Job) -> None:
        assert job.folder is not None
        start = time.perf_counter()
        found = self.stages.finish(job.item, job.value, job.folder, job.log)
        job.seconds += time.perf_counter() - start
        settings = self.stages.settings(job.item)
        record = {
            **self._row(job, "done"),
            "input": job.input,
            "settings_sha256": settings_hash(settings),
            "settings": settings,
            **found,
        }
        self.store.publish(job.folder, job.claim, record)
        self._end(job, record)

    # --- items, their ends

    def _jobs(self) -> Iterator[_Job]:
        """Items that could be claimed; waits for those of others, who may die."""
        left = list(self.items)
        while left:
            held = []
            for item in left:
                while not self.room.acquire(timeout=WATCH_SECONDS):
                    self._check()
                claim = None
                if not self.store.ended(item.name, self.since):
                    claim = self._claim(item)
                    if claim is None:
                        held.append(item)
                    elif self.store.ended(item.name, self.since):  # between the two looks
                        claim.release()
                        claim = None
                self._check()
                if claim is None:
                    self.room.release()
                    continue
                log = ItemLog(self.store.out / LOGS / f"{item.name}.log", self.stop)
                job = _Job(item, claim, log)
                tries = f", attempt {claim.attempt}" if claim.attempt > 1 else ""
                log.line(f"{item.kind} {item.source}, process {os.getpid()}{tries}")
                self.tell("took", self._row(job, "working"))
                yield job
            left = held
            if left and self.stop.wait(POLL_SECONDS):
                raise Stopped

    def _claim(self, item: Item) -> Claim | None:
        """Claim an item; one whose holder died has this process to itself.

        So what kills processes is known by the third one, and its neighbours are not blamed.
        """
        claims = self.store.claims
        while claims.live and (self.alone or claims.attempts(item.name)):
            if not self.alone and not claims.free(item.name):
                return None
            if self.stop.wait(WATCH_SECONDS):
                raise Stopped
        claim = claims.take(item.name)
        if claim is not None:
            self.alone = claim.attempt > 1
        return claim

    def _guard(self, job: _Job, step: Callable[[_Job], None]) -> bool:
        """Run a step; its error is the item's end and nobody else's."""
        start = time.perf_counter()
        try:
            if self.stop.is_set() and step != self._finish:
                raise Stopped
            step(job)
            if step != self._finish:  # which adds its own, for the record that it writes
                job.seconds += time.perf_counter() - start
            return True
        except Stopped:
            job.log.line("stopped")
            return False
        except Exception as error:
            if self.stop.is_set():  # perhaps its consequence
                job.log.line(f"stopped ({type(error).__name__}: {error})")
                return False
            job.log.error(error)
            job.seconds += time.perf_counter() - start
            row = {**self._row(job, "failed"), "error": f"{type(error).__name__}: {error}"}
            try:
                if job.claim.held():
                    self.store.fail(row)
            except OSError as unwritable:
                job.log.error(unwritable)
            self._end(job, row)
            return False

    def _end(self, job: _Job, row: dict[str, Any]) -> None:
        job.log.line(f"{row['state']} after {row['seconds']:.1f} s")
        self.store.remove_staging(job.claim)
        job.claim.release()
        self.tell("ended", row)

    def _row(self, job: _Job, state: str) -> dict[str, Any]:
        item = job.item
        return {
            "name": item.name,
            "kind": item.kind,
            "source": str(item.source),
            "state": state,
            "seconds": round(job.seconds, 2),
        }

    # --- threads

    def _beat(self) -> None:
        while not self.over.wait(BEAT_SECONDS):
            self.store.claims.beat()

    def _check(self) -> None:
        if self.stop.is_set() or self.over.is_set():
            raise Stopped

    def _next(self, source: queue.Queue[_Job | None]) -> _Job | None:
        while True:
            with suppress(queue.Empty):
                return source.get(timeout=WATCH_SECONDS)
            if self.stop.is_set() or self.over.is_set():
                return None

    def _put(self, job: _Job | None) -> None:
        while not self.stop.is_set():
            with suppress(queue.Full):
                return self.computed.put(job, timeout=WATCH_SECONDS)
