"""Finds the UNet, the autoencoder and the image encoder in weight files, and reads them strictly.

What V3D.ckpt holds and what it lacks is in v3d_core/diffusion/layout.py's terms: the UNet under
`model.diffusion_model.`, an autoencoder under `first_stage_model.`, no image encoder; svd_xt has all
three, SV3D's too, but its encoder is an image autoencoder's in the conditioner. Files of one network
alone, in either naming, are understood as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..formats.weights import WeightFile, open_weights
from .detect import clip_shape, unet_shape, vae_shape
from .families import FAMILIES
from .layout import (
    CLIP_HEAD_CHANNELS,
    HEAD_CHANNELS,
    ClipShape,
    Entry,
    Shape,
    UNetShape,
    VaeShape,
)

AnyShape = UNetShape | VaeShape | ClipShape

SHOWN_DIFFERENCES = 5  # in a message; the rest is counted

# Where each network may stand in a file: prefix, naming, a tensor that tells.
_PLACES = {
    "unet": (
        ("model.diffusion_model.", "sgm", "input_blocks.0.0.weight"),
        ("diffusion_model.", "sgm", "input_blocks.0.0.weight"),
        ("", "sgm", "input_blocks.0.0.weight"),
        ("", "diffusers", "down_blocks.0.resnets.0.spatial_res_block.conv1.weight"),
    ),
    "vae": (
        ("first_stage_model.", "sgm", "encoder.down.0.block.0.conv2.weight"),
        ("", "sgm", "encoder.down.0.block.0.conv2.weight"),
        ("", "diffusers", "encoder.down_blocks.0.resnets.0.conv2.weight"),
    ),
    "clip": (
        ("conditioner.embedders.0.open_clip.model.visual.", "sgm", "conv1.weight"),
        (
            "conditioner.embedders.0.open_clip.model.visual.",
            "diffusers",
            "vision_model.embeddings.patch_embedding.weight",
        ),
        ("visual.", "sgm", "conv1.weight"),
        ("", "diffusers", "vision_model.embeddings.patch_embedding.weight"),
    ),
}
_DETECT = {"unet": unet_shape, "vae": vae_shape, "clip": clip_shape}
_DEFAULT: dict[str, AnyShape] = {"unet": UNetShape(), "vae": VaeShape(), "clip": ClipShape()}
_WHAT = {
    "unet": "an SVD-shaped video UNet",
    "vae": "SVD's autoencoder with its temporal decoder",
    "clip": "the image tower of OpenCLIP ViT-H/14",
}
# SV3D's encoder: with the image autoencoder's convolution after it, which SVD's has within its last.
_SPLIT_ENCODER, _SPLIT_DECODER = "conditioner.embedders.1.encoder.", "first_stage_model."
_HINT = ". Choose V3D.ckpt, SV3D, or a model fine-tuned from SVD or SVD-XT"
# diffusers' autoencoder has two convolutions more, V3D's and SVD's have none: the identity.
_QUANT = ("quant_conv.weight", "quant_conv.bias", "post_quant_conv.weight", "post_quant_conv.bias")
# transformers' older files carry the position numbers 0, 1, 2, ...
_COUNTERS = ("vision_model.embeddings.position_ids",)


class CheckpointError(ValueError):
    """A weight file that does not hold the network that is asked for."""


@dataclass(frozen=True)
class ModelPart:
    """One network in a weight file.

    Attributes:
        kind: "unet", "vae" or "clip".
        path: The file.
        prefix: What stands in front of its tensors' names there.
        naming: "sgm" or "diffusers", the naming of the file.
        shape: Its widths.
        encoder_prefix: Instead of `prefix` before an autoencoder's encoder, and the convolution
            that has to go into it; "" where both halves stand together.
    """

    kind: str
    path: Path
    prefix: str
    naming: str
    shape: AnyShape
    encoder_prefix: str = ""

    def full(self, name: str) -> str:
        """What one of its tensors is called in the file."""
        apart = self.encoder_prefix and name.startswith("encoder.")
        return (self.encoder_prefix if apart else self.prefix) + name

    def names(self) -> set[str]:
        """Full names of its tensors in the file."""
        found = {self.full(name) for name in _named(self.shape, self.naming)}
        return found | {self.encoder_prefix + n for n in _QUANT[:2] if self.encoder_prefix}


def find_part(file: WeightFile, kind: str) -> ModelPart | None:
    """The network of one kind in a file, or None when the file has nothing of the kind.

    Raises:
        CheckpointError: There is one of another shape; the text has the shapes that differ.
    """
    for prefix, naming, marker in _PLACES[kind]:
        if prefix + marker not in file:
            continue
        shapes = {name[len(prefix) :]: file.shape(name) for name in file if name.startswith(prefix)}
        if prefix == "":  # several networks may share a file without prefixes
            shapes = {name: shape for name, shape in shapes.items() if _belongs(kind, name)}
        try:
            shape: AnyShape = _DETECT[kind](shapes, naming)
        except (KeyError, ValueError, IndexError, ZeroDivisionError):
            shape = _DEFAULT[kind]
        _check(file.path, kind, shape, shapes, naming)
        _check_identity(file, prefix, shapes)
        return ModelPart(kind, file.path, prefix, naming, shape)
    return _split_autoencoder(file) if kind == "vae" else None


def _split_autoencoder(file: WeightFile) -> ModelPart | None:
    """SV3D's: the image encoder of its conditioner, and the temporal decoder of its first stage."""
    shapes = {
        name.removeprefix(prefix): file.shape(name)
        for prefix, half in ((_SPLIT_ENCODER, "encoder."), (_SPLIT_DECODER, "decoder."))
        for name in file
        if name.startswith(prefix + half)
    }
    quant = [_SPLIT_ENCODER + name for name in _QUANT[:2]]
    if _PLACES["vae"][0][2] not in shapes or not all(name in file for name in quant):
        return None
    try:
        shape = vae_shape(shapes)
    except (KeyError, ValueError, IndexError, ZeroDivisionError):
        shape = VaeShape()
    _check(file.path, "vae", shape, shapes, "sgm")
    return ModelPart("vae", file.path, _SPLIT_DECODER, "sgm", shape, _SPLIT_ENCODER)


