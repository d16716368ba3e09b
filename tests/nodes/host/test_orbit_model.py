"""V3D's numerics on the host's own MODEL, CLIP_VISION and VAE, beside core's nodes and diffusers."""

import json
import os
import types

import comfy.lora
import comfy.model_detection
import comfy.model_management
import comfy.sd
import folder_paths
import pytest
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from live_tensors import live_tensor_bytes
from safetensors.torch import save_file
from scenes import pack
from tiny_models import SIZE, picture, random_state, tiny_shapes, write_models

import nodes

CPU = torch.device("cpu")
NUMBERS = {
    "frames": 18,
    "fps_id": 1.0,
    "motion_bucket_id": 300.0,
    "cond_aug": 0.02,
    "vae_mode": "mode",
}
WIDGETS = {"seed": 7, "steps": 2, "guidance": "constant", "scale": 3.5, "min_scale": 1.0}
WIDGETS |= {"decode_frames": 0, **NUMBERS}


@pytest.fixture(autouse=True)
def like_a_prompt():
    """ComfyUI runs every prompt in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_models(tmp_path_factory.mktemp("models") / "checkpoints", pack)


@pytest.fixture
def checkpoints(files, monkeypatch):
    """The tiny models as the host's only checkpoints."""
    return use_as_checkpoints(files.folder, monkeypatch)


def use_as_checkpoints(folder, monkeypatch):
    for kind in ("checkpoints", "diffusion_models", "clip_vision", "vae"):
        places = [str(folder)] if kind == "checkpoints" else []
        suffixes = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, (places, suffixes))
    folder_paths.filename_list_cache.clear()
    return folder


def load_model(model="V3D.ckpt", clip_vision="svd_xt.safetensors", vae="auto"):
    names = {"model_name": model, "clip_vision_name": clip_vision, "vae_name": vae}
    return pack("nodes.models").V3DLoadModel.execute(**names).args


