"""Checkpoints to one small .safetensors file, or to the folder that diffusers' pipeline loads.

Both hold one tensor in memory at a time. The names and shapes in the folder are those of
v3d_core/diffusion/layout.py; its configurations are those of Stability's SVD, with our widths.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..formats.atomic import atomic_folder
from ..formats.weights import WeightsError, open_weights, write_safetensors
from ..progress import Progress, silent
from .checkpoint import ModelPart, part_layout, require_part, stream_part
from .conditioning import CLIP_MEAN, CLIP_STD
from .diffusers_configs import (
    identity_quant_conv,
    image_encoder_settings,
    unet_settings,
    vae_settings,
)
from .edm import SamplerConfig
from .families import V3D, family_of
from .layout import ClipShape, UNetShape, VaeShape
from .model_files import ModelParts

DIFFUSERS_VERSION = "0.30.0"  # the oldest that v3d supports; newer ones read its configurations
_DTYPE_NAMES = {torch.float16: "float16", torch.bfloat16: "bfloat16", torch.float32: "float32"}
# Sub-folder and weight file of each network, as diffusers' pipeline expects them.
_PLACES = {
    "unet": ("unet", "diffusion_pytorch_model.safetensors"),
    "vae": ("vae", "diffusion_pytorch_model.safetensors"),
    "clip": ("image_encoder", "model.safetensors"),
}
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json")


@dataclass(frozen=True)
class Conversion:
    """What a conversion wrote.

    Attributes:
        path: The file or folder.
        tensors: How many tensors it has.
        size: Bytes of the weight files in it.
        left_out: Entries of the source that are not in it: what is no tensor and, in a folder,
            tensors that belong to none of the three networks.
    """

    path: Path
    tensors: int
    size: int
    left_out: tuple[str, ...]


def convert_to_safetensors(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    dtype: torch.dtype = torch.float16,
    progress: Progress = silent,
) -> Conversion:
    """Write every tensor of an SVD-shaped checkpoint, under its own name, into one .safetensors.

    Args:
        source: V3D.ckpt, svd_xt.safetensors, or any file with an SVD-shaped UNet.
        out: The file to write; complete or not at all.
        dtype: Floating-point tensors become this; others stay what they are.
        progress: Told after every tensor; raising inside it cancels.

    Raises:
        CheckpointError: The source has no SVD-shaped UNet; the text has the shapes that differ.
        WeightsError: The source cannot be read, or has values that `dtype` cannot hold.
    """
    source, out = Path(source), Path(out)
    if out.suffix.lower() != ".safetensors":
        raise ValueError(f"{out}: the file to write must end with .safetensors")
    if out.exists() and source.exists() and out.samefile(source):
        raise ValueError(f"{out} is the source itself; give another name")
    require_part(source, "unet")
    with open_weights(source) as file:
        layout = {
            name: (
                dtype if file.dtype(name).is_floating_point else file.dtype(name),
                file.shape(name),
            )
            for name in file
        }

        def tensors() -> Iterator[tuple[str, Tensor]]:
            for index, name in enumerate(file):
                yield name, _fitting(file.read(name), dtype, source, name)
                progress(index + 1, len(file), text=name)

        metadata = {**file.metadata, **_metadata(source, dtype)}
        write_safetensors(out, tensors(), layout, metadata)
        return Conversion(out, len(file), out.stat().st_size, file.ignored)


def convert_to_diffusers(
    parts: ModelParts,
    out_folder: str | os.PathLike[str],
    dtype: torch.dtype = torch.float16,
    progress: Progress = silent,
) -> Conversion:
    """Write a folder that `diffusers.StableVideoDiffusionPipeline.from_pretrained` loads.

    Every tensor of the three networks is in it once, and the identity for the convolution that
    diffusers has after its encoder. Note that its pipeline samples SVD's way: noise on the pixels,
    rising guidance, 1 subtracted from fps. `find_model` reads the folder, too.

    Args:
        parts: Where the three networks are.
        out_folder: The folder to make; an early end leaves it as it was.
        dtype: Of all weights.
        progress: Told after every tensor; raising inside it cancels.

    Raises:
        WeightsError: A source cannot be read, or has values that `dtype` cannot hold.
        ValueError: The folder has other weights, which would be mixed up with these, or diffusers
            has no pipeline for the model.
    """
    out = Path(out_folder)
    _refuse_foreign_weights(out)
    _refuse_sv3d(parts)
    networks = (parts.unet, parts.vae, parts.clip)
    layouts = {part.kind: _diffusers_layout(part, dtype) for part in networks}
    total = sum(len(layout) for layout in layouts.values())
    fresh = not out.exists()
    done = size = 0
    try:
        with atomic_folder(out) as staging:
            for part in networks:
                folder, name = _PLACES[part.kind]
                (staging / folder).mkdir()

                def told(part: ModelPart = part) -> Iterator[tuple[str, Tensor]]:
                    nonlocal done
                    for name, tensor in _diffusers_tensors(part, dtype):
                        yield name, tensor
                        del tensor  # before the next one is read
                        done += 1
                        progress(done, total, text=f"{part.kind} {name}")

                path = staging / folder / name
                metadata = _metadata(part.path, dtype)
                write_safetensors(path, told(), layouts[part.kind], metadata)
                size += path.stat().st_size
            for name, document in _documents(parts).items():
                (staging / name).parent.mkdir(exist_ok=True)
                text = json.dumps(document, indent=2)
                (staging / name).write_text(text + "\n", encoding="utf-8")
    except BaseException:
        if fresh:
            with suppress(OSError):
                out.rmdir()
        raise
    return Conversion(out, total, size, _left_out(parts))


def _refuse_sv3d(parts: ModelParts) -> None:
    assert isinstance(parts.unet.shape, UNetShape)
    family = family_of(parts.unet.shape)
    if family != V3D:
        raise ValueError(
            f"{parts.unet.path} is {family.name}, and diffusers has no pipeline for SV3D; convert it "
            "to one file, --out NAME.safetensors"
        )


def _fitting(tensor: Tensor, dtype: torch.dtype, source: Path, name: str) -> Tensor:
    """A tensor in its new type, if that holds its values; infinite ones stay infinite."""
    if not tensor.is_floating_point():
        return tensor
    limit = torch.finfo(dtype).max
    if tensor.numel() and torch.finfo(tensor.dtype).max > limit:
        low, high = torch.aminmax(tensor)
        peak = max(-low.item(), high.item())
        if math.isinf(peak):
            peak = tensor[tensor.isfinite()].abs().amax().item() if tensor.isfinite().any() else 0.0
        if peak > limit:
            remedy = "bfloat16 or float32" if dtype == torch.float16 else "float32"
            raise WeightsError(
                f"{source}: {name!r} has values up to {peak:g}, {_DTYPE_NAMES.get(dtype, dtype)} "
                f"ends at {limit:g}; convert with --dtype {remedy}"
            )
    return tensor.to(dtype)


def _metadata(source: Path, dtype: torch.dtype) -> dict[str, str]:
    return {
        "format": "pt",  # transformers asks for it
        "v3d_source": source.name,
        "v3d_version": __version__,
        "v3d_dtype": _DTYPE_NAMES.get(dtype, str(dtype)),
    }


# --- the folder -----------------------------------------------------------------------------------


def _diffusers_layout(
    part: ModelPart, dtype: torch.dtype
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    layout = {name: (dtype, shape) for name, shape in part_layout(part.shape, "diffusers").items()}
    return layout | {
        name: (dtype, tuple(tensor.shape)) for name, tensor in _added_tensors(part).items()
    }


def _diffusers_tensors(part: ModelPart, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    with open_weights(part.path) as file:
        for name, tensor in stream_part(file, part, "diffusers"):
            tensor = _fitting(tensor, dtype, part.path, name)
            yield name, tensor
            del tensor
    yield from _added_tensors(part).items()


def _added_tensors(part: ModelPart) -> dict[str, Tensor]:
    return identity_quant_conv(part.shape) if isinstance(part.shape, VaeShape) else {}


def _refuse_foreign_weights(out: Path) -> None:
    """Weights under other names beside ours: which of them a reader takes would be chance."""
    for folder, name in _PLACES.values():
        inside = (out / folder).iterdir() if (out / folder).is_dir() else ()
        foreign = [p.name for p in inside if p.name.endswith(_WEIGHT_SUFFIXES) and p.name != name]
        if foreign:
            raise ValueError(
                f"{out / folder} has weights already ({', '.join(sorted(foreign)[:3])}); choose "
                "an empty folder"
            )


def _left_out(parts: ModelParts) -> tuple[str, ...]:
    """What the file of the UNet has beside the networks that were taken from it."""
    path = parts.unet.path
    with open_weights(path) as file:
        here = [part for part in (parts.unet, parts.vae, parts.clip) if part.path == path]
        taken = set().union(*(part.names() for part in here))
        return (*file.ignored, *(name for name in file if name not in taken))


def _documents(parts: ModelParts) -> dict[str, dict[str, Any]]:
    """The .json files of the folder, by their names in it."""
    unet, vae, clip = parts.unet.shape, parts.vae.shape, parts.clip.shape
    assert isinstance(unet, UNetShape) and isinstance(vae, VaeShape) and isinstance(clip, ClipShape)
    return {
        "model_index.json": {
            **_class("StableVideoDiffusionPipeline"),
            "feature_extractor": ["transformers", "CLIPImageProcessor"],
            "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
            "scheduler": ["diffusers", "EulerDiscreteScheduler"],
            "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
            "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
        },
        "unet/config.json": {
            **_class("UNetSpatioTemporalConditionModel"),
            **unet_settings(unet),
        },
        "vae/config.json": {**_class("AutoencoderKLTemporalDecoder"), **vae_settings(vae)},
        "image_encoder/config.json": {
            "architectures": ["CLIPVisionModelWithProjection"],
            "model_type": "clip_vision_model",
            **image_encoder_settings(clip),
        },
        "feature_extractor/preprocessor_config.json": _feature_extractor_config(clip),
        "scheduler/scheduler_config.json": _scheduler_config(),
    }


def _class(name: str) -> dict[str, Any]:
    return {"_class_name": name, "_diffusers_version": DIFFUSERS_VERSION}


def _feature_extractor_config(shape: ClipShape) -> dict[str, Any]:
    side = shape.image_size
    return {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": list(CLIP_MEAN),
        "image_processor_type": "CLIPImageProcessor",
        "image_std": list(CLIP_STD),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side},
    }


def _scheduler_config() -> dict[str, Any]:
    sampler = SamplerConfig()
    return {
        **_class("EulerDiscreteScheduler"),
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "interpolation_type": "linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction",
        "sigma_max": sampler.sigma_max,
        "sigma_min": sampler.sigma_min,
        "steps_offset": 1,
        "timestep_spacing": "leading",
        "timestep_type": "continuous",
        "trained_betas": None,
        "use_karras_sigmas": True,
    }
