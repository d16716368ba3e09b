"""Finding networks in weight files: V3D's layout, svd_xt's, both namings, and files that are wrong."""

import dataclasses
import importlib

import pytest
import torch
from safetensors.torch import save_file
from tiny_models import random_state, tiny_shapes

from v3d_core.diffusion.checkpoint import (
    CheckpointError,
    find_part,
    part_layout,
    read_part,
    require_part,
)
from v3d_core.diffusion.layout import ClipShape, UNetShape, VaeShape
from v3d_core.diffusion.model_files import find_model
from v3d_core.formats.weights import open_weights

SHAPES = tiny_shapes(importlib.import_module)


def parts_in(path):
    with open_weights(path) as file:
        return {kind: find_part(file, kind) for kind in ("unet", "vae", "clip")}


def test_v3d_has_unet_and_autoencoder_and_svd_has_all_three(tiny):
    found = parts_in(tiny.v3d)
    assert found["unet"].shape == SHAPES["unet"] and found["vae"].shape == SHAPES["vae"]
    assert found["clip"] is None
    found = parts_in(tiny.svd)
    assert [found[kind].shape for kind in ("unet", "vae", "clip")] == list(SHAPES.values())
    assert parts_in(tiny.v3d_without_vae)["vae"] is None


def test_the_unet_comes_from_the_model_and_only_what_it_lacks_from_the_companion(tiny):
    parts = find_model(tiny.v3d, [tiny.svd])
    assert parts.unet.path == tiny.v3d and parts.vae.path == tiny.v3d
    assert parts.clip.path == tiny.svd
    assert find_model(tiny.v3d_without_vae, [tiny.svd]).vae.path == tiny.svd


@pytest.mark.parametrize("kind", ["unet", "vae", "clip"])
def test_reading_gives_every_tensor_bit_for_bit_in_both_namings(tiny, kind):
    part = require_part(tiny.svd, kind)
    ours = read_part(part, "sgm")
    assert {name: tuple(t.shape) for name, t in ours.items()} == part_layout(part.shape, "sgm")
    with open_weights(tiny.svd) as file:
        assert all(torch.equal(t, file.read(part.prefix + name)) for name, t in ours.items())
    theirs = read_part(part, "diffusers")
    assert {n: tuple(t.shape) for n, t in theirs.items()} == part_layout(part.shape, "diffusers")


@pytest.mark.parametrize("kind", ["unet", "vae", "clip"])
def test_a_file_in_diffusers_naming_gives_the_same_tensors_back(tiny, tmp_path, kind):
    part = require_part(tiny.svd, kind)
    save_file(read_part(part, "diffusers"), tmp_path / "model.safetensors")
    again = require_part(tmp_path / "model.safetensors", kind)
    assert again.naming == "diffusers" and again.shape == part.shape
    ours, back = read_part(part, "sgm"), read_part(again, "sgm")
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[name], back[name]) for name in ours)


def test_bare_and_differently_prefixed_files_are_understood(tmp_path):
    for prefix in ("", "diffusion_model.", "model.diffusion_model."):
        state = random_state(importlib.import_module, SHAPES["unet"], 0, prefix)
        save_file(state, tmp_path / "unet.safetensors")
        assert require_part(tmp_path / "unet.safetensors", "unet").prefix == prefix
    clip = random_state(importlib.import_module, SHAPES["clip"], 0, "visual.")
    save_file(clip, tmp_path / "clip.safetensors")
    assert require_part(tmp_path / "clip.safetensors", "clip").shape == SHAPES["clip"]


def test_tensors_are_converted_to_the_wanted_type(tiny):
    half = read_part(require_part(tiny.v3d, "unet"), "sgm", torch.float16)
    assert {tensor.dtype for tensor in half.values()} == {torch.float16}


def write(tmp_path, state):
    save_file(
        {name: torch.zeros(shape) for name, shape in state.items()}, tmp_path / "m.safetensors"
    )
    return tmp_path / "m.safetensors"


def tiny_layout(**changes):
    layout = part_layout(SHAPES["unet"], "sgm")
    layout |= changes
    return {f"model.diffusion_model.{n}": s for n, s in layout.items() if s is not None}


def test_a_text_to_image_checkpoint_is_refused_with_the_shapes_that_differ(tmp_path):
    layout = {  # Stable Diffusion 1.5: four input channels, nothing along time, no vector
        "input_blocks.0.0.weight": (320, 4, 3, 3),
        "input_blocks.0.0.bias": (320,),
        "input_blocks.1.0.in_layers.2.weight": (320, 320, 3, 3),
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight": (1280, 768),
        "out.2.weight": (4, 320, 3, 3),
    }
    path = write(tmp_path, {f"model.diffusion_model.{n}": s for n, s in layout.items()})
    with pytest.raises(CheckpointError) as error:
        require_part(path, "unet")
    text = str(error.value)
    assert str(path) in text
    assert "input_blocks.0.0.weight is [320, 4, 3, 3] instead of [320, 8, 3, 3]" in text
    assert "1423 are missing" in text and "Choose V3D.ckpt" in text


def test_one_missing_one_odd_and_one_unknown_tensor_are_each_named(tmp_path):
    odd = tiny_layout(
        **{
            "out.2.bias": None,
            "time_embed.0.bias": (7,),
            "input_blocks.9.0.strange.weight": (2, 2),
        }
    )
    with pytest.raises(CheckpointError) as error:
        require_part(write(tmp_path, odd), "unet")
    for text in (
        "out.2.bias [4] is missing",
        "time_embed.0.bias is [7] instead of [256]",
        "input_blocks.9.0.strange.weight [2, 2] is none of its tensors",
    ):
        assert text in str(error.value)


