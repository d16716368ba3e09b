"""Hash grid (Mueller et al. 2022) for the CPU, as native snippets that NVIDIA Warp compiles itself.

Facts about Warp on the CPU are in `splat_tiles`. Levels are the outer order, so that a level's
table stays in a core's cache, and results lie level by level with the samples innermost, so that
they are written in streams. A thread owns whole levels of the table's gradient.

Interpolation is a tree: the four edges along x, then two along y, then one along z; both features
of all corners of a stage sit in one vector. The differences of each stage are the derivatives, and
the gradient runs down the same tree. Contract and oracle: `neus/torch_encoding.py`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.hash_grid"

CHUNK = 1024  # samples of one level in one piece of work; a thread's points stay in its cache
LEVEL_NUMBERS = 3  # integers per level: vertices along a side, first row, mask (0 = dense)

# Opens a loop over samples `i` of `level`, number `k` of a block: shares x, y, z, slopes' scales
# sx, sy, sz (0 where clamped), and the rows of the corners after `base`, y fastest, x slowest. Asking
# for a block's rows ahead saves a third of the time (measured).
_CELLS = r"""
typedef float f2 __attribute__((ext_vector_type(2), aligned(4)));
typedef float f4 __attribute__((ext_vector_type(4)));
typedef float f8 __attribute__((ext_vector_type(8)));
constexpr int BLOCK = 64;
const float scale = scales.data[level];
const unsigned side = levels.data[3 * level], first_row = levels.data[3 * level + 1];
const unsigned mask = levels.data[3 * level + 2];
auto base = TABLE.data + 2 * (size_t)first_row;
const float* __restrict__ px = points.data;
const float* __restrict__ py = px + count;
const float* __restrict__ pz = py + count;
for (int block = begin; block < end; block += BLOCK) {
  int size = end - block < BLOCK ? end - block : BLOCK;
  float fx[BLOCK], fy[BLOCK], fz[BLOCK], sx[BLOCK], sy[BLOCK], sz[BLOCK];
  unsigned rows[8][BLOCK];
  for (int k = 0; k < size; ++k) {
    float x = px[block + k], y = py[block + k], z = pz[block + k];
    sx[k] = (x >= 0.f && x <= 1.f) ? scale : 0.f;
    sy[k] = (y >= 0.f && y <= 1.f) ? scale : 0.f;
    sz[k] = (z >= 0.f && z <= 1.f) ? scale : 0.f;
    x = x > 0.f ? x : 0.f; y = y > 0.f ? y : 0.f; z = z > 0.f ? z : 0.f;
    x = (x < 1.f ? x : 1.f) * scale + .5f;
    y = (y < 1.f ? y : 1.f) * scale + .5f;
    z = (z < 1.f ? z : 1.f) * scale + .5f;
    unsigned cx = (unsigned)(int)x, cy = (unsigned)(int)y, cz = (unsigned)(int)z;
    fx[k] = x - (int)cx; fy[k] = y - (int)cy; fz[k] = z - (int)cz;
    unsigned x1, y0, y1, z0, z1;
    if (mask) {
      y0 = cy * 2654435761u; y1 = y0 + 2654435761u;
      z0 = cz * 805459861u; z1 = z0 + 805459861u;
      x1 = cx + 1;
      rows[0][k] = (cx ^ y0 ^ z0) & mask; rows[4][k] = (x1 ^ y0 ^ z0) & mask;
      rows[1][k] = (cx ^ y1 ^ z0) & mask; rows[5][k] = (x1 ^ y1 ^ z0) & mask;
      rows[2][k] = (cx ^ y0 ^ z1) & mask; rows[6][k] = (x1 ^ y0 ^ z1) & mask;
      rows[3][k] = (cx ^ y1 ^ z1) & mask; rows[7][k] = (x1 ^ y1 ^ z1) & mask;
    } else {
      unsigned r = cx + side * (cy + side * cz), layer = side * side;
      rows[0][k] = r; rows[4][k] = r + 1;
      rows[1][k] = r + side; rows[5][k] = r + side + 1;
      rows[2][k] = r + layer; rows[6][k] = r + layer + 1;
      rows[3][k] = r + layer + side; rows[7][k] = r + layer + side + 1;
    }
  }
  for (int c = 0; c < 8; ++c) for (int k = 0; k < size; ++k)
    __builtin_prefetch(base + 2 * (size_t)rows[c][k]);
  for (int k = 0; k < size; ++k) {
    size_t i = block + k;
    float x = fx[k], y = fy[k], z = fz[k];
"""

_ENCODE = (
    r"""
const int begin = chunk * 1024;
const int end = begin + 1024 < count ? begin + 1024 : count;
const size_t n = count;
"""
    + _CELLS.replace("TABLE", "table")
    + r"""
    f2 a0 = *(const f2*)(base + 2 * rows[0][k]), b0 = *(const f2*)(base + 2 * rows[4][k]);
    f2 a1 = *(const f2*)(base + 2 * rows[1][k]), b1 = *(const f2*)(base + 2 * rows[5][k]);
    f2 a2 = *(const f2*)(base + 2 * rows[2][k]), b2 = *(const f2*)(base + 2 * rows[6][k]);
    f2 a3 = *(const f2*)(base + 2 * rows[3][k]), b3 = *(const f2*)(base + 2 * rows[7][k]);
    f8 a = {a0.x, a0.y, a2.x, a2.y, a1.x, a1.y, a3.x, a3.y};
    f8 b = {b0.x, b0.y, b2.x, b2.y, b1.x, b1.y, b3.x, b3.y};
    f8 by_x8 = b - a, v8 = a + x * by_x8;
    f4 by_y4 = v8.hi - v8.lo, v4 = v8.lo + y * by_y4;
    f2 by_z = v4.hi - v4.lo, v = v4.lo + z * by_z;
    float* out = features.data + 2 * level * n + i;
    out[0] = v.x; out[n] = v.y;
    if (with_jacobian) {
      f4 by_x4 = by_x8.lo + y * (by_x8.hi - by_x8.lo);
      f2 by_x = (by_x4.lo + z * (by_x4.hi - by_x4.lo)) * sx[k];
      f2 by_y = (by_y4.lo + z * (by_y4.hi - by_y4.lo)) * sy[k];
      by_z = by_z * sz[k];
      float* d = jacobian.data + 6 * level * n + i;
      d[0] = by_x.x; d[n] = by_y.x; d[2 * n] = by_z.x;
      d[3 * n] = by_x.y; d[4 * n] = by_y.y; d[5 * n] = by_z.y;
    }
  }
}
"""
)

_SCATTER = (
    r"""
