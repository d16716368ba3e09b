"""SV3D's models in V3D Load Model and V3D Sample Orbit, beside core's sampler and diffusers."""

import json

import comfy.model_base
import comfy.model_detection
import folder_paths
import pytest
import torch
from comfy_extras.nodes_video_model import VideoTriangleCFGGuidance
from scenes import pack
from tiny_models import SIZE, picture, write_sv3d

import nodes

KINDS = ("sv3d_u", "sv3d_p")
OWN = {"frames": 0, "fps_id": 1.0, "motion_bucket_id": 300.0, "cond_aug": -1.0}
OWN |= {"vae_mode": "mode", "elevation": 25.0}
WIDGETS = {"seed": 7, "steps": 2, "guidance": "auto", "scale": 0.0, "min_scale": 1.0}
WIDGETS |= {"decode_frames": 0, **OWN}


@pytest.fixture(autouse=True)
def like_a_prompt():
    """ComfyUI runs every prompt in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sv3d")
    for kind in KINDS:
        write_sv3d(folder, pack, kind)
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    """MODEL, CLIP_VISION and VAE of both, from their own files alone."""
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        for kind in ("checkpoints", "diffusion_models", "clip_vision", "vae"):
            places = [str(folder)] if kind == "checkpoints" else []
            suffixes = folder_paths.folder_names_and_paths[kind][1]
            patch.setitem(folder_paths.folder_names_and_paths, kind, (places, suffixes))
        folder_paths.filename_list_cache.clear()
        node = pack("nodes.models").V3DLoadModel
        names = {"clip_vision_name": "auto", "vae_name": "auto"}
        found = {k: node.execute(model_name=f"{k}.safetensors", **names).args for k in KINDS}
        assert node.define_schema().inputs[0].default == "V3D-nano (bundled)"
    folder_paths.filename_list_cache.clear()
    return found


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


def family(kind):
    return getattr(pack("v3d_core.diffusion.families"), kind.replace("sv3d", "SV3D").upper())


def settings(kind, **given):
    return pack("v3d_core.diffusion.settings").chosen_config(family(kind), **given)[0]


def close(ours, theirs, share=1e-4):
    spread = float(theirs.max() - theirs.min())
    assert spread > 1
    assert float((ours - theirs).abs().max()) < share * spread


def test_the_hosts_own_classes_are_built(loaded, kind):
    model = loaded[kind][0].model
    assert (
        type(model) is {"sv3d_u": comfy.model_base.SV3D_u, "sv3d_p": comfy.model_base.SV3D_p}[kind]
    )
    assert pack("nodes.host_diffusion").family_of_model(loaded[kind][0]) == family(kind)


def test_full_size_settings_are_those_the_hosts_detection_finds(kind):
    layout = pack("v3d_core.diffusion.layout").UNetShape(
        vector_channels=family(kind).vector_channels
    )
    names = pack("v3d_core.diffusion.checkpoint").part_layout(layout, "sgm")
    prefix = "model.diffusion_model."
    state = {prefix + name: torch.empty(shape, device="meta") for name, shape in names.items()}
    found = comfy.model_detection.model_config_from_unet(state, prefix)
    assert type(found) is pack("nodes.host_models").HOST_CLASSES[family(kind)]
    extra = {"num_heads", "num_head_channels", "attn_precision"}  # the class adds them
    found = {name: value for name, value in found.unet_config.items() if name not in extra}
    assert found == pack("nodes.host_models").unet_config(layout)


def test_the_host_embeds_what_our_vectors_say(loaded, kind):
    model, clip, vae = loaded[kind]
    config = settings(kind, frames=7, elevation_deg=25.0, cond_aug=0.3).conditioning
    host = pack("nodes.host_diffusion")
    condition = host.condition_picture(clip, vae, picture(), config, 7)
    noise = torch.zeros(7, 4, 8, 8)
    for branch in host.host_conditioning(condition, family(kind)):
        vector = model.model.encode_adm(**branch[0][1], noise=noise)
        ours = family(kind).vectors(config)
        torch.testing.assert_close(vector.expand_as(ours), ours, rtol=0, atol=3e-6)


def test_an_orbit_equals_diffusers_network(loaded, folder, kind):
    pytest.importorskip("diffusers")
    backend = pack("v3d_core.diffusion.diffusers_backend")
    parts = pack("v3d_core.diffusion.model_files").find_model(folder / f"{kind}.safetensors")
    theirs = backend.load_diffusers_model(parts, torch.device("cpu"))
    config = settings(kind, steps=6, frames=9, elevation_deg=25.0)
    orbit = pack("v3d_core.diffusion.orbit").sample_orbit(theirs, picture(), config, 7)
    widgets = {**WIDGETS, "steps": 6, "frames": 9}
    model, clip, vae = loaded[kind]
    frames = pack("nodes.sampling").V3DSampleOrbit.execute(
        model=model, clip_vision=clip, vae=vae, image=picture(), **widgets
    )
    assert float((frames.args[0] - orbit.frames).abs().max()) < 2e-3
    assert float(orbit.frames[:-1].std()) > 0.05


def test_v3d_conditioning_for_cores_nodes_gives_the_same_orbit(loaded, kind):
    """KSampler behind Video Triangle CFG Guidance, as core's workflow for SV3D has it."""
    model, clip, vae = loaded[kind]
    positive, negative, latent = (
        pack("nodes.sampling")
        .V3DConditioning.execute(clip_vision=clip, vae=vae, image=picture(), seed=7, **OWN)
        .args
    )
    assert latent["samples"].shape[0] == 21
    (patched,) = VideoTriangleCFGGuidance().patch(model, 1.0)
    (core,) = nodes.common_ksampler(
        patched, 7, 8, 2.5, "euler", "karras", positive, negative, latent
    )
    config = settings(kind, steps=8, elevation_deg=25.0)
    host = pack("nodes.host_diffusion")
    condition = host.condition_picture(clip, vae, picture(), config.conditioning, 7)
    ours = host.sample_latents(
        model, condition, config.sampler, config.guidance, 7, lambda *arguments: None
    )
    close(ours, core["samples"], 1e-3)


