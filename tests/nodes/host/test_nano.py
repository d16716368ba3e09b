"""V3D-nano, the bundled model: offered and loaded without any file, and its template run whole."""

import json
import time

import folder_paths
import numpy as np
import psutil
import pytest
import torch
from prompts import node, only, picture, psnr, workflow_prompt
from scenes import REPOSITORY, display_colours, open_mesh, pack

CPU = torch.device("cpu")
NANO, FOLDER = "V3D-nano (bundled)", "demo picture (shipped)"
SIZE, FRAMES = 128, 18
LOADER = {"model_name": NANO, "clip_vision_name": "auto", "vae_name": "auto"}
NUMBERS = {
    "frames": FRAMES,
    "fps_id": 1.0,
    "motion_bucket_id": 300.0,
    "cond_aug": 0.02,
    "vae_mode": "mode",
}


@pytest.fixture(autouse=True)
def like_a_prompt():
    with torch.inference_mode():
        yield


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """An empty folder as the host's only one of models."""
    for kind in ("checkpoints", "diffusion_models", "clip_vision", "vae"):
        places = [str(tmp_path)] if kind == "checkpoints" else []
        suffixes = folder_paths.folder_names_and_paths[kind][1]
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, (places, suffixes))
    folder_paths.filename_list_cache.clear()
    yield tmp_path
    folder_paths.filename_list_cache.clear()


def model_names():
    folder_paths.filename_list_cache.clear()
    schema = pack("nodes.models").V3DLoadModel.define_schema()
    (entry,) = [entry for entry in schema.inputs if entry.id == "model_name"]
    return entry.options, entry.default


def test_nano_is_always_offered_last_and_is_the_default_without_v3d(checkpoints):
    assert model_names() == ([NANO], NANO)
    (checkpoints / "photo.safetensors").touch()
    assert model_names() == (["photo.safetensors", NANO], NANO)
    (checkpoints / "V3D.ckpt").touch()
    assert model_names() == (["V3D.ckpt", "photo.safetensors", NANO], "V3D.ckpt")


@pytest.fixture
def loaded(checkpoints):
    loader = pack("nodes.models").V3DLoadModel
    assert loader.validate_inputs(**LOADER) is True
    assert "v3d_nano" in loader.fingerprint_inputs(**LOADER)
    return loader.execute(**LOADER).args


def test_the_three_networks_are_core_s_own(loaded):
    import comfy.clip_vision
    import comfy.model_base
    import comfy.sd

    model, clip_vision, vae = loaded
    assert isinstance(model.model, comfy.model_base.SVD_img2vid)
    assert isinstance(clip_vision, comfy.clip_vision.ClipVisionModel)
    assert isinstance(vae, comfy.sd.VAE)


