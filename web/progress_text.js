// The line of text under a node of a subgraph while it runs, and what it said last. Nodes outside of
// subgraphs have the host's own line (nodes/runtime.py, show_text).

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Panel, element, nodeOf } from "./v3d_nodes.js";

const HEIGHT = 50; // px of the panel: three lines, more are scrolled to
const lines = new WeakMap(); // node -> element

function show({ detail }) {
  const node = nodeOf(detail.node_id);
  if (!node) return; // another workflow is open
  if (!lines.has(node)) {
    const line = element("div", {
      font: "12px sans-serif", lineHeight: "16px", color: "var(--input-text)", overflowY: "auto",
      width: "100%", maxHeight: `${HEIGHT}px`, boxSizing: "border-box", overflowWrap: "anywhere", fontVariantNumeric: "tabular-nums",
    }, { className: "v3d-text" });
    new Panel(node, "v3d_text", line, HEIGHT);
    lines.set(node, line);
  }
  const line = lines.get(node);
  line.textContent = line.title = detail.text;
}

app.registerExtension({
  name: "V3D.ProgressText",
  setup() {
    api.addEventListener("v3d.text", show);
  },
});
