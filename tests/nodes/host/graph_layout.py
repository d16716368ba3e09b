"""Places a graph's nodes in columns, and counts what makes a drawing of links hard to read."""

from __future__ import annotations

import itertools
import uuid

from workflow_graphs import MODELS, Node

PACK_ID = "v3d-studio"  # [project] name: what ComfyUI-Manager installs for a missing node
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3")

GAP, TITLE_PX, SLOT_PX, WIDGET_PX, FOOT_PX = 70, 30, 20, 24, 16  # as the front end draws nodes
WIDTH = 340  # px of a column, unless one of its nodes is wider
WIDTHS = {
    "V3DFitSplat": 360,
    "V3DFitNeuS": 360,
    "V3DSampleOrbit": 400,
    "SaveGLB": 420,
    "Preview3D": 460,
    "SaveGaussianSplat": 420,
    "RemoveBackground": 240,
}
HEIGHTS = {  # with the pictures, texts and viewers that they show
    "PreviewImage": 320,
    "PreviewAny": 240,
    "SaveGLB": 420,
    "SaveGaussianSplat": 480,
    "Preview3D": 520,
    "LoadImage": 340,
    "V3DFitSplat": 600,
    "V3DFitNeuS": 600,
    "V3DSampleOrbit": 600,
    "V3DEnvironment": 300,
}
PANEL = 280  # px that a node of the pack grows by for its player, or for the panel of its fit
PANELS = (
    "V3DLoadViews",
    "V3DPosedViews",
    "V3DFitSplat",
    "V3DFitNeuS",
    "V3DSampleOrbit",
    "V3DOrbitCameras",
    "V3DRenderSplat",
)
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
        column: max(
            WIDTHS.get(node.kind, WIDTH) for node in graph.values() if node.column == column
        )
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
        rows = max(sum("widget" not in slot for slot in inputs), len(info["output"]))
        natural = rows * SLOT_PX + len(widgets) * WIDGET_PX + FOOT_PX
        height = max(HEIGHTS.get(kind, 0), natural)
        nodes[number] = {
            "id": number,
            "type": kind,
            "pos": [lefts[column], top],
            "size": [WIDTHS.get(kind, WIDTH), height],
            "flags": {},
            "order": order,
            "mode": 0,
            "inputs": inputs,
            "outputs": [
                {"name": name, "type": type_, "links": []}
                for name, type_ in zip(info["output_name"], info["output"], strict=True)
            ],
            "properties": {
                "cnr_id": PACK_ID if kind.startswith("V3D") else "comfy-core",
                "Node name for S&R": kind,
            },
            "widgets_values": widgets,
        }
        if node.title:
            nodes[number]["title"] = node.title
        if kind in MODELS:
            nodes[number]["properties"]["models"] = MODELS[kind]
        bottom[column] = top + height + GAP + PANEL * (kind in PANELS)
    for target, node in graph.items():
        for name, (source, output) in node.links.items():
            slot = [slot["name"] for slot in nodes[target]["inputs"]].index(name)
            link = len(links) + 1
            nodes[target]["inputs"][slot]["link"] = link
            nodes[source]["outputs"][output]["links"].append(link)
            type_ = nodes[source]["outputs"][output]["type"]
            links.append([link, source, output, target, slot, type_])
    return nodes, links


def box(node: dict, panel: bool = True) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a node with its title, and with room for its panel."""
    (x, y), (width, height) = node["pos"], node["size"]
    below = PANEL if panel and node["type"] in PANELS else 0
    return x, y - TITLE_PX, x + width, y + height + below


def group_around(title: str, colour: str, nodes: list[dict]) -> dict:
    """A group that holds nodes and the room of their panels."""
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
    """Links, by number, that pass behind a node or its panel, and that node."""
    found = []
    for link in links:
        points = curve(link, nodes)
        for number, node in nodes.items():
            x0, y0, x1, y1 = box(node)
            if any(x0 + 1 < x < x1 - 1 and y0 < y < y1 for x, y in points):
                found.append((link[0], number))
    return found


def overlaps(nodes: dict[int, dict]) -> list[tuple[int, int]]:
    """Pairs of nodes that lie on each other, or would when a panel opens."""
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
