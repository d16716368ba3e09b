"""Settings of a whole training run, what it is based on, and the folder that is its own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..formats.atomic import atomic_path
from ..progress import Progress
from .checkpoint import misfits
from .layout import ClipShape, UNetShape, VaeShape
from .model_files import ModelParts
from .training import TrainConfig
from .training_cache import OrbitPictures, digest_of
from .training_decoder import DECODER_TRAINING, HIGHEST_SIGMA
from .training_processes import Processes
from .training_vae import VaeTrainConfig
from .training_validation import ValidationConfig

RUN_FILE, MODEL_FILE, LORA_FILE = "run.json", "model.safetensors", "lora.safetensors"
STATE_FOLDER, SHEET_FOLDER = "state", "validation"
AUTOENCODER_FOLDER, DECODER_FOLDER = "autoencoder", "decoder"

LONGEST_VALUE = 200  # characters of one in an error

StageProgress = Callable[[str], AbstractContextManager[Progress]]


@dataclass(frozen=True)
class Scratch:
    """A model that starts from nothing: its widths and how its autoencoder is trained.

    `decoder` is how its decoder ends, on orbits that the finished UNet makes from noise levels up to
    `decoder_sigma`; None leaves it as it was.
    """

    unet: UNetShape = field(default_factory=UNetShape)
    vae: VaeShape = field(default_factory=VaeShape)
    clip: ClipShape = field(default_factory=ClipShape)
    autoencoder: VaeTrainConfig = field(default_factory=VaeTrainConfig)
    decoder: VaeTrainConfig | None = DECODER_TRAINING
    decoder_sigma: float = HIGHEST_SIGMA

    def __post_init__(self) -> None:
        """Refuse before the training what no model file could hold after it."""
        found = [text for shape in (self.unet, self.vae, self.clip) for text in misfits(shape)]
        svd, clip = VaeShape(), ClipShape()
        if (self.vae.res_blocks, len(self.vae.channel_mult)) != (2, len(svd.channel_mult)):
            found.append(
                f"its autoencoder has {self.vae.res_blocks} blocks in each of "
                f"{len(self.vae.channel_mult)} levels, SVD's has {svd.res_blocks} in "
                f"{len(svd.channel_mult)}"
            )
        if self.vae.latent_channels != self.unet.out_channels:
            found.append(
                f"its autoencoder has latents of {self.vae.latent_channels} channels, its UNet "
                f"makes {self.unet.out_channels}"
            )
        if self.clip.projection != self.unet.context_channels:
            found.append(
                f"its image encoder makes tokens of {self.clip.projection} values, its UNet takes "
                f"{self.unet.context_channels}"
            )
        if self.clip.image_size != clip.image_size:
            found.append(
                f"its image encoder takes {self.clip.image_size} px, not {clip.image_size}"
            )
        if found:
            raise ValueError(f"no model can have this shape: {'; '.join(found)}")


@dataclass(frozen=True)
class RunConfig:
    """What a run does beside the updates themselves."""

    training: TrainConfig = field(default_factory=TrainConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    lora_rank: int = 16  # 0: all weights of the UNet learn
    merge: bool = False  # a LoRA into a whole model as well
    validate_every: int = 1000  # steps; and at the end
    save_every: int = 500  # steps; and at the end
    log_every: int = 10  # steps
    small_state: bool = False  # saved states are small and not exact, see `save_progress`
    seconds: float = math.inf  # the run saves and stops after these
    dtype: torch.dtype = torch.float16  # of the model that is written

    def __post_init__(self) -> None:
        for name in ("validate_every", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is at least 1 step, got {getattr(self, name)}")


@dataclass(frozen=True)
class Data:
    """Orbits to learn from and others to look at.

    Attributes:
        train: Orbits.
        validation: Orbits of other objects; may be none.
        key: What tells this data set from others.
        closed: Whether the orbits are whole turns at one elevation.
    """

    train: OrbitPictures
    validation: OrbitPictures
    key: str
    closed: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        finished: Whether it made its last step; else the state is saved.
        step: Updates made so far, of the autoencoder where the UNet has not begun.
        files: What was written, by its use.
        validation: The last scores: psnr, psnr_front, lpips.
        report: Settings and what it is based on.
    """

    finished: bool
    step: int
    files: dict[str, Path]
    validation: dict[str, float | None]
    report: dict[str, Any]


def identity(start: ModelParts | Scratch, data: Data, config: RunConfig) -> dict[str, Any]:
    """What must stay the same from one start of a run to the next, as plain JSON."""
    if isinstance(start, Scratch):
        model: Any = {"scratch": asdict(start)}
    else:
        model = {part.kind: digest_of(part) for part in (start.unet, start.vae, start.clip)}
    found = {
        "model": model,
        "data": data.key,
        "lora_rank": config.lora_rank,
        "average": config.training.ema_decay > 0,
        "seed": config.training.seed,
    }
    return json.loads(json.dumps(found))


def claim_folder(folder: Path, mine: dict[str, Any], processes: Processes) -> None:
    """Make a folder a run's own.

    Raises:
        ValueError: It belongs to another run; the text has what differs, there and here.
    """
    path = folder / RUN_FILE
    if processes.first and not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder}: not empty and no {RUN_FILE} in it; choose a new folder")
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(mine, indent=1) + "\n", encoding="utf-8")
    processes.wait()
    there = json.loads(path.read_text(encoding="utf-8"))
    for key, value in mine.items():
        if there.get(key) != value:
            raise ValueError(
                f"{folder} has a run with another {key}: {_short(there.get(key))} there, "
                f"{_short(value)} asked for; give what it began with, or another folder"
            )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE] + " ..."