const int begin = 0, end = count;
"""
    + _CELLS.replace("TABLE", "grad_table")
    + r"""
    f2 v = {0.f, 0.f}, by_x = v, by_y = v, by_z = v;
    if (with_features) {
      const float* g = grad_features.data + i * grad_row + 2 * level * grad_column;
      v.x = g[0]; v.y = g[grad_column];
    }
    if (with_pulled) {
      const float* g = pulled.data + i * pulled_row + 2 * level * pulled_column;
      const float* d = grad_points.data + 3 * i;
      f2 h = {g[0], g[pulled_column]};
      by_x = h * (d[0] * sx[k]); by_y = h * (d[1] * sy[k]); by_z = h * (d[2] * sz[k]);
    }
    f2 high = z * v + by_z;
    f4 v4; v4.hi = high; v4.lo = v - high;
    f4 by_y4; by_y4.hi = z * by_y; by_y4.lo = by_y - by_y4.hi;
    f4 by_x4; by_x4.hi = z * by_x; by_x4.lo = by_x - by_x4.hi;
    f8 v8; v8.hi = y * v4 + by_y4; v8.lo = v4 - v8.hi;
    f8 by_x8; by_x8.hi = y * by_x4; by_x8.lo = by_x4 - by_x8.hi;
    f8 b = x * v8 + by_x8, a = v8 - b;
    *(f2*)(base + 2 * rows[0][k]) += a.s01; *(f2*)(base + 2 * rows[4][k]) += b.s01;
    *(f2*)(base + 2 * rows[2][k]) += a.s23; *(f2*)(base + 2 * rows[6][k]) += b.s23;
    *(f2*)(base + 2 * rows[1][k]) += a.s45; *(f2*)(base + 2 * rows[5][k]) += b.s45;
    *(f2*)(base + 2 * rows[3][k]) += a.s67; *(f2*)(base + 2 * rows[7][k]) += b.s67;
  }
}
"""
)

_SAMPLES = r"""
const int begin = chunk * 1024;
const int end = begin + 1024 < count ? begin + 1024 : count;
const size_t n = count;
"""

# d loss / d points of a chunk: all features' gradients times the Jacobian
_PULL = (
    _SAMPLES
    + r"""
