"""Finish now, Render Splat and Score Views in a running ComfyUI."""

import json
import re
import time

import numpy as np
import pytest
from prompts import DEMO, QUICK_FIT, assert_shows_frame, node, picture

ENDLESS = {**QUICK_FIT, "steps": 100_000}


def fit_graph(prefix="", **fit):
    """Demo frames to a splat; node 4 is the fit, node 5 shows its report, node 6 its size."""
    widgets = {"seed": 0, "views_per_step": 0, "sh_degree": -1, **QUICK_FIT, **fit}
    graph = {
        "1": node("V3DLoadViews", folder=DEMO, split="train"),
        "4": node("V3DFitSplat", views=["1", 0], **widgets),
        "5": node("PreviewAny", source=["4", 1]),
        "6": node("GetSplatCount", splat=["4", 0]),
        "7": node("PreviewAny", source=["6", 1]),
    }
    for entry in graph.values():
        for name, value in entry["inputs"].items():
            if isinstance(value, list):
                entry["inputs"][name] = [prefix + value[0], value[1]]
    return {prefix + number: entry for number, entry in graph.items()}


class Press:
    """Presses Finish now once a fit has made some steps, and keeps what the server said."""

    def __init__(self, server, fit_node, *, also=()):
        self.server, self.fit_node, self.also = server, fit_node, also
        self.prompt_id, self.pressed_at = "", 0.0
        self.answers = []

    def __call__(self, kind, data):
        if self.pressed_at or kind != "progress" or data["node"] != self.fit_node:
            return
        if data["value"] < 20:
            return
        self.prompt_id = data["prompt_id"]
        for body in (*self.also, {}):
            body = {"prompt_id": self.prompt_id, "node_id": self.fit_node, **body}
            self.answers.append(self.server.post("/v3d/finish", body))
        self.pressed_at = time.monotonic()


@pytest.mark.parametrize("prefix", ["", "12:", "12:3:"], ids=["root", "subgraph", "nested"])
def test_finish_now_ends_the_fit_within_a_second_and_keeps_its_splat(prefix, server):
    press = Press(server, f"{prefix}4")
    run = server.run(fit_graph(prefix, **ENDLESS, seed=len(prefix) + 40), on_event=press)
    assert run.ended == "execution_success", run.error
    assert press.answers == [(200, {})]
    assert run.events[-1][0] - press.pressed_at < 2.0
    report = json.loads(run.outputs[f"{prefix}5"]["text"][0])
    assert report["stopped"] == "finish now"
    assert report["psnr_train"] > 10
    assert run.outputs[f"{prefix}7"]["text"] == [str(report["splats"])]
    assert report["splats"] > 500
    # nodes of subgraphs have a channel of their own, see `runtime.show_text`
    own = [data["text"] for _, kind, data in run.events if kind == "v3d.text"]
    shown = own if prefix else run.texts
    assert any("dB" in text and "stopped: finish now" in text for text in shown)
    status, answer = server.post("/v3d/finish", {"prompt_id": press.prompt_id, "node_id": "4"})
    assert status == 404 and "runs no fit" in answer["error"]


def test_only_the_running_node_of_the_running_prompt_can_be_finished(server):
    foreign = [{"prompt_id": "somebody else's"}, {"node_id": "1"}]
    press = Press(server, "4", also=foreign)
    run = server.run(fit_graph(steps=120, seed=77), on_event=press)
    assert [status for status, _ in press.answers] == [404, 404, 200]
    assert json.loads(run.outputs["5"]["text"][0])["stopped"] == "finish now"


@pytest.mark.parametrize("body", [{}, {"node_id": "4"}, [], "finish"])
def test_a_request_that_names_no_fit_is_told_what_to_send(body, server):
    status, answer = server.post("/v3d/finish", body)
    assert status == 400 and "node_id" in answer["error"]


def test_a_cancelled_fit_cannot_be_finished_afterwards(server):
    seen = []

    def under_way(kind, data):
        seen.extend([data["prompt_id"]] if kind == "progress" and data["node"] == "4" else [])
        return bool(seen)

    run = server.run(fit_graph(**ENDLESS, seed=78), interrupt_when=under_way)
    assert run.ended == "execution_interrupted"
    assert server.post("/v3d/finish", {"prompt_id": seen[0], "node_id": "4"})[0] == 404


def test_the_front_end_gets_the_button_for_the_fits_and_the_route(server, object_info):
    assert "/extensions/ComfyUI-V3D/fit_panel.js" in server.get_json("/extensions")
    script = server.get("/extensions/ComfyUI-V3D/fit_panel.js").decode()
    (table,) = re.findall(r"PSNR = \{(.*?)\n\};", script, re.DOTALL)
    fits = re.findall(r"^  (\w+): \(psnr\)", table, re.MULTILINE)
    assert fits == ["V3DFitSplat", "V3DFitNeuS"] and set(fits) <= set(object_info)
    assert "summary: this.node.constructor.title," in script  # the front end's own name of it
    (route,) = re.findall(r'fetchApi\("([^"]+)"', script)
    assert server.post(f"/api{route}", {})[0] == 400  # as the front end asks for it


def test_prompts_saved_before_the_new_inputs_still_run(server, object_info):
    old = {"views", "preset", "seed", "resolution", "max_splats", "steps", "views_per_step"}
    assert set(object_info["V3DFitSplat"]["input"]["required"]) == {*old, "sh_degree"}
    assert object_info["V3DFitSplat"]["output"][:2] == ["SPLAT", "STRING"]


def test_held_out_views_are_rendered_and_scored_as_the_fit_scored_them(server):
    graph = fit_graph(hold_out=6, seed=3) | {
        "8": node("V3DLoadViews", folder=DEMO, split="test"),
        "9": node(
            "V3DRenderSplat",
            splat=["4", 0],
            cameras=["8", 3],
            background="#ffffff",
            resolution=0,
            depth_is="near is white",
        ),
        "10": node(
            "V3DScoreViews",
            images=["9", 0],
            truth=["8", 1],
            masks=["8", 2],
            gain=4.0,
            truth_is="straight",
        ),
        "11": node("PreviewAny", source=["10", 0]),
        "12": node("PreviewImage", images=["10", 1]),
        "13": node("PreviewImage", images=["9", 2]),
        "14": node(
            "V3DRenderSplat",
            splat=["4", 0],
            cameras=["1", 3],
            background="#ffffff",
            resolution=128,
            depth_is="near is white",
        ),
        "15": node("PreviewImage", images=["14", 0]),
    }
    run = server.run(graph)
    assert run.ended == "execution_success", run.error
    fit = json.loads(run.outputs["5"]["text"][0])
    assert 15 < fit["psnr_test"] <= fit["psnr_train"] + 1
    scores = json.loads(run.outputs["11"]["text"][0])
    assert len(scores["per_view"]) == 6
    assert scores["psnr"] == pytest.approx(fit["psnr_test"], abs=4)  # other held-out views
    assert scores["psnr_object"] < scores["psnr"]
    assert scores["lpips"] is not None or "lpips" in scores["lpips_backend"]
    shown = picture(server, run.outputs["12"]["images"][0])
    assert shown.shape[1] == 3 * shown.shape[0]
    assert np.asarray(picture(server, run.outputs["13"]["images"][0])).std() > 0.1
    small = picture(server, run.outputs["15"]["images"][4])
    assert small.shape == (128, 128, 3)
    assert_shows_frame(np.kron(small, np.ones((2, 2, 1))), 4)  # the demo's frames have 256 px
