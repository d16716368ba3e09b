"""What the network is told: CLIP's pixels, the latent, the three numbers."""

import math

import pytest
import torch
from tiny_models import picture

from v3d_core.diffusion.conditioning import (
    CLIP_MEAN,
    CLIP_STD,
    ConditioningConfig,
    augment_latent,
    augmentation_generator,
    check_picture,
    clip_pixels,
    latent_from_moments,
)
from v3d_core.diffusion.edm import initial_noise


def denormalised(pixels):
    mean, std = (torch.tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
    return pixels * std + mean


def blurred_row(row, sigma):
    """Gaussian blur of a row with a mirrored border, tap by tap."""
    taps = int(max(4 * sigma, 3))
    taps += taps % 2 == 0
    weights = [math.exp(-((i - taps // 2) ** 2) / (2 * sigma**2)) for i in range(taps)]
    out = []
    for x in range(len(row)):
        total = 0.0
        for i, weight in enumerate(weights):
            at = abs(x + i - taps // 2)
            at = at if at < len(row) else 2 * (len(row) - 1) - at
            total += weight * float(row[at])
        out.append(total / sum(weights))
    return out


@pytest.mark.parametrize("size", [256, 512, 1024])
def test_pixels_are_blurred_with_kornias_gaussian_before_they_are_resized(size):
    ramp = torch.linspace(0, 1, size) ** 2
    image = ramp[None, None, :, None].expand(1, size, size, 3).contiguous()
    image[:, :, size // 3 : size // 3 + 3] = 0.9  # an edge, so that the blur matters
    pixels = denormalised(clip_pixels(image))
    blurred = torch.tensor(blurred_row(image[0, 0, :, 0], (size / 224 - 1) / 2))
    expected = torch.nn.functional.interpolate(
        blurred[None, None, None].expand(1, 1, 4, -1), (4, 224), mode="bicubic", align_corners=True
    )[0, 0, 0]
    torch.testing.assert_close(pixels[0, 0, 100], expected, rtol=0, atol=2e-6)
    assert torch.allclose(pixels[0, :, 0], pixels[0, :, -1], atol=1e-6)


def test_a_picture_of_the_encoders_size_is_only_normalised():
    image = torch.rand(1, 224, 224, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denormalised(clip_pixels(image)), image.movedim(-1, 1))


def test_axes_are_treated_alike():
    image = torch.rand(1, 300, 300, 3, generator=torch.Generator().manual_seed(0))
    turned = clip_pixels(image.transpose(1, 2))
    torch.testing.assert_close(turned, clip_pixels(image).transpose(2, 3), rtol=0, atol=2e-6)


def test_the_mode_is_the_mean_and_samples_have_the_posteriors_spread():
    mean = torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    logvar = torch.full_like(mean, math.log(0.25))
    moments = torch.cat([mean, logvar], 1)
    assert torch.equal(latent_from_moments(moments, "mode", augmentation_generator(0)), mean)
    sample = latent_from_moments(moments, "sample", augmentation_generator(0))
    assert float((sample - mean).std()) == pytest.approx(0.5, rel=0.02)
    again = latent_from_moments(moments, "sample", augmentation_generator(0))
    assert torch.equal(sample, again)


def test_wild_log_variances_are_clamped():
    moments = torch.cat([torch.zeros(1, 4, 2, 2), torch.full((1, 4, 2, 2), -1e9)], 1)
    sample = latent_from_moments(moments, "sample", augmentation_generator(0))
    assert float(sample.abs().max()) < 1e-5  # exp(-15) times a normal number


def test_augmentation_adds_noise_of_its_strength_to_the_raw_latent():
    latent = 5.5 * torch.randn(1, 4, 64, 64, generator=torch.Generator().manual_seed(1))
    noise = augment_latent(latent, 0.02, augmentation_generator(3)) - latent
    assert float(noise.std()) == pytest.approx(0.02, rel=0.02)
    assert torch.equal(augment_latent(latent, 0.0, augmentation_generator(3)), latent)


@pytest.mark.parametrize("seed", [0, 23, 2**64 - 1])
def test_augmentation_and_start_noise_of_one_seed_are_independent(seed):
    start = initial_noise((1, 4, 64, 64), seed)
    noise = augment_latent(torch.zeros(1, 4, 64, 64), 1.0, augmentation_generator(seed))
    correlation = float((start * noise).mean())
    assert abs(correlation) < 5 / math.sqrt(start.numel())


def test_the_vector_of_768_has_the_published_values():
    diffusers = pytest.importorskip("diffusers")
    embed = diffusers.models.embeddings.Timesteps(256, True, downscale_freq_shift=0)
    config = ConditioningConfig()
    ids = torch.tensor([config.fps_id, config.motion_bucket_id, config.cond_aug])
    vector = embed(ids)
    expected = {  # entries 0, 1, 127 of the cosines, then of the sines
        0: (0.540302, 0.597375, 1.000000, 0.841471, 0.801962, 0.000107),
        1: (-0.022097, -0.908910, 0.999480, -0.999756, 0.416993, 0.032233),
        2: (0.999800, 0.999827, 1.000000, 0.019999, 0.018610, 0.000002),
    }
    for row, values in expected.items():
        got = vector[row, [0, 1, 127, 128, 129, 255]]
        torch.testing.assert_close(got, torch.tensor(values), rtol=0, atol=3e-5)


def test_alpha_is_laid_on_white():
    image = torch.zeros(1, 64, 64, 4)
    image[..., 3] = 0.25
    assert torch.equal(check_picture(image), torch.full((1, 64, 64, 3), 0.75))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(2, 64, 64, 3), "2 pictures came in one batch, 1 is needed"),
        (torch.zeros(1, 400, 600, 3), "600x400; a square .* V3D Prepare Image"),
        (torch.zeros(1, 100, 100, 3), "100x100; a square with a side of a multiple of 64"),
        (torch.full((1, 64, 64, 3), math.nan), "NaN"),
        (torch.zeros(64, 64, 3), r"expected a picture \[1, H, W, 3 or 4\], got \[64, 64, 3\]"),
        (torch.zeros(1, 64, 64, 1), "got"),
    ],
)
def test_pictures_that_are_not_one_square_are_refused(image, message):
    with pytest.raises(ValueError, match=message):
        check_picture(image)


def test_the_test_picture_passes_unchanged():
    assert torch.equal(check_picture(picture()), picture())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0"),
        ({"vae_mode": "best"}, "'best' is none of mode, sample"),
        ({"cond_aug": math.nan}, "cond_aug must be a number from 0 up, got nan"),
        ({"motion_bucket_id": -1.0}, "motion_bucket_id .* got -1"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ConditioningConfig(**changes)
