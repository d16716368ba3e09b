"""`v3d orbit-data`: data sets of orbits to train on, from meshes and from procedural objects."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from .cameras import Orbit
from .cli_shared import (
    EXIT_BAD_INPUT,
    add_seed_and_device,
    chosen_device,
    complain,
    progress_bar,
    say,
    shown_options,
)
from .reconstruct import write_png
from .report import Stopwatch, environment, memory, write_report
from .training.mesh_orbits import SHADINGS, MeshOrbitConfig
from .training.orbit_data import (
    SHEET_OBJECTS,
    MeshFiles,
    OrbitDataConfig,
    OrbitSource,
    ProceduralObjects,
    make_orbit_data,
    orbit_sheet,
)
from .training.shards import OrbitShards

DEFAULTS = OrbitDataConfig()
REPORT = "report.json"


def add_train_data_command(commands: Any) -> None:
    """Add `orbit-data`."""
    data = commands.add_parser(
        "orbit-data", help="orbits of meshes or procedural objects, to train a model on"
    )
    data.add_argument(
        "source",
        type=Path,
        nargs="*",
        help="mesh files, or folders of them with all sub-folders; +Y up, front on +Z; .glb .obj "
        ".ply .stl",
    )
    data.add_argument("--out", type=Path, required=True, metavar="DIR", help="goes on if it exists")
    data.add_argument(
        "--procedural", type=int, default=0, metavar="N", help="so many objects made from numbers"
    )
    data.add_argument(
        "--first-seed", type=int, default=0, metavar="S", help="of those; default: %(default)s"
    )
    render = DEFAULTS.render
    data.add_argument(
        "--size", type=int, default=render.size, metavar="PX", help="of a frame; %(default)s"
    )
    data.add_argument(
        "--views", type=int, default=render.orbit.num_views, metavar="N", help="%(default)s"
    )
    data.add_argument(
        "--shading",
        choices=SHADINGS,
        help="flat: colours as they are; lit: under lamps that stand still; default: lit with "
        f"--procedural, else {render.shading}",
    )
    data.add_argument(
        "--supersample",
        type=int,
        default=render.supersample,
        metavar="N",
        help="N x N rays per pixel; default: %(default)s",
    )
    data.add_argument(
        "--fill",
        type=float,
        default=render.fill,
        metavar="SHARE",
        help="of the frame that a mesh takes in the view where it is largest; default: %(default)s",
    )
    data.add_argument(
        "--random-azimuth",
        action="store_true",
        help="turn each mesh by an angle that --seed and its name decide",
    )
    data.add_argument(
        "--validation",
        type=float,
        default=DEFAULTS.validation,
        metavar="SHARE",
        help="of the objects; chosen by name, so that adding data moves none; default: %(default)s",
    )
    data.add_argument(
        "--shard-objects",
        type=int,
        default=DEFAULTS.shard_objects,
        metavar="N",
        help="orbits per file; default: %(default)s",
    )
    data.add_argument(
        "--sheet", type=Path, metavar="FILE.png", help=f"picture of {SHEET_OBJECTS} of the orbits"
    )
    add_seed_and_device(data)
    data.set_defaults(run=run_orbit_data)


def run_orbit_data(options: argparse.Namespace) -> int:
    """Objects to shards of orbits, with a report; the exit code says whether there are any."""
    device = chosen_device(options.device)
    config = chosen_config(options)
    sources: list[OrbitSource] = []
    if options.source:
        sources.append(MeshFiles(options.source))
    if options.procedural:
        sources.append(ProceduralObjects(options.procedural, options.first_seed))
    if not sources:
        raise ValueError("nothing to render: give mesh files or folders, or --procedural N")
    stopwatch = Stopwatch()
    with stopwatch.stage("render"), progress_bar("orbit-data") as progress:
        result = make_orbit_data(options.out, sources, config, device, progress)
    data = OrbitShards(options.out, "all")
    splits = {split: len(OrbitShards(options.out, split)) for split in ("train", "validation")}
    sheets = []
    if options.sheet and len(data):
        write_sheet(options.sheet, data)
        sheets = [str(options.sheet)]
    report = {
        "options": shown_options(options),
        **environment(device),
        "orbits": {"added": result.added, "already_there": result.kept, **splits},
        "skipped": result.skipped,
        "bytes": sum(shard["bytes"] for shard in data.index["shards"]),
        "seconds": stopwatch.rounded(),
        "peak_memory": memory(device),
        "sheets": sheets,
    }
    write_report(options.out / REPORT, report)
    for name, reason in result.skipped.items():
        complain(f"skipped: {name}: {reason}")
    say(
        f"{options.out.resolve()}: {result.added:,} orbits added, {result.kept:,} were there, "
        f"{len(result.skipped):,} skipped; {splits['train']:,} to train on, "
        f"{splits['validation']:,} for validation; {report['bytes'] / 2**20:,.0f} MiB"
    )
    if not len(data):
        complain("v3d: no object could be rendered")
        return EXIT_BAD_INPUT
    return 0


def chosen_config(options: argparse.Namespace) -> OrbitDataConfig:
    """The settings with the options that were given."""
    orbit: Orbit = dataclasses.replace(DEFAULTS.render.orbit, num_views=options.views)
    shading = options.shading or ("lit" if options.procedural else DEFAULTS.render.shading)
    return OrbitDataConfig(
        MeshOrbitConfig(options.size, orbit, options.supersample, shading, options.fill),
        options.seed,
        options.random_azimuth,
        options.validation,
        options.shard_objects,
    )


def write_sheet(path: Path, data: OrbitShards) -> None:
    """A PNG with a row for each of some orbits, spread over the data set."""
    import torch

    count = min(SHEET_OBJECTS, len(data))
    chosen = [k * len(data) // count for k in range(count)]
    write_png(path, orbit_sheet(torch.stack([data[k] for k in chosen])))
