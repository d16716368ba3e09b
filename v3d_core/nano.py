"""The recipe of V3D-nano, the small orbit model that ships with the pack, from nothing to its file.

    python -m v3d_core.nano FOLDER            # every stage, each resumes where it stopped
    python -m v3d_core.nano FOLDER --until autoencoder
    python -m v3d_core.nano FOLDER --seconds 540   # and again, until it is done
    torchrun --nproc-per-node 2 -m v3d_core.nano FOLDER

Stages: orbits of procedural objects are rendered; an autoencoder with a temporal decoder learns
their frames, in short clips; the orbits are encoded; UNet and image encoder learn to make them; the
decoder goes on learning, on whole orbits as the UNet makes them; the averaged weights go into one
file in V3D.ckpt's naming, with a card of what was done. Architecture, loss and sampling are V3D's;
only the widths are smaller. Several processes share rendering and the batches of UNet and image
encoder; autoencoder and decoder are the first one's.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .cli_shared import say
from .diffusion.checkpoint import require_part
from .diffusion.layout import ClipShape, UNetShape, VaeShape
from .diffusion.training import OrbitBatch, OrbitTrainer, TrainConfig
from .diffusion.training_autoencoder import VAE_FILE, Watch, trained_autoencoder
from .diffusion.training_data import EncodedOrbits, encode_latents
from .diffusion.training_decoder import (
    DECODER_TRAINING,
    HIGHEST_SIGMA,
    OrbitLessons,
    resampled,
    whole_orbit_decoder,
)
from .diffusion.training_loss import NoiseConfig
from .diffusion.training_networks import (
    as_written,
    compile_blocks,
    load_network,
    new_image_encoder,
    new_unet,
)
from .diffusion.training_processes import Processes, joined_processes
from .diffusion.training_store import load_progress, save_progress, write_model
from .diffusion.training_vae import VaeTrainConfig
from .formats.atomic import atomic_path
from .training.objects import random_objects
from .training.tracing import render_orbits

STAGES = ("data", "autoencoder", "latents", "orbits", "decoder", "export")
RENDERED_AT_ONCE = 64  # objects
OBJECTS_PER_FILE = 1024
SAVED_EVERY, SAID_EVERY = 1000, 250  # steps of the autoencoder and its decoder
ASKED_EVERY = 50  # steps of UNet and image encoder, between looks at the clock
SAVE_EVERY_S = 120.0
AUTOENCODER, DECODER, ORBITS = "autoencoder", "decoder", "orbits"
MODEL_FILE = "v3d_nano.safetensors"
MUON_RATE = 2e-3  # for batches of 64 orbits; free choice between two of a trial, see provenance


UNET = UNetShape(
    model_channels=128,
    channel_mult=(1, 1),
    attention=(True, True),
    res_blocks=1,
    context_channels=64,
)
# its norms have 32 groups: with one channel in each, colours would be normalised away
VAE = VaeShape(channels=64, channel_mult=(1, 1, 1, 1))
CLIP = ClipShape(width=80, layers=4, mlp_width=256, projection=64)


@dataclass(frozen=True)
class NanoConfig:
    """V3D-nano's widths and its training; together at most 32 MB in float16."""

    unet: UNetShape = UNET
    vae: VaeShape = VAE
    clip: ClipShape = CLIP
    size: int = 128  # px
    objects: int = 8192  # seeds first_seed, first_seed + 1, ...
    autoencoder_objects: int = 16384  # of these, how many the autoencoder learns from at most
    first_seed: int = 1_000_000  # validation objects have seeds below, see VALIDATION_SEEDS
    compiled: bool = False  # the UNet's blocks
    graph: bool = True  # steps on CUDA are replayed as CUDA graphs
    autoencoder: VaeTrainConfig = field(default_factory=VaeTrainConfig)
    decoder: VaeTrainConfig = DECODER_TRAINING
    autoencoder_from: str = ""  # a model file whose autoencoder is taken; none is trained then
    # highest noise level from which the UNet makes the decoder's latents; 0: true ones
    decoder_sigma: float = HIGHEST_SIGMA
    training: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=8000,
            batch_size=64,
            optimiser="muon",
            learning_rate=MUON_RATE,
            warmup_steps=300,
            decay_share=0.4,
            ema_decay=0.999,
            # V3D's noise; few dropped conditions, as it is asked without guidance
            noise=NoiseConfig(drop_token=0.05, drop_latent=0.05),
        )
    )


VALIDATION_SEEDS = range(64)  # objects that no training sees


def render_pictures(
    seeds: range, size: int, device: torch.device, tell: Callable[[int], None] = lambda done: None
) -> Tensor:  # [N, T, S, S, 3] uint8
    """Orbits of procedural objects, on white."""
    made = []
    for start in range(0, len(seeds), RENDERED_AT_ONCE):
        table = random_objects(seeds[start : start + RENDERED_AT_ONCE]).to(device)
        made.append(on_white(render_orbits(table, size=size)))
        tell(start + len(made[-1]))
    return torch.cat(made)


