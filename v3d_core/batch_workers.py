"""Worker processes of a batch on this machine: started, watched, stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from .batch import WATCH_SECONDS, Stages, work
from .batch_claims import this_host
from .batch_store import BatchFolder, Item, Tell

STOP_SECONDS = 1.0  # workers have to end by themselves before they are killed


@dataclass
class _Process:
    """A worker as its parent sees it."""

    slot: int
    process: Any  # of a spawn context
    pipe: connection.Connection
    took: int = 0


def run_workers(
    items: Sequence[Item],
    store: BatchFolder,
    make_stages: Callable[[], Stages],
    places: Sequence[dict[str, str]],
    *,
    since: float,
    tell: Tell,
    tick: Callable[[], None] = lambda: None,
) -> None:
    """Do items in one process per place, and start another for one that dies.

    Args:
        items, store, since, tell: As for `work`.
        make_stages: Makes a process's stages, in it; a function that can be pickled.
        places: Environment variables of each process, such as CUDA_VISIBLE_DEVICES.
        tick: Called several times a second.

    Raises:
        RuntimeError: The stages cannot be made, or processes die without taking any item.
        KeyboardInterrupt: As it came; the workers have ended then and hold no claims.
    """
    context = multiprocessing.get_context("spawn")

    def start(slot: int) -> _Process:
        here, there = context.Pipe()
        arguments = (there, tuple(items), store.out, store.claims.stale_seconds, make_stages, since)
        process = context.Process(target=_worker, args=arguments, daemon=True)
        with _environment(places[slot]), _no_interrupts():
            process.start()
        there.close()
        pids.add(process.pid or 0)
        return _Process(slot, process, here)

    pids: set[int] = set()
    running: list[_Process] = []
    try:
        for slot in range(len(places)):
            running.append(start(slot))
        while running:
            tick()
            pipes = [worker.pipe for worker in running]
            for pipe in connection.wait(pipes, timeout=WATCH_SECONDS):
                worker = next(worker for worker in running if worker.pipe is pipe)
                try:
                    event, row = worker.pipe.recv()
                except (EOFError, OSError):
                    running.remove(worker)
                    worker.process.join()
                    if worker.process.exitcode:
                        if not worker.took:
                            raise RuntimeError(
                                "a worker process ended before it took any item, with exit code "
                                f"{worker.process.exitcode}"
                            ) from None
                        running.append(start(worker.slot))
                    continue
                if event == "broken":
                    raise RuntimeError(row["error"])
                worker.took += event == "took"
                tell(event, row)
    finally:
        _end_workers(running, store, pids, tell)


def _end_workers(running: list[_Process], store: BatchFolder, pids: set[int], tell: Tell) -> None:
    for worker in running:
        with suppress(OSError):
            worker.pipe.send("stop")
    deadline = time.monotonic() + STOP_SECONDS
    for worker in running:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
        with suppress(EOFError, OSError):
            while worker.pipe.poll():
                event, row = worker.pipe.recv()
                if event == "ended":
                    tell(event, row)
    for name in store.claims.release_of({(this_host(), pid) for pid in pids}):
        store.clean(name)


def _worker(
    pipe: connection.Connection,
    items: Sequence[Item],
    out: Path,
    stale_seconds: float,
    make_stages: Callable[[], Stages],
    since: float,
) -> None:
    """A worker process: `work`, its news to the parent, the parent's stop or end noticed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to end
    stop, sending = threading.Event(), threading.Lock()

    def tell(event: str, row: dict[str, Any]) -> None:
        with sending, suppress(OSError):  # the parent may be gone
            pipe.send((event, row))

    def listen() -> None:
        with suppress(EOFError, OSError):
            pipe.recv()
        stop.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        stages = make_stages()
        store = BatchFolder(out, stale_seconds)
        work(items, store, stages, since=since, tell=tell, stop=stop)
        if stop.is_set():
            os._exit(0)  # torch and Warp take a second to put themselves away
    except Exception as error:
        tell("broken", {"error": f"{type(error).__name__}: {error}"})
        raise SystemExit(1) from error


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Variables for processes that start in the block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Processes that start in the block ignore Ctrl-C, which the terminal sends to all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
