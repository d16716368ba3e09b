// Draws an orbit's cameras around the object on a plain canvas: what the camera picker shows.

import { azimuthOf, cameraAt, cameraOf, clamp, dot, pictureCorners } from "./orbit_math.js";

export const HANDLE = 6; // px, of the round handle
export const KNOB_AT = 1.24; // of the radius: where the knob for the distance stands
const BOX = 0.55; // half a side of the box that stands for an object within the unit sphere
const MOST_CAMERAS = 72; // drawn; of longer orbits an even choice
const TURN_SHOWN = 50; // degrees that the arrow of the direction covers at most
const CORNERS = [-1, 1].flatMap((x) => [-1, 1].flatMap((y) => [-1, 1].map((z) => [x, y, z])));
const FACES = [[0, 1], [0, -1], [1, 1], [1, -1], [2, 1], [2, -1]]; // axis and side

// Colours that stand out on the theme's own.
export function coloursFor(text, background) {
  const [red, green, blue] = (text.match(/[\d.]+/g) ?? [200, 200, 200]).map(Number);
  const dark = 0.3 * red + 0.59 * green + 0.11 * blue > 128; // light text
  return {
    text, background,
    start: dark ? "#f0a83a" : "#c46f00",
    chosen: dark ? "#58b0f0" : "#1472bd",
    camera: dark ? "#b9c2d0" : "#56617a",
    axes: dark ? ["#e06a62", "#7cc25a", "#6f9bf0"] : ["#c23c34", "#3f8a25", "#2f62c8"],
    box: dark ? [128, 140, 160] : [150, 160, 178],
    front: dark ? "#dfe6f0" : "#ffffff",
    onFront: dark ? "#3a4250" : "#4a5468",
  };
}

// Which frames are drawn: all, or an even choice with the first, the last and the chosen one.
export function shownFrames(frames, chosen) {
  const count = Math.min(frames, MOST_CAMERAS);
  const even = Array.from({ length: count }, (_, i) => Math.round(i * (frames - 1) / Math.max(1, count - 1)));
  return [...new Set([...even, ...(chosen < frames ? [chosen] : [])])].sort((a, b) => a - b);
}

// Points that a view must hold, and the largest distance among them.
export function pointsToFit({ orbit }) {
  const size = Math.max(KNOB_AT * orbit.radius, 1.5 * BOX);
  const around = Array.from({ length: 24 }, (_, i) => 15 * i);
  const ring = around.map((azimuth) => cameraAt(azimuth, orbit.elevation, 1.12 * orbit.radius).position);
  const ground = around.map((azimuth) => onGround(azimuth, groundRadius(orbit)));
  const box = CORNERS.map((corner) => corner.map((side) => side * BOX));
  const knob = cameraAt(orbit.azimuth, orbit.elevation, KNOB_AT * orbit.radius).position;
  return { points: [...ring, ...ground, ...box, knob, [0, 1.15, 0]], size };
}

function groundRadius({ radius, elevation }) {
  return Math.max(2 * BOX, radius * Math.max(0.6, Math.cos(elevation * Math.PI / 180)));
}

function onGround(azimuth, radius) {
  const [x, , z] = cameraAt(azimuth, 0, radius).position;
  return [x, -BOX, z];
}

// The whole picture. `scene`: orbit, aspect, chosen, hovered (frame or -1), dim, handles, colours, and
// `front`, the word on that side of the object.
export function drawScene(context, view, scene) {
  const pen = new Pen(context, view, scene);
  pen.ground();
  pen.items = [];
  pen.box();
  pen.ring();
  pen.cameras();
  pen.items.sort((a, b) => b.depth - a.depth);
  for (const item of pen.items) item.draw();
  if (scene.orbit.frames > 1) pen.direction();
  pen.handles();
  pen.numbers();
  context.globalAlpha = 1;
}

class Pen {
  constructor(context, view, scene) {
    Object.assign(this, { context, view, scene, colours: scene.colours, orbit: scene.orbit });
    this.middle = view.project([0, 0, 0]);
    this.reach = Math.max(this.orbit.radius, BOX);
    this.shown = shownFrames(this.orbit.frames, scene.chosen);
    this.strength = scene.dim ? 0.45 : 1;
    this.arrow = []; // where it goes, px
    this.taken = []; // by a word, px
    Object.assign(context, { lineJoin: "round", lineCap: "round" });
  }

  // Nearer things are stronger: 1 in front, less behind.
  near(depth, least = 0.4) {
    const behind = clamp((depth - this.middle.depth + this.reach) / (2 * this.reach), 0, 1);
    return this.strength * (1 - (1 - least) * behind);
  }

