"""Which file each network of an orbit model comes from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..formats.weights import open_weights
from .checkpoint import CheckpointError, ModelPart, find_part
from .layout import ClipShape, UNetShape, VaeShape

V3D_FILE, V3D_HOME = "V3D.ckpt", "https://huggingface.co/heheyas/V3D"
SVD_FILE = "svd_xt.safetensors"
SVD_HOME = "https://huggingface.co/stabilityai/stable-video-diffusion-img2vid-xt"

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
        unet, vae, clip = self.unet.shape, self.vae.shape, self.clip.shape
        assert isinstance(unet, UNetShape) and isinstance(vae, VaeShape)
        assert isinstance(clip, ClipShape)
        if clip.projection != unet.context_channels:
            raise CheckpointError(
                f"{self.clip.path} makes tokens of {clip.projection} values but {self.unet.path} "
                f"takes {unet.context_channels}; V3D and SVD need OpenCLIP ViT-H/14, which "
                f"{SVD_FILE} contains"
            )
        if vae.latent_channels != unet.out_channels:
            raise CheckpointError(
                f"{self.vae.path} has latents of {vae.latent_channels} channels but "
                f"{self.unet.path} makes {unet.out_channels}; use the autoencoder of {SVD_FILE}"
            )


def find_model(
    model: str | os.PathLike[str],
    companions: Sequence[str | os.PathLike[str]] = (),
    advice: str = "",
) -> ModelParts:
    """Look for the three networks in a model file, then in its companions.

    Args:
        model: V3D.ckpt, any file with an SVD-shaped UNet, or a folder in diffusers' form.
        companions: Files for what the model lacks, the first that has it wins.
        advice: Where to put or name a missing file; ends the error about it.

    Raises:
        CheckpointError: A network is missing, misshapen, or does not fit the others.
        FileNotFoundError: A file is not there.
    """
    found: dict[str, ModelPart] = {}
    for place in (Path(model), *map(Path, companions)):
        for kind in ("unet", "vae", "clip"):
            # a companion is never asked for the UNet: svd_xt has one that is not V3D's
            if kind in found or (kind == "unet" and place != Path(model)):
                continue
            for file in _candidates(place, kind):
                with open_weights(file) as weights:
                    part = find_part(weights, kind)
                if part is not None:
                    found[kind] = part
                    break
    for kind, text in _NEEDED.items():
        if kind not in found:
            files = ", ".join(str(path) for path in (model, *companions))
            raise CheckpointError(f"{files} has no weights of {text}. {advice}".rstrip())
    return ModelParts(**found)


def _candidates(place: Path, kind: str) -> list[Path]:
    if not place.is_dir():
        return [place]
    folder = place / _FOLDERS[kind]
    return sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
