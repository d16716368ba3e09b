"""Places a graph's nodes in columns, and counts what makes a drawing of links hard to read."""

from __future__ import annotations

import itertools
import uuid
from typing import NamedTuple

from workflow_graphs import MODELS, Node

PACK_ID = "v3d-studio"  # [project] name: what ComfyUI-Manager installs for a missing node
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3")

GAP, TITLE_PX, SLOT_PX = 70, 30, 20  # px, as the front end draws nodes


class Size(NamedTuple):
    """Px of a node below its title: as it is saved, and its height after a run.

    Measured in both renderings, the larger counts: a node that is saved lower than Vue draws it grows
    when it is loaded, and the workflow counts as changed. What a run adds is the line of text, the
    player, the panel of the fit and the picture. `test_browser_layout.py` measures it again.
    """

    height: int
    grown: int
    width: int = 340


SIZES = {
    "ImageFromBatch": Size(112, 112),
    "ImageOnlyCheckpointLoader": Size(156, 156, 350),  # no narrower is its name drawn
    "KSampler": Size(312, 312),
    "LoadBackgroundRemovalModel": Size(108, 108),
    "LoadImage": Size(340, 340),  # with a picture in it
    "Preview3D": Size(520, 520, 460),
    "PreviewAny": Size(240, 240),
    "PreviewImage": Size(480, 480),  # 18 pictures
    "RemoveBackground": Size(72, 72, 240),
    "RenderSplat": Size(320, 320),
    "SV3D_Conditioning": Size(224, 224),
    "SaveGLB": Size(420, 420, 420),
    "SaveGaussianSplat": Size(480, 480, 420),
    "SplatToFile3D": Size(80, 80),
    "SplatToMesh": Size(204, 204),
    "V3DCleanMesh": Size(252, 346),
    "V3DConditioning": Size(242, 306),
    "V3DEnvironment": Size(640, 780, 620),  # longer where packages are missing
    "V3DExportMesh": Size(168, 232),
    "V3DExtractMesh": Size(132, 196),
    "V3DFitNeuS": Size(600, 964, 360),
    "V3DFitSplat": Size(600, 1040, 360),
    "V3DLoadModel": Size(212, 290),
    "V3DLoadSDF": Size(104, 168),
    "V3DLoadViews": Size(204, 502),
    "V3DMeshFromSplat": Size(188, 252),
    "V3DOrbitCameras": Size(448, 448),
    "V3DPosedViews": Size(176, 474),
    "V3DPrepareImage": Size(220, 404),
    "V3DRefineTexture": Size(264, 576),
    "V3DRenderSplat": Size(216, 698),
    "V3DSampleOrbit": Size(600, 926, 400),
    "V3DSaveSDF": Size(108, 172),
    "V3DSaveViews": Size(136, 200),
    "V3DScoreViews": Size(184, 248),
    "VAEDecode": Size(72, 72),
    "VideoTriangleCFGGuidance": Size(80, 80),
}
OPEN = {  # panels that have their room: without this they look for themselves (web/v3d_nodes.js)
    "v3d_cameras_open": ("V3DOrbitCameras",),
    "v3d_orbit_open": (
        "V3DLoadViews",
        "V3DPosedViews",
        "V3DFitSplat",
        "V3DFitNeuS",
        "V3DSampleOrbit",
        "V3DRenderSplat",
    ),
}
MARGIN, HEAD = 20, 70  # px of a group around its nodes, and above them with its title


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


def place(
    graph: dict[int, Node], object_info: dict, left: int, gaps: dict[int, int]
) -> tuple[dict[int, dict], list]:
    """Nodes by number in the front end's form, and links as lists; the first column at `left`."""
    columns = range(1 + max(node.column for node in graph.values()))
    width = {
        column: max(SIZES[node.kind].width for node in graph.values() if node.column == column)
        for column in columns
    }
    lefts = {}
    for column in columns:
        lefts[column] = left + gaps.get(column, 0)
        left = lefts[column] + width[column] + GAP
    bottom, nodes, links = dict.fromkeys(columns, 0), {}, []
    for order, (number, node) in enumerate(sorted(graph.items(), key=lambda item: item[1].top)):
        kind, column, info = node.kind, node.column, object_info[node.kind]
        top = max(bottom[column], node.top)
        widgets, inputs = widget_values(info, dict(node.values)), slots(info)
        nodes[number] = {
            "id": number,
            "type": kind,
            "pos": [lefts[column], top],
            "size": [SIZES[kind].width, SIZES[kind].height],
            "flags": {},
            "order": order,
            "mode": node.mode,
            "inputs": inputs,
            "outputs": [
                {"name": name, "type": type_, "links": []}
                for name, type_ in zip(info["output_name"], info["output"], strict=True)
            ],
            "properties": {
                "cnr_id": PACK_ID if kind.startswith("V3D") else "comfy-core",
                "Node name for S&R": kind,
                **{name: True for name, kinds in OPEN.items() if kind in kinds},
            },
            "widgets_values": widgets,
        }
        if node.title:
            nodes[number]["title"] = node.title
        asked = [model for model in MODELS.get(kind, ()) if model["name"] in node.values.values()]
        if asked or node.files:
            nodes[number]["properties"]["models"] = [*asked, *node.files]
        bottom[column] = top + SIZES[kind].grown + GAP
    for target, node in graph.items():
        for name, (source, output) in node.links.items():
            slot = [slot["name"] for slot in nodes[target]["inputs"]].index(name)
            link = len(links) + 1
            nodes[target]["inputs"][slot]["link"] = link
            nodes[source]["outputs"][output]["links"].append(link)
            type_ = nodes[source]["outputs"][output]["type"]
            links.append([link, source, output, target, slot, type_])
    return nodes, links


