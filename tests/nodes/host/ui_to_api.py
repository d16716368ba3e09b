"""A saved workflow (UI form) as a prompt (API form), strict about every widget.

Does what the front end's graphToPrompt does for the nodes our workflows use: widgets by position,
the extra value after a seed, the widgets below a dynamic combo, links, muted and virtual nodes, and
subgraphs, whose nodes get ids like "12:5".
"""

from __future__ import annotations

from dataclasses import dataclass

VIRTUAL = ("Note", "MarkdownNote", "Reroute")
MUTED, BYPASSED = 2, 4
INPUT_END, OUTPUT_END = -10, -20  # what links of a subgraph call its two ends
NOT_CHOSEN = ""  # a file that the user is to give; the server refuses it where it is used
WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "LOAD_3D")


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """API form of `workflow`; raises ValueError when it does not fit the nodes' schemas."""
    subgraphs = {
        entry["id"]: entry for entry in workflow.get("definitions", {}).get("subgraphs", [])
    }
    links = {link[0]: tuple(link[1:5]) for link in workflow["links"]}
    prompt = {}
    _add(_Graph("", workflow["nodes"], links, subgraphs), object_info, prompt)
    return prompt


@dataclass
class _Graph:
    """The workflow, or the subgraph that the node `wrapper` of `outer` stands for."""

    prefix: str
    nodes: list[dict]
    links: dict[int, tuple[int, int, int, int]]  # origin and slot there, target and slot there
    subgraphs: dict[str, dict]
    outer: _Graph | None = None
    wrapper: dict | None = None

    def inside(self, wrapper: dict) -> _Graph:
        """The subgraph of one of this graph's nodes."""
        subgraph = self.subgraphs[wrapper["type"]]
        ends = ("origin_id", "origin_slot", "target_id", "target_slot")
        links = {link["id"]: tuple(link[end] for end in ends) for link in subgraph["links"]}
        prefix = f"{self.prefix}{wrapper['id']}:"
        return _Graph(prefix, subgraph["nodes"], links, self.subgraphs, self, wrapper)

    def source(self, link: int) -> list | None:
        """Node and output that a link comes from, through all subgraphs.

        None: from nowhere, or from a muted node, which has no output.
        """
        origin, slot = self.links[link][:2]
        if origin == INPUT_END:
            given = self.wrapper["inputs"][slot].get("link")
            return None if given is None else self.outer.source(given)
        node = next(node for node in self.nodes if node["id"] == origin)
        if node.get("mode") == MUTED:
            return None
        if node["type"] not in self.subgraphs:
            return [f"{self.prefix}{origin}", slot]
        inner = self.inside(node)
        return inner.source(
            next(n for n, link in inner.links.items() if link[2:] == (OUTPUT_END, slot))
        )


def _add(graph: _Graph, object_info: dict, prompt: dict) -> None:
    for node in graph.nodes:
        if node["type"] in VIRTUAL or node.get("mode") in (MUTED, BYPASSED):
            continue
        if node["type"] in graph.subgraphs:
            _add(graph.inside(node), object_info, prompt)
            continue
        if node["type"] not in object_info:
            raise ValueError(f"no node {node['type']} in this ComfyUI")
        info = object_info[node["type"]]
        inputs = _widget_values(node, info)
        known = _all_inputs(info)
        for slot in node.get("inputs", []):
            if slot["name"].split(".")[0] not in known:
                raise ValueError(f"{node['type']} has no input {slot['name']}")
            source = None if slot.get("link") is None else graph.source(slot["link"])
            if source is not None:
                inputs[slot["name"]] = source
        prompt[f"{graph.prefix}{node['id']}"] = {"class_type": node["type"], "inputs": inputs}


def _all_inputs(info: dict) -> dict:
    return {**info["input"].get("required", {}), **info["input"].get("optional", {})}


def _widget_values(node: dict, info: dict) -> dict:
    values = list(node.get("widgets_values") or [])
    inputs = {}
    _take(values, _all_inputs(info), "", inputs, node["type"])
    if values:
        raise ValueError(f"{node['type']}: {len(values)} widget values too many: {values}")
    return inputs


def _take(values: list, specs: dict, prefix: str, inputs: dict, owner: str) -> None:
    for name, spec in specs.items():
        kind = spec[0]
        options = spec[1] if len(spec) > 1 else {}
        dynamic = kind == "COMFY_DYNAMICCOMBO_V3"
        if not (dynamic or isinstance(kind, list) or kind in WIDGET_TYPES):
            continue
        if options.get("forceInput"):
            continue
        if not values:
            raise ValueError(f"{owner}: no value for widget {prefix}{name}")
        value = inputs[prefix + name] = values.pop(0)
        choices = kind if isinstance(kind, list) else options.get("options")
        if dynamic:
            chosen = next((o for o in choices if o["key"] == value), None)
            if chosen is None:
                raise ValueError(f"{owner}: {value!r} is no choice of {prefix}{name}")
            below = {**chosen["inputs"].get("required", {}), **chosen["inputs"].get("optional", {})}
            _take(values, below, f"{prefix}{name}.", inputs, owner)
        elif choices and value not in choices and value != NOT_CHOSEN:
            raise ValueError(f"{owner}: {value!r} is no choice of {prefix}{name}: {choices}")
        if options.get("control_after_generate"):
            control = values.pop(0)
            if control not in ("fixed", "increment", "decrement", "randomize"):
                raise ValueError(f"{owner}: {control!r} after {prefix}{name} is no control value")
