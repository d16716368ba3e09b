"""Tile rasteriser of Gaussians for the CPU, as native snippets that NVIDIA Warp compiles itself.

Warp brings its own LLVM, so nothing has to be installed besides its wheel. Three facts about Warp
on the CPU shape this file: a launch runs on one thread but releases the GIL, so every kernel takes
`first` and `stride` and threads share the work by striding; `atomic_add` is a plain `+=`, so every
thread owns what it writes; only C loops inside a native snippet are vectorised.

A picture is cut in tiles of 16x16 pixels. Pairs (tile, Gaussian) are listed per tile in depth
order by a counting sort. Both directions walk a tile's list front to back and do a tile's left or
right half row, 8 pixels, per instruction, where a Gaussian reaches into it; the gradient of a pair
goes to a slot of its own and is summed per Gaussian afterwards, which is repeatable. Contract and
oracle: `splats/torch_raster.py`.

Records and their gradients are those of `splat_records`. Pictures have 4 channels: premultiplied
colour and coverage.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.splat_tiles"

TILE = 16  # pixels; 8 was slower on CPU (51/98 against 12/54 ms at 50k splats, 512 px; measured)
PAIR_GRADIENTS = 9  # floats per pair: r, g, b, d_power, and its moments dx, dy, dx dx, dx dy, dy dy

_EXP = r"""
// exp(x) as exp(x / 8)^8 by a polynomial, which vectorises: relative error below 2.2e-6 down to
// ln(1 / 255), where alpha is cut, and below 1e-3 from there to -8
auto fast_exp = [](float x) -> float {
  float y = x * 0.125f;
  float p = 1.f + y * (0.9999947626f + y * (0.4998997784f + y * (0.1660284045f
            + y * (0.0398483097f + y * 0.005885253063f))));
  p = p * p; p = p * p; return p * p;
};
constexpr int TILE = 16, HALF = 8, PIXELS = 256;
constexpr float MIN_ALPHA = 1.f / 255.f, MAX_ALPHA = 0.99f, OPAQUE = 1e-5f;
"""

_FORWARD = (
    _EXP
    + r"""
int left = (tile % columns) * TILE, top = (tile / columns) * TILE;
float T[PIXELS], R[PIXELS], G[PIXELS], B[PIXELS];
for (int i = 0; i < PIXELS; ++i) { T[i] = 1.f; R[i] = 0.f; G[i] = 0.f; B[i] = 0.f; }
const int* __restrict__ gaussian = pair_gaussian.data;
const float* __restrict__ record = gaussians.data;
int begin = tile_start.data[tile], end = tile_start.data[tile + 1];
for (int m = begin; m < end; ++m) {
  const float* q = record + (size_t)gaussian[m] * 16;
  float x = q[0] - left - .5f, y = q[1] - top - .5f;
  float a = q[2] * -.5f, b = -q[3], c = q[4] * -.5f, o = q[5], r = q[6], g = q[7], bl = q[8];
  int row0 = (int)(y - q[9]), row1 = (int)(y + q[9]) + 2;
  row0 = row0 < 0 ? 0 : row0; row1 = row1 > TILE ? TILE : row1;
  int half0 = x - q[10] < HALF ? 0 : HALF, half1 = x + q[10] > HALF - 1 ? TILE : HALF;
  for (int j = row0; j < row1; ++j) {
    float dy = y - j, cyy = c * dy * dy, bdy = b * dy;
    for (int half = half0; half < half1; half += HALF) {
      float* Tj = T + j * TILE + half; float* Rj = R + j * TILE + half;
      float* Gj = G + j * TILE + half; float* Bj = B + j * TILE + half;
      float from = x - half;
      #pragma clang loop vectorize(enable) interleave(disable)
      for (int i = 0; i < HALF; ++i) {
        float dx = from - i;
        float power = (a * dx + bdy) * dx + cyy;
        power = power > -8.f ? power : -8.f;
        float alpha = o * fast_exp(power);
        alpha = alpha < MAX_ALPHA ? alpha : MAX_ALPHA;
        alpha = alpha >= MIN_ALPHA ? alpha : 0.f;
        float w = alpha * Tj[i];
        Rj[i] += w * r; Gj[i] += w * g; Bj[i] += w * bl; Tj[i] -= w;
      }
    }
  }
  if ((m & 15) == 15) {
    float most = 0.f;
    for (int i = 0; i < PIXELS; ++i) most = T[i] > most ? T[i] : most;
    if (most < OPAQUE) break;
  }
}
int rows = height - top < TILE ? height - top : TILE;
int cols = width - left < TILE ? width - left : TILE;
for (int j = 0; j < rows; ++j) for (int i = 0; i < cols; ++i) {
  int p = j * TILE + i;
  float* out = picture.data + 4 * ((size_t)(top + j) * width + left + i);
  out[0] = R[p]; out[1] = G[p]; out[2] = B[p]; out[3] = 1.f - T[p];
}
"""
)

# Front to back, with S = the gain of everything not yet passed: no division chain for T and the
# same early exit as the forward pass, so no per-pixel counts have to be stored.
_BACKWARD = (
    _EXP
    + r"""
