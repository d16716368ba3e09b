"""`v3d refine` and `v3d export`: from any mesh and views to a finished asset, and to other formats."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from .cli_input import add_input_options, chosen_orbit, load
from .cli_shared import chosen_device, progress_bar, say, shown_options
from .formats.mesh_files import MESH_SUFFIXES, read_mesh, require_mesh_suffix, write_mesh
from .mesh.asset import ALIGN_CHOICES, AssetConfig, make_asset
from .reconstruct import prepare_output, write_png
from .report import Stopwatch, environment, memory, write_report

DEFAULTS = AssetConfig()
PICTURES = ("texture.png", "unseen.png")


def add_refine_commands(commands: Any) -> None:
    """Add `refine` and `export`."""
    refine = commands.add_parser(
        "refine", help="any mesh and your views to a light mesh with a texture"
    )
    refine.add_argument("mesh", type=Path, help="in the frame of the cameras; .glb .obj .ply .stl")
    add_input_options(refine)
    refine.add_argument("--out", type=Path, required=True, metavar="DIR")
    add_asset_options(refine, texture_size=DEFAULTS.texture_size)
    refine.add_argument(
        "--align",
        choices=ALIGN_CHOICES,
        default=DEFAULTS.align,
        help="lay views that disagree, as those of video models, on the surface; default: "
        "%(default)s",
    )
    refine.add_argument(
        "--refine-geometry",
        action=argparse.BooleanOptionalAction,
        default=DEFAULTS.refine_geometry,
        help="first move vertices to where the views see the surface, if they agree; default: on",
    )
    refine.add_argument(
        "--new-uvs", action="store_true", help="unwrap anew even if the mesh has uvs"
    )
    refine.add_argument("--views", type=int, metavar="N", help="use so many views; default: all")
    refine.add_argument(
        "--lpips-weight",
        type=float,
        default=DEFAULTS.lpips_weight,
        metavar="W",
        help="of the perceptual distance in the extra steps (extra lpips); default: %(default)s",
    )
    refine.add_argument(
        "--iterations",
        type=int,
        default=DEFAULTS.iterations,
        metavar="N",
        help="extra steps of Adam after the solver; default: %(default)s",
    )
    refine.add_argument(
        "--format",
        choices=[suffix.lstrip(".") for suffix in MESH_SUFFIXES if suffix != ".stl"],
        default="glb",
        help="of the asset; default: %(default)s",
    )
    refine.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="%(default)s"
    )
    refine.set_defaults(run=run_refine)

    export = commands.add_parser(
        "export", help="convert a mesh between .glb, .ply, .obj, .stl and to .usdz"
    )
    export.add_argument("input", type=Path)
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    export.add_argument(
        "--print-size",
        type=float,
        metavar="MM",
        help="of an .stl: longest side in millimetres; default: 1 unit is 1 m",
    )
    export.add_argument(
        "--unlit", action="store_true", help="colours as they are, without a viewer's lights"
    )
    export.set_defaults(run=run_export)


def add_asset_options(parser: argparse._ActionsContainer, texture_size: int) -> None:
    """Faces and texels of a finished asset."""
    parser.add_argument(
        "--faces",
        type=int,
        default=DEFAULTS.faces,
        metavar="N",
        help="triangles of the textured mesh at most, 0 = all; default: %(default)s",
    )
    parser.add_argument(
        "--texture-size",
        type=int,
        default=texture_size,
        metavar="PX",
        help="texels along a side; default: %(default)s",
    )


def run_refine(options: argparse.Namespace) -> None:
    """A mesh file and views to a textured mesh, its pictures and a report."""
    device = chosen_device(options.device)
    config = AssetConfig(
        faces=options.faces,
        texture_size=options.texture_size,
        align=options.align,
        unwrap=options.new_uvs,
        num_views=options.views,
        lpips_weight=options.lpips_weight,
        iterations=options.iterations,
        refine_geometry=options.refine_geometry,
    )
    out: Path = options.out
    prepare_output(out)
    name = f"textured.{options.format}"
    require_mesh_suffix(out / name)
    stopwatch = Stopwatch()
    with stopwatch.stage("load"):
        mesh = read_mesh(options.mesh).to(device)
        loaded = load(options, chosen_orbit(options), "train")
    with stopwatch.stage("texture"), progress_bar("texture") as progress:
        asset = make_asset(mesh, loaded.views.to(device), config, progress=progress)
    write_mesh(out / name, asset.mesh)
    texture = asset.mesh.texture
    assert texture is not None
    write_png(out / PICTURES[0], texture)
    write_png(out / PICTURES[1], asset.unseen[..., None].expand(-1, -1, 3).float())
    report = {
        "options": shown_options(options),
        **environment(device),
        **asset.report,
        "mesh": {"vertices": len(asset.mesh.vertices), "faces": len(asset.mesh.faces)},
        "seconds": stopwatch.rounded(),
        "peak_memory": memory(device),
        "files": [name, *PICTURES],
        "warnings": list(loaded.warnings),
    }
    write_report(out / "report.json", report)
    for file in (*report["files"], "report.json"):
        say(f"{(out / file).resolve()}")
    figures = asset.report["texture"]
    say(
        f"{len(asset.mesh.faces):,} faces, texture of {figures['resolution']} px, "
        f"{figures['db']:.2f} dB, {100 * figures['seen_share']:.0f} % seen, "
        f"{report['seconds']['total']:.1f} s"
    )


def run_export(options: argparse.Namespace) -> None:
    """One mesh file to another format."""
    require_mesh_suffix(options.out)
    if options.print_size is not None and options.out.suffix.lower() != ".stl":
        raise ValueError(f"--print-size is for .stl files, got {options.out.name}")
    mesh = read_mesh(options.input)
    write_mesh(
        options.out, mesh, unlit=True if options.unlit else None, stl_size_mm=options.print_size
    )
    say(f"{options.out}: {len(mesh.vertices):,} vertices, {len(mesh.faces):,} faces")
