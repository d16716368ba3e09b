"""What in a folder can be made 3D, and of which kind it is."""

from __future__ import annotations

from pathlib import Path

from .batch_store import INNER, LOGS, ORBIT, PICTURE, SUMMARY, TABLE, Item
from .formats.pictures import PICTURE_SUFFIXES, list_pictures, natural_key
from .formats.transforms import find_transforms
from .formats.video import VIDEO_SUFFIXES

RESERVED = (LOGS, INNER, SUMMARY, TABLE)  # names in the output folder


def find_items(
    folder: Path, out: Path, masks: Path | None = None
) -> tuple[list[Item], dict[str, str]]:
    """The items of a folder, in natural order, and what is none.

    A picture file is a picture. A video, and a folder with a transforms file or with pictures, is
    an orbit. Hidden entries, the output and the masks are passed over.

    Args:
        folder: Where the items lie, side by side.
        out: The output folder, which may lie in `folder`.
        masks: Folder with a mask for each picture, named like it, and with a folder of masks for
            each orbit; any may be missing.

    Returns:
        The items, and for every other entry its name and why it is left out.

    Raises:
        FileNotFoundError, NotADirectoryError: There is no such folder.
        ValueError: It is an orbit itself, has no items, or two would have one name.
    """
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; v3d batch takes a folder of many")
    if find_transforms(folder, "train") in (
        folder / "transforms.json",
        folder / "transforms_train.json",
    ):
        raise ValueError(
            f"{folder} is one orbit, it has a transforms file; use v3d reconstruct, or give the "
            "folder that it lies in"
        )
    if masks is not None and not masks.is_dir():
        raise FileNotFoundError(f"{masks}: no such folder of masks")
    passed = {path.resolve() for path in (out, masks) if path is not None}
    items: dict[str, Item] = {}
    others: dict[str, str] = {}
    for entry in sorted(folder.iterdir(), key=lambda entry: natural_key(entry.name)):
        if entry.name.startswith(".") or entry.resolve() in passed:
            continue
        kind, reason = kind_of(entry)
        if not kind:
            others[entry.name] = reason
            continue
        name = entry.name if entry.is_dir() else entry.stem
        other = items.get(name.lower())
        if other is not None:
            raise ValueError(
                f"{other.source} and {entry} would both go to {out / name}; rename one of them"
            )
        if name.lower() in RESERVED:
            raise ValueError(f"{entry}: v3d batch needs the name {name} itself; rename it")
        items[name.lower()] = Item(name, kind, entry, _mask_of(name, kind, masks))
    if not items:
        raise ValueError(f"{folder}: no pictures, videos or folders of frames in here")
    return [*items.values()], others


def kind_of(path: Path) -> tuple[str, str]:
    """`PICTURE`, `ORBIT` or nothing, and why it is nothing."""
    suffix = path.suffix.lower()
    if path.is_file():
        if suffix in PICTURE_SUFFIXES:
            return PICTURE, ""
        return (ORBIT, "") if suffix in VIDEO_SUFFIXES else ("", "neither a picture nor a video")
    if not path.is_dir():
        return "", "neither a file nor a folder"
    if find_transforms(path, "train") is not None:
        return ORBIT, ""
    try:
        list_pictures(path)
    except (ValueError, OSError):
        return "", "a folder without pictures and without a transforms file"
    return ORBIT, ""


def _mask_of(name: str, kind: str, masks: Path | None) -> Path | None:
    if masks is None:
        return None
    if kind == ORBIT:
        return masks / name if (masks / name).is_dir() else None
    for suffix in PICTURE_SUFFIXES:
        if (masks / f"{name}{suffix}").is_file():
            return masks / f"{name}{suffix}"
    return masks / f"{name}.png"  # missed only where the picture has no alpha