def on_white(rgba: Tensor) -> Tensor:  # [..., 4] uint8 -> [..., 3] uint8
    """Straight colours laid on white."""
    alpha = rgba[..., 3:].float() / 255
    return (rgba[..., :3] * alpha + 255 * (1 - alpha)).round().to(torch.uint8)


class Recipe:
    """The stages, in one folder, on one device."""

    def __init__(
        self,
        folder: Path,
        config: NanoConfig,
        device: torch.device,
        processes: Processes | None = None,
    ) -> None:
        self.folder, self.config, self.device = folder, config, device
        self.processes = processes or Processes()
        folder.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """One line of the log, on the screen and in the folder."""
        if self.processes.first:
            line = f"{time.strftime('%H:%M:%S')} {text}"
            say(line)
            with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def pictures(self) -> Tensor:  # [N, T, S, S, 3] uint8
        """The training orbits, from the folder; the processes render what is missing."""
        config, start = self.config, time.perf_counter()
        end = config.first_seed + config.objects
        paths = []
        for index, first in enumerate(range(config.first_seed, end, OBJECTS_PER_FILE)):
            seeds = range(first, min(first + OBJECTS_PER_FILE, end))
            path = self.folder / f"pictures_{first}_{len(seeds)}.npy"
            paths.append(path)
            if index % self.processes.world == self.processes.rank and not path.exists():
                _save_array(path, render_pictures(seeds, config.size, self.device))
        self.processes.wait()
        parts = [torch.from_numpy(np.load(path, mmap_mode="c")) for path in paths]
        made = torch.cat([part.to(self.device) for part in parts])
        self.say(f"{len(made)} orbits after {time.perf_counter() - start:.1f} s")
        return made

    def latents(self, pictures: Tensor) -> Tensor:  # [N, T, 4, s, s] float16
        """The encoded orbits, from the folder; the processes encode what is missing."""
        start, vae = time.perf_counter(), self.trained_vae(AUTOENCODER)
        paths = []
        for index, part in enumerate(pictures.split(OBJECTS_PER_FILE)):
            first = self.config.first_seed + index * OBJECTS_PER_FILE
            path = self.folder / f"latents_{first}_{len(part)}.npy"
            paths.append(path)
            if index % self.processes.world == self.processes.rank and not path.exists():
                with torch.autocast("cuda", torch.bfloat16, self.device.type == "cuda"):
                    _save_array(path, encode_latents(vae, part))
        self.processes.wait()
        self.say(f"latents after {time.perf_counter() - start:.1f} s")
        return torch.cat([torch.from_numpy(np.load(path)) for path in paths]).to(self.device)

    def autoencoder(self, pictures: Tensor, seconds: float = math.inf) -> bool:
        """Train it in the first process; False when the time ran out before its last step."""
        taken, path = self.config.autoencoder_from, self.folder / AUTOENCODER / VAE_FILE
        if taken and self.processes.first and not path.exists():
            path.parent.mkdir(exist_ok=True)
            part = require_part(taken, "vae")
            write_model(path, {"vae": (part.shape, part)})
        pictures = pictures[: self.config.autoencoder_objects]
        unfinished = self.processes.first and not trained_autoencoder(
            self.folder / AUTOENCODER,
            self.config.vae,
            pictures,
            self.config.autoencoder,
            self.device,
            SAVED_EVERY,
            self._watch(AUTOENCODER, seconds),
            self.config.graph,
        )
        return not self.processes.any(unfinished)

    def _watch(self, name: str, seconds: float = math.inf) -> Watch:
        start, losses = time.perf_counter(), list[Tensor]()

        def log(step: int, loss: Tensor) -> None:
            losses.append(loss)
            if step % SAID_EVERY == 0:
                mean = float(torch.stack(losses[-SAID_EVERY:]).mean())
                self.say(f"{name} {step}: loss {mean:.5f}, {time.perf_counter() - start:.0f} s")

        return Watch(log, lambda: time.perf_counter() - start > seconds)

    def trained_vae(self, stage: str) -> Any:
        """The autoencoder after a stage, from the folder."""
        vae = load_network(require_part(self.folder / stage / VAE_FILE, "vae"))
        return vae.to(self.device)

    def orbits(self, data: EncodedOrbits, seconds: float = math.inf) -> OrbitTrainer:
        """UNet and image encoder after all steps, or after the seconds."""
        config, processes = self.config.training, self.processes
        unet = new_unet(self.config.unet, config.seed).to(self.device)
        encoder = new_image_encoder(self.config.clip, config.seed).to(self.device)
        if self.config.compiled:
            compile_blocks(unet)
        trainer = OrbitTrainer(
            unet,
            encoder,
            config,
            world=processes.world,
            rank=processes.rank,
            captured=self.config.graph and self.device.type == "cuda",
        )
        load_progress(self.folder / ORBITS, trainer)
        start = saved = time.perf_counter()
        losses: list[Tensor] = []
        while trainer.step < config.steps:
            losses.append(trainer.update(data))
            if trainer.step % ASKED_EVERY:
                continue
            loss = float(torch.stack(losses[-ASKED_EVERY:]).mean())
            now = time.perf_counter()
            self.say(f"orbits {trainer.step}: loss {loss:.5f}, {now - start:.0f} s")
            if processes.any(now - start > seconds):
                break
            if processes.first and now - saved > SAVE_EVERY_S:
                save_progress(self.folder / ORBITS, trainer, small=True)
                saved = now
        if processes.first:
            save_progress(self.folder / ORBITS, trainer, small=True)
        return trainer

    def decoder(self, trainer: OrbitTrainer, data: EncodedOrbits) -> None:
        """Let it learn whole orbits, as the averaged UNet makes them, in the first process."""
        config = self.config

        def resample(batch: OrbitBatch, generator: torch.Generator) -> Tensor:
            return resampled(trainer, batch, config.decoder_sigma, generator)

        if self.processes.first:
            trainer.swap_average()
            with as_written():
                whole_orbit_decoder(
                    self.folder / DECODER,
                    require_part(self.folder / AUTOENCODER / VAE_FILE, "vae"),
                    OrbitLessons(
                        data,
                        self.device,
                        config.decoder.seed,
                        resample if config.decoder_sigma else None,
                    ),
                    config.decoder,
                    self.device,
                    SAVED_EVERY,
                    self._watch(DECODER),
                    config.graph,
                )
            trainer.swap_average()
        self.processes.wait()

    def write(self, path: Path, trainer: OrbitTrainer) -> int:
        """The averaged weights in one file, with a card; returns its bytes."""
        config = self.config
        trainer.swap_average()
        networks = {
            "unet": (config.unet, trainer.unet),
            "vae": (config.vae, self.trained_vae(DECODER)),
            "clip": (config.clip, trainer.image_encoder),
        }
        recipe = asdict(config) | {"autoencoder_from": Path(config.autoencoder_from).name}
        card = {"v3d_nano": json.dumps({"recipe": recipe, "step": trainer.step})}
        size = write_model(path, networks, metadata=card)
        trainer.swap_average()
        return size


