"""SV3D beside V3D: what each is told, the orbit it makes, and its files, which lie differently."""

import dataclasses
import importlib
import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_models import SV3D_ENCODER, picture, random_state, tiny_shapes, write_sv3d

from v3d_core import cli
from v3d_core.cameras import SV3D_ORBIT, V3D_ORBIT, orbit_cameras
from v3d_core.diffusion.bundled import NANO_FILE, trained_for
from v3d_core.diffusion.checkpoint import CheckpointError, read_part, require_part
from v3d_core.diffusion.conditioning import ConditioningConfig
from v3d_core.diffusion.edm import SamplerConfig
from v3d_core.diffusion.families import FAMILIES, SV3D_P, SV3D_U, V3D, family_of, sinusoids
from v3d_core.diffusion.layout import UNetShape
from v3d_core.diffusion.model_files import find_model
from v3d_core.diffusion.orbit import OrbitConfig, sample_orbit, with_picture
from v3d_core.diffusion.settings import advice, chosen_config
from v3d_core.formats.pictures import read_pictures
from v3d_core.formats.transforms import cameras_for, read_transforms

SHAPES = tiny_shapes(importlib.import_module)
CPU = torch.device("cpu")
FEW = {"steps": 1, "frames": 5}


@pytest.fixture(scope="module")
def sv3d(tmp_path_factory):
    """Tiny files of both kinds, by name."""
    folder = tmp_path_factory.mktemp("sv3d")
    return {
        name: write_sv3d(folder, importlib.import_module, name) for name in ("sv3d_u", "sv3d_p")
    }


@pytest.fixture(scope="module")
def backend():
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    return importlib.import_module("v3d_core.diffusion.diffusers_backend")


@pytest.fixture(scope="module")
def models(backend, sv3d):
    return {
        name: backend.load_diffusers_model(find_model(path), CPU) for name, path in sv3d.items()
    }


# --- what the networks are told -------------------------------------------------------------------


def embedded(number, channels):
    """Ho et al. 2020, one number at a time, in double precision."""
    half = channels // 2
    phases = [number * 10_000 ** (-i / half) for i in range(half)]
    return [math.cos(p) for p in phases] + [math.sin(p) for p in phases]


def test_v3d_is_told_the_three_published_numbers():
    vector = V3D.vectors(ConditioningConfig())
    assert vector.shape == (18, 768) and bool((vector == vector[0]).all())
    expected = [value for number in (1, 300, 0.02) for value in embedded(number, 256)]
    torch.testing.assert_close(vector[0], torch.tensor(expected), rtol=0, atol=3e-5)


def test_sv3d_u_is_told_the_noise_alone():
    vector = SV3D_U.vectors(ConditioningConfig(num_frames=3, cond_aug=0.25, elevation_deg=30))
    expected = torch.tensor(embedded(0.25, 256)).expand(3, -1)
    torch.testing.assert_close(vector, expected, rtol=0, atol=1e-6)


def test_sv3d_p_is_told_of_every_frame_how_high_and_how_far_around_it_stands():
    """Of 21 frames number k stands at (k + 1) * 360 / 21 degrees, the last at 0, not at 360."""
    vectors = SV3D_P.vectors(ConditioningConfig(num_frames=21, cond_aug=1e-5, elevation_deg=10))
    assert vectors.shape == (21, 1280)
    for k in range(21):
        azimuth = math.radians((k + 1) * 360 / 21) if k < 20 else 0.0
        expected = embedded(1e-5, 256) + embedded(math.radians(80), 512) + embedded(azimuth, 512)
        torch.testing.assert_close(vectors[k], torch.tensor(expected), rtol=0, atol=2e-6)


def test_sinusoids_of_different_angles_differ():
    angles = torch.linspace(0, 2 * math.pi, 361)[:-1]
    vectors = sinusoids(angles, 512)
    nearest = torch.cdist(vectors, vectors) + 9 * torch.eye(360)
    assert float(nearest.min()) > 0.03


# --- the orbit --------------------------------------------------------------------------------


