"""Orbits of objects that a training never sees, sampled with fixed seeds, against the truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..backends import ImageDistance
from ..formats.atomic import atomic_path
from ..images import contact_sheet
from ..metrics import psnr
from ..progress import Progress, silent
from .conditioning import (
    LATENT_SCALE,
    Conditioning,
    ConditioningConfig,
    augment_latent,
    augmentation_generator,
)
from .diffusers_backend import DiffusersModel
from .edm import SamplerConfig, initial_noise
from .guidance import Guidance
from .interrupt import interruptible
from .sampler import sample_euler
from .training import OrbitTrainer
from .training_data import EncodedOrbits

SHEET_FRAMES = 9  # of every orbit that a sheet shows: V3D's every second


@dataclass(frozen=True)
class ValidationConfig:
    """How validation orbits are made; as `v3d sample` makes orbits."""

    objects: int = 4  # spread over the validation set
    steps: int = SamplerConfig.steps
    scale: float = Guidance.scale  # of the guidance
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objects < 0:
            raise ValueError(f"the number of validation objects is {self.objects}, at least 0")


@dataclass(frozen=True)
class ValidationScores:
    """Means over all frames of all objects.

    Attributes:
        psnr: dB, on white.
        psnr_front: dB, of frame 0, which the model is given.
        lpips: Or None where it is not installed.
        sheet: Truth and what was made, one below the other. [H, W, 3]
    """

    psnr: float
    psnr_front: float
    lpips: float | None
    sheet: Tensor


class ValidationStopped(Exception):
    """The run shall stop in the middle of a validation, which can take minutes on a CPU."""


def validate(
    trainer: OrbitTrainer,
    vae: Any,
    data: EncodedOrbits,
    pictures: Tensor,  # [K, T, S, S, 3] uint8
    config: ValidationConfig,
    lpips: ImageDistance | None = None,
    progress: Progress = silent,
    stop: Callable[[], bool] = lambda: False,
) -> ValidationScores:
    """Sample every orbit of a few with the averaged weights, and score them.

    Args:
        trainer: Its weights are what they were afterwards.
        vae: diffusers' autoencoder; its decoder is on the trainer's device only meanwhile.
        data: The same orbits, encoded.
        pictures: Their frames on white.
        config: Settings; the same seeds every time.
        lpips: From `backends.load_lpips`.
        progress: Told after every orbit.
        stop: Asked between the blocks of the network.

    Raises:
        ValidationStopped: `stop` said so.
    """

    def check() -> None:
        if stop():
            raise ValidationStopped

    numbers = ConditioningConfig(
        num_frames=pictures.shape[1],
        fps_id=trainer.config.fps_id,
        motion_bucket_id=trainer.config.motion_bucket_id,
    )
    trainer.swap_average()
    trainer.unet.eval()
    try:
        with torch.no_grad(), interruptible(trainer.unet, check):
            made = []
            for index in range(len(pictures)):
                made.append(_orbit(trainer, vae, data, index, numbers, config))
                progress(index + 1, len(pictures), text="validation orbits")
    finally:
        vae.to("cpu")
        trainer.unet.train()
        trainer.swap_average()
    truth = pictures.cpu().float() / 255
    each = [[psnr(m, t) for m, t in zip(a, b, strict=True)] for a, b in zip(made, truth)]
    scores = torch.tensor(each, dtype=torch.float64)
    distance = None
    if lpips is not None:
        distance = float(torch.cat([lpips(m, t) for m, t in zip(made, truth)]).mean())
    views = torch.arange(SHEET_FRAMES) * truth.shape[1] // SHEET_FRAMES
    views = views.unique()
    rows = [row[views] for pair in zip(truth, made) for row in pair]
    return ValidationScores(
        float(scores.mean()),
        float(scores[:, 0].mean()),
        distance,
        contact_sheet(torch.cat(rows), columns=len(views)),
    )


def write_sheet(path: Path, sheet: Tensor) -> None:  # [H, W, 3]
    """A picture in [0, 1] as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        pixels = (sheet.clamp(0, 1) * 255).round().to(torch.uint8)
        Image.fromarray(pixels.cpu().numpy()).save(temporary, format="PNG")


def _orbit(
    trainer: OrbitTrainer,
    vae: Any,
    data: EncodedOrbits,
    index: int,
    numbers: ConditioningConfig,
    config: ValidationConfig,
) -> Tensor:  # [T, S, S, 3]
    """As `sample_orbit`, from a picture that is encoded already."""
    device, seed = trainer.device, config.seed + index
    with trainer.arithmetic():
        batch = data.load(torch.tensor([[index, 0]]), device)
        token = trainer.tokens(batch).float()
        generator = augmentation_generator(seed)
        latent = augment_latent(batch.latents[:, 0].float(), numbers.cond_aug, generator)
        model = DiffusersModel(trainer.unet, vae, nn.Identity(), device)
        denoiser = model.denoiser(
            Conditioning(token, latent, numbers), Guidance(scale=config.scale)
        )
        sigmas = SamplerConfig(steps=config.steps).sigmas().to(device)
        noise = initial_noise((numbers.num_frames, *latent.shape[1:]), seed).to(device)
        latents = sample_euler(denoiser, noise * (1 + sigmas[0] ** 2).sqrt(), sigmas)
    return model.decode(latents / LATENT_SCALE)[0]
