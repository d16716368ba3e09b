"""The workflows in workflows/: their form, and those from one picture run without real weights."""

import json

import graph_layout
import make_workflows
import numpy as np
import pytest
import torch
import workflow_graphs
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
from ui_to_api import to_prompt

WORKFLOWS = sorted(path.stem for path in (REPOSITORY / "workflows").glob("*.json"))
V3D_FILES = ["V3D.ckpt", "svd_xt.safetensors"]
SV3D_FILES = ["sv3d_u.safetensors", "sv3d_p.safetensors"]
ONE_CHOICE = {  # from nano to one of these
    "image_to_splat": V3D_FILES,
    "image_to_mesh": V3D_FILES,
    "image_to_orbit_ksampler": V3D_FILES,
    "sv3d_to_splat": SV3D_FILES,
}
SMALL = {
    **QUICK,
    "V3DPrepareImage": {"size": 64},
    "V3DSampleOrbit": {"steps": 2},
}


def small_prompt(name, schemas, file=0):
    """The workflow at test size with a real model chosen, which is all that its note asks for."""
    prompt = workflow_prompt(name, schemas, SMALL)
    prompt[only(prompt, "V3DLoadModel")]["inputs"]["model_name"] = ONE_CHOICE[name][file]
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
def test_every_link_joins_sockets_of_one_type(name, object_info):
    prompt = workflow_prompt(name, object_info, {})
    for entry in prompt.values():
        schema = object_info[entry["class_type"]]["input"]
        inputs = {**schema.get("required", {}), **schema.get("optional", {})}
        missing = [key for key in schema.get("required", {}) if key not in entry["inputs"]]
        assert missing == []
        for key, value in entry["inputs"].items():
            if isinstance(value, list):
                source = object_info[prompt[value[0]]["class_type"]]
                accepted = inputs[key][0].split(",")
                assert source["output"][value[1]] in accepted or "*" in accepted


def read(name):
    return json.loads((REPOSITORY / "workflows" / f"{name}.json").read_text())


def test_every_node_of_the_pack_stands_in_a_workflow(object_info):
    ours = {name for name, info in object_info.items() if info["category"] == "3d/V3D"}
    used = {entry["type"] for name in WORKFLOWS for entry in read(name)["nodes"]}
    assert len(ours) > 15
    assert ours - used == set()


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_file_is_what_its_graph_gives_with_these_nodes(name, object_info):
    template = workflow_graphs.TEMPLATES[name]
    assert read(name) == make_workflows.make_workflow(template, object_info)
    assert set(workflow_graphs.TEMPLATES) == set(WORKFLOWS)


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_layout_has_no_more_crossings_than_it_must_and_room_for_panels(name):
    workflow, template = read(name), workflow_graphs.TEMPLATES[name]
    nodes = {entry["id"]: entry for entry in workflow["nodes"]}
    links = workflow["links"]
    assert len(graph_layout.crossings(nodes, links)) == template.crossings <= 4
    assert len(graph_layout.hidden(nodes, links)) == template.behind <= 1
    assert graph_layout.overlaps(nodes) == []  # with what a run adds
    grouped = [number for _, _, numbers in template.groups for number in numbers]
    assert sorted(grouped) == sorted(template.graph)
    boxes = [group["bounding"] for group in workflow["groups"]]
    for group, (_, _, numbers) in zip(boxes, template.groups, strict=True):
        x, y, width, height = group
        for number in numbers:
            left, top, right, bottom = graph_layout.box(nodes[number])
            assert x < left and y < top and right < x + width and bottom < y + height
    for index, (x, y, width, height) in enumerate(boxes):
        for u, v, across, down in boxes[:index]:
            assert x >= u + across or u >= x + width or y >= v + down or v >= y + height
    assert len({group["color"] for group in workflow["groups"]}) >= 3


@pytest.mark.parametrize("name", WORKFLOWS)
def test_nothing_has_to_be_uploaded_first(name):
    """Pictures come from the demo; the picture a user is to give leads nowhere yet."""
    workflow = read(name)
    for entry in workflow["nodes"]:
        if entry["type"] == "LoadImage":
            assert entry["widgets_values"][0] == ""
            assert entry["mode"] == workflow_graphs.OFF  # core would warn of its missing picture
            assert not any(output["links"] for output in entry["outputs"])
        if entry["type"] == "V3DLoadViews":
            nano = name in (*ONE_CHOICE, "try_it_now")
            shipped = workflow_graphs.DEMO_PICTURE if nano else DEMO
            assert entry["widgets_values"][0] == shipped


