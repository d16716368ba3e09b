"""The surface fit in a running ComfyUI: its workflow, preview, cancel, finish now, and files."""

import io
import json
import time

import numpy as np
import pytest
from PIL import Image
from prompts import DEMO, QUICK, QUICK_NEUS, assert_is_the_robot, node, only, workflow_prompt
from scenes import display_colours, open_mesh

EXTRACT = {"resolution": 64, "min_part": 0.02, "colours": True}


def fit_graph(**fit):
    """Demo frames to a mesh file; node 4 is the fit, node 5 its report."""
    widgets = {"seed": 0, "normals_convention": "opengl", **QUICK_NEUS, **fit}
    return {
        "1": node("V3DLoadViews", folder=DEMO, split="train"),
        "4": node("V3DFitNeuS", views=["1", 0], **widgets),
        "5": node("PreviewAny", source=["4", 1]),
        "6": node("V3DExtractMesh", sdf=["4", 0], **EXTRACT),
        "7": node("SaveGLB", mesh=["6", 0], filename_prefix="3d/neus_test"),
    }


def saved_mesh(server, run, number):
    (shown,) = run.outputs[number]["3d"]
    return open_mesh(server.base / "output" / shown["subfolder"] / shown["filename"])


def test_frames_to_neus_mesh_runs_from_a_fresh_install(server, object_info):
    prompt = workflow_prompt("frames_to_neus_mesh", object_info, QUICK)
    prompt[only(prompt, "V3DFitNeuS")]["inputs"]["steps"] = 200  # enough for the colours
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    mesh = saved_mesh(server, run, only(prompt, "V3DExportMesh"))
    assert mesh.visual.material.baseColorTexture.size == (256, 256) and mesh.volume > 0
    assert_is_the_robot(np.asarray(mesh.vertices), display_colours(mesh, "glb"))
    report, textured = (
        json.loads(
            next(
                run.outputs[n]["text"][0]
                for n, entry in prompt.items()
                if entry["class_type"] == "PreviewAny"
                and entry["inputs"]["source"][0] == only(prompt, source)
            )
        )
        for source in ("V3DFitNeuS", "V3DRefineTexture")
    )
    assert report["steps"] == 200 and report["frames"] == "agree"
    assert textured["texture"]["views"] == 18
    assert run.previews
    preview = np.asarray(Image.open(io.BytesIO(run.previews[-1])).convert("RGB"), np.float64)
    assert preview.std() > 10
    assert any("s left" in text for text in run.texts)
    (name,) = run.outputs[only(prompt, "V3DSaveSDF")]["text"]
    extracted = only(prompt, "V3DExtractMesh")
    load = {
        **prompt,  # the fit is not run again
        "91": node("V3DLoadSDF", file=name),
        "92": node("V3DExtractMesh", sdf=["91", 0], **EXTRACT),
        "93": node("SaveGLB", mesh=["92", 0], filename_prefix="3d/neus_again"),
        "94": node("SaveGLB", mesh=[extracted, 0], filename_prefix="3d/neus_first"),
    }
    again = server.run(load)
    assert again.ended == "execution_success", again.error
    first, reloaded = saved_mesh(server, again, "94"), saved_mesh(server, again, "93")
    assert first.is_watertight and first.is_winding_consistent and first.volume > 0
    assert np.array_equal(reloaded.vertices, first.vertices)
    assert np.array_equal(reloaded.faces, first.faces)


def test_another_resolution_does_not_fit_again(server):
    first = server.run(fit_graph(seed=6))
    assert first.ended == "execution_success", first.error
    graph = fit_graph(seed=6)
    graph["6"]["inputs"]["resolution"] = 96
    second = server.run(graph)
    assert second.ended == "execution_success", second.error
    ran = {d["node"] for _, kind, d in second.events if kind == "progress"}
    assert "6" in ran and "4" not in ran
    assert len(saved_mesh(server, second, "7").faces) > len(saved_mesh(server, first, "7").faces)


@pytest.mark.parametrize("frames", ["agree", "disagree"])
def test_cancel_stops_a_fit_within_a_second(frames, server):
    started = []

    def well_under_way(kind, data):
        if kind != "progress" or data.get("node") != "4":
            return False
        started.append(time.monotonic())
        # while aligning, steps stay at 0
        return data["value"] >= 3 or (frames == "disagree" and len(started) > 3)

    graph = fit_graph(steps=100_000, resolution=0, frames=frames, seed=21)
    run = server.run(graph, interrupt_when=well_under_way)
    assert run.ended == "execution_interrupted", run.error
    assert run.seconds_to_stop() < 1.0


def test_cancel_stops_an_extraction_within_a_second(server):
    graph = fit_graph(seed=6)
    graph["6"]["inputs"]["resolution"] = 512
    run = server.run(
        graph, interrupt_when=lambda kind, d: kind == "progress" and d.get("node") == "6"
    )
    assert run.ended == "execution_interrupted", run.error
    assert run.seconds_to_stop() < 1.0


def test_finish_now_keeps_the_surface_and_the_graph_goes_on(server):
    pressed = []

    def press(kind, data):
        if kind == "progress" and data["node"] == "4" and data["value"] >= 10 and not pressed:
            body = {"prompt_id": data["prompt_id"], "node_id": "4"}
            pressed.append((time.monotonic(), server.post("/v3d/finish", body)))

    run = server.run(fit_graph(steps=100_000, seed=31), on_event=press)
    assert run.ended == "execution_success", run.error
    assert pressed[0][1] == (200, {})
    assert json.loads(run.outputs["5"]["text"][0])["stopped"] == "finish now"
    assert saved_mesh(server, run, "7").is_watertight