def test_the_node_turns_as_the_model_was_told(loaded, kind, monkeypatch):
    sampling, seen = pack("nodes.sampling"), []
    monkeypatch.setattr(
        sampling, "views_or_reason", lambda frames, cameras: seen.append(cameras) or "views"
    )
    model, clip, vae = loaded[kind]
    frames, _, report = sampling.V3DSampleOrbit.execute(
        model=model, clip_vision=clip, vae=vae, image=picture(), **WIDGETS
    ).args
    assert frames.shape == (21, SIZE, SIZE, 3) and torch.equal(frames[-1], picture()[0])
    cameras = pack("v3d_core.cameras")
    expected = cameras.orbit_cameras(family(kind).orbit(21, 25.0), SIZE, SIZE)
    assert torch.equal(seen[0].camera_to_world, expected.camera_to_world)
    report = json.loads(report)
    assert (report["steps"], report["scale"]) == (2, 2.5)
    name = family(kind).name
    assert report["notes"] == [
        f"{name}'s own: scale 2.5.",
        f"{name} makes frames of 576 px, not of 64 px.",
    ]


def test_another_height_is_another_orbit_for_sv3d_p_only(loaded, kind):
    model, clip, vae = loaded[kind]
    node = pack("nodes.sampling").V3DSampleOrbit
    low, high = (
        node.execute(
            model=model,
            clip_vision=clip,
            vae=vae,
            image=picture(),
            **{**WIDGETS, "steps": 1, "frames": 3, "elevation": elevation},
        ).args[0]
        for elevation in (-10.0, 50.0)
    )
    assert torch.equal(low, high) == (kind == "sv3d_u")
