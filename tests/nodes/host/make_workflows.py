"""Writes workflows/*.json from workflow_graphs.py and the schemas of a running ComfyUI.

    python tests/nodes/host/make_workflows.py http://127.0.0.1:8188

Widget values are stored by position, so run this again whenever a schema changes.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

from workflow_graphs import MODELS, TEMPLATES, Template

REPOSITORY = Path(__file__).resolve().parents[3]
PACK_ID = "v3d-studio"  # [project] name: what ComfyUI-Manager installs for a missing node
GAP, TITLE_PX, SLOT_PX, WIDGET_PX = 60, 40, 22, 26
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3")


WIDTH = 340  # px of a column, unless one of its nodes is wider
WIDTHS = {
    "V3DFitSplat": 360,
    "V3DFitNeuS": 360,
    "V3DSampleOrbit": 400,
    "SaveGLB": 420,
    "Preview3D": 460,
    "SaveGaussianSplat": 420,
}
HEIGHTS = {"PreviewImage": 320, "PreviewAny": 240, "SaveGLB": 420, "SaveGaussianSplat": 480}
HEIGHTS["V3DFitSplat"] = 700  # room for the picture and the button of the running fit
HEIGHTS["V3DFitNeuS"] = 620
HEIGHTS["V3DSampleOrbit"] = 560  # and of the orbit
HEIGHTS["V3DRefineTexture"] = 620
HEIGHTS["Preview3D"] = 520
HEIGHTS["LoadImage"] = 360
HEIGHTS["V3DPrepareImage"] = 230
NOTE_WIDTH, NOTE_LINE_PX, NOTE_COLUMNS = 420, 20, 58


def specs_of(info: dict) -> dict:
    """Inputs of a node's schema, required ones first."""
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def is_widget(spec: list) -> bool:
    """Whether an input has a widget of its own."""
    return isinstance(spec[0], list) or spec[0] in WIDGET_TYPES


def widget_values(info: dict, chosen: dict) -> list:
    """Values by position, the chosen ones and the schema's defaults."""
    values = []
    for name, spec in specs_of(info).items():
        options = spec[1] if len(spec) > 1 else {}
        if spec[0] == "LOAD_3D":
            values.append("")
        if not is_widget(spec):
            continue
        choices = spec[0] if isinstance(spec[0], list) else options.get("options")
        first = None if not choices else choices[0]
        values.append(chosen.pop(name, options.get("default", first)))
        if options.get("control_after_generate"):
            values.append("fixed")
    if chosen:
        raise ValueError(f"no such widgets: {chosen}")
    return values


def slots(info: dict) -> list[dict]:
    """Input slots in the front end's order: sockets, then widgets."""
    found = []
    for name, spec in specs_of(info).items():
        kind = "COMBO" if isinstance(spec[0], list) else spec[0]
        slot = {"name": name, "type": kind, "link": None}
        if name in info["input"].get("optional", {}):
            slot["shape"] = 7
        if is_widget(spec) or kind == "LOAD_3D":
            slot["widget"] = {"name": name}
        if not (len(spec) > 1 and spec[1].get("socketless")):
            found.append(slot)
    return sorted(found, key=lambda slot: "widget" in slot)


def note_size(note: str) -> list[int]:
    """Size that shows a note without scrolling."""
    lines = sum(1 + len(line) // NOTE_COLUMNS for line in note.splitlines() if line)
    return [NOTE_WIDTH, 80 + NOTE_LINE_PX * lines]


def make_workflow(template: Template, object_info: dict) -> dict:
    """The UI form of one graph, laid out in columns."""
    nodes, links = {}, []
    graph = template.graph
    columns = range(1 + max(node.column for node in graph.values()))
    width = {
        column: max(
            WIDTHS.get(node.kind, WIDTH) for node in graph.values() if node.column == column
        )
        for column in columns
    }
    left = {0: NOTE_WIDTH + GAP}
    for column in columns[1:]:
        left[column] = left[column - 1] + width[column - 1] + GAP
    bottom = dict.fromkeys(columns, 0)
    by_top = sorted(graph.items(), key=lambda item: item[1].top)
    for order, (number, node) in enumerate(by_top):
        kind, column = node.kind, node.column
        bottom[column] = max(bottom[column], node.top)
        info = object_info[kind]
        widgets, inputs = widget_values(info, dict(node.values)), slots(info)
        rows = max(sum("widget" not in slot for slot in inputs), len(info["output"]))
        height = HEIGHTS.get(kind, TITLE_PX + rows * SLOT_PX + len(widgets) * WIDGET_PX)
        ours = kind.startswith("V3D")
        nodes[number] = {
            "id": number,
            "type": kind,
            "pos": [left[column], bottom[column]],
            "size": [width[column], height],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": inputs,
            "outputs": [
                {"name": name, "type": type_, "links": []}
                for name, type_ in zip(info["output_name"], info["output"], strict=True)
            ],
            "properties": {
                "cnr_id": PACK_ID if ours else "comfy-core",
                "Node name for S&R": kind,
            },
            "widgets_values": widgets,
        }
        if kind in MODELS:
            nodes[number]["properties"]["models"] = MODELS[kind]
        bottom[column] += height + GAP
    for target, node in graph.items():
        for name, (source, output) in node.links.items():
            names = [slot["name"] for slot in nodes[target]["inputs"]]
            slot, link = names.index(name), len(links) + 1
            type_ = nodes[source]["outputs"][output]["type"]
            nodes[target]["inputs"][slot]["link"] = link
            nodes[source]["outputs"][output]["links"].append(link)
            links.append([link, source, output, target, slot, type_])
    note_id = max(graph) + 1
    note_node = {
        "id": note_id,
        "type": "MarkdownNote",
        "pos": [0, 0],
        "size": note_size(template.note),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {},
        "widgets_values": [template.note],
        "color": "#222",
        "bgcolor": "#000",
    }
    groups = []
    for title, first, last in template.groups:
        height = max(bottom[column] for column in range(first, last + 1))
        across = left[last] + width[last] - left[first]
        box = [left[first] - 20, -80, across + 40, height + 60]
        groups.append({"title": title, "bounding": box, "color": "#3f789e", "font_size": 24})
    return {
        "last_node_id": note_id,
        "last_link_id": len(links),
        "nodes": [note_node, *(nodes[number] for number in sorted(nodes))],
        "links": links,
        "groups": groups,
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def main() -> None:
    """Write every workflow."""
    with urllib.request.urlopen(sys.argv[1].rstrip("/") + "/object_info") as answer:
        object_info = json.load(answer)
    for name, template in TEMPLATES.items():
        workflow = make_workflow(template, object_info)
        path = REPOSITORY / "workflows" / f"{name}.json"
        path.write_text(json.dumps(workflow, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
