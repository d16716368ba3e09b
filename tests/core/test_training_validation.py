"""Validation orbits are those that `v3d sample` makes, and leave the training as it was."""

import math

import pytest
import torch
from small_training import CONFIG
from tiny_models import picture

from v3d_core.diffusion.conditioning import ConditioningConfig
from v3d_core.diffusion.edm import SamplerConfig
from v3d_core.diffusion.guidance import Guidance
from v3d_core.diffusion.model_files import find_model
from v3d_core.diffusion.orbit import OrbitConfig, sample_orbit
from v3d_core.diffusion.training import OrbitTrainer
from v3d_core.diffusion.training_data import EncodedOrbits, encode_latents, encode_tokens
from v3d_core.diffusion.training_validation import ValidationConfig, ValidationStopped, validate

pytest.importorskip("diffusers")

from v3d_core.diffusion.diffusers_backend import load_diffusers_model

FRAMES = 3
CONFIG_OF_LOOK = ValidationConfig(steps=2, scale=2.0, seed=4)


@pytest.fixture(scope="module")
def model(tiny):
    return load_diffusers_model(find_model(tiny.svd), torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def pictures():
    first = (picture()[0] * 255).round().to(torch.uint8)
    orbit = torch.stack([first.roll(4 * k, 1) for k in range(FRAMES)])
    return torch.stack([orbit, 255 - orbit])


@pytest.fixture(scope="module")
def data(model, pictures):
    latents, tokens = (
        encode_latents(model.vae, pictures),
        encode_tokens(model.image_encoder, pictures),
    )
    return EncodedOrbits(latents, tokens, random_front=False)


@pytest.fixture
def trainer(model):
    return OrbitTrainer(model.unet, None, CONFIG)


def test_orbits_and_scores_are_those_of_the_sampler(model, pictures, data, trainer):
    with torch.no_grad():  # the average alone counts
        for parameter in trainer.parameters:
            parameter.mul_(1.5)
    lpips = lambda made, truth: (made - truth).abs().mean(dim=(1, 2, 3))  # noqa: E731
    found = validate(trainer, model.vae, data, pictures, CONFIG_OF_LOOK, lpips)
    trainer.swap_average()
    config = OrbitConfig(
        SamplerConfig(steps=2), Guidance(scale=2.0), ConditioningConfig(num_frames=FRAMES)
    )
    truth = pictures.float() / 255
    made = torch.stack(
        [sample_orbit(model, truth[k, :1], config, 4 + k).frames for k in range(len(truth))]
    )
    trainer.swap_average()
    errors = (made - truth).square().mean(dim=(2, 3, 4)).double()
    decibels = -10 * errors.log10()
    # latents and tokens are kept in float16
    assert found.psnr == pytest.approx(float(decibels.mean()), abs=0.02)
    assert found.psnr_front == pytest.approx(float(decibels[:, 0].mean()), abs=0.02)
    assert found.lpips == pytest.approx(float((made - truth).abs().mean()), rel=1e-2)
    assert found.sheet.shape == (4 * 68 - 4, FRAMES * 68 - 4, 3)
    for orbit in range(2):  # truth above what was made
        for view in range(FRAMES):
            left = slice(68 * view, 68 * view + 64)
            assert torch.equal(
                found.sheet[136 * orbit : 136 * orbit + 64, left], truth[orbit, view]
            )
            below = found.sheet[136 * orbit + 68 : 136 * orbit + 132, left]
            torch.testing.assert_close(below, made[orbit, view], rtol=0, atol=0.05)


@pytest.mark.slow
def test_it_changes_nothing_even_when_it_is_stopped(model, pictures, data, trainer):
    with torch.no_grad():
        for average in trainer.average:
            average.mul_(1.1)
    before = [t.detach().clone() for t in (*trainer.parameters, *trainer.average)]
    asked = []

    def stop():
        asked.append(1)
        return len(asked) > 5

    with pytest.raises(ValidationStopped):
        validate(trainer, model.vae, data, pictures, CONFIG_OF_LOOK, stop=stop)
    assert len(asked) == 6
    validate(trainer, model.vae, data, pictures, CONFIG_OF_LOOK)
    after = [*trainer.parameters, *trainer.average]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert trainer.unet.training and all(p.requires_grad for p in trainer.parameters)


def test_the_same_seeds_give_the_same_scores(model, pictures, data, trainer):
    first = validate(trainer, model.vae, data, pictures, CONFIG_OF_LOOK)
    second = validate(trainer, model.vae, data, pictures, CONFIG_OF_LOOK)
    assert first.psnr == second.psnr and torch.equal(first.sheet, second.sheet)
    assert first.lpips is None and math.isfinite(first.psnr)


def test_a_negative_number_of_objects_is_refused():
    with pytest.raises(ValueError, match="-1"):
        ValidationConfig(objects=-1)
