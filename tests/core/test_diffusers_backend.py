"""The orbit on diffusers' networks: equal to its own scheduler, repeatable, stoppable, in slices."""

import pytest
import torch
from live_tensors import live_tensor_bytes
from tiny_models import SIZE, picture

from v3d_core.diffusion.conditioning import LATENT_SCALE, ConditioningConfig
from v3d_core.diffusion.decode import (
    decode_in_chunks,
    decode_in_slices,
    diffusers_decoder_layers,
)
from v3d_core.diffusion.decode_memory import DecodePlan, decode_bytes, plan_decode
from v3d_core.diffusion.edm import SamplerConfig, initial_noise
from v3d_core.diffusion.guidance import Guidance
from v3d_core.diffusion.model_files import find_model
from v3d_core.diffusion.orbit import OrbitConfig, sample_orbit
from v3d_core.diffusion.sampler import sample_euler

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from v3d_core.diffusion.diffusers_backend import load_diffusers_model  # noqa: E402

CPU = torch.device("cpu")
FRAMES, LATENT = 18, SIZE // 8
FEW = ConditioningConfig(num_frames=6)  # where the number of frames is not the point


@pytest.fixture(scope="module")
def model(tiny):
    return load_diffusers_model(find_model(tiny.v3d, [tiny.svd]), CPU)


@pytest.fixture(scope="module")
def condition(model):
    return model.condition(picture(), ConditioningConfig(), 7)


def sampled(model, condition, guidance, steps=25):
    sigmas = SamplerConfig(steps=steps).sigmas()
    noise = initial_noise((FRAMES, 4, LATENT, LATENT), 7) * (1 + sigmas[0] ** 2).sqrt()
    return model.sample(condition, guidance, lambda d: sample_euler(d, noise, sigmas), lambda: None)


@torch.inference_mode()
def by_diffusers_scheduler(model, condition, scales, steps=25):
    """diffusers' own way: its Euler scheduler with SVD's settings, two passes, guidance by hand."""
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        interpolation_type="linear",
        prediction_type="v_prediction",
        sigma_min=0.002,
        sigma_max=700.0,
        timestep_spacing="leading",
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(steps)
    latents = initial_noise((1, FRAMES, 4, LATENT, LATENT), 7) * scheduler.init_noise_sigma
    ids = torch.tensor([[1.0, 300.0, 0.02]])
    picture_latent = condition.latent[:, None].expand(1, FRAMES, -1, -1, -1)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(latents, timestep)
        cond = model.unet(
            torch.cat([scaled, picture_latent], 2), timestep, condition.token, ids
        ).sample
        uncond = model.unet(
            torch.cat([scaled, 0 * picture_latent], 2), timestep, 0 * condition.token, ids
        ).sample
        guided = uncond + scales[None, :, None, None, None] * (cond - uncond)
        latents = scheduler.step(guided, timestep, latents).prev_sample
    return latents[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guidance", "steps"),
    [
        (Guidance(), 25),
        (Guidance("linear", 3.0, 1.0), 8),
        (Guidance("triangle", 2.5, 1.0), 8),
        (Guidance(scale=1.0), 8),
    ],
)
def test_orbits_equal_diffusers_euler_scheduler(model, condition, guidance, steps):
    ours = sampled(model, condition, guidance, steps)
    theirs = by_diffusers_scheduler(model, condition, guidance.scales(FRAMES), steps)
    spread = float(theirs.max() - theirs.min())
    assert spread > 1
    assert float((ours - theirs).abs().max()) < 1e-4 * spread


def test_without_guidance_the_unconditional_half_is_not_computed(model, condition):
    seen = []
    hook = model.unet.register_forward_pre_hook(lambda net, inputs: seen.append(len(inputs[0])))
    try:
        for scale in (1.0, 1.5):
            sampled(model, condition, Guidance(scale=scale), steps=2)
    finally:
        hook.remove()
    assert seen == [1, 1, 2, 2]


def test_the_condition_reaches_the_frames(model, condition):
    other = model.condition(picture().flip(2), ConditioningConfig(), 7)
    a, b = (sampled(model, c, Guidance(), steps=3) for c in (condition, other))
    assert float((a - b).abs().max()) > 0.1


