"""The camera picker's arithmetic against v3d_core's, and what the node tells it."""

import json
import shutil
import subprocess

import pytest
import torch
from prompts import node
from scenes import REPOSITORY, pack

cameras = pack("v3d_core.cameras")
structures = pack("v3d_core.structures")
orbit_node = pack("nodes.orbit")

CUSTOM = {
    "orbit": "custom",
    "views": 18,
    "radius": 2.0,
    "elevation": 0.0,
    "fov": 60.0,
    "azimuth": 0.0,
    "direction": "counter-clockwise",
}
WIDGETS = {
    "v3d": {"orbit": "v3d"},
    "sv3d": {"orbit": "sv3d"},
    "custom": CUSTOM,
    "clockwise": CUSTOM
    | {"views": 7, "radius": 3.7, "elevation": 31.5, "azimuth": -40.5, "direction": "clockwise"},
    "from below": CUSTOM | {"views": 1, "radius": 0.4, "elevation": -77.0, "fov": 110.0},
    "sv3d_p": {"orbit": "sv3d_p", "elevation": 12.5, "frames": 21},
    "svd": {"orbit": "svd", "frames": 14, "arc": -200.0, "fov": 40.0},
}
WIDTH, HEIGHT = 640, 360
# views from outside: azimuth, elevation, and the canvas they are fitted into
VIEWS = [(28, 30, 250, 214), (-100, 12, 600, 200), (170, 55, 240, 500), (40, -35, 320, 320)]


