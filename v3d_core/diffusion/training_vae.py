"""Training of a small autoencoder with a temporal decoder, and the scale of its latents."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .conditioning import LATENT_SCALE, LOGVAR_RANGE
from .training_capture import CapturedBackward


@dataclass(frozen=True)
class VaeTrainConfig:
    """How an autoencoder is trained from scratch; free choices for pictures of 128 px, tried once."""

    steps: int = 2600
    batch_size: int = 12  # clips per step
    clip_frames: int = 4  # neighbouring frames the temporal decoder sees together
    learning_rate: float = 1e-3  # AdamW; falls to 0 along a quarter cosine
    warmup_steps: int = 100
    kl_weight: float = 1e-6  # Rombach et al. 2022, autoencoder_kl; against sums over a picture
    l1_weight: float = 0.1  # of the absolute error
    edge_weight: float = 0.1  # of the differences between neighbouring pixels, for sharp outlines
    thumbnail_weight: float = 1.0  # at the start, see `thumbnail_loss`; our measurement
    thumbnail_share: float = 0.5  # of the steps, over which that weight falls to 0
    clip_gradient: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA
    seed: int = 0


def thumbnail_loss(mean: Tensor, pictures: Tensor) -> Tensor:  # []
    """Squared error of the first three latents, scaled, against the picture made small.

    A random autoencoder finds brightness, then one colour axis, and needs very long for the others:
    each waits until the decoder reads what the encoder does not write yet. Started as thumbnails the
    latents have all colours at once.

    Args:
        mean: Posterior means. [N, 4, s, s]
        pictures: In [-1, 1]. [N, 3, S, S]
    """
    small = nn.functional.interpolate(pictures, size=mean.shape[2:], mode="area")
    return (mean[:, :3] * LATENT_SCALE - small).square().mean()


def vae_loss(
    vae: Any,
    pictures: Tensor,
    config: VaeTrainConfig,
    noise: Tensor,
    thumbnail_weight: Tensor | float = 0.0,
) -> Tensor:  # []
    """Reconstruction, edges and the distance of the latents from unit noise.

    Args:
        vae: diffusers' AutoencoderKLTemporalDecoder.
        pictures: Clips in [-1, 1]. [B, T, 3, S, S]
        config: Weights.
        noise: Unit noise of the posterior's samples. [B * T, 4, s, s]
        thumbnail_weight: Of `thumbnail_loss`.
    """
    frames = pictures.shape[1]
    flat = pictures.flatten(0, 1)
    mean, logvar = vae.encoder(flat).float().chunk(2, dim=1)
    logvar = logvar.clamp(*LOGVAR_RANGE)
    sample = mean + (0.5 * logvar).exp() * noise
    indicator = torch.zeros(len(pictures), frames, device=flat.device)
    made = vae.decoder(sample, indicator, frames).float()
    # of the latents as the UNet sees them, or the loss would pull their scale away from SVD's
    thumbnail = thumbnail_loss(mean, flat)
    mean, logvar = mean * LATENT_SCALE, logvar + 2 * math.log(LATENT_SCALE)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=(1, 2, 3)).mean()
    # Rombach et al. weigh sums over a picture, the errors here are means over its values
    values = flat[0].numel()
    return (
        reconstruction_loss(made, flat, config)
        + config.kl_weight * kl / values
        + thumbnail_weight * thumbnail
    )


def reconstruction_loss(
    made: Tensor,  # [N, 3, S, S]
    true: Tensor,  # [N, 3, S, S]
    config: VaeTrainConfig,
) -> Tensor:  # []
    """Squared and absolute error of pictures in [-1, 1], and of their outlines."""
    error = made - true
    across = (error[..., 1:] - error[..., :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return (
        error.square().mean()
        + config.l1_weight * error.abs().mean()
        + config.edge_weight * (across + down)
    )


class VaeTrainer:
    """The autoencoder, its optimiser and the moving average of its weights."""

    def __init__(self, vae: nn.Module, config: VaeTrainConfig, captured: bool = False) -> None:
        self.vae, self.config, self.step = vae, config, 0
        self.captured = captured  # whether a step's work is replayed as a CUDA graph
        self._replay: CapturedBackward | None = None
        self.parameters = [p for p in vae.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.average = [p.detach().clone() for p in self.parameters]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, fused=self.device.type == "cuda"
        )

    def rate(self) -> float:
        """Learning rate of the next step."""
        config = self.config
        rise = (self.step + 1) / config.warmup_steps
        turn = torch.tensor(self.step / config.steps * torch.pi / 2)
        return config.learning_rate * min(1.0, rise) * float(turn.cos())

    def thumbnail_weight(self) -> float:
        """Weight of `thumbnail_loss` in the next step."""
        config = self.config
        done = self.step / (config.steps * config.thumbnail_share)
        return config.thumbnail_weight * max(0.0, 1.0 - done)

    def update(self, clips: Callable[[int, int, torch.Generator], Tensor]) -> Tensor:  # []
        """One step on `clips(count, frames, generator)`: pictures in [-1, 1] [B, T, 3, S, S]."""
        config = self.config
        generator = torch.Generator(self.device).manual_seed(config.seed * 1_000_003 + self.step)
        pictures = clips(config.batch_size, config.clip_frames, generator)
        side = pictures.shape[-1] // 8
        noise = torch.randn(
            (pictures.shape[0] * pictures.shape[1], 4, side, side),
            generator=generator,
            device=self.device,
        )
        return self.learn(
            pictures, noise, torch.tensor(self.thumbnail_weight(), device=self.device)
        )

    def loss(self, pictures: Tensor, noise: Tensor, thumbnail: Tensor) -> Tensor:  # []
        """What a step makes smaller."""
        return vae_loss(self.vae, pictures, self.config, noise, thumbnail)

    def learn(self, *inputs: Tensor) -> Tensor:  # []
        """One step on what `loss` takes; the loss before it, not synchronised."""
        config = self.config
        if self.captured and self._replay is None:
            self._replay = CapturedBackward(self._backward, self.parameters, inputs)
        loss = (self._replay or self._backward)(*inputs)
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate()
        nn.utils.clip_grad_norm_(self.parameters, config.clip_gradient)
        self.optimiser.step()
        if not self.captured:
            self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
        weights = [p.detach() for p in self.parameters]
        torch._foreach_lerp_(self.average, weights, 1 - decay)  # pyright: ignore
        return loss

    def _backward(self, *inputs: Tensor) -> Tensor:  # []
        precision, kind = self.config.precision, self.device.type
        half = precision == "bfloat16" or (precision == "auto" and kind == "cuda")
        with torch.autocast(kind, torch.bfloat16, half):
            loss = self.loss(*inputs)
        loss.backward()
        return loss.detach()

    def take_average(self) -> None:
        """Put the averaged weights into the network."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.data.copy_(average)


@torch.no_grad()
def normalise_latents(vae: Any, means: Tensor, centre: bool) -> None:
    """Give every latent channel the deviation 1 / 0.18215 that SVD's UNet expects, and mean 0.

    The encoder's last and the decoder's first convolution take the change and its inverse, so
    pictures stay what they are. With `centre` that holds inside only: the decoder pads with zeros,
    which then mean another value, so some training should follow.

    Args:
        vae: The autoencoder; changed in place.
        means: Posterior means of many pictures. [N, 4, s, s]
        centre: Whether the mean is taken out as well.
    """
    last, first = vae.encoder.conv_out, vae.decoder.conv_in
    means = means.to(last.weight.device)  # they lie where their pictures do
    factor = 1 / (means.float().std(dim=(0, 2, 3)) * LATENT_SCALE)  # [4]
    count = len(factor)
    if centre:
        middle = means.float().mean(dim=(0, 2, 3))
        last.bias[:count] -= middle
        first.bias += (first.weight.sum(dim=(2, 3)) * middle).sum(dim=1)
    last.weight[:count] *= factor[:, None, None, None]
    last.bias[:count] *= factor
    last.bias[count:] += 2 * factor.log()
    first.weight /= factor[None, :, None, None]
