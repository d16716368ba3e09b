"""ComfyUI's front end in Chromium, for the tests that are called test_browser*.

    .venv-comfy/bin/pip install playwright
    V3D_TEST_BROWSER=1 python tests/nodes/comfy_env.py --test -k test_browser

All other runs skip them: they take twenty minutes on two busy cores. Chromium is the one in CHROMIUM,
that of the system, or playwright's own (`playwright install chromium`).
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

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
    "Parent element not found",  # a viewer that is taken away
    # with --disable-api-nodes the server forbids what its viewer of .glb files does for textures
    "blob:",
)
READY = "window.app?.graph && window.app?.canvas && app.extensionManager"
SET = """([type, values]) => {
  for (const node of app.graph.nodes.filter((n) => n.type === type))
    for (const [name, value] of Object.entries(values)) {
      const widget = node.widgets.find((w) => w.name === name);
      widget.value = value;
      widget.callback?.(value);
    }
}"""
RENDERINGS = {"classic": False, "vue": True}


@pytest.fixture(scope="module")
def chromium():
    """A browser; closed after each module, because its event loop forbids another one."""
    if not os.environ.get("V3D_TEST_BROWSER"):
        pytest.skip("V3D_TEST_BROWSER=1 runs the tests in a browser (twenty minutes)")
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


@contextmanager
def front_end(chromium, server, vue: bool, language: str = "en") -> Iterator:
    """The front end's page; nothing of this pack may be in its console or in the server's log."""
    told = len(server.log)
    settings = {
        "Comfy.VueNodes.Enabled": vue,
        "Comfy.TutorialCompleted": True,
        "Comfy.Locale": language,
    }
    assert server.post("/settings", settings)[0] == 200
    context = chromium.new_context(viewport=VIEWPORT)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    bad = []
    page.on("pageerror", lambda error: bad.append(str(error)))
    page.on("console", lambda m: m.type in ("error", "warning") and bad.append(m.text))
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_function(READY)
    page.locator(".side-tool-bar-container button").first.wait_for()
    yield page
    context.close()
    ours = [text for text in bad if not any(own in text for own in OWN_CONSOLE)]
    assert ours == [], "\n".join(ours)
    assert [line for line in server.log[told:].splitlines() if "[WARNING]" in line] == []


@pytest.fixture(params=list(RENDERINGS.values()), ids=list(RENDERINGS))
def page(chromium, server, request):
    """The front end, with nodes on a canvas and with nodes drawn by Vue."""
    with front_end(chromium, server, vue=request.param) as page:
        yield page


@pytest.fixture
def vue_page(chromium, server):
    """The front end with nodes drawn by Vue."""
    with front_end(chromium, server, vue=True) as page:
        yield page


def open_template(page, name: str) -> None:
    """By the list of templates, as a user does."""
    dialog = page.get_by_role("dialog").filter(has=page.get_by_placeholder("Search"))
    if not dialog.count():
        press(page.get_by_role("button", name="Templates").first)
    dialog.get_by_placeholder("Search").last.fill(name)
    dialog.get_by_text(name, exact=True).first.click()
    page.wait_for_function(
        "(name) => app.extensionManager.workflow.activeWorkflow?.filename?.startsWith(name)",
        arg=name,
    )
    page.wait_for_timeout(1500)  # until Vue has drawn and measured all nodes


def press(button) -> None:
    """Without waiting for frames, which are seldom while a fit has the CPU."""
    button.wait_for()
    button.evaluate("(element) => element.click()")


def press_run(page) -> None:
    """The button Run."""
    press(page.get_by_role("button", name="Run", exact=True).first)


def ended_run(page, server) -> dict:
    """The history of the run that ends now."""
    page.wait_for_timeout(500)  # a queued prompt may not be listed yet
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while any(server.get_json("/queue").values()):
        assert time.monotonic() < deadline, "the run does not end"
        page.wait_for_timeout(100)  # the page's events are handled meanwhile
    return max(server.get_json("/history").values(), key=lambda run: run["prompt"][0])


def set_widgets(page, changes: dict[str, dict]) -> None:
    """Widget values by node type and name, where there are such nodes."""
    for kind, values in changes.items():
        page.evaluate(SET, [kind, values])


def click_beside_the_nodes(page) -> None:
    """Twice: after a click the front end looks whether the workflow has changed."""
    for x in (480, 500):
        page.mouse.click(x, VIEWPORT["height"] - 40)
        page.wait_for_timeout(300)
