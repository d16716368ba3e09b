"""What every stored benchmark carries with it: command, commit, machine, versions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from v3d_core.report import machine, source_line  # noqa: E402

__all__ = ["ROOT", "add_arguments", "command_line", "make_record", "source_line", "store"]


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


def _commit() -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"],
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "unknown"
