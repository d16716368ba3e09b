// The cameras of V3D Orbit Cameras around the object. Drag beside them to look from elsewhere; drag
// frame 0 along its circle, up or down, or its knob away: the node's widgets follow.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";
import { FoldingPanel } from "./folding_panel.js";
import { MOVED_PX, OrbitDrag } from "./orbit_drag.js";
import { View, azimuthOf, cameraOf, clamp, customFromOrbit, orbitFromWidgets } from "./orbit_math.js";
import { HANDLE, KNOB_AT, coloursFor, drawScene, pointsToFit, shownFrames } from "./orbit_scene.js";
import { element, keepEvents, nodeOf, nodeOfOutput, smallButton } from "./v3d_nodes.js";
import { word } from "./v3d_words.js";

const NODE = "V3DOrbitCameras";
const KEY = "v3d_cameras"; // in the node's ui output, and the presets in its definition
const HEIGHT = 256; // px of the panel
const PX_TO_DEGREES = 0.5; // of the view, while it is turned
const ZOOM = { step: 1.2, least: 0.4, most: 6 };
const NEAR = 12; // px around a handle or camera where it is meant
const SNAP = 1; // degrees; with Shift:
const COARSE_SNAP = 15;
const EASE_MS = 220; // in which the picture fits a changed radius again
const pickers = new WeakMap(); // node -> Picker
const waiting = new Set(); // pickers whose node is not in its place yet

class Picker {
  constructor(node) {
    this.node = node;
    this.view = new View();
    this.ran = null; // the orbit of the last run
    this.hovered = -1;
    this.over = ""; // the handle below the pointer: round, knob
    this.drag = null;
    this.canvas = element("canvas", {
      position: "absolute", inset: "0", width: "100%", height: "100%", borderRadius: "4px",
      background: "var(--comfy-input-bg)", color: "var(--input-text)", touchAction: "none",
      cursor: "grab", outline: "none",
    }, { tabIndex: 0 });
    this.label = element("span", {
      flex: "1", font: "12px sans-serif", lineHeight: "16px", color: "var(--input-text)",
      whiteSpace: "pre", overflow: "hidden", textOverflow: "ellipsis", fontVariantNumeric: "tabular-nums",
    });
    this.corner = element("div", { position: "absolute", top: "4px", right: "4px", display: "flex", gap: "4px" });
    for (const [text, title, by] of [["−", word("smaller"), 1 / ZOOM.step], ["+", word("larger"), ZOOM.step]]) {
      const button = Object.assign(smallButton(() => this.magnify(by)), { textContent: text, title });
      button.style.background = "none"; // numbers of frames show through
      this.corner.append(button);
    }
    this.picture = element("div", { position: "relative", flex: "1 1 0", minHeight: "0", width: "100%" });
    this.picture.append(this.canvas, this.corner);
    this.bar = element("div", { display: "flex", gap: "8px", alignItems: "center", flex: "none", minHeight: "32px" });
    this.bar.append(this.label);
    this.root = element("div", {
      display: "flex", flexDirection: "column", gap: "4px", width: "100%", boxSizing: "border-box",
    }, { className: "v3d-cameras" });
    this.root.dataset.captureWheel = "true"; // once it has the focus; the host looks for this name
    this.root.append(this.picture, this.bar);
    keepEvents(this.root, ["pointerdown", "pointermove", "pointerup", "mousedown", "dblclick"]);
    this.panel = new FoldingPanel(node, KEY, this.root, {
      height: HEIGHT, lay: (open) => this.lay(open),
      tip: (open) => (open ? word("hideCameras") : word("showCameras")),
    });
    this.panel.fold.style.background = "none";
    this.listen();
    this.watch();
  }

  settle() {
    waiting.delete(this);
    this.panel.settle();
    const [width, height] = this.node.size;
    // the host forgets the saved height when it puts the widgets of the chosen orbit in
    if (this.savedHeight > height) this.node.setSize([width, this.savedHeight]);
    this.savedHeight = 0;
  }

  lay(open) {
    this.picture.style.display = open ? "" : "none";
    (open ? this.corner : this.bar).append(this.panel.fold);
    this.drawn = "";
  }

  // --- what is shown -----------------------------------------------------------------------------

