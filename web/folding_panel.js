// A panel whose picture can be folded away. The choice is saved with the workflow; where there is
// none, the picture is shown if the node has room for it.

import { Panel, smallButton, wouldCover } from "./v3d_nodes.js";
import { word } from "./v3d_words.js";

const FOLDED = 42; // px, with the lines below the picture alone

export class FoldingPanel {
  // `lay(open)` arranges the root, in which it puts `fold`, the button; `tip(open)` says what that does.
  constructor(node, name, root, { height, tip, lay }) {
    Object.assign(this, { node, name, root, height, tip, lay });
    this.property = `${name}_open`; // of the node
    this.fold = smallButton(() => this.unfold(!this.open));
    this.panel = null;
  }

  // Once its node stands where it belongs: whether there is room says where the others are.
  settle() {
    if (!this.node.graph || this.panel) return;
    const kept = this.node.properties?.[this.property];
    this.show(kept ?? !wouldCover(this.node, this.height));
    this.panel = new Panel(this.node, this.name, this.root, this.room());
  }

  unfold(open) {
    this.show(open);
    this.panel.resize(this.room());
  }

  room() {
    return this.open ? this.height : FOLDED;
  }

  show(open) {
    this.open = open;
    this.node.properties[this.property] = open;
    this.fold.textContent = open ? word("hide") : word("show");
    this.fold.title = this.tip(open);
    this.lay(open);
  }
}
