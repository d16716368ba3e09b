// The panel on V3D Fit Splat and V3D Fit NeuS while they run: curves of the loss and the PSNR, how
// far the fit is, and the button "Finish now". Its figures come as the event "v3d.fit"
// (nodes/fit_progress.py).

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { Panel, element, keepEvents, nodeOf, wouldCover } from "./v3d_nodes.js";
import { word } from "./v3d_words.js";

const PSNR = { // by the type of the node; what the running PSNR is taken on
  V3DFitSplat: (psnr) => word("psnrOfView", { psnr }),
  V3DFitNeuS: (psnr) => word("psnrOfRays", { psnr }),
};
const HEIGHT = 150; // px of the panel
const MOST_POINTS = 600; // of a curve; a longer one keeps every second
const CURVES = { loss: "#e5a33b", psnr: "#4fa3e0" };
const panels = new Map(); // node id in the prompt -> FitPanel

class FitPanel {
  constructor(promptId, nodeId, node) {
    Object.assign(this, { promptId, nodeId, node });
    this.canvas = element("canvas", {
      flex: "1 1 0", minHeight: "0", width: "100%", borderRadius: "4px",
      background: "var(--comfy-input-bg)",
    });
    this.lines = element("div", {
      font: "12px sans-serif", lineHeight: "16px", flex: "none", whiteSpace: "pre-line",
      color: "var(--input-text)", fontVariantNumeric: "tabular-nums", overflow: "hidden",
    });
    this.button = element("button", {
      flex: "none", height: "26px", font: "12px sans-serif", border: "none", borderRadius: "4px",
      background: "var(--comfy-input-bg)", color: "var(--input-text)", cursor: "pointer",
    }, {
      type: "button", onclick: () => this.finish(), textContent: word("finishNow"), title: word("finishNowTip"),
    });
    const root = element("div", {
      display: "flex", flexDirection: "column", gap: "4px", width: "100%", boxSizing: "border-box",
    }, { className: "v3d-fit" });
    root.append(this.canvas, this.lines, this.button);
    keepEvents(root, ["pointerdown", "pointerup", "mousedown", "dblclick"]);
    this.begin(promptId);
    this.panel = new Panel(node, "v3d_fit", root, HEIGHT);
    this.observer = new ResizeObserver(() => this.draw());
    this.observer.observe(this.canvas);
  }

  begin(promptId) {
    this.promptId = promptId;
    this.running = true;
    this.step = 1; // the last one there is
    this.curves = { loss: [], psnr: [] };
    this.latest = {};
    this.lines.textContent = word("starting");
    Object.assign(this.button, { disabled: false, textContent: word("finishNow") });
    this.button.style.display = "";
    this.draw();
  }

  // The fit is over; its curves stay where they are in nobody's way.
  end() {
    if (!this.running) return;
    this.running = false;
    this.button.style.display = "none";
    if (!this.curves.loss.length || wouldCover(this.node, 0)) this.remove();
  }

  remove() {
    this.observer.disconnect();
    panels.delete(this.nodeId);
    this.panel.remove();
  }

