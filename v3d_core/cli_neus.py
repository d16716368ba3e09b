"""`v3d fit-neus` and `v3d extract-mesh`: a surface from views, meshes from a fitted surface."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from .cli_input import add_input_options, chosen_orbit, load, with_normals
from .cli_shared import add_seed_and_device, chosen_device, progress_bar, say, shown_options
from .formats.mesh_files import require_mesh_suffix, write_mesh
from .neus.config import NEUS_PRESETS, NeusFitConfig, for_aligned_frames, neus_preset
from .neus.extract import DEFAULT_RESOLUTION, ExtractConfig, extract_mesh, require_resolution
from .neus.fit import fit_neus
from .neus.store import load_field, save_field
from .normals import NORMALS_CONVENTIONS
from .reconstruct import FIELD_NAME, MESH_NAMES, prepare_output
from .report import Stopwatch, environment, memory, write_report
from .splats.config import ALIGN_CHOICES
from .splats.consensus import align_frames


def add_neus_commands(commands: Any) -> None:
    """`fit-neus` and `extract-mesh`."""
    fit = commands.add_parser("fit-neus", help="a smooth, closed surface fitted to your views")
    add_input_options(fit)
    fit.add_argument("--out", type=Path, required=True, metavar="DIR")
    group = fit.add_argument_group("fit")
    group.add_argument(
        "--preset", choices=tuple(NEUS_PRESETS), default="normal", help="%(default)s"
    )
    group.add_argument("--steps", type=int, metavar="N", help="optimiser steps")
    group.add_argument("--resolution", type=int, metavar="PX", help="longer side that is fitted")
    group.add_argument(
        "--align",
        choices=ALIGN_CHOICES,
        default="auto",
        help="lay frames that disagree, as those of video models, on one object first; "
        "default: %(default)s",
    )
    group.add_argument(
        "--normals", type=Path, metavar="DIR", help="normal maps of the frames, which are followed"
    )
    group.add_argument(
        "--normals-convention",
        choices=tuple(NORMALS_CONVENTIONS),
        default="opengl",
        help="camera axes of the normal maps: opengl: y up, z to the viewer; opencv: y down, z "
        "away; default: %(default)s",
    )
    _add_resolution(group, "--mesh-resolution")
    add_seed_and_device(group)
    fit.set_defaults(run=run_fit_neus)

    extract = commands.add_parser("extract-mesh", help="a mesh of another resolution from a fit")
    extract.add_argument("input", type=Path, metavar=FIELD_NAME)
    extract.add_argument("--out", type=Path, required=True, metavar="FILE")
    _add_resolution(extract, "--resolution")
    extract.add_argument(
        "--min-part",
        type=float,
        metavar="SHARE",
        default=ExtractConfig().min_component_share,
        help="smallest separate part, as a share of the largest one's area; default: %(default)s",
    )
    extract.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="%(default)s"
    )
    extract.set_defaults(run=run_extract_mesh)


def _add_resolution(parser: argparse._ActionsContainer, name: str) -> None:
    parser.add_argument(
        name,
        type=int,
        metavar="VOXELS",
        default=DEFAULT_RESOLUTION,
        help="of the mesh, along the object's longest side; default: %(default)s",
    )


def run_fit_neus(options: argparse.Namespace) -> None:
    """Views to a field, its mesh and a report."""
    device = chosen_device(options.device)
    config = chosen_neus(options).with_changes(steps=options.steps, resolution=options.resolution)
    require_resolution(options.mesh_resolution)  # before minutes of work
    out: Path = options.out
    prepare_output(out)
    stopwatch = Stopwatch()
    with stopwatch.stage("load"):
        loaded = load(options, chosen_orbit(options), "train")
        views = loaded.views
        if options.normals is not None:
            views = with_normals(views, options.normals, options.normals_convention)
        views = views.to(device)
    with stopwatch.stage("align"), progress_bar("align") as progress:
        consensus = align_frames(views, options.align, seed=options.seed, progress=progress)
    with stopwatch.stage("fit"), progress_bar("fit NeuS") as progress:
        if consensus is not None:
            views, config = consensus.views, for_aligned_frames(config)
        fit = fit_neus(views, config, progress=progress)
    save_field(out / FIELD_NAME, fit.field)
    with stopwatch.stage("mesh"), progress_bar("mesh") as progress:
        mesh = extract_mesh(fit.field, options.mesh_resolution, progress=progress)
        for name in MESH_NAMES:
            write_mesh(out / name, mesh)
    report = {
        "options": shown_options(options),
        **environment(device),
        "fit_settings": dataclasses.asdict(config),
        "views": {
            "count": len(views),
            "width": views.cameras.width,
            "height": views.cameras.height,
        },
        "frames": "agree" if consensus is None else "disagree",
        "per_view": None if consensus is None else consensus.per_view,
        "fit": fit.report,
        "mesh": {"vertices": len(mesh.vertices), "faces": len(mesh.faces)},
        "seconds": stopwatch.rounded(),
        "peak_memory": memory(device),
        "files": [FIELD_NAME, *MESH_NAMES],
        "warnings": list(loaded.warnings),
    }
    write_report(out / "report.json", report)
    for name in (*report["files"], "report.json"):
        say(f"{(out / name).resolve()}")
    say(
        f"{len(mesh.faces):,} faces, {fit.report['psnr_train']:.2f} dB on the fitted views, "
        f"{report['seconds']['total']:.1f} s, {report['peak_memory']['resident_mib']:,.0f} MiB at most"
    )


def run_extract_mesh(options: argparse.Namespace) -> None:
    """A fitted field to a mesh file."""
    require_mesh_suffix(options.out)
    device = chosen_device(options.device)
    field = load_field(options.input).to(device)
    config = ExtractConfig(min_component_share=options.min_part)
    prepare_output(options.out.parent)
    with progress_bar("mesh") as progress:
        mesh = extract_mesh(field, options.resolution, config=config, progress=progress)
    write_mesh(options.out, mesh)
    say(f"{options.out}: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces")


def chosen_neus(options: argparse.Namespace) -> NeusFitConfig:
    """The surface fit's settings for a command's preset, seed and device."""
    preset = neus_preset(options.preset, chosen_device(options.device).type)
    return preset.with_changes(seed=options.seed)
