"""The training loss: its zero, its weight, its gradient, and what is random about it."""

import math

import pytest
import torch

from v3d_core.diffusion.conditioning import LATENT_SCALE
from v3d_core.diffusion.edm import v_scalings
from v3d_core.diffusion.training_loss import NoiseConfig, draw_noise, orbit_loss

SHAPE = torch.Size((6, 3, 4, 2, 2))
EVERYTHING = NoiseConfig(drop_token=0.5, drop_latent=0.5)


def seeded(number=0):
    return torch.Generator().manual_seed(number)


@pytest.fixture
def latents():
    return torch.randn(SHAPE, generator=seeded(1)) / LATENT_SCALE


@pytest.fixture
def token():
    return torch.randn(SHAPE[0], 1, 5, generator=seeded(2))


@pytest.fixture
def draw():
    return draw_noise(SHAPE, EVERYTHING, seeded(5))


class Network:
    """Calls a function of (noisy latents times c_in, sigma) and keeps what it was given."""

    def __init__(self, function):
        self.function = function

    def __call__(self, inputs, c_noise, token, ids, return_dict):
        assert return_dict is False
        self.inputs, self.c_noise, self.token, self.ids = inputs, c_noise, token, ids
        sigma = (4 * c_noise).exp()[:, None, None, None, None]
        return (self.function(inputs[:, :, :4], sigma),)


def loss_of(network, latents, token, draw):
    return orbit_loss(network, latents, token, draw, 1.0, 300.0)


def test_a_perfect_denoiser_has_no_loss(latents, token, draw):
    clean = latents * LATENT_SCALE

    def perfect(scaled, sigma):
        c_skip, c_out, c_in, _ = v_scalings(sigma)
        return (clean - c_skip * scaled / c_in) / c_out

    # rounding alone is left: float32 loses digits of clean - c_skip x at the largest sigmas
    assert float(loss_of(Network(perfect), latents, token, draw).max()) < 1e-8


def test_the_loss_is_edms_weighted_error_of_the_denoised_latents(latents, token, draw):
    weights = torch.randn(4, 4, generator=seeded(3))
    network = Network(lambda scaled, sigma: torch.einsum("ij,btjhw->btihw", weights, scaled))
    ours = loss_of(network, latents, token, draw).double()

    sigma = draw.sigma.double()[:, None, None, None, None]
    clean = latents.double() * LATENT_SCALE
    noisy = clean + sigma * draw.noise.double()
    c_skip, c_out, c_in, _ = v_scalings(sigma)
    predicted = torch.einsum("ij,btjhw->btihw", weights.double(), c_in * noisy)
    denoised = c_skip * noisy + c_out * predicted
    weight = (sigma**2 + 1) / sigma**2
    expected = (weight * (denoised - clean) ** 2).mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=0)


def test_a_network_that_says_nothing_has_the_power_of_v(latents, token, draw):
    network = Network(lambda scaled, sigma: torch.zeros_like(scaled))
    ours = loss_of(network, latents, token, draw)
    # v = cos(phi) noise - sin(phi) clean with tan(phi) = sigma (Salimans and Ho 2022)
    phi = draw.sigma.atan()[:, None, None, None, None]
    v = phi.cos() * draw.noise - phi.sin() * latents * LATENT_SCALE
    torch.testing.assert_close(ours, v.square().mean(dim=(1, 2, 3, 4)), rtol=1e-4, atol=1e-6)


def test_the_gradient_is_that_of_a_mean_square(latents, token, draw):
    output = torch.randn(SHAPE, generator=seeded(4), requires_grad=True)
    loss = loss_of(Network(lambda scaled, sigma: output), latents, token, draw)
    loss.sum().backward()
    phi = draw.sigma.atan()[:, None, None, None, None]
    v = phi.cos() * draw.noise - phi.sin() * latents * LATENT_SCALE
    expected = 2 * (output.detach() - v) / output[0].numel()
    torch.testing.assert_close(output.grad, expected, rtol=1e-3, atol=1e-5)


def test_conditions_are_the_noisy_picture_and_zero_where_dropped(latents, token, draw):
    network = Network(lambda scaled, sigma: scaled)
    loss_of(network, latents, token, draw)
    assert {0.0, 1.0} == set(draw.keep_token.tolist()) == set(draw.keep_latent.tolist())
    for index in range(SHAPE[0]):
        condition = network.inputs[index, :, 4:]
        picture = latents[index, 0] + draw.cond_aug[index] * draw.cond_noise[index]
        expected = picture if draw.keep_latent[index] else torch.zeros_like(picture)
        assert all(torch.equal(frame, expected) for frame in condition)
        kept = token[index] if draw.keep_token[index] else torch.zeros_like(token[index])
        assert torch.equal(network.token[index], kept)
    # the numbers stay where the conditions are dropped, as sampling keeps them
    numbers = [[1.0, 300.0, float(aug)] for aug in draw.cond_aug]
    assert torch.equal(network.ids, torch.tensor(numbers))
    torch.testing.assert_close(network.c_noise, draw.sigma.log() / 4)


def test_noise_levels_are_normal_in_the_logarithm():
    count = 40_000
    draw = draw_noise(torch.Size((count, 1, 1, 1, 1)), NoiseConfig(), seeded())
    for values, mean, std in ((draw.sigma, 1.5, 2.0), (draw.cond_aug, -3.0, 0.5)):
        logs = values.log()
        assert abs(float(logs.mean()) - mean) < 4 * std / math.sqrt(count)
        assert abs(float(logs.std()) / std - 1) < 4 / math.sqrt(2 * count)
        quarter = float((logs < mean - 0.67449 * std).float().mean())
        assert abs(quarter - 0.25) < 4 * math.sqrt(0.25 * 0.75 / count)


def test_conditions_are_dropped_apart_and_as_often_as_said():
    count = 40_000
    config = NoiseConfig(drop_token=0.2, drop_latent=0.3)
    draw = draw_noise(torch.Size((count, 1, 1, 1, 1)), config, seeded())
    token, latent = 1 - draw.keep_token, 1 - draw.keep_latent
    for dropped, share in ((token, 0.2), (latent, 0.3), (token * latent, 0.06)):
        assert abs(float(dropped.mean()) - share) < 4 * math.sqrt(share * (1 - share) / count)
    never = draw_noise(torch.Size((99, 1, 1, 1, 1)), NoiseConfig(drop_token=0), seeded())
    assert bool(never.keep_token.all())
    always = draw_noise(torch.Size((99, 1, 1, 1, 1)), NoiseConfig(drop_latent=1), seeded())
    assert not bool(always.keep_latent.any())


def test_parts_of_a_draw_make_up_the_draw_and_its_loss(latents, token, draw):
    network = Network(lambda scaled, sigma: scaled.tanh())
    parts = [slice(0, 2), slice(2, 6)]
    losses = [loss_of(network, latents[p], token[p], draw.part(p)) for p in parts]
    assert torch.equal(torch.cat(losses), loss_of(network, latents, token, draw))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"drop_token": 1.5}, "drop_token.*1.5"),
        ({"drop_latent": -0.1}, "drop_latent.*-0.1"),
        ({"log_sigma_std": -1.0}, "log_sigma_std.*-1"),
        ({"log_cond_aug_std": -2.0}, "log_cond_aug_std.*-2"),
    ],
)
def test_impossible_settings_are_named(changed, text):
    with pytest.raises(ValueError, match=text):
        NoiseConfig(**changed)
