"""Data sets of orbits out of mesh files and procedural objects: rendered, sharded, resumable."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import __version__
from ..cameras import orbit_cameras
from ..formats.mesh_materials import read_material_parts
from ..formats.mesh_read import READABLE_MESH_SUFFIXES
from ..formats.pictures import natural_key
from ..images import composite, contact_sheet, from_uint8
from ..progress import Preview, Progress, silent
from .mesh_orbits import MeshOrbitConfig, random_azimuth, render_mesh_orbit
from .objects import random_objects
from .shards import ShardWriter
from .tracing import render_orbits

BYTES_AT_ONCE = 2**28  # of procedural orbits that a GPU draws in one go
SHEET_OBJECTS = 10  # rows of a contact sheet
SHEET_SIZE = 96  # px, of a frame in it


@dataclass(frozen=True)
class OrbitDataConfig:
    """Everything the frames depend on but the objects."""

    render: MeshOrbitConfig = field(default_factory=MeshOrbitConfig)
    seed: int = 0  # of the random azimuths
    turn: bool = False  # start every object's orbit at a random azimuth
    validation: float = 0.02  # share of the objects
    shard_objects: int = 64  # orbits per file: 60 to 100 MB at 512 px, 8 MB at 128 px

    def settings(self) -> dict[str, Any]:
        """What the index keeps beside size and cameras, to refuse a mixture."""
        values = {**dataclasses.asdict(self.render), "seed": self.seed, "turn": self.turn}
        return {k: v for k, v in values.items() if k not in ("size", "orbit")}


class OrbitSource(Protocol):
    """Objects by name, rendered one after the other."""

    names: Sequence[str]

    def described(self) -> dict[str, Any]:
        """For the index, plain JSON values."""
        ...

    def orbits(
        self, names: Sequence[str], config: OrbitDataConfig, device: torch.device, watch: Watch
    ) -> Iterator[tuple[str, Tensor | Exception]]:
        """Frames [V, S, S, 4] uint8 of the named objects, or why one of them has none.

        `watch` is called while an object is rendered; what it raises goes through.
        """
        ...


Watch = Callable[[], None]


@dataclass(frozen=True)
class OrbitDataResult:
    """What a run did.

    Attributes:
        added: Orbits that were made now.
        kept: Orbits that were there already.
        skipped: Names of objects that have no orbit, with the reason.
    """

    added: int
    kept: int
    skipped: dict[str, str]


class MeshFiles:
    """Mesh files, and those of folders and their sub-folders.

    Args:
        paths: Files and folders. Objects of a folder are named by their path in it.

    Raises:
        ValueError: A folder has no meshes, or two objects have one name.
        FileNotFoundError: No such file or folder.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._files: dict[str, Path] = {}
        self._roots = [path.resolve().name for path in paths]
        for path in paths:
            for name, file in _mesh_files(path):
                if name in self._files:
                    raise ValueError(
                        f"{self._files[name]} and {file} have one name, {name}; rename one, or "
                        "give the folder that holds both"
                    )
                self._files[name] = file
        self.names: Sequence[str] = list(self._files)

    def described(self) -> dict[str, Any]:
        """For the index."""
        return {"kind": "meshes", "from": self._roots}

    def orbits(
        self, names: Sequence[str], config: OrbitDataConfig, device: torch.device, watch: Watch
    ) -> Iterator[tuple[str, Tensor | Exception]]:
        """Frames of the named objects; what is wrong with a file is handed out in their place."""
        stopped: list[BaseException] = []

        def progress(step: int, total: int, preview: Preview | None = None, text: str = "") -> None:
            try:
                watch()
            except BaseException as error:
                stopped.append(error)
                raise

        for name in names:
            watch()
            azimuth = random_azimuth(name, config.seed) if config.turn else 0.0
            try:
                parts = read_material_parts(self._files[name])
                frames = render_mesh_orbit(parts, config.render, azimuth, device, progress)
            except Exception as error:  # whatever a file holds, the others go on
                if stopped:
                    raise
                yield name, error
                continue
            yield name, frames


