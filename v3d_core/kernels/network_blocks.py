"""What the snippets of `field_networks` share: blocks of samples, products of matrices, an exponential.

Rows are samples, columns the units of a layer or the inputs, padded to whole vectors of 16.
"""

BLOCKS = r"""
#pragma clang fp contract(fast)
typedef float f16 __attribute__((ext_vector_type(16), aligned(4)));
typedef int i16 __attribute__((ext_vector_type(16)));
constexpr int BLOCK = 32, MOST = 64, OUT = 16;
const size_t n = count;
const int begin = piece * 512, end = begin + 512 < count ? begin + 512 : count;
const int H = (hidden + 15) / 16 * 16;
// c += a b, where a[r][k] = a[r * a_row + k * a_depth]; rows in fours, columns in sixteens
auto product = [](const float* __restrict__ a, int a_row, int a_depth,
                  const float* __restrict__ b, int b_row, float* __restrict__ c, int c_row,
                  int rows, int columns, int depth) {
  for (int r = 0; r < rows; r += 4) {
    const float* a0 = a + r * a_row; const float* a1 = a0 + a_row;
    const float* a2 = a1 + a_row; const float* a3 = a2 + a_row;
    for (int v = 0; v < columns; v += 16) {
      float* to = c + r * c_row + v;
      f16 c0 = *(const f16*)to, c1 = *(const f16*)(to + c_row);
      f16 c2 = *(const f16*)(to + 2 * c_row), c3 = *(const f16*)(to + 3 * c_row);
      const float* from = b + v;
      for (int k = 0; k < depth; ++k) {
        f16 w = *(const f16*)from;
        from += b_row;
        c0 += a0[k * a_depth] * w; c1 += a1[k * a_depth] * w;
        c2 += a2[k * a_depth] * w; c3 += a3[k * a_depth] * w;
      }
      *(f16*)to = c0; *(f16*)(to + c_row) = c1;
      *(f16*)(to + 2 * c_row) = c2; *(f16*)(to + 3 * c_row) = c3;
    }
  }
};
auto clear = [](float* to, int size) { for (int i = 0; i < size; ++i) to[i] = 0.f; };
// rows of a matrix, padded with zeros; and turned round
auto pad = [](const float* from, int rows, int columns, float* to, int row) {
  for (int r = 0; r < rows; ++r) for (int c = 0; c < columns; ++c) to[r * row + c] = from[r * columns + c];
};
auto turn = [](const float* from, int rows, int columns, float* to, int row) {
  for (int r = 0; r < rows; ++r) for (int c = 0; c < columns; ++c) to[c * row + r] = from[r * columns + c];
};
auto repeat = [](const float* from, float* to, int row) {
  for (int s = 0; s < BLOCK; ++s) for (int c = 0; c < row; ++c) to[s * row + c] = from[c];
};
// exp of numbers from -80 to 0, as in `neus_volume`: relative error 1e-7
auto exp_below_0 = [](f16 x) -> f16 {
  f16 y = x < -80.f ? (f16)-80.f : x;
  i16 power = __builtin_convertvector(y * 1.44269504f + 127.5f, i16);
  f16 m = __builtin_convertvector(power - 127, f16);
  f16 r = (y - m * 0.693359375f) + m * 2.12194440e-4f;
  f16 p = 1.f + r * (1.f + r * (.5f + r * (.16666667f + r * (.041666667f
          + r * (.0083333333f + r * .0013888889f)))));
  i16 bits = power << 23;
  f16 scale;
  __builtin_memcpy(&scale, &bits, sizeof(scale));
  return p * scale;
};
// of inputs, how far each has joined: 1 for a place, then that of each feature's level
float joined[MOST];
auto join = [&](int row) {
  for (int i = 0; i < row; ++i) joined[i] = i < 3 ? 1.f : (i - 3 < width ? level_weights.data[i - 3] : 0.f);
};
// samples of a block as rows: place in the cube, then the features; by way of a small array, as
// rows of features may lie a multiple of 4 kB apart, where they throw each other out of the cache
auto gather_rows = [&](const float* from, int size, float* x, int row) {
  float near[MOST * BLOCK];
  for (int f = 0; f < width; ++f)
    for (int s = 0; s < size; ++s) near[f * BLOCK + s] = from[f * n + s] * joined[3 + f];
  for (int s = 0; s < size; ++s)
    for (int f = 0; f < width; ++f) x[s * row + f] = near[f * BLOCK + s];
};
auto gather = [&](int from, int size, float* x, int row) {
  for (int s = 0; s < size; ++s)
    for (int i = 0; i < 3; ++i) x[s * row + i] = unit.data[3 * (size_t)(from + s) + i];
  gather_rows(features.data + from, size, x + 3, row);
};
// the other way, for what is by the features
auto scatter = [&](const float* x, int row, float* to, int from, int size) {
  for (int f = 0; f < width; ++f)
    for (int s = 0; s < size; ++s) to[f * n + from + s] = x[s * row + 3 + f] * joined[3 + f];
};
"""
