"""The loss that an orbit model is trained with: v-prediction in EDM's frame, conditions dropped.

V3D never released its training code; noise, weights and dropout here are those of its configuration
(scripts/pub/configs/V3D_512.yaml) and of SVD's in generative-models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .conditioning import LATENT_SCALE
from .edm import v_scalings


@dataclass(frozen=True)
class NoiseConfig:
    """What is random about one training example, beside the orbit itself."""

    log_sigma_mean: float = 1.5  # ln sigma ~ N(mean, std^2); V3D_512.yaml. Less for small latents
    log_sigma_std: float = 2.0  # V3D_512.yaml
    drop_token: float = 0.2  # share of examples without the CLIP token; V3D_512.yaml
    drop_latent: float = 0.2  # share without the picture's latent, drawn apart; V3D_512.yaml
    log_cond_aug_mean: float = -3.0  # ln of the noise on the picture's raw latent; V3D's loaders
    log_cond_aug_std: float = 0.5  # V3D's loaders

    def __post_init__(self) -> None:
        for name in ("drop_token", "drop_latent"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share from 0 to 1, got {getattr(self, name)}")
        for name in ("log_sigma_std", "log_cond_aug_std"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


class NoiseDraw(NamedTuple):
    """The random numbers of one batch of B orbits.

    Attributes:
        sigma: Noise level of each orbit, the same for its frames. [B]
        noise: Unit noise of the frames. [B, T, 4, h, w]
        cond_aug: Deviation of the noise on the picture's raw latent. [B]
        cond_noise: That noise at unit deviation. [B, 4, h, w]
        keep_token: 1, or 0 where the token is dropped. [B]
        keep_latent: 1, or 0 where the picture's latent is dropped. [B]
    """

    sigma: Tensor
    noise: Tensor
    cond_aug: Tensor
    cond_noise: Tensor
    keep_token: Tensor
    keep_latent: Tensor

    def part(self, orbits: slice) -> NoiseDraw:
        """Those of some orbits of the batch."""
        return NoiseDraw(*(tensor[orbits] for tensor in self))


def draw_noise(shape: torch.Size, config: NoiseConfig, generator: torch.Generator) -> NoiseDraw:
    """Random numbers for a batch of orbits of the shape [B, T, 4, h, w], on the generator's device."""
    batch, _, channels, height, width = shape
    device = generator.device

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, device=device)

    def kept(share_dropped: float) -> Tensor:
        return (torch.rand(batch, generator=generator, device=device) >= share_dropped).float()

    return NoiseDraw(
        sigma=(config.log_sigma_mean + config.log_sigma_std * normal(batch)).exp(),
        noise=normal(*shape),
        cond_aug=(config.log_cond_aug_mean + config.log_cond_aug_std * normal(batch)).exp(),
        cond_noise=normal(batch, channels, height, width),
        keep_token=kept(config.drop_token),
        keep_latent=kept(config.drop_latent),
    )


def orbit_loss(
    unet: Any,
    latents: Tensor,  # [B, T, 4, h, w]
    token: Tensor,  # [B, 1, C]
    draw: NoiseDraw,
    fps_id: float,
    motion_bucket_id: float,
) -> Tensor:  # [B]
    """Squared error of the predicted v, one mean for each orbit.

    With F the network's output, the denoised latents are `c_skip x + c_out F`; EDM's loss with the
    weight 1 / c_out^2, generative-models' `VWeighting`, is the squared error of F against
    `(clean - c_skip x) / c_out`, which is the v of Salimans and Ho 2022.

    Args:
        unet: diffusers' UNetSpatioTemporalConditionModel, or anything called as it.
        latents: Raw latents of the frames, frame 0 the picture's. [B, T, 4, h, w]
        token: Projected CLIP embedding of the picture. [B, 1, C]
        draw: Random numbers, from `draw_noise`.
        fps_id: As in `ConditioningConfig`.
        motion_bucket_id: As in `ConditioningConfig`.
    """
    frames = latents.shape[1]
    clean = latents.float() * LATENT_SCALE
    sigma = draw.sigma[:, None, None, None, None]
    c_skip, c_out, c_in, _ = v_scalings(sigma)
    noisy = clean + sigma * draw.noise
    picture = latents[:, 0].float() + draw.cond_aug[:, None, None, None] * draw.cond_noise
    picture = picture * draw.keep_latent[:, None, None, None]
    inputs = torch.cat([c_in * noisy, picture[:, None].expand(-1, frames, -1, -1, -1)], dim=2)
    # the number of the condition's noise stays where its latent was dropped: sampling keeps it too
    ids = torch.stack(
        [
            torch.full_like(draw.cond_aug, fps_id),
            torch.full_like(draw.cond_aug, motion_bucket_id),
            draw.cond_aug,
        ],
        dim=1,
    )
    token = token * draw.keep_token[:, None, None]
    predicted = unet(inputs, 0.25 * draw.sigma.log(), token, ids, return_dict=False)[0]
    target = (clean - c_skip * noisy) / c_out
    return (predicted.float() - target).square().mean(dim=(1, 2, 3, 4))
