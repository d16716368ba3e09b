"""The pack in ComfyUI's own front end: templates, a live fit, Finish now and Cancel, in Chromium.

    .venv-comfy/bin/pip install playwright
    V3D_TEST_BROWSER=1 python tests/nodes/comfy_env.py --test -k test_browser

Four minutes on two busy cores; all other runs skip it. Chromium is the one in CHROMIUM, that of the system, or
playwright's own (`playwright install chromium`).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

WORKFLOWS = sorted(Path(__file__).resolve().parents[3].glob("workflows/*.json"))
VIEWPORT = {"width": 1280, "height": 720}  # small: WebGL is drawn by the CPU here
PATIENCE_MS = 90_000
SOFTWARE_GL = ["--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
OWN_CONSOLE = (  # what the front end reports of itself, with no network and no user files
    "Failed to load resource",
    "fuse options",
    "core workflow templates",
    "before initialization",
    "huggingface.co",  # of the models that its first workflow wants
    "is deprecated",
    "has been deprecated",
)
READY = "window.app?.graph && window.app?.canvas && app.extensionManager"
SHOWN = "() => [...document.querySelectorAll('.v3d-fit button')].some((b) => b.offsetParent)"
FIGURES = """() => [...document.querySelectorAll('.v3d-fit')]
  .filter((panel) => panel.querySelector('button').offsetParent)
  .map((panel) => panel.children[1].textContent).find((text) => /^step [1-9]/.test(text))"""
PREVIEW = """() => (app.graph.nodes.find((n) => n.type === 'V3DFitSplat').imgs?.[0]
  ?? document.querySelector('img[src^="blob:"]'))?.src"""
SET = """([type, values]) => {
  for (const node of app.graph.nodes.filter((n) => n.type === type))
    for (const [name, value] of Object.entries(values)) {
      const widget = node.widgets.find((w) => w.name === name);
      widget.value = value;
      widget.callback?.(value);
    }
}"""
GRAPH = """() => ({
  nodes: app.graph.nodes.map((n) => [n.id, n.type, n.serialize().widgets_values ?? []]),
  missing: app.graph.nodes.filter((n) => !LiteGraph.registered_node_types[n.type]).map((n) => n.type),
  red: app.graph.nodes.filter((n) => n.has_errors).map((n) => n.type),
})"""
NEED_FILES = {"V3DLoadModel", "LoadBackgroundRemovalModel", "ImageOnlyCheckpointLoader"}


@pytest.fixture(scope="module")
def chromium():
    if not os.environ.get("V3D_TEST_BROWSER"):
        pytest.skip("V3D_TEST_BROWSER=1 runs the tests in a browser (four minutes)")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    with playwright.sync_playwright() as session:
        try:
            browser = session.chromium.launch(executable_path=path, args=SOFTWARE_GL)
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def page(chromium, server, request):
    """The front end's page; nothing of this pack may be in its console or in the server's log."""
    told = len(server.log)
    settings = {"Comfy.VueNodes.Enabled": request.param, "Comfy.TutorialCompleted": True}
    assert server.post("/settings", settings)[0] == 200
    context = chromium.new_context(viewport=VIEWPORT)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    bad = []
    page.on("pageerror", lambda error: bad.append(str(error)))
    page.on("console", lambda m: m.type in ("error", "warning") and bad.append(m.text))
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_function(READY)
    page.get_by_role("button", name="Templates").first.wait_for()
    yield page
    context.close()
    assert [text for text in bad if not any(own in text for own in OWN_CONSOLE)] == []
    assert [line for line in server.log[told:].splitlines() if "[WARNING]" in line] == []


def open_template(page, name: str) -> None:
    """By the list of templates, as a user does."""
    dialog = page.get_by_role("dialog").filter(has=page.get_by_placeholder("Search"))
    if not dialog.count():
        press(page.get_by_role("button", name="Templates").first)
    dialog.get_by_placeholder("Search").last.fill(name)
    dialog.get_by_text(name).first.click()
    page.wait_for_function(
        "(name) => app.extensionManager.workflow.activeWorkflow?.filename?.startsWith(name)",
        arg=name,
    )


def press(button) -> None:
    """Without waiting for frames, which are seldom while a fit has the CPU."""
    button.wait_for()
    button.evaluate("(element) => element.click()")


def test_every_template_loads_with_all_its_nodes_and_values(page):
    for path in WORKFLOWS:
        open_template(page, path.stem)
        wanted = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        page.wait_for_function("(count) => app.graph.nodes.length === count", arg=len(wanted))
        found = page.evaluate(GRAPH)
        assert not found["missing"] and set(found["red"]) <= NEED_FILES, path.stem
        values = {number: (kind, values) for number, kind, values in found["nodes"]}
        for node in wanted:
            kind, loaded = values[node["id"]]
            given = node.get("widgets_values", [])
            assert kind == node["type"]
            assert loaded[: len(given)] == given, (path.stem, kind)  # core adds some of its own


def test_a_fit_is_watched_cancelled_and_finished_early(page, server):
    def watch() -> None:
        """Figures and picture of the running fit change."""
        for look in (FIGURES, PREVIEW):
            page.wait_for_function(look)
            first = page.evaluate(look)
            page.wait_for_function(f"(first) => (({look})() ?? first) !== first", arg=first)

    def last_run() -> dict:
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while any(server.get_json("/queue").values()):
            assert time.monotonic() < deadline, "the run does not end"
            page.wait_for_timeout(100)  # the page's events are handled meanwhile
        return max(server.get_json("/history").values(), key=lambda run: run["prompt"][0])

    open_template(page, "frames_to_splat")
    page.wait_for_function("app.graph.nodes.some((n) => n.type === 'V3DFitSplat')")
    fit = {"preset": "draft", "resolution": 96, "max_splats": 2000, "steps": 100_000}
    fit["seed"] = len(server.get_json("/history"))  # no result of an earlier run is in the cache
    page.evaluate(SET, ["V3DFitSplat", fit])
    page.evaluate(SET, ["RenderSplat", {"width": 64, "height": 64, "frames": 2}])
    run = page.get_by_role("button", name="Run", exact=True).first
    press(run)
    watch()
    press(page.get_by_role("button", name="Cancel current run").first)
    assert last_run()["status"]["messages"][-1][0] == "execution_interrupted"
    page.wait_for_function(f"() => !({SHOWN})()")
    told = len(server.log)
    press(run)
    watch()
    press(page.locator(".v3d-fit button:visible").first)
    done = last_run()
    assert done["status"]["status_str"] == "success", done["status"]["messages"][-1]
    assert "stopped: finish now" in server.log[told:]
    outputs = done["outputs"].values()
    assert any(len(output.get("images", [])) == 2 for output in outputs)
    (splat,) = [output["result"][0] for output in outputs if "result" in output]
    assert (server.base / "output" / splat).stat().st_size > 2000 * 4
    page.wait_for_function(f"() => !({SHOWN})()")
