"""What a folder with an orbit says about how it was made, so that none is made twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

REPORT_NAME = "orbit.json"  # not report.json: `v3d reconstruct DIR --out DIR` writes that

# What makes an orbit this orbit and no other: these parts of two reports have to agree.
_IDENTITY = ("picture_sha256", "mask_sha256", "seed", "settings", "model")


def fingerprints(picture: Path, mask: Path | None) -> dict[str, str | None]:
    """SHA-256 of a picture and its mask, None where there is no mask.

    Raises:
        FileNotFoundError: There is no such picture.
    """
    masked = None if mask is None or not mask.is_file() else _sha256(mask)
    return {"picture_sha256": _sha256(picture), "mask_sha256": masked}


def _sha256(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def earlier_report(folder: Path) -> dict[str, Any]:
    """The report in a folder, or nothing if there is none that can be read."""
    try:
        report = json.loads((folder / REPORT_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return report if isinstance(report, dict) else {}


def differences(earlier: dict[str, Any], identity: dict[str, Any], folder: Path) -> list[str]:
    """Names of what an earlier orbit differs in, lost files included."""
    now = json.loads(json.dumps(identity))
    found = [name.replace("_sha256", "") for name in _IDENTITY if earlier.get(name) != now[name]]
    files = files_of(earlier)
    lost = not files or not all((folder / name).is_file() for name in files)
    return [*found, *(["set of files"] if lost else [])]


def files_of(report: dict[str, Any]) -> list[str]:
    """The files that a report names, as far as they are names of files."""
    files = report.get("files")
    names = files if isinstance(files, list) else []
    return [name for name in names if isinstance(name, str) and Path(name).name == name]