def test_orbits_are_the_presets_with_any_number_of_frames():
    assert V3D.orbit(18) == V3D_ORBIT
    assert SV3D_U.orbit(21) == SV3D_P.orbit(21) == SV3D_ORBIT
    for family in FAMILIES:
        for frames in (1, 7, 18, 30):
            azimuths = family.angles_deg(ConditioningConfig(num_frames=frames))[1]
            at_front = frames - 1 if family.ends_with_picture else 0
            assert azimuths[at_front] == 0 and len({*azimuths}) == frames
            turned = [azimuth % 360 for azimuth in family.orbit(frames).azimuths_deg]
            distance = [
                abs((a - b + 180) % 360 - 180) for a, b in zip(azimuths, turned, strict=True)
            ]
            assert max(distance) < 1e-9


def test_cameras_stand_as_high_as_the_network_is_told():
    cameras = orbit_cameras(SV3D_P.orbit(21, 25.0), 64, 64)
    position = cameras.camera_to_world[:, :3, 3]
    heights = torch.rad2deg(torch.asin(position[:, 1] / position.norm(dim=1)))
    torch.testing.assert_close(heights, torch.full((21,), 25.0))
    front = position[-1] / position[-1].norm()
    expected = [0, math.sin(math.radians(25)), math.cos(math.radians(25))]
    torch.testing.assert_close(front, torch.tensor(expected), atol=1e-6, rtol=0)


def test_v3d_has_no_other_height():
    with pytest.raises(ValueError, match=r"elevation is 20 degrees, but V3D .* sv3d_p"):
        chosen_config(V3D, elevation_deg=20)
    with pytest.raises(ValueError, match="between -90 and 90, got 90"):
        chosen_config(SV3D_P, elevation_deg=90)


@pytest.mark.parametrize("family", [SV3D_U, SV3D_P])
def test_what_is_not_given_is_the_models_own(family):
    config, said = chosen_config(family)
    assert config.sampler == SamplerConfig(steps=50)
    assert dataclasses.astuple(config.guidance) == ("triangle", 2.5, 1.0)
    numbers = config.conditioning
    assert (numbers.num_frames, numbers.cond_aug, numbers.elevation_deg) == (21, 1e-5, 0)
    assert said == [f"{family.name}'s own: steps 50, scale 2.5."]
    given, said = chosen_config(
        family, steps=9, guidance="linear", scale=2.0, frames=18, cond_aug=0.0, elevation_deg=-5
    )
    assert given.sampler.steps == 9 and given.guidance.kind == "linear" and said == []
    numbers = given.conditioning
    assert (numbers.num_frames, numbers.cond_aug, numbers.elevation_deg) == (18, 0.0, -5)


def test_v3ds_own_are_the_defaults_and_a_small_models_file_goes_before_them():
    assert chosen_config()[0] == OrbitConfig()
    config, said = chosen_config(V3D, trained_for(NANO_FILE))
    assert (config.sampler.steps, config.guidance.scale) == (6, 1.0)
    assert config.conditioning == ConditioningConfig() and "V3D-nano's own" in said[0]


def test_advice_names_both_sizes_and_both_numbers_of_frames():
    config, _ = chosen_config(SV3D_P, frames=18)
    assert advice(SV3D_P, None, 512, config) == [
        "SV3D_p makes frames of 576 px, not of 512 px.",
        "SV3D_p makes orbits of 21 frames, not of 18.",
    ]
    assert advice(SV3D_P, None, 576, chosen_config(SV3D_P)[0]) == []
    assert advice(V3D, None, 256, chosen_config(V3D)[0]) == []


def test_the_kind_is_read_off_the_vector():
    for family, channels in zip(FAMILIES, (768, 256, 1280), strict=True):
        assert family_of(dataclasses.replace(SHAPES["unet"], vector_channels=channels)) == family
        assert family.vector_channels == channels
    assert family_of(UNetShape()) == V3D


# --- files ----------------------------------------------------------------------------------------