@pytest.mark.parametrize("name", ONE_CHOICE)
def test_nothing_has_to_be_downloaded_before_the_model_is_chosen(name, object_info):
    """What asks for a file is switched off, and nothing of it is left in the prompt."""
    workflow = read(name)
    off = {entry["type"] for entry in workflow["nodes"] if entry["mode"] != 0}
    assert off == {"LoadBackgroundRemovalModel", "RemoveBackground", "LoadImage"}
    assert {entry["mode"] for entry in workflow["nodes"]} == {0, 2}
    prompt = workflow_prompt(name, object_info, {})
    values = [value for entry in prompt.values() for value in entry["inputs"].values()]
    assert not [value for value in values if str(value).endswith((".ckpt", ".safetensors"))]
    assert not off & {entry["class_type"] for entry in prompt.values()}
    assert {value[0] for value in values if isinstance(value, list)} <= prompt.keys()
    assert "mask" not in prompt[only(prompt, "V3DPrepareImage")]["inputs"]
    loader = prompt[only(prompt, "V3DLoadModel")]["inputs"]
    assert loader == {
        "model_name": "V3D-nano (bundled)",
        "clip_vision_name": "auto",
        "vae_name": "auto",
    }


@pytest.mark.parametrize("name", ONE_CHOICE)
def test_switched_on_the_two_nodes_cut_a_photo_out(name, object_info):
    workflow = read(name)
    for entry in workflow["nodes"]:
        entry["mode"] = 0
    schemas = json.loads(json.dumps(object_info))
    file = schemas["LoadBackgroundRemovalModel"]["input"]["required"]["bg_removal_name"]
    (file[1]["options"] if file[0] == "COMBO" else file[0]).append("birefnet.safetensors")
    prompt = to_prompt(workflow, schemas)
    cut, prepared = only(prompt, "RemoveBackground"), only(prompt, "V3DPrepareImage")
    assert prompt[prepared]["inputs"]["mask"] == [cut, 0]
    assert prompt[cut]["inputs"]["bg_removal_model"][0] in prompt
    assert prompt[cut]["inputs"]["image"] == prompt[prepared]["inputs"]["image"]


@pytest.mark.parametrize("name", ["image_to_splat", "image_to_mesh", "sv3d_to_splat"])
def test_the_sampler_takes_the_numbers_of_whichever_model_is_chosen(name, object_info):
    prompt = workflow_prompt(name, object_info, {})
    inputs = prompt[only(prompt, "V3DSampleOrbit")]["inputs"]
    assert (inputs["steps"], inputs["scale"], inputs["frames"]) == (0, 0, 0)
    assert (inputs["guidance"], inputs["cond_aug"]) == ("auto", -1)
    sizes = {"sv3d_to_splat": 576}
    assert prompt[only(prompt, "V3DPrepareImage")]["inputs"]["size"] == sizes.get(name, 512)


def test_cores_sampler_has_the_numbers_of_nano_and_the_note_those_of_v3d(object_info):
    prompt = workflow_prompt("image_to_orbit_ksampler", object_info, {})
    inputs = prompt[only(prompt, "KSampler")]["inputs"]
    bundled = pack("v3d_core.diffusion.bundled")
    nano = bundled.trained_for(bundled.nano_file())
    assert (inputs["steps"], inputs["cfg"]) == bundled.chosen_numbers(nano, None, None)[:2]
    assert (inputs["sampler_name"], inputs["scheduler"]) == ("euler", "karras")
    steps, scale, _ = bundled.chosen_numbers(None, None, None)
    assert f"{steps} steps and cfg {scale:g}" in note_of(read("image_to_orbit_ksampler"))


def note_of(workflow):
    (note,) = [n["widgets_values"][0] for n in workflow["nodes"] if n["type"] == "MarkdownNote"]
    return note


@pytest.mark.parametrize("name", ONE_CHOICE)
def test_the_note_says_what_nano_is_and_which_choice_to_make(name):
    note = note_of(read(name))
    assert "**V3D-nano is a demonstration**" in note
    files = "`sv3d_u` or `sv3d_p`" if name == "sv3d_to_splat" else "`V3D.ckpt`"
    assert f"**For real pictures choose {files} in *V3D Load Model***" in note


@pytest.mark.parametrize("name", ONE_CHOICE)
def test_loaders_tell_the_front_end_where_their_files_come_from(name, object_info):
    workflow = read(name)
    loaders = [n for n in workflow["nodes"] if "Load" in n["type"]]
    loaders = [n for n in loaders if n["type"] not in ("LoadImage", "V3DLoadViews")]
    assert len(loaders) == 2
    for loader in loaders:
        models = loader["properties"]["models"]
        # the front end offers only files that a widget of the same node asks for
        names, asked = [model["name"] for model in models], set(loader["widgets_values"])
        if loader["type"] == "V3DLoadModel":
            assert names == ONE_CHOICE[name] and not asked & set(names)  # for later: it has nano
        else:
            assert set(names) <= asked
        for model in models:
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith(f"/{model['name']}")
            assert model["name"].endswith((".ckpt", ".safetensors"))
            assert model["directory"] in ("checkpoints", "background_removal")
    note = note_of(workflow)
    assert "licence" in note
    for loader in loaders:
        assert not [m["name"] for m in loader["properties"]["models"] if m["name"] not in note]


