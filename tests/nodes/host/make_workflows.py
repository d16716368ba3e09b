"""Writes workflows/*.json and subgraphs/*.json from their graphs and the schemas of a running ComfyUI.

    python tests/nodes/host/make_workflows.py http://127.0.0.1:8188

Widget values are stored by position, so run this again whenever a schema changes.
"""

from __future__ import annotations

import json
import math
import re
import sys
import textwrap
import urllib.request
from pathlib import Path

from blueprint_graphs import BLUEPRINTS, make_blueprint
from graph_layout import (
    GAP,
    box,
    crossings,
    group_around,
    hidden,
    overlaps,
    place,
)
from workflow_graphs import TEMPLATES, Template

REPOSITORY = Path(__file__).resolve().parents[3]
NOTE_WIDTH = 420
# of a note as the front end shows its Markdown: the node's edges, and what a character takes
NOTE_EDGE_PX, NOTE_INDENT_PX, NOTE_CHARACTER_PX, NOTE_LINE_PX = 28, 32, 6.8, 22.4


def note_size(note: str, width: int) -> list[int]:
    """Size that shows a note without scrolling."""
    height, inside = NOTE_EDGE_PX, width - NOTE_EDGE_PX
    for line in filter(None, note.splitlines()):
        text = re.sub(r"\]\([^)]*\)|[*\[#]", "", line).replace("`", "``")  # code has a frame
        room = inside - NOTE_INDENT_PX if line.startswith("* ") else inside
        rows = len(textwrap.wrap(text, int(room / NOTE_CHARACTER_PX)))
        if line.startswith("## "):
            height += 45
        elif line.startswith("### "):
            height += 74
        else:
            height += rows * NOTE_LINE_PX + 8
    return [width, math.ceil(height)]


def make_workflow(template: Template, object_info: dict) -> dict:
    """The UI form of one graph, laid out in columns."""
    left = 0 if template.note_columns else NOTE_WIDTH + GAP
    nodes, links = place(template.graph, object_info, left, template.gaps)
    width = NOTE_WIDTH
    if template.note_columns:
        above = [
            nodes[number]
            for number, node in template.graph.items()
            if node.column < template.note_columns
        ]
        width = max(NOTE_WIDTH, max(box(node)[2] for node in above))
    note_id = max(template.graph) + 1
    note = {
        "id": note_id,
        "type": "MarkdownNote",
        "pos": [0, 0],
        "size": note_size(template.note, int(width)),
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
    report(template, {**nodes, note_id: note}, links)
    return {
        "last_node_id": note_id,
        "last_link_id": len(links),
        "nodes": [note, *(nodes[number] for number in sorted(nodes))],
        "links": links,
        "groups": [
            group_around(title, colour, [nodes[number] for number in numbers])
            for title, colour, numbers in template.groups
        ],
        "config": {},
        "extra": {"workflowRendererVersion": "LG"},
        "version": 0.4,
    }


def report(template: Template, nodes: dict[int, dict], links: list) -> None:
    """Say what is hard to read in a layout."""
    names = {link[0]: f"{link[1]}.{link[2]}->{link[3]}.{link[4]}" for link in links}
    crossed = [(names[a], names[b]) for a, b in crossings(nodes, links)]
    if len(crossed) != template.crossings:
        sys.stderr.write(f"  crossings: {crossed}\n")
    behind = hidden(nodes, links)
    for link, node in behind if len(behind) != template.behind else []:
        sys.stderr.write(f"  {names[link]} passes behind {node} {nodes[node]['type']}\n")
    for one, other in overlaps(nodes):
        sys.stderr.write(f"  {one} lies on {other}\n")


def main() -> None:
    """Write every workflow and blueprint."""
    with urllib.request.urlopen(sys.argv[1].rstrip("/") + "/object_info") as answer:
        object_info = json.load(answer)
    for name, template in TEMPLATES.items():
        sys.stderr.write(f"{name}\n")
        write(REPOSITORY / "workflows" / f"{name}.json", make_workflow(template, object_info))
    for name, blueprint in BLUEPRINTS.items():
        sys.stderr.write(f"{name}\n")
        write(
            REPOSITORY / "subgraphs" / f"{name}.json", make_blueprint(name, blueprint, object_info)
        )


def write(path: Path, content: dict) -> None:
    """One file, as the front end reads it."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
