"""The fit's loss and its gradient for the CPU, as native snippets that NVIDIA Warp compiles itself.

Facts about Warp on the CPU are in `splat_tiles`. Two passes over tiles, as on CUDA. The first blends
pictures and targets over the background, takes SSIM's five windowed means, along rows first, and
leaves the three derivatives of SSIM (Wang et al.'s formula, differentiated by hand) that the second
blurs back; it also adds up the loss per tile. Rows of a tile are what is vectorised. Windows reach
zeros outside the picture. Contract and oracle: `splats/photometric`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.photometric"

TILE_WIDTH = 64  # pixels; whole vectors
TILE_HEIGHT = 32  # pixels; what a tile blurs stays in a core's cache
LOSSES = 4  # floats per tile: L1, 1 - SSIM, coverage, unused; sums over its pixels
DERIVATIVES = 9  # floats per pixel: three per channel

_WHERE = r"""
constexpr int R = 5, WIDE = 64, HIGH = 32, ACROSS = WIDE + 2 * R, DOWN = HIGH + 2 * R;
// exp(-k^2 / (2 1.5^2)) for k = -5..5, normalised
const float window[11] = {0.00102838f, 0.00759876f, 0.03600077f, 0.10936069f, 0.21300554f,
                          0.26601173f, 0.21300554f, 0.10936069f, 0.03600077f, 0.00759876f,
                          0.00102838f};
int view = tile / (columns * rows), in_view = tile - view * columns * rows;
int left = (in_view % columns) * WIDE, top = (in_view / columns) * HIGH;
int wide = width - left < WIDE ? width - left : WIDE;
int high = height - top < HIGH ? height - top : HIGH;
const size_t plane = (size_t)width * height;
const float* __restrict__ shown = pictures.data + 4 * plane * view;
const float* __restrict__ wanted = targets.data + 4 * plane * batch.data[view];
const float* __restrict__ confidence = confidences.data + plane * batch.data[view];
const float* behind = backgrounds.data + 3 * (size_t)view;
// columns of the tile and its surroundings that lie in the picture
int first = left < R ? R - left : 0;
int last = width - left + R < ACROSS ? width - left + R : ACROSS;

auto blur_row = [&](const float* __restrict__ from, float* __restrict__ to) {
  #pragma clang loop vectorize(enable)
  for (int c = 0; c < WIDE; ++c) {
    float s = 0.f;
    #pragma clang loop unroll(full)
    for (int k = 0; k < 11; ++k) s += window[k] * from[c + k];
    to[c] = s;
  }
};
auto blur_column = [&](const float* __restrict__ from, float* __restrict__ to) {
  #pragma clang loop vectorize(enable)
  for (int c = 0; c < WIDE; ++c) {
    float s = 0.f;
    #pragma clang loop unroll(full)
    for (int k = 0; k < 11; ++k) s += window[k] * from[k * WIDE + c];
    to[c] = s;
  }
};
auto magnitude = [](float x) -> float { return x < 0.f ? -x : x; };
auto sign = [](float x) -> float { return x > 0.f ? 1.f : (x < 0.f ? -1.f : 0.f); };
"""

_COMPARE = (
    _WHERE
    + r"""
constexpr float C1 = 0.0001f, C2 = 0.0009f;
float l1 = 0.f, dissimilarity = 0.f, coverage = 0.f;
for (int r = 0; r < high; ++r) {
  size_t row = (size_t)(top + r) * width + left;
  for (int c = 0; c < wide; ++c) {
    const float* a = shown + 4 * (row + c);
    const float* b = wanted + 4 * (row + c);
    float weight = confidence[row + c], gap = b[3] - a[3], off = 0.f;
    for (int i = 0; i < 3; ++i) off += magnitude(a[i] - b[i] + gap * behind[i]);
    l1 += off * weight; coverage += magnitude(gap) * weight;
  }
}
for (int channel = 0; with_ssim && channel < 3; ++channel) {
  float means[5][DOWN][WIDE];
  for (int r = 0; r < DOWN; ++r) {
    int y = top + r - R;
    if (y < 0 || y >= height) {
      for (int f = 0; f < 5; ++f) for (int c = 0; c < WIDE; ++c) means[f][r][c] = 0.f;
      continue;
    }
    float values[5][ACROSS];
    for (int f = 0; f < 5; ++f) for (int c = 0; c < ACROSS; ++c) values[f][c] = 0.f;
    const float* a = shown + 4 * ((long long)y * width + left - R);
    const float* b = wanted + 4 * ((long long)y * width + left - R);
    for (int c = first; c < last; ++c) {
      float u = a[4 * c + channel] + (1.f - a[4 * c + 3]) * behind[channel];
      float v = b[4 * c + channel] + (1.f - b[4 * c + 3]) * behind[channel];
      values[0][c] = u; values[1][c] = v;
      values[2][c] = u * u; values[3][c] = v * v; values[4][c] = u * v;
    }
    for (int f = 0; f < 5; ++f) blur_row(values[f], means[f][r]);
  }
  for (int r = 0; r < high; ++r) {
    float m[5][WIDE], by[3][WIDE], off[WIDE], weight[WIDE];
    for (int f = 0; f < 5; ++f) blur_column(means[f][r], m[f]);
    size_t row = (size_t)(top + r) * width + left;
    for (int c = 0; c < WIDE; ++c) weight[c] = c < wide ? confidence[row + c] : 0.f;
    #pragma clang loop vectorize(enable)
    for (int c = 0; c < WIDE; ++c) {
      float ux = m[0][c], uy = m[1][c];
      float A1 = 2.f * ux * uy + C1, B1 = ux * ux + uy * uy + C1;
      float A2 = 2.f * (m[4][c] - ux * uy) + C2;
      float B2 = m[2][c] - ux * ux + m[3][c] - uy * uy + C2;
      float ib1 = 1.f / B1, ib2 = 1.f / B2, ssim = A1 * A2 * ib1 * ib2;
      off[c] = (1.f - ssim) * weight[c];
      // by the mean of x, of x x, of x y
      by[0][c] = weight[c] * (2.f * uy * (A2 - A1) * ib1 * ib2 - 2.f * ux * ssim * (ib1 - ib2));
      by[1][c] = -weight[c] * ssim * ib2;
      by[2][c] = weight[c] * 2.f * A1 * ib1 * ib2;
    }
    float* out = derivatives.data + (9 * (size_t)view + 3 * channel) * plane + row;
    for (int f = 0; f < 3; ++f) for (int c = 0; c < wide; ++c) out[f * plane + c] = by[f][c];
    for (int c = 0; c < wide; ++c) dissimilarity += off[c];
  }
}
float* sums = losses.data + 4 * (size_t)tile;
sums[0] = l1; sums[1] = dissimilarity; sums[2] = coverage; sums[3] = 0.f;
"""
)

_DIFFERENTIATE = (
    _WHERE
    + r"""
