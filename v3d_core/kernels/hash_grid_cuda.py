"""Hash grid (Mueller et al. 2022) for NVIDIA GPUs, as native snippets that NVIDIA Warp compiles.

One thread per sample and level, samples fastest: neighbours on a ray read neighbouring entries,
all that runs at a time shares one level's table, and results, which lie level by level with the
samples innermost, are written side by side. The table's gradient is added atomically, both features
of an entry at once where the architecture can. Interpolation is the tree of `hash_grid`; the
kernels take the same arguments. Contract and oracle: `neus/torch_encoding.py`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.hash_grid_cuda"

CHUNK = 1  # samples of one level in one piece of work

_CUDA_ONLY = "#if defined(__CUDA_ARCH__)\n{}\n#endif\n"

# Sample `i`: shares x, y, z, slopes' scales sx, sy, sz (0 where clamped), and the rows of the
# eight corners, x fastest.
_CELL = r"""
const size_t n = count;
float scale = scales.data[level];
unsigned side = levels.data[3 * level], first_row = levels.data[3 * level + 1];
unsigned mask = levels.data[3 * level + 2];
float x = points.data[i], y = points.data[n + i], z = points.data[2 * n + i];
float sx = (x >= 0.f && x <= 1.f) ? scale : 0.f;
float sy = (y >= 0.f && y <= 1.f) ? scale : 0.f;
float sz = (z >= 0.f && z <= 1.f) ? scale : 0.f;
x = fminf(fmaxf(x, 0.f), 1.f) * scale + .5f;
y = fminf(fmaxf(y, 0.f), 1.f) * scale + .5f;
z = fminf(fmaxf(z, 0.f), 1.f) * scale + .5f;
unsigned cx = (unsigned)x, cy = (unsigned)y, cz = (unsigned)z;
x -= (float)cx; y -= (float)cy; z -= (float)cz;
unsigned rows[8];
if (mask) {
  unsigned y0 = cy * 2654435761u, y1 = y0 + 2654435761u;
  unsigned z0 = cz * 805459861u, z1 = z0 + 805459861u;
  rows[0] = (cx ^ y0 ^ z0) & mask; rows[1] = ((cx + 1) ^ y0 ^ z0) & mask;
  rows[2] = (cx ^ y1 ^ z0) & mask; rows[3] = ((cx + 1) ^ y1 ^ z0) & mask;
  rows[4] = (cx ^ y0 ^ z1) & mask; rows[5] = ((cx + 1) ^ y0 ^ z1) & mask;
  rows[6] = (cx ^ y1 ^ z1) & mask; rows[7] = ((cx + 1) ^ y1 ^ z1) & mask;
} else {
  unsigned r = cx + side * (cy + side * cz), layer = side * side;
  rows[0] = r; rows[1] = r + 1; rows[2] = r + side; rows[3] = r + side + 1;
  rows[4] = r + layer; rows[5] = r + layer + 1;
  rows[6] = r + layer + side; rows[7] = r + layer + side + 1;
}
"""

_ENCODE = _CUDA_ONLY.format(
    _CELL
    + r"""
const float2* entry = (const float2*)table.data + first_row;
float2 e[8];
#pragma unroll
for (int c = 0; c < 8; ++c) e[c] = __ldg(entry + rows[c]);
float value[2], slope[2][3];
#pragma unroll
for (int f = 0; f < 2; ++f) {
  float v[8];
  #pragma unroll
  for (int c = 0; c < 8; ++c) v[c] = f ? e[c].y : e[c].x;
  float dx0 = v[1] - v[0], dx1 = v[3] - v[2], dx2 = v[5] - v[4], dx3 = v[7] - v[6];
  float a0 = v[0] + x * dx0, a1 = v[2] + x * dx1, a2 = v[4] + x * dx2, a3 = v[6] + x * dx3;
  float dy0 = a1 - a0, dy1 = a3 - a2;
  float b0 = a0 + y * dy0, b1 = a2 + y * dy1;
  value[f] = b0 + z * (b1 - b0);
  float ex0 = dx0 + y * (dx1 - dx0), ex1 = dx2 + y * (dx3 - dx2);
  slope[f][0] = (ex0 + z * (ex1 - ex0)) * sx;
  slope[f][1] = (dy0 + z * (dy1 - dy0)) * sy;
  slope[f][2] = (b1 - b0) * sz;
}
float* out = features.data + 2 * level * n + i;
out[0] = value[0]; out[n] = value[1];
if (with_jacobian) {
  float* d = jacobian.data + 6 * level * n + i;
  #pragma unroll
  for (int k = 0; k < 6; ++k) d[k * n] = slope[k / 3][k % 3];
}
"""
)

_SCATTER = _CUDA_ONLY.format(
    _CELL
    + r"""
