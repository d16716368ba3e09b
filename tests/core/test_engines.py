"""Every engine that runs here against the oracle in float64: the contract of `Rasterizer`.

Where float32 may honestly decide otherwise, a pixel is left out: an alpha within rounding of the
cut at 1/255, or two Gaussians within rounding of the same depth. These pixels are found in float64,
get no weight in the gradients, and must be few. The file runs on CUDA machines as it is.
"""

import math

import pytest
import torch

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.splats import engines
from v3d_core.splats.gsplat_raster import STOP_TRANSMITTANCE
from v3d_core.splats.projection import MAX_ALPHA, MIN_ALPHA, Pinholes, project_gaussians

IMAGE_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3  # of the length of each input's gradient
CUT_WINDOW = 2e-5  # relative; float32 errs by 1e-5 there, the CPU kernels' exp by 2e-6
DEPTH_WINDOW = 1e-6  # relative
AMBIGUOUS_SHARE = 0.01
NAMES = ("means", "quats", "scales", "opacities", "colours", "pull")

DEVICES = [torch.device("cpu")] + [torch.device("cuda")] * torch.cuda.is_available()
CASES = [
    pytest.param(engine, device, id=f"{engine.name}-{device.type}")
    for device in DEVICES
    for engine in engines.available_engines(device)
]
each_engine = pytest.mark.parametrize(("engine", "device"), CASES)


@pytest.fixture(autouse=True)
def one_torch_thread():
    """torch's waiting threads would take the cores from Warp's; see `cores_for_engine`."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random_scene(count, spread=0.4, size=0.03, bias=0.0, seed=0, views=0):
    """Gaussians about the origin; colours per view when `views` is given, else shared."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return [
        normal(count, 3) * spread,
        normal(count, 4),
        torch.exp(0.5 * normal(count, 3)) * size,
        torch.sigmoid(1.5 * normal(count) + bias).clamp(max=MAX_ALPHA),
        torch.rand(max(1, views), count, 3, generator=generator),
    ]


def pinholes_of(views, width, height, elevation=10.0):
    return Pinholes.of(
        orbit_cameras(Orbit(num_views=views, elevation_deg=elevation), width, height)
    )


def converted(pinholes, device, dtype):
    moved = (part.to(device, dtype) for part in pinholes[:2])
    return Pinholes(*moved, *pinholes[2:])


def run(rasterize, scene, pinholes, weights, device, dtype):
    """Picture and the gradients of the weighted sum, `pull` last, in float64 on the CPU."""
    inputs = [part.to(device, dtype).clone().requires_grad_() for part in scene]
    pull = torch.zeros(len(scene[0]), device=device, dtype=dtype)
    picture = rasterize(*inputs, converted(pinholes, device, dtype), pull)
    (picture * weights.to(device, dtype)).sum().backward()
    gradients = [part.grad for part in inputs] + [pull]
    return picture.detach().cpu().double(), [g.cpu().double() for g in gradients]


def ambiguous_pixels(scene, pinholes):
    """Which pixels float32 may composite otherwise, and the transmittance left. [V, H, W] each"""
    means, quats, scales, opacities, _ = (part.double() for part in scene)
    cameras = converted(pinholes, "cpu", torch.float64)
    projected = project_gaussians(means, quats, scales, opacities, cameras)
    rows, columns = torch.meshgrid(
        torch.arange(pinholes.height) + 0.5, torch.arange(pinholes.width) + 0.5, indexing="ij"
    )
    ambiguous, left = [], []
    for v in range(len(cameras.K)):
        order = projected.depths[v].argsort(stable=True)
        order = order[projected.extents[v, order, 0] > 0]
        x, y = projected.means2d[v, order].unbind(-1)
        a, b, c = projected.conics[v, order].unbind(-1)
        dx, dy = columns[..., None] - x, rows[..., None] - y
        power = -0.5 * (a * dx * dx + c * dy * dy) - b * dx * dy
        alpha = opacities[order] * power.exp()  # [H, W, G]
        at_cut = ((alpha / MIN_ALPHA - 1).abs() < CUT_WINDOW).any(-1)
        depth = projected.depths[v, order]
        tie = torch.nonzero(depth.diff() < DEPTH_WINDOW * depth[1:])[:, 0]
        visible = alpha >= MIN_ALPHA
        swapped = (visible[..., tie] & visible[..., tie + 1]).any(-1)
        ambiguous.append(at_cut | swapped)
        left.append(torch.where(visible, 1 - alpha.clamp(max=MAX_ALPHA), 1.0).prod(-1))
    return torch.stack(ambiguous), torch.stack(left)


