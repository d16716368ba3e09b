"""Orbits, encoded once, from which training draws any batch; memory-mapped ones need no memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..progress import Progress, silent
from .conditioning import clip_pixels
from .training import OrbitBatch

ENCODE_PIXELS = 2**22  # that go through an encoder at a time: 16 pictures of 512 px, 256 of 128


class EncodedOrbits:
    """Latents of whole orbits, with tokens or pictures of every frame.

    Args:
        latents: Raw latents. [N, T, 4, h, w]
        tokens: CLIP embeddings of every frame, or None. [N, T, C]
        pictures: Frames on white, uint8, or None. [N, T, S, S, 3]
        random_front: Whether any frame may become frame 0, as in V3D's loaders; an orbit at one
            elevation is then T examples.
    """

    def __init__(
        self,
        latents: Tensor,
        tokens: Tensor | None = None,
        pictures: Tensor | None = None,
        random_front: bool = True,
    ) -> None:
        if (tokens is None) == (pictures is None):
            raise ValueError("give either tokens or pictures of the frames")
        self.latents, self.tokens, self.pictures = latents, tokens, pictures
        self.random_front = random_front

    def __len__(self) -> int:
        return len(self.latents)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # [count, 2]
        """Numbers of orbits, with repetition, and of the frame that comes first in each."""
        here = generator.device
        rows = torch.zeros(count, 2, dtype=torch.int64, device=here)
        rows[:, 0] = torch.randint(len(self), (count,), generator=generator, device=here)
        if self.random_front:
            frames = self.latents.shape[1]
            rows[:, 1] = torch.randint(frames, (count,), generator=generator, device=here)
        return rows

    def load(self, rows: Tensor, device: torch.device) -> OrbitBatch:
        """The orbits of rows [B, 2] as `draw` makes them."""
        chosen, front = rows.to(self.latents.device).unbind(1)
        latents = self.latents[chosen[:, None], self._order(front)].to(device)
        if self.tokens is not None:
            return OrbitBatch(latents, tokens=self.tokens[chosen, front].to(device).float())
        assert self.pictures is not None
        pictures = self.pictures[chosen, front].to(device)
        return OrbitBatch(latents, pictures=pictures.float() / 255)

    def frames(self, rows: Tensor, device: torch.device) -> Tensor:  # [B, T, S, S, 3] uint8
        """The pictures of all frames of rows [B, 2], in the order of their latents."""
        if self.pictures is None:
            raise ValueError("these orbits have tokens instead of pictures")
        chosen, front = rows.to(self.pictures.device).unbind(1)
        return self.pictures[chosen[:, None], self._order(front)].to(device)

    def _order(self, front: Tensor) -> Tensor:  # [B] -> [B, T]
        frames = self.latents.shape[1]
        return (front[:, None] + torch.arange(frames, device=front.device)) % frames


@torch.no_grad()
def encode_latents(
    vae: Any, pictures: Tensor, progress: Progress = silent
) -> Tensor:  # [N, T, S, S, 3] uint8 -> [N, T, 4, h, w] float16
    """Raw posterior means of all frames; the encoder runs in its own data type."""
    parameter = next(vae.encoder.parameters())
    flat = pictures.flatten(0, 1)
    made = []
    at_once = max(1, ENCODE_PIXELS // flat[0, ..., 0].numel())
    for start in range(0, len(flat), at_once):
        part = flat[start : start + at_once].to(parameter.device)
        part = part.movedim(-1, 1).to(parameter.dtype) / 127.5 - 1
        made.append(vae.encoder(part)[:, :4].to(pictures.device, torch.float16))
        progress(start + len(part), len(flat), text="encoding")
    return torch.cat(made).unflatten(0, pictures.shape[:2])


@torch.no_grad()
def encode_tokens(
    image_encoder: Any, pictures: Tensor, progress: Progress = silent
) -> Tensor:  # [N, T, S, S, 3] uint8 -> [N, T, C] float16
    """CLIP embeddings of all frames, for encoders that do not learn."""
    parameter = next(image_encoder.parameters())
    flat = pictures.flatten(0, 1)
    made = []
    at_once = max(1, ENCODE_PIXELS // flat[0, ..., 0].numel())
    for start in range(0, len(flat), at_once):
        part = flat[start : start + at_once].to(parameter.device).float() / 255
        pixels = clip_pixels(part).to(parameter.dtype)
        made.append(image_encoder(pixel_values=pixels).image_embeds.to(pictures.device).half())
        progress(start + len(part), len(flat), text="encoding")
    return torch.cat(made).unflatten(0, pictures.shape[:2])
