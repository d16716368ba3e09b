"""The textured mesh as a picture, to look at while its texture is made."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from ..cameras import resize_cameras
from ..images import composite
from ..mesh_queries import MeshQueries
from ..structures import Cameras, Mesh
from .visibility import render_texture

PREVIEW_SIZE = 384  # px, longer side


class TexturePreview:
    """Pictures of a mesh from one camera, whose texture may change between them."""

    def __init__(self, mesh: Mesh, queries: MeshQueries, camera: Cameras, atlas: Tensor) -> None:
        """`camera` is one view; pictures are at most `PREVIEW_SIZE` px wide and high."""
        scale = min(1.0, PREVIEW_SIZE / max(camera.width, camera.height))
        size = (max(1, round(camera.width * scale)), max(1, round(camera.height * scale)))
        self._mesh, self._queries = mesh, queries
        self._camera = resize_cameras(camera, *size)
        self._atlas = atlas

    def show(self, atlas: Tensor) -> None:
        """Take another texture, of as many rows as columns. [H * W, 3]"""
        self._atlas = atlas

    @torch.no_grad()
    def picture(self) -> Tensor:  # [H, W, 3]
        """The mesh on white, unlit."""
        side = round(len(self._atlas) ** 0.5)
        mesh = dataclasses.replace(self._mesh, texture=self._atlas.view(side, side, -1).clamp(0, 1))
        colours, coverage = render_texture(mesh, self._camera, queries=self._queries)
        return composite(colours, coverage)[0]
