"""Training of an orbit model: one step is a batch of orbits, a loss, an update and a moving average.

The loop, the files and the data belong to others; this is what happens to the weights. Everything
random comes from the seed and the number of the step, and is drawn for the whole batch before the
batch is split: a run that stops and goes on, that works in parts, or on several GPUs, ends with the
weights of one that did not.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .conditioning import ConditioningConfig, clip_pixels
from .training_capture import CapturedBackward
from .training_loss import NoiseConfig, NoiseDraw, draw_noise, orbit_loss
from .training_muon import Muon
from .training_processes import average_gradients

PRECISIONS = ("float32", "bfloat16")
OPTIMISERS = ("adamw", "muon")
SEED_STRIDE = 1_000_003  # keeps the random numbers of (seed, step) apart; any large prime


@dataclass(frozen=True)
class TrainConfig:
    """How an orbit model is trained; defaults are for fine-tuning SVD-shaped checkpoints."""

    steps: int = 10_000  # updates of the weights
    batch_size: int = 16  # orbits per update, over all accumulated parts and processes
    accumulate: int = 1  # parts a batch is worked off in; memory falls, the result stays
    optimiser: str = "adamw"  # V3D's; muon learns faster from nothing, see `training_muon`
    learning_rate: float = 1e-4  # at its peak; V3D's configuration (1e-5 in an older one)
    warmup_steps: int = 100  # linear rise of the rate; V3D has 1, a free choice of caution
    decay_share: float = 0.2  # of the steps, at the end, over which the rate falls to 0 linearly
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's own; V3D_512.yaml leaves them
    weight_decay: float = 0.01  # AdamW's own
    clip_gradient: float = 1.0  # largest norm of the gradient of all weights
    ema_decay: float = 0.9999  # of the averaged weights that are saved, SVD's; 0: none, as V3D
    precision: str = "bfloat16"  # of the arithmetic; weights and their updates stay float32
    gradient_checkpointing: bool = False  # half the memory for a third more time
    noise: NoiseConfig = field(default_factory=NoiseConfig)
    fps_id: float = ConditioningConfig.fps_id
    motion_bucket_id: float = ConditioningConfig.motion_bucket_id
    seed: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision {self.precision!r} is none of {', '.join(PRECISIONS)}")
        if self.optimiser not in OPTIMISERS:
            raise ValueError(f"optimiser {self.optimiser!r} is none of {', '.join(OPTIMISERS)}")
        if self.steps < 1 or self.batch_size < 1 or self.accumulate < 1:
            raise ValueError(
                f"steps {self.steps}, batch_size {self.batch_size} and accumulate "
                f"{self.accumulate} must be at least 1"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is a share from 0 to below 1, got {self.ema_decay}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"a batch of {self.batch_size} orbits does not split into {self.accumulate} equal "
                "parts; change batch_size or accumulate"
            )

    def rate(self, step: int) -> float:
        """Learning rate of a step: linear rise, flat, linear fall to 0 at the end."""
        falling = max(1, round(self.steps * self.decay_share))
        rise = (step + 1) / max(1, self.warmup_steps)
        fall = (self.steps - step) / falling
        return self.learning_rate * max(0.0, min(1.0, rise, fall))


class OrbitBatch(NamedTuple):
    """Orbits to learn from; `tokens` or `pictures`, whichever the trainer asks for.

    Attributes:
        latents: Raw latents of the frames; frame 0 is the picture's. [B, T, 4, h, w]
        tokens: Projected CLIP embeddings of frame 0, where the image encoder is not trained. [B, C]
        pictures: Frame 0 on white in [0, 1], where it is. [B, S, S, 3]
    """

    latents: Tensor
    tokens: Tensor | None = None
    pictures: Tensor | None = None


class OrbitSource(Protocol):
    """A data set that can be asked for any orbits at any time."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # [count, ...]
        """Which orbits a batch has: one row for each, on the generator's device."""
        ...

    def load(self, rows: Tensor, device: torch.device) -> OrbitBatch:
        """The orbits of some of those rows, on the device of the training."""
        ...


