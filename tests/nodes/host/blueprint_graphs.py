"""The graphs of subgraphs/*.json: whole ways as one node each, and their form for the front end."""

from __future__ import annotations

from dataclasses import dataclass, field

from graph_layout import SLOT_PX, box, identifier, place
from workflow_graphs import BIREFNET, LANE, OFF, OWN_NUMBERS, Node, video_model

SPECIAL_IN, SPECIAL_OUT = -10, -20  # ids that the front end gives a subgraph's two ends
END_WIDTH, END_GAP = 160, 240  # px
WRAPPER_WIDTH, WRAPPER_WIDGET_PX, WRAPPER_FOOT_PX = 360, 24, 16


@dataclass(frozen=True)
class Blueprint:
    """One subgraph.

    Attributes:
        description: What the front end's node library says about it.
        aliases: Further words to find it by.
        graph: Nodes by number.
        inputs: Input name: node number and input name there, of each place it leads to.
        outputs: Output name: node number and output number.
        gaps: Px that columns stand farther to the right, for links that rise or fall far.
        top: Where the two ends stand, px.
        category: Where it stands in the node library.
    """

    description: str
    aliases: tuple[str, ...]
    graph: dict[int, Node]
    inputs: dict[str, tuple[tuple[int, str], ...]]
    outputs: dict[str, tuple[int, int]]
    gaps: dict[int, int] = field(default_factory=dict)
    top: int = 0
    category: str = "3D/V3D"


def to_orbit(top: int) -> dict[int, Node]:
    """A picture cut out and turned: frames are (5, 0), views (5, 1); photos need 1 and 2 on."""
    sources = {"model": (4, 0), "clip_vision": (4, 1), "vae": (4, 2), "image": (3, 0)}
    cut_out = {"bg_removal_name": BIREFNET["name"]}
    return {
        1: Node("LoadBackgroundRemovalModel", 0, cut_out, {}, top + 300, mode=OFF),
        2: Node("RemoveBackground", 1, {}, {"bg_removal_model": (1, 0)}, top + 300, mode=OFF),
        3: Node("V3DPrepareImage", 2, {"size": 512}, {"mask": (2, 0)}, top + 300),
        4: video_model(2, top),
        5: Node("V3DSampleOrbit", 3, OWN_NUMBERS, sources, top),
    }


def to_textured(column: int, fit: int, views: tuple[int, int] | None) -> dict[int, Node]:
    """A fitted splat to a mesh (fit + 1, + 2) with a texture (fit + 3) of the given views."""
    splat = {"splat": (fit, 0), "views": (fit, 2)}
    source = {"mesh": (fit + 2, 0), **({} if views is None else {"views": views})}
    return {
        fit + 1: Node("V3DMeshFromSplat", column, {}, splat, 100),
        fit + 2: Node("V3DCleanMesh", column + 1, {}, {"mesh": (fit + 1, 0)}, 520),
        fit + 3: Node("V3DRefineTexture", column + 2, {}, source, LANE),
    }


PICTURE_INPUTS = {"image": ((2, "image"), (3, "image"))}
FILE_INPUTS = {
    "model_name": ((4, "model_name"),),
    "clip_vision_name": ((4, "clip_vision_name"),),
}
TO_ORBIT = "One picture, cut out, becomes an orbit of 18 frames (V3D), and those "
MODELS_AND_PHOTOS = (
    "Runs as it is with V3D-nano, a demonstration; for real pictures choose V3D.ckpt (which needs "
    "svd_xt.safetensors). A flat background is cut out; for photos switch on the two nodes inside "
    "that remove it (Ctrl+M), which need birefnet.safetensors."
)

BLUEPRINTS = {
    "Image to Splat (V3D)": Blueprint(
        f"{TO_ORBIT}become a Gaussian splat. {MODELS_AND_PHOTOS}",
        ("image to 3d", "gaussian splatting", "3dgs", "v3d", "single image"),
        {
            **to_orbit(0),
            6: Node("V3DFitSplat", 4, {"preset": "normal"}, {"views": (5, 1)}),
            7: Node("V3DOrbitCameras", 5, {"orbit": "v3d"}, {}, 120),
        },
        {
            **PICTURE_INPUTS,
            "seed": ((5, "seed"),),
            "steps": ((5, "steps"),),
            "scale": ((5, "scale"),),
            "preset": ((6, "preset"),),
            **FILE_INPUTS,
        },
        {
            "splat": (6, 0),
            "frames": (5, 0),
            "views": (5, 1),
            "cameras": (7, 0),
            "camera_info": (7, 1),
            "report": (6, 1),
        },
    ),
    "Image to Textured Mesh (V3D)": Blueprint(
        f"{TO_ORBIT}become a closed, light mesh with a texture. {MODELS_AND_PHOTOS}",
        ("image to 3d", "image to mesh", "glb", "texture", "v3d", "single image"),
        {
            **to_orbit(LANE),
            6: Node("V3DFitSplat", 4, {"preset": "normal"}, {"views": (5, 1)}),
            **to_textured(5, 6, (5, 1)),
        },
        {
            **PICTURE_INPUTS,
            "seed": ((5, "seed"),),
            "preset": ((6, "preset"),),
            "faces": ((8, "faces"),),
            "texture_size": ((9, "texture_size"),),
            **FILE_INPUTS,
        },
        {
            "mesh": (9, 0),
            "texture": (9, 1),
            "unseen": (9, 2),
            "splat": (6, 0),
            "frames": (5, 0),
            "views": (5, 1),
            "report": (9, 3),
        },
        gaps={4: 180, 7: 60},
        top=LANE,
    ),
    "Orbit to Textured Mesh (V3D)": Blueprint(
        "Frames of one object with their cameras become a closed, light mesh with a texture: a "
        "splat is fitted, a surface taken out of it, made light, and textured from the frames.",
        ("frames to mesh", "multiview to 3d", "photogrammetry", "glb", "texture", "v3d"),
        {
            1: Node("V3DFitSplat", 0, {"preset": "normal"}),
            **to_textured(1, 1, None),
        },
        {
            "views": ((1, "views"), (4, "views")),
            "preset": ((1, "preset"),),
            "seed": ((1, "seed"),),
            "resolution": ((2, "resolution"),),
            "faces": ((3, "faces"),),
            "texture_size": ((4, "texture_size"),),
        },
        {
            "mesh": (4, 0),
            "texture": (4, 1),
            "unseen": (4, 2),
            "splat": (1, 0),
            "fitted_views": (1, 2),
            "report": (4, 3),
        },
        gaps={3: 60},
        top=LANE,
    ),
}


