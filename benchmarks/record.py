"""What every stored benchmark carries with it: command, commit, machine, versions."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "warp-lang", "gsplat", "numpy")
BUSY = 0.5  # load average from which a table says so
# how busy the machine was before the benchmark, in runnable threads; None where that is unknown
LOAD_BEFORE = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def add_arguments(parser) -> None:
    """Options that all benchmarks share."""
    parser.add_argument("--out", type=Path, help="store the figures here, as JSON")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--commit", help="of the code, where git cannot be asked")


def make_record(options, results: Any) -> dict[str, Any]:
    """A result with everything needed to make it again, ready for JSON."""
    return {
        "benchmark": Path(sys.argv[0]).stem,
        "command": command_line(sys.argv),
        "commit": options.commit or _commit(),
        **machine(torch.device(options.device)),
        "results": results,
    }


def store(record: dict[str, Any], path: Path | None) -> None:
    """Write a record, if a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def command_line(arguments: list[str]) -> str:
    """The command as somebody else would type it: without --commit, folders cut to their names."""
    words = ["python", f"benchmarks/{Path(arguments[0]).name}"]
    rest = iter(arguments[1:])
    for word in rest:
        if word == "--commit":
            next(rest, None)
        elif not word.startswith("--commit="):
            words.append(Path(word).name if os.sep in word else word)
    return " ".join(words)


def machine(device: torch.device) -> dict[str, Any]:
    """The device that computed, and the versions that matter."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
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
    return {"device": name, "system": system, "load_before": LOAD_BEFORE, "versions": versions}


def source_line(record: dict[str, Any]) -> str:
    """One sentence under a table: where it comes from."""
    versions = ", ".join(f"{name} {value}" for name, value in record["versions"].items())
    source = f"Commit {record['commit']}; {record['device']}, {record['system']}, {versions}."
    load = record.get("load_before")
    busy = load is not None and load >= BUSY
    return source + (f" Not idle: load average {load} before the run." if busy else "")


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"],
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