def box(node: dict) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a node with its title, as it is after a run."""
    (x, y), (width, height) = node["pos"], node["size"]
    if node["type"] in SIZES:
        height = max(height, SIZES[node["type"]].grown)
    return x, y - TITLE_PX, x + width, y + height


def group_around(title: str, colour: str, nodes: list[dict]) -> dict:
    """A group that holds nodes, also when a run has made them grow."""
    lefts, tops, rights, bottoms = zip(*map(box, nodes))
    x, y = min(lefts) - MARGIN, min(tops) + TITLE_PX - HEAD
    size = [max(rights) + MARGIN - x, max(bottoms) + MARGIN - y]
    return {"title": title, "bounding": [x, y, *size], "color": colour, "font_size": 24}


def curve(link: list, nodes: dict[int, dict], steps: int = 48) -> list[tuple[float, float]]:
    """Points of a link as the front end draws it: a spline that leaves and arrives level."""
    _, source, output, target, slot, _ = link
    start = end = (0.0, 0.0)
    (x, y), (width, _) = nodes[source]["pos"], nodes[source]["size"]
    start = (x + width, y + (output + 0.7) * SLOT_PX)
    (x, y) = nodes[target]["pos"]
    end = (x, y + (slot + 0.7) * SLOT_PX)
    reach = 0.25 * ((end[0] - start[0]) ** 2 + (end[1] - start[1]) ** 2) ** 0.5
    points = []
    for index in range(steps + 1):
        t = index / steps
        a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3
        x = a * start[0] + b * (start[0] + reach) + c * (end[0] - reach) + d * end[0]
        points.append((x, (a + b) * start[1] + (c + d) * end[1]))
    return points


def crossings(nodes: dict[int, dict], links: list) -> list[tuple[int, int]]:
    """Pairs of links whose curves cross; links of one output part and are not counted."""
    curves = {link[0]: curve(link, nodes) for link in links}
    origin = {link[0]: (link[1], link[2]) for link in links}
    return [
        (one, other)
        for one, other in itertools.combinations(curves, 2)
        if origin[one] != origin[other] and _cross(curves[one], curves[other])
    ]


def _cross(first: list, second: list) -> bool:
    return any(
        _segments_cross(a, b, c, d)
        for a, b in itertools.pairwise(first)
        for c, d in itertools.pairwise(second)
        if max(a[0], b[0]) >= min(c[0], d[0]) and max(c[0], d[0]) >= min(a[0], b[0])
    )


def _segments_cross(a, b, c, d) -> bool:
    def side(p, q, r):
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def hidden(nodes: dict[int, dict], links: list) -> list[tuple[int, int]]:
    """Links, by number, that pass behind a node, and that node."""
    found = []
    for link in links:
        points = curve(link, nodes)
        for number, node in nodes.items():
            x0, y0, x1, y1 = box(node)
            if any(x0 + 1 < x < x1 - 1 and y0 < y < y1 for x, y in points):
                found.append((link[0], number))
    return found


def overlaps(nodes: dict[int, dict]) -> list[tuple[int, int]]:
    """Pairs of nodes that lie on each other, or will after a run."""
    pairs = itertools.combinations(nodes.items(), 2)
    found = []
    for (one, first), (other, second) in pairs:
        a, b = box(first), box(second)
        if a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]:
            found.append((one, other))
    return found


def identifier(*names: object) -> str:
    """A uuid that is the same whenever the files are written again."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join(map(str, ("comfyui-v3d", *names)))))
