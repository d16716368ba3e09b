"""The `v3d` command: options to settings, one call into the library, errors in one line."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from . import __version__
from .cameras import Orbit
from .cli_batch import add_batch_command
from .cli_env import add_env_command
from .cli_evaluate import add_evaluate_command
from .cli_generate import (
    add_convert_command,
    add_orbit_options,
    add_sample_command,
    chosen_parts,
    chosen_settings,
    sample_one,
)
from .cli_input import add_hold_out, add_input_options, chosen_orbit, held_out, load
from .cli_neus import add_neus_commands, chosen_neus
from .cli_refine import add_asset_options, add_refine_commands
from .cli_shared import (
    EXIT_BAD_INPUT,
    EXIT_CANCELLED,
    EXIT_FAILURE,
    add_seed_and_device,
    chosen_device,
    progress_bar,
    shown_options,
)
from .cli_train import add_train_command
from .cli_train_data import add_train_data_command
from .demo_picture import PICTURE as DEMO_PICTURE
from .demo_picture import orbit_scores, true_orbit
from .diffusion.bundled import NANO, NANO_STEPS
from .formats.ply import write_splat_ply
from .formats.views import has_split
from .generate import BAD_INPUT
from .mesh.asset import AssetConfig
from .mesh.config import SplatMeshConfig
from .reconstruct import prepare_output, reconstruct
from .report import Stopwatch, write_report
from .splats.config import (
    ALIGN_CHOICES,
    SPLAT_PRESETS,
    SplatFitConfig,
    guide_preset,
    splat_preset,
)
from .splats.fit import fit_splats
from .structures import Views

DEFAULT_ASSET = AssetConfig()
TEXTURE_SIZE = DEFAULT_ASSET.texture_size
DEMO_ORBIT = Path(__file__).parent / "data" / "demo_orbit"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.debug else logging.WARNING)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("v3d: stopped; no half-written file is left", file=sys.stderr)
        return EXIT_CANCELLED
    except Exception as error:
        if options.debug:
            raise
        bad_input = isinstance(error, BAD_INPUT)
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        hint = "" if bad_input else " (--debug shows where)"
        print(f"v3d: {kind}{error}{hint}", file=sys.stderr)
        return EXIT_BAD_INPUT if bad_input else EXIT_FAILURE


def build_parser() -> argparse.ArgumentParser:
    """All commands and their options; defaults come from the settings classes."""
    parser = argparse.ArgumentParser(
        prog="v3d", description="Pictures to orbits, orbits to splats and meshes."
    )
    parser.add_argument("--version", action="version", version=f"v3d {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    demo = commands.add_parser(
        "demo", help="a picture shipped with v3d to an orbit, splat, mesh and turntable"
    )
    demo.add_argument("--out", type=Path, default=Path("out/demo"), help="default: %(default)s")
    demo.add_argument(
        "--from-orbit",
        action="store_true",
        help="start from a shipped orbit of rendered pictures instead; no video model runs",
    )
    demo.add_argument(
        "--steps", type=int, default=NANO_STEPS, help="of the video model; %(default)s"
    )
    _add_fit_options(demo, preset="normal")
    demo.set_defaults(run=run_demo)

    full = commands.add_parser(
        "reconstruct", help="splat, mesh, turntable and scores of your views"
    )
    add_input_options(full)
    full.add_argument("--out", type=Path, required=True, metavar="DIR")
    _add_fit_options(full, preset="normal")
    add_hold_out(full)
    _add_mesh(full)
    full.set_defaults(run=run_reconstruct)

    splat = commands.add_parser("fit-splat", help="the splat alone")
    add_input_options(splat)
    splat.add_argument("--out", type=Path, required=True, metavar="FILE.ply|DIR")
    _add_fit_options(splat, preset="normal")
    add_hold_out(splat)
    splat.set_defaults(run=run_fit_splat)

    add_neus_commands(commands)
    add_sample_command(commands)

    picture = commands.add_parser(
        "image-to-3d", help="one picture to an orbit, and on to splat, mesh and turntable"
    )
    picture.add_argument("image", type=Path, help="picture of one object")
    picture.add_argument("--out", type=Path, required=True, metavar="DIR")
    add_orbit_options(picture)
    _add_fit_options(picture, preset="normal")
    add_hold_out(picture)
    _add_mesh(picture)
    picture.set_defaults(run=run_image_to_3d)

    batch = add_batch_command(commands)
    _add_fit_options(batch, preset="normal")
    _add_mesh(batch)

    add_convert_command(commands)

    add_refine_commands(commands)

    add_train_data_command(commands)

    add_train_command(commands)

    add_evaluate_command(commands)

    add_env_command(commands)

    for command in commands.choices.values():
        command.add_argument("--debug", action="store_true", help="log, and show tracebacks")
    return parser


def _add_fit_options(parser: argparse.ArgumentParser, preset: str) -> None:
    fit = parser.add_argument_group("fit")
    fit.add_argument("--preset", choices=tuple(SPLAT_PRESETS), default=preset, help="%(default)s")
    fit.add_argument("--resolution", type=int, metavar="PX", help="longer side that is fitted")
    fit.add_argument("--max-splats", type=int, metavar="N", help="budget of splats")
    fit.add_argument(
        "--seconds", type=float, metavar="S", help="time budget: the best fit within it"
    )
    fit.add_argument(
        "--align",
        choices=ALIGN_CHOICES,
        help="lay frames that disagree, as those of video models, on one object; default: the "
        "preset's, auto",
    )
    add_seed_and_device(fit)


def _add_mesh(parser: argparse.ArgumentParser) -> None:
    add_asset_options(parser, texture_size=TEXTURE_SIZE)
    parser.add_argument(
        "--mesh",
        choices=("splat", "neus", "none"),
        default="splat",
        help="splat: from its depth, in seconds; neus: a surface fitted to the views, smoother and "
        "more exact, in minutes on a CPU, where the splat that guides it takes longer, too; "
        "default: %(default)s",
    )


def run_demo(options: argparse.Namespace) -> int:
    """Go the whole way from the picture that the package ships, or from its orbit."""
    if options.from_orbit:
        print(f"The demo orbit is a robot that v3d makes and renders itself: {DEMO_ORBIT}")
        options.input, options.masks, options.frames, options.mesh = DEMO_ORBIT, None, None, "splat"
        options.hold_out, options.faces, options.texture_size = 0, DEFAULT_ASSET.faces, TEXTURE_SIZE
        _reconstruct(options, orbit=None)
        return 0
    same = ["image-to-3d", str(DEMO_PICTURE), "--model", NANO, "--out", str(options.out)]
    print(
        f"The demo does what this does, and compares the result with the truth:\nv3d {' '.join(same)}"
    )
    defaults = build_parser().parse_args(same)
    full = argparse.Namespace(**{**vars(defaults), **vars(options)})
    return _image_to_3d(full, true_orbit(chosen_settings(full, chosen_parts(full))[1].size))


def run_reconstruct(options: argparse.Namespace) -> None:
    """Everything that can be had from the user's views."""
    _reconstruct(options, orbit=chosen_orbit(options))