  widget(name) {
    return this.node.widgets?.find((widget) => widget.name === name);
  }

  values() {
    const values = {};
    for (const { name, value } of this.node.widgets ?? []) {
      if (name === "orbit" || name.startsWith("orbit.")) values[name.replace("orbit.", "")] = value;
    }
    return values;
  }

  linked(name) {
    const slot = this.node.inputs?.findIndex((input) => input.name === name) ?? -1;
    return slot >= 0 && this.node.isInputConnected(slot); // newer front ends warn of input.link
  }

  // Whether another node decides where the cameras stand.
  decidedElsewhere() {
    return (this.node.inputs ?? []).some(({ name, link }) =>
      link != null && (name === "orbit" || name === "start_camera" || name.startsWith("orbit.")));
  }

  orbit() {
    if (this.drag?.orbit) return this.drag.orbit;
    if (this.decidedElsewhere() && this.ran) return this.ran;
    const presets = this.node.constructor.nodeData?.input?.required?.orbit?.[1]?.[KEY];
    const orbit = presets && orbitFromWidgets(this.values(), presets);
    const whole = orbit && Object.values(orbit).every(Number.isFinite) && orbit.frames >= 1;
    return whole ? orbit : null; // null while the widgets of another choice come
  }

  // What dragging may change: "set" a widget, or "switch" to custom first; nothing else is there.
  means() {
    const choice = this.widget("orbit")?.value;
    if (this.linked("orbit") || this.linked("start_camera")) return {};
    if (choice === "svd") return this.linked("orbit.arc") ? {} : { arc: "set" };
    if (choice === "sv3d_p") return this.linked("orbit.elevation") ? {} : { elevation: "set" };
    const kinds = ["azimuth", "elevation", "radius"];
    if (choice !== "custom") return Object.fromEntries(kinds.map((kind) => [kind, "switch"]));
    return Object.fromEntries(kinds.filter((kind) => !this.linked(`orbit.${kind}`)).map((kind) => [kind, "set"]));
  }

  handles(orbit) {
    const means = this.means();
    return {
      frame: means.arc ? orbit.frames - 1 : 0,
      round: Boolean(means.azimuth || means.elevation || means.arc),
      knob: Boolean(means.radius),
      along: Boolean(means.azimuth || means.arc),
      upwards: Boolean(means.elevation),
      active: this.drag?.handle ?? this.over,
    };
  }

  aspect() {
    const [width, height] = ["width", "height"].map((name) => Number(this.widget(name)?.value));
    return width > 0 && height > 0 ? width / height : 1;
  }

  // Redraws whenever something that is shown has changed, by whomever; rests while out of sight.
  watch() {
    const look = () => {
      this.frame = requestAnimationFrame(look);
      this.refresh();
    };
    new IntersectionObserver((changes) => {
      cancelAnimationFrame(this.frame);
      if (changes.at(-1).isIntersecting) look();
    }).observe(this.root);
  }

  refresh() {
    const orbit = this.orbit();
    if (!orbit) return;
    const { canvas, view } = this;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    const enlarged = width ? canvas.getBoundingClientRect().width / width : 1; // by the graph's zoom
    const ratio = clamp(Math.ceil(2 * enlarged * (window.devicePixelRatio || 1)) / 2, 1, 3);
    const { color, backgroundColor } = getComputedStyle(canvas);
    const chosen = Number(this.widget("frame")?.value ?? 0);
    const aspect = this.aspect();
    const handles = this.handles(orbit);
    const easing = this.easing(orbit);
    const state = [orbit, width, height, ratio, color, backgroundColor, chosen, aspect, handles,
      this.hovered, easing, view.azimuth, view.elevation, view.zoom, this.ran];
    const key = JSON.stringify(state);
    if (key === this.drawn) return;
    this.drawn = key;
    const dim = this.decidedElsewhere() && !this.ran;
    this.write(orbit, chosen, dim);
    if (!width || !height) return;
    const [columns, rows] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (canvas.width !== columns || canvas.height !== rows) Object.assign(canvas, { width: columns, height: rows });
    this.fit(easing, width, height);
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const colours = coloursFor(color, backgroundColor);
    const front = word("front");
    drawScene(context, view, { orbit, aspect, chosen, hovered: this.hovered, dim, handles, colours, front });
  }