@pytest.fixture(scope="module")
def loaded(files):
    """MODEL, CLIP_VISION, VAE; made once."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        use_as_checkpoints(files.folder, patch)
        return load_model()


@pytest.fixture(scope="module")
def condition(loaded):
    with torch.inference_mode():
        config = pack("v3d_core.diffusion.conditioning").ConditioningConfig()
        _, clip, vae = loaded
        return pack("nodes.host_diffusion").condition_picture(clip, vae, picture(), config, 7)


@pytest.fixture(scope="module")
def diffusers_model(files):
    pytest.importorskip("diffusers")
    backend = pack("v3d_core.diffusion.diffusers_backend")
    parts = pack("v3d_core.diffusion.model_files").find_model(files.v3d, [files.svd])
    return backend.load_diffusers_model(parts, CPU)


def guidance(*arguments):
    return pack("v3d_core.diffusion.guidance").Guidance(*arguments)


def sample(model, condition, guide=None, steps=25, callback=lambda *a: None):
    config = pack("v3d_core.diffusion.edm").SamplerConfig(steps=steps)
    sampler = pack("nodes.host_diffusion").sample_latents
    return sampler(model, condition, config, guide or guidance(), 7, callback)


def assert_close_to_the_range(ours, theirs, share=1e-4):
    spread = float(theirs.max() - theirs.min())
    assert spread > 1
    assert float((ours - theirs).abs().max()) < share * spread


# --- the same orbit in three ways ----------------------------------------------------------------


def v3d():
    return pack("v3d_core.diffusion.families").V3D


def test_25_steps_equal_cores_ksampler(loaded, condition):
    model, clip, vae = loaded
    positive, negative, latent = (
        pack("nodes.sampling")
        .V3DConditioning.execute(clip_vision=clip, vae=vae, image=picture(), seed=7, **NUMBERS)
        .args
    )
    (core,) = nodes.common_ksampler(
        model, 7, 25, 3.5, "euler", "karras", positive, negative, latent
    )
    assert_close_to_the_range(sample(model, condition), core["samples"])


@pytest.mark.parametrize(("kind", "steps"), [("constant", 25), ("linear", 8), ("triangle", 8)])
def test_orbits_equal_diffusers_networks(kind, steps, loaded, condition, diffusers_model):
    edm = pack("v3d_core.diffusion.edm")
    euler = pack("v3d_core.diffusion.sampler").sample_euler
    guide = guidance(kind, 3.5, 1.0)
    sigmas = edm.SamplerConfig(steps=steps).sigmas()
    noise = edm.initial_noise((18, 4, 8, 8), 7) * (1 + sigmas[0] ** 2).sqrt()
    theirs = diffusers_model.sample(
        diffusers_model.condition(picture(), condition.config, 7),
        guide,
        lambda denoiser: euler(denoiser, noise, sigmas),
        lambda: None,
    )
    ours = sample(loaded[0], condition, guide, steps)
    assert_close_to_the_range(ours * 0.18215, theirs)


@pytest.mark.parametrize("mode", ["mode", "sample"])
def test_conditioning_equals_diffusers(mode, loaded, diffusers_model):
    config = pack("v3d_core.diffusion.conditioning").ConditioningConfig(vae_mode=mode)
    host = pack("nodes.host_diffusion").condition_picture
    ours = host(loaded[1], loaded[2], picture(), config, 3)
    theirs = diffusers_model.condition(picture(), config, 3)
    torch.testing.assert_close(ours.token, theirs.token, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.latent, theirs.latent, rtol=0, atol=1e-5)


def test_the_vector_of_768_has_the_published_values(loaded, condition):
    positive, negative = pack("nodes.host_diffusion").host_conditioning(condition, v3d())
    vector = loaded[0].model.encode_adm(**positive[0][1])
    assert vector.shape == (1, 768)
    assert torch.equal(vector, loaded[0].model.encode_adm(**negative[0][1]))
    entries = [block + j for block in (0, 256, 512) for j in (0, 1, 127, 128, 129, 255)]
    expected = [0.540302, 0.597375, 1.0, 0.841471, 0.801962, 0.000107]
    expected += [-0.022097, -0.908910, 0.999480, -0.999756, 0.416993, 0.032233]
    expected += [0.999800, 0.999827, 1.0, 0.019999, 0.018610, 0.000002]
    torch.testing.assert_close(vector[0, entries], torch.tensor(expected), rtol=0, atol=3e-5)


def test_the_unconditional_branch_has_a_zero_token_and_a_zero_latent(condition):
    positive, negative = pack("nodes.host_diffusion").host_conditioning(condition, v3d())
    assert not negative[0][0].any() and not negative[0][1]["concat_latent_image"].any()
    assert positive[0][0].any() and positive[0][1]["concat_latent_image"].any()


def test_decoding_equals_diffusers_core_and_itself_in_slices(loaded, diffusers_model):
    vae, decode = loaded[2], pack("nodes.host_diffusion").decode_latents
    latents = 3 * torch.randn(18, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    whole, text = decode(vae, latents, 0)
    assert text == "all 18 frames at once"
    assert float((whole - vae.decode(latents)).abs().max()) < 1e-5  # all fit here
    assert float((whole - diffusers_model.decode(latents)[0]).abs().max()) < 2e-5
    for frames in (1, 4, 5):
        sliced, text = decode(vae, latents, frames)
        assert f"{frames} in work" in text
        assert float((whole - sliced).abs().max()) < 2e-5


def test_running_out_of_memory_shrinks_the_slices_with_a_warning(loaded, monkeypatch, caplog):
    host = pack("nodes.host_diffusion")
    latents = torch.randn(18, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    whole, _ = host.decode_latents(loaded[2], latents, 0)
    decode, tried = host.decode_in_slices, []

    def short_of_memory(layers, z, frames, check):
        tried.append(frames)
        if frames > 3:
            raise torch.OutOfMemoryError("planted")
        return decode(layers, z, frames, check)

    monkeypatch.setattr(host, "decode_in_slices", short_of_memory)
    frames, text = host.decode_latents(loaded[2], latents, 10)
    assert tried == [10, 5, 2] and "2 in work" in text
    assert float((frames - whole).abs().max()) < 2e-5
    assert "out of memory" in caplog.text

    def fail(*arguments):
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(host, "decode_in_slices", fail)
    frames, text = host.decode_latents(loaded[2], latents, 4)
    assert "overlapping chunks of 8 frames" in text and frames.shape == whole.shape
    assert "frames differ slightly" in caplog.text
    monkeypatch.setattr(host, "decode_in_chunks", fail)
    with pytest.raises(torch.OutOfMemoryError):
        host.decode_latents(loaded[2], latents, 4)


# --- the host's own ways with models -------------------------------------------------------------


def test_full_size_settings_are_those_the_hosts_detection_finds():
    layout = pack("v3d_core.diffusion.layout").UNetShape()
    names = pack("v3d_core.diffusion.checkpoint").part_layout(layout, "sgm")
    prefix = "model.diffusion_model."
    state = {prefix + name: torch.empty(shape, device="meta") for name, shape in names.items()}
    found = comfy.model_detection.model_config_from_unet(state, prefix)
    extra = {"num_heads", "num_head_channels", "attn_precision"}  # the class adds them
    settings = {name: value for name, value in found.unet_config.items() if name not in extra}
    assert settings == pack("nodes.host_models").unet_config(layout)
    with torch.device("meta"):
        network = found.get_model(state, prefix).diffusion_model
    assert {name: tuple(t.shape) for name, t in network.state_dict().items()} == names
    assert len(names) == 1428


def test_full_size_image_encoder_has_the_hosts_own_settings(monkeypatch):
    folder = os.path.dirname(comfy.clip_vision.__file__)
    with open(os.path.join(folder, "clip_vision_config_h.json")) as file:
        expected = json.load(file)
    seen = {}

    class Spy:
        def __init__(self, config):
            seen.update(config)
            raise KeyboardInterrupt

    monkeypatch.setattr(comfy.clip_vision, "ClipVisionModel", Spy)
    shape = pack("v3d_core.diffusion.layout").ClipShape()
    with pytest.raises(KeyboardInterrupt):
        pack("nodes.host_models").host_clip_vision(types.SimpleNamespace(shape=shape))
    assert {key: expected[key] for key in seen} == seen


def test_unloading_and_loading_again_changes_nothing(loaded, condition):
    before = sample(loaded[0], condition, steps=2)
    comfy.model_management.unload_all_models()
    assert torch.equal(sample(loaded[0], condition, steps=2), before)


def test_clones_share_weights_and_give_the_same_orbit(loaded, condition):
    clone = loaded[0].clone()
    assert clone.model is loaded[0].model
    assert torch.equal(sample(clone, condition, steps=2), sample(loaded[0], condition, steps=2))


def test_a_second_copy_of_the_weights_can_be_made(loaded, condition):
    before = sample(loaded[0], condition, steps=2)
    copy = loaded[0].clone(force_deepcopy=True)
    assert copy.model is not loaded[0].model
    assert torch.equal(sample(copy, condition, steps=2), before)
    factory, arguments = loaded[2].patcher.cached_patcher_init
    again = factory(*arguments, disable_dynamic=True)
    ours, theirs = again.model.state_dict(), loaded[2].patcher.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_loras_in_diffusers_naming_act_and_can_be_taken_off(loaded, condition):
    before = sample(loaded[0], condition, steps=2)
    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    generator = torch.Generator().manual_seed(0)
    lora = {
        f"{name}.lora_down.weight": torch.randn(4, 64, generator=generator),
        f"{name}.lora_up.weight": torch.randn(64, 4, generator=generator),
    }
    patched, _ = comfy.sd.load_lora_for_models(loaded[0], None, lora, 1.0, 0.0)
    assert list(patched.patches) == [
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    ]
    assert float((sample(patched, condition, steps=2) - before).abs().max()) > 0.01
    torch.testing.assert_close(sample(loaded[0], condition, steps=2), before)


def test_weights_kept_off_the_device_give_the_same_orbit(loaded, condition):
    """What --lowvram does: most weights stay behind and are cast while they are used."""
    before = sample(loaded[0], condition, steps=2)
    model = loaded[0].clone(force_deepcopy=True)
    model.load(CPU, lowvram_model_memory=100_000)
    assert model.model.model_lowvram
    assert any(getattr(m, "comfy_cast_weights", False) for m in model.model.modules())
    torch.testing.assert_close(sample(model, condition, steps=2), before, rtol=0, atol=1e-4)


def test_a_model_that_core_compiles_gives_the_same_orbit(loaded, condition, monkeypatch):
    """core's Torch Compile Model; its graph must not meet hooks of ours."""
    host, seen = pack("nodes.host_diffusion"), []
    hooks = host.interruptible
    monkeypatch.setattr(
        host, "interruptible", lambda network, check: seen.append(1) or hooks(network, check)
    )
    before = sample(loaded[0], condition, steps=1)
    assert seen == [1]
    model = loaded[0].clone()
    # one small part: tracing the whole network takes 40 s here, and gives the same
    set_torch_compile_wrapper(model, backend="eager", keys=["diffusion_model.time_embed"])
    assert_close_to_the_range(sample(model, condition, steps=1), before)
    assert seen == [1]
    torch._dynamo.reset()


