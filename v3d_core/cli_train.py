"""`v3d train`: fine-tune an orbit model, or train a small one from scratch; options to settings."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .cli_generate import DTYPES, add_companion, chosen_parts
from .cli_shared import add_seed_and_device, chosen_device, progress_bar, say, shown_options
from .diffusion.layout import ClipShape, UNetShape, VaeShape
from .diffusion.model_files import V3D_FILE, ModelParts
from .diffusion.training import OPTIMISERS, PRECISIONS, TrainConfig
from .diffusion.training_config import Data, Outcome, RunConfig, Scratch
from .diffusion.training_log import stop_on_signals
from .diffusion.training_loss import NoiseConfig
from .diffusion.training_processes import joined_processes
from .diffusion.training_run import TrainingRun
from .diffusion.training_vae import VaeTrainConfig
from .diffusion.training_validation import ValidationConfig
from .nano import NanoConfig
from .progress import silent
from .report import Stopwatch, environment, memory, write_report
from .training.shards import INDEX, OrbitShards

REPORT = "report.json"
SHAPES = ("nano", "svd")
TRAIN, RUN = TrainConfig(), RunConfig()


def add_train_command(commands: Any) -> None:
    """`v3d train`."""
    train = commands.add_parser(
        "train", help="fine-tune an orbit model on orbits of v3d orbit-data, or train a small one"
    )
    train.add_argument("data", type=Path, help="folder that v3d orbit-data made")
    train.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="of the run; goes on if it exists"
    )
    model = train.add_argument_group("model")
    model.add_argument(
        "--model", type=Path, metavar="PATH", help=f"{V3D_FILE} or its kin; default: $V3D_MODEL"
    )
    add_companion(model)
    model.add_argument(
        "--from-scratch",
        metavar="SHAPE",
        help=f"no model: {', '.join(SHAPES)}, or a .json file with the widths (README, Training)",
    )
    weights = model.add_mutually_exclusive_group()
    weights.add_argument(
        "--lora",
        type=int,
        metavar="RANK",
        help=f"adapters of the attention learn, the model stays; default: {RUN.lora_rank}",
    )
    weights.add_argument("--full", action="store_true", help="all weights of the UNet learn")
    model.add_argument(
        "--merge", action="store_true", help="write the model with the LoRA in it as well"
    )
    model.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float16", help="of a written model; %(default)s"
    )
    _add_learning(train)
    _add_watching(train)
    add_seed_and_device(train)
    train.set_defaults(run=run_train)


def _add_learning(train: argparse.ArgumentParser) -> None:
    group = train.add_argument_group("learning; defaults are for fine-tuning V3D")
    for name, kind, default, text in (
        ("--steps", int, TRAIN.steps, "updates of the weights"),
        ("--batch-size", int, TRAIN.batch_size, "orbits per update, over all GPUs"),
        ("--accumulate", int, TRAIN.accumulate, "parts of a batch; less memory, the same result"),
        ("--learning-rate", float, TRAIN.learning_rate, "at its peak"),
        ("--warmup-steps", int, TRAIN.warmup_steps, "over which the rate rises"),
        ("--ema", float, TRAIN.ema_decay, "decay of the averaged weights; 0: none, saves memory"),
        ("--weight-decay", float, TRAIN.weight_decay, "of the optimiser"),
        ("--log-sigma-mean", float, TRAIN.noise.log_sigma_mean, "of the noise level's logarithm"),
        ("--log-sigma-std", float, TRAIN.noise.log_sigma_std, "of the noise level's logarithm"),
        ("--drop-token", float, TRAIN.noise.drop_token, "share of orbits without the CLIP token"),
        ("--drop-latent", float, TRAIN.noise.drop_latent, "share without the picture's latent"),
    ):
        group.add_argument(name, type=kind, metavar="N", help=f"{text}; {default:g}")
    group.add_argument(
        "--optimiser",
        choices=OPTIMISERS,
        help=f"{TRAIN.optimiser}; {NanoConfig().training.optimiser} for --from-scratch nano",
    )
    group.add_argument(
        "--precision",
        choices=("auto", *PRECISIONS),
        default="auto",
        help="of the arithmetic; auto: bfloat16 on CUDA",
    )
    group.add_argument(
        "--gradient-checkpointing", action="store_true", help="less memory, slower steps"
    )
    group.add_argument(
        "--autoencoder-steps", type=int, metavar="N", help="from scratch: of the autoencoder"
    )
    group.add_argument(
        "--decoder-steps",
        type=int,
        metavar="N",
        help="from scratch: of its decoder in the end, on orbits of the UNet; 0: none",
    )


def _add_watching(train: argparse.ArgumentParser) -> None:
    group = train.add_argument_group("saving and watching")
    group.add_argument(
        "--save-every", type=int, default=RUN.save_every, metavar="STEPS", help="%(default)s"
    )
    group.add_argument(
        "--small-state",
        action="store_true",
        help="saved states in 16 bits and without muon's momentum: with muon a third of the bytes",
    )
    group.add_argument(
        "--validate-every",
        type=int,
        default=RUN.validate_every,
        metavar="STEPS",
        help="%(default)s",
    )
    look = RUN.validation
    group.add_argument(
        "--validate-objects", type=int, default=look.objects, metavar="N", help="%(default)s"
    )
    group.add_argument(
        "--validate-steps", type=int, default=look.steps, metavar="N", help="%(default)s"
    )
    group.add_argument(
        "--validate-scale",
        type=float,
        default=look.scale,
        metavar="SCALE",
        help="guidance of the validation orbits; %(default)s",
    )
    group.add_argument("--log-dir", type=Path, metavar="DIR", help="TensorBoard's curves as well")
    group.add_argument(
        "--seconds", type=float, default=math.inf, metavar="S", help="save and stop after these"
    )


def run_train(options: argparse.Namespace) -> None:
    """Train until the last step, or until Ctrl-C, which saves."""
    device = chosen_device(options.device)
    config = chosen_run(options, device)
    start = chosen_start(options)
    data = chosen_data(options.data)
    stopwatch = Stopwatch()
    with joined_processes(device) as (processes, own_device), stop_on_signals() as stop:
        with stopwatch.stage("train"):
            outcome = TrainingRun(
                options.out,
                start,
                data,
                config,
                own_device,
                processes,
                options.log_dir if processes.first else None,
                stop,
                progress_bar if processes.first else lambda name: nullcontext(silent),
            ).run()
        if processes.first:
            report = {
                "options": shown_options(options),
                **_environment(own_device),
                **outcome.report,
                "finished": outcome.finished,
                "step": outcome.step,
                "validation": outcome.validation,
                "files": {use: path.name for use, path in outcome.files.items()},
                "seconds": stopwatch.rounded(),
                "peak_memory": memory(own_device),
            }
            if not math.isfinite(options.seconds):
                report["options"]["seconds"] = None
            write_report(options.out / REPORT, report)
            _tell(options.out, outcome, config)
        if stop():
            raise KeyboardInterrupt


def chosen_data(folder: Path) -> Data:
    """The data set in a folder, with its split."""
    train, validation = OrbitShards(folder, "train"), OrbitShards(folder, "validation")
    if not len(train):
        raise ValueError(f"{folder}: no orbits to train on; add some with v3d orbit-data")
    key = hashlib.sha256((folder / INDEX).read_bytes()).hexdigest()
    closed = train.index["cameras"]["azimuth_step_deg"] is None
    return Data(train, validation, key, closed)


def chosen_start(options: argparse.Namespace) -> ModelParts | Scratch:
    """The model to fine-tune, or the widths of one from scratch."""
    asked = {
        "--autoencoder-steps": (options.autoencoder_steps, 1),
        "--decoder-steps": (options.decoder_steps, 0),
    }
    for name, (steps, least) in asked.items():
        if steps is not None and options.from_scratch is None:
            raise ValueError(f"{name} is for --from-scratch; a model has its own")
        if steps is not None and steps < least:
            raise ValueError(f"{name} {steps}: at least {least} is needed")
    if options.from_scratch is None:
        return chosen_parts(options)
    if options.model or options.companion:
        raise ValueError("--from-scratch takes no --model or --companion: it starts from nothing")
    start, _ = scratch_shape(options.from_scratch)
    decoder = start.decoder
    if options.decoder_steps == 0:
        decoder = None
    elif decoder is not None:
        steps = options.decoder_steps or decoder.steps
        decoder = dataclasses.replace(decoder, steps=steps, seed=options.seed)
    autoencoder = dataclasses.replace(
        start.autoencoder,
        steps=options.autoencoder_steps or start.autoencoder.steps,
        seed=options.seed,
    )
    return dataclasses.replace(start, autoencoder=autoencoder, decoder=decoder)


def scratch_shape(name: str) -> tuple[Scratch, TrainConfig]:
    """Widths by name or from a .json file, and the learning settings that suit them."""
    if name == "svd":
        return Scratch(), TRAIN
    if name == "nano":
        nano = NanoConfig()
        return Scratch(nano.unet, nano.vae, nano.clip, nano.autoencoder), nano.training
    path = Path(name)
    if path.suffix.lower() != ".json":
        raise ValueError(f"--from-scratch {name}: use {', '.join(SHAPES)} or a .json file")
    kinds = {"unet": UNetShape, "vae": VaeShape, "clip": ClipShape}
    kinds |= {"autoencoder": VaeTrainConfig, "decoder": VaeTrainConfig, "noise": NoiseConfig}
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if unknown := set(document) - set(kinds):
            raise TypeError(f"unknown part {sorted(unknown)[0]!r}; there are {', '.join(kinds)}")
        made: dict[str, Any] = {
            part: kinds[part](
                **{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            )
            for part, values in document.items()
        }
        noise = made.pop("noise", TRAIN.noise)
        return Scratch(**made), dataclasses.replace(TRAIN, noise=noise)
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def chosen_run(options: argparse.Namespace, device: torch.device) -> RunConfig:
    """All settings of the run, with the options that were given."""
    scratch = options.from_scratch is not None
    if scratch and (options.lora or options.merge):
        raise ValueError("--lora and --merge need a model; --from-scratch trains all weights")
    base = scratch_shape(options.from_scratch)[1] if scratch else TRAIN
    noise = {
        name: getattr(options, name)
        for name in ("log_sigma_mean", "log_sigma_std", "drop_token", "drop_latent")
    }
    given = {
        name: getattr(options, name)
        for name in ("steps", "batch_size", "accumulate", "learning_rate", "warmup_steps")
    }
    given |= {"weight_decay": options.weight_decay, "ema_decay": options.ema}
    given["optimiser"] = options.optimiser
    precision = options.precision
    if precision == "auto":
        precision = "bfloat16" if device.type == "cuda" else "float32"
    training = dataclasses.replace(
        base,
        **{name: value for name, value in given.items() if value is not None},
        noise=dataclasses.replace(base.noise, **{k: v for k, v in noise.items() if v is not None}),
        precision=precision,
        gradient_checkpointing=options.gradient_checkpointing,
        seed=options.seed,
    )
    lora = RUN.lora_rank if options.lora is None else options.lora
    if options.lora is not None and lora < 1:
        raise ValueError(f"--lora {lora}: the rank is at least 1; --full trains all weights")
    return RunConfig(
        training,
        ValidationConfig(
            options.validate_objects, options.validate_steps, options.validate_scale, options.seed
        ),
        0 if scratch or options.full else lora,
        options.merge,
        options.validate_every,
        options.save_every,
        seconds=options.seconds,
        small_state=options.small_state,
        dtype=DTYPES[options.dtype],
    )


def _environment(device: torch.device) -> dict[str, Any]:
    found = environment(device)
    for name in ("diffusers", "transformers"):
        with suppress(PackageNotFoundError):
            found["packages"][name] = version(name)
    return found


def _tell(folder: Path, outcome: Outcome, config: RunConfig) -> None:
    """How it ended, for people."""
    steps = config.training.steps
    if not outcome.finished:
        say(f"{folder.resolve()}: saved at step {outcome.step:,}; the same command goes on")
        return
    for path in outcome.files.values():
        say(f"{path.resolve()}")
    scores = {name: value for name, value in outcome.validation.items() if value is not None}
    text = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
    say(f"{steps:,} steps{'; validation: ' if text else ''}{text}")
