"""The fit's loss and its gradient on NVIDIA GPUs, as native snippets that NVIDIA Warp compiles.

Two passes over 16x16 pixels. The first blends pictures and targets over the background, takes the
five windowed means of SSIM in shared memory, and leaves the three derivatives of SSIM that the
second pass blurs back (as Wang et al.'s formula is differentiated by hand); it also adds up the
loss per block. Windows reach zeros outside the picture. Contract and oracle: `splats/photometric`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.photometric_cuda"

TILE_WIDTH = 16  # pixels
TILE_HEIGHT = 16  # pixels
BLOCK = 256  # threads
LOSSES = 4  # floats per block: L1, 1 - SSIM, coverage, unused; sums over its pixels
DERIVATIVES = 9  # floats per pixel: three per channel

_CUDA_ONLY = "#if defined(__CUDA_ARCH__)\n{}\n#endif\n"

_WHERE = r"""
constexpr int R = 5, SIDE = 26;  // window radius, tile with its surroundings
int thread = threadIdx.x;
int view = tile / (columns * rows), in_view = tile - view * columns * rows;
int left = (in_view % columns) * 16, top = (in_view / columns) * 16;
int column = left + (thread & 15), row = top + (thread >> 4);
bool inside = column < width && row < height;
size_t pixel = ((size_t)view * height + row) * width + column;
int target_view = batch.data[view];
const float4* shown = (const float4*)pictures.data + (size_t)view * height * width;
const float4* wanted = (const float4*)targets.data + (size_t)target_view * height * width;
const float* back = backgrounds.data + 3 * (size_t)view;
// exp(-k^2 / (2 1.5^2)) for k = -5..5, normalised
const float window[11] = {0.00102838f, 0.00759876f, 0.03600077f, 0.10936069f, 0.21300554f,
                          0.26601173f, 0.21300554f, 0.10936069f, 0.03600077f, 0.00759876f,
                          0.00102838f};
"""

_COMPARE = _CUDA_ONLY.format(
    _WHERE
    + r"""
__shared__ float px[SIDE][SIDE + 1], py[SIDE][SIDE + 1];
__shared__ float across[5][SIDE][16];
__shared__ float sums[3][8];
float l1 = 0.f, dissimilarity = 0.f, coverage = 0.f;
float weight = 1.f;
if (inside) {
  float4 a = shown[(size_t)row * width + column], b = wanted[(size_t)row * width + column];
  weight = weights.data[((size_t)target_view * height + row) * width + column];
  coverage = fabsf(a.w - b.w) * weight;
  l1 = fabsf(a.x + (1.f - a.w) * back[0] - b.x - (1.f - b.w) * back[0])
     + fabsf(a.y + (1.f - a.w) * back[1] - b.y - (1.f - b.w) * back[1])
     + fabsf(a.z + (1.f - a.w) * back[2] - b.z - (1.f - b.w) * back[2]);
  l1 *= weight;
}
for (int channel = 0; with_ssim && channel < 3; ++channel) {
  __syncthreads();
  for (int i = thread; i < SIDE * SIDE; i += 256) {
    int r = i / SIDE, c = i - r * SIDE, y = top + r - R, x = left + c - R;
    float u = 0.f, v = 0.f;
    if (x >= 0 && y >= 0 && x < width && y < height) {
      float4 a = shown[(size_t)y * width + x], b = wanted[(size_t)y * width + x];
      float ac = channel == 0 ? a.x : (channel == 1 ? a.y : a.z);
      float bc = channel == 0 ? b.x : (channel == 1 ? b.y : b.z);
      u = ac + (1.f - a.w) * back[channel]; v = bc + (1.f - b.w) * back[channel];
    }
    px[r][c] = u; py[r][c] = v;
  }
  __syncthreads();
  for (int i = thread; i < SIDE * 16; i += 256) {
    int r = i / 16, c = i & 15;
    float s0 = 0.f, s1 = 0.f, s2 = 0.f, s3 = 0.f, s4 = 0.f;
    for (int k = 0; k < 11; ++k) {
      float w = window[k], u = px[r][c + k], v = py[r][c + k];
      s0 += w * u; s1 += w * v; s2 += w * u * u; s3 += w * v * v; s4 += w * u * v;
    }
    across[0][r][c] = s0; across[1][r][c] = s1; across[2][r][c] = s2; across[3][r][c] = s3;
    across[4][r][c] = s4;
  }
  __syncthreads();
  if (inside) {
    int r = thread >> 4, c = thread & 15;
    float m[5];
    for (int f = 0; f < 5; ++f) {
      float s = 0.f;
      for (int k = 0; k < 11; ++k) s += window[k] * across[f][r + k][c];
      m[f] = s;
    }
    constexpr float C1 = 0.0001f, C2 = 0.0009f;
    float ux = m[0], uy = m[1];
    float A1 = 2.f * ux * uy + C1, B1 = ux * ux + uy * uy + C1;
    float A2 = 2.f * (m[4] - ux * uy) + C2, B2 = m[2] - ux * ux + m[3] - uy * uy + C2;
    float ib1 = 1.f / B1, ib2 = 1.f / B2, ssim = A1 * A2 * ib1 * ib2;
    dissimilarity += (1.f - ssim) * weight;
    float* d = derivatives.data + 9 * pixel + 3 * channel;
    // by the mean of x, of x x, of x y
    d[0] = weight * (2.f * uy * (A2 - A1) * ib1 * ib2 - 2.f * ux * ssim * (ib1 - ib2));
    d[1] = -weight * ssim * ib2;
    d[2] = weight * 2.f * A1 * ib1 * ib2;
  }
}
for (int d = 16; d > 0; d >>= 1) {
  l1 += __shfl_xor_sync(0xffffffffu, l1, d);
  dissimilarity += __shfl_xor_sync(0xffffffffu, dissimilarity, d);
  coverage += __shfl_xor_sync(0xffffffffu, coverage, d);
}
if ((thread & 31) == 0) {
  sums[0][thread >> 5] = l1; sums[1][thread >> 5] = dissimilarity; sums[2][thread >> 5] = coverage;
}
__syncthreads();
if (thread < 3) {
  float s = 0.f;
  for (int k = 0; k < 8; ++k) s += sums[thread][k];
  losses.data[4 * (size_t)tile + thread] = s;
}
"""
)

_DIFFERENTIATE = _CUDA_ONLY.format(
    _WHERE
    + r"""