def test_the_encoder_comes_from_the_conditioner_with_its_convolution_folded_in(sv3d, backend):
    part = require_part(sv3d["sv3d_u"], "vae")
    state = read_part(part, "sgm")
    original = random_state(importlib.import_module, SHAPES["vae"], 1)
    assert state.keys() == original.keys()
    file = load_file(sv3d["sv3d_u"])
    quant = torch.nn.Conv2d(8, 8, 1)
    quant.load_state_dict(
        {n: file[f"{SV3D_ENCODER}quant_conv.{n}"] for n in ("weight", "bias")}, strict=True
    )
    last = {name for name in state if name.startswith("encoder.conv_out.")}
    assert len(last) == 2
    assert all(torch.equal(state[n], original[n]) for n in state.keys() - last)

    def encoder(weights):
        vae = backend.build_vae(SHAPES["vae"], "cpu")
        vae.encoder.load_state_dict(
            {n.removeprefix("encoder."): v for n, v in weights.items() if n.startswith("encoder.")}
        )
        return vae.encoder

    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    named = {"state": read_part(part, "diffusers"), "original": _diffusers(original)}
    with torch.no_grad():
        folded, plain = (encoder(weights)(pixels) for weights in named.values())
        torch.testing.assert_close(folded, quant(plain), rtol=0, atol=1e-5)
        assert float((folded - plain).abs().max()) > 0.1
    assert read_part(part, "sgm", torch.float16)["encoder.conv_out.weight"].dtype == torch.float16
    assert f"{SV3D_ENCODER}quant_conv.bias" in part.names()


def _diffusers(state):
    """An autoencoder's tensors in diffusers' naming."""
    from v3d_core.diffusion.checkpoint import to_diffusers

    return {
        entry.diffusers: to_diffusers(state[entry.sgm], entry.change)
        for entry in SHAPES["vae"].entries()
    }


def test_a_damaged_encoder_is_named(sv3d, tmp_path):
    from safetensors.torch import save_file

    state = load_file(sv3d["sv3d_p"])
    state[f"{SV3D_ENCODER}encoder.conv_out.bias"] = torch.zeros(7)
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(CheckpointError, match=r"encoder\.conv_out\.bias is \[7\] instead of \[8\]"):
        require_part(tmp_path / "odd.safetensors", "vae")
    del state[f"{SV3D_ENCODER}quant_conv.bias"]
    save_file(state, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="has no weights of an autoencoder"):
        find_model(tmp_path / "half.safetensors")


# --- sampling -------------------------------------------------------------------------------------


def denoised(model, config, x, sigma):
    condition = model.condition(picture(), config.conditioning, 3)
    return model.denoiser(condition, config.guidance)(x, torch.tensor(sigma))


@torch.inference_mode()
def test_sv3d_u_equals_diffusers_network_built_for_its_one_number(models, backend, sv3d):
    """diffusers can be told one number instead of three, if its embedding is as wide."""
    config, _ = chosen_config(SV3D_U, steps=1, frames=4, scale=2.0)
    x = 3 * torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    ours = denoised(models["sv3d_u"], config, x, 3.0)

    part = require_part(sv3d["sv3d_u"], "unet")
    native = backend.build_unet(part.shape, "cpu").eval()
    native.load_state_dict(read_part(part, "diffusers"), strict=True)
    native.add_time_proj.num_channels = 256
    condition = models["sv3d_u"].condition(picture(), config.conditioning, 3)
    latent = condition.latent[:, None].expand(-1, 4, -1, -1, -1)
    ids = torch.tensor([[1e-5]])

    def branch(share):
        scale = (3.0**2 + 1) ** -0.5
        inputs = torch.cat([scale * x[None], share * latent], 2)
        made = native(inputs, torch.tensor(0.25 * math.log(3.0)), share * condition.token, ids)
        return -3.0 * scale * made.sample[0] + scale**2 * x

    uncond, cond = branch(0.0), branch(1.0)
    scales = torch.tensor([1.0, 1 + 2 / 3, 1 + 2 / 3, 1.0])[:, None, None, None]
    torch.testing.assert_close(ours, uncond + scales * (cond - uncond), rtol=0, atol=2e-5)


