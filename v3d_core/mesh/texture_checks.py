"""What a mesh and its views must be before a texture can be made."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..structures import Mesh, Views
from .texels import require_atlas
from .texture_config import RefineConfig
from .visibility import ViewMaps

BYTES_PER_TEXEL = 250  # the solver's vectors, the search for texels; an estimate, checked at 1024
BYTES_PER_PIXEL = 300  # of the views, by the object's share of them: texels read and their weights


def usable_mesh(
    mesh: Mesh, views: Views, config: RefineConfig, tick: Callable[[float], None]
) -> Mesh:
    """The mesh with an atlas, in float32 and without its old texture.

    Raises:
        ValueError: It has no faces, is on another device than the views, or its uvs leave 0..1.
    """
    if not len(mesh.faces):
        raise ValueError(
            f"the mesh has {len(mesh.vertices)} vertices and 0 faces; a texture needs at least 1"
        )
    if mesh.device != views.device:
        raise ValueError(
            f"the mesh is on {mesh.device} but the views are on {views.device}; move one of them"
        )
    mesh = dataclasses.replace(mesh, texture=None, vertices=mesh.vertices.detach().float())
    if mesh.uvs is None or config.unwrap:
        from .unwrap import UnwrapConfig, unwrap

        mesh = unwrap(
            mesh,
            UnwrapConfig(resolution=config.resolution),
            progress=lambda step, total, preview=None, text="": tick(step / max(1, total)),
        )
    return dataclasses.replace(mesh, uvs=require_atlas(mesh).float())


def require_memory(resolution: int, views: Views, device: torch.device) -> None:
    """Raise ValueError, with both numbers, where a texture would not fit into free memory."""
    needed = needed_bytes(resolution, views)
    free = free_bytes(device)
    if needed > free:
        raise ValueError(
            f"a texture of {resolution}x{resolution} from {len(views)} views needs about "
            f"{needed / 1e9:.1f} GB but {free / 1e9:.1f} GB are free; choose a smaller resolution, "
            "fewer or smaller views"
        )


def needed_bytes(resolution: int, views: Views) -> float:
    """Memory that a texture from these views is going to take, about."""
    covered = int((views.masks > 0).sum())
    return BYTES_PER_TEXEL * resolution**2 + BYTES_PER_PIXEL * covered


def free_bytes(device: torch.device) -> int:
    """Memory that can be used on a device now."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    import psutil

    return psutil.virtual_memory().available


def require_seen(maps: list[ViewMaps], views: Views, config: RefineConfig) -> None:
    """Raise ValueError where views see nothing of the mesh, or only its inside."""
    hits = torch.stack([(m.face >= 0).sum() for m in maps])
    masked = [((m.face >= 0) & (k >= config.min_mask)).sum() for m, k in zip(maps, views.masks, strict=True)]  # fmt: skip
    blind = (torch.stack(masked) == 0).nonzero()[:, 0].tolist()
    if blind:
        names = ", ".join(views.names[v] if views.names else str(v) for v in blind)
        pixels = ", ".join(str(int(hits[v])) for v in blind)
        raise ValueError(
            f"{len(blind)} of {len(views)} views see nothing of the mesh inside their masks: "
            f"{names} (the mesh covers {pixels} of their pixels); check that mesh and cameras are "
            "in one frame, or leave these views out"
        )
    behind = _count(maps, lambda cosine: cosine < 0)
    front = _count(maps, lambda cosine: cosine > 0)
    if behind > front:
        raise ValueError(
            f"the mesh is inside out: {behind} pixels see the backs of its faces and {front} their "
            "fronts; turn its faces (clean the mesh) first"
        )


def _count(maps: list[ViewMaps], which: Callable[[Tensor], Tensor]) -> int:
    return sum(int(which(m.cosine).sum()) for m in maps)
