"""Progress of a training on disk, in small files, and the finished model in V3D.ckpt's naming.

Nothing here holds more than one tensor beside the trainer's own: the state of a full-size SVD has
24 GB.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..formats.atomic import atomic_path
from ..formats.weights import open_weights, write_safetensors
from .checkpoint import AnyShape, ModelPart, part_layout, stream_part, to_sgm
from .training_muon import Muon, is_matrix

SHARD_BYTES = 15_500_000  # of tensors in one file of a saved state; with their names below 16 MB
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
        """AdamW or Muon."""
        ...


def save_progress(folder: Path, trainer: Trainer, small: bool = False) -> None:
    """Write weights, averages and optimiser state.

    A small state has weights and averages in float16 and no momentum of Muon's matrices, which is
    new after some twenty steps: 4 bytes a weight instead of 12. It goes on well, but not with the
    same numbers.

    The files of a step have its number in their names and count when `progress.json` names them,
    which is written last; those of the step before go afterwards. So a state is whole whenever the
    process dies.

    Raises:
        ValueError: A small state cannot hold a weight; the state before stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[list[_Entry]] = [[]]
    entries = list(_state(trainer, small))
    limit, size = max(SHARD_BYTES, sum(entry.bytes for entry in entries) // MOST_SHARDS), 0
    for entry in entries:
        if size and size + entry.bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.bytes
    files = [f"state_{trainer.step:08d}_{index:03d}.safetensors" for index in range(len(shards))]
    for file, shard in zip(files, shards, strict=True):
        layout = {entry.name: (entry.dtype, entry.shape) for entry in shard}
        tensors = ((entry.name, entry.read()) for entry in shard)
        write_safetensors(folder / file, tensors, layout)
    with atomic_path(folder / PROGRESS) as temporary:
        document = {"step": trainer.step, "files": files} | ({"small": True} if small else {})
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
    _start_optimiser(trainer, float(progress["step"]))
    entries = list(_state(trainer, progress.get("small", False)))
    due = {entry.name: entry.get for entry in entries}
    shapes = {entry.name: entry.shape for entry in entries}
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


class _Entry(NamedTuple):
    """A tensor of a state, read when it is asked for."""

    name: str
    get: Callable[[], Tensor]
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def read(self) -> Tensor:
        tensor = self.get()
        if self.dtype == torch.float16 and tensor.numel():
            peak, most = float(tensor.abs().max()), torch.finfo(self.dtype).max
            if peak > most:
                raise ValueError(
                    f"{self.name} has a value of {peak:g}, a small state holds {most:g} at most; "
                    "train with less learning rate, or without small states"
                )
        return tensor.to(self.dtype)


def _moments(trainer: Trainer, parameter: nn.Parameter) -> dict[str, str]:
    """Names in a state, and the optimiser's, of what it keeps of a weight."""
    if isinstance(trainer.optimiser, Muon) and is_matrix(parameter):
        return {"first": "exp_avg"}
    return {"first": "exp_avg", "second": "exp_avg_sq"}


def _start_optimiser(trainer: Trainer, step: float) -> None:
    """Moments of 0, which a state is read into."""
    optimiser = trainer.optimiser
    fused = bool(optimiser.defaults.get("fused"))
    for parameter in trainer.parameters:
        state = optimiser.state[parameter]
        state["step"] = torch.tensor(step, device=parameter.device if fused else "cpu")
        for name in _moments(trainer, parameter).values():
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)


def _state(trainer: Trainer, small: bool) -> Iterator[_Entry]:
    kept = torch.float16 if small else torch.float32
    for index, parameter in enumerate(trainer.parameters):
        shape = tuple(parameter.shape)

        def moment(kind: str, parameter: nn.Parameter = parameter) -> Tensor:
            state = trainer.optimiser.state.get(parameter, {})
            return state[kind] if kind in state else torch.zeros_like(parameter)

        yield _Entry(f"weight.{index:05d}", lambda p=parameter: p.detach(), shape, kept)
        if trainer.average:
            yield _Entry(f"average.{index:05d}", lambda i=index: trainer.average[i], shape, kept)
        moments = _moments(trainer, parameter)
        if small and "second" not in moments:
            continue
        for name, kind in moments.items():
            get = partial(moment, kind)
            yield _Entry(f"{name}.{index:05d}", get, shape, torch.float32)


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
