"""The decoder's last turn: lessons that a step always finds again, and orbits as a UNet makes them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from v3d_core.diffusion import training_decoder
from v3d_core.diffusion.checkpoint import read_part
from v3d_core.diffusion.conditioning import LATENT_SCALE, ConditioningConfig
from v3d_core.diffusion.edm import v_scalings
from v3d_core.diffusion.layout import VaeShape
from v3d_core.diffusion.training import OrbitBatch, OrbitTrainer, TrainConfig
from v3d_core.diffusion.training_autoencoder import Watch, trained_autoencoder
from v3d_core.diffusion.training_data import EncodedOrbits, encode_latents
from v3d_core.diffusion.training_decoder import (
    DECODER_TRAINING,
    HIGHEST_SIGMA,
    LOWEST_SIGMA,
    OrbitLessons,
    resampled,
    whole_orbit_decoder,
)
from v3d_core.diffusion.training_vae import VaeTrainConfig, reconstruction_loss

pytest.importorskip("diffusers")

from v3d_core.diffusion.training_networks import load_network, new_vae

SHAPE = VaeShape(channels=32, channel_mult=(1, 1, 1, 1))
CONFIG = VaeTrainConfig(steps=4, batch_size=2, clip_frames=2, warmup_steps=1)
CPU = torch.device("cpu")
ORBITS, FRAMES = 5, 4


def seeded(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture
def pictures():
    return torch.randint(256, (ORBITS, FRAMES, 16, 16, 3), generator=seeded()).to(torch.uint8)


@pytest.fixture
def data(pictures):
    latents = torch.randn(ORBITS, FRAMES, 4, 2, 2, generator=seeded(1)) / LATENT_SCALE
    return EncodedOrbits(latents, pictures=pictures)


class KnowsTheTruth(nn.Module):
    """A UNet whose v leads to given latents from every noise level; keeps what it was told."""

    def __init__(self, clean):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.clean, self.calls = clean, []

    def forward(self, inputs, c_noise, token, ids, return_dict):
        assert not return_dict
        self.calls.append((inputs, c_noise, token, ids))
        sigma = (4 * c_noise).exp()[:, None, None, None, None]
        c_skip, c_out, c_in, _ = v_scalings(sigma)
        return ((self.clean - c_skip * inputs[:, :, :4] / c_in) / c_out,)


class Token(nn.Module):
    """An image encoder whose embedding is the mean of the pixels."""

    def forward(self, pixel_values):
        embeds = pixel_values.mean(dim=(1, 2, 3))[:, None].expand(-1, 3)
        return type("Output", (), {"image_embeds": embeds})()


def trainer_of(unet):
    config = TrainConfig(steps=1, batch_size=1, precision="float32", fps_id=2, motion_bucket_id=9)
    return OrbitTrainer(unet, Token(), config)


def test_a_perfect_unet_gives_the_orbits_back_from_any_noise_level():
    latents = torch.randn(3, FRAMES, 4, 2, 2, generator=seeded()) / LATENT_SCALE
    pictures = torch.rand(3, 224, 224, 3, generator=seeded(1))
    levels = []
    for seed in range(40):
        unet = KnowsTheTruth(latents * LATENT_SCALE)
        made = resampled(
            trainer_of(unet), OrbitBatch(latents, pictures=pictures), 5.0, seeded(seed), steps=3
        )
        torch.testing.assert_close(made, latents, rtol=1e-4, atol=1e-4)
        levels.append(float((4 * unet.calls[0][1]).exp()[0]))
    # log-uniform: within its ends, and spread
    logs = torch.tensor(levels).log()
    low, high = torch.tensor([LOWEST_SIGMA, 5.0]).log()
    assert bool((logs >= low - 1e-4).all() and (logs <= high + 1e-4).all())
    shares = (logs - low) / (high - low)
    assert abs(float(shares.mean()) - 0.5) < 0.15 and float(shares.std()) > 0.2


def test_the_unet_is_asked_as_the_sampler_asks_it():
    latents = torch.randn(2, FRAMES, 4, 2, 2, generator=seeded()) / LATENT_SCALE
    unet = KnowsTheTruth(torch.zeros_like(latents))
    made = resampled(
        trainer_of(unet),
        OrbitBatch(latents, pictures=torch.rand(2, 224, 224, 3, generator=seeded(1))),
        HIGHEST_SIGMA,
        seeded(2),
        steps=2,
    )
    assert made.abs().max() < 1e-5  # whatever the UNet says, not what it was given
    inputs, c_noise, token, ids = unet.calls[0]
    assert len(unet.calls) == 2 and token.shape == (2, 1, 3)
    config = ConditioningConfig()
    assert ids.tolist() == [[2.0, 9.0, pytest.approx(config.cond_aug)]] * 2
    assert bool((c_noise == c_noise[0]).all())
    picture = inputs[:, :, 4:]
    assert bool((picture == picture[:, :1]).all())  # that of frame 0, in every frame
    noise = (picture[:, 0] - latents[:, 0]) / config.cond_aug
    assert 0.5 < float(noise.std()) < 1.5


def test_a_step_always_finds_the_same_lesson_and_its_own_pictures(data, pictures):
    made = {}

    def resample(batch, generator):
        return batch.latents + torch.rand((), generator=generator)

    for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
        lessons = OrbitLessons(data, CPU, 3, resample)
        for step in order:
            latents, frames = lessons(step, 2)
            if step in made:
                assert torch.equal(made[step][0], latents) and torch.equal(made[step][1], frames)
            made[step] = latents, frames
    assert not torch.equal(made[0][0], made[1][0])
    latents, frames = OrbitLessons(data, CPU, 3)(0, 2)
    true = pictures.movedim(-1, 2).float() / 127.5 - 1
    for one, seen in zip(latents, frames):
        found = [
            (orbit, front)
            for orbit in range(ORBITS)
            for front in range(FRAMES)
            if torch.equal(one, data.latents[orbit].roll(-front, 0))
        ]
        ((orbit, front),) = found
        assert torch.equal(seen, true[orbit].roll(-front, 0))


def test_orbits_with_tokens_have_no_frames_to_learn(data):
    tokens = EncodedOrbits(data.latents, tokens=torch.zeros(ORBITS, FRAMES, 3))
    with pytest.raises(ValueError, match="tokens instead of pictures"):
        OrbitLessons(tokens, CPU, 0)(0, 1)


def test_its_loss_is_the_error_of_whole_orbits(data):
    vae = new_vae(SHAPE, 0)
    latents, frames = OrbitLessons(data, CPU, 0)(0, 2)
    trainer = training_decoder.DecoderTrainer(vae, CONFIG)
    loss = trainer.learn(latents, frames)
    with torch.no_grad():
        apart = [
            reconstruction_loss(
                new_vae(SHAPE, 0).decoder(one, torch.zeros(1, FRAMES), FRAMES), seen, CONFIG
            )
            for one, seen in zip(latents, frames)
        ]
    assert float(loss) == pytest.approx(float(torch.stack(apart).mean()), rel=1e-5)


@pytest.mark.slow
def test_the_decoder_alone_goes_on_learning_and_resumes(tmp_path, pictures):
    start = trained_autoencoder(tmp_path / "start", SHAPE, pictures, CONFIG, CPU, save_every=100)
    data = EncodedOrbits(encode_latents(load_network(start), pictures), pictures=pictures)
    config = replace(DECODER_TRAINING, steps=3, batch_size=1)
    steps = []

    def learn(folder, stop):
        watch = Watch(log=lambda step, loss: steps.append(step), stop=stop)
        lessons = OrbitLessons(data, CPU, 0)
        return whole_orbit_decoder(tmp_path / folder, start, lessons, config, CPU, 100, watch)

    whole = learn("whole", lambda: False)
    assert learn("parts", lambda: len(steps) == 5) is None
    parts = learn("parts", lambda: False)
    assert steps == [1, 2, 3, 1, 2, 3]
    before, after, resumed = (read_part(part, "sgm") for part in (start, whole, parts))
    assert all(torch.equal(after[name], resumed[name]) for name in after)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("decoder.")}


@pytest.mark.slow
def test_a_decoder_learns_to_take_out_what_the_unet_puts_in(tmp_path):
    """On grey orbits with a disturbed latent the error falls below that of the decoder it began as."""
    shades = torch.linspace(20, 235, 16)[:, None, None, None, None]
    pictures = shades.expand(-1, FRAMES, 16, 16, 3).to(torch.uint8).contiguous()
    config = replace(CONFIG, steps=60, batch_size=4, learning_rate=3e-3)
    start = trained_autoencoder(tmp_path / "start", SHAPE, pictures, config, CPU, save_every=100)
    data = EncodedOrbits(encode_latents(load_network(start), pictures), pictures=pictures)

    def disturbed(batch, generator):
        noise = torch.randn(batch.latents.shape, generator=generator)
        return batch.latents + 0.6 / LATENT_SCALE * noise

    def error(part):
        vae = load_network(part)
        latents, frames = OrbitLessons(data, CPU, 9, disturbed)(0, 16)
        with torch.no_grad():
            made = vae.decoder(latents.flatten(0, 1), torch.zeros(16, FRAMES), FRAMES)
        return float((made - frames.flatten(0, 1)).square().mean())

    config = replace(DECODER_TRAINING, steps=60, batch_size=4, learning_rate=2e-3)
    lessons = OrbitLessons(data, CPU, 1, disturbed)
    end = whole_orbit_decoder(tmp_path / "end", start, lessons, config, CPU, 100)
    assert error(end) < 0.5 * error(start)
