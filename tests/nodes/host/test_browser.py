"""The pack in ComfyUI's own front end: templates, live fits, Finish now and Cancel (see browser.py)."""

from __future__ import annotations

import json

import pytest
from browser import (
    chromium,
    click_beside_the_nodes,
    ended_run,
    open_template,
    page,
    press,
    press_run,
    set_widgets,
)
from prompts import QUICK, only
from scenes import REPOSITORY, open_mesh
from ui_to_api import to_prompt

pytestmark = pytest.mark.slow
__all__ = ["chromium", "page"]  # fixtures

WORKFLOWS = sorted((REPOSITORY / "workflows").glob("*.json"))
SHOWN = "() => [...document.querySelectorAll('.v3d-fit button')].some((b) => b.offsetParent)"
FIGURES = """() => [...document.querySelectorAll('.v3d-fit')]
  .filter((panel) => panel.querySelector('button').offsetParent)
  .map((panel) => panel.children[1].textContent).find((text) => /^step [1-9]/.test(text))"""
PREVIEW = """() => (app.graph.nodes.find((n) => n.type === 'FIT').imgs?.[0]
  ?? document.querySelector('img[src^="blob:"]'))?.src"""
GRAPH = """() => ({
  nodes: app.graph.nodes.map((n) => [n.id, n.type, n.serialize().widgets_values ?? []]),
  missing: app.graph.nodes.filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type),
  red: app.graph.nodes.filter((n) => n.has_errors).map((n) => n.type),
})"""
PROMPT = "async () => (await app.graphToPrompt()).output"
VIEWERS = {  # what core's viewers add of themselves
    "SaveGaussianSplat": "viewport_state",
    "Preview3D": "image",
    "SaveGLB": "image",
}
PHOTOS = """() => {
  const kinds = ['LoadBackgroundRemovalModel', 'RemoveBackground'];
  const nodes = app.graph.nodes.filter((node) => kinds.includes(node.type));
  app.canvas.selectItems(nodes);
  return nodes.map((node) => node.mode);
}"""


def test_every_template_loads_with_all_its_nodes_and_values(page, object_info):
    """And is sent as our tests send it; red only where a model has to be there first."""
    for path in WORKFLOWS:
        open_template(page, path.stem)
        wanted = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        page.wait_for_function("(count) => app.graph.nodes.length === count", arg=len(wanted))
        found = page.evaluate(GRAPH)
        assert not found["missing"], path.stem
        assert not found["red"], path.stem
        values = {number: (kind, values) for number, kind, values in found["nodes"]}
        for node in wanted:
            kind, loaded = values[node["id"]]
            given = node.get("widgets_values", [])
            assert kind == node["type"]
            assert loaded[: len(given)] == given, (path.stem, kind)  # core adds some of its own
        wanted = to_prompt(json.loads(path.read_text(encoding="utf-8")), object_info)
        assert as_sent(page.evaluate(PROMPT)) == as_sent(wanted), path.stem


def as_sent(prompt):
    """Classes and inputs of a prompt, without what viewers add."""
    return {
        number: (entry["class_type"], without_viewer(entry["class_type"], entry["inputs"]))
        for number, entry in prompt.items()
    }


def without_viewer(kind, inputs):
    return {name: value for name, value in inputs.items() if name != VIEWERS.get(kind)}


def test_one_keystroke_switches_on_what_a_photo_needs(page):
    """The front end then asks for its file, and for none before."""
    open_template(page, "image_to_splat")
    assert page.evaluate(PHOTOS) == [2, 2]
    assert page.evaluate(GRAPH)["red"] == []
    click_beside_the_nodes(page)
    page.evaluate(PHOTOS)
    page.keyboard.press("Control+m")
    page.wait_for_function(f"() => ({GRAPH})().red.length")
    assert page.evaluate(GRAPH)["red"] == ["LoadBackgroundRemovalModel"]
    assert page.evaluate(PHOTOS) == [0, 0]
    sent = page.evaluate(PROMPT)
    prepared, cut = only(sent, "V3DPrepareImage"), only(sent, "RemoveBackground")
    assert sent[prepared]["inputs"]["mask"] == [cut, 0]


FITS = {
    "V3DFitSplat": ("frames_to_splat", {"max_splats": 2000}),
    "V3DFitNeuS": ("frames_to_neus_mesh", {"frames": "agree"}),
}


@pytest.mark.parametrize("kind", FITS)
def test_a_fit_is_watched_cancelled_and_finished_early(kind, page, server):
    preview = PREVIEW.replace("FIT", kind)

    def watch() -> None:
        """Figures and picture of the running fit change."""
        for look in (FIGURES, preview):
            page.wait_for_function(look)
            first = page.evaluate(look)
            page.wait_for_function(f"(first) => (({look})() ?? first) !== first", arg=first)

    name, chosen = FITS[kind]
    open_template(page, name)
    fit = {"preset": "draft", "resolution": 96, "steps": 100_000, **chosen}
    fit["seed"] = len(server.get_json("/history"))  # no result of an earlier run is in the cache
    set_widgets(page, {**QUICK, kind: fit, "RenderSplat": {"width": 64, "height": 64, "frames": 2}})
    press_run(page)
    watch()
    press(page.get_by_role("button", name="Cancel current run").first)
    assert ended_run(page, server)["status"]["messages"][-1][0] == "execution_interrupted"
    page.wait_for_function(f"() => !({SHOWN})()")
    told = len(server.log)
    press_run(page)
    watch()
    press(page.locator(".v3d-fit button:visible").first)
    done = ended_run(page, server)
    assert done["status"]["status_str"] == "success", done["status"]["messages"][-1]
    assert "stopped: finish now" in server.log[told:]
    outputs = done["outputs"].values()
    if kind == "V3DFitSplat":
        assert any(len(output.get("images", [])) == 2 for output in outputs)
        (splat,) = [output["result"][0] for output in outputs if "result" in output]
        assert (server.base / "output" / splat).stat().st_size > 2000 * 4
    else:
        (mesh,) = [shown for output in outputs for shown in output.get("3d", [])]
        path = server.base / "output" / mesh["subfolder"] / mesh["filename"]
        assert len(open_mesh(path).faces) > 1000
    page.wait_for_function(f"() => !({SHOWN})()")
