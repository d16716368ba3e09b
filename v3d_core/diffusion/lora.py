"""Low-rank adapters of the UNet's attention (Hu et al. 2021, LoRA), and their files.

An adapted layer computes `W x + alpha / rank * up (down x)`; `up` starts at 0, so that training
starts at the model itself. The file has the names that ComfyUI's LoRA loaders know.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..formats.weights import open_weights, write_safetensors
from .checkpoint import CheckpointError, ModelPart, stream_part
from .layout import UNetShape

# The linear layers of attention. attn2 sees one token only, the picture's: its softmax is 1 whatever
# queries and keys are, so to_q and to_k have no effect there and nothing to learn.
ADAPTED = re.compile(r"\.(attn1\.to_(q|k|v|out\.0)|attn2\.to_(v|out\.0))\.weight$")
FILE_PREFIX = "diffusion_model."  # ComfyUI's "generic lora format", model_lora_keys_unet


class Adapter(NamedTuple):
    """What is added to one weight W [out, in]: `alpha / rank * up @ down`.

    Attributes:
        down: [rank, in]
        up: [out, rank]
        alpha: Strength; equal to the rank it is 1.
    """

    down: Tensor
    up: Tensor
    alpha: float

    def change(self) -> Tensor:  # [out, in]
        """What is added to the weight."""
        return self.alpha / len(self.down) * (self.up.float() @ self.down.float())


class Lora:
    """Adapters on a UNet, at work until `remove`; the UNet's own weights and names stay.

    Args:
        unet: diffusers' UNet.
        shape: Its widths.
        rank: Of the adapters.
        alpha: Strength of the adapters; None is the rank.
        seed: Of `down`'s start, uniform as torch starts a linear layer.
    """

    def __init__(
        self,
        unet: nn.Module,
        shape: UNetShape,
        rank: int,
        alpha: float | None = None,
        seed: int = 0,
    ) -> None:
        if rank < 1:
            raise ValueError(f"the rank of a LoRA is at least 1, got {rank}")
        generator = torch.Generator().manual_seed(seed)
        alpha = float(rank if alpha is None else alpha)
        self.adapters: dict[str, Adapter] = {}  # by sgm's name of the layer
        self._hooks = []
        for entry in shape.entries():
            if not ADAPTED.search(entry.sgm):
                continue
            linear: Any = unet.get_submodule(entry.diffusers.removesuffix(".weight"))
            bound = 1 / math.sqrt(linear.in_features)
            start = torch.empty(rank, linear.in_features).uniform_(
                -bound, bound, generator=generator
            )
            device = linear.weight.device
            down = nn.Parameter(start.to(device))
            up = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
            self.adapters[entry.sgm.removesuffix(".weight")] = Adapter(down, up, alpha)
            self._hooks.append(linear.register_forward_hook(_adding(down, up, alpha / rank)))

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What learns."""
        return [p for a in self.adapters.values() for p in (a.down, a.up)]  # type: ignore[misc]

    def remove(self) -> None:
        """Take the adapters off; the UNet is what it was."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _adding(down: nn.Parameter, up: nn.Parameter, scale: float) -> Any:
    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        change = nn.functional.linear(nn.functional.linear(inputs[0], down), up)
        return output + scale * change

    return add


def write_lora(
    path: str | os.PathLike[str],
    adapters: Mapping[str, Adapter],
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write adapters as a .safetensors that ComfyUI's LoRA loaders apply; returns its bytes."""
    tensors: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        tensors[f"{FILE_PREFIX}{name}.lora_up.weight"] = adapter.up.detach()
        tensors[f"{FILE_PREFIX}{name}.lora_down.weight"] = adapter.down.detach()
        tensors[f"{FILE_PREFIX}{name}.alpha"] = torch.tensor(adapter.alpha)
    layout = {name: (torch.float32, tuple(t.shape)) for name, t in tensors.items()}
    write_safetensors(path, tensors, layout, dict(metadata or {}))
    return Path(path).stat().st_size


def read_lora(path: str | os.PathLike[str]) -> dict[str, Adapter]:
    """Adapters of a file that `write_lora` made.

    Raises:
        ValueError: The file has something else in it.
    """
    found: dict[str, Adapter] = {}
    with open_weights(path) as file:
        up = ".lora_up.weight"
        names = [n[len(FILE_PREFIX) : -len(up)] for n in file if n.endswith(up)]
        parts = ("lora_down.weight", "lora_up.weight", "alpha")
        expected = {f"{FILE_PREFIX}{name}.{part}" for name in names for part in parts}
        if not names or expected != set(file):
            odd = sorted(expected ^ set(file))
            raise ValueError(
                f"{path} is not a LoRA that v3d train made: {len(odd)} of its names are unknown or "
                f"missing, such as {', '.join(odd[:2]) or 'any'}; choose its lora.safetensors"
            )
        for name in names:
            down, up_, alpha = (file.read(f"{FILE_PREFIX}{name}.{part}") for part in parts)
            found[name] = Adapter(down, up_, float(alpha))
    return found


def merged_unet(part: ModelPart, adapters: Mapping[str, Adapter]) -> Iterator[tuple[str, Tensor]]:
    """A UNet's tensors in sgm's naming with the adapters in them, one at a time, float32.

    Raises:
        CheckpointError: The adapters belong to another network.
    """
    layout = {entry.sgm: entry.shape for entry in part.shape.entries()}
    for name, adapter in adapters.items():
        shape, here = (len(adapter.up), adapter.down.shape[1]), layout.get(f"{name}.weight")
        if shape != here:
            raise CheckpointError(
                f"the LoRA does not fit {part.path}: it changes {name} {list(shape)}, the model has "
                f"{list(here) if here else 'no such layer'}; choose the model it was trained on"
            )
    with open_weights(part.path) as file:
        for name, tensor in stream_part(file, part, "sgm", torch.float32):
            adapter = adapters.get(name.removesuffix(".weight"))
            yield name, tensor if adapter is None else tensor + adapter.change().to(tensor)