def test_the_hosts_guidance_patches_stay_in_force(loaded, condition):
    seen = []
    model = loaded[0].clone()
    model.set_model_sampler_post_cfg_function(lambda a: seen.append(1) or a["denoised"])
    for kind in ("constant", "triangle"):
        seen.clear()
        sample(model, condition, guidance(kind, 2.0, 1.0), steps=2)
        assert len(seen) == 2
    assert len(loaded[0].model_options.get("sampler_post_cfg_function", [])) == 0


# --- the nodes -----------------------------------------------------------------------------------


def execute_sampler(model, clip, vae, image=None, **changes):
    node = pack("nodes.sampling").V3DSampleOrbit
    image = picture() if image is None else image
    return node.execute(
        model=model, clip_vision=clip, vae=vae, image=image, **{**WIDGETS, **changes}
    )


def test_the_node_gives_frames_and_a_report_and_blocks_views_that_cannot_be(loaded):
    frames, views, report = execute_sampler(*loaded).args
    assert frames.shape == (18, SIZE, SIZE, 3) and frames.min() >= 0 and frames.max() <= 1
    assert "no views" in views.message  # noise has no flat background
    report = json.loads(report)
    assert report["frames"] == 18 and report["decoded"] == "all 18 frames at once"
    assert report["peak_resident_mib"] > 0