@pytest.mark.parametrize("size", [128, 512])
def test_a_picture_of_any_size_is_brought_to_the_model_s(loaded, size):
    _, clip_vision, vae = loaded
    image = pack("v3d_core.demo_picture").true_orbit(size)[:1]
    image = pack("v3d_core.images").composite(image.images, image.masks)
    conditioning = pack("nodes.sampling").V3DConditioning
    models = {"clip_vision": clip_vision, "vae": vae}
    positive, negative, latent = conditioning.execute(**models, image=image, seed=0, **NUMBERS).args
    assert latent["samples"].shape == (FRAMES, 4, SIZE // 8, SIZE // 8)
    for branch in (positive, negative):
        assert branch[0][1]["concat_latent_image"].shape == (1, 4, SIZE // 8, SIZE // 8)


def test_the_host_s_frames_are_those_of_the_command_line(loaded):
    model, clip_vision, vae = loaded
    config = pack("v3d_core.diffusion.orbit").OrbitConfig
    sampler = pack("v3d_core.diffusion.edm").SamplerConfig(steps=3)
    guidance = pack("v3d_core.diffusion.guidance").Guidance(scale=2.0)
    view = pack("v3d_core.demo_picture").true_orbit(SIZE)[:1]
    image = pack("v3d_core.images").composite(view.images, view.masks)
    widgets = {"seed": 7, "steps": 3, "guidance": "constant", "scale": 2.0, "min_scale": 1.0}
    ours = pack("nodes.sampling").V3DSampleOrbit.execute(
        model=model,
        clip_vision=clip_vision,
        vae=vae,
        image=image,
        decode_frames=0,
        **widgets,
        **NUMBERS,
    )
    frames, report = ours.args[0], json.loads(ours.args[2])
    assert frames.shape == (FRAMES, SIZE, SIZE, 3)
    (note,) = report["notes"]  # about the scale; the size is right
    assert "guidance scale of" in note and "2 gives worse" in note
    parts = pack("v3d_core.diffusion.model_files").find_model(
        pack("v3d_core.diffusion.bundled").nano_file()
    )
    other = pack("v3d_core.diffusion.diffusers_backend").load_diffusers_model(parts, CPU)
    sampled = pack("v3d_core.diffusion.orbit").sample_orbit(
        other, image, config(sampler=sampler, guidance=guidance), 7
    )
    assert (sampled.frames - frames.cpu()).abs().max() < 2e-3


def test_0_as_steps_and_scale_is_what_nano_takes_to_the_last_bit(loaded, caplog):
    """The same widgets as for V3D.ckpt: the file says what it is made for."""
    caplog.set_level("INFO", "V3D")
    names = ("model", "clip_vision", "vae")
    view = pack("v3d_core.demo_picture").true_orbit(SIZE)[:1]
    image = pack("v3d_core.images").composite(view.images, view.masks)
    rest = {"seed": 1, "guidance": "constant", "min_scale": 1.0, "decode_frames": 0, **NUMBERS}
    rest |= {"image": image, "frames": 4, **dict(zip(names, loaded, strict=True))}

    def sampled(steps, scale):
        made = pack("nodes.sampling").V3DSampleOrbit.execute(steps=steps, scale=scale, **rest).args
        return made[0], json.loads(made[2])

    wanted, report = sampled(6, 1.0)
    assert report["notes"] == [] and "own: " not in caplog.text
    frames, report = sampled(0, 0.0)
    assert torch.equal(frames, wanted)
    assert (report["steps"], report["scale"]) == (6, 1.0)
    assert report["notes"] == ["V3D-nano's own: steps 6, scale 1."]
    assert "V3D Sample Orbit: V3D-nano's own: steps 6, scale 1." in caplog.text
    assert not torch.equal(sampled(5, 0.0)[0], wanted)
    frames, report = sampled(0, 3.5)
    assert not torch.equal(frames, wanted)
    own, advice = report["notes"]
    assert own == "V3D-nano's own: steps 6." and "3.5 gives worse" in advice


def test_core_s_sampler_makes_the_same_orbit_of_a_picture_of_another_size(server):
    models = {"clip_vision": ["1", 1], "vae": ["1", 2]}
    steps, seed, scale = 3, 4, 1.5
    guidance = {"guidance": "constant", "scale": scale, "min_scale": 1.0, "decode_frames": 0}
    ksampler = {"sampler_name": "euler", "scheduler": "karras", "cfg": scale, "denoise": 1.0}
    picked = {"batch_index": 0, "length": 1}
    conditioned = {"positive": ["4", 0], "negative": ["4", 1], "latent_image": ["4", 2]}
    prompt = {
        "1": node("V3DLoadModel", **LOADER),
        "2": node("V3DLoadViews", folder=FOLDER, split="train"),
        "3": node("ImageFromBatch", image=["2", 1], **picked),  # 256 px
        "4": node("V3DConditioning", **models, image=["3", 0], seed=seed, **NUMBERS),
        "5": node("KSampler", model=["1", 0], seed=seed, steps=steps, **conditioned, **ksampler),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("PreviewImage", images=["6", 0]),
        "8": node(
            "V3DSampleOrbit",
            model=["1", 0],
            **models,
            image=["3", 0],
            seed=seed,
            steps=steps,
            **guidance,
            **NUMBERS,
        ),
        "9": node("PreviewImage", images=["8", 0]),
    }
    run = server.run(prompt, timeout_s=900)
    assert run.ended == "execution_success", run.error
    pairs = zip(run.outputs["7"]["images"], run.outputs["9"]["images"], strict=True)
    for core, ours in pairs:
        pictures = picture(server, core), picture(server, ours)
        assert pictures[0].shape == (SIZE, SIZE, 3)
        assert np.abs(pictures[0] - pictures[1]).max() <= 1.01 / 255


def test_nothing_of_the_template_has_to_be_downloaded():
    workflow = json.loads((REPOSITORY / "workflows" / "try_it_now.json").read_text())
    assert not [entry for entry in workflow["nodes"] if "models" in entry["properties"]]
    assert not [entry for entry in workflow["nodes"] if "BackgroundRemoval" in entry["type"]]


def test_the_template_makes_a_splat_and_a_textured_mesh_as_it_is(server, object_info):
    """All settings as saved; in processor time, since other work may share the machine."""
    prompt = workflow_prompt("try_it_now", object_info, {})
    orbit = only(prompt, "V3DSampleOrbit")
    trained = pack("v3d_core.diffusion.bundled").trained_for(
        pack("v3d_core.diffusion.bundled").nano_file()
    )
    assert prompt[orbit]["inputs"]["scale"] == trained.scale
    assert prompt[orbit]["inputs"]["steps"] == trained.steps
    assert prompt[only(prompt, "V3DPrepareImage")]["inputs"]["size"] == trained.size
    prompt["frames"] = node("PreviewImage", images=[orbit, 0])
    worker = psutil.Process(server.process.pid)
    before, start = worker.cpu_times(), time.monotonic()
    run = server.run(prompt, timeout_s=1200)
    assert run.ended == "execution_success", run.error
    after = worker.cpu_times()
    seconds = after.user + after.system - before.user - before.system
    assert seconds < 2 * 240, f"{seconds:.0f} s on all cores, {time.monotonic() - start:.0f} s"
    shown = run.outputs["frames"]["images"]
    assert len(shown) == FRAMES
    assert_shows_the_sample(picture(server, shown[0]))
    assert len(saved_splat(server, prompt, run)) > 1000
    assert_is_a_textured_mesh_of_the_sample(server, prompt, run)


def sample(size):
    """The true orbit of the sample picture's object."""
    return pack("v3d_core.demo_picture").true_orbit(size)


def assert_shows_the_sample(image):
    true = sample(len(image))[:1]
    true = pack("v3d_core.images").composite(true.images, true.masks)[0].double().numpy()
    assert psnr(image, true) > psnr(image[:, ::-1], true) + 3


def saved_splat(server, prompt, run):
    saved = run.outputs[only(prompt, "SaveGaussianSplat")]["result"][0]
    path = server.base / "output" / saved.removesuffix(" [output]")
    return pack("v3d_core.formats.ply").read_splat_ply(path)


def assert_is_a_textured_mesh_of_the_sample(server, prompt, run):
    (saved,) = run.outputs[only(prompt, "V3DExportMesh")]["3d"]
    mesh = open_mesh(server.base / "output" / saved["subfolder"] / saved["filename"])
    assert mesh.volume > 0 and mesh.visual.material.baseColorTexture.size == (1024, 1024)
    # the colours of the picture's object, on the whole
    colours, object_ = display_colours(mesh, "glb").mean(0), sample(SIZE)
    wanted = object_.images[object_.masks > 0.5].mean(0).numpy()
    assert np.abs(colours - wanted).max() < 0.25


def test_the_templates_of_one_picture_run_as_they_are_where_no_model_file_is(bare_server):
    """Whole, to their last output; the second finds the first one's fit in the server's cache."""
    assert not [path for path in (bare_server.base / "models").rglob("*") if path.is_file()]
    info = bare_server.get_json("/object_info")
    assert info["V3DLoadModel"]["input"]["required"]["model_name"][1]["options"] == [NANO]
    runs = {}
    for name in ("image_to_splat", "image_to_mesh", "image_to_orbit_ksampler"):
        prompt, told = workflow_prompt(name, info, {}), len(bare_server.log)
        run = bare_server.run(prompt, timeout_s=1200)
        assert run.ended == "execution_success", run.error
        assert not run.error
        told = bare_server.log[told:]
        assert not [line for line in told.splitlines() if "[WARNING]" in line]
        runs[name] = prompt, run
    prompt, run = runs["image_to_splat"]
    assert "V3D-nano's own: steps 6, scale 1." in bare_server.log
    assert len(saved_splat(bare_server, prompt, run)) > 1000
    (turn,) = [
        run.outputs[number]["images"]
        for number, entry in prompt.items()
        if entry["inputs"].get("images") == [only(prompt, "RenderSplat"), 0]
    ]
    assert len(turn) == FRAMES
    assert_shows_the_sample(picture(bare_server, turn[0]))
    assert_is_a_textured_mesh_of_the_sample(bare_server, *runs["image_to_mesh"])
    prompt, run = runs["image_to_orbit_ksampler"]
    (folder,) = run.outputs[only(prompt, "V3DSaveViews")]["text"]
    folder = bare_server.base / "output" / folder.removesuffix(" [output]")
    views = pack("v3d_core.formats.views").load_views(folder).views
    assert views.images.shape == (FRAMES, SIZE, SIZE, 3)
    shown = pack("v3d_core.images").composite(views.images, views.masks)[0]
    assert_shows_the_sample(shown.double().numpy())
