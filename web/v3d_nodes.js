// Nodes of the pack as ComfyUI's events name them, and widgets that are nobody's input.

import { app } from "../../scripts/app.js";

// The node of a prompt's id: "12:5" is node 5 in subgraph node 12.
export function nodeOf(executionId) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const id of String(executionId).split(":")) {
    node = graph?.getNodeById(id) ?? null;
    graph = node?.subgraph;
  }
  return node;
}

// Outputs as the front end keeps them are named "id" or, in a subgraph, "subgraph's uuid:id".
export function nodeOfOutput(locator) {
  const parts = String(locator).split(":");
  const id = parts.pop();
  const root = app.rootGraph ?? app.graph;
  const graph = parts.length ? root?.subgraphs?.get(parts[0]) : root;
  return graph?.getNodeById(id) ?? null;
}

const panels = new Set(); // that may be in the page

// In Vue nodes the host keeps what it shows for a node's id. After an undo, or in another graph, that
// is the element of a node that is gone; the one of the node that is there takes its place.
function mendPanels() {
  for (const panel of panels) {
    const { node, root, widget } = panel;
    if (!root.isConnected && !node.graph) panels.delete(panel);
    if (!root.isConnected || !window.LiteGraph?.vueNodesMode) continue;
    const current = app.canvas?.graph?.getNodeById(node.id);
    const own = current?.widgets?.find(({ name }) => name === widget.name)?.element;
    if (current !== node && own && !own.isConnected) root.replaceWith(own);
  }
}

function mendSoon() { // when the host has shown what it will
  for (const ms of [50, 300]) setTimeout(mendPanels, ms);
}

// An element at the node's foot that is neither saved nor sent; the node grows with it.
export class Panel {
  constructor(node, name, root, height) {
    this.node = node;
    this.root = root;
    this.height = height;
    this.before = node.size[1];
    this.widget = node.addDOMWidget(name, name, root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => this.height,
      getValue: () => "",
      setValue: () => {},
    });
    root.addEventListener("wheel", (event) => { // over elements the host zooms in Vue nodes alone
      if (!event.defaultPrevented && !window.LiteGraph?.vueNodesMode) app.canvas.processMouseWheel(event);
    });
    this.widget.serialize = false; // its place in the saved widget values stays free
    if (!panels.size) app.canvas?.canvas?.addEventListener("litegraph:set-graph", mendSoon);
    panels.add(this);
    mendSoon();
    this.resize(height);
  }

  // What room the user has given the node beyond what it needs stays.
  resize(height) {
    const { node } = this;
    const own = node.size[1] + height - this.height;
    this.height = height;
    this.root.style.minHeight = `${height}px`;
    const [width, needed] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(own, needed)]);
    node.setDirtyCanvas?.(true, true);
  }

  remove() {
    const { node } = this;
    if (!node.widgets?.includes(this.widget)) return;
    const slack = Math.max(0, node.size[1] - Math.max(this.before, node.computeSize()[1]));
    node.removeWidget(this.widget); // others, as the host's preview, may have come since
    node.setSize([node.size[0], Math.max(this.before, node.computeSize()[1]) + slack]);
    node.setDirtyCanvas?.(true, true);
  }
}

// Whether a node that is so much taller would lie on others.
export function wouldCover(node, more) {
  const title = 30; // px above a node's position
  const [left, top, right] = [node.pos[0], node.pos[1] - title, node.pos[0] + node.size[0]];
  const bottom = node.pos[1] + node.size[1];
  return (node.graph?.nodes ?? node.graph?._nodes ?? []).some((other) =>
    other !== node && other.pos[0] < right && other.pos[0] + other.size[0] > left &&
    other.pos[1] - title < bottom + more && other.pos[1] + other.size[1] > top);
}

export function element(tag, style, properties = {}) {
  const made = Object.assign(document.createElement(tag), properties);
  Object.assign(made.style, style);
  return made;
}

export function smallButton(onclick) {
  return element("button", {
    minWidth: "28px", height: "22px", padding: "0 6px", font: "12px sans-serif", border: "none", borderRadius: "4px",
    background: "var(--comfy-input-bg)", color: "var(--input-text)", cursor: "pointer",
    flex: "none",
  }, { onclick, type: "button" });
}

// Events over an element that has gestures of its own must not move the graph below it.
export function keepEvents(target, names) {
  for (const name of names) target.addEventListener(name, (event) => event.stopPropagation());
}
