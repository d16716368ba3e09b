// The button "Finish now" on V3D Fit Splat and V3D Fit NeuS, there only while that node runs.
// ComfyUI tells which nodes run by the ids of its prompt; "12:5" is node 5 in subgraph node 12.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const FIT_NODES = { V3DFitSplat: "V3D Fit Splat", V3DFitNeuS: "V3D Fit NeuS" }; // type -> name
const buttons = new Map(); // node id in the prompt -> { node, widget, before, after }

function nodeOf(executionId) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById(id) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

function sizeOf(node) {
  return [node.size[0], node.size[1]];
}

async function finish(promptId, nodeId, node, widget) {
  widget.disabled = true;
  widget.label = "Finishing...";
  const answer = await api.fetchApi("/v3d/finish", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ prompt_id: promptId, node_id: nodeId }),
  });
  if (!answer.ok) {
    widget.disabled = false;
    widget.label = "Finish now";
    const { error } = await answer.json().catch(() => ({ error: answer.statusText }));
    app.extensionManager?.toast?.add({
      severity: "warn", summary: FIT_NODES[node.type], detail: error, life: 5000,
    });
  }
}

function show(promptId, nodeId, node) {
  const before = sizeOf(node);
  const press = () => finish(promptId, nodeId, node, widget);
  const widget = node.addWidget("button", "Finish now", null, press, { serialize: false });
  widget.serialize = false; // its place in the saved widget values stays free
  widget.tooltip = "Ends the fit here and keeps what there is now.";
  node.expandToFitContent?.();
  node.setDirtyCanvas?.(true, true);
  buttons.set(nodeId, { promptId, node, widget, before, after: sizeOf(node) });
}

function hide(nodeId) {
  const { node, widget, before, after } = buttons.get(nodeId);
  buttons.delete(nodeId);
  if (!node.widgets?.includes(widget)) return;
  node.removeWidget(widget);
  const unchanged = sizeOf(node).every((length, axis) => length === after[axis]);
  if (unchanged) node.setSize(before); // else somebody else changed it since
  node.setDirtyCanvas?.(true, true);
}

function hideAll() {
  for (const nodeId of [...buttons.keys()]) hide(nodeId);
}

function onProgress({ detail }) {
  const running = Object.values(detail.nodes)
    .filter((state) => state.state === "running")
    .map((state) => [String(state.node_id), nodeOf(state.node_id)])
    .filter(([, node]) => node?.type in FIT_NODES);
  const shown = new Map(running);
  for (const [nodeId, button] of [...buttons]) {
    const same = button.promptId === detail.prompt_id && shown.get(nodeId) === button.node;
    if (!same) hide(nodeId); // it is done, or another graph was opened
  }
  for (const [nodeId, node] of running) {
    if (!buttons.has(nodeId)) show(detail.prompt_id, nodeId, node);
  }
}

app.registerExtension({
  name: "V3D.FinishNow",
  setup() {
    api.addEventListener("progress_state", onProgress);
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(end, hideAll);
    }
    api.addEventListener("executing", ({ detail }) => detail ?? hideAll());
  },
});