@pytest.fixture(scope="session")
def javascript(tmp_path_factory):
    """Runs lines of JavaScript that may use web/orbit_*.js and `given`, and return a value."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("the camera picker's JavaScript was not tested: there is no `node`")
    folder = tmp_path_factory.mktemp("javascript")
    (folder / "package.json").write_text('{"type": "module"}')
    modules = ("orbit_math", "orbit_scene", "orbit_drag")
    for name in modules:
        shutil.copy(REPOSITORY / "web" / f"{name}.js", folder)
    head = "".join(f'import * as {name} from "./{name}.js";\n' for name in modules)

    def run(lines, given):
        (folder / "given.json").write_text(json.dumps(given))
        (folder / "run.js").write_text(
            'import { readFileSync } from "fs";\n'
            f"{head}const given = JSON.parse(readFileSync('given.json'));\n"
            f"const found = (() => {{ {lines} }})();\n"
            "console.log(JSON.stringify(found));\n"
        )
        done = subprocess.run([program, "run.js"], cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def presets():
    """The orbits without widgets, as the front end is told them."""
    (combo,) = [i for i in orbit_node.V3DOrbitCameras.define_schema().inputs if i.id == "orbit"]
    return combo.as_dict()[orbit_node.KEY]


@pytest.mark.parametrize("name", WIDGETS)
def test_cameras_stand_and_look_where_the_node_puts_them(name, javascript, presets):
    made = cameras.orbit_cameras(orbit_node.orbit_from_widgets(WIDGETS[name]), WIDTH, HEIGHT)
    found = javascript(
        """
        const orbit = orbit_math.orbitFromWidgets(given.widgets, given.presets);
        return Array.from({ length: orbit.frames }, (_, k) => {
          const camera = orbit_math.cameraOf(orbit, k);
          const corners = orbit_math.pictureCorners(camera, 0.3, orbit.fov, given.aspect);
          return { ...camera, corners };
        });
        """,
        {"widgets": WIDGETS[name], "presets": presets, "aspect": WIDTH / HEIGHT},
    )
    axes = ("right", "down", "forward", "position")
    poses = torch.tensor([[camera[axis] for axis in axes] for camera in found]).movedim(1, 2)
    torch.testing.assert_close(poses, made.camera_to_world[:, :3], atol=2e-5, rtol=1e-5)
    corners = torch.tensor([[0, 0], [WIDTH, 0], [WIDTH, HEIGHT], [0, HEIGHT]]).float()
    for index, camera in enumerate(found):
        one = structures.Cameras(made.camera_to_world[[index]], made.K[[index]], WIDTH, HEIGHT)
        pixels, depth = cameras.project_points(torch.tensor(camera["corners"]), one)
        torch.testing.assert_close(pixels[0], corners, atol=0.02, rtol=0)
        torch.testing.assert_close(depth[0], torch.full((4,), 0.3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["v3d", "sv3d", "clockwise"])
def test_switching_to_custom_moves_no_camera(name, javascript, presets):
    custom = javascript(
        "return orbit_math.customFromOrbit(orbit_math.orbitFromWidgets(given[0], given[1]));",
        [WIDGETS[name], presets],
    )
    before = orbit_node.orbit_from_widgets(WIDGETS[name])
    after = orbit_node.orbit_from_widgets({"orbit": "custom"} | custom)
    assert after.azimuths_deg == pytest.approx(before.azimuths_deg)
    assert (after.radius, after.elevation_deg, after.fov_y_deg) == (
        *(before.radius, before.elevation_deg, before.fov_y_deg),
    )


DRAG = """
const { View, cameraAt, azimuthOf } = orbit_math;
return given.views.map(([azimuth, elevation, width, height]) => {
  const view = new View(azimuth, elevation);
  const { points, size } = orbit_scene.pointsToFit({ orbit: given.orbit });
  view.fit(points, size, width, height, 14);
  const inside = points.every((p) => {
    const { x, y } = view.project(p);
    return x > 13 && x < width - 13 && y > 13 && y < height - 13;
  });
  const at = ([a, e, r]) => view.project(cameraAt(a, e, r).position);
  const path = given.path.map(at);
  const drag = new orbit_drag.OrbitDrag(view, given.orbit, given.handle, given.means, path[0]);
  let made = null;
  for (const place of path.slice(1)) made = drag.to(place, 1);
  return { inside, kind: made.kind, value: made.value, orbit: made.orbit };
});
"""
ORBIT = {"frames": 18, "radius": 2.0, "elevation": 10.0, "fov": 60.0, "azimuth": 20.0, "step": 20.0}
ALL = {"azimuth": "set", "elevation": "set", "radius": "set"}


@pytest.mark.parametrize("end", [75, -130, 178])
def test_a_camera_dragged_along_its_circle_follows_the_hand(end, javascript):
    """Even behind the object, where the hand comes over the same places again."""
    path = [[20 + (end - 20) * i / 40, 10, 2] for i in range(41)]
    found = javascript(
        DRAG, {"views": VIEWS, "orbit": ORBIT, "path": path, "handle": "round", "means": ALL}
    )
    for drag in found:
        assert drag["inside"]
        assert (drag["kind"], drag["value"]) == ("azimuth", pytest.approx(end, abs=1))
        assert drag["orbit"] == ORBIT | {"azimuth": drag["value"]}


@pytest.mark.parametrize("end", [45, -50, 88])
def test_a_camera_dragged_upwards_is_raised_and_nothing_else(end, javascript):
    path = [[20, 10 + (end - 10) * i / 30, 2] for i in range(31)]
    found = javascript(
        DRAG, {"views": VIEWS[:3], "orbit": ORBIT, "path": path, "handle": "round", "means": ALL}
    )
    for drag in found:
        assert (drag["kind"], drag["value"]) == ("elevation", pytest.approx(end, abs=1))
        assert drag["orbit"] == ORBIT | {"elevation": drag["value"]}


@pytest.mark.parametrize("factor", [0.5, 1.3, 1.9])
def test_the_knob_sets_the_distance(factor, javascript):
    knob = 1.24 * 2  # KNOB_AT of web/orbit_scene.js
    path = [[20, 10, knob * (1 + (factor - 1) * i / 30)] for i in range(31)]
    means = {"views": VIEWS[1:], "orbit": ORBIT, "path": path, "handle": "knob", "means": ALL}
    for drag in javascript(DRAG, means):
        assert (drag["kind"], drag["value"]) == ("radius", pytest.approx(2 * factor, abs=0.051))


def test_the_last_frame_of_an_arc_goes_round_more_than_half_and_never_to_nothing(javascript):
    orbit = ORBIT | {"frames": 14, "azimuth": 0.0, "step": 120 / 13}
    for end, arc in ((300, 300), (-90, -90), (500, 360), (0, 0)):
        path = [[120 + (end - 120) * i / 60, 10, 2] for i in range(61)]
        given = {"views": VIEWS[:1], "orbit": orbit, "path": path, "handle": "round"}
        (drag,) = javascript(DRAG, given | {"means": {"arc": "set"}})
        assert drag["kind"] == "arc" and abs(drag["value"] - arc) <= 1, (end, drag["value"])
        assert drag["value"] != 0
        assert drag["orbit"]["step"] * 13 == pytest.approx(drag["value"])


def test_a_run_tells_the_cameras_it_made(server, javascript):
    """Those of a start camera, which no widget shows; from the cache too, for a reloaded page."""
    start = {f"orbit.{name}": value for name, value in CUSTOM.items() if name != "orbit"}
    start |= {
        "orbit.azimuth": 35.0,
        "orbit.elevation": 20.0,
        "orbit.radius": 4.0,
        "orbit.fov": 40.0,
    }
    size = {"width": 512, "height": 512}
    graph = {
        "1": node("V3DOrbitCameras", orbit="custom", frame=0, **start, **size),
        "2": node("V3DOrbitCameras", orbit="v3d", frame=5, start_camera=["1", 1], **size),
        "3": node("PreviewAny", source=["2", 1]),
    }
    runs = [server.run(graph) for _ in range(2)]
    for run in runs:
        assert run.ended == "execution_success", run.error
        assert "2" in run.outputs
    (told,) = runs[1].outputs["2"][orbit_node.KEY]
    info = json.loads(runs[1].outputs["3"]["text"][0])
    position = javascript("return orbit_math.cameraOf(given, 5).position;", told)
    assert position == pytest.approx([info["position"][axis] for axis in "xyz"], abs=1e-5)
    assert told["fov"] == pytest.approx(info["fov"], abs=1e-4)
    assert (told["frames"], told["step"]) == (18, 20)
    assert (told["azimuth"], told["radius"]) == (pytest.approx(35), pytest.approx(4))