def test_frames_on_white_get_masks_and_the_orbits_cameras():
    frames = torch.ones(18, SIZE, SIZE, 3)
    frames[:, 20:44, 24:40] = torch.tensor([0.8, 0.2, 0.1])
    sampling = pack("nodes.sampling")
    views = sampling.views_or_reason(frames, sampling.cameras_of(frames, v3d(), 0.0))
    assert torch.equal(views.masks, (frames[..., 1] < 0.5).float())
    cameras = pack("v3d_core.cameras")
    expected = cameras.orbit_cameras(cameras.V3D_ORBIT, SIZE, SIZE)
    assert torch.equal(views.cameras.camera_to_world, expected.camera_to_world)
    assert torch.equal(views.cameras.K, expected.K)


def test_decode_frames_and_the_number_of_frames_arrive(loaded):
    frames, _, report = execute_sampler(*loaded, decode_frames=2, frames=5).args
    assert len(frames) == 5 and "2 in work" in json.loads(report)["decoded"]


def test_0_as_steps_and_scale_is_what_v3d_takes_to_the_last_bit(loaded, caplog):
    """25 and 3.5, for each by itself too; any other number is taken as it stands."""
    caplog.set_level("INFO", "V3D")
    told, few = "V3D Sample Orbit: V3D's own: ", {"frames": 2}
    wanted = execute_sampler(*loaded, steps=25, scale=3.5, **few).args[0]
    assert told not in caplog.text
    cases = {(0, 0.0): "steps 25, scale 3.5.", (0, 3.5): "steps 25.", (25, 0.0): "scale 3.5."}
    for (steps, scale), said in cases.items():
        caplog.clear()
        frames, _, report = execute_sampler(*loaded, steps=steps, scale=scale, **few).args
        assert torch.equal(frames, wanted)
        report = json.loads(report)
        assert (report["steps"], report["scale"]) == (25, 3.5)
        assert report["notes"] == [f"V3D's own: {said}"] and told + said in caplog.text
    for steps, scale in ((0, 1.0), (2, 0.0), (24, 3.5), (25, 3.4)):
        frames, _, report = execute_sampler(*loaded, steps=steps, scale=scale, **few).args
        report = json.loads(report)
        assert (report["steps"], report["scale"]) == (steps or 25, scale or 3.5)
        assert not torch.equal(frames, wanted)


