"""Progress of a training on disk, in small files, and the finished model in V3D.ckpt's naming.

Nothing here holds more than one tensor beside the trainer's own: the state of a full-size SVD has
24 GB.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..formats.atomic import atomic_path
from ..formats.weights import open_weights, write_safetensors
from .checkpoint import AnyShape, ModelPart, part_layout, stream_part, to_sgm

SHARD_BYTES = 16 * 10**6  # of one file of a saved state; small enough to move anywhere
MOST_SHARDS = 256  # larger states have larger files
PROGRESS = "progress.json"
_PREFIXES = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "clip": "conditioner.embedders.0.open_clip.model.visual.",
}

# A network to write: modules, a network in a file, or tensors in sgm's naming and order.
Weights = nn.Module | ModelPart | Iterable[tuple[str, Tensor]]


class Trainer(Protocol):
    """What `save_progress` needs of a trainer; `average` is empty where none is kept."""

    step: int
    parameters: list[nn.Parameter]
    average: list[Tensor]

    @property
    def optimiser(self) -> torch.optim.Optimizer:
        """AdamW."""
        ...


def save_progress(folder: Path, trainer: Trainer) -> None:
    """Write weights, averages and optimiser state.

    The files of a step have its number in their names and count when `progress.json` names them,
    which is written last; those of the step before go afterwards. So a state is whole whenever the
    process dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[tuple[str, Callable[[], Tensor], tuple[int, ...]]]] = [[]]
    entries = list(_state(trainer))
    total = sum(4 * math.prod(shape) for _, _, shape in entries)
    limit, size = max(SHARD_BYTES, total // MOST_SHARDS), 0
    for entry in entries:
        bytes_ = 4 * math.prod(entry[2])
        if size and size + bytes_ > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += bytes_
    files = [f"state_{trainer.step:08d}_{index:03d}.safetensors" for index in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        layout = {name: (torch.float32, shape) for name, _, shape in shard}
        tensors = ((name, get()) for name, get, _ in shard)
        write_safetensors(folder / file, tensors, layout)
    with atomic_path(folder / PROGRESS) as temporary:
        document = {"step": trainer.step, "files": files}
        temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")
    for old in folder.glob("state_*.safetensors"):
        if old.name not in files:
            old.unlink(missing_ok=True)


def saved_step(folder: Path) -> int | None:
    """The step of a saved state, or None when there is none."""
    path = folder / PROGRESS
    return int(json.loads(path.read_text(encoding="utf-8"))["step"]) if path.exists() else None


def load_progress(folder: Path, trainer: Trainer) -> bool:
    """Put a saved state into a trainer of the same shape; False when there is none.

    Raises:
        ValueError: The state is of another model; the text names the first tensor that differs.
    """
    if not (folder / PROGRESS).exists():
        return False
    progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    for parameter in trainer.parameters:
        trainer.optimiser.state[parameter] = {
            "step": torch.tensor(
                float(progress["step"]),
                device=parameter.device if trainer.optimiser.defaults.get("fused") else "cpu",
            ),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }
    due = {name: get for name, get, _ in _state(trainer)}
    shapes = {name: shape for name, _, shape in _state(trainer)}
    for file_name in progress["files"]:
        with open_weights(folder / file_name) as file:
            for name in file:
                if shapes.get(name) != file.shape(name):
                    here = list(shapes[name]) if name in shapes else "not in the model"
                    raise ValueError(
                        f"{folder} is the state of another model: {name} is "
                        f"{list(file.shape(name))} there and {here} here; choose another folder"
                    )
                place = due.pop(name)()
                with torch.no_grad():
                    place.copy_(file.read(name))
    if due:
        raise ValueError(
            f"{folder} is the state of another model: it lacks {len(due)} tensors of this one, "
            f"such as {next(iter(due))}; choose another folder"
        )
    trainer.step = progress["step"]
    return True


def _state(trainer: Trainer) -> Iterator[tuple[str, Callable[[], Tensor], tuple[int, ...]]]:
    """Names, tensors when they are asked for, and shapes."""
    for index, parameter in enumerate(trainer.parameters):
        shape = tuple(parameter.shape)

        def moment(kind: str, parameter: nn.Parameter = parameter) -> Tensor:
            state = trainer.optimiser.state.get(parameter, {})
            return state[kind] if kind in state else torch.zeros_like(parameter)

        yield f"weight.{index:05d}", lambda p=parameter: p.detach(), shape
        if trainer.average:
            yield f"average.{index:05d}", lambda i=index: trainer.average[i], shape
        yield f"first.{index:05d}", lambda get=moment: get("exp_avg"), shape
        yield f"second.{index:05d}", lambda get=moment: get("exp_avg_sq"), shape


def sgm_state(shape: AnyShape, network: Any) -> dict[str, Tensor]:
    """A network's weights in sgm's naming and form, float32 on the CPU."""
    return dict(_sgm_tensors(shape, network))


def _sgm_tensors(shape: AnyShape, network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    state = network.state_dict()
    groups: dict[str, list[tuple[str, str]]] = {}
    for entry in shape.entries():
        groups.setdefault(entry.sgm, []).append((entry.diffusers, entry.change))
    for name, entries in groups.items():
        tensors = [state[theirs].detach().float().cpu() for theirs, _ in entries]
        yield name, to_sgm(tensors, entries[0][1]).contiguous()


def write_model(
    path: str | os.PathLike[str],
    networks: Mapping[str, tuple[AnyShape, Weights]],
    dtype: torch.dtype = torch.float16,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Write networks ("unet", "vae", "clip") into one file that V3D Load Model opens.

    Returns:
        Its bytes.

    Raises:
        ValueError: A weight is NaN, infinite, or too large for the type; a file there stays.
    """
    layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
    for kind, (shape, _) in networks.items():
        for name, size in part_layout(shape, "sgm").items():
            layout[_PREFIXES[kind] + name] = (dtype, size)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for kind, (shape, weights) in networks.items():
            for name, tensor in _named_weights(shape, weights):
                peak = float(tensor.detach().abs().max())
                if not peak <= torch.finfo(dtype).max:  # NaN is caught, too
                    raise ValueError(
                        f"cannot write {path}: {kind} {name} has a value of {peak:g}, {dtype} ends "
                        f"at {torch.finfo(dtype).max:g}; write float32, or train again with less "
                        "learning rate"
                    )
                yield _PREFIXES[kind] + name, tensor

    path = Path(path)
    write_safetensors(path, tensors(), layout, dict(metadata or {}))
    return path.stat().st_size


def _named_weights(shape: AnyShape, weights: Weights) -> Iterator[tuple[str, Tensor]]:
    if isinstance(weights, nn.Module):
        yield from _sgm_tensors(shape, weights)
    elif isinstance(weights, ModelPart):
        with open_weights(weights.path) as file:
            yield from stream_part(file, weights, "sgm")
    else:
        yield from weights
