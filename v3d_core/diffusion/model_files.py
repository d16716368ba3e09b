"""Which file each network of an orbit model comes from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.weights import WeightsError, open_weights
from .checkpoint import CheckpointError, ModelPart, find_part
from .layout import ClipShape, UNetShape, VaeShape

V3D_FILE, V3D_HOME = "V3D.ckpt", "https://huggingface.co/heheyas/V3D"
SVD_FILE = "svd_xt.safetensors"
SVD_HOME = "https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt"
SV3D_FILES, SV3D_HOME = (
    ("sv3d_u.safetensors", "sv3d_p.safetensors"),
    "https://huggingface.co/stabilityai/sv3d",
)

_NEEDED = {
    "unet": f"the video UNet. It is in {V3D_FILE} ({V3D_HOME})",
    "clip": f"the image encoder, which {V3D_FILE} lacks. It is in {SVD_FILE} ({SVD_HOME})",
    "vae": f"an autoencoder with a temporal decoder. One is in {SVD_FILE} ({SVD_HOME})",
}
_FOLDERS = {"unet": "unet", "vae": "vae", "clip": "image_encoder"}  # of a diffusers folder


@dataclass(frozen=True)
class ModelParts:
    """The three networks of one model."""

    unet: ModelPart
    vae: ModelPart
    clip: ModelPart

    def __post_init__(self) -> None:
        assert isinstance(self.unet.shape, UNetShape)
        for part in (self.vae, self.clip):
            _check_fit(part, self.unet, self.unet.shape)


def _check_fit(part: ModelPart, unet: ModelPart, unet_shape: UNetShape) -> None:
    """Refuse an image encoder or autoencoder whose output the UNet does not take."""
    shape = part.shape
    if isinstance(shape, ClipShape) and shape.projection != unet_shape.context_channels:
        raise CheckpointError(
            f"{part.path} makes tokens of {shape.projection} values but {unet.path} takes "
            f"{unet_shape.context_channels}; V3D and SVD need OpenCLIP ViT-H/14, which {SVD_FILE} "
            "contains"
        )
    if isinstance(shape, VaeShape) and shape.latent_channels != unet_shape.out_channels:
        raise CheckpointError(
            f"{part.path} has latents of {shape.latent_channels} channels but {unet.path} makes "
            f"{unet_shape.out_channels}; use the autoencoder of {SVD_FILE}"
        )


def find_model(
    model: str | os.PathLike[str],
    companions: Sequence[str | os.PathLike[str]] = (),
    advice: str = "",
    candidates: Sequence[str | os.PathLike[str]] = (),
) -> ModelParts:
    """Look for the three networks in a model file, then in its companions.

    Args:
        model: V3D.ckpt, any file with an SVD-shaped UNet, or a folder in diffusers' form.
        companions: Files for what the model lacks, the first that has it wins.
        advice: Where to put or name a missing file; ends the error about it.
        candidates: Files nobody named that may have what is still lacking. One that does not fit
            is passed over, and said to be when nothing else is found.

    Raises:
        CheckpointError: A network is missing, misshapen, or does not fit the others.
        FileNotFoundError: A file is not there.
    """
    found: dict[str, ModelPart] = {}
    passed_over: list[str] = []
    named = [Path(model), *map(Path, companions)]
    for place in (*named, *map(Path, candidates)):
        # a companion is never asked for the UNet: svd_xt has one that is not V3D's
        kinds = ("unet", "vae", "clip") if place == named[0] else ("vae", "clip")
        for kind in kinds:
            if kind in found:
                continue
            try:
                part = _first_part(_files_of(place, kind), kind)
                if part is not None and place not in named and "unet" in found:
                    unet = found["unet"]
                    assert isinstance(unet.shape, UNetShape)
                    _check_fit(part, unet, unet.shape)
            except (CheckpointError, WeightsError) as error:
                if place in named:
                    raise
                passed_over.append(str(error))
                continue
            if part is not None:
                found[kind] = part
    for kind, text in _NEEDED.items():
        if kind not in found:
            files = ", ".join(map(str, named))
            reasons = f" Passed over: {' | '.join(passed_over)}." if passed_over else ""
            raise CheckpointError(f"{files} has no weights of {text}. {advice}".rstrip() + reasons)
    return ModelParts(**found)


def _first_part(files: Sequence[Path], kind: str) -> ModelPart | None:
    for file in files:
        with open_weights(file) as weights:
            part = find_part(weights, kind)
        if part is not None:
            return part
    return None


def _files_of(place: Path, kind: str) -> list[Path]:
    if not place.is_dir():
        return [place]
    folder = place / _FOLDERS[kind]
    return sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