def test_0_as_scale_is_the_highest_of_a_guidance_that_changes(loaded):
    for kind in ("linear", "triangle"):
        asked = {"guidance": kind, "min_scale": 2.0, "frames": 4}
        wanted = execute_sampler(*loaded, scale=3.5, **asked).args[0]
        assert torch.equal(execute_sampler(*loaded, scale=0.0, **asked).args[0], wanted)


def test_new_nodes_ask_for_the_models_own_numbers():
    inputs = pack("nodes.sampling").V3DSampleOrbit.define_schema().get_v1_info(None).input
    for name, own in (("steps", 0), ("scale", 0), ("frames", 0), ("cond_aug", -1)):
        options = inputs["required"][name][1]
        assert options["default"] == options["min"] == own
    assert inputs["required"]["guidance"][1]["default"] == "auto"


def test_the_models_own_numbers_are_v3ds_to_the_last_bit(loaded):
    asked = {"steps": 1, "frames": 18, "guidance": "constant", "cond_aug": 0.02}
    wanted = execute_sampler(*loaded, **asked).args[0]
    own = {"steps": 1, "frames": 0, "guidance": "auto", "cond_aug": -1.0, "elevation": 0.0}
    assert torch.equal(execute_sampler(*loaded, **own).args[0], wanted)


