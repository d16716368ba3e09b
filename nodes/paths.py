"""Files and folders inside the folders ComfyUI gives us; no name leads out of them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import folder_paths

from ..v3d_core.formats.pictures import PICTURE_SUFFIXES

log = logging.getLogger("V3D")

DEMO = "demo orbit (shipped)"
_DATA = Path(__file__).resolve().parents[1] / "v3d_core" / "data"
SHIPPED = {DEMO: _DATA / "demo_orbit", "demo picture (shipped)": _DATA / "demo_picture"}
IN_OUTPUT = " [output]"  # ComfyUI's own mark for names below the output folder
FIELD_SUFFIX = ".safetensors"
SEARCH_DEPTH = 3  # folders below input and output that are listed
LONGEST_NAME = 200  # bytes; file systems take 255, and number and suffix come on top


def view_folders() -> list[str]:
    """Choices of V3D Load Views: what is shipped, then folders with frames in input and output."""
    given = _folders(Path(folder_paths.get_input_directory()), frames_are_enough=True)
    made = _folders(Path(folder_paths.get_output_directory()), frames_are_enough=False)
    return [*SHIPPED, *given, *(name + IN_OUTPUT for name in made)]


def view_folder(name: str) -> Path:
    """The folder of a choice; raises ValueError for names that lead anywhere else."""
    if name in SHIPPED:
        return SHIPPED[name]
    folder = _inside("folder", name)
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; press R to renew the list of folders")
    return folder


def field_files() -> list[str]:
    """Choices of V3D Load SDF: .safetensors files in input and output."""
    given, made = folder_paths.get_input_directory(), folder_paths.get_output_directory()
    return [*_fields(Path(given)), *(name + IN_OUTPUT for name in _fields(Path(made)))]


def field_file(name: str) -> Path:
    """The file of a choice; raises ValueError for names that lead anywhere else."""
    file = _inside("file", name)
    if file.suffix.lower() != FIELD_SUFFIX:
        raise ValueError(f"the file {name!r} is no {FIELD_SUFFIX} file; choose a saved field")
    if not file.is_file():
        raise ValueError(f"there is no file {file}; press R to renew the list of files")
    return file


def state_or_reason(state: Callable[[], str]) -> str:
    """What `state` returns, or why it cannot tell.

    ComfyUI asks this of every node of a graph, also of one that nothing is connected to and whose
    file is not there yet; an error would be a warning in its log at each run.
    """
    try:
        return state()
    except (OSError, ValueError) as error:
        return str(error)


def file_state(file: Path) -> str:
    """Changes when the file does: its size and time, not its contents."""
    state = file.stat()
    return repr((str(file), state.st_size, state.st_mtime_ns))


def folder_state(folder: Path) -> str:
    """Changes when a file in the folder does: names, sizes and times, not contents."""
    with os.scandir(folder) as entries:
        states = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    return repr(sorted((name, state.st_size, state.st_mtime_ns) for name, state in states))


def output_path(prefix: str, suffix: str) -> tuple[Path, str]:
    """The next free `prefix_00001_suffix` below the output folder, and its subfolder there.

    `prefix` may hold folders and ComfyUI's %date% marks; one that leads out of the output folder
    is an error.
    """
    base = folder_paths.get_output_directory()
    wanted = Path(os.path.abspath(os.path.join(base, os.path.normpath(prefix))))
    if not wanted.is_relative_to(os.path.abspath(base)) or wanted == Path(os.path.abspath(base)):
        raise ValueError(
            f"filename_prefix {prefix!r} leads out of the output folder {base}; "
            "use a name like 3d/mesh"
        )
    for part in Path(prefix).parts:
        if "\0" in part or len(part.encode(errors="replace")) > LONGEST_NAME:
            raise ValueError(
                f"filename_prefix holds {part[:40]!r}..., which is no name of a file; use up to "
                f"{LONGEST_NAME} letters, without zero bytes"
            )
    folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, base)
    return Path(folder) / f"{name}_{counter:05}_{suffix}", subfolder


def _inside(kind: str, name: str | None) -> Path:
    """What a choice names below the input folder, or, so marked, below the output folder."""
    if not name:  # the front end's choice of an empty list is None
        raise ValueError(f"no {kind} is chosen; put one into the input folder and press R")
    in_output = name.endswith(IN_OUTPUT)
    base = folder_paths.get_output_directory() if in_output else folder_paths.get_input_directory()
    relative = name[: -len(IN_OUTPUT)] if in_output else name
    path = Path(os.path.abspath(os.path.join(base, relative)))
    if not path.is_relative_to(os.path.abspath(base)):
        raise ValueError(f"the {kind} {relative!r} lies outside {base}; move it there")
    return path


def _fields(base: Path) -> list[str]:
    return [
        (folder / name).relative_to(base).as_posix()
        for folder in (base, *_below(base, SEARCH_DEPTH))
        for name, is_folder in sorted(_entries(folder))
        if name.lower().endswith(FIELD_SUFFIX) and not is_folder and not name.startswith(".")
    ]


def _folders(base: Path, frames_are_enough: bool) -> list[str]:
    return [
        folder.relative_to(base).as_posix()
        for folder in _below(base, SEARCH_DEPTH)
        if _holds_views(folder, frames_are_enough)
    ]


def _below(base: Path, depth: int) -> Iterator[Path]:
    """All folders below `base`, hidden ones left out."""
    if depth == 0:
        return
    for name in sorted(name for name, is_folder in _entries(base) if is_folder):
        if not name.startswith("."):
            yield base / name
            yield from _below(base / name, depth - 1)


def _holds_views(folder: Path, frames_are_enough: bool) -> bool:
    pictures = 0
    for name, is_folder in _entries(folder):
        if is_folder:
            continue
        if name.startswith("transforms") and name.endswith(".json"):
            return True
        pictures += name.lower().endswith(PICTURE_SUFFIXES)
        if frames_are_enough and pictures >= 2:  # one picture alone has no depth
            return True
    return False


def _entries(folder: Path) -> Iterator[tuple[str, bool]]:
    """Name and folder-or-not of everything in a folder.

    Nothing for a folder that may not be read: an error in a list of choices would take every
    node of the pack out of the menu.
    """
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                yield entry.name, entry.is_dir()
    except OSError as error:
        log.info("%s is not listed: %s", folder, error)