float v[2] = {0.f, 0.f}, d[3] = {0.f, 0.f, 0.f}, h[2] = {0.f, 0.f};
if (with_features) {
  const float* g = grad_features.data + i * (size_t)grad_row + 2 * level * (size_t)grad_column;
  v[0] = g[0]; v[1] = g[grad_column];
}
if (with_pulled) {
  const float* g = pulled.data + i * (size_t)pulled_row + 2 * level * (size_t)pulled_column;
  const float* by = grad_points.data + 3 * (size_t)i;
  h[0] = g[0]; h[1] = g[pulled_column];
  d[0] = by[0] * sx; d[1] = by[1] * sy; d[2] = by[2] * sz;
}
float corner[2][8];
#pragma unroll
for (int f = 0; f < 2; ++f) {
  float bx = h[f] * d[0], by = h[f] * d[1], bz = h[f] * d[2];
  float top = z * v[f] + bz, low = v[f] - top;
  float y1 = z * by, y0 = by - y1, x1 = z * bx, x0 = bx - x1;
  float a1 = y * low + y0, a0 = low - a1, a3 = y * top + y1, a2 = top - a3;
  float e1 = y * x0, e0 = x0 - e1, e3 = y * x1, e2 = x1 - e3;
  corner[f][1] = x * a0 + e0; corner[f][0] = a0 - corner[f][1];
  corner[f][3] = x * a1 + e1; corner[f][2] = a1 - corner[f][3];
  corner[f][5] = x * a2 + e2; corner[f][4] = a2 - corner[f][5];
  corner[f][7] = x * a3 + e3; corner[f][6] = a3 - corner[f][7];
}
float2* entry = (float2*)grad_table.data + first_row;
#pragma unroll
for (int c = 0; c < 8; ++c) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" ::
               "l"(__cvta_generic_to_global(entry + rows[c])), "f"(corner[0][c]), "f"(corner[1][c])
               : "memory");
#else
  atomicAdd(&entry[rows[c]].x, corner[0][c]);
  atomicAdd(&entry[rows[c]].y, corner[1][c]);
#endif
}
"""
)

_PULL = _CUDA_ONLY.format(
    r"""
const size_t n = count;
float x = 0.f, y = 0.f, z = 0.f;
const float* d = jacobian.data + i;
const float* g = gradient.data + i * (size_t)row;
for (int c = 0; c < width; ++c, d += 3 * n, g += column) {
  float h = *g;
  x += h * d[0]; y += h * d[n]; z += h * d[2 * n];
}
float* out = pulled.data + 3 * (size_t)i;
out[0] = x; out[1] = y; out[2] = z;
"""
)

_PUSH = _CUDA_ONLY.format(
    r"""
const size_t n = count;
const float* by = grad_points.data + 3 * (size_t)i;
float x = by[0], y = by[1], z = by[2];
const float* d = jacobian.data + i;
float* out = pushed.data + i;
for (int c = 0; c < width; ++c, d += 3 * n, out += n) *out = x * d[0] + y * d[n] + z * d[2 * n];
"""
)

_Floats = wp.array(dtype=wp.float32)
_Ints = wp.array(dtype=wp.int32)


@wp.func_native(_ENCODE)
def _encode(
    level: int, i: int, count: int, points: _Floats, table: _Floats, scales: _Floats,
    levels: _Ints, with_jacobian: int, features: _Floats, jacobian: _Floats,
): ...  # fmt: skip


@wp.func_native(_SCATTER)
def _scatter(
    level: int, i: int, count: int, points: _Floats, scales: _Floats, levels: _Ints,
    with_features: int, grad_features: _Floats, grad_row: int, grad_column: int,
    with_pulled: int, pulled: _Floats, pulled_row: int, pulled_column: int, grad_points: _Floats,
    grad_table: _Floats,
): ...  # fmt: skip


@wp.func_native(_PULL)
def _pull(
    i: int, count: int, width: int, jacobian: _Floats, gradient: _Floats, row: int,
    column: int, pulled: _Floats,
): ...  # fmt: skip


@wp.func_native(_PUSH)
def _push(
    i: int, count: int, width: int, jacobian: _Floats, grad_points: _Floats, pushed: _Floats
): ...


@wp.kernel(enable_backward=False)
def encode_points(
    first: int, stride: int, chunks: int, count: int, points: _Floats, table: _Floats,
    scales: _Floats, levels: _Ints, with_jacobian: int, features: _Floats, jacobian: _Floats,
):  # fmt: skip
    """One thread a sample and level, all samples of a level before the next."""
    item = first + wp.tid() * stride
    _encode(
        item // chunks, item % chunks, count, points, table, scales, levels, with_jacobian,
        features, jacobian,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def scatter_gradients(
    first: int, stride: int, count: int, points: _Floats, scales: _Floats, levels: _Ints,
    with_features: int, grad_features: _Floats, grad_row: int, grad_column: int,
    with_pulled: int, pulled: _Floats, pulled_row: int, pulled_column: int, grad_points: _Floats,
    grad_table: _Floats,
):  # fmt: skip
    """One thread a sample and level: add to the gradient of the table."""
    item = first + wp.tid() * stride
    _scatter(
        item // count, item % count, count, points, scales, levels, with_features, grad_features,
        grad_row, grad_column, with_pulled, pulled, pulled_row, pulled_column, grad_points,
        grad_table,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def pull_gradients(
    first: int, stride: int, count: int, width: int, jacobian: _Floats, gradient: _Floats,
    row: int, column: int, pulled: _Floats,
):  # fmt: skip
    """One thread a sample: from the features to the point."""
    _pull(first + wp.tid() * stride, count, width, jacobian, gradient, row, column, pulled)


@wp.kernel(enable_backward=False)
def push_gradients(
    first: int, stride: int, count: int, width: int, jacobian: _Floats, grad_points: _Floats,
    pushed: _Floats,
):  # fmt: skip
    """One thread a sample: from the point to the features."""
    _push(first + wp.tid() * stride, count, width, jacobian, grad_points, pushed)


def scatter_items(levels: int, count: int) -> int:
    """Threads of `scatter_gradients`."""
    return levels * count