def test_tokens_are_projected_and_not_normalised_and_the_latent_is_raw(model, condition):
    assert condition.token.shape == (1, 1, 96)
    assert abs(float(condition.token.norm()) - 1) > 0.5
    clean = model.condition(picture(), ConditioningConfig(cond_aug=0.0), 7)
    with torch.inference_mode():
        moments = model.vae.encode(picture().movedim(-1, 1) * 2 - 1).latent_dist
    torch.testing.assert_close(clean.latent, moments.mode(), rtol=0, atol=1e-5)
    noise = condition.latent - clean.latent
    assert float(noise.std()) == pytest.approx(0.02, rel=0.2)


def test_an_orbit_depends_on_picture_settings_and_seed_alone(model):
    config = OrbitConfig(SamplerConfig(steps=2), conditioning=FEW)
    first = sample_orbit(model, picture(), config, 5).frames
    torch.manual_seed(99)  # nobody else's random numbers matter
    sample_orbit(model, picture().flip(1), config, 6)
    assert torch.equal(sample_orbit(model, picture(), config, 5).frames, first)
    assert not torch.equal(sample_orbit(model, picture(), config, 6).frames, first)
    assert first.shape == (FEW.num_frames, SIZE, SIZE, 3)
    assert first.min() >= 0 and first.max() <= 1


def test_global_random_state_is_left_alone(model):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    sample_orbit(model, picture(), OrbitConfig(SamplerConfig(steps=1), conditioning=FEW), 5)
    assert torch.equal(torch.rand(1), expected)


# --- decoding -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def latents():
    return 3 * torch.randn(FRAMES, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 4, 5, 17])
def test_slices_give_the_frames_of_the_whole_decode(model, latents, frames):
    whole, plan = model.decode(latents, FRAMES)
    assert plan.whole
    sliced, plan = model.decode(latents, frames)
    assert not plan.whole and str(frames) in str(plan)
    assert float((whole - sliced).abs().max()) < 2e-5


def test_separate_chunks_would_not(model, latents):
    """Guards the test above: frames do depend on their neighbours here."""
    whole, _ = model.decode(latents, FRAMES)
    chunks = torch.cat([model.decode(latents[i : i + 6], 6)[0] for i in range(0, FRAMES, 6)])
    assert float((whole - chunks).abs().max()) > 0.05


@torch.inference_mode()
def test_slicing_keeps_to_its_share_of_frames_and_rows(model, latents):
    seen = []

    def watch(layer):
        return lambda x: (seen.append(len(x)), layer(x))[1]

    layers = (
        watch(layer) if callable(layer) else layer
        for layer in diffusers_decoder_layers(model.vae.decoder)
    )
    decode_in_slices(layers, latents, 5)
    assert set(seen) == {5, 3}


def test_plans_take_everything_that_fits_and_shrink_with_memory():
    z = torch.empty(18, 4, 64, 64)
    whole = decode_bytes(tuple(z.shape), torch.float16, 18)
    plans = [
        plan_decode(z, torch.float16, CPU, 0, int(whole * share))
        for share in (2.0, 1.2, 1.09, 0.7, 0.48, 0.3, 0.0)
    ]
    assert [plan.frames for plan in plans] == [18, 18, 9, 4, 1, 4, 2]
    assert [plan.together for plan in plans] == [True] * 5 + [False] * 2
    assert plan_decode(z, torch.float16, CPU, 4, 10**15) == DecodePlan(4, 18)
    assert plan_decode(z, torch.float16, CPU, 99, 0).whole
    with pytest.raises(ValueError, match="-1"):
        plan_decode(z, torch.float16, CPU, -1)


def test_plans_shrink_step_by_step_to_two_frames_that_have_each_other():
    plan, steps = DecodePlan(18, 18), []
    while plan is not None:
        steps.append((plan.frames, plan.together))
        plan = plan.smaller()
    together = [(18, True), (9, True), (4, True), (2, True), (1, True)]
    assert steps == [*together, (8, False), (4, False), (2, False)]
    assert DecodePlan(1, 2).smaller() is None  # no chunk is smaller than that orbit


