"""Tile rasteriser of Gaussians for NVIDIA GPUs, as native snippets that NVIDIA Warp compiles.

All pictures of a step at once. Pairs (tile, Gaussian) are counted, given room by a prefix sum,
written in any order, and sorted near to far inside each tile by its own block in shared memory; a
key holds the depth's bits above the Gaussian's number, so the order is unique. A tile is 16x16
pixels and one block of 8 warps; each warp owns 8x4 of them and skips, by one ballot for 32
Gaussians, those that do not reach its pixels. Both directions walk near to far (see
`splat_tiles`); a warp adds up its 32 pixels' gradients with 12 exchanges for 9 values and adds
them atomically. Records and their gradients are those of `splat_records`.

`capacity` bounds the pairs: what does not fit is left out, and the caller sees it from the prefix
sum. Nothing here reads anything back, so that a step can be captured as a CUDA graph.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.splat_tiles_cuda"

TILE = 16  # pixels
BLOCK = 256  # threads: one per pixel of a tile

_CUDA_ONLY = "#if defined(__CUDA_ARCH__)\n{}\n#endif\n"

# Smallest Mahalanobis^2 over a rectangle: it lies on an edge that faces the centre.
_TOUCHES = r"""
auto touches = [](float x, float y, float a, float b, float c, float reach,
                  float x0, float y0, float x1, float y1) -> bool {
  float left = x - x1, right = x - x0, top = y - y1, bottom = y - y0;  // offsets of the centre
  float dx = fminf(fmaxf(0.f, left), right), dy = fminf(fmaxf(0.f, top), bottom);
  if (dx == 0.f && dy == 0.f) return reach > 0.f;
  float best = 3.0e38f;
  if (dx != 0.f) {
    float d = fminf(fmaxf(-b * dx / c, top), bottom);
    best = a * dx * dx + 2.f * b * dx * d + c * d * d;
  }
  if (dy != 0.f) {
    float d = fminf(fmaxf(-b * dy / a, left), right);
    best = fminf(best, a * d * d + 2.f * b * d * dy + c * dy * dy);
  }
  return best <= reach * 1.0001f + 1e-4f;
};
"""

# Needs `i`: the tiles under record i, for counting and for listing alike.
_TILES_UNDER = (
    _TOUCHES
    + r"""
const float4* q = (const float4*)records.data + 4 * (size_t)i;
float4 qc = q[2];
if (!(qc.z > 0.f)) return;
float4 qa = q[0];
float c = q[1].x;
int view = i / count;
int x0 = max(0, (int)floorf((qa.x - qc.z) / 16.f));
int x1 = min(columns, (int)floorf((qa.x + qc.z) / 16.f) + 1);
int y0 = max(0, (int)floorf((qa.y - qc.y) / 16.f));
int y1 = min(rows, (int)floorf((qa.y + qc.y) / 16.f) + 1);
for (int ty = y0; ty < y1; ++ty) for (int tx = x0; tx < x1; ++tx) {
  if (!touches(qa.x, qa.y, qa.z, qa.w, c, qc.w, tx * 16 + .5f, ty * 16 + .5f,
               tx * 16 + 15.5f, ty * 16 + 15.5f)) continue;
  int tile = (view * rows + ty) * columns + tx;
"""
)

_COUNT = _CUDA_ONLY.format(_TILES_UNDER + "atomicAdd(tile_pairs.data + tile, 1); }")

_LIST = _CUDA_ONLY.format(
    _TILES_UNDER
    + r"""
  int place = atomicAdd(next_pair.data + tile, 1);
  unsigned long long depth = (unsigned int)__float_as_int(q[3].x);  // depths > 0 sort like their bits
  if (place < capacity)
    ((unsigned long long*)keys.data)[place] = (depth << 32) | (unsigned int)(i - view * count);
}"""
)

_RANGE = r"""
int begin = min(tile_start.data[tile], capacity), end = min(tile_start.data[tile + 1], capacity);
"""

# Bitonic sort of chunks in shared memory, then merges by rank for longer lists.
_SORT = _CUDA_ONLY.format(
    r"""
constexpr int CHUNK = 2048;
__shared__ unsigned long long chunk[CHUNK];
int thread = threadIdx.x;
"""
    + _RANGE
    + r"""
