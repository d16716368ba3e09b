"""Progress of a training on disk, in small files, and the finished model in V3D.ckpt's naming."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..formats.atomic import atomic_folder
from ..formats.weights import open_weights, write_safetensors
from .checkpoint import AnyShape, part_layout, to_sgm

SHARD_BYTES = 16 * 10**6  # of one file of a saved state; small enough to move anywhere
_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "clip": "conditioner.embedders.0.open_clip.model.visual.",
}


class Trainer(Protocol):
    """What `save_progress` needs of a trainer."""

    step: int
    parameters: list[nn.Parameter]
    average: list[Tensor]
    optimiser: torch.optim.Optimizer


def save_progress(folder: Path, trainer: Trainer) -> None:
    """Write weights, averages and optimiser state; the folder is complete or as it was."""
    tensors = dict(_state(trainer))
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        bytes_ = tensor.numel() * tensor.element_size()
        if size and size + bytes_ > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += bytes_
    with atomic_folder(folder) as new:
        for index, shard in enumerate(shards):
            layout = {name: (t.dtype, tuple(t.shape)) for name, t in shard.items()}
            write_safetensors(new / f"state_{index:03d}.safetensors", shard.items(), layout, {})
        (new / "progress.json").write_text(
            json.dumps({"step": trainer.step, "shards": len(shards)}) + "\n", encoding="utf-8"
        )


def load_progress(folder: Path, trainer: Trainer) -> bool:
    """Put a saved state into a trainer of the same shape; False when there is none.

    Raises:
        ValueError: The state is of another model; the text names the first tensor that differs.
    """
    if not (folder / "progress.json").exists():
        return False
    progress = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    saved: dict[str, Tensor] = {}
    for index in range(progress["shards"]):
        with open_weights(folder / f"state_{index:03d}.safetensors") as file:
            saved.update({name: file.read(name) for name in file})
    optimiser = trainer.optimiser
    with torch.no_grad():
        for index, parameter in enumerate(trainer.parameters):
            for kind, place in (("weight", parameter), ("average", trainer.average[index])):
                name = f"{kind}.{index:05d}"
                if name not in saved or saved[name].shape != place.shape:
                    there = list(saved[name].shape) if name in saved else "missing"
                    raise ValueError(
                        f"{folder} is the state of another model: {name} is {there} instead of "
                        f"{list(place.shape)}; choose another folder"
                    )
                place.copy_(saved[name])
            optimiser.state[parameter] = {
                "step": torch.tensor(
                    float(progress["step"]),
                    device=parameter.device if optimiser.defaults.get("fused") else "cpu",
                ),
                "exp_avg": saved[f"first.{index:05d}"].to(parameter.device),
                "exp_avg_sq": saved[f"second.{index:05d}"].to(parameter.device),
            }
    trainer.step = progress["step"]
    return True


def _state(trainer: Trainer) -> Iterator[tuple[str, Tensor]]:
    for index, parameter in enumerate(trainer.parameters):
        state = trainer.optimiser.state.get(parameter, {})
        zero = torch.zeros_like(parameter)
        for kind, tensor in (
            ("weight", parameter),
            ("average", trainer.average[index]),
            ("first", state.get("exp_avg", zero)),
            ("second", state.get("exp_avg_sq", zero)),
        ):
            yield f"{kind}.{index:05d}", tensor.detach().float().contiguous().cpu()


def sgm_state(shape: AnyShape, network: Any) -> dict[str, Tensor]:
    """A network's weights in sgm's naming and form, float32 on the CPU."""
    state = {name: t.detach().float().cpu() for name, t in network.state_dict().items()}
    made: dict[str, list[Tensor]] = {}
    changes = {}
    for entry in shape.entries():
        made.setdefault(entry.sgm, []).append(state[entry.diffusers])
        changes.setdefault(entry.sgm, entry.change)
    return {name: to_sgm(tensors, changes[name]).contiguous() for name, tensors in made.items()}


def write_model(
    path: str | os.PathLike[str],
    networks: Mapping[str, tuple[AnyShape, Any]],
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write networks ("unet", "vae", "clip") into one file that V3D Load Model opens.

    Returns:
        Its bytes.
    """
    tensors: dict[str, Tensor] = {}
    for kind, (shape, network) in networks.items():
        state = sgm_state(shape, network)
        assert set(state) == set(part_layout(shape, "sgm"))
        tensors |= {_PREFIXES[kind] + name: t.to(dtype) for name, t in state.items()}
    layout = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    path = Path(path)
    write_safetensors(path, tensors.items(), layout, dict(metadata or {}))
    return path.stat().st_size