  // The orbit that the picture is fitted to: at rest while one is dragged, then on to the new one.
  easing(orbit) {
    if (this.drag?.handle) return this.fitted;
    const [from, now] = [this.fitted ?? orbit, performance.now()];
    const far = from.radius !== orbit.radius || from.elevation !== orbit.elevation;
    if (!far || !this.eased) this.eased = { since: now, from };
    const part = far ? clamp((now - this.eased.since) / EASE_MS, 0, 1) : 1;
    const between = (name) => this.eased.from[name] + (orbit[name] - this.eased.from[name]) * part;
    const shown = part < 1 ? { ...orbit, radius: between("radius"), elevation: between("elevation") } : orbit;
    if (part === 1) this.fitted = orbit;
    return shown;
  }

  fit(orbit, width, height) {
    const { points, size } = pointsToFit({ orbit });
    this.view.fit(points, size, width, height, 14);
  }

  write(orbit, chosen, dim) {
    const frame = this.hovered >= 0 ? this.hovered : chosen;
    const none = frame >= orbit.frames;
    const azimuth = ((azimuthOf(orbit, none ? 0 : frame) % 360) + 360) % 360;
    const which = { frame, last: orbit.frames - 1, azimuth: short(azimuth) };
    const first = none ? word("noFrame", which) : word("frameAzimuth", which);
    const radius = Number(orbit.radius.toPrecision(3));
    const all = { elevation: short(orbit.elevation), radius, fov: short(orbit.fov) };
    const second = dim ? word("runToSeeCameras") : word("orbit", all);
    this.label.textContent = `${first}\n${second}`;
    this.label.title = this.label.textContent;
  }

