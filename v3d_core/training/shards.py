"""Orbits on disk: a folder of plain zip files with one PNG per frame, and an index.

`index.json` holds the form (version, size, views, cameras), the settings the orbits were made
with, the split and, per shard, its objects' names and its SHA-256. A shard is an uncompressed zip
with files `0007/03.png` (object 7 of the shard, frame 3): RGBA, 8 bits, straight sRGB. Measured on
orbits of three scans at 512 px: 1.1 to 1.5 MB each in place of 18.9 MB raw, 45 ms to read.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import re
import zipfile
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..cameras import Orbit, orbit_cameras
from ..formats.atomic import atomic_path
from ..structures import Cameras

FORMAT, VERSION = "v3d-orbits", 1
INDEX = "index.json"
SHARD_NAME = re.compile(r"shard-\d{5,}\.zip")
SPLITS = ("train", "validation", "all")
SPLIT_RULE = "validation if int(SHA-256(name)[:8], big endian) / 2^64 < share"
FRAMES_FORM = "NNNN/FF.png in the shard: RGBA, 8 bits, straight sRGB, black where alpha is 0"
PNG_LEVEL = 1  # of zlib; 6 saves 7 to 20 % and doubles the time to write
OPEN_SHARDS = 32  # that a reader keeps open per process
WAITING = 2  # orbits that may wait for their encoding
HASHED_AT_ONCE = 2**20  # bytes


class MixedSettingsError(ValueError):
    """A data set was made with other settings than those asked for."""


def split_of(name: str, validation: float) -> str:
    """`train` or `validation`, by the name alone: adding data moves no object."""
    value = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
    return "validation" if value < validation else "train"


class ShardWriter:
    """Adds orbits to a data set; use it as a context manager. One writer at a time.

    Orbits are written in shards of `shard_objects`; leaving the block, by an error or Ctrl-C too,
    writes those that are left. A process that is killed loses at most one shard's orbits, and the
    next writer goes on behind the last whole shard.

    Args:
        folder: Made when missing; one that has other data but no index is refused.
        orbit: Cameras of square frames.
        size: px
        settings: Whatever else the frames depend on, as plain JSON values.
        validation: Share of objects that are kept for validation.
        shard_objects: Orbits per file.

    Raises:
        MixedSettingsError: The folder's data set has other settings; both values are named.
        ValueError: The folder is not empty and has no index, or its index is damaged.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        orbit: Orbit,
        size: int,
        settings: dict[str, Any],
        validation: float,
        shard_objects: int,
    ) -> None:
        if not 0 <= validation < 1:
            raise ValueError(f"the validation share must lie in [0, 1), got {validation}")
        if shard_objects < 1:
            raise ValueError(f"a shard has at least 1 object, got {shard_objects}")
        self.folder, self._shard_objects = Path(folder), shard_objects
        form = {
            "format": FORMAT,
            "version": VERSION,
            "size": size,
            "views": orbit.num_views,
            "cameras": dataclasses.asdict(orbit),
            "frames": FRAMES_FORM,
            "split": {"rule": SPLIT_RULE, "validation": validation},
            "settings": settings,
        }
        form = json.loads(json.dumps(form, allow_nan=False))  # as it comes back from the file
        self._index = {**form, "sources": [], "shards": []}
        self._on_disk: str | None = None
        if (self.folder / INDEX).exists():
            self._index = read_index(self.folder)
            self._on_disk = (self.folder / INDEX).read_text(encoding="utf-8")
            _require_same(form, self._index, self.folder)
            for left in self.folder.glob(".shard-*.zip"):  # by a process that was killed
                left.unlink(missing_ok=True)
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder}: not empty and no {INDEX} in it; choose a new folder")
        else:
            self._write_index()
        self.names = {name for shard in self._index["shards"] for name in shard["objects"]}
        self.written = 0
        self._done: list[tuple[str, list[bytes]]] = []
        self._waiting: deque[tuple[str, list[Future[bytes]]]] = deque()
        self._threads = ThreadPoolExecutor(os.cpu_count())

    def add(
        self,
        name: str,
        frames: Tensor,  # [V, S, S, 4] uint8
    ) -> None:
        """Add one object's frames.

        Args:
            name: Of the object; the split goes by it.
            frames: Straight sRGB and coverage. [V, S, S, 4] uint8

        Raises:
            ValueError: The name is there already, or the frames have another shape.
        """
        size = self._index["size"]
        shape = (self._index["views"], size, size, 4)
        if tuple(frames.shape) != shape or frames.dtype != torch.uint8:
            raise ValueError(f"{name}: frames must be {shape} uint8, got {tuple(frames.shape)}")
        if name in self.names:
            raise ValueError(f"{name}: this object is in {self.folder} already")
        self.names.add(name)
        self._waiting.append((name, [self._threads.submit(_png, f) for f in frames.cpu().numpy()]))
        while len(self._waiting) > WAITING:
            self._take_encoded()
        if len(self._done) >= self._shard_objects:
            self._write_shard()

    def add_source(self, source: dict[str, Any]) -> None:
        """Note where objects come from, once."""
        if source not in self._index["sources"]:
            self._index["sources"].append(source)

    def close(self) -> None:
        """Write what is left."""
        while self._waiting:
            self._take_encoded()
        while self._done:
            self._write_shard()
        self._write_index()
        self._threads.shutdown()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take_encoded(self) -> None:
        name, frames = self._waiting.popleft()
        self._done.append((name, [frame.result() for frame in frames]))

    def _write_shard(self) -> None:
        self._require_alone()
        chosen = self._done[: self._shard_objects]
        numbers = [int(shard["file"][6:-4]) for shard in self._index["shards"]]
        file = f"shard-{max(numbers, default=-1) + 1:05d}.zip"
        with atomic_path(self.folder / file) as temporary:
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
                for number, (_, frames) in enumerate(chosen):
                    for view, data in enumerate(frames):
                        # ZipInfo has one fixed date, so that equal orbits make equal files
                        archive.writestr(zipfile.ZipInfo(_entry(number, view)), data)
            digest, length = _sha256(temporary), temporary.stat().st_size
        names = [name for name, _ in chosen]
        entry = {"file": file, "sha256": digest, "bytes": length, "objects": names}
        self._index["shards"].append(entry)
        self._write_index()
        self._done = self._done[len(chosen) :]
        self.written += len(chosen)

    def _write_index(self) -> None:
        self._require_alone()
        text = json.dumps(self._index, indent=1, ensure_ascii=False) + "\n"
        with atomic_path(self.folder / INDEX) as temporary:
            temporary.write_text(text, encoding="utf-8")
        self._on_disk = text

    def _require_alone(self) -> None:
        path = self.folder / INDEX
        now = path.read_text(encoding="utf-8") if path.exists() else None
        if now != self._on_disk:
            raise ValueError(f"{path}: another run wrote to this data set meanwhile; run one only")


