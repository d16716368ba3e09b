"""The last lesson of a small model: its decoder learns whole orbits, as the UNet makes them.

An autoencoder that is trained from scratch sees short clips of true frames. Whole orbits show its
convolutions along time what lies past the ends of clips, and the UNet's own latents show it the
errors that it will have to live with: blots that change from frame to frame, a white that is not
quite white. The encoder stays as it is, so the UNet does, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import ModelPart, require_part
from .conditioning import LATENT_SCALE, ConditioningConfig
from .edm import SamplerConfig
from .sampler import orbits_denoiser, sample_euler
from .training import OrbitBatch, OrbitTrainer
from .training_autoencoder import UNWATCHED, VAE_FILE, Watch, train
from .training_data import EncodedOrbits
from .training_networks import load_network
from .training_store import write_model
from .training_vae import VaeTrainConfig, VaeTrainer, reconstruction_loss

DECODER_TRAINING = VaeTrainConfig(  # V3D-nano's; free choices, tried once
    steps=1000,
    batch_size=2,  # whole orbits
    learning_rate=3e-4,
    warmup_steps=20,
    ema_decay=0.99,
)
RESAMPLED_PIXELS = 300_000  # of latents that the UNet makes at a time on a GPU: 64 of nano's orbits
LOWEST_SIGMA = 0.2  # below, the UNet gives back what it is given; free choice
HIGHEST_SIGMA = 5.0  # above, it makes other objects; free choice
RESAMPLE_STEPS = 8  # as many of V3D's 25 lie below the noise level 2
_STREAM = 7_368_787  # keeps the random numbers of (seed, batch of orbits) apart; any large prime


class DecoderTrainer(VaeTrainer):
    """A decoder that learns to turn given latents of whole orbits into their pictures."""

    def loss(self, latents: Tensor, pictures: Tensor) -> Tensor:  # [] # pyright: ignore
        """Of raw latents [B, T, 4, s, s] and pictures in [-1, 1] [B, T, 3, S, S]."""
        batch, frames = latents.shape[:2]
        indicator = torch.zeros(batch, frames, device=latents.device)
        vae: Any = self.vae
        made = vae.decoder(latents.flatten(0, 1), indicator, frames)
        return reconstruction_loss(made.float(), pictures.flatten(0, 1), self.config)


class OrbitLessons:
    """Latents and pictures of whole orbits, the same for a step however often it is asked.

    Args:
        data: Encoded orbits with pictures.
        device: Of the training.
        seed: Of the choice.
        resample: Makes other latents of a batch, with the generator; None leaves the true ones.
    """

    def __init__(
        self,
        data: EncodedOrbits,
        device: torch.device,
        seed: int,
        resample: Callable[[OrbitBatch, torch.Generator], Tensor] | None = None,
    ) -> None:
        self.data, self.device, self.seed, self.resample = data, device, seed, resample
        self._pool, self._latents, self._rows = -1, torch.empty(0), torch.empty(0)

    def __call__(self, step: int, count: int) -> tuple[Tensor, Tensor]:
        """Raw latents [count, T, 4, s, s] and pictures in [-1, 1] [count, T, 3, S, S] of a step."""
        pixels = self.data.latents[0, :, 0].numel()
        at_once = count
        if self.device.type == "cuda":
            at_once *= max(1, RESAMPLED_PIXELS // (pixels * count))
        pool, start = divmod(step * count, at_once)
        if pool != self._pool:
            number = (self.seed * _STREAM + pool) % 2**63
            generator = torch.Generator(self.device).manual_seed(number)
            self._rows = self.data.draw(at_once, generator)
            batch = self.data.load(self._rows, self.device)
            self._latents = (
                batch.latents.float() if self.resample is None else self.resample(batch, generator)
            )
            self._pool = pool
        part = slice(start, start + count)
        pictures = self.data.frames(self._rows[part], self.device)
        return self._latents[part], pictures.movedim(-1, 2).float() / 127.5 - 1


@torch.no_grad()
def resampled(
    trainer: OrbitTrainer,
    batch: OrbitBatch,
    highest_sigma: float,
    generator: torch.Generator,
    steps: int = RESAMPLE_STEPS,
) -> Tensor:  # [B, T, 4, h, w]
    """Raw latents of known orbits with the errors of the UNet: noise is added and taken out again.

    Meng et al. 2022 (SDEdit). The noise level is one for the batch, log-uniform from `LOWEST_SIGMA`
    to `highest_sigma`.

    Args:
        trainer: Its UNet and image encoder, with the weights they have at the moment.
        batch: Orbits.
        highest_sigma: Of the scaled latents; the more, the freer the UNet is.
        generator: Of all random numbers.
        steps: Of the sampler, from that level to 0.
    """
    device, numbers = generator.device, ConditioningConfig()

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    latents = batch.latents.float()
    count, frames = latents.shape[:2]
    share = float(torch.rand((), generator=generator, device=device))
    low, high = math.log(LOWEST_SIGMA), math.log(highest_sigma)
    sigmas = (
        SamplerConfig(steps, sigma_max=math.exp(low + share * (high - low))).sigmas().to(device)
    )
    picture = latents[:, 0] + numbers.cond_aug * normal(*latents[:, 0].shape)
    picture = picture[:, None].expand(-1, frames, -1, -1, -1)
    config = trainer.config
    ids = torch.tensor([[config.fps_id, config.motion_bucket_id, numbers.cond_aug]], device=device)
    with trainer.arithmetic():
        token = trainer.tokens(batch)
        denoise = orbits_denoiser(trainer.unet, token, picture, ids.expand(count, -1))
        noisy = latents * LATENT_SCALE + sigmas[0] * normal(*latents.shape)
        return sample_euler(denoise, noisy, sigmas) / LATENT_SCALE


def whole_orbit_decoder(
    folder: Path,
    start: ModelPart,
    lessons: OrbitLessons,
    config: VaeTrainConfig,
    device: torch.device,
    save_every: int,
    watch: Watch = UNWATCHED,
    graph: bool = True,
) -> ModelPart | None:
    """An autoencoder whose decoder went on learning, from the folder, or trained now.

    Args:
        folder: As in `trained_autoencoder`, another one.
        start: An autoencoder.
        lessons: What it learns.
        config: Settings; the orbits tell how many frames it sees at a time.
        device: Where it learns.
        save_every: Steps between two states.
        watch: Sees it.
        graph: As in `trained_autoencoder`.

    Returns:
        The autoencoder, or None when it was stopped before the end.
    """
    path = folder / VAE_FILE
    if not path.exists():
        vae = load_network(start).to(device)
        vae.decoder.requires_grad_(True)
        trainer = DecoderTrainer(vae, config, graph and device.type == "cuda")

        def update() -> Tensor:
            return trainer.learn(*lessons(trainer.step, config.batch_size))

        if not train(trainer, folder, update, save_every, watch):
            return None
        write_model(path, {"vae": (start.shape, vae)}, torch.float32)
    return require_part(path, "vae")
