// Dragging a camera of an orbit on screen: which way it goes and what orbit that makes. Nothing here
// needs a browser.

import { azimuthOf, cameraAt, clamp, nearestOnCurve, wrapDegrees } from "./orbit_math.js";
import { KNOB_AT } from "./orbit_scene.js";

export const MOVED_PX = 4; // a press becomes a drag, which decides between its ways, after so much
const LIMITS = { elevation: [-89, 89], radius: [0.01, 1000], arc: [-360, 360] }; // the widgets'

export class OrbitDrag {
  // `handle`: "round" or "knob", taken at `start` px; `means`: what may be changed, by name.
  constructor(view, orbit, handle, means, start) {
    Object.assign(this, { view, first: orbit, means, start });
    this.kind = handle === "knob" ? "radius" : "";
  }

  // The pointer is at `place`, angles go in steps of `snap` degrees:
  // { kind, value, orbit }, what changed, to what, and the orbit it makes.
  to(place, snap) {
    this.kind ||= this.kindOf(place);
    const { first, kind } = this;
    const whole = (angle) => snap * Math.round(angle / snap);
    if (kind === "radius") return this.made(this.radiusAt(place));
    const target = this.handleAt(place);
    if (kind === "azimuth") {
      this.raw = nearestOnCurve((a) => this.shown(a), target, this.raw ?? first.azimuth, 40, 0.5);
      return this.made(wrapDegrees(whole(this.raw)));
    }
    const [least, most] = LIMITS[kind];
    if (kind === "elevation") {
      const curve = (e) => this.shown(first.azimuth, clamp(e, least, most));
      this.raw = clamp(nearestOnCurve(curve, target, this.raw ?? first.elevation, 25, 0.5), least, most);
      return this.made(clamp(whole(this.raw), least, most));
    }
    const last = azimuthOf(first, first.frames - 1);
    this.raw = clamp(nearestOnCurve((a) => this.shown(a), target, this.raw ?? last, 40, 0.5), least, most);
    return this.made(whole(this.raw) || Math.sign(this.raw) || 1); // at one place there is no depth
  }

  made(value) {
    const change = this.kind === "arc" ? { step: value / (this.first.frames - 1) } : { [this.kind]: value };
    return { kind: this.kind, value, orbit: { ...this.first, ...change } };
  }

  shown(azimuth, elevation = this.first.elevation) {
    return this.view.project(cameraAt(azimuth, elevation, this.first.radius).position);
  }

  // Where the hand, which took it a little beside, wants the camera.
  handleAt(place) {
    const { first, kind, start } = this;
    const held = kind === "arc" ? this.shown(azimuthOf(first, first.frames - 1)) : this.shown(first.azimuth);
    return { x: place.x + held.x - start.x, y: place.y + held.y - start.y };
  }

  // Along the circle or up and down: whichever the hand went.
  kindOf(place) {
    const { means, first, start } = this;
    if (means.arc) return "arc";
    if (!means.azimuth || !means.elevation) return means.azimuth ? "azimuth" : "elevation";
    const share = (ahead) => {
      const [from, to] = [ahead(-4), ahead(4)];
      const [x, y] = [to.x - from.x, to.y - from.y];
      return Math.abs(x * (place.x - start.x) + y * (place.y - start.y)) / (Math.hypot(x, y) || 1);
    };
    const along = share((d) => this.shown(first.azimuth + d));
    const upwards = share((d) => this.shown(first.azimuth, first.elevation + d));
    return along >= upwards ? "azimuth" : "elevation";
  }

  // Where on its line the hand wants the knob; while the line points to the eye, by how far it went.
  radiusAt(place) {
    const { view, start } = this;
    const { azimuth, elevation, radius } = this.first;
    const knob = (ratio) => view.project(cameraAt(azimuth, elevation, KNOB_AT * radius * ratio).position);
    const [inner, held] = [knob(0), knob(1)];
    const [x, y] = [held.x - inner.x, held.y - inner.y];
    const length = Math.hypot(x, y);
    const steep = 0.33 * view.scale * KNOB_AT * radius; // px, of a line that still leads the hand
    if (length > steep) {
      const target = { x: place.x + held.x - start.x, y: place.y + held.y - start.y };
      this.raw = clamp(nearestOnCurve(knob, target, this.raw ?? 1, 0.3, 0.004), 0.02, 50);
    } else {
      this.raw = 1 + (place.x - start.x + start.y - place.y) / (2 * steep); // right or up is away
    }
    const step = Math.max(0.01, 10 ** Math.floor(Math.log10(radius)) / 20); // 0.05 between 1 and 10
    const distance = step * Math.round(radius * this.raw / step);
    return clamp(Number(distance.toPrecision(6)), Math.max(LIMITS.radius[0], step), LIMITS.radius[1]);
  }
}