  path(points, closed = false) {
    const { context, view } = this;
    context.beginPath();
    for (const point of points) {
      const { x, y } = view.project(point);
      context.lineTo(x, y);
    }
    if (closed) context.closePath();
  }

  stroke(points, colour, alpha, width = 1, closed = false) {
    this.path(points, closed);
    Object.assign(this.context, { strokeStyle: colour, globalAlpha: alpha, lineWidth: width });
    this.context.stroke();
  }

  fill(points, colour, alpha) {
    this.path(points, true);
    Object.assign(this.context, { fillStyle: colour, globalAlpha: alpha });
    this.context.fill();
  }

  later(points, draw) {
    const depth = points.reduce((sum, p) => sum + this.view.project(p).depth, 0) / points.length;
    this.items.push({ depth, draw: () => draw(depth) });
  }

  write(text, { x, y }, colour, alpha, font) {
    const { context } = this;
    Object.assign(context, { font, textAlign: "center", textBaseline: "middle", lineJoin: "round" });
    Object.assign(context, { globalAlpha: alpha, lineWidth: 3, strokeStyle: this.colours.background });
    context.strokeText(text, x, y);
    context.fillStyle = colour;
    context.fillText(text, x, y);
  }

  // Circles and spokes every 30 degrees; the one in front is marked.
  ground() {
    const { text } = this.colours;
    const radius = groundRadius(this.orbit);
    const circle = (r) => Array.from({ length: 73 }, (_, i) => onGround(5 * i, r));
    this.fill(circle(radius), text, 0.035 * this.strength);
    for (const part of [1 / 3, 2 / 3, 1]) this.stroke(circle(part * radius), text, 0.13 * this.strength);
    for (let azimuth = 0; azimuth < 360; azimuth += 30) {
      const whole = azimuth % 90 === 0;
      const alpha = (whole ? 0.17 : 0.08) * this.strength;
      this.stroke([onGround(azimuth, 0), onGround(azimuth, radius)], text, alpha);
    }
    const tip = Math.min(radius, Math.max(2.1 * BOX, 0.62 * radius));
    const [side, back] = [0.07 * radius, tip - 0.16 * radius];
    this.stroke([onGround(0, BOX), onGround(0, tip)], text, 0.6 * this.strength, 1.5);
    this.fill([[-side, -BOX, back], [0, -BOX, tip], [side, -BOX, back]], text, 0.6 * this.strength);
  }

  // The object's stand-in, its front named, and the axes of the world.
  box() {
    const { view, colours } = this;
    const eye = view.axes.position.map((part) => part * view.distance);
    for (const [axis, side] of FACES) {
      const normal = [0, 0, 0];
      normal[axis] = side;
      if (dot(eye, normal) <= BOX) continue; // turned away
      const [u, v] = [(axis + 1) % 3, (axis + 2) % 3];
      const corners = [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([a, b]) => {
        const corner = [0, 0, 0];
        [corner[axis], corner[u], corner[v]] = [side * BOX, a * BOX, b * BOX];
        return corner;
      });
      const front = axis === 2 && side === 1;
      const light = 0.62 + 0.3 * Math.max(0, normal[1]) + 0.14 * normal[0] + 0.1 * normal[2];
      const grey = `rgb(${colours.box.map((part) => Math.round(part * light)).join(",")})`;
      this.later(corners, () => {
        this.fill(corners, colours.background, this.strength);
        this.fill(corners, grey, this.strength * 0.85);
        if (front) this.fill(corners, colours.front, this.strength * 0.85);
        this.stroke(corners, colours.background, this.strength * 0.8, 1, true);
        if (front) this.nameFront();
      });
    }
    for (let axis = 0; axis < 3; axis += 1) {
      const ends = [BOX, 1].map((length) => [0, 1, 2].map((i) => (i === axis ? length : 0)));
      this.later(ends, () => {
        this.stroke(ends, colours.axes[axis], 0.9 * this.strength, 2);
        const place = this.view.project(ends[1]);
        const from = this.middle;
        const length = Math.hypot(place.x - from.x, place.y - from.y) || 1;
        place.x += 7 * (place.x - from.x) / length;
        place.y += 7 * (place.y - from.y) / length;
        this.taken.push(place);
        this.write("XYZ"[axis], place, colours.axes[axis], 0.9 * this.strength, "bold 9px sans-serif");
      });
    }
  }