def require_part(path: str | os.PathLike[str], kind: str) -> ModelPart:
    """`find_part` of a file that must have one.

    Raises:
        CheckpointError: It has none; the text says what the file has instead.
    """
    with open_weights(path) as file:
        part = find_part(file, kind)
        if part is not None:
            return part
        tops = sorted({name.split(".")[0] for name in file})
        raise CheckpointError(
            f"{file.path} does not hold {_WHAT[kind]}: none of its {len(file)} tensors is called "
            f"{' or '.join(repr(place[0] + place[2]) for place in _PLACES[kind][:2])}; they start "
            f"with {', '.join(tops[:8])}{' ...' if len(tops) > 8 else ''}"
        )


def read_part(part: ModelPart, naming: str, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """All tensors of a network, renamed and reshaped for `naming`; `dtype` None keeps the file's."""
    with open_weights(part.path) as file:
        return dict(stream_part(file, part, naming, dtype))


def stream_part(
    file: WeightFile, part: ModelPart, naming: str, dtype: torch.dtype | None = None
) -> Iterator[tuple[str, Tensor]]:
    """`read_part` one tensor at a time, in the order of `part_layout`."""

    def read(name: str) -> Tensor:
        if part.encoder_prefix and name.startswith("encoder.conv_out."):
            return _with_convolution(file, part, name, dtype)
        return file.read(part.full(name), dtype)

    if part.naming == naming:
        for name in _named(part.shape, naming):
            yield name, read(name)
    elif naming == "diffusers":
        for entry in part.shape.entries():
            yield entry.diffusers, to_diffusers(read(entry.sgm), entry.change)
    else:
        for name, entries in _groups(part.shape).items():
            yield name, to_sgm([read(e.diffusers) for e in entries], entries[0].change)


def _with_convolution(
    file: WeightFile, part: ModelPart, name: str, dtype: torch.dtype | None
) -> Tensor:
    """The encoder's last convolution and the 1x1 convolution behind it as one: both are linear."""
    quant, bias = (file.read(part.encoder_prefix + n, torch.float32) for n in _QUANT[:2])
    value = file.read(part.full(name))
    folded = torch.einsum("om,m...->o...", quant.flatten(1), value.float())
    if name.endswith("bias"):
        folded = folded + bias
    return folded.to(value.dtype if dtype is None else dtype)


def part_layout(shape: AnyShape, naming: str) -> dict[str, Shape]:
    """Names and shapes of a network's tensors in one naming."""
    return {
        (e.sgm if naming == "sgm" else e.diffusers): (
            e.shape if naming == "sgm" else e.diffusers_shape
        )
        for e in shape.entries()
    }


def to_diffusers(tensor: Tensor, change: str) -> Tensor:
    """sgm's form of a tensor as diffusers'; `change` as in `layout.Entry`."""
    if change == "squeeze":
        return tensor.flatten(1)
    if change == "transpose":
        return tensor.T.contiguous()
    if change:
        return tensor.chunk(3)["qkv".index(change)].contiguous()
    return tensor


def to_sgm(tensors: list[Tensor], change: str) -> Tensor:
    """diffusers' form of a tensor (of three, for "q") as sgm's; undoes `to_diffusers`."""
    if change == "squeeze":
        return tensors[0][..., None, None]
    if change == "transpose":
        return tensors[0].T.contiguous()
    return torch.cat(tensors) if change else tensors[0]


def _groups(shape: AnyShape) -> dict[str, list[Entry]]:
    """Entries by their sgm name; q, k and v share one."""
    groups: dict[str, list[Entry]] = {}
    for entry in shape.entries():
        groups.setdefault(entry.sgm, []).append(entry)
    return groups


def _named(shape: AnyShape, naming: str) -> list[str]:
    return list(part_layout(shape, naming))


def _belongs(kind: str, name: str) -> bool:
    if kind == "vae":
        return name.startswith(("encoder.", "decoder.")) or name in _QUANT
    if kind == "clip":
        return name.startswith(("vision_model.", "visual_projection.")) and name not in _COUNTERS
    return not name.startswith(("encoder.", "decoder.", "vision_model.", "first_stage_model."))


def _check(
    path: Path, kind: str, shape: AnyShape, shapes: Mapping[str, Shape], naming: str
) -> None:
    expected = part_layout(shape, naming)
    ignored = (*_QUANT, *_COUNTERS)
    wrong = [
        f"{name} is {list(shapes[name])} instead of {list(want)}"
        for name, want in expected.items()
        if name in shapes and shapes[name] != want
    ]
    missing = [
        f"{name} {list(want)} is missing" for name, want in expected.items() if name not in shapes
    ]
    extra = [
        f"{name} {list(is_)} is none of its tensors"
        for name, is_ in shapes.items()
        if name not in expected and name not in ignored
    ]
    found = [*wrong, *missing, *extra, *misfits(shape)]
    if not found:
        return
    raise CheckpointError(
        f"{path} is not {_WHAT[kind]}: of {len(expected)} tensors {len(wrong)} have other shapes, "
        f"{len(missing)} are missing, {len(extra)} are unknown: "
        f"{'; '.join([*_some(wrong), *_some(missing), *_some(extra), *misfits(shape)])}"
        f"{_HINT if kind == 'unet' else ''}"
    )


def _check_identity(file: WeightFile, prefix: str, shapes: Mapping[str, Shape]) -> None:
    """diffusers' extra convolutions are left out, so they must not do anything."""
    for name in _QUANT:
        if name not in shapes:
            continue
        value = file.read(prefix + name, torch.float32)
        size = value.shape[0]
        identity = (
            torch.eye(size)[..., None, None] if name.endswith("weight") else value.new_zeros(size)
        )
        if value.shape != identity.shape or not torch.equal(value, identity):
            raise CheckpointError(
                f"{file.path} is not {_WHAT['vae']}: {prefix}{name} {list(value.shape)} is not the "
                "identity; SVD's autoencoder has no such layer"
            )


def _some(differences: list[str]) -> list[str]:
    more = len(differences) - SHOWN_DIFFERENCES
    return differences[:SHOWN_DIFFERENCES] + ([f"and {more} more such"] if more > 0 else [])


def misfits(shape: AnyShape) -> list[str]:
    """What makes a consistent network another one than SVD's."""
    found = []
    if not isinstance(shape, ClipShape) and shape.channel_mult[:1] != (1,):
        found.append(f"its levels are {shape.channel_mult} times its width, the first must be 1")
    if isinstance(shape, UNetShape):
        if shape.in_channels != 2 * shape.out_channels:
            found.append(
                f"it takes {shape.in_channels} channels, not {2 * shape.out_channels}: the noisy "
                "latent and the picture's"
            )
        kinds = {family.vector_channels: family.name for family in FAMILIES}
        if shape.vector_channels not in kinds:
            known = ", ".join(f"{channels} ({name})" for channels, name in kinds.items())
            found.append(f"its vector has {shape.vector_channels} values, none of {known}")
        widths = [shape.model_channels * mult for mult in shape.channel_mult]
        attending = [width for width, has in zip(widths, shape.attention, strict=True) if has]
        odd = [w for w in {*attending, *widths[-1:]} if w % HEAD_CHANNELS]  # the middle attends too
        if odd:
            found.append(f"its {odd[0]} channels do not split into heads of {HEAD_CHANNELS}")
    if isinstance(shape, ClipShape) and shape.width % CLIP_HEAD_CHANNELS:
        found.append(
            f"its {shape.width} channels do not split into ViT-H's heads of {CLIP_HEAD_CHANNELS}"
        )
    return found
