"""An autoencoder with a temporal decoder, trained from scratch on orbits, with SVD's latent scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..progress import Progress, silent
from .checkpoint import ModelPart, require_part
from .layout import VaeShape
from .training_data import encode_latents
from .training_networks import new_vae
from .training_store import load_progress, save_progress, write_model
from .training_vae import VaeTrainConfig, VaeTrainer, normalise_latents

VAE_FILE = "autoencoder.safetensors"
SCALE_ORBITS = 256  # whose latents are measured, for their scale


class PictureClips:
    """Neighbouring frames of closed orbits, in a circle.

    Args:
        pictures: Frames on white. [N, T, S, S, 3] uint8
        device: Of the training.
    """

    def __init__(self, pictures: Tensor, device: torch.device) -> None:
        self.pictures, self.device = pictures, device

    def __call__(self, count: int, frames: int, generator: torch.Generator) -> Tensor:
        """`count` clips in [-1, 1]. [count, frames, 3, S, S]"""
        orbits, views = self.pictures.shape[:2]
        here = generator.device
        chosen = torch.randint(orbits, (count, 1), generator=generator, device=here)
        first = torch.randint(views, (count, 1), generator=generator, device=here)
        order = (first + torch.arange(frames, device=here)) % views
        home = self.pictures.device
        clips = self.pictures[chosen.to(home), order.to(home)].to(self.device)
        return clips.movedim(-1, 2).float() / 127.5 - 1


@dataclass(frozen=True)
class Watch:
    """What sees a training of an autoencoder, and may stop it.

    Attributes:
        log: Told the loss of every step, as a tensor that may still be computed.
        stop: Asked after every step; the state is saved then.
        progress: Told after every step.
    """

    log: Callable[[int, Tensor], None] = lambda step, loss: None
    stop: Callable[[], bool] = lambda: False
    progress: Progress = silent


UNWATCHED = Watch()


def trained_autoencoder(
    folder: Path,
    shape: VaeShape,
    pictures: Tensor,  # [N, T, S, S, 3] uint8
    config: VaeTrainConfig,
    device: torch.device,
    save_every: int,
    watch: Watch = UNWATCHED,
    graph: bool = True,
) -> ModelPart | None:
    """An autoencoder from the folder, or trained now; None when it was stopped before the end.

    Half way the latents get their place and scale, and what follows learns to live with it; at the
    end their scale is set once more. See `normalise_latents`.

    Args:
        folder: Holds the finished file, or the state of an unfinished training.
        shape: Widths.
        pictures: What it learns.
        config: Settings.
        device: Where it learns.
        save_every: Steps between two states.
        watch: Sees it.
        graph: Whether steps on CUDA, whose kernels are small, are replayed as a CUDA graph.
    """
    path = folder / VAE_FILE
    if not path.exists():
        captured = graph and device.type == "cuda"
        trainer = VaeTrainer(new_vae(shape, config.seed).to(device), config, captured)

        def centre(step: int) -> None:
            if step == config.steps // 2:
                normalise_latents(trainer.vae, _some_latents(trainer.vae, pictures), True)
                for parameter, average in zip(trainer.parameters, trainer.average, strict=True):
                    average.copy_(parameter.detach())

        clips = PictureClips(pictures, device)
        if not train(trainer, folder, lambda: trainer.update(clips), save_every, watch, centre):
            return None
        normalise_latents(trainer.vae, _some_latents(trainer.vae, pictures), False)
        write_model(path, {"vae": (shape, trainer.vae)}, torch.float32)
    return require_part(path, "vae")


def train(
    trainer: VaeTrainer,
    folder: Path,
    update: Callable[[], Tensor],
    save_every: int,
    watch: Watch,
    before: Callable[[int], None] = lambda step: None,
) -> bool:
    """All steps, from the folder's state on; False when stopped. The averages are taken then."""
    config = trainer.config
    load_progress(folder, trainer)
    while trainer.step < config.steps:
        before(trainer.step)
        loss = update()
        watch.log(trainer.step, loss)
        stopped = watch.stop()
        if stopped or trainer.step % save_every == 0:
            save_progress(folder, trainer)
        watch.progress(trainer.step, config.steps)
        if stopped:
            return False
    trainer.take_average()
    return True


def _some_latents(vae: Any, pictures: Tensor) -> Tensor:  # [N, 4, s, s]
    return encode_latents(vae, pictures[:SCALE_ORBITS]).flatten(0, 1)