float x[1024], y[1024], z[1024];
for (int k = 0; k < end - begin; ++k) { x[k] = 0.f; y[k] = 0.f; z[k] = 0.f; }
for (int c = 0; c < width; ++c) {
  const float* __restrict__ d = jacobian.data + 3 * c * n + begin;
  const float* __restrict__ g = gradient.data + (size_t)begin * row + c * column;
  for (int k = 0; k < end - begin; ++k) {
    float h = g[(size_t)k * row];
    x[k] += h * d[k]; y[k] += h * d[n + k]; z[k] += h * d[2 * n + k];
  }
}
float* out = pulled.data + 3 * (size_t)begin;
for (int k = 0; k < end - begin; ++k) {
  out[3 * k] = x[k]; out[3 * k + 1] = y[k]; out[3 * k + 2] = z[k];
}
"""
)

# the other way: d loss / d (features' gradients), [width, N]
_PUSH = (
    _SAMPLES
    + r"""
const float* __restrict__ by = grad_points.data + 3 * (size_t)begin;
float x[1024], y[1024], z[1024];
for (int k = 0; k < end - begin; ++k) { x[k] = by[3 * k]; y[k] = by[3 * k + 1]; z[k] = by[3 * k + 2]; }
for (int c = 0; c < width; ++c) {
  const float* __restrict__ d = jacobian.data + 3 * c * n + begin;
  float* __restrict__ out = pushed.data + c * n + begin;
  for (int k = 0; k < end - begin; ++k) out[k] = x[k] * d[k] + y[k] * d[n + k] + z[k] * d[2 * n + k];
}
"""
)

_Floats = wp.array(dtype=wp.float32)
_Ints = wp.array(dtype=wp.int32)


@wp.func_native(_ENCODE)
def _encode(
    level: int, chunk: int, count: int, points: _Floats, table: _Floats, scales: _Floats,
    levels: _Ints, with_jacobian: int, features: _Floats, jacobian: _Floats,
): ...  # fmt: skip


@wp.func_native(_SCATTER)
def _scatter(
    level: int, count: int, points: _Floats, scales: _Floats, levels: _Ints,
    with_features: int, grad_features: _Floats, grad_row: int, grad_column: int,
    with_pulled: int, pulled: _Floats, pulled_row: int, pulled_column: int, grad_points: _Floats,
    grad_table: _Floats,
): ...  # fmt: skip


@wp.func_native(_PULL)
def _pull(
    chunk: int, count: int, width: int, jacobian: _Floats, gradient: _Floats, row: int,
    column: int, pulled: _Floats,
): ...  # fmt: skip


@wp.func_native(_PUSH)
def _push(
    chunk: int, count: int, width: int, jacobian: _Floats, grad_points: _Floats, pushed: _Floats
): ...


@wp.kernel(enable_backward=False)
def encode_points(
    first: int, stride: int, chunks: int, count: int, points: _Floats, table: _Floats,
    scales: _Floats, levels: _Ints, with_jacobian: int, features: _Floats, jacobian: _Floats,
):  # fmt: skip
    """Chunks of levels `first`, `first + stride`, ...; a level's chunks follow one another."""
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
    """Gradients of levels `first`, `first + stride`, ... of the table, added to what is there."""
    _scatter(
        first + wp.tid() * stride, count, points, scales, levels, with_features, grad_features,
        grad_row, grad_column, with_pulled, pulled, pulled_row, pulled_column, grad_points,
        grad_table,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def pull_gradients(
    first: int, stride: int, count: int, width: int, jacobian: _Floats, gradient: _Floats,
    row: int, column: int, pulled: _Floats,
):  # fmt: skip
    """From the features to the points, chunks `first`, `first + stride`, ..."""
    _pull(first + wp.tid() * stride, count, width, jacobian, gradient, row, column, pulled)


@wp.kernel(enable_backward=False)
def push_gradients(
    first: int, stride: int, count: int, width: int, jacobian: _Floats, grad_points: _Floats,
    pushed: _Floats,
):  # fmt: skip
    """From the points to the features, chunks `first`, `first + stride`, ..."""
    _push(first + wp.tid() * stride, count, width, jacobian, grad_points, pushed)


def scatter_items(levels: int, count: int) -> int:
    """Pieces of work of `scatter_gradients`: a thread owns the levels it adds to."""
    return levels if count else 0
