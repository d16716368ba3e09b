"""Noise levels, preconditioning, guidance and the sampler, against published numbers and closed forms."""

import math

import pytest
import torch

from v3d_core.diffusion.edm import SamplerConfig, edm_sigmas, initial_noise, v_scalings
from v3d_core.diffusion.guidance import Guidance, guide
from v3d_core.diffusion.sampler import sample_euler

# generative-models' EDMDiscretization(0.002, 700, rho=7) for 25 steps, as V3D samples
V3D_SIGMAS = (
    "700 545.729 421.569 322.454 244.023 182.547 134.854 98.267 70.541 49.810 34.537 23.468 15.590 "
    "10.097 6.3543 3.8697 2.2691 1.2732 0.67815 0.33938 0.15740 0.066399 0.024803 0.0078825 0.002 0"
)


def test_sigmas_are_those_v3d_samples_with():
    expected = torch.tensor([float(x) for x in V3D_SIGMAS.split()])
    torch.testing.assert_close(SamplerConfig().sigmas(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 7, 200])
def test_sigmas_fall_from_the_largest_to_zero(steps):
    sigmas = edm_sigmas(steps, 0.002, 700.0, 7.0)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(700) and sigmas[-1] == 0
    assert (sigmas[:-1] > sigmas[1:]).all()
    assert steps == 1 or sigmas[-2] == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("sigma", "expected"),
    [
        (700.0, (2.04081e-6, -0.999999, 1.428570e-3, 1.637770)),
        (1.0, (0.5, -0.707107, 0.707107, 0.0)),
        (0.5, (0.8, -0.447214, 0.894427, -0.173287)),
        (0.002, (0.999996, -0.00200000, 0.999998, -1.553652)),
    ],
)
def test_scalings_have_the_published_values(sigma, expected):
    for got, want in zip(v_scalings(torch.tensor(sigma)), expected, strict=True):
        assert float(got) == pytest.approx(want, rel=3e-6, abs=1e-9)


def test_a_perfect_prediction_of_v_gives_the_clean_data_back():
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator)
    for sigma in torch.tensor([0.002, 0.5, 3.0, 700.0], dtype=torch.float64):
        # v of the variance-preserving form: angle = atan(sigma), v = cos * noise - sin * data
        v = noise / (1 + sigma**2).sqrt() - clean * sigma / (1 + sigma**2).sqrt()
        c_skip, c_out, _, _ = v_scalings(sigma)
        denoised = c_skip * (clean + sigma * noise) + c_out * v
        torch.testing.assert_close(denoised, clean, rtol=0, atol=1e-10)


def gaussian_denoiser(x, sigma):
    """The exact denoiser of data that is N(0, 1)."""
    return x / (1 + sigma**2)


def test_sampling_gaussian_data_follows_the_exact_flow_with_first_order():
    x0 = torch.tensor([1.0, -2.0, 0.3], dtype=torch.float64) * math.sqrt(1 + 700.0**2)
    exact = x0 / math.sqrt(1 + 700.0**2)  # the flow scales x by sqrt(1 + sigma^2)
    errors = []
    for steps in (100, 200, 400):
        sigmas = edm_sigmas(steps, 0.002, 700.0, 7.0).double()
        errors.append(float((sample_euler(gaussian_denoiser, x0, sigmas) - exact).abs().max()))
    assert errors[0] < 0.1
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)


def test_the_callback_sees_every_step_and_stops_the_work_by_raising():
    seen = []

    def callback(step, denoised, x):
        seen.append(step)
        if step == 2:
            raise KeyboardInterrupt

    sigmas = SamplerConfig(steps=9).sigmas()
    with pytest.raises(KeyboardInterrupt):
        sample_euler(gaussian_denoiser, torch.ones(1), sigmas, callback)
    assert seen == [0, 1, 2]


def test_noise_is_that_of_torchs_generator_and_seeds_differ():
    torch.manual_seed(2**64 - 1)
    expected = torch.randn(3, 4)
    assert torch.equal(initial_noise((3, 4), 2**64 - 1), expected)
    assert not torch.equal(initial_noise((3, 4), 1), initial_noise((3, 4), 2))


def test_triangle_guidance_has_generative_models_values():
    position = Guidance("triangle", scale=1.0, min_scale=0.0).scales(18)
    expected = [2 * t / 17 for t in range(9)]
    expected += expected[::-1]
    torch.testing.assert_close(position, torch.tensor(expected), rtol=0, atol=1e-6)
    assert position[1] == pytest.approx(0.1176, abs=1e-4)
    assert position.max() == pytest.approx(0.9412, abs=1e-4)  # never 1 for an even number


def test_triangle_reaches_its_peak_with_an_odd_number_of_frames():
    scales = Guidance("triangle", scale=2.5, min_scale=1.0).scales(21)
    assert scales[10] == 2.5 and scales[0] == 1.0 and scales[-1] == 1.0
    assert torch.equal(scales, scales.flip(0))


def test_linear_guidance_runs_from_min_to_scale_and_equal_ends_are_constant():
    scales = Guidance("linear", scale=3.0, min_scale=1.0).scales(5)
    assert scales.tolist() == [1.0, 1.5, 2.0, 2.5, 3.0]
    constant = Guidance("constant", scale=3.5).scales(18)
    assert torch.equal(Guidance("linear", 3.5, 3.5).scales(18), constant)
    assert constant.tolist() == [3.5] * 18


def test_guide_weighs_each_frame_by_its_own_scale():
    uncond, cond = torch.zeros(3, 2, 2), torch.ones(3, 2, 2)
    guided = guide(uncond, cond, torch.tensor([0.0, 1.0, 4.5]))
    assert guided[:, 0, 0].tolist() == [0.0, 1.0, 4.5]


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_are_refused_with_the_number(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}, at least 1"):
        SamplerConfig(steps=steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": math.nan}, "guidance scale must be a number from 0 up, got nan"),
        ({"scale": math.inf}, "got inf"),
        ({"min_scale": -1.0}, "min_scale must be .* got -1"),
        ({"kind": "cosine"}, "'cosine' is none of constant, linear, triangle"),
    ],
)
def test_bad_guidance_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**arguments)