  // The word lies in the face, as if painted on it.
  nameFront() {
    const { context, view, colours } = this;
    const [middle, right, down] = [[0, 0, BOX], [BOX, 0, BOX], [0, -BOX, BOX]].map((p) => view.project(p));
    const size = 40; // units of the text per half a side
    context.save();
    context.transform((right.x - middle.x) / size, (right.y - middle.y) / size,
      (down.x - middle.x) / size, (down.y - middle.y) / size, middle.x, middle.y);
    Object.assign(context, { font: "bold 26px sans-serif", textAlign: "center", textBaseline: "middle" });
    Object.assign(context, { fillStyle: colours.onFront, globalAlpha: this.strength });
    context.fillText(this.scene.front, 0, 0, 1.9 * size); // no language leaves the face
    context.restore();
  }

  // The circle the cameras stand on: full where they are, faint elsewhere.
  ring() {
    const { orbit, colours } = this;
    const covered = Math.min(360, Math.abs(orbit.step) * orbit.frames + 1e-6);
    const backwards = orbit.step < 0;
    for (let i = 0; i < 360; i += 4) {
      const along = [i, i + 4].map((angle) => orbit.azimuth + (backwards ? -angle : angle));
      const ends = along.map((azimuth) => cameraAt(azimuth, orbit.elevation, orbit.radius).position);
      const there = i < covered - Math.abs(orbit.step);
      this.later(ends, (depth) => {
        this.stroke(ends, colours.camera, this.near(depth) * (there ? 0.55 : 0.22), there ? 1.5 : 1);
      });
    }
  }

  cameras() {
    const { orbit, scene, colours } = this;
    const apart = Math.abs(orbit.step) * orbit.frames / Math.min(orbit.frames, MOST_CAMERAS);
    const spacing = orbit.radius * Math.min(apart, 40) * Math.PI / 180;
    const wide = Math.tan(orbit.fov * Math.PI / 360) * Math.max(1, scene.aspect);
    const reach = Math.min(0.2 * this.reach, 0.42 * spacing / wide, 0.3 * this.reach / wide);
    const depthOfPicture = Math.max(reach, 0.05 * this.reach / Math.max(1, wide));
    for (const frame of this.shown) {
      const camera = cameraOf(orbit, frame);
      const special = frame === 0 || frame === scene.chosen || frame === scene.hovered;
      const colour = this.colourOf(frame);
      const deep = depthOfPicture * (special ? 1.35 : 1);
      const corners = pictureCorners(camera, deep, orbit.fov, scene.aspect);
      const top = corners[0].map((part, i) => (part + corners[1][i]) / 2 - 0.22 * deep * camera.down[i]);
      this.later([camera.position, ...corners], (depth) => {
        const alpha = special ? Math.max(this.near(depth), 0.75 * this.strength) : this.near(depth, 0.3);
        this.fill(corners, colour, alpha * (special ? 0.4 : 0.16));
        for (const corner of corners) this.stroke([camera.position, corner], colour, 0.75 * alpha, special ? 1.5 : 1);
        this.stroke(corners, colour, alpha, special ? 2 : 1, true);
        this.fill([corners[0], top, corners[1]], colour, alpha); // this way is up
      });
    }
  }

  colourOf(frame) {
    const { scene, colours } = this;
    if (frame === 0) return colours.start;
    if (frame === scene.chosen) return colours.chosen;
    return frame === scene.hovered ? colours.text : colours.camera;
  }

  // An arrow outside the circle, the way the camera goes.
  direction() {
    const { orbit, colours, context } = this;
    const whole = Math.abs(orbit.step) * Math.max(1, orbit.frames - 1);
    const sweep = Math.min(TURN_SHOWN, Math.max(whole, 8)) * Math.sign(orbit.step || 1);
    const at = (part) => cameraAt(orbit.azimuth + part * sweep, orbit.elevation, 1.13 * orbit.radius).position;
    const points = Array.from({ length: 21 }, (_, i) => at(0.16 + 0.84 * i / 20));
    this.arrow = points.map((point) => this.view.project(point));
    const alpha = this.near(this.view.project(points[20]).depth, 0.6);
    this.stroke(points, colours.start, 0.9 * alpha, 2);
    const [from, to] = [this.arrow[18], this.arrow[20]];
    const angle = Math.atan2(to.y - from.y, to.x - from.x);
    context.beginPath();
    for (const [ahead, aside] of [[6, 0], [-4, 5], [-4, -5]]) {
      context.lineTo(to.x + ahead * Math.cos(angle) - aside * Math.sin(angle),
        to.y + ahead * Math.sin(angle) + aside * Math.cos(angle));
    }
    Object.assign(context, { fillStyle: colours.start, globalAlpha: alpha });
    context.fill();
  }