@pytest.mark.parametrize(
    ("name", "file", "frames"),
    [
        ("image_to_splat", 0, 18),
        ("image_to_mesh", 0, 18),
        ("sv3d_to_splat", 0, 21),
        ("sv3d_to_splat", 1, 21),
    ],
)
def test_the_sampler_gives_an_orbit_and_says_why_noise_has_no_views(
    name, file, frames, server, object_info
):
    prompt = small_prompt(name, object_info, file)
    orbit = only(prompt, "V3DSampleOrbit")
    prompt[orbit]["inputs"]["seed"] = len(name)  # nothing cached
    prompt["orbit"] = node("PreviewImage", images=[orbit, 0])
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    assert len(run.outputs["orbit"]["images"]) == frames
    assert picture(server, run.outputs["orbit"]["images"][0]).shape == (64, 64, 3)
    assert "V3D Sample Orbit: the frames have no views: " in run.error
    (prepared,) = shown_by(prompt, run, "V3DPrepareImage")
    corner, middle = picture(server, prepared)[0, 0], picture(server, prepared)[24:40, 24:40]
    assert corner == pytest.approx([1, 1, 1])
    assert middle.min() < 0.5
    assert run.previews  # of the orbit while it is sampled
    if frames == 21:  # SV3D's last frame is the picture itself
        last = picture(server, run.outputs["orbit"]["images"][-1])
        assert np.array_equal(last, picture(server, prepared))


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


def test_an_orbit_by_ksampler_is_saved_as_views(server, object_info):
    demo = node("V3DLoadViews", folder=DEMO, split="train")
    prompt = with_frames_of(
        small_prompt("image_to_orbit_ksampler", object_info), "VAEDecode", demo, {0: 1}
    )
    for kind in ("V3DLoadModel", "V3DConditioning", "KSampler"):
        del prompt[only(prompt, kind)]
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    (name,) = run.outputs[only(prompt, "V3DSaveViews")]["text"]
    folder = server.base / "output" / name.removesuffix(" [output]")
    views = pack("v3d_core.formats.views").load_views(folder).views
    expected = pack("v3d_core.cameras")
    orbit = expected.orbit_cameras(expected.V3D_ORBIT, 512, 512)
    assert len(views) == 18
    assert torch.allclose(views.cameras.camera_to_world, orbit.camera_to_world, atol=1e-5)


def test_core_s_mesh_and_ours_stand_side_by_side(server, object_info):
    prompt = workflow_prompt("splat_to_mesh_compare", object_info, QUICK | {"V3DCleanMesh": {}})
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    reports, files = {}, {}
    for number, entry in prompt.items():
        inputs = entry["inputs"]
        if entry["class_type"] == "PreviewAny":
            cleaned = prompt[inputs["source"][0]]["inputs"]["mesh"][0]
            reports[prompt[cleaned]["class_type"]] = json.loads(run.outputs[number]["text"][0])
        if entry["class_type"] == "SaveGLB":
            (shown,) = run.outputs[number]["3d"]
            path = server.base / "output" / shown["subfolder"] / shown["filename"]
            files[prompt[inputs["mesh"][0]]["class_type"]] = open_mesh(path)
    assert set(reports) == set(files) == {"SplatToMesh", "V3DMeshFromSplat"}
    for kind, mesh in files.items():
        assert len(mesh.faces) == reports[kind]["faces_before"] > 1000
        assert_is_the_robot(np.asarray(mesh.vertices), display_colours(mesh, "glb"))
    assert reports["V3DMeshFromSplat"]["watertight_before"]


def test_sv3ds_picture_becomes_a_splat_once_the_frames_are_its_orbit(server, object_info):
    cameras_module = pack("v3d_core.cameras")
    cameras = cameras_module.orbit_cameras(cameras_module.SV3D_ORBIT, 96, 96)
    with torch.no_grad():
        frames = pack("v3d_core.splats.raster").render_splats(asymmetric_splats(), cameras)
    views = pack("v3d_core.structures").Views(frames.colours, frames.alphas, cameras)
    pack("v3d_core.formats.views").save_views(server.base / "input" / "sv3d_frames", views)
    source = node("V3DLoadViews", folder="sv3d_frames", split="train")
    prompt = small_prompt("sv3d_to_splat", object_info)
    prompt = with_frames_of(prompt, "V3DSampleOrbit", source, {0: 1, 1: 0})
    prompt[only(prompt, "RenderSplat")]["inputs"] |= {"width": 96, "height": 96, "frames": 21}
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