class OrbitShards(Dataset):
    """A data set of orbits, read at random; safe in many worker processes.

    Args:
        folder: With `index.json`.
        split: `train`, `validation` or `all`.

    Raises:
        ValueError: No or a damaged index, an unknown split, or a missing or cut shard, by name.
    """

    def __init__(self, folder: str | os.PathLike[str], split: str = "train") -> None:
        if split not in SPLITS:
            raise ValueError(f"split {split!r} is not known; use {', '.join(SPLITS)}")
        self.folder, self.split = Path(folder), split
        self.index = read_index(self.folder)
        self.size, self.views = int(self.index["size"]), int(self.index["views"])
        share = self.index["split"]["validation"]
        self._files = [self.folder / shard["file"] for shard in self.index["shards"]]
        self._where: list[tuple[int, int]] = []  # shard and number in it
        self.names: list[str] = []
        for number, shard in enumerate(self.index["shards"]):
            _require_length(self._files[number], shard["bytes"])
            for row, name in enumerate(shard["objects"]):
                if split in ("all", split_of(name, share)):
                    self._where.append((number, row))
                    self.names.append(name)
        self._open: OrderedDict[int, zipfile.ZipFile] = OrderedDict()
        self._process = os.getpid()

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, index: int) -> Tensor:  # [V, S, S, 4] uint8
        return self.frames(index, range(self.views))

    def frames(self, index: int, views: Sequence[int]) -> Tensor:  # [len(views), S, S, 4] uint8
        """Some frames of an object, straight sRGB and coverage; the others are not read."""
        shard, row = self._where[index]
        try:
            archive = self._archive(shard)
            return torch.stack([self._frame(archive.read(_entry(row, v))) for v in views])
        except (zipfile.BadZipFile, KeyError, OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{self._files[shard]}: the shard is damaged at {self.names[index]}: {error}; delete "
                f"the file and its entry in {INDEX}, and make its objects again"
            ) from error

    @property
    def cameras(self) -> Cameras:
        """Those of every object."""
        return orbit_cameras(Orbit(**self.index["cameras"]), self.size, self.size)

    def batches(
        self, size: int, seed: int = 0, epoch: int = 0, workers: int = 0
    ) -> Iterator[Tensor]:  # [size, V, S, S, 4] uint8 each
        """All orbits once, in an order that seed and epoch decide; a rest is left out."""
        if not 0 < size <= len(self):
            raise ValueError(f"a batch of {size} orbits, but {self.split} has {len(self)}")
        order = shuffled(len(self), seed, epoch)
        chosen = [order[i : i + size] for i in range(0, len(order) - size + 1, size)]
        yield from DataLoader(self, batch_sampler=chosen, num_workers=workers)

    def verify(self) -> None:
        """Compare every shard with its SHA-256.

        Raises:
            ValueError: One differs; it is named.
        """
        for file, shard in zip(self._files, self.index["shards"], strict=True):
            if _sha256(file) != shard["sha256"]:
                raise ValueError(f"{file}: the shard is damaged, its SHA-256 is another")

    def _archive(self, shard: int) -> zipfile.ZipFile:
        if self._process != os.getpid():  # a fork shares file positions with its parent
            self._open, self._process = OrderedDict(), os.getpid()
        if shard not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._open.popitem(last=False)[1].close()
            self._open[shard] = zipfile.ZipFile(self._files[shard])
        self._open.move_to_end(shard)
        return self._open[shard]

    def _frame(self, data: bytes) -> Tensor:  # [S, S, 4] uint8
        with Image.open(io.BytesIO(data), formats=("PNG",)) as picture:
            if picture.size != (self.size, self.size) or picture.mode != "RGBA":
                raise ValueError(f"a frame is {picture.size} {picture.mode}")
            return torch.from_numpy(np.array(picture))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}