  async finish() {
    Object.assign(this.button, { disabled: true, textContent: word("finishing") });
    const answer = await api.fetchApi("/v3d/finish", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ prompt_id: this.promptId, node_id: this.nodeId }),
    });
    if (answer.ok) return;
    Object.assign(this.button, { disabled: false, textContent: word("finishNow") });
    const { error } = await answer.json().catch(() => ({ error: answer.statusText }));
    const detail = answer.status === 404 ? word("fitIsOver") : error; // others than 404 are faults
    app.extensionManager?.toast?.add({
      severity: "warn", summary: this.node.constructor.title, detail, life: 5000,
    });
  }

  add({ step, total, seconds, left, points }) {
    this.step = Math.max(step, 1);
    for (const point of points) {
      Object.assign(this.latest, point);
      for (const [name, curve] of Object.entries(this.curves)) {
        if (Number.isFinite(point[name])) curve.push([point.step, point[name]]);
        if (curve.length > MOST_POINTS) this.curves[name] = curve.filter((_, i) => i % 2 === 0);
      }
    }
    const { splats } = this.latest;
    const figures = {
      step, total, seconds: seconds.toFixed(0), left: left?.toFixed(0), splats: splats?.toLocaleString("en"),
    };
    if (left === null) {
      this.lines.textContent = splats ? word("stepSecondsSplats", figures) : word("stepSeconds", figures);
    } else {
      this.lines.textContent = splats ? word("stepLeftSplats", figures) : word("stepLeft", figures);
    }
    this.draw();
  }

  draw() {
    const { canvas } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width || !height) return;
    const ratio = window.devicePixelRatio || 1;
    const [columns, rows] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== columns || canvas.height !== rows) {
      Object.assign(canvas, { width: columns, height: rows });
    }
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    context.font = "11px sans-serif";
    context.textBaseline = "top";
    const { loss, psnr } = this.curves;
    this.line(context, loss, CURVES.loss, width, height, Math.log);
    this.line(context, psnr, CURVES.psnr, width, height, (value) => value);
    if (loss.length) {
      const text = word("loss", { loss: loss.at(-1)[1].toPrecision(3) });
      label(context, CURVES.loss, text, 6, "left");
    }
    if (psnr.length) {
      const text = PSNR[this.node.type](psnr.at(-1)[1].toFixed(1));
      label(context, CURVES.psnr, text, width - 6, "right");
    }
  }

  line(context, curve, colour, width, height, scale) {
    if (!curve.length) return;
    const values = curve.map(([, value]) => scale(Math.max(value, 1e-9)));
    const [least, most] = [Math.min(...values), Math.max(...values)];
    const [top, bottom] = [22, height - 6]; // below the labels
    const y = (value) => bottom - (bottom - top) * ((value - least) / (most - least || 1));
    context.strokeStyle = colour;
    context.lineWidth = 1.5;
    context.beginPath();
    curve.forEach(([step], i) => context.lineTo((step / this.step) * width, y(values[i])));
    context.stroke();
  }
}

function label(context, colour, text, x, side) {
  context.fillStyle = colour;
  context.textAlign = side;
  context.fillText(text, x, 5);
}

function show(promptId, nodeId, node) {
  const panel = panels.get(nodeId);
  if (panel?.node !== node) {
    panel?.remove(); // of another graph
    panels.set(nodeId, new FitPanel(promptId, nodeId, node));
  } else if (panel.promptId !== promptId || !panel.running) {
    panel.begin(promptId);
  }
  return panels.get(nodeId);
}

function endAll() {
  for (const panel of [...panels.values()]) panel.end();
}

function onProgress({ detail }) {
  const running = Object.values(detail.nodes)
    .filter((state) => state.state === "running")
    .map((state) => [String(state.node_id), nodeOf(state.node_id)])
    .filter(([, node]) => node?.type in PSNR);
  const shown = new Map(running);
  for (const [nodeId, panel] of [...panels]) {
    const same = panel.promptId === detail.prompt_id && shown.get(nodeId) === panel.node;
    if (!same) panel.end(); // it is done, or another graph was opened
  }
  for (const [nodeId, node] of running) show(detail.prompt_id, nodeId, node);
}

function onFigures({ detail }) {
  const panel = panels.get(detail.node_id);
  if (panel?.running && panel.promptId === detail.prompt_id) panel.add(detail);
}

app.registerExtension({
  name: "V3D.FitPanel",
  setup() {
    api.addEventListener("progress_state", onProgress);
    api.addEventListener("v3d.fit", onFigures);
    for (const end of ["execution_success", "execution_error", "execution_interrupted"]) {
      api.addEventListener(end, endAll);
    }
    api.addEventListener("executing", ({ detail }) => detail ?? endAll());
  },
});
