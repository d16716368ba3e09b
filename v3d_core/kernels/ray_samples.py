"""Where a NeuS step asks the field, for the CPU, as native snippets that NVIDIA Warp compiles itself.

Facts about Warp on the CPU are in `splat_tiles`. One ray is one piece of work; its places are
vectorised where they do not depend on each other, sums along it are not, and what is searched for
comes in order, so that a walk finds it. Contract and oracle: `neus/torch_sampling.py`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

from .neus_volume import SIGMOID

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.ray_samples"

_PLACE = (
    "\n#pragma clang fp contract(fast)\n"
    + SIGMOID
    + r"""
typedef float f2 __attribute__((ext_vector_type(2), aligned(4)));
constexpr int K = 96;
constexpr float SHARPNESS = 4.f;
auto clamp = [](float x, float low, float high) -> float {
  x = x > low ? x : low;
  return x < high ? x : high;
};
float origin[3], along[3], near = 0.f, far = 1e30f;
for (int i = 0; i < 3; ++i) {
  origin[i] = (origins.data[3 * (size_t)ray + i] - centre.data[i]) / half_size;
  along[i] = directions.data[3 * (size_t)ray + i] / half_size;
  float safe = along[i] < 1e-9f && along[i] > -1e-9f ? 1e-9f : along[i];
  float a = (-1.f - origin[i]) / safe, b = (1.f - origin[i]) / safe;
  float first = a < b ? a : b, last = a < b ? b : a;
  near = first > near ? first : near; far = last < far ? last : far;
}
float length = far > near ? far - near : 0.f;
// distance found last and that of the start, between the centres of cells, clamped at the faces;
// where they lie first, so that they can be asked for ahead
float found[K], start[K], part[3][K];
int base[K], next[3][K];
const int strides[3] = {2 * cells * cells, 2 * cells, 2};
for (int k = 0; k < K; ++k) base[k] = 0;
for (int i = 0; i < 3; ++i) for (int k = 0; k < K; ++k) {
  float t = near + length * ((k + .5f) / K);
  float at = clamp(((origin[i] + along[i] * t + 1.f) * cells - 1.f) * .5f, 0.f, cells - 1.f);
  int low = (int)at;
  base[k] += low * strides[i];
  next[i][k] = low + 1 < cells ? strides[i] : 0;
  part[i][k] = at - (float)low;
}
for (int k = 0; k < K; ++k) {
  const float* from = known.data + base[k];
  __builtin_prefetch(from); __builtin_prefetch(from + next[1][k]);
  __builtin_prefetch(from + next[0][k]); __builtin_prefetch(from + next[0][k] + next[1][k]);
}
for (int k = 0; k < K; ++k) {
  const float* from = known.data + base[k];
  int x = next[0][k], y = next[1][k], z = next[2][k];
  auto edge = [&](int offset) -> f2 {
    f2 a = *(const f2*)(from + offset), b = *(const f2*)(from + offset + z);
    return a + part[2][k] * (b - a);
  };
  f2 a = edge(0), b = edge(y), c = edge(x), d = edge(x + y);
  a = a + part[1][k] * (b - a); c = c + part[1][k] * (d - c);
  f2 v = a + part[0][k] * (c - a);
  found[k] = v.x; start[k] = v.y;
}
float inside_band[K], sharp[K + 1], opacity[K];
float step = length / K, scale = SHARPNESS / (step > 1e-9f ? step : 1e-9f);
int many = 0;
for (int k = 0; k < K; ++k) inside_band[k] = start[k] < band && length > 0.f ? 1.f : 0.f;
for (int k = 0; k < K; ++k) sharp[k] = sigmoid(found[k] * scale);
sharp[K] = 1.f;
for (int k = 0; k < K; ++k) {
  float floor = sharp[k] > 1e-6f ? sharp[k] : 1e-6f;
  opacity[k] = clamp((sharp[k] - sharp[k + 1]) / floor, 0.f, 1.f) * inside_band[k];
}
for (int k = 0; k < K; ++k) many += inside_band[k] > 0.f;
// NeuS's weights, spread over two places either side
float weights[K + 4], density[K], clear = 1.f, total = 0.f;
weights[0] = weights[1] = weights[K + 2] = weights[K + 3] = 0.f;
for (int k = 0; k < K; ++k) {
  weights[k + 2] = opacity[k] * clear;
  clear *= 1.f - (opacity[k] < 1.f - 1e-6f ? opacity[k] : 1.f - 1e-6f);
}
for (int k = 0; k < K; ++k)
  density[k] = (weights[k] + weights[k + 1] + weights[k + 2] + weights[k + 3] + weights[k + 4])
               * .2f * inside_band[k];
for (int k = 0; k < K; ++k) total += density[k];
float even = 1.f / (many > 1 ? many : 1), of_surface = surface_share / total;
// a ray that grazes the surface has little weight anywhere
if (!(total > .05f)) for (int k = 0; k < K; ++k) density[k] = inside_band[k] * even;
else for (int k = 0; k < K; ++k)
  density[k] = inside_band[k] * even * (1.f - surface_share) + density[k] * of_surface;
float before[K + 1];
before[0] = 0.f;
for (int k = 0; k < K; ++k) before[k + 1] = before[k] + density[k];
// edges of the sections, without what lies outside the band before them
int bin = 0, at = 0, skipped = 0, within = (int)inside_band[0];
float edge_before = 0.f;
const size_t row = (size_t)ray * count;
for (int j = 0; j <= count; ++j) {
  float wanted = j == count ? before[K] : clamp((j - jitter.data[ray]) / count, 0.f, 1.f) * before[K];
  while (bin < K - 1 && before[bin + 1] <= wanted) skipped += inside_band[bin++] == 0.f;
  float share = density[bin] > 1e-12f ? density[bin] : 1e-12f;
  share = clamp((wanted - before[bin]) / share, 0.f, 1.f);
  float edge = ((float)(bin - skipped) + (inside_band[bin] > 0.f ? share : 0.f)) / K;
  if (j > 0) {
    // half of a section's length lies before its middle, which therefore lies in the band
    float halfway = (edge_before + edge) * .5f, delta = edge - edge_before;
    while (at < K - 1 && (float)within / K < halfway) within += (int)inside_band[++at];
    float middle = (float)(at + 1) / K - ((float)within / K - halfway);
    distances.data[row + j - 1] = near + length * middle;
    deltas.data[row + j - 1] = delta > 0.f ? length * delta : 0.f;
    inside.data[row + j - 1] = inside_band[at] > 0.f && delta > 0.f;
  }
  edge_before = edge;
}
"""
)

_Floats = wp.array(dtype=wp.float32)
_Flags = wp.array(dtype=wp.bool)


@wp.func_native(_PLACE)
def _place(
    ray: int, count: int, cells: int, origins: _Floats, directions: _Floats, jitter: _Floats,
    known: _Floats, centre: _Floats, half_size: float, band: float, surface_share: float,
    distances: _Floats, deltas: _Floats, inside: _Flags,
): ...  # fmt: skip


@wp.kernel(enable_backward=False)
def place_on_rays(
    first: int, stride: int, count: int, cells: int, origins: _Floats, directions: _Floats,
    jitter: _Floats, known: _Floats, centre: _Floats, half_size: float, band: float,
    surface_share: float, distances: _Floats, deltas: _Floats, inside: _Flags,
):  # fmt: skip
    """Sections of rays `first`, `first + stride`, ..."""
    _place(
        first + wp.tid() * stride, count, cells, origins, directions, jitter, known, centre,
        half_size, band, surface_share, distances, deltas, inside,
    )  # fmt: skip