def test_a_network_that_is_told_something_unknown_is_refused_with_what_is_known(tmp_path):
    layout = part_layout(dataclasses.replace(SHAPES["unet"], vector_channels=512), "sgm")
    path = write(tmp_path, {f"model.diffusion_model.{n}": s for n, s in layout.items()})
    known = r"512 values, none of 768 \(V3D\), 256 \(SV3D_u\), 1280 \(SV3D_p\)"
    with pytest.raises(CheckpointError, match=known):
        require_part(path, "unet")


def test_an_autoencoder_without_time_layers_is_refused(tmp_path):
    layout = part_layout(SHAPES["vae"], "sgm")
    still = {n: s for n, s in layout.items() if "time" not in n and "mix_factor" not in n}
    path = write(tmp_path, {f"first_stage_model.{n}": s for n, s in still.items()})
    with pytest.raises(CheckpointError, match=r"temporal decoder.*time_stack.* is missing"):
        require_part(path, "vae")


def test_a_file_of_something_else_says_what_it_holds(tmp_path):
    path = write(tmp_path, {"lora_up.weight": (2, 2), "text_model.x": (3,)})
    with pytest.raises(CheckpointError, match=r"none of its 2 tensors.*lora_up, text_model"):
        require_part(path, "unet")


def test_a_missing_companion_says_which_file_and_where_from(tiny):
    with pytest.raises(CheckpointError) as error:
        find_model(tiny.v3d, [], "Put it there.")
    text = str(error.value)
    assert "image encoder" in text and "svd_xt.safetensors" in text and "huggingface.co" in text
    assert text.endswith("Put it there.")


def test_an_image_encoder_of_another_width_is_refused_with_both_numbers(tiny, tmp_path):
    shape = ClipShape(width=80, layers=1, mlp_width=80, projection=48)
    state = random_state(importlib.import_module, shape, 0, "visual.")
    save_file(state, tmp_path / "clip.safetensors")
    with pytest.raises(CheckpointError, match=r"tokens of 48 values .* takes 96"):
        find_model(tiny.v3d, [tmp_path / "clip.safetensors"])


def test_vit_large_is_refused_because_its_heads_differ(tmp_path):
    shape = ClipShape(width=1024, layers=1, mlp_width=64, projection=96)
    path = write(tmp_path, {f"visual.{n}": s for n, s in part_layout(shape, "sgm").items()})
    with pytest.raises(CheckpointError, match="1024 channels do not split"):
        require_part(path, "clip")


def test_latents_of_another_width_are_refused(tiny, tmp_path):
    shape = VaeShape(channels=32, channel_mult=(1,), res_blocks=1, latent_channels=16)
    save_file(
        random_state(importlib.import_module, shape, 0, "first_stage_model."),
        tmp_path / "vae.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"latents of 16 channels .* makes 4"):
        find_model(tiny.v3d_without_vae, [tmp_path / "vae.safetensors", tiny.svd])


def test_diffusers_extra_convolution_may_be_there_only_as_the_identity(tiny, tmp_path):
    state = read_part(require_part(tiny.svd, "vae"), "diffusers")
    state["quant_conv.weight"] = torch.eye(8)[..., None, None].contiguous()
    state["quant_conv.bias"] = torch.zeros(8)
    save_file(state, tmp_path / "vae.safetensors")
    assert require_part(tmp_path / "vae.safetensors", "vae").shape == SHAPES["vae"]
    state["quant_conv.bias"] = torch.full((8,), 0.1)
    save_file(state, tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"quant_conv.bias \[8\] is not the identity"):
        require_part(tmp_path / "vae.safetensors", "vae")


def test_channels_must_split_into_heads_only_where_there_is_attention(tmp_path):
    shape = UNetShape(32, (1, 2), (False, True), 1, context_channels=96)
    path = write(
        tmp_path, {f"diffusion_model.{n}": s for n, s in part_layout(shape, "sgm").items()}
    )
    assert require_part(path, "unet").shape == shape
    shape = UNetShape(32, (1, 2), (True, True), 1, context_channels=96)
    path = write(
        tmp_path, {f"diffusion_model.{n}": s for n, s in part_layout(shape, "sgm").items()}
    )
    with pytest.raises(CheckpointError, match="32 channels do not split into heads of 64"):
        require_part(path, "unet")


@pytest.mark.parametrize(
    "shape",
    [
        ClipShape(width=104, layers=1, mlp_width=64, projection=80),  # like ViT-bigG: other heads
        ClipShape(width=80, layers=1, mlp_width=64, projection=48),  # another width of token
    ],
)
def test_a_candidate_that_does_not_fit_is_passed_over_and_a_companion_is_not(tiny, tmp_path, shape):
    other = tmp_path / "other.safetensors"
    save_file(random_state(importlib.import_module, shape, 0, "visual."), other)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(tiny.svd.read_bytes()[:1000])
    parts = find_model(tiny.v3d, candidates=[broken, other, tiny.svd])
    assert parts.clip.path == tiny.svd
    with pytest.raises(CheckpointError, match=r"svd_xt.*Passed over: .*broken.* \| .*other"):
        find_model(tiny.v3d, candidates=[broken, other])
    with pytest.raises(CheckpointError, match=r"other\.safetensors"):
        find_model(tiny.v3d, [other, tiny.svd])
