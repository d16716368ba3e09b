"""Claims on items of work by lock files, for processes and machines that share one folder."""

from __future__ import annotations

import json
import os
import platform
import secrets
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

STALE_SECONDS = 180.0  # a claim whose heartbeat is older is nobody's
BEAT_SECONDS = 10.0  # between heartbeats
MAX_ATTEMPTS = 3  # holders that may die at work on an item before it counts as failed


@cache
def this_host() -> str:
    """Which set of process ids this process belongs to: machine, its start, and pid namespace.

    Containers of one machine, and machines of one name, differ in it.
    """
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def process_exists(pid: int) -> bool:
    """Whether a process of this host has that id."""
    if sys.platform == "win32":  # where signal 0 would not just look
        import psutil

        return psutil.pid_exists(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # somebody else's
    return True


@dataclass
class Claim:
    """An item that this process alone works on, until `release`.

    Attributes:
        name: Of the item.
        attempt: 1 for the first holder; one more for each that died at work.
        token: What tells this claim from every other.
        lost: Whether others have taken it over, because its heartbeat had stopped.
    """

    claims: Claims
    name: str
    attempt: int
    token: str = field(default_factory=lambda: secrets.token_hex(8))
    lost: bool = False

    def beat(self) -> None:
        """Say that the holder lives."""
        try:
            os.utime(self.claims.path(self.name, self.attempt))
        except FileNotFoundError:
            self.lost = True

    def held(self) -> bool:
        """Whether the item is still this holder's."""
        mine = self.claims.read(self.name, self.attempt).get("token") == self.token
        taken_over = self.claims.path(self.name, self.attempt + 1).exists()
        self.lost = self.lost or not mine or taken_over
        return not self.lost

    def release(self) -> None:
        """Give the item up; claims of its dead earlier holders go too."""
        with self.claims.lock:
            self.claims.live.pop(self.token, None)
        if self.held():
            self.claims.remove(self.name)


class Claims:
    """All claims in one folder.

    A claim is a file that only one process can create: `NAME.1.claim`. When all claims of an item
    are stale (their process is gone from this very host, or the heartbeat, which is the file's
    time, is older than `stale_seconds`), `NAME.2.claim` takes it over, and so on. Nothing stale is
    removed before the item ends, so that two that take over at once cannot undo each other. Ages
    are told by the folder's own clock: machines that share it may differ in theirs.

    A holder that slept past `stale_seconds` and wakes finds with `Claim.held` that it lost the item.

    Args:
        folder: For the claims; made when missing.
        stale_seconds: Longer than file systems of networks keep times in a cache (NFS: 60 s).
    """

    def __init__(self, folder: Path, stale_seconds: float = STALE_SECONDS) -> None:
        self.folder, self.stale_seconds = folder, stale_seconds
        self.live: dict[str, Claim] = {}
        self.lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, name: str, attempt: int) -> Path:
        """Where a claim lies."""
        return self.folder / f"{name}.{attempt}.claim"

    def read(self, name: str, attempt: int) -> dict[str, Any]:
        """What a claim says; nothing while it is being written, or where there is none."""
        try:
            found = json.loads(self.path(name, attempt).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def now(self) -> float:
        """Seconds on the clock of the folder's file system."""
        probe = self.folder / f".clock.{platform.node()}.{os.getpid()}.{threading.get_ident()}"
        try:
            probe.touch()
            os.utime(probe)
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def attempts(self, name: str) -> list[int]:
        """Numbers of an item's claims, living and dead."""
        parts = (entry.name.rsplit(".", 2) for entry in os.scandir(self.folder))
        return sorted(int(p[1]) for p in parts if p[0] == name and p[2:] == ["claim"])

    def free(self, name: str) -> bool:
        """Whether nobody who lives holds an item."""
        return all(self._stale(name, attempt) for attempt in self.attempts(name))

    def take(self, name: str) -> Claim | None:
        """Claim an item, or None while others hold it."""
        before = self.attempts(name)
        if not all(self._stale(name, attempt) for attempt in before):
            return None  # not `free`, which would look again and may see others
        tokens = {attempt: self.read(name, attempt).get("token") for attempt in before}
        claim = Claim(self, name, 1 + max(before, default=0))
        if not self._create(claim):
            return None
        # the last holder's claims may have been removed, and the item claimed anew, since the look
        if {a: self.read(name, a).get("token") for a in self.attempts(name)} != {
            **tokens,
            claim.attempt: claim.token,
        }:
            self.path(name, claim.attempt).unlink(missing_ok=True)
            return None
        with self.lock:
            self.live[claim.token] = claim
        return claim

    def beat(self) -> None:
        """Say that the holder of all claims taken here lives."""
        with self.lock:
            live = list(self.live.values())
        for claim in live:
            with suppress(OSError):  # the next one may succeed
                claim.beat()

    def release_all(self) -> list[Claim]:
        """Give up whatever was taken here; returns it."""
        with self.lock:
            live = list(self.live.values())
        for claim in live:
            with suppress(OSError):
                claim.release()
        return live

    def held_by(self, holders: set[tuple[str, int]]) -> set[str]:
        """Names of the items that processes, given by host and id, have claimed."""
        parts = (path.name.rsplit(".", 2) for path in self.folder.glob("*.claim"))
        return {name for name, attempt, _ in parts if self._holder(name, int(attempt)) in holders}

    def _holder(self, name: str, attempt: int) -> tuple[Any, Any]:
        found = self.read(name, attempt)
        return found.get("host"), found.get("pid")

    def release_of(self, holders: set[tuple[str, int]]) -> list[str]:
        """Remove the claims of ended processes; the names of the items that are free by it.

        Items that somebody else has taken over stay as they are.
        """
        names = []
        for name in self.held_by(holders):
            others = [a for a in self.attempts(name) if self._holder(name, a) not in holders]
            if all(self._stale(name, attempt) for attempt in others):
                self.remove(name)
                names.append(name)
        return names

    def remove(self, name: str) -> None:
        """Remove every claim of an item, the newest last."""
        for attempt in self.attempts(name):
            self.path(name, attempt).unlink(missing_ok=True)

    def _create(self, claim: Claim) -> bool:
        try:
            number = os.open(
                self.path(claim.name, claim.attempt), os.O_CREAT | os.O_EXCL | os.O_WRONLY
            )
        except FileExistsError:
            return False
        holder = {"host": this_host(), "pid": os.getpid(), "token": claim.token}
        with os.fdopen(number, "w", encoding="utf-8") as file:
            json.dump(holder, file)
        return True

    def _stale(self, name: str, attempt: int) -> bool:
        try:
            age = self.now() - self.path(name, attempt).stat().st_mtime
        except FileNotFoundError:
            return False  # released just now; the next look will tell
        holder = self.read(name, attempt)
        pid = holder.get("pid")
        if holder.get("host") == this_host() and isinstance(pid, int) and not process_exists(pid):
            return True
        return age > self.stale_seconds
