"""Sphere tracing (Hart 1996) of objects composed of primitives, by Warp (CPU and CUDA).

Blocks of pixels go as one cone to where the surface may begin, from there each pixel as a cone of
its own, and then its sub-samples as rays. Contract and
oracle: `training/objects_sdf.py` and `procedural.render_object`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

from .shape_parts import (
    AXIS,
    BOUND,
    CENTRE,
    COLOURS,
    JOIN,
    PAINT,
    PATTERN,
    RECORD,
    WIDTH,
    local,
    part_distance,
    vector,
)

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.shape_tracing"

_Floats = wp.array(dtype=wp.float32)
_Ints = wp.array(dtype=wp.int32)

CAMERA = 13  # floats: centre, pixel to world (3 x 3), half diagonal of a pixel at depth 1
MAX_STEPS = 64  # of a cone and of a ray; rays that graze a surface need them
HIT_PIXELS = 0.01  # a ray this close to a surface has hit it, in half diagonals of a pixel
GRAZE_PIXELS = 0.5  # a ray that ran out of steps this close to a surface has hit it, too
NORMAL_STEP = 7e-4  # world units, of the finite differences; float32 allows no smaller one
CONE_STOP = 0.2  # a cone this share of its width from a surface stops; its rays go on by themselves
BLOCK = 8  # pixels of a side that share one cone first
FAR = 1e9

STROKE_COUNT = 14  # of letters, see `training/objects_table.STROKES`


@wp.func
def _frac(x: float):
    return x - wp.floor(x)


@wp.func
def _scene(parts: _Floats, first: int, count: int, p: wp.vec3):
    distance = float(FAR)
    for i in range(count):
        base = first + i * RECORD
        centre = wp.vec3(parts[base + CENTRE], parts[base + CENTRE + 1], parts[base + CENTRE + 2])
        offset = p - centre
        ball = wp.length(offset) - parts[base + BOUND]
        width = parts[base + WIDTH]
        if parts[base + JOIN] == 0.0:
            if ball < distance + width:
                other = part_distance(parts, base, offset, ball)
                overlap = wp.max(width - wp.abs(distance - other), 0.0)
                distance = wp.min(distance, other) - 0.25 * overlap * overlap / width
        elif ball < width - distance:
            other = -part_distance(parts, base, offset, ball)
            overlap = wp.max(width - wp.abs(distance - other), 0.0)
            distance = wp.max(distance, other) + 0.25 * overlap * overlap / width
    return distance


@wp.func
def _owner(parts: _Floats, first: int, count: int, p: wp.vec3):
    # record of the part whose surface this is, blends left aside
    owner = first
    distance = float(FAR)
    for i in range(count):
        base = first + i * RECORD
        centre = wp.vec3(parts[base + CENTRE], parts[base + CENTRE + 1], parts[base + CENTRE + 2])
        offset = p - centre
        ball = wp.length(offset) - parts[base + BOUND]
        if parts[base + JOIN] == 0.0:
            if ball < distance:
                other = part_distance(parts, base, offset, ball)
                if other < distance:
                    distance = other
                    owner = base
        elif ball < -distance:
            other = -part_distance(parts, base, offset, ball)
            if other > distance:
                distance = other
                owner = base
    return owner


@wp.func
def _glyph(q: wp.vec3, strokes: _Floats, bits: int, half_width: float):
    inside = wp.float32(0.0)
    if q[2] > 0.0:
        for k in range(STROKE_COUNT):
            if ((bits >> k) & 1) == 1:
                ax = strokes[4 * k]
                ay = strokes[4 * k + 1]
                bx = strokes[4 * k + 2] - ax
                by = strokes[4 * k + 3] - ay
                along = ((q[0] - ax) * bx + (q[1] - ay) * by) / (bx * bx + by * by)
                along = wp.clamp(along, 0.0, 1.0)
                dx = q[0] - ax - along * bx
                dy = q[1] - ay - along * by
                if dx * dx + dy * dy < half_width * half_width:
                    inside = 1.0
    return inside


@wp.func
def _second_colour(parts: _Floats, strokes: _Floats, base: int, q: wp.vec3):
    # share of the second colour at q, the part's coordinates over its pattern's scale
    pattern = int(parts[base + PATTERN])
    f = parts[base + PAINT]
    phase = parts[base + PAINT + 1]
    share = parts[base + PAINT + 2]
    axis = vector(parts, base + AXIS)
    height = wp.dot(q, axis)
    mix = wp.float32(0.0)
    inside = wp.bool(False)
    if pattern == 1:
        inside = _frac(f * height + phase) < share
    elif pattern == 2:
        cells = wp.floor(f * q[0] + phase) + wp.floor(f * q[1] + phase) + wp.floor(f * q[2] + phase)
        inside = _frac(0.5 * cells) > 0.25
    elif pattern == 3:
        x = _frac(f * q[0] + phase) - 0.5
        y = _frac(f * q[1] + phase) - 0.5
        z = _frac(f * q[2] + phase) - 0.5
        inside = x * x + y * y + z * z < share * share
    elif pattern == 4:
        inside = _frac(f * wp.length(q - height * axis) + phase) < share
    elif pattern == 5:
        w = wp.sin(f * q[0] + phase) + wp.sin(1.3 * f * q[1] + 2.0 * phase)
        w = w + wp.sin(1.7 * f * q[2] + 3.0 * phase)
        mix = wp.clamp(0.5 + 0.8 * wp.sin(f * height + 1.5 * w + phase), 0.0, 1.0)
    elif pattern == 6:
        inside = height > share
    elif pattern == 7:
        mix = _glyph(f * q, strokes, int(phase), share)
    elif pattern == 8:
        inside = _frac(f * wp.atan2(q[0], q[2]) * 0.15915494 + phase) < share
    elif pattern == 9:
        side = wp.abs(_frac(0.7 * f * (q[0] + q[2]) + phase) - 0.5)
        inside = _frac(f * height + 1.2 * side + phase) < share
    elif pattern == 10:
        mix = wp.clamp(0.5 + 0.5 * f * height, 0.0, 1.0)
    elif pattern == 11:
        a = wp.sin(f * q[0] + 1.3 * wp.sin(1.1 * f * q[1] + phase) + phase)
        b = wp.sin(f * q[1] + 1.3 * wp.sin(1.2 * f * q[2] + 2.0 * phase))
        c = wp.sin(f * q[2] + 1.3 * wp.sin(0.9 * f * q[0] + 3.0 * phase) + 2.0 * phase)
        inside = a + b + c > share
    if inside:
        mix = 1.0
    return mix


@wp.func
def _albedo(parts: _Floats, strokes: _Floats, first: int, count: int, p: wp.vec3):
    base = _owner(parts, first, count, p)
    q = local(parts, base, p - vector(parts, base + CENTRE)) * parts[base + PAINT + 3]
    mix = _second_colour(parts, strokes, base, q)
    ground = vector(parts, base + COLOURS)
    return ground + mix * (vector(parts, base + COLOURS + 3) - ground)


@wp.func
def _normal(parts: _Floats, first: int, count: int, p: wp.vec3):
    # differences over the corners of a tetrahedron: four distances instead of six, and a loop
    # that is not unrolled, so that the compiler meets the scene once
    total = wp.vec3(0.0, 0.0, 0.0)
    k = wp.int32(0)
    while k < 4:
        x = 2.0 * float(((k + 3) >> 1) & 1) - 1.0
        y = 2.0 * float(k >> 1) - 1.0
        z = 2.0 * float(k & 1) - 1.0
        corner = wp.vec3(x, y, z)
        total = total + _scene(parts, first, count, p + float(NORMAL_STEP) * corner) * corner
        k = k + 1
    return wp.normalize(total)


@wp.func
def _march(
    parts: _Floats, first: int, count: int, origin: wp.vec3, direction: wp.vec3, start: float,
    far: float, slope: float, spread: float, near_enough: float, last_chance: float,
):  # fmt: skip
    # depth up to which a cone of radius spread * depth is free; FAR if it meets nothing. It stops
    # within near_enough * depth, or out of steps within last_chance * depth.
    speed = 1.0 / (wp.length(direction) + spread)
    z = start
    found = float(FAR)
    free = float(FAR)
    steps = wp.int32(0)
    while steps < MAX_STEPS:
        free = slope * _scene(parts, first, count, origin + z * direction) - z * spread
        if free < near_enough * z:
            found = z + wp.max(free, 0.0) * speed
            break
        z = z + free * speed
        if z > far:
            break
        steps = steps + 1
    if steps == MAX_STEPS and free < last_chance * z:
        found = z
    return found


@wp.func
def _cone(
    parts: _Floats, first: int, count: int, bound: float, cameras: _Floats, camera: int, x: float,
    y: float, start: float, slope: float, spread: float,
):  # fmt: skip
    # depth up to which the cone about pixel position x, y is free, and where it leaves the ball
    # around the object; FAR if it meets nothing
    origin = vector(cameras, camera)
    direction = _direction(cameras, camera, x, y)
    square = wp.dot(direction, direction)
    middle = -wp.dot(origin, direction) / square
    away = wp.length(origin + middle * direction)
    reach = bound + spread * (wp.length(origin) + bound)
    found = float(FAR)
    far = float(FAR)
    if away < reach:
        half = wp.sqrt((reach * reach - away * away) / square)
        far = middle + half
        near = wp.max(middle - half, 1.0e-3)
        found = _march(
            parts, first, count, origin, direction, wp.max(near, start), far, slope, spread,
            CONE_STOP * spread, FAR,
        )  # fmt: skip
    return found, far


@wp.func
def _direction(cameras: _Floats, camera: int, x: float, y: float):
    # of unit depth, through a pixel position
    at = camera + 3
    return wp.vec3(
        cameras[at] * x + cameras[at + 1] * y + cameras[at + 2],
        cameras[at + 3] * x + cameras[at + 4] * y + cameras[at + 5],
        cameras[at + 6] * x + cameras[at + 7] * y + cameras[at + 8],
    )


@wp.func
def _lit(albedo: wp.vec3, normal: wp.vec3, lights: _Floats, lamps: int):
    light = lights[0] + lights[1] * normal[1]
    for k in range(lamps):
        towards = wp.vec3(lights[4 * k + 3], lights[4 * k + 4], lights[4 * k + 5])
        light = light + lights[4 * k + 2] * wp.max(wp.dot(normal, towards), 0.0)
    colour = albedo * light
    return wp.vec3(
        wp.clamp(colour[0], 0.0, 1.0), wp.clamp(colour[1], 0.0, 1.0), wp.clamp(colour[2], 0.0, 1.0)
    )


@wp.func
def _byte(linear: float):
    encoded = 12.92 * linear
    if linear > 0.0031308:
        encoded = 1.055 * wp.pow(linear, 1.0 / 2.4) - 0.055
    return int(wp.clamp(encoded, 0.0, 1.0) * 255.0 + 0.5)


@wp.kernel(enable_backward=False)
def approach(
    first: int, stride: int, views: int, blocks: int, slope: float, most_parts: int, counts: _Ints,
    bounds: _Floats, parts: _Floats, cameras: _Floats, starts: _Floats,
):  # fmt: skip
    """Blocks `first`, `first + stride`, ... of [N, V, blocks, blocks]: depth up to which all is free."""
    item = first + wp.tid() * stride
    x = (float(item % blocks) + 0.5) * float(BLOCK)
    y = (float((item / blocks) % blocks) + 0.5) * float(BLOCK)
    view = (item / (blocks * blocks)) % views
    index = item / (blocks * blocks * views)
    camera = view * CAMERA
    found, _ = _cone(
        parts, index * most_parts * RECORD, counts[index], bounds[index], cameras, camera, x, y,
        0.0, slope, cameras[camera + 12] * float(BLOCK),
    )  # fmt: skip
    starts[item] = found


@wp.kernel(enable_backward=False)
def render(
    first: int, stride: int, views: int, size: int, samples: int, slope: float, most_parts: int,
    counts: _Ints, bounds: _Floats, parts: _Floats, strokes: _Floats, cameras: _Floats,
    lights: _Floats, lamps: int, starts: _Floats, pictures: _Ints,
):  # fmt: skip
    """Pixels `first`, `first + stride`, ... of [N, V, size, size], block by block.

    Each is one integer, RGBA from the lowest byte on; blocks reach over the pictures' edges.
    """
    item = first + wp.tid() * stride
    block = item / (BLOCK * BLOCK)
    inside = item % (BLOCK * BLOCK)
    blocks = (size + BLOCK - 1) / BLOCK
    column = (block % blocks) * BLOCK + inside % BLOCK
    row = ((block / blocks) % blocks) * BLOCK + inside / BLOCK
    picture = block / (blocks * blocks)
    index = picture / views
    if column < size and row < size:
        colour = wp.int32(0)
        camera = (picture % views) * CAMERA
        spread = cameras[camera + 12]
        count = counts[index]
        base = index * most_parts * RECORD
        start = starts[block]
        far = float(FAR)
        if start < FAR:
            start, far = _cone(
                parts, base, count, bounds[index], cameras, camera, float(column) + 0.5,
                float(row) + 0.5, start, slope, spread,
            )  # fmt: skip
        if start < FAR:
            origin = vector(cameras, camera)
            hits = wp.int32(0)
            light = wp.vec3(0.0, 0.0, 0.0)
            for s in range(samples * samples):
                x = float(column) + (float(s % samples) + 0.5) / float(samples)
                y = float(row) + (float(s / samples) + 0.5) / float(samples)
                direction = _direction(cameras, camera, x, y)
                depth = _march(
                    parts, base, count, origin, direction, start, far, slope, 0.0,
                    HIT_PIXELS * spread, GRAZE_PIXELS * spread,
                )  # fmt: skip
                if depth < FAR:
                    point = origin + depth * direction
                    normal = _normal(parts, base, count, point)
                    albedo = _albedo(parts, strokes, base, count, point)
                    light = light + _lit(albedo, normal, lights, lamps)
                    hits = hits + 1
            if hits > 0:
                light = light / float(hits)
                alpha = int(255.0 * float(hits) / float(samples * samples) + 0.5)
                if alpha > 127:  # the highest bit is a sign
                    alpha = alpha - 256
                colour = _byte(light[0]) + 256 * _byte(light[1]) + 65536 * _byte(light[2])
                colour = colour + 16777216 * alpha
        pictures[(picture * size + row) * size + column] = colour