class OrbitTrainer:
    """UNet, and the image encoder if it learns too, with optimiser and moving averages.

    Args:
        unet: diffusers' UNet with weights, on the device.
        image_encoder: transformers' encoder to train with it, or None when tokens are given.
        config: Settings.
        trained: The parameters that learn; None is all of both networks.
        world: Number of processes that share a batch (torch.distributed is initialised then).
        rank: Which of them this is.
        captured: Whether a step's work is replayed as a CUDA graph; batches must not be worked off
            in parts then.
    """

    def __init__(
        self,
        unet: nn.Module,
        image_encoder: nn.Module | None,
        config: TrainConfig,
        trained: Iterable[nn.Parameter] | None = None,
        world: int = 1,
        rank: int = 0,
        captured: bool = False,
    ) -> None:
        if captured and config.accumulate > 1:
            raise ValueError(
                f"a captured step takes a batch at once; accumulate is {config.accumulate}, not 1"
            )
        if config.batch_size % (config.accumulate * world):
            raise ValueError(
                f"a batch of {config.batch_size} orbits does not split among {world} processes "
                f"with {config.accumulate} parts each; change batch_size or accumulate"
            )
        self.unet, self.image_encoder, self.config = unet, image_encoder, config
        self.world, self.rank = world, rank
        self.captured = captured
        self._replay: CapturedBackward | None = None
        self.step = 0
        networks = [unet] + ([image_encoder] if image_encoder is not None else [])
        if trained is None:
            trained = [p for network in networks for p in network.parameters()]
        self.parameters = list(trained)
        self.device = self.parameters[0].device
        for network in networks:
            network.train().requires_grad_(False)
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        if config.gradient_checkpointing:
            unet_: Any = unet
            unet_.enable_gradient_checkpointing()
        self.average = [p.detach().clone() for p in self.parameters] if config.ema_decay else []
        self.gradient_norm = torch.zeros((), device=self.device)  # before it was clipped
        self.optimiser = self._optimiser()

    def _optimiser(self) -> torch.optim.Optimizer:
        config = self.config
        kind = Muon if config.optimiser == "muon" else torch.optim.AdamW
        return kind(
            self.parameters,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=self.device.type == "cuda",
        )

    def update(self, source: OrbitSource) -> Tensor:  # []
        """One step on a batch of the source; the mean loss of this process, not synchronised."""
        config = self.config
        number = (config.seed * SEED_STRIDE + self.step) % 2**63
        generator = torch.Generator(self.device).manual_seed(number)
        rows = source.draw(config.batch_size, generator)
        size = config.batch_size // (config.accumulate * self.world)
        draw: NoiseDraw | None = None  # of the whole batch; the first orbits tell its shape
        total = torch.zeros((), device=self.device)
        for index in range(config.accumulate):
            start = (self.rank * config.accumulate + index) * size
            part = slice(start, start + size)
            batch = source.load(rows[part], self.device)
            if draw is None:
                shape = torch.Size((config.batch_size, *batch.latents.shape[1:]))
                draw = draw_noise(shape, config.noise, generator)
            total += self._learn(batch, draw.part(part))
        if self.world > 1:
            average_gradients(self.parameters, self.world)
        for group in self.optimiser.param_groups:
            group["lr"] = config.rate(self.step)
        self.gradient_norm = nn.utils.clip_grad_norm_(self.parameters, config.clip_gradient)
        self.optimiser.step()
        if not self.captured:
            self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        if self.average:
            # the average of a young run forgets faster, or it would keep the random start
            decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
            weights = [p.detach() for p in self.parameters]
            torch._foreach_lerp_(self.average, weights, 1 - decay)  # pyright: ignore
        return total

    def _learn(self, batch: OrbitBatch, draw: NoiseDraw) -> Tensor:  # []
        """Add the gradients of some orbits; their share of the loss."""
        inputs = (batch.latents, self.picture_inputs(batch), *draw)
        if not self.captured:
            return self._backward(*inputs)
        if self._replay is None:
            self._replay = CapturedBackward(self._backward, self.parameters, inputs)
        return self._replay(*inputs)

    def _backward(self, latents: Tensor, picture: Tensor, *draw: Tensor) -> Tensor:
        loss = self._loss(latents, picture, NoiseDraw(*draw)).mean() / self.config.accumulate
        loss.backward()
        return loss.detach()

    def loss(self, batch: OrbitBatch, draw: NoiseDraw) -> Tensor:  # [B]
        """The loss of each orbit of a batch."""
        return self._loss(batch.latents, self.picture_inputs(batch), draw)

    def _loss(self, latents: Tensor, picture: Tensor, draw: NoiseDraw) -> Tensor:  # [B]
        config = self.config
        with self.arithmetic():
            token = self._token(picture)
            return orbit_loss(
                self.unet, latents, token, draw, config.fps_id, config.motion_bucket_id
            )

    def arithmetic(self) -> AbstractContextManager[object]:
        """The precision that the networks work in."""
        half = self.config.precision == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16) if half else nullcontext()

    def picture_inputs(self, batch: OrbitBatch) -> Tensor:
        """What a batch has of its pictures: tokens [B, C], or pixels for the encoder that learns."""
        if self.image_encoder is None:
            if batch.tokens is None:
                raise ValueError("the image encoder does not learn, so batches must have tokens")
            return batch.tokens
        if batch.pictures is None:
            raise ValueError("the image encoder learns, so batches must have pictures")
        return clip_pixels(batch.pictures)

    def _token(self, picture: Tensor) -> Tensor:  # [B, 1, C]
        if self.image_encoder is None:
            return picture[:, None]
        encoder: Any = self.image_encoder
        return encoder(pixel_values=picture).image_embeds[:, None]

    def tokens(self, batch: OrbitBatch) -> Tensor:  # [B, 1, C]
        """What the UNet is told of the pictures: given, or from the encoder that learns."""
        return self._token(self.picture_inputs(batch))

    def swap_average(self) -> None:
        """Exchange weights and their moving averages; calling it twice changes nothing.

        Without averages it does nothing: the weights themselves are the result.
        """
        for parameter, average in zip(self.parameters, self.average, strict=bool(self.average)):
            kept = parameter.detach().clone()
            parameter.data.copy_(average)
            average.copy_(kept)