int begin = tile_start.data[tile], end = tile_start.data[tile + 1];
if (begin == end) return;
int left = (tile % columns) * TILE, top = (tile / columns) * TILE;
float T[PIXELS], S[PIXELS], g0[PIXELS], g1[PIXELS], g2[PIXELS], g3[PIXELS];
for (int i = 0; i < PIXELS; ++i) { T[i] = 1.f; S[i] = 0; g0[i] = 0; g1[i] = 0; g2[i] = 0; g3[i] = 0; }
int rows = height - top < TILE ? height - top : TILE;
int cols = width - left < TILE ? width - left : TILE;
for (int j = 0; j < rows; ++j) for (int i = 0; i < cols; ++i) {
  int p = j * TILE + i;
  size_t at = 4 * ((size_t)(top + j) * width + left + i);
  const float* out = picture.data + at; const float* grad = grad_picture.data + at;
  g0[p] = grad[0]; g1[p] = grad[1]; g2[p] = grad[2]; g3[p] = grad[3];
  S[p] = g0[p] * out[0] + g1[p] * out[1] + g2[p] * out[2] + g3[p] * out[3];
}
const float* __restrict__ record = gaussians.data;
for (int m = begin; m < end; ++m) {
  const float* q = record + (size_t)pair_gaussian.data[m] * 16;
  float x = q[0] - left - .5f, y = q[1] - top - .5f;
  float a = q[2] * -.5f, b = -q[3], c = q[4] * -.5f, o = q[5], r = q[6], g = q[7], bl = q[8];
  int row0 = (int)(y - q[9]), row1 = (int)(y + q[9]) + 2;
  row0 = row0 < 0 ? 0 : row0; row1 = row1 > TILE ? TILE : row1;
  int half0 = x - q[10] < HALF ? 0 : HALF, half1 = x + q[10] > HALF - 1 ? TILE : HALF;
  float A[9][HALF];
  for (int k = 0; k < 9; ++k) for (int i = 0; i < HALF; ++i) A[k][i] = 0.f;
  for (int j = row0; j < row1; ++j) {
    float dy = y - j, cyy = c * dy * dy, bdy = b * dy;
    for (int half = half0; half < half1; half += HALF) {
      int at = j * TILE + half;
      float* Tj = T + at; float* Sj = S + at;
      float* h0 = g0 + at; float* h1 = g1 + at;
      float* h2 = g2 + at; float* h3 = g3 + at;
      float from = x - half;
      #pragma clang loop vectorize(enable) interleave(disable)
      for (int i = 0; i < HALF; ++i) {
        float dx = from - i;
        float power = (a * dx + bdy) * dx + cyy;
        power = power > -8.f ? power : -8.f;
        float e = fast_exp(power);
        float alpha = o * e;
        float live = alpha >= MIN_ALPHA ? 1.f : 0.f;
        float free_ = alpha < MAX_ALPHA ? live : 0.f;
        alpha = (alpha < MAX_ALPHA ? alpha : MAX_ALPHA) * live;
        float t = Tj[i], w = alpha * t;
        float gain = h0[i] * r + h1[i] * g + h2[i] * bl + h3[i];
        float s = Sj[i] - w * gain;
        Sj[i] = s; Tj[i] = t - w;
        A[0][i] += w * h0[i]; A[1][i] += w * h1[i]; A[2][i] += w * h2[i];
        float d_alpha = (t * gain - s / (1.f - alpha)) * free_;
        float d_power = d_alpha * alpha, px = d_power * dx, py = d_power * dy;
        A[3][i] += d_power;
        A[4][i] += px; A[5][i] += py; A[6][i] += px * dx; A[7][i] += px * dy; A[8][i] += py * dy;
      }
    }
  }
  float* out = pair_gradients.data + (size_t)pair_slot.data[m] * 9;
  for (int k = 0; k < 9; ++k) { float v = 0; for (int i = 0; i < HALF; ++i) v += A[k][i]; out[k] = v; }
  if ((m & 15) == 15) {
    float most = 0.f;
    for (int i = 0; i < PIXELS; ++i) most = T[i] > most ? T[i] : most;
    if (most < OPAQUE) break;
  }
}
"""
)

_Floats = wp.array(dtype=wp.float32)
_Ints = wp.array(dtype=wp.int32)


@wp.func_native(_FORWARD)
def _forward_tile(
    gaussians: _Floats,
    pair_gaussian: _Ints,
    tile_start: _Ints,
    tile: int,
    columns: int,
    width: int,
    height: int,
    picture: _Floats,
): ...


@wp.func_native(_BACKWARD)
def _backward_tile(
    gaussians: _Floats,
    pair_gaussian: _Ints,
    pair_slot: _Ints,
    tile_start: _Ints,
    tile: int,
    columns: int,
    width: int,
    height: int,
    picture: _Floats,
    grad_picture: _Floats,
    pair_gradients: _Floats,
): ...


@wp.func
def _tile_range(centre: float, half: float, tiles: int):
    """First and end tile that [centre - half, centre + half] touches."""
    first = wp.max(0, int(wp.floor((centre - half) / 16.0)))
    end = wp.min(tiles, int(wp.floor((centre + half) / 16.0)) + 1)
    return first, end


@wp.kernel(enable_backward=False)
def count_pairs(
    gaussians: _Floats,
    order: wp.array(dtype=wp.int64),
    columns: int,
    rows: int,
    tile_pairs: _Ints,
    gaussian_start: _Ints,
):
    """One thread: pairs per tile, and the first slot of each Gaussian in its own numbering."""
    total = int(0)  # noqa: RUF046, UP018 (a literal is a constant to Warp, which a loop may not change)
    for k in range(order.shape[0]):
        g = int(order[k])
        gaussian_start[k] = total
        half_x = gaussians[g * 16 + 10]
        if half_x > 0.0:
            x0, x1 = _tile_range(gaussians[g * 16], half_x, columns)
            y0, y1 = _tile_range(gaussians[g * 16 + 1], gaussians[g * 16 + 9], rows)
            for j in range(y0, y1):
                for i in range(x0, x1):
                    tile_pairs[j * columns + i] = tile_pairs[j * columns + i] + 1
                    total += 1
    gaussian_start[order.shape[0]] = total


@wp.kernel(enable_backward=False)
def list_pairs(
    gaussians: _Floats,
    order: wp.array(dtype=wp.int64),
    columns: int,
    rows: int,
    next_pair: _Ints,
    pair_gaussian: _Ints,
    pair_slot: _Ints,
):
    """One thread: every tile's Gaussians in depth order, and each pair's gradient slot."""
    slot = int(0)  # noqa: RUF046, UP018 (as above)
    for k in range(order.shape[0]):
        g = int(order[k])
        half_x = gaussians[g * 16 + 10]
        if half_x > 0.0:
            x0, x1 = _tile_range(gaussians[g * 16], half_x, columns)
            y0, y1 = _tile_range(gaussians[g * 16 + 1], gaussians[g * 16 + 9], rows)
            for j in range(y0, y1):
                for i in range(x0, x1):
                    p = next_pair[j * columns + i]
                    next_pair[j * columns + i] = p + 1
                    pair_gaussian[p] = g
                    pair_slot[p] = slot
                    slot += 1


@wp.kernel(enable_backward=False)
def composite_tiles(
    first: int,
    stride: int,
    gaussians: _Floats,
    pair_gaussian: _Ints,
    tile_start: _Ints,
    columns: int,
    width: int,
    height: int,
    picture: _Floats,
):
    """Tiles `first`, `first + stride`, ... of the picture."""
    tile = first + wp.tid() * stride
    _forward_tile(gaussians, pair_gaussian, tile_start, tile, columns, width, height, picture)


@wp.kernel(enable_backward=False)
def differentiate_tiles(
    first: int,
    stride: int,
    gaussians: _Floats,
    pair_gaussian: _Ints,
    pair_slot: _Ints,
    tile_start: _Ints,
    columns: int,
    width: int,
    height: int,
    picture: _Floats,
    grad_picture: _Floats,
    pair_gradients: _Floats,
):
    """Gradients of all pairs of tiles `first`, `first + stride`, ..."""
    tile = first + wp.tid() * stride
    _backward_tile(
        gaussians, pair_gaussian, pair_slot, tile_start, tile, columns, width, height, picture,
        grad_picture, pair_gradients,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def sum_pair_gradients(
    first: int,
    stride: int,
    order: wp.array(dtype=wp.int64),
    gaussian_start: _Ints,
    pair_gradients: _Floats,
    gradients: _Floats,
):
    """Sum every Gaussian's pair gradients into its record's gradient."""
    k = first + wp.tid() * stride
    g = int(order[k])
    for channel in range(9):
        total = float(0.0)  # noqa: UP018 (as above)
        for m in range(gaussian_start[k], gaussian_start[k + 1]):
            total += pair_gradients[m * 9 + channel]
        gradients[g * 12 + channel] = total
