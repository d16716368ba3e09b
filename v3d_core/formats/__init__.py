"""Files in and out; every writer is complete or leaves nothing.

This is the table of contents. A name is imported from its module at first use, so that importing
the package costs nothing.
"""

from importlib import import_module

_CONTENTS = {
    "atomic": ("OutputError", "atomic_folder", "atomic_path"),
    "colmap": ("write_colmap_text",),
    "mesh_files": ("MESH_SUFFIXES", "read_mesh", "write_mesh"),
    "ply": ("read_splat_ply", "write_splat_ply"),
    "video": ("VIDEO_SUFFIXES", "read_video_frames", "write_video"),
    "views": ("LoadedViews", "has_split", "load_views", "save_views"),
}
_HOME = {name: module for module, names in _CONTENTS.items() for name in names}

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