def run_image_to_3d(options: argparse.Namespace) -> int:
    """Sample an orbit into a folder beside the results, then reconstruct it."""
    return _image_to_3d(options)


def _image_to_3d(options: argparse.Namespace, truth: Views | None = None) -> int:
    chosen_fit(options)  # what is wrong there shall be said before the long part
    chosen_asset(options)
    orbit = options.out / "orbit"
    code = sample_one(options, options.image, orbit)
    if not code:
        views = {"input": orbit, "masks": None, "frames": None, "picture_masks": options.masks}
        _reconstruct(argparse.Namespace(**{**vars(options), **views}), orbit=None, truth=truth)
    return code


def _reconstruct(
    options: argparse.Namespace, orbit: Orbit | None, truth: Views | None = None
) -> None:
    """`truth`: what the object really looks like from the views' cameras; the result is scored."""
    device = chosen_device(options.device)
    config = chosen_fit(options)
    prepare_output(options.out)
    stopwatch = Stopwatch()
    with stopwatch.stage("load"):
        loaded = load(options, orbit, "train")
        views, test_views = held_out(options, loaded.views)
        if has_split(options.input, "test"):
            test_views = load(options, orbit, "test").views
    report = reconstruct(
        views.to(device),
        options.out,
        config,
        SplatMeshConfig() if options.mesh == "splat" else None,
        neus_config=chosen_neus(options) if options.mesh == "neus" else None,
        asset_config=chosen_asset(options),
        test_views=test_views if truth is None else truth,
        warnings=tuple(loaded.warnings),
        stage_progress=progress_bar,
        stopwatch=stopwatch,
    )
    report = {"options": shown_options(options), **report}
    if truth is not None:
        report["orbit"] = orbit_scores(views, truth)
    write_report(options.out / "report.json", report)
    print_report(report, options.out)


