"""Workflows that are saved, reloaded and dropped onto the canvas, and other languages (see browser.py)."""

from __future__ import annotations

import base64
import json
import re
import urllib.parse

import pytest
from browser import (
    RENDERINGS,
    VIEWPORT,
    chromium,
    ended_run,
    front_end,
    open_template,
    press,
    press_run,
    set_widgets,
)
from prompts import QUICK
from scenes import REPOSITORY

pytestmark = pytest.mark.slow
__all__ = ["chromium"]  # a fixture

GRAPH = "() => app.graph.serialize()"
DROP = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], name, { type }));
  const canvas = app.canvas.canvas;
  for (const kind of ["dragenter", "dragover", "drop"])
    canvas.dispatchEvent(new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
}"""
OPENED = """(name) => app.extensionManager.workflow.activeWorkflow?.filename === name
  && app.graph.nodes.length > 1"""
SAVED = """(name) => {
  const { filename, isPersisted, isModified } = app.extensionManager.workflow.activeWorkflow;
  return filename === name && isPersisted && !isModified;
}"""
VIEWER = ("Camera Config", "Light Config", "Scene Config", "Model Config", "Last Time Model File")


def as_saved(graph: dict) -> dict:
    """What a workflow says, without what the front end sets anew: where one looks, order, ids, viewers."""
    nodes = {}
    for node in graph["nodes"]:
        kept = {k: v for k, v in node["properties"].items() if k not in VIEWER}
        nodes[node["id"]] = {**node, "properties": kept, "order": 0}
    extra = {k: v for k, v in graph["extra"].items() if k not in ("ds", "frontendVersion")}
    return {**graph, "nodes": nodes, "extra": extra, "id": ""}


def changes(before: object, after: object, path: str = "") -> list[str]:
    """Where two graphs differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = sorted({*before, *after}, key=str)
        return [
            c for key in keys for c in changes(before.get(key), after.get(key), f"{path}/{key}")
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        both = enumerate(zip(before, after, strict=True))
        return [c for index, (a, b) in both for c in changes(a, b, f"{path}/{index}")]
    return [] if before == after else [f"{path}: {before!r} became {after!r}"]


def opened(page, name: str) -> dict:
    """The graph, once the host's viewer has its file: leaving it before is an error in its console."""
    page.wait_for_function(OPENED, arg=name)
    page.wait_for_timeout(2000)
    page.get_by_text("Loading 3D Model").first.wait_for(state="hidden")
    return as_saved(page.evaluate(GRAPH))


def drop(page, name: str, kind: str, content: bytes) -> dict:
    """The graph that a file dropped onto the canvas opens."""
    page.evaluate(DROP, [name, kind, base64.b64encode(content).decode()])
    return opened(page, name.rsplit(".", 1)[0])


@pytest.mark.parametrize("vue", list(RENDERINGS.values()), ids=list(RENDERINGS))
def test_what_is_saved_or_shown_opens_as_the_same_graph(vue, chromium, server):
    name = f"kept {'vue' if vue else 'classic'}"
    with front_end(chromium, server, vue) as page:
        open_template(page, "frames_to_splat")
        orbit = {"orbit": "custom"}
        set_widgets(page, {**QUICK, "V3DOrbitCameras": orbit})
        set_widgets(
            page, {"V3DOrbitCameras": {"orbit.radius": 2.5, "orbit.direction": "clockwise"}}
        )
        queued = as_saved(page.evaluate(GRAPH))
        press_run(page)
        done = ended_run(page, server)
        assert done["status"]["status_str"] == "success", done["status"]["messages"][-1]
        page.locator(".v3d-cameras button:visible", has_text="hide").first.evaluate(
            "(b) => b.click()"
        )
        page.mouse.click(480, VIEWPORT["height"] - 40)
        page.keyboard.press("Control+s")
        field = page.get_by_role("dialog").locator("input").last
        field.fill(name)
        field.press("Enter")
        page.wait_for_function(SAVED, arg=name)
        shown = opened(page, name)
        stored = server.get(f"/userdata/{urllib.parse.quote(f'workflows/{name}.json', safe='')}")
        assert changes(as_saved(json.loads(stored)), shown) == []
        fit = next(node for node in shown["nodes"].values() if node["type"] == "V3DFitSplat")
        cameras = [node for node in shown["nodes"].values() if node["type"] == "V3DOrbitCameras"]
        assert "draft" in fit["widgets_values"] and 4000 in fit["widgets_values"]
        assert all({2.5, "clockwise"} <= set(node["widgets_values"]) for node in cameras)
        assert sorted(node["properties"]["v3d_cameras_open"] for node in cameras) == [False, True]
        pictures = next(
            o["images"] for o in done["outputs"].values() if len(o.get("images", [])) > 1
        )
        png = server.get(f"/view?{urllib.parse.urlencode(pictures[0])}")
        assert changes(shown, drop(page, "dropped.json", "application/json", stored)) == []
        assert changes(queued, drop(page, "picture.png", "image/png", png)) == []
    with front_end(chromium, server, vue) as page:  # another day
        page.locator(".side-tool-bar-container").wait_for()
        page.keyboard.press("w")
        page.get_by_role("treeitem").get_by_text(name).click()
        assert changes(shown, opened(page, name)) == []


TEXTS = """() => app.graph.nodes.filter((n) => n.type.startsWith('V3D')).map((node) => ({
  type: node.type, title: node.title,
  inputs: Object.fromEntries(node.inputs.map((i) => [i.name, i.label ?? i.localized_name])),
  outputs: node.outputs.map((o) => o.label ?? o.localized_name),
  drawn: document.querySelector(`.lg-node[data-node-id="${node.id}"]`)?.innerText,
}))"""


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_another_language_names_the_nodes_and_opens_their_help(language, chromium, server):
    path = REPOSITORY / "locales" / language / "nodeDefs.json"
    words = json.loads(path.read_text(encoding="utf-8"))
    workflow = json.loads((REPOSITORY / "workflows" / "frames_to_splat.json").read_text())
    with front_end(chromium, server, vue=True, language=language) as page:
        page.evaluate("(graph) => app.loadGraphData(graph, true, true, null)", workflow)
        page.locator(".lg-node").first.wait_for()
        page.wait_for_timeout(1500)
        found = page.evaluate(TEXTS)
        assert {node["type"] for node in found} == {
            "V3DOrbitCameras",
            "V3DLoadViews",
            "V3DFitSplat",
        }
        for node in found:
            given = words[node["type"]]
            assert node["title"] in (given["display_name"], "Cameras of the turntable")
            assert node["title"] in node["drawn"]
            for name, label in node["inputs"].items():
                assert label == given["inputs"][name]["name"], (node["type"], name)
            for index, label in enumerate(node["outputs"]):
                assert label == given["outputs"][str(index)]["name"]
        tip(page, words["V3DFitSplat"]["inputs"]["preset"])
        page.evaluate(
            "() => app.canvas.selectNode(app.graph.nodes.find((n) => n.type === 'V3DFitSplat'))"
        )
        page.get_by_test_id("info-button").first.evaluate("(button) => button.click()")
        docs = REPOSITORY / "web" / "docs"
        own = docs / "V3DFitSplat" / f"{language}.md"
        help_page = own if own.exists() else docs / "V3DFitSplat.md"
        lines = help_page.read_text(encoding="utf-8").splitlines()
        heading = next(line[3:] for line in lines if line.startswith("## "))
        page.get_by_role("heading", name=heading, exact=True).wait_for()
        assert own.exists() == (language == "zh")
        picture = page.locator("img[src*='V3DFitSplat.jpg']").first
        assert picture.evaluate("async (image) => (await image.decode(), image.naturalWidth)") > 300


def tip(page, words: dict) -> None:
    """The mouse on the widget's name shows its tooltip."""
    page.locator(".lg-node").get_by_text(words["name"], exact=True).first.hover(force=True)
    page.get_by_text(words["tooltip"]).first.wait_for()


PANEL = """([kind, pattern]) => [...document.querySelectorAll(kind)].some((panel) =>
  [...panel.children].some((line) => new RegExp(pattern).test(line.innerText)))"""


@pytest.mark.parametrize("vue", list(RENDERINGS.values()), ids=list(RENDERINGS))
def test_panels_speak_another_language(vue, chromium, server):
    path = REPOSITORY / "locales" / "zh" / "main.json"
    words = json.loads(path.read_text(encoding="utf-8"))["v3d"]
    workflow = json.loads((REPOSITORY / "workflows" / "frames_to_splat.json").read_text())

    def shown(kind: str, key: str) -> None:
        """A panel's line says these words, with numbers where they are filled in."""
        pattern = re.sub(r"\{\w+\}", "[0-9.,]+", words[key])
        page.wait_for_function(PANEL, arg=[kind, pattern])

    with front_end(chromium, server, vue, language="zh") as page:
        page.evaluate("(graph) => app.loadGraphData(graph, true, true, null)", workflow)
        shown(".v3d-cameras", "frameAzimuth")
        shown(".v3d-cameras", "orbit")
        fold = page.locator(".v3d-cameras button", has_text=words["hide"]).first
        assert fold.get_attribute("title") == words["hideCameras"]
        fit = {"steps": 100_000, "seed": len(server.get_json("/history"))}
        set_widgets(page, {"V3DFitSplat": {**QUICK["V3DFitSplat"], **fit}})
        page.evaluate("() => app.queuePrompt(0)")
        shown(".v3d-fit", "stepLeftSplats")
        button = page.locator(".v3d-fit").get_by_role("button", name=words["finishNow"], exact=True)
        assert button.get_attribute("title") == words["finishNowTip"]
        press(button)
        done = ended_run(page, server)
        assert done["status"]["status_str"] == "success", done["status"]["messages"][-1]
        shown(".v3d-orbit", "frameAzimuth")
        assert page.locator(".v3d-orbit button").first.get_attribute("title") == words["play"]
