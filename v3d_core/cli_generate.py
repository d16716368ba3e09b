"""Commands that make orbits from pictures and convert models: options to settings, one call each."""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .cli_shared import (
    EXIT_BAD_INPUT,
    EXIT_FAILURE,
    add_seed_and_device,
    chosen_device,
    complain,
    progress_bar,
    say,
)
from .diffusion.bundled import NANO, TrainedFor, nano_file, trained_for
from .diffusion.conditioning import VAE_MODES
from .diffusion.convert import convert_to_diffusers, convert_to_safetensors
from .diffusion.families import SV3D_P, V3D, OrbitFamily, family_of
from .diffusion.guidance import GUIDANCE_KINDS
from .diffusion.layout import UNetShape
from .diffusion.model_files import (
    SV3D_FILES,
    SVD_FILE,
    SVD_HOME,
    V3D_FILE,
    V3D_HOME,
    ModelParts,
    find_model,
)
from .diffusion.orbit import OrbitConfig
from .diffusion.settings import advice, chosen_config
from .generate import ModelSource, PictureJob, PictureOutcome, plan_jobs, sample_pictures
from .prepare import PrepareConfig

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
OFFLOAD = {"auto": None, "on": True, "off": False}
_SHOWN_ENTRIES = 3  # names in a line about what was left out; the rest is counted


def add_sample_command(commands: Any) -> None:
    """`v3d sample`."""
    sample = commands.add_parser("sample", help="pictures to orbits of frames")
    sample.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="pictures of one object, or folders"
    )
    sample.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="gets a folder for each picture"
    )
    add_orbit_options(sample)
    add_seed_and_device(sample)
    sample.set_defaults(run=run_sample)


def add_convert_command(commands: Any) -> None:
    """`v3d convert`."""
    convert = commands.add_parser(
        "convert", help="a model to half its size, or to the folder that diffusers loads"
    )
    convert.add_argument("model", type=Path, help=f"{V3D_FILE} or another model of its kind")
    convert.add_argument(
        "--out", type=Path, required=True, metavar="FILE.safetensors|FOLDER", help="what to make"
    )
    add_companion(convert)
    convert.add_argument("--dtype", choices=tuple(DTYPES), default="float16", help="%(default)s")
    convert.set_defaults(run=run_convert)


