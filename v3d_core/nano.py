"""The recipe of V3D-nano, the small orbit model that ships with the pack, from nothing to its file.

    python -m v3d_core.nano FOLDER            # every stage, each resumes where it stopped
    python -m v3d_core.nano FOLDER --until autoencoder

Stages: orbits of procedural objects are rendered; an autoencoder with a temporal decoder learns
their frames; the orbits are encoded; UNet and image encoder learn to make them; the averaged
weights go into one file in V3D.ckpt's naming, with a card of what was done. Architecture, loss and
sampling are V3D's; only the widths are smaller.
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
from .diffusion.checkpoint import read_part
from .diffusion.diffusers_configs import identity_quant_conv
from .diffusion.layout import ClipShape, UNetShape, VaeShape
from .diffusion.training import OrbitTrainer, TrainConfig
from .diffusion.training_autoencoder import trained_autoencoder
from .diffusion.training_data import EncodedOrbits, encode_latents
from .diffusion.training_loss import NoiseConfig
from .diffusion.training_networks import new_image_encoder, new_unet, new_vae
from .diffusion.training_store import load_progress, save_progress, write_model
from .diffusion.training_vae import VaeTrainConfig
from .training.objects import random_objects
from .training.tracing import render_orbits

STAGES = ("data", "autoencoder", "plan", "orbits", "export")
RENDERED_AT_ONCE = 64  # objects
SAVED_EVERY, SAID_EVERY = 1000, 250  # steps of the autoencoder
SAVE_EVERY_S = 60.0  # of UNet and image encoder
WARM_UP_STEPS, TIMED_STEPS = 4, 15  # of a plan


UNET = UNetShape(
    model_channels=128,
    channel_mult=(1, 1),
    attention=(True, True),
    res_blocks=1,
    context_channels=64,
)
VAE = VaeShape(channels=32, channel_mult=(1, 2, 2, 2))
CLIP = ClipShape(width=80, layers=4, mlp_width=320, projection=64)


@dataclass(frozen=True)
class NanoConfig:
    """V3D-nano's widths and its training; together at most 32 MB in float16."""

    unet: UNetShape = UNET
    vae: VaeShape = VAE
    clip: ClipShape = CLIP
    size: int = 128  # px
    objects: int = 8192  # seeds first_seed, first_seed + 1, ...
    first_seed: int = 1_000_000  # validation objects have seeds below, see VALIDATION_SEEDS
    autoencoder: VaeTrainConfig = field(default_factory=VaeTrainConfig)
    training: TrainConfig = field(
        default_factory=lambda: TrainConfig(
            steps=8000,
            batch_size=64,
            learning_rate=5e-4,
            warmup_steps=300,
            decay_share=0.4,
            ema_decay=0.999,
            # sixteen times fewer latent pixels than V3D's: noise hides them sooner
            noise=NoiseConfig(
                log_sigma_mean=0.5, log_sigma_std=2.0, drop_token=0.1, drop_latent=0.1
            ),
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

    def __init__(self, folder: Path, config: NanoConfig, device: torch.device) -> None:
        self.folder, self.config, self.device = folder, config, device
        folder.mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """One line of the log, on the screen and in the folder."""
        line = f"{time.strftime('%H:%M:%S')} {text}"
        say(line)
        with (self.folder / "log.txt").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def pictures(self) -> Tensor:  # [N, T, S, S, 3] uint8
        """The training orbits, from the folder or rendered now."""
        config, path = self.config, self.folder / "pictures.npy"
        if path.exists():
            return torch.from_numpy(np.load(path)).to(self.device)
        start = time.perf_counter()
        seeds = range(config.first_seed, config.first_seed + config.objects)
        made = render_pictures(seeds, config.size, self.device)
        self.say(f"rendered {len(made)} orbits in {time.perf_counter() - start:.1f} s")
        np.save(self.folder / "pictures.partial.npy", made.cpu().numpy())
        (self.folder / "pictures.partial.npy").rename(path)
        return made

    def autoencoder(self, pictures: Tensor, seconds: float = math.inf) -> Any | None:
        """The trained autoencoder, or None when the time ran out before its last step."""
        config, shape = self.config.autoencoder, self.config.vae
        start = time.perf_counter()
        losses: list[Tensor] = []

        def log(step: int, loss: Tensor) -> None:
            losses.append(loss)
            if step % SAID_EVERY == 0:
                mean = float(torch.stack(losses[-SAID_EVERY:]).mean())
                self.say(
                    f"autoencoder {step}: loss {mean:.5f}, {time.perf_counter() - start:.0f} s"
                )

        part = trained_autoencoder(
            self.folder / "autoencoder",
            shape,
            pictures,
            config,
            self.device,
            SAVED_EVERY,
            log,
            lambda: time.perf_counter() - start > seconds,
        )
        if part is None:
            return None
        vae = new_vae(shape, config.seed)
        vae.load_state_dict(read_part(part, "diffusers") | identity_quant_conv(shape))
        return vae.to(self.device).eval()

    def plan(self, data: EncodedOrbits, seconds: float) -> tuple[int, bool]:
        """How many steps fit into the seconds, and whether a compiled UNet makes them faster.

        Measured once and kept in the folder, because the learning rate depends on the number.
        """
        path = self.folder / "plan.json"
        if not path.exists():
            best: dict[str, Any] = {}
            for compiled in (False, True):
                trainer = self._new_trainer(compiled)
                try:
                    for _ in range(WARM_UP_STEPS):
                        float(trainer.update(data))
                    start = time.perf_counter()
                    for _ in range(TIMED_STEPS):
                        trainer.update(data)
                    float(trainer.update(data))
                except Exception as error:
                    self.say(f"compiled {compiled}: {type(error).__name__}: {error}"[:300])
                    continue
                step_s = (time.perf_counter() - start) / (TIMED_STEPS + 1)
                self.say(f"compiled {compiled}: {1000 * step_s:.1f} ms per step")
                if not best or step_s < best["step_s"]:
                    best = {"step_s": step_s, "compiled": compiled}
                    best["steps"] = int(seconds / step_s)
                    path.write_text(json.dumps(best) + "\n", encoding="utf-8")
        plan = json.loads(path.read_text(encoding="utf-8"))
        return plan["steps"], plan["compiled"]

    def orbits(self, data: EncodedOrbits, seconds: float, compiled: bool) -> OrbitTrainer:
        """UNet and image encoder after all steps, or after the seconds."""
        config = self.config.training
        trainer = self._new_trainer(compiled)
        load_progress(self.folder / "orbits", trainer)
        start = saved = time.perf_counter()
        losses: list[Tensor] = []
        while trainer.step < config.steps:
            losses.append(trainer.update(data))
            now = time.perf_counter()
            if trainer.step % 100 == 0:
                loss = float(torch.stack(losses[-100:]).mean())
                self.say(f"orbits {trainer.step}: loss {loss:.5f}, {now - start:.0f} s")
            if now - saved > SAVE_EVERY_S:
                save_progress(self.folder / "orbits", trainer)
                saved = now
            if now - start > seconds:
                break
        save_progress(self.folder / "orbits", trainer)
        return trainer

    def _new_trainer(self, compiled: bool) -> OrbitTrainer:
        config = self.config.training
        unet = new_unet(self.config.unet, config.seed).to(self.device)
        encoder = new_image_encoder(self.config.clip, config.seed).to(self.device)
        if compiled:
            unet.compile(dynamic=False)
        return OrbitTrainer(unet, encoder, config)

    def write(self, path: Path, vae: Any, trainer: OrbitTrainer, seconds: dict[str, float]) -> int:
        """The averaged weights in one file; returns its bytes."""
        config = self.config
        trainer.swap_average()
        networks = {
            "unet": (config.unet, trainer.unet),
            "vae": (config.vae, vae),
            "clip": (config.clip, trainer.image_encoder),
        }
        recipe = asdict(config)
        card = {"recipe": json.dumps(recipe), "seconds": json.dumps(seconds)}
        size = write_model(path, networks, metadata=card)
        trainer.swap_average()
        return size


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
    parser.add_argument("--steps", type=int, default=NanoConfig().training.steps)
    parser.add_argument("--batch-size", type=int, default=NanoConfig().training.batch_size)
    parser.add_argument("--learning-rate", type=float, default=NanoConfig().training.learning_rate)
    parser.add_argument("--fit-seconds", type=float, help="as many steps as fit into these")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    base = NanoConfig()
    config = replace(
        base,
        objects=options.objects,
        autoencoder=replace(base.autoencoder, steps=options.autoencoder_steps),
        training=replace(
            base.training,
            steps=options.steps,
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
        ),
    )
    recipe = Recipe(options.folder, config, torch.device(options.device))
    start = time.perf_counter()
    pictures = recipe.pictures()
    if options.until == "data":
        return
    vae = recipe.autoencoder(pictures, options.seconds)
    if vae is None or options.until == "autoencoder":
        return
    latents = encode_latents(vae, pictures)
    recipe.say(f"latents {list(latents.shape)}, {time.perf_counter() - start:.0f} s")
    data = EncodedOrbits(latents, pictures=pictures)
    compiled = False
    if options.fit_seconds:
        steps, compiled = recipe.plan(data, options.fit_seconds)
        config = replace(config, training=replace(config.training, steps=steps))
        recipe.config = config
    if options.until == "plan":
        return
    left = options.seconds - (time.perf_counter() - start)
    trainer = recipe.orbits(data, left, compiled)
    recipe.say(f"{trainer.step} of {config.training.steps} steps")
    if options.until == "orbits":
        return
    size = recipe.write(recipe.folder / "v3d_nano.safetensors", vae, trainer, {})
    recipe.say(f"wrote {size / 1e6:.1f} MB after {trainer.step} of {config.training.steps} steps")


if __name__ == "__main__":
    main()
