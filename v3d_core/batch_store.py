"""The folder of a batch: items, their results, logs and failures, and the summary of all."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .batch_claims import STALE_SECONDS, Claim, Claims
from .formats.atomic import atomic_path

if TYPE_CHECKING:  # torch takes seconds to load, in each process
    from .progress import Preview, Progress

PICTURE, ORBIT = "picture", "orbit"
RECORD = "item.json"  # in the folder of each result, written last
SUMMARY, TABLE = "batch.json", "batch.csv"
LOGS, INNER = "logs", ".batch"
SCORES = ("psnr", "psnr_object", "ssim", "alpha_iou", "lpips")
COLUMNS = ("name", "kind", "state", "seconds", *SCORES, "error")


class Stopped(BaseException):
    """The batch shall end now; not an error of the item at work."""


@dataclass(frozen=True)
class Item:
    """One thing to make 3D: a picture, or an orbit (folder of frames, data set, video).

    Attributes:
        name: Of its result's folder and its log.
        kind: `PICTURE` or `ORBIT`.
        source: The file or folder.
        masks: A picture's mask, or an orbit's folder of masks, if there is one.
    """

    name: str
    kind: str
    source: Path
    masks: Path | None = None


def fingerprint(item: Item, earlier: dict[str, Any] | None = None) -> dict[str, Any]:
    """SHA-256 of an item's files, and their sizes and times.

    Args:
        item: The item.
        earlier: A former fingerprint: its hash is taken where no size and no time has changed.
    """
    roots = [path for path in (item.source, item.masks) if path is not None and path.exists()]
    files: list[tuple[str, Path]] = []
    for number, root in enumerate(roots):
        inner = sorted(root.rglob("*")) if root.is_dir() else [root]
        files += [
            (f"{number}/{path.relative_to(root).as_posix()}", path)
            for path in inner
            if path.is_file()
        ]
    if not files:
        raise FileNotFoundError(f"{item.source}: no files here")
    stats = [(label, path.stat()) for label, path in files]
    listed = [[label, stat.st_size, stat.st_mtime_ns] for label, stat in stats]
    if earlier and earlier.get("files") == listed and isinstance(earlier.get("sha256"), str):
        return {"sha256": earlier["sha256"], "files": listed}
    digest = hashlib.sha256()
    for label, path in files:
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{label}\0{content}\n".encode())
    return {"sha256": digest.hexdigest(), "files": listed}


def settings_hash(settings: dict[str, Any]) -> str:
    """SHA-256 of settings, whatever the order they stand in."""
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class BatchFolder:
    """Where a batch writes.

    `out/NAME` is an item's finished result: it is filled under another name and renamed, so it is
    complete or not there. `out/logs/NAME.log` tells what happened to it, over all runs.
    """

    def __init__(self, out: Path, stale_seconds: float = STALE_SECONDS) -> None:
        self.out = out
        self.writing, self.failures = out / INNER / "writing", out / INNER / "failed"
        for folder in (out / LOGS, self.writing, self.failures):
            folder.mkdir(parents=True, exist_ok=True)
        self.claims = Claims(out / INNER / "claims", stale_seconds)

    # --- what is there

    def record(self, name: str) -> dict[str, Any]:
        """The record of a complete result, or nothing."""
        record = _read_json(self.out / name / RECORD)
        files = record.get("files")
        if not isinstance(files, list) or not files:
            return {}
        whole = all(isinstance(f, str) and (self.out / name / f).is_file() for f in files)
        return record if whole else {}

    def kept(self, item: Item, settings: str) -> bool:
        """Whether the result of this very input and these very settings is there."""
        record = self.record(item.name)
        if not record or record.get("settings_sha256") != settings:
            return False
        try:
            return fingerprint(item, record["input"])["sha256"] == record["input"]["sha256"]
        except (OSError, TypeError, KeyError):
            return False

    def ended(self, name: str, since: float) -> dict[str, Any]:
        """Row of an item that somebody finished or failed since a time of `claims.now`."""
        for path in (self.out / name / RECORD, self.failures / f"{name}.json"):
            with suppress(OSError):
                if path.stat().st_mtime >= since and (found := _read_json(path)):
                    return row_of(found)
        return {}

    # --- writing

    def staging(self, claim: Claim) -> Path:
        """An empty folder for the holder of a claim."""
        folder = self.writing / f"{claim.name}.{claim.token}"
        folder.mkdir()
        return folder

    def clean(self, name: str) -> None:
        """Remove what holders of an item left half done."""
        for entry in os.scandir(self.writing):
            if entry.name.rsplit(".", 1)[0] == name:
                shutil.rmtree(entry.path, ignore_errors=True)

    def remove_staging(self, claim: Claim) -> None:
        """Remove the folder that `staging` gave to the holder of a claim."""
        shutil.rmtree(self.writing / f"{claim.name}.{claim.token}", ignore_errors=True)

    def check_free(self, name: str) -> None:
        """Refuse to replace a folder that is no result of a batch."""
        folder = self.out / name
        if folder.exists() and not (folder / RECORD).is_file():
            raise FileExistsError(
                f"{folder} is there and is no result of v3d batch; move it, or choose another --out"
            )

    def publish(self, staging: Path, claim: Claim, record: dict[str, Any]) -> None:
        """Give a finished folder its name.

        Raises:
            TimeoutError: The claim was taken over meanwhile; the result is dropped.
        """
        files = [p.relative_to(staging).as_posix() for p in staging.rglob("*") if p.is_file()]
        write_json(staging / RECORD, {**record, "files": sorted(files)})
        if not claim.held():
            raise TimeoutError(
                f"{claim.name}: no heartbeat for over {self.claims.stale_seconds:g} s; another "
                "process took it over, and this result is dropped"
            )
        final = self.out / claim.name
        self.check_free(claim.name)
        old = self.writing / f"{claim.name}.{claim.token}-old"
        if final.exists():
            os.rename(final, old)
        os.rename(staging, final)
        shutil.rmtree(old, ignore_errors=True)
        (self.failures / f"{claim.name}.json").unlink(missing_ok=True)

    def fail(self, record: dict[str, Any]) -> None:
        """Note an item's failure."""
        write_json(self.failures / f"{record['name']}.json", record)

    def write_summary(self, rows: Sequence[dict[str, Any]], header: dict[str, Any]) -> None:
        """`batch.json` and `batch.csv`, each whole or not at all."""
        write_json(self.out / SUMMARY, {**header, "items": list(rows)})
        with atomic_path(self.out / TABLE) as temporary:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                table = csv.writer(file)
                table.writerow(COLUMNS)
                for row in rows:
                    flat = {**row, **(row.get("scores") or {})}
                    table.writerow(["" if flat.get(c) is None else flat[c] for c in COLUMNS])