def check(engine, device, scene, pinholes):
    """Compare an engine with the oracle in float64 wherever both are defined to agree."""
    ambiguous, left = ambiguous_pixels(scene, pinholes)
    assert ambiguous.float().mean() <= AMBIGUOUS_SHARE
    stopped = left <= 1.01 * STOP_TRANSMITTANCE if engine.name == "gsplat" else left < 0
    certain = ~(ambiguous | stopped)
    weights = torch.rand(*left.shape, 4, generator=torch.Generator().manual_seed(1)) - 0.2
    weights = weights * certain[..., None]
    picture, gradients = run(engine.rasterize, scene, pinholes, weights, device, torch.float32)
    oracle, oracle_gradients = run(
        engines.rasterize_oracle, scene, pinholes, weights, "cpu", torch.float64
    )
    error = (picture - oracle).abs()
    if certain.any():
        assert float(error[certain].max()) <= IMAGE_TOLERANCE
    if (stopped & ~ambiguous).any():  # what lies behind gsplat's stop is missing there
        assert float(error[stopped & ~ambiguous].max()) <= 1 - MAX_ALPHA + IMAGE_TOLERANCE
    for name, mine, true in zip(NAMES, gradients, oracle_gradients, strict=True):
        assert mine.isfinite().all(), name
        assert_close_in_length(mine, true, name)


def assert_close_in_length(mine, true, name=""):
    difference, length = float((mine - true).norm()), float(true.norm())
    assert difference <= GRADIENT_TOLERANCE * length + 1e-9, f"{name}: {difference} of {length}"


@each_engine
@pytest.mark.parametrize(
    ("width", "height", "scene"),
    [
        pytest.param(64, 64, {"count": 400}, id="plain"),
        pytest.param(50, 37, {"count": 400}, id="no multiple of a tile"),
        pytest.param(3, 2, {"count": 20, "size": 0.1}, id="smaller than a tile"),
        pytest.param(33, 70, {"count": 200, "size": 0.002}, id="sub-pixel"),
        pytest.param(40, 40, {"count": 50, "size": 2.0, "bias": -2}, id="larger than the picture"),
        pytest.param(48, 48, {"count": 300, "spread": 2.5, "size": 0.1}, id="behind the camera"),
        pytest.param(64, 64, {"count": 400, "bias": 6}, id="opaque"),
        pytest.param(130, 20, {"count": 1000, "size": 0.02}, id="thousands"),
    ],
)
def test_agrees_with_the_oracle(engine, device, width, height, scene):
    check(engine, device, random_scene(**scene, seed=scene["count"]), pinholes_of(2, width, height))


@each_engine
@pytest.mark.parametrize("bias", [-3.0, 3.0], ids=["faint", "opaque"])
def test_hundreds_on_one_pixel(engine, device, bias):
    scene = random_scene(700, bias=bias, size=0.02, seed=4)
    cameras = pinholes_of(1, 24, 24, elevation=0.0)
    # on the optical axis, evenly spaced in depth: their order is certain in float32
    scene[0] *= torch.tensor([0.005, 0.005, 0.0])
    scene[0][:, 2] = torch.linspace(-0.5, 0.5, 700)[torch.randperm(700)]
    check(engine, device, scene, cameras)


