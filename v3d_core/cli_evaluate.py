"""`v3d evaluate`: the public protocol on a folder of objects."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path
from typing import Any

from .cli_shared import (
    EXIT_FAILURE,
    add_seed_and_device,
    chosen_device,
    complain,
    progress_bar,
    say,
)
from .evaluation import REPORT_NAMES, Unit, evaluate, failures
from .evaluation_methods import DEFAULT_METHODS, METHODS, EvaluationConfig
from .neus.config import neus_preset
from .splats.config import SPLAT_PRESETS, guide_preset, splat_preset

DEFAULTS = EvaluationConfig()
SHOWN = (  # of a unit that ended, in its line
    ("psnr", "{:.2f} dB"),
    ("fscore_1pct", "F 1 % {:.3f}"),
    ("chamfer_l1", "Chamfer-L1 {:.4f}"),
    ("consistency", "{:.2f} dB"),
    ("seconds", "{:.1f} s"),
)


def add_evaluate_command(commands: Any) -> None:
    """Add `evaluate`."""
    parser = commands.add_parser(
        "evaluate", help="fit and score every object of a folder, and how consistent orbits are"
    )
    parser.add_argument(
        "data", type=Path, help="an object's folder (transforms_train.json), or a folder of them"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=METHODS,
        default=list(DEFAULT_METHODS),
        help="consistency needs no truth; texture is on the NeuS mesh where neus is among them, "
        "else on the splat's; default: all but hull",
    )
    parser.add_argument(
        "--preset", choices=tuple(SPLAT_PRESETS), default="normal", help="default: %(default)s"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of objects; default: all")
    parser.add_argument(
        "--runs",
        type=int,
        default=DEFAULTS.runs,
        metavar="N",
        help="of everything, with one seed after the other; default: %(default)s",
    )
    parser.add_argument("--overwrite", action="store_true", help="do again what DIR holds already")
    parser.add_argument("--commit", help="of the code, for the report; default: the checkout's")
    add_seed_and_device(parser)
    parser.set_defaults(run=run_evaluate)


def run_evaluate(options: argparse.Namespace) -> int:
    """Evaluate, and name what failed."""
    device = chosen_device(options.device)
    config = dataclasses.replace(
        DEFAULTS,
        methods=tuple(dict.fromkeys(options.methods)),
        splat=splat_preset(options.preset, device.type).with_changes(seed=options.seed),
        guide=guide_preset(options.preset, device.type),
        neus=neus_preset(options.preset, device.type),
        runs=options.runs,
    )
    record = evaluate(
        options.data,
        options.out,
        config,
        device,
        only=options.only,
        overwrite=options.overwrite,
        preset=options.preset,
        command=command_line(options),
        commit=options.commit or "",
        stage_progress=progress_bar,
        tell=_tell,
    )
    for name in REPORT_NAMES:
        say(str((options.out / name).resolve()))
    failed = failures(record)
    if failed:
        complain(f"v3d: {len(failed)} failed: " + ", ".join(f"{o} {m}" for o, m, _ in failed))
    return EXIT_FAILURE if failed else 0


def command_line(options: argparse.Namespace) -> str:
    """The command as somebody else would type it: folders cut to their names."""
    words = ["v3d", "evaluate", options.data.resolve().name, "--out", options.out.resolve().name]
    if options.methods != list(DEFAULT_METHODS):
        words += ["--methods", *options.methods]
    words += ["--preset", options.preset]
    words += ["--only", *options.only] if options.only else []
    words += ["--runs", str(options.runs)] if options.runs != DEFAULTS.runs else []
    words += ["--seed", str(options.seed), "--device", options.device]
    return shlex.join(words)


def _tell(unit: Unit) -> None:
    label = f"{unit.object_name} {unit.method}"
    if unit.kind in ("failed", "skipped"):
        complain(f"{label} {unit.kind}: {unit.reason}")
        return
    means = unit.result["means"]
    figures = [form.format(means[key]) for key, form in SHOWN if key in means]
    say(f"{label}{' kept' if unit.kind == 'kept' else ''}: {', '.join(figures)}")