def run_fit_splat(options: argparse.Namespace) -> None:
    """The splat part alone."""
    device = chosen_device(options.device)
    config = chosen_fit(options)
    path = options.out if options.out.suffix.lower() == ".ply" else options.out / "splat.ply"
    prepare_output(path.parent)
    views, test_views = held_out(options, load(options, chosen_orbit(options), "train").views)
    start = time.perf_counter()
    with progress_bar("fit splat") as progress:
        fit = fit_splats(
            views.to(device),
            config,
            progress=progress,
            test_views=None if test_views is None else test_views.to(device),
        )
    write_splat_ply(path, fit.splats)
    seconds = time.perf_counter() - start
    print(f"{path}: {len(fit.splats):,} splats in {seconds:.1f} s, seed {config.seed}")
    if test_views is not None:
        print(f"held-out: {fit.report['psnr_test']:.2f} dB ({len(test_views)} views)")


def chosen_asset(options: argparse.Namespace) -> AssetConfig | None:
    """What the textured mesh is like, or None where there shall be none."""
    if options.mesh == "none" or not options.texture_size:
        return None
    return AssetConfig(
        faces=options.faces, texture_size=options.texture_size, align=options.align or "auto"
    )


def chosen_fit(options: argparse.Namespace) -> SplatFitConfig:
    """The preset with the options that were given."""
    preset_for = guide_preset if getattr(options, "mesh", None) == "neus" else splat_preset
    preset = preset_for(options.preset, chosen_device(options.device).type)
    return preset.with_changes(
        seed=options.seed,
        resolution=options.resolution,
        max_splats=options.max_splats,
        seconds=options.seconds,
        align=options.align,
    )


def print_report(report: dict, folder: Path) -> None:
    """Where the files are, how good and how long."""
    for name in (*report["files"], "report.json"):
        print(f"{(folder / name).resolve()}")
    if orbit := report.get("orbit"):
        print(
            f"the orbit against the object's true views: {orbit['psnr']:.2f} dB, its first frame "
            f"{orbit['psnr_first']:.2f} dB"
        )
    if scores := report["scores"]:
        against = "the splat against them" if orbit else "held-out"
        print(
            f"{against}: {scores['psnr']:.2f} dB, on the object {scores['psnr_object']:.2f} dB, "
            f"SSIM {scores['ssim']:.4f}, alpha IoU {scores['alpha_iou']:.4f} "
            f"({len(scores['per_view'])} views in {(folder / 'test').resolve()})"
        )
    peak = report["peak_memory"]["resident_mib"]
    print(
        f"{report['splats']:,} splats, {report['seconds']['total']:.1f} s, {peak:,.0f} MiB at most"
    )
