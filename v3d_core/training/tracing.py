"""Pictures of whole orbits of composed objects, many at a time.

Warp's kernel draws on CPU and CUDA. Without Warp `procedural.render_object` draws the same in
double precision, object by object: the oracle of the tests, and slow.
"""

from __future__ import annotations

import logging
import math
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import backends
from ..cameras import V3D_ORBIT, Orbit, orbit_cameras, resize_cameras
from ..images import srgb_to_linear, to_uint8
from ..procedural import AMBIENT, LIGHTS, SKY, render_object
from ..structures import Cameras
from .objects_sdf import analytic_object
from .objects_table import (
    LEAST_WIDTH,
    STROKES,
    Kind,
    ObjectTable,
    profile_slope_scale,
    step_scale,
)

if TYPE_CHECKING:
    from ..kernels.warp_engine import WarpEngine

logger = logging.getLogger(__name__)

ENGINES = ("auto", "warp", "torch")
STEP_SLOPE = 0.95  # of the distance, a step: blends of ellipsoids are a little steeper than one
PIXELS_PER_LAUNCH = 2**29  # the kernel counts pixels in 32 bits


def render_orbits(
    table: ObjectTable,
    cameras: Cameras | Orbit = V3D_ORBIT,
    size: int = 128,
    supersample: int = 2,
    engine: str = "auto",
) -> Tensor:  # [N, V, size, size, 4]
    """What cameras see of objects, lit like `procedural.render_object`.

    Colours are averaged in linear light over the rays that hit, then sRGB encoded.

    Args:
        table: N objects.
        cameras: V of them, of square pictures, the same for all objects.
        size: Pixels of the pictures' sides.
        supersample: Rays per pixel side.
        engine: `warp`, `torch`, or `auto`: Warp where it runs, else torch with a log line.

    Returns:
        Straight sRGB colours and coverage, on the table's device. [N, V, size, size, 4] uint8

    Raises:
        ValueError: A number is not positive, pictures are not square, the engine is not known.
        MissingPackageError: Warp was asked for by name and is not there.
    """
    if size < 1 or supersample < 1:
        raise ValueError(
            f"render_orbits: size and supersample must be positive, got {size} and {supersample}"
        )
    if isinstance(cameras, Orbit):
        cameras = orbit_cameras(cameras, size, size)
    if cameras.width != cameras.height:
        raise ValueError(
            f"render_orbits: pictures must be square, got {cameras.width} x {cameras.height}"
        )
    cameras = resize_cameras(cameras, size, size)
    if _engine_name(engine, table.device) == "torch":
        return _render_torch(table, cameras, supersample)
    return _render_warp(table, cameras, supersample)


def _render_torch(table: ObjectTable, cameras: Cameras, supersample: int) -> Tensor:
    pictures = []
    table, device = table.to("cpu"), table.device
    for index in range(len(table)):
        shape = analytic_object(table, index)
        views = render_object(cameras.to("cpu"), shape, supersample=supersample)
        pictures.append(to_uint8(torch.cat([views.images, views.masks[..., None]], dim=-1)))
    size = (len(table), len(cameras), cameras.height, cameras.width, 4)
    return torch.stack(pictures).to(device) if pictures else torch.zeros(size, dtype=torch.uint8)


