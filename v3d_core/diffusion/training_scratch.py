"""What a model from nothing needs beside its UNet: an autoencoder first, its decoder's turn last.

The first process trains them alone, while the others wait.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .checkpoint import ModelPart, require_part
from .training import OrbitBatch, OrbitTrainer
from .training_autoencoder import VAE_FILE, Watch, trained_autoencoder
from .training_config import (
    AUTOENCODER_FOLDER,
    DECODER_FOLDER,
    RunConfig,
    Scratch,
    StageProgress,
)
from .training_data import EncodedOrbits
from .training_decoder import OrbitLessons, resampled, whole_orbit_decoder
from .training_log import TrainingLog
from .training_processes import Processes
from .training_store import saved_step

Stop = Callable[[], bool]


class ScratchStages:
    """The two stages, in the folder of a run.

    Args:
        folder: Of the run.
        start: Widths and settings.
        config: Of the run; how often it logs and saves.
        device: Where they learn.
        processes: Of the run.
        stage_progress: Makes a progress for a stage by its name.
        stop: Asked after every step; the state is saved then.
    """

    def __init__(
        self,
        folder: Path,
        start: Scratch,
        config: RunConfig,
        device: torch.device,
        processes: Processes,
        stage_progress: StageProgress,
        stop: Stop,
    ) -> None:
        self.folder, self.start, self.config, self.device = folder, start, config, device
        self.processes, self._stage, self._stop = processes, stage_progress, stop

    def autoencoder(self, pictures: Tensor) -> ModelPart | None:
        """Trained on pictures [N, T, S, S, 3] uint8; None when the run shall stop."""

        def train(place: Path, watch: Watch) -> ModelPart | None:
            return trained_autoencoder(
                place,
                self.start.vae,
                pictures,
                self.start.autoencoder,
                self.device,
                self.config.save_every,
                watch,
            )

        return self._trained(AUTOENCODER_FOLDER, "autoencoder", train)

    def decoder(
        self, vae: ModelPart, trainer: OrbitTrainer, encoded: EncodedOrbits
    ) -> ModelPart | None:
        """An autoencoder whose decoder knows whole orbits of the finished UNet; None as above."""
        start, config = self.start, self.start.decoder
        if config is None:
            return vae

        def resample(batch: OrbitBatch, generator: torch.Generator) -> Tensor:
            return resampled(trainer, batch, start.decoder_sigma, generator)

        def train(place: Path, watch: Watch) -> ModelPart | None:
            lessons = OrbitLessons(encoded, self.device, config.seed, resample)
            trainer.swap_average()
            try:
                return whole_orbit_decoder(
                    place, vae, lessons, config, self.device, self.config.save_every, watch
                )
            finally:
                trainer.swap_average()

        return self._trained(DECODER_FOLDER, "decoder", train)

    def _trained(
        self, name: str, stage: str, train: Callable[[Path, Watch], ModelPart | None]
    ) -> ModelPart | None:
        place = self.folder / name
        place.mkdir(exist_ok=True)
        part = None
        if self.processes.first:
            log = TrainingLog(place, saved_step(place) or 0)

            def tell(step: int, loss: Tensor) -> None:
                if step % self.config.log_every == 0:
                    log.add(step, loss=finite(loss, step))

            with self._stage(stage) as progress:
                part = train(place, Watch(tell, self._stop, progress))
        if self.processes.any(self.processes.first and part is None):
            return None
        return part or require_part(place / VAE_FILE, "vae")


def finite(loss: Tensor, step: int) -> float:
    """The loss as a number.

    Raises:
        RuntimeError: It is none any more.
    """
    value = float(loss)
    if not math.isfinite(value):
        raise RuntimeError(
            f"the loss is {value} at step {step}: the training has diverged. Go on from the last "
            "saved state with a smaller --learning-rate, or in --precision float32"
        )
    return value