def row_of(record: dict[str, Any]) -> dict[str, Any]:
    """What the summary says of an item, from its record or its failure."""
    return {
        "name": record.get("name"),
        "kind": record.get("kind"),
        "state": record.get("state"),
        "seconds": record.get("seconds"),
        "scores": record.get("scores"),
        "error": record.get("error"),
        "log": f"{LOGS}/{record.get('name')}.log",
    }


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


class ItemLog:
    """What happens to one item, line by line in its log; its progress notices a stop."""

    def __init__(self, path: Path, stop: threading.Event) -> None:
        self.path, self.stop = path, stop

    def line(self, text: str) -> None:
        """Add a line with the time; a log that cannot be written stops nothing."""
        when = time.strftime("%Y-%m-%d %H:%M:%S")
        with suppress(OSError), open(self.path, "a", encoding="utf-8") as file:
            file.write(f"{when} {text}\n")

    def error(self, error: BaseException) -> None:
        """Add an error with its traceback."""
        self.line("".join(traceback.format_exception(error)).rstrip())

    def check(self) -> None:
        """Raise `Stopped` once the batch shall end."""
        if self.stop.is_set():
            raise Stopped

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """A `StageProgress` that logs a stage's seconds."""
        start = time.perf_counter()

        def progress(step: int, total: int, preview: Preview | None = None, text: str = "") -> None:
            del step, total, preview, text
            self.check()

        self.check()
        yield progress
        self.line(f"{name}: {time.perf_counter() - start:.2f} s")


def kept_names(
    items: Sequence[Item], store: BatchFolder, settings: Callable[[Item], dict[str, Any]]
) -> list[str]:
    """Names of the items whose results, of their inputs and settings, are there already."""
    return [item.name for item in items if store.kept(item, settings_hash(settings(item)))]


Tell = Callable[[str, dict[str, Any]], None]  # "took" or "ended", and the item's row