def shuffled(count: int, seed: int, epoch: int = 0) -> list[int]:
    """The numbers below `count` in an order that seed and epoch decide, on every machine."""
    return np.random.default_rng([seed, epoch]).permutation(count).tolist()


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a data set.

    Raises:
        ValueError: There is none, it is damaged, or of another version.
    """
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(f"{folder}: no {INDEX}; make a data set of orbits with v3d orbit-data")
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        kind, version = index["format"], index["version"]
        files = [str(shard["file"]) for shard in index["shards"]]
        _ = [(shard["bytes"], shard["sha256"], *shard["objects"]) for shard in index["shards"]]
        _ = index["split"]["validation"], index["size"], Orbit(**index["cameras"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not an index of orbits: {error!r}") from error
    if (kind, version) != (FORMAT, VERSION):
        raise ValueError(f"{path}: {kind} version {version}; {FORMAT} version {VERSION} is read")
    for file in files:
        if not SHARD_NAME.fullmatch(file):
            raise ValueError(f"{path}: {file!r} is no shard's name")
    return index


def _require_same(asked: dict[str, Any], there: dict[str, Any], folder: Path) -> None:
    for key, value in asked.items():
        if there.get(key) != value:
            raise MixedSettingsError(
                f"{folder}: {_difference(key, there.get(key), value)}; give the same settings, or "
                "another folder"
            )


def _difference(key: str, there: Any, asked: Any) -> str:
    if isinstance(there, dict) and isinstance(asked, dict):
        for inner in sorted({*there, *asked}):
            if there.get(inner) != asked.get(inner):
                return _difference(f"{key}.{inner}", there.get(inner), asked.get(inner))
    return f"its data have {key} {there!r}, asked for is {asked!r}"


def _require_length(file: Path, length: int) -> None:
    if not file.is_file():
        raise ValueError(f"{file}: the shard is missing")
    if (found := file.stat().st_size) != length:
        raise ValueError(f"{file}: the shard has {found} bytes instead of {length}; copy it again")


def _entry(number: int, view: int) -> str:
    return f"{number:04d}/{view:02d}.png"


def _png(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "PNG", compress_level=PNG_LEVEL)
    return buffer.getvalue()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASHED_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()
