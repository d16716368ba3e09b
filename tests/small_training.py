"""A small network, orbits and trainer that the training tests share; loaded by path."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from v3d_core.cameras import Orbit
from v3d_core.diffusion.layout import UNetShape
from v3d_core.diffusion.training import OrbitTrainer, TrainConfig
from v3d_core.diffusion.training_data import EncodedOrbits
from v3d_core.training.shards import ShardWriter, split_of

UNET = UNetShape(
    model_channels=64, channel_mult=(1, 1), attention=(True, True), res_blocks=1, context_channels=8
)
CONFIG = TrainConfig(
    steps=100, batch_size=4, learning_rate=1e-2, warmup_steps=1, precision="float32", ema_decay=0.9
)


class Small(nn.Module):
    """Something called as the UNet, with all of its inputs in use."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = nn.Parameter(torch.randn(4, 8, generator=generator) / 4)
        self.token = nn.Parameter(torch.randn(4, 8, generator=generator) / 8)
        self.level = nn.Parameter(torch.randn(4, 2, generator=generator) / 8)

    def forward(self, inputs, c_noise, token, ids, return_dict):
        made = torch.einsum("ij,btjhw->btihw", self.mix, inputs).tanh()
        numbers = torch.stack([c_noise, ids[:, 2]], 1) @ self.level.T
        numbers = numbers + token[:, 0] @ self.token.T
        return (made + numbers[:, None, :, None, None],)


def orbits(count: int = 5, frames: int = 3, side: int = 4) -> EncodedOrbits:
    """Random latents with tokens."""
    generator = torch.Generator().manual_seed(1)
    latents = 5 * torch.randn(count, frames, 4, side, side, generator=generator)
    return EncodedOrbits(latents.half(), torch.randn(count, frames, 8, generator=generator))


def trained(config=CONFIG, steps=3, data=None, make=Small, **options) -> OrbitTrainer:
    """A trainer after some steps."""
    trainer = OrbitTrainer(make(), None, config, **options)
    data = data or orbits()
    for _ in range(steps):
        trainer.update(data)
    return trainer


def assert_same_weights(first, second, **tolerance) -> None:
    """Equal to the bit, or within the tolerance."""
    for a, b in zip(first.parameters, second.parameters, strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


def write_orbits(folder: Path, train: int = 3, validation: int = 1, views: int = 3) -> Path:
    """A data set of turning discs, 64 px."""
    share, names, number = 0.3, [], 0
    wanted = {"train": train, "validation": validation}
    while any(wanted.values()):
        name, number = f"disc {number}", number + 1
        if wanted[split_of(name, share)]:
            wanted[split_of(name, share)] -= 1
            names.append(name)
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    with ShardWriter(folder, Orbit(num_views=views), 64, {}, share, 2) as writer:
        for k, name in enumerate(names):
            frames = torch.zeros(views, 64, 64, 4, dtype=torch.uint8)
            for view in range(views):
                inside = ((x - 26 - 4 * view) ** 2 + (y - 30 - 2 * k) ** 2) < 18**2
                colour = torch.tensor([40 * k + 30, 60 * view + 20, 90, 255], dtype=torch.uint8)
                frames[view, inside] = colour
            writer.add(name, frames)
    return folder
