"""Files that appear complete or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = {errno.ENOSPC, errno.EFBIG} | ({errno.EDQUOT} if hasattr(errno, "EDQUOT") else set())
_NAMED_LAST = (".mtl", ".ply", ".json", ".txt", ".obj")  # suffixes of files that name others
_STEM_IN_TEMPORARY_NAME = 40  # characters; keeps long names below the 255 of most file systems


class OutputError(OSError):
    """An output file or folder that cannot be written; the text names it and the remedy."""

    def __init__(self, number: int | None, text: str, path: Path) -> None:
        super().__init__(number, text, str(path))
        self.text = text

    def __str__(self) -> str:
        return self.text


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path to write to; it becomes `path` when the block ends without an error.

    The temporary file lies in the same folder and has the same suffix. Whatever ends the block
    early (an error, Ctrl-C, a cancelled job) removes it and the folders that were made for it, and a
    file that was at `path` stays.

    Args:
        path: The file to make; its folder is made when missing.

    Yields:
        The path to write to. An empty file is already there.

    Raises:
        OutputError: The folder cannot be made or written, or the disk is full.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(errno.EISDIR, f"cannot write {target}: it is a folder", target)
    made = _make_folder(target.parent)
    temporary = target.with_name(_temporary_name(target))
    try:
        with _readable_errors(target):
            temporary.touch(exist_ok=False)
        with _readable_errors(target, only=_FULL):
            yield temporary
        with _readable_errors(target):
            os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        _remove_empty(made)
        raise


@contextmanager
def atomic_folder(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty folder to fill; its files move into `folder` when the block ends well.

    Files of other names that `folder` already holds stay. Moving only renames, and what names
    other files (.mtl, then .ply, .json, .txt, .obj) moves last, so a reader never finds a name
    without its file. An early end leaves `folder` as it was, or missing; when a move fails, those
    before it are undone.

    Args:
        folder: Where the files shall be; made when missing.

    Yields:
        The temporary folder to write into; it may get sub-folders.

    Raises:
        OutputError: The folder cannot be made or written, or the disk is full.
    """
    target = Path(folder)
    made = _make_folder(target)
    staging = target / f".writing.{secrets.token_hex(4)}"
    try:
        with _readable_errors(target):
            staging.mkdir()
        with _readable_errors(target, only=_FULL):
            yield staging
        with _readable_errors(target):
            files = [file for file in staging.rglob("*") if file.is_file()]
            order = {suffix: place for place, suffix in enumerate(_NAMED_LAST)}
            files.sort(key=lambda file: (order.get(file.suffix, -1), file))
            _move_all({file: target / file.relative_to(staging) for file in files}, staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        _remove_empty(made)
        raise
    shutil.rmtree(staging, ignore_errors=True)


def _move_all(moves: dict[Path, Path], staging: Path) -> None:
    """Rename every key to its value, replacing; an error undoes what was done."""
    undo: list[tuple[Path, Path | None]] = []  # a file in place, and what was there before
    try:
        for number, (source, final) in enumerate(moves.items()):
            final.parent.mkdir(parents=True, exist_ok=True)
            before = None
            if final.is_file():
                before = staging / f"before.{number}"
                os.replace(final, before)
            undo.append((final, before))
            os.replace(source, final)
    except BaseException:
        for final, before in reversed(undo):
            if before is None:
                final.unlink(missing_ok=True)
            else:
                os.replace(before, final)
        raise


def _temporary_name(target: Path) -> str:
    stem = target.stem[:_STEM_IN_TEMPORARY_NAME]
    return f".{stem}.{secrets.token_hex(4)}{target.suffix}"


def _make_folder(folder: Path) -> list[Path]:
    """Make a folder with its parents; those that were missing, the deepest first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with _readable_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            blocker = next(p for p in (folder, *folder.parents) if p.exists())
            raise OutputError(
                error.errno, f"cannot make the folder {folder}: {blocker} is a file", folder
            ) from error
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # another writer has put something into it
            folder.rmdir()


@contextmanager
def _readable_errors(path: Path, only: set[int] | None = None) -> Iterator[None]:
    """Turn the system's errors about an output into one text with the path and what to do."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        if only is not None and error.errno not in only:
            raise
        if error.errno in _FULL:
            text = f"cannot write {path}: the disk is full; free some space or choose another disk"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            text = (
                f"cannot write {path}: permission denied; choose a folder you may write to, "
                "and close programs that have the file open"
            )
        else:
            text = f"cannot write {path}: {error.strerror or error}"
        raise OutputError(error.errno, text, path) from error
