"""One picture to the frames of an orbit, on any model that has three doors."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from ..progress import Progress, silent
from .conditioning import LATENT_SCALE, Conditioning, ConditioningConfig, check_picture
from .decode_memory import DecodePlan
from .edm import SamplerConfig, initial_noise
from .families import OrbitFamily
from .guidance import Guidance
from .sampler import Denoiser, sample_euler


@dataclass(frozen=True)
class OrbitConfig:
    """Everything about an orbit but the picture and the seed; the defaults are V3D's."""

    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    guidance: Guidance = field(default_factory=Guidance)
    conditioning: ConditioningConfig = field(default_factory=ConditioningConfig)
    decode_frames: int = 0  # frames the decoder works on at a time; 0 = as many as fit


class OrbitModel(Protocol):
    """UNet, autoencoder and image encoder, wherever they come from."""

    @property
    def family(self) -> OrbitFamily:
        """The kind of model that the UNet is."""
        ...

    def condition(self, image: Tensor, config: ConditioningConfig, seed: int) -> Conditioning:
        """Encode a picture [1, S, S, 3]."""
        ...

    def sample(
        self,
        condition: Conditioning,
        guidance: Guidance,
        run: Callable[[Denoiser], Tensor],
        check: Callable[[], None],
    ) -> Tensor:
        """`run` with the denoiser; `check` is called often and may raise to cancel."""
        ...

    def decode(
        self, latents: Tensor, frames_per_slice: int, progress: Progress
    ) -> tuple[Tensor, DecodePlan]:
        """Raw latents [T, 4, s, s] to pictures [T, S, S, 3]."""
        ...


@dataclass(frozen=True)
class SampledOrbit:
    """Frames in [0, 1], as `OrbitFamily.orbit` orders them [T, S, S, 3], and what they cost."""

    frames: Tensor
    report: dict[str, Any]


def sample_orbit(
    model: OrbitModel,
    image: Tensor,  # [1, S, S, 3]
    config: OrbitConfig,
    seed: int,
    progress: Progress = silent,
) -> SampledOrbit:
    """Turn a camera around the object of a picture (V3D, arXiv 2403.06738).

    Args:
        model: The networks.
        image: One square picture of the object on white, in [0, 1]. [1, S, S, 3]
        config: Settings.
        seed: Start noise; the result depends on nothing else that is random.
        progress: Told after every step; raising inside it cancels, between blocks of a network too.

    Raises:
        ValueError: The picture is not one square picture of a size the networks take.
    """
    steps, frames = config.sampler.steps, config.conditioning.num_frames
    start = time.perf_counter()
    condition = model.condition(check_picture(image), config.conditioning, seed)
    sigmas = config.sampler.sigmas().to(condition.latent.device)
    done = 0

    def tell(step: int, denoised: Tensor, x: Tensor) -> None:
        nonlocal done
        done = step + 1
        progress(done, steps + 1, text="sampling")

    def run(denoiser: Denoiser) -> Tensor:
        noise = initial_noise((frames, *condition.latent.shape[1:]), seed).to(sigmas)
        return sample_euler(denoiser, noise * (1 + sigmas[0] ** 2).sqrt(), sigmas, tell)

    latents = model.sample(
        condition, config.guidance, run, lambda: progress(done, steps + 1, text="sampling")
    )
    sampled = time.perf_counter()
    pictures, plan = model.decode(
        latents / LATENT_SCALE,
        config.decode_frames,
        lambda step, total, preview=None, text="": progress(steps, steps + 1, text="decoding"),
    )
    pictures = with_picture(pictures, image, model.family)
    progress(steps + 1, steps + 1, text="")
    report = {
        "frames": frames,
        "steps": steps,
        "seconds_sampling": round(sampled - start, 2),
        "seconds_decoding": round(time.perf_counter() - sampled, 2),
        "decoded": str(plan),
    }
    return SampledOrbit(pictures, report)


def with_picture(frames: Tensor, image: Tensor, family: OrbitFamily) -> Tensor:  # [T, S, S, 3]
    """Frames with the picture [1, S, S, 3] in the place where its kind of model has it.

    SV3D is trained to end at the picture, so its own program puts that there (generative-models,
    simple_video_sample.py).
    """
    if not family.ends_with_picture:
        return frames
    return torch.cat([frames[:-1], check_picture(image).to(frames)])