  // What can be dragged: a camera along the circle or up and down, a knob towards it and away.
  handles() {
    const { orbit, context, colours, scene } = this;
    const { frame, round, knob, active } = scene.handles;
    const position = cameraOf(orbit, frame).position;
    if (round) {
      const { x, y } = this.view.project(position);
      if (active === "round") this.crossArrows(frame);
      context.beginPath();
      context.arc(x, y, HANDLE - (active === "round" ? 0 : 1.5), 0, 2 * Math.PI);
      Object.assign(context, { fillStyle: colours.start, globalAlpha: 1, strokeStyle: colours.background, lineWidth: 1.5 });
      context.fill();
      context.stroke();
    }
    if (knob) {
      const outside = position.map((part) => KNOB_AT * part);
      this.stroke([position, outside], colours.start, 0.8, 1.5);
      const [from, to] = [this.view.project(position), this.view.project(outside)];
      const angle = Math.atan2(to.y - from.y, to.x - from.x);
      context.save();
      context.translate(to.x, to.y);
      context.rotate(angle);
      const size = active === "knob" ? 6 : 5;
      context.beginPath();
      for (const [x, y] of [[-size, 0], [0, -size], [size, 0], [0, size]]) context.lineTo(x, y);
      context.closePath();
      Object.assign(context, { fillStyle: colours.start, globalAlpha: 1, strokeStyle: colours.background, lineWidth: 1.5 });
      context.fill();
      context.stroke();
      context.restore();
    }
  }

  // The ways a handle may go, as dashed lines through it.
  crossArrows(frame) {
    const { orbit, scene, context } = this;
    const azimuth = azimuthOf(orbit, frame);
    context.setLineDash([3, 3]);
    if (scene.handles.along) {
      const along = [-24, -16, -8, 0, 8, 16, 24].map((d) => cameraAt(azimuth + d, orbit.elevation, orbit.radius).position);
      this.stroke(along, this.colours.start, 0.9, 1.5);
    }
    if (scene.handles.upwards) {
      const upwards = [-24, -16, -8, 0, 8, 16, 24]
        .map((d) => cameraAt(azimuth, clamp(orbit.elevation + d, -89, 89), orbit.radius).position);
      this.stroke(upwards, this.colours.start, 0.9, 1.5);
    }
    context.setLineDash([]);
  }

  // Outwards of a camera, beyond the arrow where it passes.
  beside(apex, ux, uy) {
    const away = [11, 17, 23].find((px) =>
      this.arrow.every((p) => Math.hypot(p.x - apex.x - px * ux, p.y - apex.y - px * uy) > 8));
    return { x: apex.x + (away ?? 11) * ux, y: apex.y + (away ?? 11) * uy };
  }

  // Frame numbers outside the circle, the important ones first, none over another.
  numbers() {
    const { orbit, scene } = this;
    const first = [0, scene.hovered, scene.chosen, orbit.frames - 1].filter((f) => f >= 0 && f < orbit.frames);
    for (const frame of new Set([...first, ...this.shown])) {
      const apex = this.view.project(cameraOf(orbit, frame).position);
      const out = this.view.project(cameraAt(azimuthOf(orbit, frame), orbit.elevation, 1.1 * orbit.radius).position);
      const [dx, dy] = [out.x - apex.x, out.y - apex.y];
      const length = Math.hypot(dx, dy);
      const [ux, uy] = length > 1 ? [dx / length, dy / length] : [0, -1];
      // the knob of frame 0 stands where its number would
      const aside = frame === scene.handles.frame && (scene.handles.knob || scene.handles.round);
      const place = aside
        ? { x: apex.x - 13 * uy * Math.sign(-uy || 1), y: apex.y + 13 * ux * Math.sign(-uy || 1) }
        : this.beside(apex, ux, uy);
      const special = first.includes(frame) && frame !== orbit.frames - 1;
      if (!special && this.taken.some((t) => Math.abs(t.x - place.x) < 15 && Math.abs(t.y - place.y) < 11)) continue;
      this.taken.push(place);
      const alpha = special ? 1 : this.near(apex.depth, 0.45) * 0.9;
      const font = special ? "bold 12px sans-serif" : "10px sans-serif";
      const colour = special ? this.colourOf(frame) : this.colours.text;
      this.write(String(frame), place, colour, alpha * (special ? this.strength : 1), font);
    }
  }
}
