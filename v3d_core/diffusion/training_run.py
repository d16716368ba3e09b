"""A whole training of an orbit model in one folder: encode, learn, validate, save, write the model.

A run that is started again in its folder goes on where it was.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..backends import load_lpips
from ..progress import Progress, silent
from .bundled import TRAINING_CARD
from .checkpoint import ModelPart
from .families import V3D, family_of
from .layout import UNetShape
from .lora import Lora, merged_unet, write_lora
from .model_files import ModelParts
from .training import OrbitTrainer
from .training_cache import encoded_orbits, kept_pictures, on_white
from .training_config import (
    AUTOENCODER_FOLDER,
    LORA_FILE,
    MODEL_FILE,
    SHEET_FOLDER,
    STATE_FOLDER,
    Data,
    Outcome,
    RunConfig,
    Scratch,
    StageProgress,
    claim_folder,
    identity,
)
from .training_data import EncodedOrbits, encode_latents, encode_tokens
from .training_log import TrainingLog
from .training_networks import halve_frozen_layers, load_network, new_image_encoder, new_unet
from .training_processes import Processes
from .training_scratch import ScratchStages, finite
from .training_store import Weights, load_progress, save_progress, saved_step, write_model
from .training_validation import ValidationStopped, validate, write_sheet

logger = logging.getLogger(__name__)


class TrainingRun:
    """One run.

    Args:
        folder: Everything of the run; another run's is refused.
        start: The model to fine-tune, or a model from nothing.
        data: Orbits.
        config: Settings.
        device: Where it works.
        processes: That share the work.
        tensorboard: Folder for TensorBoard, or None.
        stop: Asked after every step; the run saves and ends.
        stage_progress: Makes a progress for a stage by its name.

    Raises:
        ValueError: The folder has another run, or the data do not fit.
    """

    def __init__(
        self,
        folder: Path,
        start: ModelParts | Scratch,
        data: Data,
        config: RunConfig,
        device: torch.device,
        processes: Processes | None = None,
        tensorboard: Path | None = None,
        stop: Callable[[], bool] = lambda: False,
        stage_progress: StageProgress = lambda name: nullcontext(silent),
    ) -> None:
        if not len(data.train):
            raise ValueError("the data set has no orbits to train on")
        if isinstance(start, Scratch) and config.lora_rank:
            raise ValueError(
                "a model from scratch learns with all its weights; lora_rank must be 0"
            )
        _check_start(start, data)
        self.folder, self.start, self.data, self.config = folder, start, data, config
        self.device, self.processes = device, processes or Processes()
        self.tensorboard = tensorboard
        self._stop, self._stage = stop, stage_progress
        self._began = time.perf_counter()
        self.settings = asdict(config) | {"dtype": str(config.dtype)}
        self.settings["seconds"] = config.seconds if math.isfinite(config.seconds) else None
        self.based_on = identity(start, data, config)
        claim_folder(folder, self.based_on, self.processes)

    def run(self) -> Outcome:
        """Do what is not done yet."""
        start, first = self.start, self.processes.first
        pictures: Tensor | None = None
        stages: ScratchStages | None = None
        if isinstance(start, Scratch):
            stages = self._scratch_stages(start)
            with self._stage("read") as progress:
                pictures = kept_pictures(
                    self.folder,
                    self.data.train,
                    self.data.key,
                    self.processes,
                    self._stoppable(progress),
                )
            vae = stages.autoencoder(pictures)
            if vae is None:
                step = saved_step(self.folder / AUTOENCODER_FOLDER) or 0
                return Outcome(False, step, {}, {}, self._report())
            clip = None
        else:
            vae, clip = start.vae, start.clip
        encoded = self._encoded(vae, clip, pictures)
        trainer, lora = self._trainer()
        log = TrainingLog(self.folder, trainer.step, self.tensorboard) if first else None
        check = self._validation(vae, clip, log) if first else None
        scores: dict[str, float | None] = {}
        with self._stage("train") as progress:
            finished = self._learn(trainer, encoded, log, check, scores, progress)
        if finished and stages is not None:
            better = stages.decoder(vae, trainer, encoded)
            finished, vae = better is not None, better or vae
            check = self._validation(vae, clip, log) if first and finished else None
        if finished:
            if check is not None:
                scores.update(check(trainer))
            self.processes.wait()
        files: dict[str, Path] = {}
        if first and finished:
            files = self._write(trainer, lora, vae, clip)
        if log is not None:
            log.close()
        self.processes.wait()
        return Outcome(finished, trainer.step, files, scores, self._report())

    # --- the pieces -----------------------------------------------------------------------------

    def _scratch_stages(self, start: Scratch) -> ScratchStages:
        return ScratchStages(
            self.folder,
            start,
            self.config,
            self.device,
            self.processes,
            self._stage,
            self._time_is_up,
        )

    def _encoded(
        self, vae: ModelPart, clip: ModelPart | None, pictures: Tensor | None
    ) -> EncodedOrbits:
        with self._stage("encode") as progress:
            return encoded_orbits(
                self.folder,
                self.data.train,
                self.data.key,
                vae,
                self._frozen,
                clip,
                pictures,
                self.data.closed,
                self.processes,
                self._stoppable(progress),
            )

    def _frozen(self, part: ModelPart) -> Any:
        """A network that encodes, as `load_diffusers_model` would have it."""
        half = part.kind == "clip" and self.device.type == "cuda"
        return load_network(part, torch.float16 if half else torch.float32).to(self.device)

    def _trainer(self) -> tuple[OrbitTrainer, Lora | None]:
        config, start = self.config.training, self.start
        encoder, lora = None, None
        if isinstance(start, Scratch):
            unet = new_unet(start.unet, config.seed).to(self.device)
            encoder = new_image_encoder(start.clip, config.seed).to(self.device)
        else:
            shape = start.unet.shape
            assert isinstance(shape, UNetShape)
            unet = load_network(start.unet)
            if self.config.lora_rank:
                if config.precision == "bfloat16":
                    halve_frozen_layers(unet)
                unet.to(self.device)
                lora = Lora(unet, shape, self.config.lora_rank, seed=config.seed)
            unet.to(self.device)
        trainer = OrbitTrainer(
            unet,
            encoder,
            config,
            lora.parameters if lora else None,
            self.processes.world,
            self.processes.rank,
        )
        load_progress(self.folder / STATE_FOLDER, trainer)
        return trainer, lora

    def _learn(
        self,
        trainer: OrbitTrainer,
        encoded: EncodedOrbits,
        log: TrainingLog | None,
        check: Callable[[OrbitTrainer], dict[str, float | None]] | None,
        scores: dict[str, float | None],
        progress: Progress,
    ) -> bool:
        """Updates until the last one, or until the run shall stop; the state is saved then."""
        config, processes = self.config, self.processes
        losses: list[Tensor] = []
        since, text, saved = time.perf_counter(), "", trainer.step

        def save() -> None:
            if processes.first:
                save_progress(self.folder / STATE_FOLDER, trainer, self.config.small_state)
            processes.wait()

        def look() -> None:
            if check is not None:
                scores.update(check(trainer))
            processes.wait()

        if trainer.step == 0 and not isinstance(self.start, Scratch):
            look()  # what fine-tuning has to beat
        while trainer.step < config.training.steps:
            if processes.any(self._time_is_up()):
                if saved != trainer.step:
                    save()
                return False
            losses.append(trainer.update(encoded))
            step = trainer.step
            if step % config.log_every == 0 or step == config.training.steps:
                loss = finite(processes.mean(torch.stack(losses).mean()), step)
                now = time.perf_counter()
                if log is not None:
                    log.add(
                        step,
                        loss=loss,
                        learning_rate=config.training.rate(step - 1),
                        gradient_norm=float(trainer.gradient_norm),
                        orbits_per_second=len(losses) * config.training.batch_size / (now - since),
                    )
                losses, since, text = [], now, f"loss {loss:.4f}"
            if step % config.save_every == 0 or step == config.training.steps:
                save()
                saved = step
            if step % config.validate_every == 0 and step < config.training.steps:
                look()
                since = time.perf_counter()
            progress(step, config.training.steps, text=text)
        return True

    def _validation(
        self, vae: ModelPart, clip: ModelPart | None, log: TrainingLog | None
    ) -> Callable[[OrbitTrainer], dict[str, float | None]] | None:
        """What looks at the orbits of a few validation objects; None where there are none."""
        data, config = self.data.validation, self.config.validation
        count = min(config.objects, len(data))
        if not count:
            return None
        chosen = [k * len(data) // count for k in range(count)]
        pictures = torch.stack([on_white(data[k]) for k in chosen])
        network = self._frozen(vae)
        latents = encode_latents(network, pictures)
        tokens = encode_tokens(self._frozen(clip), pictures) if clip else None
        network.to("cpu")
        encoded = EncodedOrbits(latents, tokens, None if clip else pictures, random_front=False)
        lpips, reason = load_lpips()
        logger.info("LPIPS: %s", reason)

        def check(trainer: OrbitTrainer) -> dict[str, float | None]:
            with self._stage("validate") as progress:
                try:
                    found = validate(
                        trainer, network, encoded, pictures, config, lpips, progress, self._stop
                    )
                except ValidationStopped:
                    return {}  # the next step asks again, saves and ends
            scores = {
                "psnr": found.psnr,
                "psnr_front": found.psnr_front,
                "lpips": found.lpips,
            }
            write_sheet(self.folder / SHEET_FOLDER / f"orbits_{trainer.step:08d}.png", found.sheet)
            if log is not None:
                log.add(trainer.step, **{f"validation_{k}": v for k, v in scores.items()})
                log.show(trainer.step, "validation", found.sheet)
            return scores

        return check

    def _write(
        self, trainer: OrbitTrainer, lora: Lora | None, vae: ModelPart, clip: ModelPart | None
    ) -> dict[str, Path]:
        """The finished weights: a LoRA, and a whole model where one was trained or asked for."""
        files: dict[str, Path] = {}
        said: dict[str, Any] = {"settings": self.settings, "based_on": self.based_on}
        if isinstance(self.start, Scratch):
            said["size"] = self.data.train[0].shape[1]  # a small model knows no other
        card = {TRAINING_CARD: json.dumps(said)}
        trainer.swap_average()
        unet: Weights = trainer.unet
        if lora is not None:
            files["lora"] = self.folder / LORA_FILE
            write_lora(files["lora"], lora.adapters, card)
        if lora is None or self.config.merge:
            start = self.start
            if lora is not None:
                assert isinstance(start, ModelParts)
                unet = merged_unet(start.unet, lora.adapters)
            shape = start.unet if isinstance(start, Scratch) else start.unet.shape
            encoder: tuple[Any, Weights]
            if isinstance(start, Scratch):
                assert trainer.image_encoder is not None
                encoder = (start.clip, trainer.image_encoder)
            else:
                assert clip is not None
                encoder = (clip.shape, clip)
            files["model"] = self.folder / MODEL_FILE
            networks = {"unet": (shape, unet), "vae": (vae.shape, vae), "clip": encoder}
            write_model(files["model"], networks, self.config.dtype, card)
        trainer.swap_average()
        return files

    # --- the folder and the clock ---------------------------------------------------------------

    def _time_is_up(self) -> bool:
        return self._stop() or time.perf_counter() - self._began > self.config.seconds

    def _stoppable(self, progress: Progress) -> Progress:
        """Encoding keeps what it has, so Ctrl-C may break it off anywhere."""

        def tell(step: int, total: int, preview: Any = None, text: str = "") -> None:
            progress(step, total, text=text)
            if self._stop():
                raise KeyboardInterrupt

        return tell

    def _report(self) -> dict[str, Any]:
        return {
            "settings": self.settings,
            "based_on": self.based_on,
            "orbits": {
                "train": len(self.data.train),
                "validation": len(self.data.validation),
            },
            "processes": self.processes.world,
        }


def _check_start(start: ModelParts | Scratch, data: Data) -> None:
    """Refuse SV3D, and frames that the networks cannot halve as often as they do."""
    unet: Any = start.unet if isinstance(start, Scratch) else start.unet.shape
    if isinstance(start, ModelParts) and family_of(unet) != V3D:
        raise ValueError(
            f"{start.unet.path} is {family_of(unet).name}, which is told other numbers than "
            "training knows; start from V3D.ckpt, svd_xt.safetensors or --from-scratch"
        )
    vae: Any = start.vae if isinstance(start, Scratch) else start.vae.shape
    multiple = 2 ** (len(unet.channel_mult) + len(vae.channel_mult) - 2)
    height, width = data.train[0].shape[1:3]
    if height != width or height % multiple:
        raise ValueError(
            f"the frames are {width}x{height}; this model takes squares with a side of a multiple "
            f"of {multiple}. Make the data again with v3d orbit-data --size"
        )
