"""`v3d batch`: thousands of pictures or orbits, by `image-to-3d` and `reconstruct`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import psutil
import torch

from . import __version__
from .backends import load
from .batch import Stages
from .batch_items import find_items
from .batch_ray import RayWorkers
from .batch_ray_cluster import connected, ray_places
from .batch_store import (
    LOGS,
    ORBIT,
    PICTURE,
    SUMMARY,
    TABLE,
    BatchFolder,
    Item,
    Tell,
    kept_names,
    row_of,
)
from .batch_workers import run_workers
from .cli_batch_stages import FromOptions
from .cli_generate import add_orbit_options
from .cli_input import add_hold_out, add_view_options
from .cli_shared import EXIT_FAILURE, chosen_device, complain, say, shown_options
from .reconstruct import prepare_output

SUMMARY_SECONDS = 10.0  # between summaries while the batch runs
LOG_LINE_SECONDS = 10.0  # between lines of progress in a log
TERMINAL_LINE_SECONDS = 0.5  # on a terminal, where it is one line
WORKERS_PER_GPU = 3  # so that one fits while others unwrap or write, on the CPU
WORKER_GIB = 3  # for each, of the GPU's memory and of the machine's
MODEL_WORKER_GIB = 12  # the same where there are pictures, for the video model
WORKER_CORES = 4  # for each of a GPU's workers
_SHOWN_FAILURES = 10  # the rest is counted


def add_batch_command(commands: Any) -> argparse.ArgumentParser:
    """Add `batch`; the caller adds the options of fit and mesh."""
    batch = commands.add_parser(
        "batch", help="all pictures and orbits of a folder, on all GPUs; goes on after a stop"
    )
    batch.add_argument(
        "folder", type=Path, metavar="FOLDER", help="pictures, videos, folders of frames, data sets"
    )
    batch.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="gets a folder for each; several machines may share it",
    )
    batch.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes; default: up to 3 on each CUDA device, as its memory and the cores allow, else 1",
    )
    batch.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="workers on all machines of a running Ray cluster, which share FOLDER and DIR: auto or "
        "HOST:PORT; default of --workers: one per CUDA device of the cluster, else per machine",
    )
    add_orbit_options(batch)
    add_view_options(batch)
    add_hold_out(batch)
    batch.set_defaults(run=run_batch)
    return batch


def run_batch(options: argparse.Namespace) -> int:
    """Every item that is not there yet; the exit code says whether any failed."""
    items, others = find_items(options.folder, options.out, options.masks)
    kinds = Counter(item.kind for item in items)
    worker_options = argparse.Namespace(**{k: v for k, v in vars(options).items() if k != "run"})
    make_stages = partial(FromOptions, worker_options, bool(kinds[PICTURE]))
    with _chosen_workers(
        options, make_stages, bool(kinds[PICTURE])
    ) as workers:  # says what is wrong before the long part
        return _run_items(options, items, others, workers)


class Workers(Protocol):
    """Who does the items: `LocalWorkers` or `batch_ray.RayWorkers`."""

    def kept(self, items: Sequence[Item], store: BatchFolder) -> Collection[str]:
        """Names of items whose results are there already."""
        ...

    def run(
        self,
        items: Sequence[Item],
        store: BatchFolder,
        *,
        since: float,
        tell: Tell,
        tick: Callable[[], None],
    ) -> None:
        """Do items; see `batch_workers.run_workers`."""
        ...


class LocalWorkers:
    """Processes of this machine; places as of `run_workers`."""

    def __init__(self, make_stages: Callable[[], Stages], places: Sequence[dict[str, str]]) -> None:
        self.make_stages, self.places = make_stages, places
        self.stages = make_stages()

    def kept(self, items: Sequence[Item], store: BatchFolder) -> Collection[str]:
        """Names of items whose results are there already."""
        return kept_names(items, store, self.stages.settings)

    def run(self, items: Sequence[Item], store: BatchFolder, **watching: Any) -> None:
        """Do items; see `batch_workers.run_workers`."""
        run_workers(items, store, self.make_stages, self.places[: len(items)], **watching)


@contextmanager
def _chosen_workers(
    options: argparse.Namespace, make_stages: Callable[[], Stages], pictures: bool
) -> Iterator[Workers]:
    if options.ray_address is None:
        places = worker_places(options.device, options.workers, pictures)
        yield LocalWorkers(make_stages, places)
        return
    ray = load("ray")
    with connected(ray, options.ray_address):
        places = ray_places(ray.nodes(), options.device, options.workers)
        say(f"Ray cluster {options.ray_address}: {places.text()}")
        yield RayWorkers(ray, make_stages, places)


def _run_items(
    options: argparse.Namespace, items: Sequence[Item], others: dict[str, str], workers: Workers
) -> int:
    kinds = Counter(item.kind for item in items)
    prepare_output(options.out)
    store = BatchFolder(options.out)
    since = store.claims.now()  # before the look at what is there, so that nothing is missed
    say(
        f"{options.folder}: {kinds[PICTURE]:,} pictures (as v3d image-to-3d), {kinds[ORBIT]:,} "
        f"orbits (as v3d reconstruct), {len(others):,} others left out"
    )
    for name, reason in others.items():
        complain(f"left out: {name}: {reason}")
    board = Board(items, store, options, others, since)
    if not options.overwrite:
        names = set(workers.kept(items, store))
        for item in items:
            if item.name in names:
                board.keep(item)
    left = [item for item in items if item.name not in board.rows]
    if kept := len(items) - len(left):
        say(f"{kept:,} are there already (--overwrite makes them again)")
    try:
        if left:
            workers.run(left, store, since=since, tell=board.tell, tick=board.tick)
    finally:
        board.end()
    failed = [row for row in board.all_rows() if row["state"] == "failed"]
    for row in failed[:_SHOWN_FAILURES]:
        complain(f"v3d: {row['name']}: {row['error']}")
    if len(failed) > _SHOWN_FAILURES:
        complain(f"v3d: {len(failed) - _SHOWN_FAILURES:,} more failed, see {TABLE}")
    say(f"{(options.out / SUMMARY).resolve()}\n{(options.out / TABLE).resolve()}")
    return EXIT_FAILURE if failed else 0


def worker_places(device: str, workers: int | None, pictures: bool = False) -> list[dict[str, str]]:
    """Environment variables of each worker: its CUDA device, and its share of the cores.

    Args:
        device: "auto", "cpu" or "cuda".
        workers: How many, or None: as many as each CUDA device has room for, one on a CPU.
        pictures: Whether each worker loads the video model.

    Raises:
        ValueError: Fewer than one.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers is {workers}; it must be at least 1")
    gpus: list[str] = []
    if chosen_device(device).type == "cuda":
        count = torch.cuda.device_count()
        given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        gpus = given[:count] if len(given) >= count else [str(index) for index in range(count)]
    if workers is None and gpus:
        room = [workers_of_gpu(index, len(gpus), pictures) for index in range(len(gpus))]
        turns = range(WORKERS_PER_GPU)
        slots = [gpu for turn in turns for gpu, most in zip(gpus, room, strict=True) if turn < most]
    else:
        slots = [gpus[slot % len(gpus)] if gpus else "" for slot in range(workers or 1)]
    places = [{"CUDA_VISIBLE_DEVICES": gpu} if gpu else {} for gpu in slots]
    if len(places) > 1 and "OMP_NUM_THREADS" not in os.environ:
        share = max(1, (os.cpu_count() or 1) // len(places))
        places = [{**place, "OMP_NUM_THREADS": str(share)} for place in places]
    return places


def workers_of_gpu(index: int, gpus: int, pictures: bool) -> int:
    """How many workers share a CUDA device: one computes there while others work on the CPU.

    At least one, at most `WORKERS_PER_GPU`, as its memory and its share of the machine's memory
    and cores allow.
    """
    each = (MODEL_WORKER_GIB if pictures else WORKER_GIB) * 2**30
    machine = psutil.virtual_memory().total // gpus
    memory = min(torch.cuda.get_device_properties(index).total_memory, machine) // each
    cores = (os.cpu_count() or 1) // (WORKER_CORES * gpus)
    return max(1, min(WORKERS_PER_GPU, memory, cores))


class Board:
    """What has become of all items: a line of progress, and the summary on disk."""

    def __init__(
        self,
        items: Sequence[Item],
        store: BatchFolder,
        options: argparse.Namespace,
        others: dict[str, str],
        since: float,
    ) -> None:
        self.items, self.store, self.others, self.since = items, store, others, since
        self.options = shown_options(options)
        self.rows: dict[str, dict[str, Any]] = {}  # of items that have ended
        self.working: dict[str, dict[str, Any]] = {}
        self.kept = 0
        self.start = time.monotonic()
        self.written = self.shown = -float("inf")

    def keep(self, item: Item) -> None:
        """An item that was there before."""
        self.rows[item.name] = row_of(self.store.record(item.name))
        self.kept += 1

    def tell(self, event: str, row: dict[str, Any]) -> None:
        """News of a worker."""
        if event == "took":
            self.working[row["name"]] = row_of(row)
            return
        self.working.pop(row["name"], None)
        self.rows[row["name"]] = row_of(row)
        if row["state"] == "failed" and not sys.stderr.isatty():
            complain(f"failed: {row['name']}: {row['error']}")

    def tick(self) -> None:
        """Show and write what is due."""
        now = time.monotonic()
        if now - self.written >= SUMMARY_SECONDS:
            self.write("running")
            self.written = now
        terminal = sys.stderr.isatty()
        if now - self.shown >= (TERMINAL_LINE_SECONDS if terminal else LOG_LINE_SECONDS):
            print(  # noqa: T201
                f"\r{self.line()}\x1b[K" if terminal else self.line(),
                end="" if terminal else "\n",
                file=sys.stderr,
                flush=True,
            )
            self.shown = now

    def end(self) -> None:
        """The last line and the last summary."""
        left = self.write("ended")
        if sys.stderr.isatty():
            complain("\r\x1b[K")
        complain(self.line())
        if left:
            complain(f"{left:,} are left; the same command goes on")

    def line(self) -> str:
        """Items done, failed and left, how fast, and how long yet."""
        failed = sum(row["state"] == "failed" for row in self.rows.values())
        ended = len(self.rows) - self.kept
        left = len(self.items) - len(self.rows)
        minutes = (time.monotonic() - self.start) / 60
        text = f"batch: {len(self.rows) - failed:,} done, {failed:,} failed, {left:,} left"
        if ended and left:
            seconds = round(left * 60 * minutes / ended)
            hours, rest = divmod(seconds, 3600)
            eta = f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
            text += f", {ended / minutes:.1f} per minute, ETA {eta}"
        return text

    def all_rows(self) -> list[dict[str, Any]]:
        """A row for each item, those that other machines did included."""
        for item in self.items:
            if item.name not in self.rows and (row := self.store.ended(item.name, self.since)):
                self.rows[item.name] = row_of(row)
                self.working.pop(item.name, None)
        found = []
        for item in self.items:
            row = self.rows.get(item.name) or self.working.get(item.name)
            found.append(row or row_of({"name": item.name, "kind": item.kind, "state": "left"}))
        return found

    def write(self, state: str) -> int:
        """Write the summary; how many items have not ended."""
        if state == "ended":
            self.working = {}
        rows = self.all_rows()
        header = {
            "v3d": __version__,
            "state": state,
            "counts": dict(Counter(row["state"] for row in rows)),
            "kept": self.kept,
            "seconds": round(time.monotonic() - self.start, 1),
            "logs": LOGS,
            "left_out": self.others,
            "options": self.options,
        }
        self.store.write_summary(rows, header)
        return sum(row["state"] not in ("done", "failed") for row in rows)