def _render_warp(table: ObjectTable, cameras: Cameras, supersample: int) -> Tensor:
    from ..kernels import shape_tracing

    device, size, views = table.device, cameras.width, len(cameras)
    parts = table.kinds.shape[1]
    pictures = torch.empty(len(table), views, size, size, dtype=torch.int32, device=device)
    engine = _warp_engine(device)
    strokes = torch.tensor(STROKES, device=device).flatten()
    seen, lights = _camera_records(cameras).to(device), _light_records().to(device)
    blocks = -(-size // shape_tracing.BLOCK)
    batch = max(1, PIXELS_PER_LAUNCH // (views * (blocks * shape_tracing.BLOCK) ** 2))
    for begin in range(0, len(table), batch):
        some, out = table[begin : begin + batch], pictures[begin : begin + batch]
        records = part_records(some)
        objects = [parts, some.counts.contiguous(), some.bounds.contiguous(), records]
        starts = torch.empty(len(some) * views * blocks**2, device=device)
        inputs = [views, blocks, STEP_SLOPE, *objects, seen, starts]
        engine.share(shape_tracing.approach, inputs, len(starts))
        inputs = [views, size, supersample, STEP_SLOPE, *objects, strokes, seen, lights]
        inputs += [len(LIGHTS), starts, out]
        engine.share(shape_tracing.render, inputs, len(starts) * shape_tracing.BLOCK**2)
    return pictures[..., None].view(torch.uint8)


def part_records(table: ObjectTable) -> Tensor:  # [N, P, RECORD]
    """One float32 record per part, with all that the kernel would else work out at every step."""
    from ..kernels import shape_parts as at

    record = table.centres.new_zeros(*table.kinds.shape, at.RECORD)
    slope = profile_slope_scale(table.profiles, table.sizes[..., 0])
    inverse = 1 / table.sizes[..., :3].clamp_min(LEAST_WIDTH)
    turned = table.kinds == Kind.REVOLUTION
    inverse[..., 1] = torch.where(turned, slope, inverse[..., 1])
    scale = table.paints[..., 3:].clamp_min(LEAST_WIDTH)
    fields = (
        (at.KIND, table.kinds[..., None]),
        (at.JOIN, table.joins[..., None]),
        (at.WIDTH, table.widths[..., None].clamp_min(LEAST_WIDTH)),
        (at.BOUND, table.radii[..., None]),
        (at.CENTRE, table.centres),
        (at.ROTATION, table.rotations.flatten(-2)),
        (at.SIZES, table.sizes),
        (at.SCALE, step_scale(table.bumps)[..., None]),
        (at.BUMP, table.bumps),
        (at.PATTERN, table.patterns[..., None]),
        (at.PAINT, torch.cat([table.paints[..., :3], 1 / scale], dim=-1)),
        (at.AXIS, table.axes),
        (at.COLOURS, srgb_to_linear(table.colours).flatten(-2)),
        (at.PROFILE, table.profiles),
        (at.INVERSE, inverse),
    )
    for first, values in fields:
        record[..., first : first + values.shape[-1]] = values
    return record


def _camera_records(cameras: Cameras) -> Tensor:  # [V, 13]
    pose, K = cameras.camera_to_world.double().cpu(), cameras.K.double().cpu()
    pixel_to_world = pose[:, :3, :3] @ torch.linalg.inv(K)
    spread = 0.5 * torch.hypot(1 / K[:, 0, 0], 1 / K[:, 1, 1])
    return torch.cat([pose[:, :3, 3], pixel_to_world.flatten(1), spread[:, None]], dim=1).float()


def _light_records() -> Tensor:  # [2 + 4 * lamps]
    numbers = [AMBIENT, SKY]
    for strength, towards in LIGHTS:
        numbers += [strength, *(value / math.hypot(*towards) for value in towards)]
    return torch.tensor(numbers)


@cache
def _warp_engine(device: torch.device) -> WarpEngine:
    from ..kernels import shape_tracing
    from ..kernels.warp_engine import WarpEngine

    return WarpEngine(device, (shape_tracing,))


def _engine_name(engine: str, device: torch.device) -> str:
    if engine not in ENGINES:
        raise ValueError(f"render_orbits: engine {engine!r} is not known; use {', '.join(ENGINES)}")
    if engine == "warp":
        backends.load("warp")
    if engine != "auto":
        return engine
    reason = _warp_problem(device)
    if reason:
        logger.warning("orbits of objects: torch draws them slowly, ray by ray; %s", reason)
    return "torch" if reason else "warp"


@cache
def _warp_problem(device: torch.device) -> str:
    if device.type not in ("cpu", "cuda"):
        return f"warp does not run on {device.type}"
    if not backends.is_installed("warp"):
        return "warp is not installed; pip install warp-lang"
    try:
        _warp_engine(device)
    except Exception as error:  # a broken native package raises anything; torch still works
        return f"warp does not run: {error}"
    return ""
