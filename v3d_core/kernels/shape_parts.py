"""Distances to the primitives that objects are composed of, as functions for Warp's kernels.

Contract and oracle: `training/objects_sdf.py`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.shape_parts"

_Floats = wp.array(dtype=wp.float32)

# Where a part's numbers lie in its record, see `training/tracing.part_records`.
RECORD = 56  # floats of one part
KIND, JOIN, WIDTH, BOUND, CENTRE, ROTATION = 0, 1, 2, 3, 4, 7
SIZES, SCALE, BUMP, PATTERN, PAINT, AXIS = 16, 21, 22, 25, 26, 30
COLOURS, PROFILE, INVERSE = 33, 39, 47
SPANS = 6  # of a profile's spline


@wp.func
def vector(parts: _Floats, at: int):
    """Three numbers of a record."""
    return wp.vec3(parts[at], parts[at + 1], parts[at + 2])


@wp.func
def _ellipsoid(p: wp.vec3, sizes: wp.vec3, inverse: wp.vec3):
    # (g - 1) / |grad g| of a convex g never exceeds the distance outside
    q = wp.cw_mul(p, inverse)
    g = wp.length(q)
    distance = (g - 1.0) * wp.min(sizes)
    if g > 0.3:
        distance = g * (g - 1.0) / wp.length(wp.cw_mul(q, inverse))
    return distance


@wp.func
def _superquadric(p: wp.vec3, sizes: wp.vec3, inverse: wp.vec3, across: float, along: float):
    x = wp.max(wp.abs(p[0]) * inverse[0], 1.0e-4)
    y = wp.max(wp.abs(p[1]) * inverse[1], 1.0e-4)
    z = wp.max(wp.abs(p[2]) * inverse[2], 1.0e-4)
    u = wp.pow(wp.pow(x, across) + wp.pow(z, across), 1.0 / across)
    g = wp.pow(wp.pow(u, along) + wp.pow(y, along), 1.0 / along)
    distance = (g - 1.0) * wp.min(sizes)
    if g > 0.3:
        du = wp.pow(u / g, along - 1.0)
        dy = wp.pow(y / g, along - 1.0) * inverse[1]
        dx = du * wp.pow(x / u, across - 1.0) * inverse[0]
        dz = du * wp.pow(z / u, across - 1.0) * inverse[2]
        distance = (g - 1.0) / wp.sqrt(dx * dx + dy * dy + dz * dz)
    return distance


@wp.func
def _frustum(rho: float, y: float, below: float, above: float, half: float):
    end = above
    if y < 0.0:
        end = below
    cap_x = rho - wp.min(rho, end)
    cap_y = wp.abs(y) - half
    slope = above - below
    along = ((above - rho) * slope + (half - y) * 2.0 * half) / (slope * slope + 4.0 * half * half)
    along = wp.clamp(along, 0.0, 1.0)
    side_x = rho - above + slope * along
    side_y = y - half + 2.0 * half * along
    square = wp.min(cap_x * cap_x + cap_y * cap_y, side_x * side_x + side_y * side_y)
    distance = wp.sqrt(square)
    if side_x < 0.0 and cap_y < 0.0:
        distance = -distance
    return distance


@wp.func
def _revolution(
    parts: _Floats, base: int, rho: float, y: float, half: float, inverse_half: float, slope: float
):
    t = (wp.clamp(y * inverse_half, -1.0, 1.0) + 1.0) * 0.5 * float(SPANS)
    span = wp.min(int(t), SPANS - 1)
    t = t - float(span)
    at = base + PROFILE + span
    radius = 0.5 * (
        (1.0 - t) * (1.0 - t) * parts[at]
        + (1.0 + 2.0 * t * (1.0 - t)) * parts[at + 1]
        + t * t * parts[at + 2]
    )
    side = (rho - radius) * slope
    cap = wp.abs(y) - half
    return wp.max(side, cap)


@wp.func
def local(parts: _Floats, base: int, offset: wp.vec3):
    """A vector in world axes, in the part's."""
    r = base + ROTATION
    return wp.vec3(
        parts[r] * offset[0] + parts[r + 1] * offset[1] + parts[r + 2] * offset[2],
        parts[r + 3] * offset[0] + parts[r + 4] * offset[1] + parts[r + 5] * offset[2],
        parts[r + 6] * offset[0] + parts[r + 7] * offset[1] + parts[r + 8] * offset[2],
    )


@wp.func
def part_distance(parts: _Floats, base: int, offset: wp.vec3, ball: float):
    """Signed distance to a part whose centre is `offset` away.

    It is never less than that to the part's `ball`, so that a part whose ball is far may be left
    out and nothing changes.
    """
    p = local(parts, base, offset)
    kind = int(parts[base])
    s0 = parts[base + SIZES]
    s1 = parts[base + SIZES + 1]
    s2 = parts[base + SIZES + 2]
    s3 = parts[base + SIZES + 3]
    i0 = parts[base + INVERSE]
    i1 = parts[base + INVERSE + 1]
    i2 = parts[base + INVERSE + 2]
    distance = wp.float32(0.0)
    if kind == 0:
        distance = _ellipsoid(p, wp.vec3(s0, s1, s2), wp.vec3(i0, i1, i2))
    elif kind == 1:
        x = wp.abs(p[0]) - s0
        y = wp.abs(p[1]) - s1
        z = wp.abs(p[2]) - s2
        outside = wp.length(wp.vec3(wp.max(x, 0.0), wp.max(y, 0.0), wp.max(z, 0.0)))
        distance = outside + wp.min(wp.max(x, wp.max(y, z)), 0.0) - s3
    elif kind == 3:
        y = wp.max(wp.abs(p[1]) - s0, 0.0)
        distance = wp.sqrt(p[0] * p[0] + y * y + p[2] * p[2]) - s1
    elif kind == 6:
        across = parts[base + SIZES + 3]
        along = parts[base + SIZES + 4]
        distance = _superquadric(p, wp.vec3(s0, s1, s2), wp.vec3(i0, i1, i2), across, along)
    else:
        rho = wp.sqrt(p[0] * p[0] + p[2] * p[2])
        if kind == 2:
            x = rho - s0
            y = wp.abs(p[1]) - s1
            ax = wp.max(x, 0.0)
            ay = wp.max(y, 0.0)
            distance = wp.sqrt(ax * ax + ay * ay) + wp.min(wp.max(x, y), 0.0) - s2
        elif kind == 4:
            distance = _frustum(rho, p[1], s0, s1, s2) - s3
        elif kind == 5:
            x = rho - s0
            distance = wp.sqrt(x * x + p[1] * p[1]) - s1
        else:
            distance = _revolution(parts, base, rho, p[1], s0, i0, i1)
    amplitude = parts[base + BUMP]
    if amplitude > 0.0:
        f = parts[base + BUMP + 1]
        phase = parts[base + BUMP + 2]
        wave = wp.sin(f * p[0] + phase) * wp.sin(f * p[1] + 1.7 * phase)
        wave = wave * wp.sin(f * p[2] + 2.3 * phase)
        distance = (distance - amplitude * wave) * parts[base + SCALE]
    return wp.max(distance, ball)