def _save_array(path: Path, made: Tensor) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, made.cpu().numpy())


def main() -> None:
    """Run the stages that are not done yet."""
    parser = argparse.ArgumentParser(description="Train V3D-nano from nothing.")
    parser.add_argument(
        "folder", type=Path, help="holds everything; a run goes on where one stopped"
    )
    parser.add_argument("--until", choices=STAGES, default=STAGES[-1], help="last stage to run")
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop training after these")
    parser.add_argument("--objects", type=int, default=NanoConfig.objects)
    parser.add_argument("--autoencoder-steps", type=int, default=VaeTrainConfig.steps)
    parser.add_argument("--autoencoder-batch", type=int, default=VaeTrainConfig.batch_size)
    parser.add_argument("--decoder-steps", type=int, default=DECODER_TRAINING.steps)
    parser.add_argument("--decoder-sigma", type=float, default=NanoConfig.decoder_sigma)
    parser.add_argument(
        "--autoencoder-from", default="", help="a model file whose autoencoder is taken"
    )
    parser.add_argument("--steps", type=int, default=NanoConfig().training.steps)
    parser.add_argument("--batch-size", type=int, default=NanoConfig().training.batch_size)
    parser.add_argument("--learning-rate", type=float, default=NanoConfig().training.learning_rate)
    parser.add_argument("--compile", action="store_true", help="the UNet's blocks; CUDA only")
    parser.add_argument("--no-graph", action="store_true", help="no CUDA graphs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    base = NanoConfig()
    config = replace(
        base,
        objects=options.objects,
        autoencoder=replace(
            base.autoencoder, steps=options.autoencoder_steps, batch_size=options.autoencoder_batch
        ),
        decoder=replace(base.decoder, steps=options.decoder_steps),
        decoder_sigma=options.decoder_sigma,
        autoencoder_from=options.autoencoder_from,
        training=replace(
            base.training,
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
        ),
        compiled=options.compile,
        graph=not options.no_graph,
    )
    torch.backends.cudnn.benchmark = True  # all steps have the same shapes
    with joined_processes(torch.device(options.device)) as (processes, device):
        recipe = Recipe(options.folder, config, device, processes)
        run(recipe, STAGES.index(options.until), options.seconds)


def run(recipe: Recipe, last: int, seconds: float) -> None:
    """The stages up to a number of `STAGES`, or until the seconds are over."""
    start = time.perf_counter()

    def left() -> float:
        return seconds - (time.perf_counter() - start)

    pictures = recipe.pictures()
    if last < 1 or not recipe.autoencoder(pictures, left()):
        return
    if last < 2:
        return
    data = EncodedOrbits(recipe.latents(pictures), pictures=pictures)
    if last < 3:
        return
    trainer = recipe.orbits(data, left())
    steps = recipe.config.training.steps
    if trainer.step < steps:
        recipe.say(f"stopped after {trainer.step} of {steps} steps; the same command goes on")
        return
    if last < 4:
        return
    recipe.decoder(trainer, data)
    if last == 5 and recipe.processes.first:
        size = recipe.write(recipe.folder / MODEL_FILE, trainer)
        recipe.say(f"wrote {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