def make_blueprint(name: str, blueprint: Blueprint, object_info: dict) -> dict:
    """A workflow of one node, and the subgraph that it stands for."""
    nodes, listed = place(blueprint.graph, object_info, 0, blueprint.gaps)
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [dict(zip(keys, link, strict=True)) for link in listed]
    definition = identifier(name)
    inputs, outputs, sockets, proxies, widgets = [], [], [], [], []
    for slot, (given, places) in enumerate(blueprint.inputs.items()):
        ids = []
        for number, input_name in places:
            target = next(
                index
                for index, entry in enumerate(nodes[number]["inputs"])
                if entry["name"] == input_name
            )
            entry = nodes[number]["inputs"][target]
            link = {"id": len(links) + 1, "origin_id": SPECIAL_IN, "origin_slot": slot}
            links.append(link | {"target_id": number, "target_slot": target, "type": entry["type"]})
            entry["link"] = len(links)
            ids.append(len(links))
        socket = {"name": given, "type": entry["type"], "link": None}
        if "widget" in entry:
            socket["widget"] = {"name": given}
            proxies.append([str(number), input_name])
        sockets.append(socket)
        inputs.append(
            {"id": identifier(name, "input", given), "name": given, "type": entry["type"]}
        )
        inputs[-1]["linkIds"] = ids
    for slot, (given, (number, output)) in enumerate(blueprint.outputs.items()):
        entry = nodes[number]["outputs"][output]
        link = {"id": len(links) + 1, "origin_id": number, "origin_slot": output}
        links.append(link | {"target_id": SPECIAL_OUT, "target_slot": slot, "type": entry["type"]})
        entry["links"].append(len(links))
        outputs.append({"id": identifier(name, "output", given), "name": given})
        outputs[-1] |= {"type": entry["type"], "linkIds": [len(links)]}
    right = max(box(entry)[2] for entry in nodes.values())
    ends = {"inputNode": -END_GAP - END_WIDTH, "outputNode": right + END_GAP}
    heights = {"inputNode": len(inputs), "outputNode": len(outputs)}
    bounding = {
        end: [x, blueprint.top, END_WIDTH, SLOT_PX * (heights[end] + 2)] for end, x in ends.items()
    }
    subgraph = {
        "id": definition,
        "version": 1,
        "state": {
            "lastGroupId": 0,
            "lastNodeId": max(nodes),
            "lastLinkId": len(links),
            "lastRerouteId": 0,
        },
        "revision": 0,
        "config": {},
        "name": name,
        "description": blueprint.description,
        "category": blueprint.category,
        "inputNode": {"id": SPECIAL_IN, "bounding": bounding["inputNode"]},
        "outputNode": {"id": SPECIAL_OUT, "bounding": bounding["outputNode"]},
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": [nodes[number] for number in sorted(nodes)],
        "groups": [],
        "links": links,
        "extra": {"workflowRendererVersion": "LG"},
    }
    plain = len(inputs) - len(proxies)
    height = SLOT_PX * max(plain, len(outputs)) + WRAPPER_WIDGET_PX * len(proxies)
    wrapper = {
        "id": max(nodes) + 1,
        "type": definition,
        "pos": [0, 0],
        "size": [WRAPPER_WIDTH, height + WRAPPER_FOOT_PX],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": sockets,
        "outputs": [
            {"name": entry["name"], "type": entry["type"], "links": []} for entry in outputs
        ],
        "title": name,
        "properties": {"proxyWidgets": proxies, "cnr_id": "v3d-studio"},
        "widgets_values": widgets,
    }
    return {
        "revision": 0,
        "last_node_id": wrapper["id"],
        "last_link_id": 0,
        "nodes": [wrapper],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {
            "BlueprintDescription": blueprint.description,
            "BlueprintSearchAliases": list(blueprint.aliases),
        },
    }