float grads[4][HIGH][WIDE];
for (int r = 0; r < high; ++r) for (int c = 0; c < WIDE; ++c) grads[3][r][c] = 0.f;
for (int channel = 0; channel < 3; ++channel) {
  float across[3][DOWN][WIDE];
  for (int r = 0; with_ssim && r < DOWN; ++r) {
    int y = top + r - R;
    if (y < 0 || y >= height) {
      for (int f = 0; f < 3; ++f) for (int c = 0; c < WIDE; ++c) across[f][r][c] = 0.f;
      continue;
    }
    const float* from = derivatives.data + (9 * (size_t)view + 3 * channel) * plane
                        + (long long)y * width + left - R;
    for (int f = 0; f < 3; ++f) {
      float values[ACROSS];
      for (int c = 0; c < ACROSS; ++c) values[c] = 0.f;
      for (int c = first; c < last; ++c) values[c] = from[f * plane + c];
      blur_row(values, across[f][r]);
    }
  }
  for (int r = 0; r < high; ++r) {
    float by[3][WIDE];
    for (int f = 0; with_ssim && f < 3; ++f) blur_column(across[f][r], by[f]);
    size_t row = (size_t)(top + r) * width + left;
    for (int c = 0; c < wide; ++c) {
      const float* a = shown + 4 * (row + c);
      const float* b = wanted + 4 * (row + c);
      float u = a[channel] + (1.f - a[3]) * behind[channel];
      float v = b[channel] + (1.f - b[3]) * behind[channel];
      float g = l1_share * confidence[row + c] * sign(u - v);
      if (with_ssim) g -= ssim_share * (by[0][c] + 2.f * u * by[1][c] + v * by[2][c]);
      grads[channel][r][c] = g;
      grads[3][r][c] -= g * behind[channel];
    }
  }
}
for (int r = 0; r < high; ++r) {
  size_t row = (size_t)(top + r) * width + left;
  float* out = grad_pictures.data + 4 * (plane * view + row);
  for (int c = 0; c < wide; ++c) {
    float gap = shown[4 * (row + c) + 3] - wanted[4 * (row + c) + 3];
    for (int i = 0; i < 3; ++i) out[4 * c + i] = grads[i][r][c];
    out[4 * c + 3] = grads[3][r][c] + mask_share * confidence[row + c] * sign(gap);
  }
}
"""
)

_Floats = wp.array(dtype=wp.float32)
_Longs = wp.array(dtype=wp.int64)


@wp.func_native(_COMPARE)
def _compare(
    tile: int, pictures: _Floats, targets: _Floats, confidences: _Floats, batch: _Longs,
    backgrounds: _Floats, columns: int, rows: int, width: int, height: int, with_ssim: int,
    derivatives: _Floats, losses: _Floats,
): ...  # fmt: skip


@wp.func_native(_DIFFERENTIATE)
def _differentiate(
    tile: int, pictures: _Floats, targets: _Floats, confidences: _Floats, batch: _Longs,
    backgrounds: _Floats, columns: int, rows: int, width: int, height: int, with_ssim: int,
    derivatives: _Floats, l1_share: float, ssim_share: float, mask_share: float,
    grad_pictures: _Floats,
): ...  # fmt: skip


@wp.kernel(enable_backward=False)
def compare_pictures(
    first: int, stride: int, pictures: _Floats, targets: _Floats, confidences: _Floats,
    batch: _Longs, backgrounds: _Floats, columns: int, rows: int, width: int, height: int,
    with_ssim: int, derivatives: _Floats, losses: _Floats,
):  # fmt: skip
    """Sums of the losses of tiles `first`, `first + stride`, ..., and SSIM's derivatives."""
    _compare(
        first + wp.tid() * stride, pictures, targets, confidences, batch, backgrounds, columns,
        rows, width, height, with_ssim, derivatives, losses,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def differentiate_pictures(
    first: int, stride: int, pictures: _Floats, targets: _Floats, confidences: _Floats,
    batch: _Longs, backgrounds: _Floats, columns: int, rows: int, width: int, height: int,
    with_ssim: int, derivatives: _Floats, l1_share: float, ssim_share: float, mask_share: float,
    grad_pictures: _Floats,
):  # fmt: skip
    """The gradient of the loss by the four channels of tiles `first`, `first + stride`, ..."""
    _differentiate(
        first + wp.tid() * stride, pictures, targets, confidences, batch, backgrounds, columns,
        rows, width, height, with_ssim, derivatives, l1_share, ssim_share, mask_share,
        grad_pictures,
    )  # fmt: skip