@each_engine
@pytest.mark.parametrize("views", [1, 2, 5])
def test_views_at_once_with_colours_of_their_own(engine, device, views):
    scene = random_scene(300, views=views, seed=views)
    check(engine, device, scene, pinholes_of(views, 41, 23))


@each_engine
def test_principal_point_off_centre(engine, device):
    cameras = pinholes_of(2, 40, 30)
    cameras.K[:, 0, 2] += 6.5
    cameras.K[:, 1, 2] -= 3.25
    check(engine, device, random_scene(300, seed=9), cameras)


@each_engine
@pytest.mark.parametrize(("cx", "cy"), [(-60.0, 15.0), (35.0, 110.0), (80.0, -50.0)])
def test_cut_outs_far_from_the_optical_axis(engine, device, cx, cy):
    """Wide Gaussians inside the frame, in its margin where slopes are free, and beyond it."""
    cameras = pinholes_of(2, 40, 30)
    scene = random_scene(500, spread=1.5, size=0.06, seed=12)
    # so that the frame looks at the scene, though its axis does not
    cameras.world_to_camera[:, 0, 3] += (20 - cx) / cameras.K[:, 0, 0] * 2
    cameras.world_to_camera[:, 1, 3] += (15 - cy) / cameras.K[:, 1, 1] * 2
    cameras.K[:, 0, 2], cameras.K[:, 1, 2] = cx, cy
    check(engine, device, scene, cameras)


@each_engine
def test_shared_colours_are_the_same_for_all_views(engine, device):
    scene = random_scene(200, seed=5)
    cameras = converted(pinholes_of(3, 30, 30), device, torch.float32)
    shared = [part.to(device) for part in scene]
    own = [*shared[:4], shared[4].expand(3, -1, -1).contiguous()]
    torch.testing.assert_close(
        engine.rasterize(*shared, cameras, None),
        engine.rasterize(*own, cameras, None),
        rtol=0,
        atol=0,
    )


@each_engine
@pytest.mark.parametrize("kind", ["empty", "transparent", "behind", "beside"])
def test_nothing_to_see_gives_an_empty_picture_and_no_gradients(engine, device, kind):
    scene = random_scene(0 if kind == "empty" else 10, spread=0.1)
    if kind == "transparent":
        scene[3] *= 0
    if kind == "behind":
        scene[0] += torch.tensor([0.0, 0.0, 50.0])
    if kind == "beside":
        scene[0] += torch.tensor([100.0, 0.0, 0.0])
    cameras = pinholes_of(2, 20, 20, elevation=0.0)
    cameras = Pinholes(cameras.world_to_camera[:1].expand(2, -1, -1), *cameras[1:])
    weights = torch.ones(2, 20, 20, 4)
    picture, gradients = run(engine.rasterize, scene, cameras, weights, device, torch.float32)
    assert picture.shape == (2, 20, 20, 4) and picture.abs().max() == 0
    for gradient, part in zip(gradients, [*scene, scene[3]], strict=True):
        assert gradient.shape == part.shape and gradient.abs().sum() == 0


@each_engine
def test_splats_of_zero_opacity_leave_the_others_alone(engine, device):
    scene = random_scene(100, seed=6)
    scene[3][::3] = 0
    check(engine, device, scene, pinholes_of(2, 32, 32))


@each_engine
def test_quaternions_of_any_length_mean_the_same(engine, device):
    scene = [part.to(device) for part in random_scene(100, seed=7)]
    cameras = converted(pinholes_of(2, 32, 32), device, torch.float32)
    stretched = [scene[0], scene[1] * 37, *scene[2:]]
    torch.testing.assert_close(
        engine.rasterize(*scene, cameras, None),
        engine.rasterize(*stretched, cameras, None),
        rtol=0,
        atol=IMAGE_TOLERANCE,
    )


