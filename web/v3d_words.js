// What the panels say, in the language of the front end. The texts stand in locales/<language>/main.json,
// which the host serves together with those of all other packs.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

// As locales/en/main.json: for what a language lacks, and when nothing could be loaded.
const ENGLISH = {
  finishNow: "Finish now",
  finishNowTip: "Ends the fit here and keeps what there is now.",
  finishing: "Finishing...",
  fitIsOver: "This fit does not run any more.",
  starting: "starting",
  stepSeconds: "step {step} of {total}, {seconds} s",
  stepLeft: "step {step} of {total}, {left} s left",
  stepSecondsSplats: "step {step} of {total}, {seconds} s, {splats} splats",
  stepLeftSplats: "step {step} of {total}, {left} s left, {splats} splats",
  loss: "loss {loss}",
  psnrOfView: "PSNR of view 0 {psnr} dB",
  psnrOfRays: "PSNR of rays {psnr} dB",
  show: "show",
  hide: "hide",
  showCameras: "Show the cameras",
  hideCameras: "Hide the cameras",
  showFrames: "Show the frames",
  hideFrames: "Hide the frames",
  turnTip: "Drag to turn; arrow keys step, space plays",
  play: "Play",
  pause: "Pause",
  runAgain: "run the node again to see its frames",
  frameAzimuth: "frame {frame} of 0-{last}, azimuth {azimuth}°",
  frameAzimuthElevation: "frame {frame} of 0-{last}, azimuth {azimuth}°, elevation {elevation}°",
  noFrame: "no frame {frame}, they are 0-{last}",
  orbit: "elevation {elevation}°, radius {radius}, fov {fov}°",
  runToSeeCameras: "run the node to see the linked cameras",
  front: "front",
  smaller: "Smaller",
  larger: "Larger",
  dragRadius: "Drag nearer or away for the radius",
  dragRadiusCustom: "Drag nearer or away for the radius: makes the orbit custom",
  dragArc: "Drag the last frame along the circle for the arc",
  dragAzimuth: "Drag along the circle for the azimuth",
  dragElevation: "Drag up or down for the elevation",
  dragRound: "Drag along the circle for the azimuth, up or down for the elevation",
  dragRoundCustom: "Drag along the circle for the azimuth, up or down for the elevation: makes the orbit custom",
  chooseFrame: "Click to choose frame {frame}",
  lookTip: "Drag to look from elsewhere; once clicked, the wheel changes the size. Double click: as at first",
};
let served = {}; // by language

// A text with its {names} filled in.
export function word(key, values = {}) {
  const language = app.extensionManager?.setting?.get("Comfy.Locale");
  const text = served[language]?.v3d?.[key] ?? ENGLISH[key];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

app.registerExtension({
  name: "V3D.Words",
  async init() { // the host waits for it before it makes a node
    try {
      served = await api.getCustomNodesI18n();
    } catch {
      // the panels speak English then
    }
  },
});