int n = end - begin;
if (n < 2) return;
unsigned long long* source = (unsigned long long*)keys.data + begin;
unsigned long long* target = (unsigned long long*)spare.data + begin;
for (int base = 0; base < n; base += CHUNK) {
  int m = min(CHUNK, n - base);
  int padded = 2;
  while (padded < m) padded *= 2;
  for (int i = thread; i < padded; i += 256) chunk[i] = i < m ? source[base + i] : ~0ull;
  __syncthreads();
  for (int k = 2; k <= padded; k *= 2) for (int j = k / 2; j > 0; j /= 2) {
    for (int i = thread; i < padded / 2; i += 256) {
      int low = 2 * i - (i & (j - 1)), high = low + j;
      unsigned long long a = chunk[low], b = chunk[high];
      if ((a > b) == ((low & k) == 0)) { chunk[low] = b; chunk[high] = a; }
    }
    __syncthreads();
  }
  for (int i = thread; i < m; i += 256) source[base + i] = chunk[i];
  __syncthreads();
}
bool swapped = false;
for (int width = CHUNK; width < n; width *= 2) {
  for (int i = thread; i < n; i += 256) {
    int low = i / (2 * width) * (2 * width);
    int middle = min(low + width, n), high = min(low + 2 * width, n);
    bool first = i < middle;
    unsigned long long key = source[i];
    int a = first ? middle : low, b = first ? high : middle, other = a;
    while (a < b) { int c = (a + b) / 2; if (source[c] < key) a = c + 1; else b = c; }
    target[low + (first ? i - low : i - middle) + (a - other)] = key;
  }
  __syncthreads();
  unsigned long long* t = source; source = target; target = t;
  swapped = !swapped;
}
if (swapped) for (int i = thread; i < n; i += 256) target[i] = source[i];
"""
)

# Where this thread's pixel is, and the warp's 8x4 pixels.
_PIXEL = (
    _TOUCHES
    + r"""
constexpr float MIN_ALPHA = 1.f / 255.f, MAX_ALPHA = 0.99f, OPAQUE = 1e-5f;
constexpr unsigned int ALL = 0xffffffffu;
__shared__ float4 shared_a[256], shared_b[256], shared_c[256];
int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
int view = tile / (columns * rows), in_view = tile - view * columns * rows;
int left = (in_view % columns) * 16 + (warp & 1) * 8;
int top = (in_view / columns) * 16 + (warp >> 1) * 4;
int column = left + (lane & 7), row = top + (lane >> 3);
bool inside = column < width && row < height;
size_t pixel = ((size_t)view * height + row) * width + column;
float pixel_x = column + .5f, pixel_y = row + .5f;
const unsigned long long* list = (const unsigned long long*)keys.data;
const float4* scene = (const float4*)(records.data + 16 * (size_t)view * count);
float T = inside ? 1.f : 0.f;
"""
    + _RANGE
)

# Opens the loop over the Gaussians `k` of the shared batch that reach this warp's pixels.
_WALK = r"""
for (int base = begin; base < end; base += 256) {
  if (__syncthreads_count(T > STOP) == 0) break;
  int size = min(256, end - base);
  if (thread < size) {
    const float4* q = scene + 4 * (size_t)(unsigned int)list[base + thread];
    shared_a[thread] = q[0]; shared_b[thread] = q[1]; shared_c[thread] = q[2];
    LOAD_MORE
  }
  __syncthreads();
  for (int first = 0; first < size; first += 32) {
    if (!__any_sync(ALL, T > STOP)) break;
    bool hit = false;
    if (first + lane < size) {
      float4 qa = shared_a[first + lane], qb = shared_b[first + lane];
      hit = touches(qa.x, qa.y, qa.z, qa.w, qb.x, shared_c[first + lane].w,
                    left + .5f, top + .5f, left + 7.5f, top + 3.5f);
    }
    unsigned int hits = __ballot_sync(ALL, hit);
    while (hits) {
      int k = first + __ffs(hits) - 1;
      hits &= hits - 1;
      float4 qa = shared_a[k], qb = shared_b[k];
      float dx = qa.x - pixel_x, dy = qa.y - pixel_y;
      float power = -.5f * (qa.z * dx * dx + qb.x * dy * dy) - qa.w * dx * dy;
      float alpha = qb.y * __expf(power);
"""


def _walk(stop: str, load_more: str = "") -> str:
    return _WALK.replace("STOP", stop).replace("LOAD_MORE", load_more)


_FORWARD = _CUDA_ONLY.format(
    _PIXEL
    + "float R = 0.f, G = 0.f, B = 0.f;"
    + _walk("OPAQUE")
    + r"""
      if (alpha >= MIN_ALPHA) {
        float w = fminf(alpha, MAX_ALPHA) * T;
        R += w * qb.z; G += w * qb.w; B += w * shared_c[k].x;
        T -= w;
      }
    }
  }
}
if (inside) ((float4*)picture.data)[pixel] = make_float4(R, G, B, 1.f - T);
"""
)

_DEPTH = _CUDA_ONLY.format(
    _PIXEL
    + "__shared__ float4 shared_d[256]; float depth = 0.f;"
    + _walk(".5f", "shared_d[thread] = q[3];")
    + r"""
      if (alpha >= MIN_ALPHA) {
        float after = T - fminf(alpha, MAX_ALPHA) * T;
        if (T > .5f && after <= .5f) {
          float4 qd = shared_d[k];
          depth = qd.x - qd.y * dx - qd.z * dy;
        }
        T = after;
      }
    }
  }
}
if (inside) depths.data[pixel] = depth;
"""
)

# A butterfly that halves the values along with the lanes: 5 + 3 + 2 + 1 + 1 exchanges.
_BACKWARD = _CUDA_ONLY.format(
    _PIXEL
    + r"""
