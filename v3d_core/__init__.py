"""Views of one object in, Gaussian splats and meshes out; knows torch, not ComfyUI.

This is the table of contents. A name is imported from its module at first use, so that importing
the package costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_CONTENTS = {
    # values that travel between stages
    "structures": ("Cameras", "GaussianSplats", "Mesh", "Views"),
    "progress": ("Progress", "silent"),
    # cameras and frames
    "cameras": (
        "ORBIT_PRESETS",
        "Orbit",
        "camera_rays",
        "flip_splat_frame",
        "look_at",
        "orbit_cameras",
        "project_points",
        "resize_cameras",
    ),
    "backends": ("MissingPackageError",),
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
