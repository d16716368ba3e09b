"""The workflows from one picture, in a running ComfyUI, as far as they go without real weights."""

import json

import numpy as np
import pytest
import torch
from prompts import (
    DEMO,
    QUICK,
    assert_is_the_robot,
    assert_shows,
    assert_shows_frame,
    node,
    only,
    picture,
    workflow_prompt,
)
from scenes import REPOSITORY, asymmetric_splats, display_colours, open_mesh, pack

WORKFLOWS = sorted(path.stem for path in (REPOSITORY / "workflows").glob("*.json"))
SMALL = {
    **QUICK,
    "V3DPrepareImage": {"size": 64},
    "V3DSampleOrbit": {"steps": 2},
    "SV3D_Conditioning": {"width": 64, "height": 64},
}


@pytest.fixture(scope="module")
def all_models(object_info):
    """Schemas as they are where the models of every workflow have been downloaded."""
    schemas = json.loads(json.dumps(object_info))
    combo = schemas["ImageOnlyCheckpointLoader"]["input"]["required"]["ckpt_name"]
    combo[0].append("sv3d_u.safetensors")
    return schemas


def small_prompt(name, schemas):
    """The workflow at test size, its picture cut out by its own alpha: no BiRefNet here."""
    prompt = workflow_prompt(name, schemas, SMALL)
    del prompt[only(prompt, "LoadBackgroundRemovalModel")], prompt[only(prompt, "RemoveBackground")]
    prepare = prompt[only(prompt, "V3DPrepareImage")]
    prepare["inputs"]["mask"] = [only(prompt, "LoadImage"), 1]
    return prompt


def with_frames_of(prompt, kind, source, slots):
    """The prompt with `source` in the place of `kind`, whose output n is output slots[n] there."""
    number = only(prompt, kind)
    prompt[number] = source
    for entry in prompt.values():
        for name, value in entry["inputs"].items():
            if isinstance(value, list) and value[0] == number and entry is not source:
                entry["inputs"][name] = [number, slots[value[1]]]
    return prompt


def shown_by(prompt, run, source):
    """Pictures of the PreviewImage behind the node of class `source`."""
    (number,) = [
        n
        for n, entry in prompt.items()
        if entry["class_type"] == "PreviewImage"
        and entry["inputs"]["images"][0] == only(prompt, source)
    ]
    return run.outputs[number]["images"]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_link_joins_sockets_of_one_type(name, all_models):
    prompt = workflow_prompt(name, all_models, {})
    for entry in prompt.values():
        schema = all_models[entry["class_type"]]["input"]
        inputs = {**schema.get("required", {}), **schema.get("optional", {})}
        missing = [key for key in schema.get("required", {}) if key not in entry["inputs"]]
        assert missing == []
        for key, value in entry["inputs"].items():
            if isinstance(value, list):
                source = all_models[prompt[value[0]]["class_type"]]
                accepted = inputs[key][0].split(",")
                assert source["output"][value[1]] in accepted or "*" in accepted