float g0 = 0.f, g1 = 0.f, g2 = 0.f, g3 = 0.f, S = 0.f;
if (inside) {
  float4 g = ((const float4*)grad_picture.data)[pixel], p = ((const float4*)picture.data)[pixel];
  g0 = g.x; g1 = g.y; g2 = g.z; g3 = g.w;
  S = g0 * p.x + g1 * p.y + g2 * p.z + g3 * p.w;
}
__shared__ int shared_n[256];
float* out = gradients.data + 12 * (size_t)view * count;
bool b4 = lane & 16, b3 = lane & 8, b2 = lane & 4, b1 = lane & 2, b0 = lane & 1;
int of_four = (b2 ? 2 : 0) + (b1 ? 1 : 0);
bool writes = !b0 && (b3 ? of_four < (b4 ? 1 : 2) : of_four < 3);
int value = (b4 ? 5 : 0) + (b3 ? 3 : 0) + of_four;
"""
    + _walk("OPAQUE", "shared_n[thread] = (int)(unsigned int)list[base + thread];")
    + r"""
      bool live = alpha >= MIN_ALPHA && T > 0.f;
      if (!__any_sync(ALL, live)) continue;
      float v0 = 0.f, v1 = 0.f, v2 = 0.f, v3 = 0.f, v4 = 0.f, v5 = 0.f, v6 = 0.f, v7 = 0.f;
      float v8 = 0.f;
      if (live) {
        bool clamped = alpha >= MAX_ALPHA;
        alpha = fminf(alpha, MAX_ALPHA);
        float w = alpha * T;
        float gain = g0 * qb.z + g1 * qb.w + g2 * shared_c[k].x + g3;
        S -= w * gain;
        float d_power = clamped ? 0.f : (T * gain - __fdividef(S, 1.f - alpha)) * alpha;
        T -= w;
        v0 = w * g0; v1 = w * g1; v2 = w * g2; v3 = d_power;
        v4 = d_power * dx; v5 = d_power * dy;
        v6 = v4 * dx; v7 = v4 * dy; v8 = v5 * dy;
      }
      float s0 = (b4 ? v5 : v0) + __shfl_xor_sync(ALL, b4 ? v0 : v5, 16);
      float s1 = (b4 ? v6 : v1) + __shfl_xor_sync(ALL, b4 ? v1 : v6, 16);
      float s2 = (b4 ? v7 : v2) + __shfl_xor_sync(ALL, b4 ? v2 : v7, 16);
      float s3 = (b4 ? v8 : v3) + __shfl_xor_sync(ALL, b4 ? v3 : v8, 16);
      float s4 = (b4 ? 0.f : v4) + __shfl_xor_sync(ALL, b4 ? v4 : 0.f, 16);
      s0 = (b3 ? s3 : s0) + __shfl_xor_sync(ALL, b3 ? s0 : s3, 8);
      s1 = (b3 ? s4 : s1) + __shfl_xor_sync(ALL, b3 ? s1 : s4, 8);
      s2 = (b3 ? 0.f : s2) + __shfl_xor_sync(ALL, b3 ? s2 : 0.f, 8);
      s0 = (b2 ? s2 : s0) + __shfl_xor_sync(ALL, b2 ? s0 : s2, 4);
      s1 = (b2 ? 0.f : s1) + __shfl_xor_sync(ALL, b2 ? s1 : 0.f, 4);
      s0 = (b1 ? s1 : s0) + __shfl_xor_sync(ALL, b1 ? s0 : s1, 2);
      s0 += __shfl_xor_sync(ALL, s0, 1);
      if (writes) atomicAdd(out + 12 * (size_t)shared_n[k] + value, s0);
    }
  }
}
"""
)

_Floats = wp.array(dtype=wp.float32)
_Ints = wp.array(dtype=wp.int32)
_Longs = wp.array(dtype=wp.int64)


@wp.func_native(_COUNT)
def _count(i: int, count: int, records: _Floats, columns: int, rows: int, tile_pairs: _Ints): ...


@wp.func_native(_LIST)
def _list(
    i: int, count: int, records: _Floats, columns: int, rows: int, next_pair: _Ints,
    capacity: int, keys: _Longs,
): ...  # fmt: skip


@wp.func_native(_SORT)
def _sort(tile: int, tile_start: _Ints, capacity: int, keys: _Longs, spare: _Longs): ...


@wp.func_native(_FORWARD)
def _forward(
    tile: int, count: int, records: _Floats, keys: _Longs, tile_start: _Ints, capacity: int,
    columns: int, rows: int, width: int, height: int, picture: _Floats,
): ...  # fmt: skip


@wp.func_native(_DEPTH)
def _depth(
    tile: int, count: int, records: _Floats, keys: _Longs, tile_start: _Ints, capacity: int,
    columns: int, rows: int, width: int, height: int, depths: _Floats,
): ...  # fmt: skip


@wp.func_native(_BACKWARD)
def _backward(
    tile: int, count: int, records: _Floats, keys: _Longs, tile_start: _Ints, capacity: int,
    columns: int, rows: int, width: int, height: int, picture: _Floats, grad_picture: _Floats,
    gradients: _Floats,
): ...  # fmt: skip


@wp.kernel(enable_backward=False)
def count_tiles(count: int, records: _Floats, columns: int, rows: int, tile_pairs: _Ints):
    """One thread a record: add it to the tiles it touches."""
    _count(wp.tid(), count, records, columns, rows, tile_pairs)


@wp.kernel(enable_backward=False)
def list_tiles(
    count: int, records: _Floats, columns: int, rows: int, next_pair: _Ints, capacity: int,
    keys: _Longs,
):  # fmt: skip
    """One thread a record: write its key to every tile it touches."""
    _list(wp.tid(), count, records, columns, rows, next_pair, capacity, keys)


@wp.kernel(enable_backward=False)
def sort_tiles(tile_start: _Ints, capacity: int, keys: _Longs, spare: _Longs):
    """One block a tile: its keys near to far."""
    _sort(wp.tid() // 256, tile_start, capacity, keys, spare)


@wp.kernel(enable_backward=False)
def composite_tiles(
    count: int, records: _Floats, keys: _Longs, tile_start: _Ints, capacity: int,
    columns: int, rows: int, width: int, height: int, picture: _Floats,
):  # fmt: skip
    """One block a tile: its pixels."""
    _forward(
        wp.tid() // 256, count, records, keys, tile_start, capacity, columns, rows, width, height,
        picture,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def depth_tiles(
    count: int, records: _Floats, keys: _Longs, tile_start: _Ints, capacity: int,
    columns: int, rows: int, width: int, height: int, depths: _Floats,
):  # fmt: skip
    """One block a tile: depth where the transmittance falls through one half, else 0."""
    _depth(
        wp.tid() // 256, count, records, keys, tile_start, capacity, columns, rows, width, height,
        depths,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def differentiate_tiles(
    count: int, records: _Floats, keys: _Longs, tile_start: _Ints, capacity: int,
    columns: int, rows: int, width: int, height: int, picture: _Floats, grad_picture: _Floats,
    gradients: _Floats,
):  # fmt: skip
    """One block a tile: add its pixels' gradients to those of the records."""
    _backward(
        wp.tid() // 256, count, records, keys, tile_start, capacity, columns, rows, width, height,
        picture, grad_picture, gradients,
    )  # fmt: skip