@torch.inference_mode()
def test_sv3d_p_turns_with_its_angles(models):
    """Another height, or the same numbers in another order, make another orbit."""
    x = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    flat, high = (
        denoised(models["sv3d_p"], chosen_config(SV3D_P, elevation_deg=e, **FEW)[0], x, 2.0)
        for e in (0.0, 40.0)
    )
    assert float((flat - high).abs().max()) > 0.01
    again = denoised(models["sv3d_p"], chosen_config(SV3D_P, **FEW)[0], x, 2.0)
    assert torch.equal(flat, again)  # nothing is left of the other call


def test_two_models_on_one_network_do_not_add_up(models, backend):
    once = models["sv3d_p"]
    again = backend.DiffusersModel(once.unet, once.vae, once.image_encoder, CPU, family=SV3D_P)
    config, x = chosen_config(SV3D_P, **FEW)[0], torch.ones(5, 4, 8, 8)
    with torch.inference_mode():
        assert torch.equal(denoised(again, config, x, 2.0), denoised(once, config, x, 2.0))


def test_an_orbit_of_sv3d_ends_with_the_picture_itself(models):
    config, _ = chosen_config(SV3D_P, **FEW)
    frames = sample_orbit(models["sv3d_p"], picture(), config, 1).frames
    assert frames.shape == (5, 64, 64, 3)
    assert torch.equal(frames[-1], picture()[0]) and not torch.equal(frames[0], picture()[0])
    drawn = torch.zeros(3, 64, 64, 3)
    assert with_picture(drawn, picture(), V3D) is drawn


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path):
    image = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
    image.paste((200, 60, 30, 255), (20, 10, 60, 70))
    image.save(tmp_path / "thing.png")
    return tmp_path / "thing.png"


def run(capsys, *arguments):
    code = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.usefixtures("backend")
def test_v3d_sample_writes_the_cameras_that_the_model_was_told(photo, sv3d, tmp_path, capsys):
    command = ["sample", photo, "--out", tmp_path / "out", "--model", sv3d["sv3d_p"]]
    command += [
        "--steps",
        1,
        "--size",
        64,
        "--num-frames",
        6,
        "--picture-elevation",
        20,
        "--device",
        "cpu",
    ]
    code, said = run(capsys, *command)
    assert code == 0, said
    assert "SV3D_p makes frames of 576 px, not of 64 px" in said
    folder = tmp_path / "out" / "thing"
    cameras = cameras_for(read_transforms(folder / "transforms.json"), 64, 64)
    expected = orbit_cameras(SV3D_P.orbit(6, 20.0), 64, 64)
    torch.testing.assert_close(cameras.camera_to_world, expected.camera_to_world, rtol=0, atol=1e-5)
    torch.testing.assert_close(cameras.K, expected.K, rtol=0, atol=1e-3)
    last, prepared = read_pictures([folder / "r_005.png", folder / "prepared.png"])
    assert torch.equal(last[..., :3], prepared[..., :3])
    report = json.loads((folder / "orbit.json").read_text())
    assert report["settings"]["conditioning"]["elevation_deg"] == 20
    assert report["settings"]["guidance"] == {"kind": "triangle", "scale": 2.5, "min_scale": 1.0}


def test_what_sv3d_cannot_do_is_said(photo, sv3d, tiny, tmp_path, capsys):
    companion = ["--model", tiny.v3d, "--companion", tiny.svd]
    code, said = run(
        capsys, "sample", photo, "--out", tmp_path / "o", *companion, "--picture-elevation", 9
    )
    assert code == cli.EXIT_BAD_INPUT and "elevation is 9 degrees, but V3D" in said
    code, said = run(capsys, "convert", sv3d["sv3d_u"], "--out", tmp_path / "folder")
    assert code == cli.EXIT_BAD_INPUT and "no pipeline for SV3D" in said
    assert not (tmp_path / "folder").exists() and not (tmp_path / "o").exists()
    code, said = run(capsys, "convert", sv3d["sv3d_u"], "--out", tmp_path / "half.safetensors")
    assert code == 0
    parts = find_model(tmp_path / "half.safetensors")
    assert family_of(parts.unet.shape) == SV3D_U and parts.vae.encoder_prefix == SV3D_ENCODER
