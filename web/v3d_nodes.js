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

// An element at the node's foot that is neither saved nor sent; the node grows with it.
export class Panel {
  constructor(node, name, root, height) {
    this.node = node;
    this.root = root;
    this.height = height;
    this.before = node.size[1];
    this.grown = 0; // px that the node is taller because of it
    this.widget = node.addDOMWidget(name, name, root, {
      serialize: false,
      hideOnZoom: false,
      getMinHeight: () => this.height,
      getValue: () => "",
      setValue: () => {},
    });
    this.widget.serialize = false; // its place in the saved widget values stays free
    this.resize(height);
  }

  resize(height) {
    const { node } = this;
    this.height = height;
    this.root.style.minHeight = `${height}px`;
    const own = node.size[1] - this.grown;
    const [width, needed] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(own, needed)]);
    this.grown = Math.max(0, node.size[1] - own);
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

// Events over an element that has gestures of its own must not move the graph below it.
export function keepEvents(target, names) {
  for (const name of names) target.addEventListener(name, (event) => event.stopPropagation());
}
