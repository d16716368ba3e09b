"""The pack in a running ComfyUI: nodes, help pages, workflows, chains with core, progress, cancel."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from prompts import (
    DEMO,
    QUICK,
    QUICK_FIT,
    assert_is_the_robot,
    assert_shows_frame,
    demo_frame,
    node,
    only,
    picture,
    psnr,
    workflow_prompt,
)
from scenes import display_colours, open_mesh, pack

NODES = (
    "V3DPrepareImage",
    "V3DLoadModel",
    "V3DConditioning",
    "V3DSampleOrbit",
    "V3DLoadViews",
    "V3DOrbitCameras",
    "V3DPosedViews",
    "V3DFitSplat",
    "V3DRenderSplat",
    "V3DScoreViews",
    "V3DMeshFromSplat",
    "V3DFitNeuS",
    "V3DExtractMesh",
    "V3DSaveSDF",
    "V3DLoadSDF",
    "V3DCleanMesh",
    "V3DRefineTexture",
    "V3DExportMesh",
    "V3DSaveViews",
    "V3DEnvironment",
)
WORKFLOWS = (
    "evaluate_orbit",
    "frames_to_mesh",
    "frames_to_neus_mesh",
    "frames_to_splat",
    "image_to_mesh",
    "image_to_orbit_ksampler",
    "image_to_splat",
    "splat_to_mesh_compare",
    "sv3d_to_splat",
    "texture_any_mesh",
    "try_it_now",
)


def fit_graph(**fit):
    """Demo frames to a splat; node 4 is the fit."""
    widgets = {"seed": 0, "views_per_step": 0, "sh_degree": -1, **QUICK_FIT, **fit}
    return {
        "1": node("V3DLoadViews", folder=DEMO, split="train"),
        "2": node("V3DOrbitCameras", orbit="v3d", frame=0, width=512, height=512),
        "3": node(
            "V3DPosedViews", images=["1", 1], masks=["1", 2], cameras=["2", 0], mask_is="auto"
        ),
        "4": node("V3DFitSplat", views=["3", 0], **widgets),
    }


def render(splat, camera, frames=1, size=256):
    return node(
        "RenderSplat",
        splat=splat,
        camera_info=camera,
        width=size,
        height=size,
        frames=frames,
        splat_scale=1.0,
        sharpen=1.0,
        headlight_shading=0.0,
        opacity_threshold=0.0,
        render_style="color",
        background="#ffffff",
    )


def test_the_log_has_no_failed_import_and_no_traceback(server, object_info):
    del object_info
    assert "IMPORT FAILED" not in server.start_log
    assert "Traceback" not in server.start_log
    assert "ComfyUI-V3D" in server.start_log


@pytest.mark.parametrize("name", NODES)
def test_node_is_registered_with_tooltips_a_help_page_and_few_widgets(name, server, object_info):
    info = object_info[name]
    assert info["category"] == "3d/V3D"
    assert info["display_name"].startswith("V3D ")
    assert info["description"]
    assert len(info["search_aliases"]) >= 3
    inputs = {**info["input"].get("required", {}), **info["input"].get("optional", {})}
    options = {key: spec[1] for key, spec in inputs.items()}
    below = [
        {f"{choice['key']}.{key}": spec[1] for key, spec in choice["inputs"]["required"].items()}
        for option in options.values()
        for choice in option.get("options", [])
        if isinstance(choice, dict) and choice["inputs"]
    ]
    for choice in below or [{}]:  # one choice of a dynamic combo is seen at a time
        seen = options | choice
        assert not [key for key, option in seen.items() if len(option.get("tooltip", "")) < 10]
        visible = [k for k, o in seen.items() if ("default" in o or "options" in o)]
        assert len([k for k in visible if not seen[k].get("advanced")]) <= 6
    assert all(len(tooltip or "") > 5 for tooltip in info["output_tooltips"])
    page = server.get(f"/extensions/ComfyUI-V3D/docs/{name}.md").decode()
    assert page.startswith(f"# {info['display_name']}\n")
    missing = [key for key in inputs if key not in page]
    assert not missing, f"{name}.md says nothing about {missing}"


def test_workflows_and_thumbnails_are_offered_as_templates(server):
    assert sorted(server.get_json("/workflow_templates")["ComfyUI-V3D"]) == sorted(WORKFLOWS)
    for name in WORKFLOWS:
        data = server.get(f"/api/workflow_templates/ComfyUI-V3D/{name}.jpg")
        thumbnail = np.asarray(Image.open(io.BytesIO(data)))
        assert thumbnail.std() > 10


def test_frames_to_splat_runs_from_a_fresh_install(server, object_info):
    prompt = workflow_prompt("frames_to_splat", object_info, QUICK)
    fit = only(prompt, "V3DFitSplat")
    prompt["report"] = node("PreviewAny", source=[fit, 1])
    folder = server.base / "output" / "3d"
    others = set(folder.glob("V3D_splat*.ply"))  # of other tests on this server
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    rendering = prompt[only(prompt, "RenderSplat")]["inputs"]
    assert rendering["frames"] == 18
    shown = next(
        run.outputs[number]["images"]
        for number, entry in prompt.items()
        if entry["class_type"] == "PreviewImage"
        and entry["inputs"]["images"][0] == only(prompt, "RenderSplat")
    )
    assert len(shown) == 18
    for index in (0, 4, 13):
        assert_shows_frame(picture(server, shown[index]), index)
    report = json.loads(run.outputs["report"]["text"][0])
    (ply,) = set(folder.glob("V3D_splat*.ply")) - others
    splats = pack("v3d_core.formats.ply").read_splat_ply(ply)
    assert len(splats) == report["splats"]
    cameras_module = pack("v3d_core.cameras")
    cameras = cameras_module.orbit_cameras(cameras_module.V3D_ORBIT, 256, 256)[2]
    with torch.no_grad():
        again = pack("v3d_core.splats.raster").render_splats(splats, cameras)
    assert_shows_frame(again.colours[0].double().numpy(), 2)


@pytest.mark.parametrize("name", ["frames_to_mesh", "texture_any_mesh"])
def test_mesh_workflows_run_from_a_fresh_install(name, server, object_info):
    prompt = workflow_prompt(name, object_info, QUICK)
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    (shown,) = run.outputs[only(prompt, "V3DExportMesh")]["3d"]
    path = server.base / "output" / shown["subfolder"] / shown["filename"]
    mesh = open_mesh(path)
    assert path.suffix == ".glb" and b"KHR_materials_unlit" in path.read_bytes()
    assert 1000 < len(mesh.faces) < 4500 and mesh.volume > 0  # fewer would tear core's mesh
    assert mesh.visual.material.baseColorTexture.size == (256, 256)
    assert_is_the_robot(np.asarray(mesh.vertices), display_colours(mesh, "glb"))
    report = json.loads(run.outputs[only(prompt, "PreviewAny")]["text"][0])
    assert report["texture"]["views"] == 18 and report["texture"]["db"] > 20
    (texture,) = next(
        run.outputs[n]["images"]
        for n, entry in prompt.items()
        if entry["class_type"] == "PreviewImage"
        and entry["inputs"]["images"][0] == only(prompt, "V3DRefineTexture")
    )
    assert picture(server, texture).shape == (256, 256, 3)
    (viewed, *_) = run.outputs[only(prompt, "Preview3D")]["result"]
    assert (server.base / "output" / viewed).read_bytes() == path.read_bytes()


def test_evaluate_orbit_runs_from_a_fresh_install(server, object_info):
    prompt = workflow_prompt("evaluate_orbit", object_info, QUICK)
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    texts = [
        run.outputs[n]["text"][0] for n, e in prompt.items() if e["class_type"] == "PreviewAny"
    ]
    fit, scores = sorted(map(json.loads, texts), key=lambda report: "per_view" in report)
    assert len(scores["per_view"]) == 6
    assert 18 < scores["psnr_object"] < scores["psnr"] < fit["psnr_train"] + 3
    shown = run.outputs[only(prompt, "PreviewImage")]["images"]
    assert picture(server, shown[0]).shape == (256, 3 * 256, 3)
    (environment,) = run.outputs[only(prompt, "V3DEnvironment")]["text"]
    assert fit["engine"] in environment


def test_core_nodes_take_the_splat_and_its_file_and_show_the_same_picture(server):
    viewport = {"viewport_state": "", "width": 256, "height": 256}
    prompt = {
        **fit_graph(),
        "5": node("SplatToFile3D", splat=["4", 0], format="ply"),
        "6": node("File3DToSplat", model_3d=["5", 0]),
        "7": render(["4", 0], ["2", 1]),
        "8": render(["6", 0], ["2", 1]),
        "9": node("PreviewImage", images=["7", 0]),
        "10": node("PreviewImage", images=["8", 0]),
        "11": node("PreviewGaussianSplat", model_3d=["5", 0], camera_info=["2", 1], **viewport),
        "12": node("SaveGaussianSplat", model_3d=["5", 0], filename_prefix="3d/chain", **viewport),
    }
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    direct = picture(server, run.outputs["9"]["images"][0])
    reopened = picture(server, run.outputs["10"]["images"][0])
    assert_shows_frame(direct, 0)
    assert psnr(direct, reopened) > 45
    assert (server.base / "output" / "3d" / "chain_00001.ply").is_file()


def test_pictures_and_text_of_the_running_fit_arrive(server):
    run = server.run(fit_graph(seed=11) | {"5": node("PreviewAny", source=["4", 1])})
    assert run.ended == "execution_success", run.error
    assert run.previews
    preview = np.asarray(Image.open(io.BytesIO(run.previews[-1])).convert("RGB"), np.float64) / 255
    size = (preview.shape[1], preview.shape[0])
    small = Image.fromarray((demo_frame(0) * 255).astype(np.uint8)).resize(size, Image.BOX)
    assert psnr(preview, np.asarray(small, np.float64) / 255) > 18
    assert any("splats" in text and "s left" in text for text in run.texts)
    steps = [d["value"] for _, kind, d in run.events if kind == "progress" and d["node"] == "4"]
    assert steps == sorted(steps)
    assert steps[-1] == QUICK_FIT["steps"]


@pytest.mark.parametrize("preset", ["draft", "best"])
def test_cancel_stops_a_fit_within_a_second(preset, server):
    def well_under_way(kind, data):
        return kind == "progress" and data.get("node") == "4" and data["value"] >= 3

    whole = {"preset": preset, "resolution": 0, "max_splats": 0, "steps": 100_000, "seed": 21}
    graph = fit_graph(**whole) | {"5": node("PreviewAny", source=["4", 1])}
    run = server.run(graph, interrupt_when=well_under_way)
    assert run.ended == "execution_interrupted", run.error
    assert run.seconds_to_stop() < 1.0
    after = server.run({"1": graph["1"], "2": node("PreviewImage", images=["1", 1])})
    assert after.ended == "execution_success", after.error


def test_two_images_for_18_cameras_end_with_both_numbers(server):
    graph = fit_graph()
    graph["9"] = node("ImageFromBatch", image=["1", 1], batch_index=0, length=2)
    graph["3"]["inputs"] |= {"images": ["9", 0]}
    run = server.run(graph | {"5": node("PreviewAny", source=["4", 1])})
    assert run.ended == "execution_error"
    assert run.error.startswith("V3D Posed Views: 2 images but 18 cameras"), run.error


@pytest.mark.parametrize("folder", ["../..", "/etc", "no such folder", "..", "../.. [output]"])
def test_folders_outside_the_hosts_are_refused_before_anything_runs(folder, server):
    graph = {"1": node("V3DLoadViews", folder=folder, split="train")}
    run = server.run(graph | {"2": node("PreviewImage", images=["1", 1])})
    assert run.ended == "rejected"
    assert "folder" in run.error


def test_saved_views_appear_in_load_views_and_are_the_same(server, object_info):
    del object_info
    save = {
        "1": node("V3DLoadViews", folder=DEMO, split="test"),
        "2": node("V3DSaveViews", views=["1", 0], filename_prefix="v3d/again", colmap=True),
        "3": node("PreviewImage", images=["1", 1]),
    }
    run = server.run(save)
    assert run.ended == "execution_success", run.error
    (name,) = run.outputs["2"]["text"]
    assert name == "v3d/again_00001_ [output]"
    folder = server.base / "output" / "v3d" / "again_00001_"
    assert len(list(folder.glob("*.png"))) == 6
    assert (folder / "sparse" / "0" / "cameras.txt").is_file()
    choices = server.get_json("/object_info/V3DLoadViews")["V3DLoadViews"]["input"]["required"]
    assert name in choices["folder"][1]["options"]
    load = {
        "1": node("V3DLoadViews", folder=name, split="train"),
        "2": node("PreviewImage", images=["1", 1]),
    }
    back = server.run(load)
    assert back.ended == "execution_success", back.error
    pairs = zip(run.outputs["3"]["images"], back.outputs["2"]["images"], strict=True)
    for ours, theirs in pairs:
        assert np.abs(picture(server, ours) - picture(server, theirs)).max() <= 1 / 255 + 1e-9


def test_custom_orbit_and_a_start_camera_work_through_the_dynamic_combo(server):
    mode = {"mode": "orbit", "mode.yaw": 0.0, "mode.pitch": 0.0, "mode.distance": 2.0}
    target = {f"target_{axis}": 0.0 for axis in "xyz"}
    custom = {"views": 18, "radius": 5.0, "elevation": 30.0, "fov": 20.0, "azimuth": 90.0}
    custom["direction"] = "counter-clockwise"
    widgets = {f"orbit.{name}": value for name, value in custom.items()}
    graph = fit_graph(steps=40)
    graph["8"] = node(
        "CreateCameraInfo",
        **mode,
        **target,
        roll=0.0,
        fov=60.0,
        zoom=1.0,
        camera_type="perspective",
    )
    graph["2"]["inputs"] |= {"orbit": "custom", "start_camera": ["8", 0], **widgets}
    graph |= {"6": render(["4", 0], ["2", 1]), "7": node("PreviewImage", images=["6", 0])}
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    assert_shows_frame(picture(server, run.outputs["7"]["images"][0]), 0)
