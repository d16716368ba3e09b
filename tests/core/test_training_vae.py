"""The autoencoder's training: its loss in closed form, its latents' scale, and its resumption."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from v3d_core.diffusion.checkpoint import read_part
from v3d_core.diffusion.conditioning import LATENT_SCALE
from v3d_core.diffusion.layout import VaeShape
from v3d_core.diffusion.training_autoencoder import (
    PictureClips,
    Watch,
    trained_autoencoder,
)
from v3d_core.diffusion.training_vae import (
    VaeTrainConfig,
    VaeTrainer,
    normalise_latents,
    thumbnail_loss,
    vae_loss,
)

pytest.importorskip("diffusers")

from v3d_core.diffusion.training_networks import new_vae

SHAPE = VaeShape(channels=32, channel_mult=(1, 1, 1, 1))
CONFIG = VaeTrainConfig(steps=4, batch_size=2, clip_frames=2, warmup_steps=1)
CPU = torch.device("cpu")


def seeded(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture
def pictures():
    return torch.randint(256, (3, 4, 16, 16, 3), generator=seeded()).to(torch.uint8)


class Plain(nn.Module):
    """An autoencoder whose posterior and reconstruction are given."""

    def __init__(self, mean, logvar, made):
        super().__init__()
        self.encoder = lambda flat: torch.cat([mean, logvar], 1)
        self.decoder = self.decode
        self.made = made

    def decode(self, sample, indicator, frames):
        self.sample, self.indicator, self.frames = sample, indicator, frames
        return self.made


def test_thumbnails_are_the_means_of_the_picture_in_the_scale_of_latents():
    pictures = torch.rand(2, 3, 16, 24, generator=seeded()) * 2 - 1
    small = pictures.unflatten(3, (3, 8)).unflatten(2, (2, 8)).mean(dim=(3, 5))
    fourth = torch.randn(2, 1, 2, 3, generator=seeded(1))  # free for anything else
    mean = torch.cat([small / LATENT_SCALE, fourth], 1)
    assert float(thumbnail_loss(mean, pictures)) < 1e-12
    off = mean + 0.5 / LATENT_SCALE
    torch.testing.assert_close(thumbnail_loss(off, pictures), torch.tensor(0.25))


def test_thumbnails_count_less_and_less_until_half_way():
    trainer = VaeTrainer(nn.Linear(1, 1), replace(CONFIG, steps=8, thumbnail_weight=2.0))
    weights = []
    for trainer.step in range(8):
        weights.append(trainer.thumbnail_weight())
    assert weights == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0, 0.0, 0.0]


def test_the_loss_of_a_perfect_one_is_its_distance_from_unit_noise():
    pictures = torch.rand(2, 3, 3, 8, 8, generator=seeded()) * 2 - 1
    mean = torch.randn(6, 4, 1, 1, generator=seeded(1)) / LATENT_SCALE
    logvar = torch.randn(6, 4, 1, 1, generator=seeded(2))
    noise = torch.randn(6, 4, 1, 1, generator=seeded(3))
    vae = Plain(mean, logvar, pictures.flatten(0, 1))
    loss = vae_loss(vae, pictures, replace(CONFIG, kl_weight=1.0), noise)
    # the divergence of N(m, s^2) from N(0, 1), of the latents as the UNet sees them
    m, s = mean * LATENT_SCALE, (0.5 * logvar).exp() * LATENT_SCALE
    expected = (m**2 / 2 + s**2 / 2 - 0.5 - s.log()).sum(dim=(1, 2, 3)).mean()
    expected = expected / (3 * 8 * 8)  # the weight is against sums over a picture, the loss a mean
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(vae.sample, mean + (0.5 * logvar).exp() * noise)
    assert vae.frames == 3 and vae.indicator.shape == (2, 3) and not vae.indicator.any()


def test_the_loss_of_an_offset_and_of_stripes():
    pictures = torch.zeros(1, 2, 3, 8, 8)
    zero = torch.zeros(2, 4, 1, 1)
    config = replace(CONFIG, kl_weight=0.0, l1_weight=0.1, edge_weight=0.5)
    offset = vae_loss(Plain(zero, zero, torch.full((2, 3, 8, 8), 0.2)), pictures, config, zero)
    assert float(offset) == pytest.approx(0.2**2 + 0.1 * 0.2)  # the same everywhere: no edges
    columns = torch.tensor([0.2, -0.2]).repeat(4).expand(2, 3, 8, 8)
    striped = vae_loss(Plain(zero, zero, columns), pictures, config, zero)
    assert float(striped) == pytest.approx(0.2**2 + 0.1 * 0.2 + 0.5 * 0.4)
    assert float(vae_loss(Plain(zero, zero, columns.mT), pictures, config, zero)) == float(striped)


def latents_of(vae, pictures):
    flat = pictures.flatten(0, 1).movedim(-1, 1).float() / 127.5 - 1
    return vae.encoder(flat).chunk(2, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("centre", [False, True])
def test_latents_get_svds_scale_and_pictures_stay(pictures, centre):
    vae = new_vae(SHAPE, 0)
    vae.encoder.conv_out.bias[:4] += torch.tensor([1.0, -2.0, 0.5, 3.0])
    mean, logvar = latents_of(vae, pictures)
    # without the borders, where the decoder's zeros around the latents mean something
    z = mean[:4].mean(dim=(2, 3), keepdim=True).expand(-1, -1, 9, 9)
    before = vae.decoder.conv_in(z)
    normalise_latents(vae, mean, centre)
    again, logvar_again = latents_of(vae, pictures)
    torch.testing.assert_close(
        again.std(dim=(0, 2, 3)), torch.full((4,), 1 / LATENT_SCALE), rtol=1e-4, atol=0
    )
    factor = again.std(dim=(0, 2, 3)) / mean.std(dim=(0, 2, 3))
    # the spread of the posterior grows with the latents
    expected = logvar + 2 * factor.log()[:, None, None]
    torch.testing.assert_close(logvar_again, expected, rtol=1e-4, atol=1e-4)
    z_again = again[:4].mean(dim=(2, 3), keepdim=True).expand(-1, -1, 9, 9)
    after = vae.decoder.conv_in(z_again)
    inner = (..., slice(1, -1), slice(1, -1))
    torch.testing.assert_close(after[inner], before[inner], rtol=1e-3, atol=1e-4)
    if centre:
        torch.testing.assert_close(again.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-3)
    else:
        torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)


def test_the_rate_rises_and_falls_along_a_quarter_cosine(pictures):
    trainer = VaeTrainer(new_vae(SHAPE, 0), replace(CONFIG, steps=100, warmup_steps=10))
    rates = []
    for trainer.step in range(101):
        rates.append(trainer.rate())
    expected = [1e-3 * min(1, (s + 1) / 10) * math.cos(s / 200 * math.pi) for s in range(101)]
    assert rates == pytest.approx(expected, abs=1e-9)


def test_the_identity_convolution_never_learns(pictures):
    trainer = VaeTrainer(new_vae(SHAPE, 0), CONFIG)
    before = {name: t.clone() for name, t in trainer.vae.state_dict().items()}
    trainer.update(PictureClips(pictures, CPU))
    moved = {n for n, t in trainer.vae.state_dict().items() if not torch.equal(t, before[n])}
    assert {n for n in before if n not in moved} == {"quant_conv.weight", "quant_conv.bias"}


def test_clips_are_neighbouring_frames_around_the_circle(pictures):
    clips = PictureClips(pictures, CPU)(200, 3, seeded())
    assert clips.shape == (200, 3, 3, 16, 16)
    seen = set()
    frames = pictures.movedim(-1, 2).float() / 127.5 - 1
    for clip in clips:
        found = [
            (orbit, first)
            for orbit in range(3)
            for first in range(4)
            if torch.equal(clip, frames[orbit].roll(-first, 0)[:3])
        ]
        assert len(found) == 1
        seen |= set(found)
    assert len(seen) == 12


def test_a_stopped_training_ends_with_the_same_autoencoder(tmp_path, pictures):
    whole = trained_autoencoder(tmp_path / "whole", SHAPE, pictures, CONFIG, CPU, save_every=100)
    steps = []
    while True:
        part = trained_autoencoder(
            tmp_path / "parts",
            SHAPE,
            pictures,
            CONFIG,
            CPU,
            save_every=100,
            watch=Watch(
                log=lambda step, loss: steps.append(step), stop=lambda: len(steps) in (1, 2, 3)
            ),
        )
        if part is not None:
            break
    assert steps == [1, 2, 3, 4]  # stopped thrice, half way and elsewhere
    first, second = read_part(whole, "sgm"), read_part(part, "sgm")
    assert all(torch.equal(first[name], second[name]) for name in first)
    # now only read
    again = trained_autoencoder(tmp_path / "parts", SHAPE, pictures, CONFIG, CPU, save_every=100)
    assert again == part and len(steps) == 4


def test_bfloat16_is_asked_for_or_comes_with_cuda(pictures):
    losses = {
        precision: float(
            VaeTrainer(new_vae(SHAPE, 0), replace(CONFIG, precision=precision)).update(
                PictureClips(pictures, CPU)
            )
        )
        for precision in ("auto", "float32", "bfloat16")
    }
    assert losses["auto"] == losses["float32"] != losses["bfloat16"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