__shared__ float part[3][SIDE][SIDE + 1], across[3][SIDE][16];
float g[3] = {0.f, 0.f, 0.f}, g_alpha = 0.f;
float4 a = make_float4(0.f, 0.f, 0.f, 0.f), b = a;
float weight = 0.f;
if (inside) {
  a = shown[(size_t)row * width + column]; b = wanted[(size_t)row * width + column];
  weight = weights.data[((size_t)target_view * height + row) * width + column];
}
float ac[3] = {a.x, a.y, a.z}, bc[3] = {b.x, b.y, b.z};
auto sign = [](float x) -> float { return x > 0.f ? 1.f : (x < 0.f ? -1.f : 0.f); };
for (int channel = 0; channel < 3; ++channel) {
  float u = ac[channel] + (1.f - a.w) * back[channel];
  float v = bc[channel] + (1.f - b.w) * back[channel];
  g[channel] = l1_share * weight * sign(u - v);
  if (with_ssim) {
    __syncthreads();
    for (int i = thread; i < SIDE * SIDE; i += 256) {
      int r = i / SIDE, c = i - r * SIDE, y = top + r - R, x = left + c - R;
      bool there = x >= 0 && y >= 0 && x < width && y < height;
      const float* d = derivatives.data + 3 * channel
                       + 9 * (((size_t)view * height + (there ? y : 0)) * width + (there ? x : 0));
      for (int f = 0; f < 3; ++f) part[f][r][c] = there ? d[f] : 0.f;
    }
    __syncthreads();
    for (int i = thread; i < SIDE * 16; i += 256) {
      int r = i / 16, c = i & 15;
      for (int f = 0; f < 3; ++f) {
        float s = 0.f;
        for (int k = 0; k < 11; ++k) s += window[k] * part[f][r][c + k];
        across[f][r][c] = s;
      }
    }
    __syncthreads();
    float s[3];
    for (int f = 0; f < 3; ++f) {
      float t = 0.f;
      for (int k = 0; k < 11; ++k) t += window[k] * across[f][(thread >> 4) + k][thread & 15];
      s[f] = t;
    }
    g[channel] -= ssim_share * (s[0] + 2.f * u * s[1] + v * s[2]);
  }
  g_alpha -= g[channel] * back[channel];
}
g_alpha += mask_share * weight * sign(a.w - b.w);
if (inside) ((float4*)grad_pictures.data)[pixel] = make_float4(g[0], g[1], g[2], g_alpha);
"""
)

_Floats = wp.array(dtype=wp.float32)
_Longs = wp.array(dtype=wp.int64)


@wp.func_native(_COMPARE)
def _compare(
    tile: int, pictures: _Floats, targets: _Floats, weights: _Floats, batch: _Longs,
    backgrounds: _Floats, columns: int, rows: int, width: int, height: int, with_ssim: int,
    derivatives: _Floats, losses: _Floats,
): ...  # fmt: skip


@wp.func_native(_DIFFERENTIATE)
def _differentiate(
    tile: int, pictures: _Floats, targets: _Floats, weights: _Floats, batch: _Longs,
    backgrounds: _Floats, columns: int, rows: int, width: int, height: int, with_ssim: int,
    derivatives: _Floats, l1_share: float, ssim_share: float, mask_share: float,
    grad_pictures: _Floats,
): ...  # fmt: skip


@wp.kernel(enable_backward=False)
def compare_pictures(
    pictures: _Floats, targets: _Floats, weights: _Floats, batch: _Longs, backgrounds: _Floats,
    columns: int, rows: int, width: int, height: int, with_ssim: int, derivatives: _Floats,
    losses: _Floats,
):  # fmt: skip
    """One block a tile: sums of the losses, and SSIM's derivatives by its windowed means."""
    _compare(
        wp.tid() // 256, pictures, targets, weights, batch, backgrounds, columns, rows, width,
        height, with_ssim, derivatives, losses,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def differentiate_pictures(
    pictures: _Floats, targets: _Floats, weights: _Floats, batch: _Longs, backgrounds: _Floats,
    columns: int, rows: int, width: int, height: int, with_ssim: int, derivatives: _Floats,
    l1_share: float, ssim_share: float, mask_share: float, grad_pictures: _Floats,
):  # fmt: skip
    """One block a tile: the gradient of the loss by the pictures' four channels."""
    _differentiate(
        wp.tid() // 256, pictures, targets, weights, batch, backgrounds, columns, rows, width,
        height, with_ssim, derivatives, l1_share, ssim_share, mask_share, grad_pictures,
    )  # fmt: skip
