// Orbits as v3d_core/cameras.py defines them: azimuth 0 on +Z, counter-clockwise from above, +Y up;
// camera axes x right, y down, z forward. Angles in degrees. Nothing here needs a browser.

const RADIANS = Math.PI / 180;

// The orbit that the widgets of V3D Orbit Cameras describe (nodes/orbit.py, orbit_from_widgets).
// `presets` are the orbits without widgets, as the node's definition states them.
export function orbitFromWidgets(values, presets) {
  const { orbit: choice, frames, elevation, fov } = values;
  if (presets[choice]) return { ...presets[choice] };
  if (choice === "sv3d_p") return arc(frames, 360, presets.sv3d.fov, elevation, presets.v3d);
  if (choice === "svd") return arc(frames, values.arc, fov, 0, presets.v3d);
  const { views, radius, azimuth, direction } = values;
  const step = (direction === "clockwise" ? -360 : 360) / views;
  return { frames: views, radius, elevation, fov, azimuth, step };
}

// From azimuth 0 to `degrees`, both ends included, at the distance where objects look as large as
// with `v3d`.
function arc(frames, degrees, fov, elevation, v3d) {
  const tan = (angle) => Math.tan((angle / 2) * RADIANS);
  const radius = v3d.radius * tan(v3d.fov) / tan(fov);
  return { frames, radius, elevation, fov, azimuth: 0, step: degrees / (frames - 1) };
}

// The widgets below "custom" that make the same orbit, if it is a full turn.
export function customFromOrbit({ frames, radius, elevation, fov, azimuth, step }) {
  const direction = step < 0 ? "clockwise" : "counter-clockwise";
  return { views: frames, radius, elevation, fov, azimuth, direction };
}

export function azimuthOf(orbit, frame) {
  return orbit.azimuth + orbit.step * frame;
}

// Position and axes of a camera that looks at the origin.
export function cameraAt(azimuth, elevation, radius) {
  const [sinA, cosA] = [Math.sin(azimuth * RADIANS), Math.cos(azimuth * RADIANS)];
  const [sinE, cosE] = [Math.sin(elevation * RADIANS), Math.cos(elevation * RADIANS)];
  const forward = [-cosE * sinA, -sinE, -cosE * cosA];
  return {
    position: forward.map((part) => -radius * part),
    right: [cosA, 0, -sinA],
    down: [sinE * sinA, -cosE, sinE * cosA],
    forward,
  };
}

export function cameraOf(orbit, frame) {
  return cameraAt(azimuthOf(orbit, frame), orbit.elevation, orbit.radius);
}

// The four corners of a camera's picture at a depth: upper left, upper right, lower right, lower left.
export function pictureCorners({ position, right, down, forward }, depth, fov, aspect) {
  const high = depth * Math.tan((fov / 2) * RADIANS);
  const wide = high * aspect;
  return [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([x, y]) =>
    position.map((p, i) => p + depth * forward[i] + x * wide * right[i] + y * high * down[i]));
}

export function dot(a, b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}

export function wrapDegrees(angle) { // -180 < result <= 180
  return angle - 360 * Math.ceil((angle - 180) / 360);
}

export function clamp(value, least, most) {
  return Math.min(Math.max(value, least), most);
}

// The parameter within `reach` of `from` whose point on a curve on screen lies nearest to a place;
// of equally near ones the least change.
export function nearestOnCurve(curve, place, from, reach, step) {
  let [best, least] = [from, Infinity];
  for (let t = from - reach; t <= from + reach; t += step) {
    const point = curve(t);
    const cost = (point.x - place.x) ** 2 + (point.y - place.y) ** 2 + 0.02 * Math.abs(t - from);
    if (cost < least) [best, least] = [t, cost];
  }
  return best;
}

// What is looked at from outside: turned by azimuth and elevation, in perspective, fitted into a
// canvas.
export class View {
  constructor(azimuth = 28, elevation = 30) {
    Object.assign(this, { azimuth, elevation, zoom: 1, distance: 4, scale: 1, x: 0, y: 0 });
    this.turn(0, 0);
  }

  turn(azimuth, elevation) {
    this.azimuth = wrapDegrees(this.azimuth + azimuth);
    this.elevation = clamp(this.elevation + elevation, -89, 89);
    this.axes = cameraAt(this.azimuth, this.elevation, 1);
  }

  // Undistorted coordinates, and the depth seen from the eye.
  seen(point) {
    const { right, down, forward } = this.axes;
    const depth = Math.max(dot(forward, point) + this.distance, 0.05 * this.distance);
    const near = this.distance / depth;
    return { x: dot(right, point) * near, y: dot(down, point) * near, depth };
  }

  // Make points fill a canvas up to a margin, all in px. `size` is the points' largest distance.
  fit(points, size, width, height, margin) {
    this.distance = 3.5 * size;
    const seen = points.map((point) => this.seen(point));
    const [left, right] = [Math.min(...seen.map((p) => p.x)), Math.max(...seen.map((p) => p.x))];
    const [top, bottom] = [Math.min(...seen.map((p) => p.y)), Math.max(...seen.map((p) => p.y))];
    const room = [(width - 2 * margin) / (right - left), (height - 2 * margin) / (bottom - top)];
    this.scale = this.zoom * Math.max(1e-6, Math.min(...room));
    this.x = width / 2 - this.scale * (left + right) / 2;
    this.y = height / 2 - this.scale * (top + bottom) / 2;
  }

  // Of a point of the world: px, and the depth.
  project(point) {
    const { x, y, depth } = this.seen(point);
    return { x: this.x + this.scale * x, y: this.y + this.scale * y, depth };
  }
}
