// The frames of a node's last run, to turn by dragging: one small picture of all of them comes
// with the node's output (nodes/turntable.py).

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { FoldingPanel } from "./folding_panel.js";
import { element, keepEvents, nodeOf, nodeOfOutput, smallButton } from "./v3d_nodes.js";
import { word } from "./v3d_words.js";

const KEY = "v3d_orbit";
const HEIGHT = 230; // px of the panel
const FRAMES_PER_SECOND = 10;
const scrubbers = new WeakMap(); // node -> Scrubber

class Scrubber {
  constructor(node) {
    this.node = node;
    this.frame = 0;
    this.timer = null;
    this.turn = null;
    this.sheet = new Image();
    this.sheet.onload = () => this.start();
    this.sheet.onerror = () => this.missing();
    this.canvas = element("canvas", {
      flex: "1 1 0", minHeight: "0", width: "100%", objectFit: "contain", cursor: "ew-resize",
      touchAction: "none", outlineOffset: "-2px",
    }, { tabIndex: 0, title: word("turnTip") });
    this.button = smallButton(() => this.play(!this.timer));
    this.label = element("span", {
      flex: "1", font: "12px sans-serif", color: "var(--input-text)", whiteSpace: "nowrap",
      overflow: "hidden", textOverflow: "ellipsis", fontVariantNumeric: "tabular-nums",
    });
    const bar = element("div", { display: "flex", gap: "8px", alignItems: "center", flex: "none" });
    this.root = element("div", {
      display: "flex", flexDirection: "column", gap: "4px", width: "100%", boxSizing: "border-box",
    }, { className: "v3d-orbit" });
    this.root.append(this.canvas, bar);
    keepEvents(this.root, ["pointerdown", "pointermove", "pointerup", "mousedown", "dblclick"]);
    this.panel = new FoldingPanel(node, KEY, this.root, {
      height: HEIGHT, lay: (open) => this.lay(open),
      tip: (open) => (open ? word("hideFrames") : word("showFrames")),
    });
    bar.append(this.button, this.label, this.panel.fold);
    this.listen();
    this.play(false);
    this.panel.settle();
  }

  lay(open) {
    this.canvas.style.display = open ? "block" : "none";
    this.button.style.display = open ? "" : "none";
  }

  listen() {
    const canvas = this.canvas;
    let from = null; // where a drag began: { x, frame }
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.turn) return;
      this.play(false);
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      from = { x: event.clientX, frame: this.frame };
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!from) return;
      const turned = (event.clientX - from.x) / canvas.getBoundingClientRect().width;
      this.show(from.frame + Math.round(turned * this.turn.frames.length) * this.rightwards());
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => (from = null));
    }
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!this.turn || (!step && event.key !== " ")) return;
      event.preventDefault();
      event.stopPropagation(); // else the graph takes it for a shortcut
      if (step) this.play(false);
      if (step) this.show(this.frame + step);
      else this.play(!this.timer);
    });
  }

  // The near side follows the hand: it goes right when the camera goes left.
  rightwards() {
    const [first, second] = this.turn.frames;
    if (!second) return 1;
    const step = (second.azimuth - first.azimuth + 540) % 360 - 180;
    return step > 0 ? -1 : 1;
  }

  load(turn) {
    this.next = turn;
    this.sheet.src = api.apiURL(`/view?${new URLSearchParams(turn.sheet)}`);
  }

  start() {
    this.turn = this.next;
    this.canvas.width = this.turn.width;
    this.canvas.height = this.turn.height;
    this.show(Math.min(this.frame, this.turn.frames.length - 1));
  }

  missing() {
    this.turn = null; // ComfyUI empties its temporary folder when it starts
    this.play(false);
    this.canvas.width = this.canvas.height = 1;
    this.label.textContent = word("runAgain");
  }

  show(frame) {
    const { frames, columns, width, height, total } = this.turn;
    this.frame = ((frame % frames.length) + frames.length) % frames.length;
    const left = (this.frame % columns) * width;
    const top = Math.floor(this.frame / columns) * height;
    const context = this.canvas.getContext("2d");
    context.drawImage(this.sheet, left, top, width, height, 0, 0, width, height);
    const { index, azimuth, elevation } = frames[this.frame];
    const where = {
      frame: index, last: total - 1, azimuth: azimuth.toFixed(1), elevation: elevation.toFixed(1),
    };
    const level = Math.abs(elevation) < 0.05;
    this.label.textContent = level ? word("frameAzimuth", where) : word("frameAzimuthElevation", where);
    this.label.title = this.label.textContent;
  }

  play(on) {
    clearInterval(this.timer);
    this.timer = on && this.turn ? setInterval(() => this.tick(), 1000 / FRAMES_PER_SECOND) : null;
    this.button.textContent = this.timer ? "❚❚" : "▶";
    this.button.title = this.timer ? word("pause") : word("play");
  }

  tick() {
    if (!this.node.graph) this.play(false); // the node was deleted
    else if (this.root.isConnected && this.turn) this.show(this.frame + 1);
  }
}

function showOutput(node, output) {
  const turn = output?.[KEY]?.[0];
  if (!node || !turn) return;
  if (!scrubbers.has(node)) scrubbers.set(node, new Scrubber(node));
  scrubbers.get(node).load(turn);
}

app.registerExtension({
  name: "V3D.OrbitScrubber",
  setup() {
    api.addEventListener("executed", ({ detail }) => {
      showOutput(nodeOf(detail.display_node ?? detail.node), detail.output);
    });
  },
  onNodeOutputsUpdated(outputs) { // another workflow was opened, or an earlier run
    for (const [locator, output] of Object.entries(outputs ?? {})) {
      if (output?.[KEY]) showOutput(nodeOfOutput(locator), output);
    }
  },
});
