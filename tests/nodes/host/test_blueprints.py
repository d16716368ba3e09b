"""The subgraph blueprints in subgraphs/: listed by the server, valid, and run inside a workflow."""

import json

import blueprint_graphs
import graph_layout
import numpy as np
import pytest
from prompts import DEMO, QUICK, assert_is_the_robot, node, only
from released_interface import interfaces, widget_names
from scenes import REPOSITORY, display_colours, open_mesh
from ui_to_api import to_prompt

NAMES = sorted(path.stem for path in (REPOSITORY / "subgraphs").glob("*.json"))
TINY = {"V3DPrepareImage": {"size": 64}, "V3DSampleOrbit": {"steps": 2}}


def read(name):
    return json.loads((REPOSITORY / "subgraphs" / f"{name}.json").read_text())


def with_links(blueprint, **sources):
    """A workflow of the blueprint and of nodes before it: input name -> (node in UI form, output)."""
    (wrapper,) = blueprint["nodes"]
    nodes, links = [wrapper], []
    for number, (given, (source, output)) in enumerate(sources.items(), 100):
        slot = next(s for s in wrapper["inputs"] if s["name"] == given)
        slot["link"] = number
        nodes.append(source | {"id": number, "inputs": [], "outputs": []})
        index = wrapper["inputs"].index(slot)
        links.append([number, number, output, wrapper["id"], index, slot["type"]])
    return {**blueprint, "nodes": nodes, "links": links}


def demo_views():
    return {"type": "V3DLoadViews", "widgets_values": [DEMO, "train"]}


def output_of(blueprint, prompt, name):
    """What a named output of the blueprint is in the prompt: node and output number."""
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    index = [entry["name"] for entry in subgraph["outputs"]].index(name)
    link = next(
        link
        for link in subgraph["links"]
        if (link["target_id"], link["target_slot"]) == (subgraph["outputNode"]["id"], index)
    )
    number = f"{blueprint['nodes'][0]['id']}:{link['origin_id']}"
    assert number in prompt
    return [number, link["origin_slot"]]


def test_the_server_lists_all_three(server):
    listed = server.get_json("/global_subgraphs")
    ours = {
        entry["name"]: (key, entry)
        for key, entry in listed.items()
        if entry["info"]["node_pack"] == "custom_nodes.ComfyUI-V3D"
    }
    assert sorted(ours) == NAMES == sorted(blueprint_graphs.BLUEPRINTS)
    assert len(NAMES) == 3
    for name, (key, entry) in ours.items():
        assert entry["source"] == "custom_node"
        served = server.get_json(f"/global_subgraphs/{key}")
        assert json.loads(served["data"]) == read(name)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_what_its_graph_gives_with_these_nodes(name, object_info):
    blueprint = blueprint_graphs.BLUEPRINTS[name]
    assert read(name) == blueprint_graphs.make_blueprint(name, blueprint, object_info)


