"""A Ray cluster as a batch sees it: the connection, and how many workers have room in it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

CONNECT_SECONDS = 30.0  # Ray itself tries a wrong address for minutes
ROOM_SECONDS = 120.0  # without any worker, before the cluster counts as full


@contextmanager
def connected(ray: Any, address: str) -> Iterator[None]:
    """A connection to a running cluster, for the block.

    Args:
        ray: The package.
        address: As `ray.init` takes it: "auto" or HOST:PORT.

    Raises:
        ConnectionError: There is no such cluster, or it does not answer in `CONNECT_SECONDS`.
        ValueError: It is no address.
    """
    ended: list[BaseException | None] = []

    def connect() -> None:
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            ended.append(None)
        except BaseException as error:  # Ray may end the whole process
            ended.append(error)

    # in a thread, which can be left behind: Ray has no limit of its own to set
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    error = ended[0] if ended else TimeoutError(f"no answer within {CONNECT_SECONDS:g} s")
    if isinstance(error, ValueError):
        raise ValueError(f"--ray-address {address}: {error}") from error
    if error is not None:
        raise ConnectionError(f"--ray-address {address}: no Ray cluster there: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class RayPlaces:
    """How many workers a batch has on a cluster, and what each of them needs.

    Attributes:
        workers: At most; fewer run while the cluster has no room.
        cpus: Cores of each; Ray sets OMP_NUM_THREADS to it.
        gpus: CUDA devices of each: 1, a part of one where workers share it, or 0.
    """

    workers: int
    cpus: int
    gpus: float

    def text(self) -> str:
        """For people."""
        gpus = f"{self.gpus:g} GPU, " if self.gpus else ""
        number = "1 worker" if self.workers == 1 else f"{self.workers:,} workers, each"
        return f"{number} with {gpus}{self.cpus} CPU"


def ray_places(nodes: Sequence[dict[str, Any]], device: str, workers: int | None) -> RayPlaces:
    """One worker per CUDA device of a cluster, or per machine where there is none.

    Cores are shared out as on one machine: as many for each as let all workers have room.

    Args:
        nodes: What `ray.nodes` returns.
        device: "auto", "cpu" or "cuda".
        workers: How many, or None for the default.

    Raises:
        ValueError: Fewer than one, or there is no CUDA device where one is asked for.
    """
    if workers is not None and workers < 1:
        raise ValueError(f"--workers is {workers}; it must be at least 1")
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    cores = [int(found.get("CPU", 0)) for found in alive]
    devices = [int(found.get("GPU", 0)) for found in alive]
    if device == "cuda" and not sum(devices):
        raise ValueError(
            f"--device cuda: the Ray cluster offers no GPU, {sum(cores)} CPU on {len(alive)} nodes"
        )
    if device == "cpu" or not sum(devices):
        workers = workers or sum(count > 0 for count in cores) or 1
        return RayPlaces(workers, _share(cores, workers), 0)
    workers = workers or sum(devices)
    sharing = math.ceil(workers / sum(devices))  # workers on one device
    return RayPlaces(
        workers, _share(cores, workers, [count * sharing for count in devices]), 1 / sharing
    )


def _share(cores: Sequence[int], workers: int, most: Sequence[int] | None = None) -> int:
    """Most cores for each that let all workers have room, with at most so many on each node."""
    limits = most or [workers] * len(cores)
    for each in range(max(cores, default=1), 1, -1):
        if sum(min(count // each, limit) for count, limit in zip(cores, limits)) >= workers:
            return each
    return 1


def no_room(ray: Any, places: RayPlaces) -> str:
    """What to say when no worker could be placed."""

    def amounts(found: dict[str, float]) -> str:
        return f"{found.get('CPU', 0):g} CPU and {found.get('GPU', 0):g} GPU"

    return (
        f"no worker could be placed on the Ray cluster for {ROOM_SECONDS:g} s: each asks for "
        f"{places.cpus} CPU and {places.gpus:g} GPU; the cluster has "
        f"{amounts(ray.cluster_resources())}, of which {amounts(ray.available_resources())} are "
        "free"
    )
