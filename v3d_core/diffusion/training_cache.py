"""Encoded orbits on disk: every frame goes through the frozen encoders once, ever.

The arrays are memory-mapped, so that data larger than memory works. A flag for each orbit says
that it is there: encoding that was stopped goes on, and several processes share it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..formats.atomic import atomic_path
from ..formats.weights import open_weights
from ..progress import Progress, silent
from .checkpoint import ModelPart, stream_part
from .training_data import EncodedOrbits, encode_latents, encode_tokens
from .training_processes import Processes

DONE = "done"  # name of the flags
FLUSH_EVERY = 64  # orbits that a kill may cost
KEY_DIGITS = 16  # of a SHA-256 in a folder's name


class OrbitPictures(Protocol):
    """A data set of orbits, as `v3d_core.training.shards.OrbitShards` is one."""

    def __len__(self) -> int:
        """Number of orbits."""
        ...

    def __getitem__(self, index: int) -> Tensor:
        """Frames of an orbit, straight sRGB and coverage. [T, S, S, 4] uint8"""
        ...


Layout = Mapping[str, tuple[str, tuple[int, ...]]]  # numpy's type and shape of one orbit's entry


def on_white(frames: Tensor) -> Tensor:  # [..., 4] uint8 -> [..., 3] uint8
    """Straight colours with coverage laid on white, rounded."""
    colours, alpha = frames[..., :3].int(), frames[..., 3:].int()
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).to(torch.uint8)


def digest_of(part: ModelPart) -> str:
    """A SHA-256 of a network's weights, wherever its file lies and whatever else is in it."""
    total = hashlib.sha256()
    with open_weights(part.path) as file:
        for name, tensor in stream_part(file, part, "sgm"):
            total.update(f"{name} {tensor.dtype}".encode())
            total.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def fill_cache(
    folder: Path,
    count: int,
    layout: Layout,
    read: Callable[[int], Any],
    make: Callable[[Any], Mapping[str, Tensor]],
    processes: Processes | None = None,
    progress: Progress = silent,
) -> dict[str, Tensor]:
    """Arrays [count, ...] of what `make` gives for every orbit, mapped from disk.

    Args:
        folder: Where the arrays are or shall be.
        count: Number of orbits.
        layout: Name, type and shape of what an orbit gives.
        read: Reads an orbit; works in a thread, one orbit ahead.
        make: What was read to one orbit's entries, by their names.
        processes: Share the orbits.
        progress: Told after every orbit; raising inside it stops, and the next call goes on.
    """
    processes = processes or Processes()
    full = {**layout, DONE: ("u1", ())}
    if processes.first:
        for name, (kind, shape) in full.items():
            _make_array(folder / f"{name}.npy", kind, (count, *shape))
    processes.wait()
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+") for name in full}
    due = np.flatnonzero(arrays[DONE] == 0)
    mine = due[processes.rank :: processes.world].tolist()
    waiting: list[int] = []  # orbits that are made and not yet known to be on the disk

    def keep() -> None:
        for name in layout:
            arrays[name].flush()
        arrays[DONE][waiting] = 1
        arrays[DONE].flush()
        waiting.clear()

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(read, mine[0]) if mine else None
        try:
            for place, index in enumerate(mine):
                assert coming is not None
                frames = coming.result()
                coming = pool.submit(read, mine[place + 1]) if place + 1 < len(mine) else None
                for name, tensor in make(frames).items():
                    arrays[name][index] = tensor.cpu().numpy()
                waiting.append(index)
                if len(waiting) >= FLUSH_EVERY:
                    keep()
                done = count - len(due) + place * processes.world + 1
                progress(min(done, count), count, text="encoding orbits")
        finally:
            keep()
    processes.wait()
    # copy on write: torch wants arrays that may be written, the file must not be
    return {
        name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in layout
    }


def _make_array(path: Path, kind: str, shape: tuple[int, ...]) -> None:
    """A file of zeros, sparse where the file system can, unless it is there already."""
    if path.exists():
        return
    with atomic_path(path) as temporary:
        np.lib.format.open_memmap(temporary, mode="w+", dtype=kind, shape=shape).flush()


def encoded_orbits(
    folder: Path,
    data: OrbitPictures,
    data_key: str,
    vae: ModelPart,
    load: Callable[[ModelPart], Any],
    clip: ModelPart | None,
    pictures: Tensor | None = None,
    closed: bool = True,
    processes: Processes | None = None,
    progress: Progress = silent,
) -> EncodedOrbits:
    """Latents and tokens of a data set, from the folder or encoded now.

    Args:
        folder: Gets a sub-folder for each pair of model and data.
        data: The orbits.
        data_key: What tells this data set from others.
        vae: The autoencoder.
        load: Network of a part, on the device; called only where something is not encoded yet.
        clip: The image encoder, or None where it learns: then `pictures` are kept instead.
        pictures: Frames on white, where the image encoder learns. [N, T, S, S, 3] uint8
        closed: Whether the orbits are whole turns, so that any frame may come first.
        processes: Share the work.
        progress: As in `fill_cache`.
    """
    text = " ".join([data_key, digest_of(vae), digest_of(clip) if clip else "no tokens"])
    place = folder / f"encoded-{hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]}"
    networks: dict[str, Any] = {}
    source: Any = data if pictures is None else pictures
    views, side = source[0].shape[:2]
    vae_shape: Any = vae.shape
    small = side // 2 ** (len(vae_shape.channel_mult) - 1)
    layout: dict[str, tuple[str, tuple[int, ...]]] = {
        "latents": ("f2", (views, vae_shape.latent_channels, small, small))
    }
    if clip is not None:
        clip_shape: Any = clip.shape
        layout["tokens"] = ("f2", (views, clip_shape.projection))

    def network(part: ModelPart) -> Any:
        if part.kind not in networks:
            networks[part.kind] = load(part)
        return networks[part.kind]

    def make(frames: Tensor) -> dict[str, Tensor]:
        flat = (on_white(frames) if frames.shape[-1] == 4 else frames)[None]
        made = {"latents": encode_latents(network(vae), flat)[0]}
        if clip is not None:
            made["tokens"] = encode_tokens(network(clip), flat)[0]
        return made

    arrays = fill_cache(place, len(data), layout, source.__getitem__, make, processes, progress)
    tokens = arrays.get("tokens")
    return EncodedOrbits(arrays["latents"], tokens, pictures, random_front=closed)


def kept_pictures(
    folder: Path,
    data: OrbitPictures,
    data_key: str,
    processes: Processes | None = None,
    progress: Progress = silent,
) -> Tensor:  # [N, T, S, S, 3] uint8
    """All frames on white, mapped from disk, for networks that learn from pictures."""
    place = folder / f"pictures-{hashlib.sha256(data_key.encode()).hexdigest()[:KEY_DIGITS]}"
    frames, height, width, _ = data[0].shape
    layout = {"pictures": ("u1", (frames, height, width, 3))}
    return fill_cache(
        place,
        len(data),
        layout,
        data.__getitem__,
        lambda frames: {"pictures": on_white(frames)},
        processes,
        progress,
    )["pictures"]