@pytest.mark.parametrize("name", NAMES)
def test_one_node_stands_for_a_subgraph_whose_links_join_equal_types(name, object_info):
    blueprint = read(name)
    (wrapper,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert wrapper["type"] == subgraph["id"]
    assert wrapper["title"] == subgraph["name"] == name
    for end in ("inputs", "outputs"):
        assert [(e["name"], e["type"]) for e in wrapper[end]] == [
            (e["name"], e["type"]) for e in subgraph[end]
        ]
        assert len({entry["name"] for entry in subgraph[end]}) == len(subgraph[end])
    nodes = {entry["id"]: entry for entry in subgraph["nodes"]}
    for link in subgraph["links"]:
        types = []
        if link["origin_id"] in nodes:
            origin = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
            assert link["id"] in origin["links"]
        else:
            assert link["origin_id"] == subgraph["inputNode"]["id"]
            origin = subgraph["inputs"][link["origin_slot"]]
            assert link["id"] in origin["linkIds"]
        if link["target_id"] in nodes:
            target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
            assert link["id"] == target["link"]
        else:
            assert link["target_id"] == subgraph["outputNode"]["id"]
            target = subgraph["outputs"][link["target_slot"]]
            assert target["linkIds"] == [link["id"]]
        types = {origin["type"], target["type"], link["type"]}
        assert len(types) == 1, link
    for entry in nodes.values():
        required = object_info[entry["type"]]["input"].get("required", {})
        given = {slot["name"] for slot in entry["inputs"] if slot["link"] or "widget" in slot}
        assert set(required) <= given, entry["type"]
    assert graph_layout.overlaps(nodes) == []


@pytest.mark.parametrize("name", NAMES)
def test_exposed_widgets_are_those_of_the_nodes_inside(name):
    blueprint = read(name)
    (wrapper,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    nodes = {str(entry["id"]): entry for entry in subgraph["nodes"]}
    exposed = [entry["name"] for entry in wrapper["inputs"] if "widget" in entry]
    proxies = wrapper["properties"]["proxyWidgets"]
    assert [widget for _, widget in proxies] == exposed
    assert {"seed", "preset"} <= set(exposed) and len(exposed) <= 7
    for number, widget in proxies:
        assert widget in [s["name"] for s in nodes[number]["inputs"] if "widget" in s]


@pytest.mark.parametrize("name", NAMES)
def test_it_says_what_it_is_and_needs_no_file(name, object_info):
    blueprint = read(name)
    (subgraph,) = blueprint["definitions"]["subgraphs"]
    assert name.endswith(" (V3D)") and subgraph["category"] == "3D/V3D"
    assert subgraph["description"] == blueprint["extra"]["BlueprintDescription"]
    assert len(blueprint["extra"]["BlueprintSearchAliases"]) >= 3
    for entry in subgraph["nodes"]:
        names = {model["name"] for model in entry["properties"].get("models", [])}
        assert all(model in subgraph["description"] for model in names)
        if entry["type"] == "V3DLoadModel":  # it needs none of them, and offers the choice
            assert len(names) == 2 and not names & set(entry["widgets_values"])
            assert entry["widgets_values"][0] == "V3D-nano (bundled)"
            (wrapper,) = blueprint["nodes"]
            assert [str(entry["id"]), "model_name"] in wrapper["properties"]["proxyWidgets"]
        else:
            assert names <= set(entry["widgets_values"])  # so the front end offers them
        wants_file = entry["type"] in ("LoadBackgroundRemovalModel", "RemoveBackground")
        assert entry["mode"] == (2 if wants_file else 0)
        if entry["type"] == "V3DSampleOrbit":
            chosen = dict(zip(sampler_widgets(object_info), entry["widgets_values"], strict=True))
            assert (chosen["steps"], chosen["scale"]) == (0, 0)


def test_orbit_to_textured_mesh_runs(server, object_info):
    blueprint = read("Orbit to Textured Mesh (V3D)")
    prompt = to_prompt(with_links(blueprint, views=(demo_views(), 0)), object_info)
    for entry in prompt.values():
        entry["inputs"] |= QUICK.get(entry["class_type"], {})
    outputs = {name: output_of(blueprint, prompt, name) for name in ("mesh", "texture", "report")}
    prompt["out"] = node(
        "V3DExportMesh",
        mesh=outputs["mesh"],
        format="glb",
        filename_prefix="3d/blueprint",
        shading="as the mesh says",
        print_size_mm=100.0,
    )
    prompt["texture"] = node("PreviewImage", images=outputs["texture"])
    prompt["report"] = node("PreviewAny", source=outputs["report"])
    run = server.run(prompt)
    assert run.ended == "execution_success", run.error
    (shown,) = run.outputs["out"]["3d"]
    mesh = open_mesh(server.base / "output" / shown["subfolder"] / shown["filename"])
    assert mesh.visual.material.baseColorTexture.size == (256, 256) and mesh.volume > 0
    assert_is_the_robot(np.asarray(mesh.vertices), display_colours(mesh, "glb"))
    assert json.loads(run.outputs["report"]["text"][0])["texture"]["views"] == 18
    assert len(run.outputs["texture"]["images"]) == 1


def sampler_widgets(object_info):
    """Names of V3D Sample Orbit's saved widget values."""
    inputs = interfaces(object_info)["V3DSampleOrbit"]["inputs"]
    return widget_names(inputs, {})


def test_image_to_splat_runs_once_the_frames_are_an_orbit(server, object_info):
    """Without weights the fitted frames are the demo's; all before runs on a random model."""
    blueprint = read("Image to Splat (V3D)")
    sample = {"type": "LoadImage", "widgets_values": ["example.png"]}
    prompt = to_prompt(with_links(blueprint, image=(sample, 0)), object_info)
    for entry in prompt.values():
        entry["inputs"] |= QUICK.get(entry["class_type"], {}) | TINY.get(entry["class_type"], {})
    prompt[only(prompt, "V3DLoadModel")]["inputs"]["model_name"] = "V3D.ckpt"
    prompt[only(prompt, "V3DPrepareImage")]["inputs"]["mask"] = [only(prompt, "LoadImage"), 1]
    prompt["frames"] = node("PreviewImage", images=output_of(blueprint, prompt, "frames"))
    orbit = only(prompt, "V3DSampleOrbit")
    prompt["demo"] = node("V3DLoadViews", folder=DEMO, split="train")
    for entry in prompt.values():
        for key, value in entry["inputs"].items():
            if value == [orbit, 1]:
                entry["inputs"][key] = ["demo", 0]
    result = node("PreviewAny", source=output_of(blueprint, prompt, "report"))
    run = server.run(prompt | {"report": result})
    assert run.ended == "execution_success", run.error
    assert json.loads(run.outputs["report"]["text"][0])["psnr_train"] > 18
    assert len(run.outputs["frames"]["images"]) == 18