@pytest.mark.parametrize("name", ["image_to_splat", "image_to_mesh", "sv3d_to_splat"])
def test_loaders_tell_the_front_end_where_their_files_come_from(name, object_info):
    workflow = json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text())
    loaders = [n for n in workflow["nodes"] if "Load" in n["type"]]
    loaders = [n for n in loaders if n["type"] != "LoadImage"]
    assert len(loaders) == 2
    for loader in loaders:
        models = loader["properties"]["models"]
        # the front end offers only files that a widget of the same node asks for
        assert {model["name"] for model in models} <= set(loader["widgets_values"])
        for model in models:
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith(f"/{model['name']}")
            assert model["name"].endswith((".ckpt", ".safetensors"))
            assert model["directory"] in ("checkpoints", "background_removal")
    (note,) = [n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote"]
    assert "licence" in note
    for loader in loaders:
        assert not [m["name"] for m in loader["properties"]["models"] if m["name"] not in note]


@pytest.mark.parametrize("name", ["image_to_splat", "image_to_mesh"])
def test_the_sampler_gives_18_pictures_and_says_why_noise_has_no_views(name, server, object_info):
    prompt = small_prompt(name, object_info)
    prompt[only(prompt, "V3DSampleOrbit")]["inputs"]["seed"] = len(name)  # nothing cached
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    assert len(shown_by(prompt, run, "V3DSampleOrbit")) == 18
    assert picture(server, shown_by(prompt, run, "V3DSampleOrbit")[0]).shape == (64, 64, 3)
    assert "V3D Sample Orbit: the frames have no views: " in run.error
    (prepared,) = shown_by(prompt, run, "V3DPrepareImage")
    corner, middle = picture(server, prepared)[0, 0], picture(server, prepared)[24:40, 24:40]
    assert corner == pytest.approx([1, 1, 1])
    assert middle.min() < 0.5
    assert run.previews  # of the orbit while it is sampled


def test_a_picture_becomes_a_splat_once_the_frames_are_an_orbit(server, object_info):
    demo = node("V3DLoadViews", folder=DEMO, split="train")
    prompt = small_prompt("image_to_splat", object_info)
    run = server.run(with_frames_of(prompt, "V3DSampleOrbit", demo, {0: 1, 1: 0}))
    assert run.ended == "execution_success", run.error
    assert run.error == ""
    shown = shown_by(prompt, run, "RenderSplat")
    assert len(shown) == 18
    for index in (0, 13):
        assert_shows_frame(picture(server, shown[index]), index)
    assert list((server.base / "output" / "3d").glob("V3D_splat*.ply"))


def test_a_picture_becomes_a_mesh_once_the_frames_are_an_orbit(server, object_info):
    demo = node("V3DLoadViews", folder=DEMO, split="train")
    prompt = small_prompt("image_to_mesh", object_info)
    run = server.run(with_frames_of(prompt, "V3DSampleOrbit", demo, {0: 1, 1: 0}))
    assert run.ended == "execution_success", run.error
    (shown,) = run.outputs[only(prompt, "V3DExportMesh")]["3d"]
    mesh = open_mesh(server.base / "output" / shown["subfolder"] / shown["filename"])
    assert mesh.volume > 0 and mesh.visual.material.baseColorTexture.size == (256, 256)
    assert_is_the_robot(np.asarray(mesh.vertices), display_colours(mesh, "glb"))


def test_frames_of_an_sv3d_orbit_become_a_splat(server, all_models):
    cameras_module = pack("v3d_core.cameras")
    cameras = cameras_module.orbit_cameras(cameras_module.SV3D_ORBIT, 96, 96)
    with torch.no_grad():
        frames = pack("v3d_core.splats.raster").render_splats(asymmetric_splats(), cameras)
    views = pack("v3d_core.structures").Views(frames.colours, frames.alphas, cameras)
    pack("v3d_core.formats.views").save_views(server.base / "input" / "sv3d_frames", views)
    source = node("V3DLoadViews", folder="sv3d_frames", split="train")
    prompt = with_frames_of(small_prompt("sv3d_to_splat", all_models), "VAEDecode", source, {0: 1})
    for kind in ("ImageOnlyCheckpointLoader", "SV3D_Conditioning", "KSampler"):
        del prompt[only(prompt, kind)]
    del prompt[only(prompt, "VideoTriangleCFGGuidance")]
    prompt[only(prompt, "RenderSplat")]["inputs"] |= {"width": 96, "height": 96}
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    shown = shown_by(prompt, run, "RenderSplat")
    assert len(shown) == 21
    for index in (0, 20):
        assert_shows(picture(server, shown[index]), frames.colours[index].double().numpy())


def test_a_weight_file_that_is_not_there_is_named_before_anything_runs(server, object_info):
    prompt = small_prompt("image_to_mesh", object_info)
    prompt[only(prompt, "V3DLoadModel")]["inputs"]["model_name"] = "nowhere.safetensors"
    prepared = only(prompt, "V3DPrepareImage")  # its preview could run without the model
    prompt = {n: e for n, e in prompt.items() if e["inputs"].get("images") != [prepared, 0]}
    run = server.run(prompt)
    assert run.ended == "rejected"
    assert "no file 'nowhere.safetensors' in models/checkpoints" in run.error