def test_running_out_of_memory_tries_less_before_it_gives_up(model, latents, monkeypatch, caplog):
    from v3d_core.diffusion import diffusers_backend

    def fail(*arguments):
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(diffusers_backend, "decode_in_slices", fail)
    pictures, plan = model.decode(latents, 4)
    assert plan == DecodePlan(8, 18, together=False)
    assert "out of memory" in caplog.text and pictures.shape == (18, SIZE, SIZE, 3)
    monkeypatch.setattr(diffusers_backend, "decode_in_chunks", fail)
    with pytest.raises(torch.OutOfMemoryError):
        model.decode(latents, 4)


def decoder_of(model):
    def decode(z):
        return model.vae.decoder(z, torch.zeros(1, len(z)), len(z))

    return decode


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(("frames", "stride"), [(6, 3), (4, 2), (12, 6)])
def test_chunks_wrap_around_the_orbit_so_that_no_place_in_it_is_special(
    model, latents, frames, stride
):
    decode = decoder_of(model)
    pictures = decode_in_chunks(decode, latents, frames)
    rolled = decode_in_chunks(decode, latents.roll(stride, 0), frames)
    torch.testing.assert_close(rolled, pictures.roll(stride, 0), rtol=0, atol=1e-4)


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 18, 30])
def test_chunks_of_a_decoder_without_time_are_exact(latents, frames):
    pictures = decode_in_chunks(lambda z: z[:, :3] * 2, latents, frames)
    torch.testing.assert_close(pictures, latents[:, :3] * 2)


@torch.inference_mode()
def test_blended_chunks_come_nearer_to_the_whole_than_chunks_set_side_by_side(model):
    turn = torch.arange(FRAMES) * 2 * torch.pi / FRAMES
    waves = torch.randn(4, 4, LATENT, LATENT, generator=torch.Generator().manual_seed(2))
    smooth = sum(
        3 * torch.cos(turn * (k % 2 + 1) + k)[:, None, None, None] * w for k, w in enumerate(waves)
    )
    decode, middle = decoder_of(model), slice(3, FRAMES - 3)  # the whole decode has ends itself
    whole = decode(smooth)[middle]
    blended = decode_in_chunks(decode, smooth, 8)[middle]
    side_by_side = torch.cat([decode(smooth[i : i + 6]) for i in range(0, FRAMES, 6)])[middle]
    assert (blended - whole).square().mean() < 0.3 * (side_by_side - whole).square().mean()


# --- stopping -------------------------------------------------------------------------------------


class Stop(BaseException):
    """What hosts raise: not an Exception."""


@pytest.mark.parametrize("stage", ["sampling", "decoding"])
@pytest.mark.parametrize("decode_frames", [0, 4])
def test_raising_stops_in_the_middle_of_an_evaluation_and_frees_everything(
    model, stage, decode_frames
):
    config = OrbitConfig(SamplerConfig(steps=1), conditioning=FEW, decode_frames=decode_frames)
    sample_orbit(model, picture(), config, 0)  # lazily made things are there now
    before = live_tensor_bytes()
    calls = 0

    def progress(step, total, preview=None, text=""):
        nonlocal calls
        calls += text == stage
        if calls == 12:
            raise Stop

    with pytest.raises(Stop) as caught:
        sample_orbit(model, picture(), config, 0, progress)
    assert calls == 12  # fewer blocks than one evaluation has
    del caught
    assert live_tensor_bytes() == before
    assert not any(module._forward_pre_hooks for module in model.unet.modules())
    assert not any(module._forward_pre_hooks for module in model.vae.modules())
    sample_orbit(model, picture(), config, 0)


def test_latents_are_unscaled_before_they_are_decoded(model):
    config = OrbitConfig(SamplerConfig(steps=2))
    seen = []

    class Spy:
        condition, sample, family = model.condition, model.sample, model.family

        def decode(self, latents, frames, progress):
            seen.append(latents)
            return model.decode(latents, frames, progress)

    sample_orbit(Spy(), picture(), config, 7)
    condition = model.condition(picture(), config.conditioning, 7)
    expected = sampled(model, condition, Guidance(), steps=2) / LATENT_SCALE
    torch.testing.assert_close(seen[0], expected)
