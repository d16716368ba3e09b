"""Options of the `v3d` commands that read views, and the views they name."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from .cameras import ORBIT_PRESETS, V3D_ORBIT, Orbit
from .cli_shared import complain
from .formats.pictures import list_pictures, read_pictures
from .formats.views import LoadedViews, has_split, load_views
from .holdout import hold_out_every
from .images import from_uint8
from .normals import normals_of_views
from .structures import Views


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """Where the views come from, and their cameras."""
    parser.add_argument(
        "input", type=Path, help="folder of frames, a video, or a transforms.json data set"
    )
    parser.add_argument(
        "--masks", type=Path, metavar="DIR", help="one mask per frame, white = object"
    )
    add_view_options(parser)


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """Which frames are taken, and their cameras."""
    parser.add_argument(
        "--frames", type=int, metavar="N", help="take N frames, spread evenly; default: all"
    )
    orbit = parser.add_argument_group("cameras, where INPUT has no transforms.json")
    orbit.add_argument(
        "--orbit", choices=(*ORBIT_PRESETS, "custom"), default="v3d", help="%(default)s"
    )
    orbit.add_argument(
        "--num-views", type=int, help="of one turn; default: --frames, else the preset's"
    )
    orbit.add_argument(
        "--elevation", type=float, metavar="DEG", help="above the object is positive"
    )
    orbit.add_argument("--azimuth-start", type=float, metavar="DEG", help="of the first frame")
    orbit.add_argument("--radius", type=float, help=f"scene units; V3D: {V3D_ORBIT.radius:g}")
    orbit.add_argument(
        "--fov", type=float, metavar="DEG", help=f"vertical; V3D: {V3D_ORBIT.fov_y_deg:g}"
    )
    orbit.add_argument(
        "--clockwise", action="store_true", help="frames go clockwise seen from above"
    )


def add_hold_out(parser: argparse.ArgumentParser) -> None:
    """Views that are scored instead of fitted."""
    parser.add_argument(
        "--hold-out",
        type=int,
        default=0,
        metavar="N",
        help="score every Nth view instead of fitting it, where INPUT has no test views",
    )


def load(options: argparse.Namespace, orbit: Orbit | None, split: str) -> LoadedViews:
    """Views of one split; what the loader has to say is printed."""
    masks, frames = (options.masks, options.frames) if split == "train" else (None, None)
    loaded = load_views(options.input, orbit=orbit, masks=masks, split=split, frames=frames)
    for warning in loaded.warnings:
        complain(f"note: {warning}")
    return loaded


def held_out(options: argparse.Namespace, views: Views) -> tuple[Views, Views | None]:
    """The views to fit, and those that --hold-out sets aside."""
    if options.hold_out and has_split(options.input, "test"):
        raise ValueError(f"{options.input} has test views of its own; leave out --hold-out")
    return hold_out_every(views, options.hold_out)


def chosen_orbit(options: argparse.Namespace) -> Orbit:
    """The orbit preset with the options that were given."""
    orbit = ORBIT_PRESETS.get(options.orbit, V3D_ORBIT)
    given = {
        "num_views": options.frames if options.num_views is None else options.num_views,
        "elevation_deg": options.elevation,
        "azimuth_start_deg": options.azimuth_start,
        "radius": options.radius,
        "fov_y_deg": options.fov,
    }
    orbit = dataclasses.replace(orbit, **{k: v for k, v in given.items() if v is not None})
    if options.clockwise:
        orbit = dataclasses.replace(orbit, azimuth_step_deg=-360.0 / orbit.num_views)
    return orbit


def with_normals(views: Views, folder: Path, convention: str) -> Views:
    """Views with the normal maps of a folder: those of the frames' names, else all in order.

    Raises:
        ValueError: Their number or size is not that of the views.
    """
    files = {path.stem: path for path in list_pictures(folder)}
    named = [files[name] for name in views.names if name in files]
    chosen = named if len(named) == len(views) else list(files.values())
    if len(chosen) != len(views):
        raise ValueError(
            f"{folder}: {len(chosen)} normal maps but {len(views)} views; give one for each, "
            "named as the frame or in the same order"
        )
    encoded = from_uint8(read_pictures(chosen)[..., :3])
    return dataclasses.replace(views, normals=normals_of_views(encoded, views.masks, convention))