  // --- what is dragged ---------------------------------------------------------------------------

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.clientWidth / (box.width || 1);
    return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  }

  // What is below a place: a handle or a frame.
  at({ x, y }, orbit) {
    const handles = this.handles(orbit);
    const far = (point) => Math.hypot(point.x - x, point.y - y);
    const position = cameraOf(orbit, handles.frame).position;
    const knob = this.view.project(position.map((part) => KNOB_AT * part));
    const round = this.view.project(position);
    if (handles.round && far(round) < HANDLE + 4) return { handle: "round" };
    if (handles.knob && far(knob) < NEAR) return { handle: "knob" };
    let [frame, least] = [-1, NEAR];
    for (const each of shownFrames(orbit.frames, -1)) {
      const distance = far(this.view.project(cameraOf(orbit, each).position));
      if (distance < least) [frame, least] = [each, distance];
    }
    return { frame };
  }

  listen() {
    const { canvas } = this;
    canvas.addEventListener("pointerdown", (event) => this.begin(event));
    canvas.addEventListener("pointermove", (event) => (this.drag ? this.move(event) : this.hover(event)));
    canvas.addEventListener("pointerup", () => this.end(true));
    canvas.addEventListener("pointercancel", () => this.end(false));
    canvas.addEventListener("pointerleave", () => {
      if (!this.drag) Object.assign(this, { hovered: -1, over: "" });
    });
    canvas.addEventListener("dblclick", () => Object.assign(this, { view: new View() }));
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas) return; // the graph's own zoom
      event.preventDefault();
      event.stopPropagation();
      this.magnify(ZOOM.step ** -Math.sign(event.deltaY || event.deltaX));
    }, { passive: false });
    for (const [change, colour] of [["focus", "var(--border-color)"], ["blur", "transparent"]]) {
      canvas.addEventListener(change, () => (canvas.style.boxShadow = `inset 0 0 0 1px ${colour}`));
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
  }

  hover(event) {
    const orbit = this.orbit();
    if (!orbit) return;
    const { handle = "", frame = -1 } = this.at(this.place(event), orbit);
    this.over = handle;
    this.hovered = handle === "round" ? this.handles(orbit).frame : frame;
    this.canvas.style.cursor = handle ? "move" : frame >= 0 ? "pointer" : "grab";
    this.canvas.title = this.hint(handle, frame);
  }

  hint(handle, frame) {
    const { along, upwards } = this.handles({ frames: 1 });
    const switches = Object.values(this.means()).includes("switch"); // then all ways are open
    if (handle === "knob") return switches ? word("dragRadiusCustom") : word("dragRadius");
    if (handle === "round") {
      if (this.means().arc) return word("dragArc");
      if (switches) return word("dragRoundCustom");
      if (along && upwards) return word("dragRound");
      return along ? word("dragAzimuth") : word("dragElevation");
    }
    return frame >= 0 ? word("chooseFrame", { frame }) : word("lookTip");
  }

  begin(event) {
    const orbit = this.orbit();
    if (event.button !== 0 || !orbit) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.canvas.focus({ preventScroll: true });
    const start = this.place(event);
    const { handle = "", frame = -1 } = this.at(start, orbit);
    this.drag = { start, last: start, handle, frame, moved: false, orbit: null, means: "" };
    if (handle) this.drag.changes = new OrbitDrag(this.view, orbit, handle, this.means(), start);
    else this.canvas.style.cursor = "grabbing";
  }

  // A changed orbit shows at once. Widgets that are there follow; a switch to custom waits for the
  // end, because the new widgets push the picture down.
  move(event) {
    const { drag, view } = this;
    const place = this.place(event);
    drag.moved ||= Math.hypot(place.x - drag.start.x, place.y - drag.start.y) >= MOVED_PX;
    if (!drag.moved) return;
    if (drag.handle) {
      const { kind, value, orbit } = drag.changes.to(place, event.shiftKey ? COARSE_SNAP : SNAP);
      drag.orbit = orbit;
      drag.means = this.means()[kind];
      if (drag.means === "set") this.set(`orbit.${kind}`, value);
    } else {
      view.turn(-PX_TO_DEGREES * (place.x - drag.last.x), PX_TO_DEGREES * (place.y - drag.last.y));
    }
    drag.last = place;
  }

  end(keep) {
    const { drag } = this;
    if (!drag) return;
    this.drag = null;
    this.canvas.style.cursor = "grab";
    if (!keep) return;
    if (drag.means === "switch" && drag.orbit) this.switchTo(drag.orbit);
    else if (!drag.moved && drag.frame >= 0) this.set("frame", drag.frame);
  }

  switchTo(orbit) {
    this.set("orbit", "custom");
    for (const [name, value] of Object.entries(customFromOrbit(orbit))) this.set(`orbit.${name}`, value);
  }

  // As the user would by hand; unrounded, so that a preset's own numbers stay what they are.
  set(name, value) {
    const widget = this.widget(name);
    if (!widget || this.linked(name) || widget.value === value) return;
    const old = widget.value;
    widget.value = value;
    this.node.onWidgetChanged?.(name, value, old, widget);
    this.node.setDirtyCanvas?.(true, true);
  }

  magnify(by) {
    this.view.zoom = clamp(this.view.zoom * by, ZOOM.least, ZOOM.most);
  }

  key(event) {
    const turn = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, 10], ArrowDown: [0, -10] }[event.key];
    const by = { "+": ZOOM.step, "-": 1 / ZOOM.step }[event.key];
    if ((!turn && !by) || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation(); // else the graph takes it for a shortcut
    if (turn) this.view.turn(...turn);
    else this.magnify(by);
  }
}

function short(value) {
  return String(Number(value.toFixed(1)));
}

function showOutput(node, output) {
  const ran = output?.[KEY]?.[0];
  if (ran && pickers.has(node)) pickers.get(node).ran = ran;
}

app.registerExtension({
  name: "V3D.CameraPicker",
  setup() {
    api.addEventListener("executed", ({ detail }) => {
      showOutput(nodeOf(detail.display_node ?? detail.node), detail.output);
    });
  },
  nodeCreated(node) {
    if ((node.comfyClass ?? node.type) !== NODE) return;
    const picker = new Picker(node);
    pickers.set(node, picker);
    const configured = node.onConfigure;
    node.onConfigure = function (saved) {
      picker.savedHeight = saved.size?.[1];
      return configured?.apply(this, arguments);
    };
    waiting.add(picker);
    setTimeout(() => picker.settle()); // one that is added or pasted; those of a workflow below
  },
  afterConfigureGraph() {
    for (const picker of waiting) picker.settle();
  },
  onNodeOutputsUpdated(outputs) {
    for (const [locator, output] of Object.entries(outputs ?? {})) {
      if (output?.[KEY]) showOutput(nodeOfOutput(locator), output);
    }
  },
});
