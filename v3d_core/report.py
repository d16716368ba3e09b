"""What a run was and what it cost: versions, seconds per stage, peak memory, as plain JSON."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import __version__
from .formats.atomic import atomic_path

REPORTED_PACKAGES = ("torch", "numpy", "scipy", "pillow", "scikit-image", "trimesh", "av")
TIMED_PACKAGES = (
    "torch",
    "warp-lang",
    "gsplat",
    "numpy",
)  # what the figures of a benchmark depend on
BUSY = 0.5  # load average from which a table says so
COMMIT_DIGITS = 7
# how busy the machine was before the work, in runnable threads; None where that is unknown
_LOAD_BEFORE = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


class Stopwatch:
    """Wall-clock seconds of named stages, in the order they ran."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the block to a stage; work queued on CUDA is waited for."""
        start = time.perf_counter()
        yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        """Seconds of each stage and their sum, to hundredths."""
        stages = {name: round(value, 2) for name, value in self.seconds.items()}
        return {**stages, "total": round(sum(self.seconds.values()), 2)}


def peak_memory_mib() -> float:
    """Largest resident memory of this process so far, MiB."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB elsewhere


def environment(device: torch.device) -> dict[str, Any]:
    """Versions of what computed a result, and on what."""
    packages = {}
    for name in REPORTED_PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            continue
    on_cuda = device.type == "cuda"
    return {
        "v3d": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": packages,
        "device": torch.cuda.get_device_name(device) if on_cuda else "cpu",
        "threads": torch.get_num_threads(),
    }


def memory(device: torch.device) -> dict[str, float]:
    """Peak memory of this process, MiB: resident, and on the GPU where one was used."""
    peaks = {"resident_mib": round(peak_memory_mib(), 1)}
    if device.type == "cuda":
        peaks["cuda_mib"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return peaks


def machine(device: torch.device) -> dict[str, Any]:
    """The device that computed, how busy its system was, and the versions that matter."""
    versions = {"python": platform.python_version()}
    for name in TIMED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        versions["CUDA of torch"] = str(torch.version.cuda)
    else:
        name = f"{os.cpu_count()} cores, {_cpu_name()}, {torch.get_num_threads()} torch threads"
    system = platform.system()
    return {"device": name, "system": system, "load_before": _LOAD_BEFORE, "versions": versions}


def source_line(record: dict[str, Any]) -> str:
    """One sentence under a table: commit, machine and versions of a stored result."""
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    source = f"Commit {record['commit']}; {record['device']}, {record['system']}, {versions}."
    load = record.get("load_before")
    busy = load is not None and load >= BUSY
    return source + (f" Not idle: load average {load} before the run." if busy else "")


def checkout_commit() -> str:
    """First digits of the commit that is checked out where the package lies, or "unknown".

    Read from git's files, since the pack starts no programs; files changed since do not show.
    """
    git = Path(__file__).resolve().parents[1] / ".git"
    try:
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if head.startswith("ref: "):
            name = head.removeprefix("ref: ")
            if (git / name).is_file():
                head = (git / name).read_text(encoding="utf-8").strip()
            else:
                lines = (git / "packed-refs").read_text(encoding="utf-8").splitlines()
                head = next((line.split()[0] for line in lines if line.endswith(f" {name}")), "")
    except (OSError, ValueError):
        return "unknown"
    return head[:COMMIT_DIGITS] if set(head) <= set("0123456789abcdef") and head else "unknown"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def write_report(path: Path, report: dict[str, Any]) -> None:
    """Write a report as JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
