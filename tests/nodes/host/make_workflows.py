"""Writes workflows/*.json from the graphs below and the schemas of a running ComfyUI.

    python tests/nodes/host/make_workflows.py http://127.0.0.1:8188

Widget values are stored by position, so run this again whenever a schema changes.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]
PACK_ID = "v3d-studio"  # [project] name: what ComfyUI-Manager installs for a missing node
GAP, TITLE_PX, SLOT_PX, WIDGET_PX = 60, 40, 22, 26
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3")

OWN_FRAMES = """
### Your own frames
* Put them in a folder below ComfyUI's `input`, press **R**, and choose it in *V3D Load Views*. \
Or connect any batch of images (SV3D, a video, Load Image + Remove Background) to *V3D Posed Views*.
* Choose the orbit that made them in *V3D Orbit Cameras*: `v3d` (18 frames), `sv3d` (21 frames), \
or `custom`.
* No masks? Disconnect them: alpha is used if there is any, else a flat background is cut out.
"""

SPLAT_NOTE = f"""## Orbit frames to a Gaussian splat
Queue it as it is: it loads the 18-frame orbit that comes with V3D, fits a splat, renders it with \
core's Render Splat and saves a `.ply`.
{OWN_FRAMES}
### Quality and time
`preset`: draft to look, normal to keep, best for detail. Cancel stops at once.
"""

MESH_NOTE = f"""## Orbit frames to a coloured mesh
Queue it as it is: it loads the 18-frame orbit that comes with V3D, fits a splat, and makes a \
closed mesh with vertex colours, saved as `.glb` and `.obj`.
{OWN_FRAMES}
### What an orbit cannot see
All cameras stand at one height: the very top and bottom of the object are closed, not seen.
"""

# id: (type, column, row order in the column, widget values by name, links by input name)
FRAMES = {
    1: ("V3DLoadViews", 0, {"folder": "demo orbit (shipped)"}, {}),
    2: ("V3DOrbitCameras", 0, {"orbit": "v3d"}, {}),
    3: ("V3DPosedViews", 1, {}, {"images": (1, 1), "masks": (1, 2), "cameras": (2, 0)}),
    4: ("PreviewImage", 1, {}, {"images": (1, 1)}),
    5: ("V3DFitSplat", 2, {"preset": "normal"}, {"views": (3, 0)}),
    6: ("PreviewAny", 2, {}, {"source": (5, 1)}),
}
RENDER = {"width": 512, "height": 512, "frames": 18, "sharpen": 1.0, "background": "#ffffff"}
GRAPHS = {
    "frames_to_splat": (
        SPLAT_NOTE,
        {
            **FRAMES,
            7: ("RenderSplat", 3, RENDER, {"splat": (5, 0), "camera_info": (2, 1)}),
            8: ("SplatToFile3D", 3, {"format": "ply"}, {"splat": (5, 0)}),
            9: ("PreviewImage", 4, {}, {"images": (7, 0)}),
            10: (
                "SaveGaussianSplat",
                4,
                {"filename_prefix": "3d/V3D_splat"},
                {"model_3d": (8, 0), "camera_info": (2, 1)},
            ),
        },
    ),
    "frames_to_mesh": (
        MESH_NOTE,
        {
            **FRAMES,
            7: ("V3DMeshFromSplat", 3, {}, {"splat": (5, 0), "views": (3, 0)}),
            8: ("V3DExportMesh", 3, {"format": "obj"}, {"mesh": (7, 0)}),
            9: ("SaveGLB", 4, {"filename_prefix": "3d/V3D_mesh"}, {"mesh": (7, 0)}),
        },
    ),
}
GROUPS = (("Frames and cameras", 0, 1), ("Splat", 2, 2), ("Result", 3, 4))
WIDTHS = {0: 340, 1: 340, 2: 360, 3: 340, 4: 420}
HEIGHTS = {"PreviewImage": 320, "PreviewAny": 240, "SaveGLB": 420, "SaveGaussianSplat": 480}
HEIGHTS["V3DFitSplat"] = 560  # room for the picture of the running fit
NOTE_SIZE = (420, 520)


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


def make_workflow(note: str, graph: dict, object_info: dict) -> dict:
    """The UI form of one graph, laid out in columns."""
    nodes, links = {}, []
    left = {0: NOTE_SIZE[0] + GAP}
    for column in range(1, 5):
        left[column] = left[column - 1] + WIDTHS[column - 1] + GAP
    bottom = dict.fromkeys(left, 0)
    for order, (number, (kind, column, values, _)) in enumerate(graph.items()):
        info = object_info[kind]
        widgets, inputs = widget_values(info, dict(values)), slots(info)
        rows = max(sum("widget" not in slot for slot in inputs), len(info["output"]))
        height = HEIGHTS.get(kind, TITLE_PX + rows * SLOT_PX + len(widgets) * WIDGET_PX)
        ours = kind.startswith("V3D")
        nodes[number] = {
            "id": number,
            "type": kind,
            "pos": [left[column], bottom[column]],
            "size": [WIDTHS[column], height],
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
        bottom[column] += height + GAP
    for target, (_, _, _, wanted) in graph.items():
        for name, (source, output) in wanted.items():
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
        "size": list(NOTE_SIZE),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": [],
        "outputs": [],
        "title": "Read me",
        "properties": {},
        "widgets_values": [note],
        "color": "#222",
        "bgcolor": "#000",
    }
    groups = []
    for title, first, last in GROUPS:
        height = max(bottom[column] for column in range(first, last + 1))
        width = left[last] + WIDTHS[last] - left[first]
        box = [left[first] - 20, -80, width + 40, height + 60]
        groups.append({"title": title, "bounding": box, "color": "#3f789e", "font_size": 24})
    return {
        "last_node_id": note_id,
        "last_link_id": len(links),
        "nodes": [note_node, *nodes.values()],
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
    for name, (note, graph) in GRAPHS.items():
        workflow = make_workflow(note, graph, object_info)
        path = REPOSITORY / "workflows" / f"{name}.json"
        path.write_text(json.dumps(workflow, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