def add_orbit_options(parser: argparse.ArgumentParser) -> None:
    """Model, picture and sampling; seed and device are added with `add_seed_and_device`."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        type=Path,
        metavar="PATH",
        help=f"{V3D_FILE}, {SV3D_FILES[0]}, {SV3D_FILES[1]}, or {NANO}: a small model for trying, which comes with v3d; default: "
        "$V3D_MODEL",
    )
    add_companion(model)
    model.add_argument(
        "--dtype", choices=("auto", *DTYPES), default="auto", help="auto: float16 on CUDA"
    )
    model.add_argument(
        "--offload",
        choices=tuple(OFFLOAD),
        default="auto",
        help="only the network at work is on the GPU; auto: below 16 GB of free memory",
    )
    model.add_argument("--compile", action="store_true", help="slow first step, faster others")

    prepare, orbit = PrepareConfig(), OrbitConfig()
    picture = parser.add_argument_group("picture")
    picture.add_argument(
        "--masks", type=Path, metavar="PATH", help="mask, or folder of masks; white = object"
    )
    picture.add_argument(
        "--size",
        type=int,
        metavar="PX",
        help=f"of the frames; default: the model's, {prepare.size} of V3D, {SV3D_P.size} of SV3D",
    )
    picture.add_argument(
        "--border-ratio",
        type=float,
        default=prepare.border_ratio,
        metavar="SHARE",
        help="free space around the object; %(default)s",
    )

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--steps",
        type=int,
        help=f"default: the model's, {orbit.sampler.steps} of V3D, {SV3D_P.steps} of SV3D",
    )
    guidance = orbit.guidance
    sampling.add_argument(
        "--guidance",
        choices=GUIDANCE_KINDS,
        help=f"default: the model's, {guidance.kind} of V3D, {SV3D_P.guidance.kind} of SV3D",
    )
    sampling.add_argument(
        "--scale",
        type=float,
        help=f"of the guidance; default: the model's, {guidance.scale} of V3D, "
        f"{SV3D_P.guidance.scale} of SV3D",
    )
    sampling.add_argument(
        "--picture-elevation",
        type=float,
        default=orbit.conditioning.elevation_deg,
        metavar="DEG",
        help="height the picture was taken from, where SV3D's orbit stays; V3D's is %(default)g",
    )
    sampling.add_argument(
        "--min-scale",
        type=float,
        default=guidance.min_scale,
        metavar="SCALE",
        help="where linear and triangle guidance start; %(default)s",
    )
    sampling.add_argument(
        "--overwrite", action="store_true", help="make orbits again that are there already"
    )
    _add_advanced_options(parser, prepare, orbit)


def _add_advanced_options(
    parser: argparse.ArgumentParser, prepare: PrepareConfig, orbit: OrbitConfig
) -> None:
    advanced = parser.add_argument_group("advanced: what V3D was tuned with, and memory")
    numbers = orbit.conditioning
    for name, kind, own in (
        ("--num-frames", int, [numbers.num_frames, SV3D_P.frames]),
        ("--cond-aug", float, [numbers.cond_aug, SV3D_P.cond_aug]),
    ):
        text = "default: the model's, {:g} of V3D, {:g} of SV3D".format(*own)
        advanced.add_argument(name, type=kind, metavar="N", help=text)
    for name, default, kind in (
        ("--fps-id", numbers.fps_id, float),
        ("--motion-bucket-id", numbers.motion_bucket_id, float),
        ("--mask-threshold", prepare.mask_threshold, float),
    ):
        advanced.add_argument(name, type=kind, default=default, metavar="N", help="%(default)s")
    advanced.add_argument(
        "--vae-mode", choices=VAE_MODES, default=numbers.vae_mode, help="%(default)s"
    )
    advanced.add_argument(
        "--decode-frames",
        type=int,
        default=orbit.decode_frames,
        metavar="N",
        help="frames in the decoder's work at a time, the result is the same; 0: as many as fit",
    )


def add_companion(parser: argparse._ActionsContainer) -> None:
    """Option for the files of what the model lacks."""
    parser.add_argument(
        "--companion",
        type=Path,
        action="append",
        metavar="FILE",
        help=f"{SVD_FILE}, or files of image encoder and VAE, for what the model lacks; may be "
        f"repeated; default: $V3D_COMPANION, separated by {os.pathsep!r}",
    )


def run_sample(options: argparse.Namespace) -> int:
    """An orbit of every picture; the exit code says whether all went well."""
    jobs = plan_jobs(options.images, options.out, options.masks)
    return _sample(options, jobs)


def sample_one(options: argparse.Namespace, image: Path, folder: Path) -> int:
    """An orbit of one picture in a folder of any name."""
    if image.is_dir():
        raise ValueError(f"{image} is a folder; give one picture, or use v3d sample for many")
    (job,) = plan_jobs([image], folder.parent, options.masks)
    return _sample(options, [dataclasses.replace(job, folder=folder)])


def run_convert(options: argparse.Namespace) -> None:
    """A model to one .safetensors file or to a diffusers folder."""
    dtype = DTYPES[options.dtype]
    if options.out.suffix.lower() == ".safetensors":
        if options.companion:
            raise ValueError(
                f"--companion is for a folder only: {options.out} gets what is in {options.model}"
            )
        _check_exists(options.model)
        with progress_bar("convert") as progress:
            made = convert_to_safetensors(options.model, options.out, dtype, progress)
    else:
        parts = chosen_parts(options)
        with progress_bar("convert") as progress:
            made = convert_to_diffusers(parts, options.out, dtype, progress)
    say(f"{made.path}: {made.tensors:,} tensors, {made.size / 2**20:,.0f} MiB in {options.dtype}")
    if made.left_out:
        more = len(made.left_out) - _SHOWN_ENTRIES
        names = ", ".join(made.left_out[:_SHOWN_ENTRIES]) + (f", {more} more" if more > 0 else "")
        say(f"not in it, {len(made.left_out)} entries of {options.model}: {names}")


def _sample(options: argparse.Namespace, jobs: Sequence[PictureJob]) -> int:
    parts = chosen_parts(options)
    config, prepare = chosen_settings(options, parts)
    source = ModelSource(
        parts,
        chosen_device(options.device),
        DTYPES.get(options.dtype),
        OFFLOAD[options.offload],
        options.compile,
    )
    outcomes = sample_pictures(
        jobs,
        source,
        config,
        prepare,
        options.seed,
        overwrite=options.overwrite,
        stage_progress=progress_bar,
        tell=lambda outcome: _print_outcome(outcome, alone=len(jobs) == 1),
    )
    failed = [outcome for outcome in outcomes if outcome.kind == "failed"]
    if not failed:
        return 0
    if len(outcomes) > 1:
        complain(f"v3d: {len(failed)} of {len(outcomes)} pictures failed:")
    for outcome in failed:
        complain(f"v3d: {_named(outcome)}")
    all_bad = len(failed) == len(outcomes) and all(outcome.bad_input for outcome in failed)
    return EXIT_BAD_INPUT if all_bad else EXIT_FAILURE


def chosen_settings(
    options: argparse.Namespace, parts: ModelParts
) -> tuple[OrbitConfig, PrepareConfig]:
    """How to sample and how to place the object: the options, else what suits the model.

    What the model is not made for is said, not refused.
    """
    assert isinstance(parts.unet.shape, UNetShape)
    trained, family = trained_for(parts.unet.path), family_of(parts.unet.shape)
    config = chosen_orbit_config(options, trained, family)
    prepare = chosen_prepare(options, trained, family)
    for sentence in advice(family, trained, prepare.size, config):
        complain(f"note: {sentence}")
    return config, prepare


def chosen_orbit_config(
    options: argparse.Namespace, trained: TrainedFor | None = None, family: OrbitFamily = V3D
) -> OrbitConfig:
    """The settings of an orbit with the options that were given."""
    config, _ = chosen_config(
        family,
        trained,
        steps=options.steps,
        guidance=options.guidance,
        scale=options.scale,
        min_scale=options.min_scale,
        frames=options.num_frames,
        cond_aug=options.cond_aug,
        fps_id=options.fps_id,
        motion_bucket_id=options.motion_bucket_id,
        vae_mode=options.vae_mode,
        elevation_deg=options.picture_elevation,
        decode_frames=options.decode_frames,
    )
    return config


def chosen_prepare(
    options: argparse.Namespace, trained: TrainedFor | None = None, family: OrbitFamily = V3D
) -> PrepareConfig:
    """How to place the object, with the options that were given."""
    suits = family.size if trained is None else trained.size
    size = suits if options.size is None else options.size
    return PrepareConfig(options.border_ratio, size, options.mask_threshold)


def chosen_parts(options: argparse.Namespace) -> ModelParts:
    """Where the networks are: options, else environment variables.

    `nano` is the bundled model; a file of that name is given by its full path.
    """
    model = options.model or _from_environment("V3D_MODEL")
    if not model:
        raise ValueError(
            f"no model: give --model PATH or set V3D_MODEL. {V3D_FILE} (6.5 GB) is at {V3D_HOME}; "
            f"what it lacks is in {SVD_FILE} at {SVD_HOME}, for --companion or V3D_COMPANION. "
            f"--model {NANO} takes the small model that comes with v3d, to try the way"
        )
    if model == Path(NANO):
        model = nano_file()
    companions: list[Path] = options.companion or [
        Path(part) for part in os.environ.get("V3D_COMPANION", "").split(os.pathsep) if part
    ]
    for path in (model, *companions):
        _check_exists(path)
    return find_model(
        model, companions, advice="Name the file with --companion PATH or in V3D_COMPANION."
    )


def _from_environment(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such model file; {V3D_FILE} is at {V3D_HOME}, {SVD_FILE} at {SVD_HOME}"
        )


def _print_outcome(outcome: PictureOutcome, alone: bool) -> None:
    """One picture's end, as it comes; failures are repeated after the last picture."""
    if outcome.kind == "failed":
        if not alone:
            complain(f"failed: {_named(outcome)}")
        return
    report, folder = outcome.report, outcome.job.folder.resolve()
    if outcome.kind == "kept":
        say(f"{folder}: this orbit is there already (--overwrite makes it again)")
        return
    for note in [*report["notes"], *report["warnings"], outcome.text]:
        if note:
            complain(f"note: {outcome.job.picture.name}: {note}")
    orbit, memory = report["orbit"], report["peak_memory"]
    peaks = ", ".join(f"{value:,.0f} MiB {name[:-4]}" for name, value in memory.items())
    say(
        f"{folder}: {orbit['frames']} frames in {report['seconds']['total']:.1f} s "
        f"({orbit['decoded']}), at most {peaks}"
    )


def _named(outcome: PictureOutcome) -> str:
    """Why a picture failed; many reasons do not name it."""
    named = str(outcome.job.picture) in outcome.text
    return outcome.text if named else f"{outcome.job.picture}: {outcome.text}"