class ProceduralObjects:
    """Objects of consecutive seeds; see `random_objects`. They have their own size and azimuth.

    Args:
        count: How many.
        first_seed: Of the first one.
    """

    def __init__(self, count: int, first_seed: int = 0) -> None:
        if count < 1 or first_seed < 0:
            raise ValueError(
                f"procedural objects: at least 1 and seeds from 0, got {count} from {first_seed}"
            )
        self._first, self._count = first_seed, count
        self._seeds = {f"procedural-{s:08d}": s for s in range(first_seed, first_seed + count)}
        self.names: Sequence[str] = list(self._seeds)

    def described(self) -> dict[str, Any]:
        """For the index; another version of the library may draw other objects."""
        seeds = {"first_seed": self._first, "count": self._count}
        return {"kind": "procedural", **seeds, "v3d": __version__}

    def orbits(
        self, names: Sequence[str], config: OrbitDataConfig, device: torch.device, watch: Watch
    ) -> Iterator[tuple[str, Tensor | Exception]]:
        """Frames of the named objects, on a GPU many objects at a time.

        Raises:
            ValueError: The shading is not `lit`, the only one they have.
        """
        render = config.render
        if render.shading != "lit":
            raise ValueError(
                f"procedural objects stand under lamps: shading must be lit, got {render.shading}"
            )
        cameras = orbit_cameras(render.orbit, render.size, render.size)
        one = render.orbit.num_views * render.size**2 * 4
        batch = max(1, BYTES_AT_ONCE // one) if device.type == "cuda" else 1
        for first in range(0, len(names), batch):
            some = names[first : first + batch]
            watch()
            table = random_objects([self._seeds[name] for name in some]).to(device)
            if device.type == "cuda":
                orbits = render_orbits(table, cameras, render.size, render.supersample).cpu()
            else:
                views = []
                for view in range(len(cameras)):  # one at a time, to be stopped between them
                    views.append(
                        render_orbits(table, cameras[view], render.size, render.supersample)
                    )
                    watch()
                orbits = torch.cat(views, dim=1)
            yield from zip(some, orbits, strict=True)


def make_orbit_data(
    folder: str | os.PathLike[str],
    sources: Sequence[OrbitSource],
    config: OrbitDataConfig,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> OrbitDataResult:
    """Render the orbits that a data set lacks, and add them; see `ShardWriter`.

    The frames of an object depend on itself, its name and `config` alone, not on the order or the
    company. An object that cannot be rendered is left out and named in the result.

    Args:
        folder: The data set's; made when missing.
        sources: Where objects come from.
        config: See `OrbitDataConfig`.
        device: Where to render.
        progress: Called after every object, with its frames as the picture, and while one is
            rendered; raising inside it stops the run, and what is rendered is kept.
    """
    device = torch.device(device)
    render = config.render
    skipped: dict[str, str] = {}
    with ShardWriter(
        folder,
        render.orbit,
        render.size,
        config.settings(),
        config.validation,
        config.shard_objects,
    ) as writer:
        names = [[n for n in source.names if n not in writer.names] for source in sources]
        total = sum(map(len, names))
        kept = sum(len(source.names) for source in sources) - total
        done = 0

        def watch() -> None:
            progress(done, total)

        for source, missing in zip(sources, names, strict=True):
            writer.add_source(source.described())
            for name, frames in source.orbits(missing, config, device, watch):
                done += 1
                if isinstance(frames, Exception):
                    skipped[name] = f"{type(frames).__name__}: {frames}"
                    progress(done, total, None, f"{name}: skipped")
                    continue
                writer.add(name, frames)
                progress(done, total, lambda f=frames: orbit_sheet(f[None]), name)
    return OrbitDataResult(total - len(skipped), kept, skipped)


def orbit_sheet(
    orbits: Tensor,  # [N, V, S, S, 4] uint8
) -> Tensor:  # [H, W, 3]
    """One row per orbit, on white, at `SHEET_SIZE` px or less."""
    count, views, size = orbits.shape[:3]
    pixels = from_uint8(orbits.flatten(0, 1))
    pictures = composite(pixels[..., :3], pixels[..., 3])
    small = min(size, SHEET_SIZE)
    planes = torch.nn.functional.adaptive_avg_pool2d(pictures.permute(0, 3, 1, 2), small)
    assert len(planes) == count * views
    return contact_sheet(planes.permute(0, 2, 3, 1), columns=views)


def _mesh_files(path: Path) -> list[tuple[str, Path]]:
    if path.is_file():
        if path.suffix.lower() not in READABLE_MESH_SUFFIXES:
            raise ValueError(f"{path}: read are {', '.join(READABLE_MESH_SUFFIXES)}")
        return [(_readable(path.name), path)]
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such mesh or folder")
    files = [
        file
        for file in path.rglob("*")
        if file.suffix.lower() in READABLE_MESH_SUFFIXES and file.is_file()
    ]
    if not files:
        raise ValueError(f"{path}: no meshes in it; read are {', '.join(READABLE_MESH_SUFFIXES)}")
    named = [(_readable(file.relative_to(path).as_posix()), file) for file in files]
    return sorted(named, key=lambda entry: natural_key(entry[0]))


def _readable(name: str) -> str:
    """A file's name as text that JSON can hold."""
    return os.fsencode(name).decode("utf-8", "replace")