def test_an_autoencoder_without_time_layers_decodes_frame_by_frame(loaded):
    shape = {"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3}
    shape |= {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "attn_resolutions": []}
    params = {"ddconfig": {**shape, "dropout": 0.0}, "embed_dim": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = comfy.ldm.models.autoencoder.AutoencoderKL(**params)
        for tensor in network.parameters():
            torch.nn.init.normal_(tensor, std=0.05)
    vae = comfy.sd.VAE(sd=network.state_dict(), config={"params": params})
    for mode in ("mode", "sample"):
        frames, _, report = execute_sampler(loaded[0], loaded[1], vae, vae_mode=mode).args
        assert frames.shape == (18, SIZE, SIZE, 3)
        assert "no temporal decoder" in json.loads(report)["decoded"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip": None}, "CLIP_VISION is empty.*svd_xt.safetensors"),
        ({"vae": None}, "VAE is empty"),
        ({"image": torch.ones(2, SIZE, SIZE, 3)}, "2 pictures came in one batch, 1 is needed"),
        ({"image": torch.ones(1, 48, SIZE, 3)}, "64x48; a square"),
        ({"steps": -1}, "steps is -1, at least 1"),
        ({"scale": -1.0}, "scale must be a number from 0 up, got -1.0"),
        ({"scale": float("nan")}, "scale is nan; a number is needed"),
        ({"guidance": "linear", "min_scale": float("inf")}, "min_scale is inf; a number is needed"),
        ({"cond_aug": -0.5}, "cond_aug must be a number from 0 up, got -0.5"),
        ({"frames": -1}, "num_frames is -1"),
        ({"elevation": 20.0}, "elevation is 20 degrees, but V3D"),
        ({"model": types.SimpleNamespace(model=object(), load_device=CPU)}, "MODEL is object"),
    ],
)
def test_wrong_input_is_refused_under_the_nodes_name(loaded, changes, message):
    model, clip, vae = (
        changes.get(name, value)
        for name, value in zip(("model", "clip", "vae"), loaded, strict=True)
    )
    rest = {k: v for k, v in changes.items() if k not in ("model", "clip", "vae")}
    with pytest.raises(ValueError, match=rf"^V3D Sample Orbit: .*{message}"):
        execute_sampler(model, clip, vae, **rest)


def test_an_image_encoder_of_another_width_is_refused_with_both_numbers(loaded, tmp_path):
    library = pack("v3d_core.diffusion.layout")
    shape = library.ClipShape(width=80, layers=1, mlp_width=80, projection=48)
    save_file(random_state(pack, shape, 0, "visual."), tmp_path / "clip.safetensors")
    part = pack("v3d_core.diffusion.checkpoint").require_part(tmp_path / "clip.safetensors", "clip")
    clip = pack("nodes.host_models").host_clip_vision(part)
    with pytest.raises(ValueError, match="tokens of 48 values but MODEL takes 96"):
        execute_sampler(loaded[0], clip, loaded[2])


def test_a_checkpoint_that_core_saved_loads_by_itself(loaded, condition, tmp_path, monkeypatch):
    model, clip, vae = loaded
    comfy.sd.save_checkpoint(
        str(tmp_path / "saved.safetensors"), model, vae=vae, clip_vision=clip, metadata={}
    )
    use_as_checkpoints(tmp_path, monkeypatch)
    again = load_model("saved.safetensors", "auto")
    ours = execute_sampler(*loaded).args[0]
    assert torch.equal(execute_sampler(*again).args[0], ours)


@pytest.mark.parametrize("vae", ["auto", "svd_xt.safetensors"])
def test_the_loader_takes_companions_by_name_or_finds_them(checkpoints, vae, loaded, condition):
    first = load_model(clip_vision="auto", vae=vae)
    assert torch.equal(sample(first[0], condition, steps=2), sample(loaded[0], condition, steps=2))
    without = load_model(model="v3d_unet.safetensors", clip_vision="auto", vae=vae)
    assert torch.equal(sample(without[0], condition, steps=2), sample(first[0], condition, steps=2))


def test_auto_passes_over_other_image_encoders_and_says_so_when_none_fits(
    files, tmp_path, monkeypatch, loaded, condition
):
    """ViT-bigG lies beside ViT-H in many models/clip_vision folders."""
    other = pack("v3d_core.diffusion.layout").ClipShape(
        width=104, layers=1, mlp_width=64, projection=80
    )
    save_file(random_state(pack, other, 0, "visual."), tmp_path / "a-laion2B-bigG.safetensors")
    os.link(files.v3d, tmp_path / "V3D.ckpt")
    use_as_checkpoints(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"svd_xt.safetensors.*Passed over: .*bigG.*heads of 80"):
        load_model(clip_vision="auto")
    with pytest.raises(ValueError, match="heads of 80") as error:
        load_model(clip_vision="a-laion2B-bigG.safetensors")  # one that is named is not
    assert "Passed over" not in str(error.value)
    os.link(files.svd, tmp_path / "svd_xt.safetensors")
    folder_paths.filename_list_cache.clear()
    model, clip, _ = load_model(clip_vision="auto")
    assert torch.equal(sample(model, condition, steps=1), sample(loaded[0], condition, steps=1))
    ours = pack("nodes.host_diffusion").clip_token(clip, picture())
    assert torch.equal(ours, condition.token)


def test_a_missing_companion_says_which_file_where_to_put_it_and_where_from(
    files, tmp_path, monkeypatch
):
    os.link(files.v3d, tmp_path / "V3D.ckpt")
    use_as_checkpoints(tmp_path, monkeypatch)
    with pytest.raises(ValueError) as error:
        load_model(clip_vision="auto")
    for text in ("V3D Load Model: ", "svd_xt.safetensors", "huggingface.co/stabilityai"):
        assert text in str(error.value)
    assert str(tmp_path) in str(error.value)
    node = pack("nodes.models").V3DLoadModel
    said = node.validate_inputs("V3D.ckpt", "svd_xt.safetensors", "auto")
    assert "there is no file 'svd_xt.safetensors' in models/checkpoints" in said
    said = node.validate_inputs("none.ckpt", "auto", "auto")
    assert "there is no file 'none.ckpt'" in said


def test_only_files_that_are_there_are_choices_so_that_the_front_end_offers_the_others(
    tmp_path, monkeypatch
):
    use_as_checkpoints(tmp_path, monkeypatch)
    inputs = pack("nodes.models").V3DLoadModel.define_schema().get_v1_info(None).input["required"]
    assert inputs["model_name"][1]["options"] == ["V3D-nano (bundled)"]  # comes with the pack
    assert inputs["model_name"][1]["default"] == "V3D-nano (bundled)"
    assert inputs["clip_vision_name"][1]["options"] == ["auto"]


@pytest.mark.parametrize(
    "name", ["../V3D.ckpt", "/etc/passwd", "..\\V3D.ckpt", "checkpoints/../V3D.ckpt", "", "."]
)
def test_names_that_lead_elsewhere_are_refused(checkpoints, name):
    node = pack("nodes.models").V3DLoadModel
    assert "there is no file" in node.validate_inputs(name, "auto", "auto")
    assert "there is no file" in node.validate_inputs("V3D.ckpt", name, "auto")
    assert "there is no file" in node.validate_inputs("V3D.ckpt", "auto", name)
    with pytest.raises(ValueError, match="there is no file"):
        load_model(model=name)


class Exploit:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(tmp_path, monkeypatch):
    with torch.inference_mode(False):
        torch.save({"state_dict": {"x": Exploit(tmp_path / "owned")}}, tmp_path / "V3D.ckpt")
    use_as_checkpoints(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"^V3D Load Model: .*mkdir"):
        load_model(clip_vision="auto")
    assert not (tmp_path / "owned").exists()


def test_a_truncated_file_is_named_with_its_size(files, tmp_path, monkeypatch):
    data = files.v3d_without_vae.read_bytes()
    (tmp_path / "V3D.safetensors").write_bytes(data[: len(data) // 2])
    use_as_checkpoints(tmp_path, monkeypatch)
    with pytest.raises(ValueError, match=r"^V3D Load Model: .*V3D.safetensors.*bytes"):
        load_model(model="V3D.safetensors", clip_vision="auto")


def test_a_changed_file_is_loaded_again(checkpoints, files):
    node = pack("nodes.models").V3DLoadModel
    names = ("V3D.ckpt", "svd_xt.safetensors", "auto")
    before = node.fingerprint_inputs(*names)
    assert node.fingerprint_inputs(*names) == before
    stamp = files.v3d.stat()
    os.utime(files.v3d, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))
    assert node.fingerprint_inputs(*names) != before


# --- stopping ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("stage", "decode_frames"), [("sampling", 0), ("whole", 0), ("slices", 4)])
def test_cancel_is_heard_between_blocks_and_frees_everything(
    loaded, monkeypatch, stage, decode_frames
):
    management = comfy.model_management
    execute_sampler(*loaded, decode_frames=decode_frames)
    before = live_tensor_bytes()
    throw, calls = management.throw_exception_if_processing_interrupted, []
    decoding = []

    def heard():
        if stage == "sampling" or decoding:
            calls.append(1)
        if len(calls) == 15:
            management.interrupt_current_processing(True)
        throw()

    monkeypatch.setattr(management, "throw_exception_if_processing_interrupted", heard)
    progress = pack("nodes.sampling").OrbitProgress
    tell = progress.decoding
    monkeypatch.setattr(
        progress, "decoding", lambda self, frames: (decoding.append(1), tell(self, frames))[1]
    )
    with pytest.raises(management.InterruptProcessingException) as caught:
        execute_sampler(*loaded, decode_frames=decode_frames)
    assert len(calls) == 15
    del caught
    assert live_tensor_bytes() == before
    networks = (loaded[0].model, loaded[2].first_stage_model)
    assert not any(m._forward_pre_hooks for net in networks for m in net.modules())


def test_widths_of_the_tiny_models_are_not_the_full_ones():
    """Else the tests above would not cover networks of other widths."""
    layout = pack("v3d_core.diffusion.layout")
    shapes = tiny_shapes(pack)
    assert shapes["unet"] != layout.UNetShape() and shapes["vae"] != layout.VaeShape()
