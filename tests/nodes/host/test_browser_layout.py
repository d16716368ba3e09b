"""Templates as they are drawn: unchanged when loaded, and with room for what a run adds (see browser.py)."""

from __future__ import annotations

import itertools
import json

import pytest
from browser import (
    chromium,
    click_beside_the_nodes,
    ended_run,
    open_template,
    page,
    press_run,
    set_widgets,
    vue_page,
)
from graph_layout import SIZES, TITLE_PX
from prompts import QUICK
from scenes import REPOSITORY

pytestmark = pytest.mark.slow
__all__ = ["chromium", "page", "vue_page"]  # fixtures

WORKFLOWS = sorted(path.stem for path in (REPOSITORY / "workflows").glob("*.json"))
RUN_HERE = [  # without models that are to be downloaded
    "frames_to_splat",
    "frames_to_mesh",
    "frames_to_neus_mesh",
    "splat_to_mesh_compare",
    "texture_any_mesh",
    "evaluate_orbit",
    "image_to_splat",
    "sv3d_to_splat",
    "image_to_mesh",
]
STATE = """() => {
  const { isModified, changeTracker } = app.extensionManager.workflow.activeWorkflow;
  return [isModified, changeTracker.initialState, changeTracker.activeState];
}"""
# what is drawn: by Vue its elements, else what the canvas draws
DRAWN = """() => {
  app.canvas.draw(true, true);
  app.canvas.draw(true, true); // a picture that came last has made its node grow by now
  const { scale, offset } = app.canvas.ds;
  const nodes = app.graph.nodes.map((node) => {
    const element = document.querySelector(`.lg-node[data-node-id="${node.id}"]`);
    const box = element?.getBoundingClientRect();
    const stage = app.canvas.canvas.getBoundingClientRect();
    const [x, y, w, h] = box
      ? [(box.left - stage.left) / scale - offset[0], (box.top - stage.top) / scale - offset[1],
         box.width / scale, box.height / scale]
      : [node.pos[0], node.pos[1] - TITLE, node.size[0], node.size[1] + TITLE];
    return { id: node.id, type: node.type, box: [x, y, x + w, y + h] };
  });
  const groups = app.graph.groups.map(({ title, pos, size }) =>
    ({ title, box: [pos[0], pos[1], pos[0] + size[0], pos[1] + size[1]] }));
  return { nodes, groups, byVue: Boolean(document.querySelector('.lg-node')) };
}""".replace("TITLE", str(TITLE_PX))


def test_a_loaded_template_counts_as_unchanged(vue_page):
    """Vue makes a node that is saved too small grow, and that is a change to the workflow."""
    changed = {}
    for name in WORKFLOWS:
        open_template(vue_page, name)
        click_beside_the_nodes(vue_page)
        modified, loaded, now = vue_page.evaluate(STATE)
        if modified:
            changed[name] = [
                (new["type"], old["size"], new["size"])
                for old, new in zip(loaded["nodes"], now["nodes"], strict=True)
                if old != new
            ]
    assert changed == {}


def test_after_a_run_no_node_lies_on_another_or_leaves_its_group(page, server):
    faults = []
    for name in RUN_HERE:
        open_template(page, name)
        set_widgets(page, QUICK)
        press_run(page)
        done = ended_run(page, server)
        assert done["status"]["status_str"] == "success", done["status"]["messages"][-1]
        page.wait_for_timeout(3000)  # pictures and viewers come after the end
        drawn = page.evaluate(DRAWN)
        path = REPOSITORY / "workflows" / f"{name}.json"
        template = json.loads(path.read_text(encoding="utf-8"))
        saved = {node["id"]: node["size"] for node in template["nodes"]}
        assert any(box_height(node) > saved[node["id"]][1] + 200 for node in drawn["nodes"])
        assert len(drawn["groups"]) == len(template["groups"]) >= 3
        faults += [(name, *fault) for fault in misplaced(drawn)]
    assert faults == []


def misplaced(drawn: dict) -> list[tuple]:
    """What is wrong with the places of nodes."""
    found = []
    for node in (node for node in drawn["nodes"] if node["type"] in SIZES):
        if box_height(node) > SIZES[node["type"]].grown + 1:
            found.append((node["type"], "is higher than its room", box_height(node)))
        x0, y0, x1, y1 = node["box"]
        boxes = [group["box"] for group in drawn["groups"]]
        if not any(a <= x0 and b <= y0 and x1 <= c and y1 <= d for a, b, c, d in boxes):
            found.append((node["type"], "leaves its group", node["box"]))
    for one, other in itertools.combinations(drawn["nodes"], 2):
        a, b = one["box"], other["box"]
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]:
            found.append((one["type"], "lies on", other["type"]))
    return found


def box_height(node: dict) -> float:
    """Px below the title."""
    return node["box"][3] - node["box"][1] - TITLE_PX