@each_engine
def test_pull_is_added_to_what_is_there_and_may_be_left_out(engine, device):
    scene = random_scene(100, seed=8)
    cameras = pinholes_of(3, 32, 32)
    pinholes = converted(cameras, device, torch.float32)
    weights = torch.rand(3, 32, 32, 4, generator=torch.Generator().manual_seed(2))
    once = run(engine.rasterize, scene, cameras, weights, device, torch.float32)[1]
    inputs = [part.to(device).clone().requires_grad_() for part in scene]
    pull = torch.ones(100, device=device)
    for _ in range(2):
        (engine.rasterize(*inputs, pinholes, pull) * weights.to(device)).sum().backward()
    assert_close_in_length(pull.cpu().double() - 1, 2 * once[-1])
    for part in inputs:
        part.grad = None
    (engine.rasterize(*inputs, pinholes, None) * weights.to(device)).sum().backward()
    for part, gradient in zip(inputs, once, strict=False):
        assert_close_in_length(part.grad.cpu().double(), gradient)


@each_engine
def test_only_some_inputs_ask_for_gradients(engine, device):
    scene = [part.to(device) for part in random_scene(50, seed=3)]
    cameras = converted(pinholes_of(2, 20, 20), device, torch.float32)
    pull = torch.zeros(50, device=device)
    scene[4].requires_grad_()
    engine.rasterize(*scene, cameras, pull).sum().backward()
    assert scene[4].grad.abs().sum() > 0
    assert all(part.grad is None for part in scene[:4])
    with torch.no_grad():
        assert not engine.rasterize(*scene, cameras, None).requires_grad


@each_engine
def test_inputs_need_not_be_contiguous(engine, device):
    scene = [part.to(device) for part in random_scene(80, seed=2)]
    cameras = converted(pinholes_of(2, 20, 20), device, torch.float32)
    strided = [torch.stack([part, part], dim=-1)[..., 0] for part in scene]
    torch.testing.assert_close(
        engine.rasterize(*scene, cameras, None),
        engine.rasterize(*strided, cameras, None),
        rtol=0,
        atol=0,
    )


@each_engine
def test_isotropic_gaussian_has_the_closed_form_footprint(engine, device):
    sigma, opacity = 0.1, 0.8
    cameras = pinholes_of(1, 65, 65, elevation=0.0)
    one = torch.ones(1, 3)
    quat = torch.tensor([[1.0, 0, 0, 0]])
    scene = [one * 0, quat, one * sigma, one[:, 0] * opacity, one[None]]
    scene = [part.to(device) for part in scene]
    picture = engine.rasterize(*scene, converted(cameras, device, torch.float32), None)
    variance = (float(cameras.K[0, 0, 0]) * sigma / 2.0) ** 2 + 0.3
    for offset in range(0, 20, 4):
        expected = opacity * math.exp(-0.5 * offset**2 / variance)
        expected = expected if expected >= MIN_ALPHA else 0
        assert float(picture[0, 32, 32 + offset, 3]) == pytest.approx(expected, abs=IMAGE_TOLERANCE)


@each_engine
def test_alpha_is_exact_down_to_the_cut(engine, device):
    """One Gaussian over 97 x 97 pixels: relative error of every alpha, so that no cut moves."""
    scene = random_scene(1, spread=0.0, seed=11)
    scene[2] = torch.tensor([[0.3, 0.2, 0.25]])
    scene[3] = torch.tensor([0.97])
    cameras = pinholes_of(1, 97, 97, elevation=7.0)
    weights = torch.zeros(1, 97, 97, 4)
    mine, _ = run(engine.rasterize, scene, cameras, weights, device, torch.float32)
    true, _ = run(engines.rasterize_oracle, scene, cameras, weights, "cpu", torch.float64)
    kept = (true[..., 3] > 0) & (mine[..., 3] > 0)
    assert bool(((true[..., 3] > 0) == (mine[..., 3] > 0)).all()) and int(kept.sum()) > 2000
    assert float((mine[kept] / true[kept] - 1).abs().max()) <= CUT_WINDOW
