"""The NeuS field's two networks for the CPU, as native snippets that NVIDIA Warp compiles itself.

Facts about Warp on the CPU are in `splat_tiles`. A piece of work is `PIECE` samples, done in blocks
whose every intermediate stays in a core's cache, where torch would send each through memory. All
products of matrices are one function of blocks of 4 rows and 16 columns; rows are samples, columns
the units of a layer, padded to whole vectors. The way back computes the layers again. Gradients of
the weights are sums per piece, added up afterwards, so they do not depend on the threads.
Contract and oracle: `neus/torch_networks.py`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

from .network_blocks import BLOCKS

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.field_networks"

PIECE = 512  # samples of one piece of work
MOST_UNITS = 64  # of the hidden layer and of a network's inputs
MOST_OUTPUTS = 16  # of the distance network


def padded(units: int) -> int:
    """Columns that a layer of so many units takes: whole vectors."""
    return -(-units // 16) * 16


# x -> softplus(100 (W1 x + b1)) / 100, its sigmoid s, -> outputs
_DISTANCE = (
    BLOCKS
    + r"""
constexpr float BETA = 100.f;
const int I = 3 + width, X = (I + 15) / 16 * 16;
float w1[MOST * MOST], w1_turned[MOST * MOST], w2_turned[MOST * OUT], b1[MOST], b2[OUT], w20[MOST];
clear(w1, H * X); clear(w1_turned, X * H); clear(w2_turned, H * OUT);
clear(b1, H); clear(b2, OUT); clear(w20, H);
pad(weight1.data, hidden, I, w1, X); turn(weight1.data, hidden, I, w1_turned, H);
turn(weight2.data, outs, hidden, w2_turned, OUT);
pad(weight2.data, 1, hidden, w20, H); pad(bias1.data, 1, hidden, b1, H); pad(bias2.data, 1, outs, b2, OUT);
float x[BLOCK * MOST], s[BLOCK * MOST], soft[BLOCK * MOST];
clear(x, BLOCK * X); join(X);
auto layer = [&](int from, int size) {
  gather(from, size, x, X);
  repeat(b1, s, H);
  product(x, X, 1, w1_turned, H, s, H, BLOCK, H, I);
  for (int i = 0; i < BLOCK * H; i += 16) {
    f16 z = *(f16*)(s + i) * BETA, e = exp_below_0(z < 0.f ? z : -z), share = 1.f / (1.f + e);
    // log(1 + e) as 2 artanh(e / (2 + e)), whose argument is at most 1/3: relative error 2e-7
    f16 t = e / (2.f + e), q = t * t;
    f16 log1p = 2.f * t * (1.f + q * (.33333333f + q * (.2f + q * (.14285714f
                + q * (.11111111f + q * .09090909f)))));
    *(f16*)(soft + i) = ((z > 0.f ? z : (f16)0.f) + log1p) * (1.f / BETA);
    *(f16*)(s + i) = z < 0.f ? e * share : share;
  }
};
"""
)

_DISTANCE_FORWARD = (
    _DISTANCE
    + r"""
for (int from = begin; from < end; from += BLOCK) {
  int size = end - from < BLOCK ? end - from : BLOCK;
  layer(from, size);
  float out[BLOCK * OUT];
  repeat(b2, out, OUT);
  product(soft, H, 1, w2_turned, OUT, out, OUT, BLOCK, OUT, hidden);
  for (int i = 0; i < size; ++i) {
    residual.data[from + i] = out[i * OUT];
    for (int o = 0; o < outs; ++o) outputs.data[(size_t)(from + i) * outs + o] = out[i * OUT + o];
  }
  if (!with_slopes) continue;
  float slopes[BLOCK * MOST];
  for (int i = 0; i < BLOCK * H; i += H)
    for (int h = 0; h < H; h += 16) *(f16*)(s + i + h) *= *(const f16*)(w20 + h);
  clear(slopes, BLOCK * X);
  product(s, H, 1, w1, X, slopes, X, BLOCK, X, hidden);
  for (int i = 0; i < size; ++i)
    for (int d = 0; d < 3; ++d) by_unit.data[3 * (size_t)(from + i) + d] = slopes[i * X + d];
  scatter(slopes, X, by_features.data, from, size);
}
"""
)

_DISTANCE_BACKWARD = (
    _DISTANCE
    + r"""
float w2[OUT * MOST], d_w1[MOST * MOST], d_w2[OUT * MOST], d_b1[MOST], d_b2[OUT];
clear(w2, OUT * H); pad(weight2.data, outs, hidden, w2, H);
clear(d_w1, H * X); clear(d_w2, OUT * H); clear(d_b1, H); clear(d_b2, OUT);
for (int from = begin; from < end; from += BLOCK) {
  int size = end - from < BLOCK ? end - from : BLOCK;
  layer(from, size);
  float g_out[BLOCK * OUT], g_slopes[BLOCK * MOST];
  clear(g_out, BLOCK * OUT); clear(g_slopes, BLOCK * X);
  for (int i = 0; i < size; ++i) {
    for (int o = 0; o < outs; ++o) g_out[i * OUT + o] = grad_outputs.data[(size_t)(from + i) * outs + o];
    g_out[i * OUT] += grad_residual.data[from + i];
    float* to = g_slopes + i * X;
    for (int d = 0; d < 3; ++d) to[d] = grad_by_unit.data[3 * (size_t)(from + i) + d];
  }
  gather_rows(grad_by_features.data + from, size, g_slopes + 3, X);
  product(g_out, 1, OUT, soft, H, d_w2, H, OUT, H, BLOCK);
  for (int i = 0; i < BLOCK; ++i) *(f16*)d_b2 += *(f16*)(g_out + i * OUT);
  float by_soft[BLOCK * MOST], by_q[BLOCK * MOST];  // q = s w20, of which slopes are W1^T q
  clear(by_soft, BLOCK * H); clear(by_q, BLOCK * H);
  product(g_out, OUT, 1, w2, H, by_soft, H, BLOCK, H, OUT);
  product(g_slopes, X, 1, w1_turned, H, by_q, H, BLOCK, H, I);
  float q[BLOCK * MOST];
  for (int h = 0; h < H; h += 16) {
    f16 to_w20 = 0.f, to_b1 = 0.f, w = *(const f16*)(w20 + h);
    for (int i = h; i < BLOCK * H; i += H) {
      f16 share = *(f16*)(s + i), dq = *(f16*)(by_q + i);
      // now d loss / d (W1 x + b1)
      f16 up = *(f16*)(by_soft + i) * share + dq * w * (BETA * share * (1.f - share));
      to_w20 += dq * share; to_b1 += up;
      *(f16*)(q + i) = share * w; *(f16*)(by_soft + i) = up;
    }
    *(f16*)(d_w2 + h) += to_w20; *(f16*)(d_b1 + h) += to_b1;
  }
  product(q, 1, H, g_slopes, X, d_w1, X, H, X, BLOCK);
  product(by_soft, 1, H, x, X, d_w1, X, H, X, BLOCK);
  float by_x[BLOCK * MOST];
  clear(by_x, BLOCK * X);
  product(by_soft, H, 1, w1, X, by_x, X, BLOCK, X, hidden);
  scatter(by_x, X, grad_features.data, from, size);
}
float* to = grad_weights.data + (size_t)piece * (H * X + H + OUT * H + OUT);
for (int i = 0; i < H * X; ++i) *to++ = d_w1[i];
for (int i = 0; i < H; ++i) *to++ = d_b1[i];
for (int i = 0; i < OUT * H; ++i) *to++ = d_w2[i];
for (int i = 0; i < OUT; ++i) *to++ = d_b2[i];
"""
)

# outputs, x, normal and maybe direction -> relu -> sigmoid
_COLOUR = (
    BLOCKS
    + r"""
const int I = outs + 3 + width + 3 + 3 * with_directions, X = (I + 15) / 16 * 16;
float w1_turned[MOST * MOST], w2_turned[MOST * OUT], b1[MOST], b2[OUT];
clear(w1_turned, X * H); clear(w2_turned, H * OUT); clear(b1, H); clear(b2, OUT);
turn(weight1.data, hidden, I, w1_turned, H); turn(weight2.data, 3, hidden, w2_turned, OUT);
pad(bias1.data, 1, hidden, b1, H); pad(bias2.data, 1, 3, b2, OUT);
float x[BLOCK * MOST], layer1[BLOCK * MOST], out[BLOCK * OUT];
clear(x, BLOCK * X); join(3 + width);
auto shade = [&](int from, int size) {
  for (int s = 0; s < size; ++s) {
    for (int o = 0; o < outs; ++o) x[s * X + o] = outputs.data[(size_t)(from + s) * outs + o];
    for (int d = 0; d < 3; ++d) {
      size_t at = 3 * (size_t)(from + s) + d;
      x[s * X + outs + 3 + width + d] = normals.data[at];
      if (with_directions) x[s * X + outs + 3 + width + 3 + d] = directions.data[at];
    }
  }
  gather(from, size, x + outs, X);
  repeat(b1, layer1, H);
  product(x, X, 1, w1_turned, H, layer1, H, BLOCK, H, I);
  for (int i = 0; i < BLOCK * H; i += 16) {
    f16 z = *(f16*)(layer1 + i);
    *(f16*)(layer1 + i) = z > 0.f ? z : (f16)0.f;
  }
  repeat(b2, out, OUT);
  product(layer1, H, 1, w2_turned, OUT, out, OUT, BLOCK, OUT, hidden);
  for (int i = 0; i < BLOCK * OUT; i += 16) {
    f16 z = *(f16*)(out + i), e = exp_below_0(z < 0.f ? z : -z), share = 1.f / (1.f + e);
    *(f16*)(out + i) = z < 0.f ? e * share : share;
  }
};
"""
)

_COLOUR_FORWARD = (
    _COLOUR
    + r"""
for (int from = begin; from < end; from += BLOCK) {
  int size = end - from < BLOCK ? end - from : BLOCK;
  shade(from, size);
  for (int s = 0; s < size; ++s)
    for (int i = 0; i < 3; ++i) colours.data[3 * (size_t)(from + s) + i] = out[s * OUT + i];
}
"""
)

_COLOUR_BACKWARD = (
    _COLOUR
    + r"""
float w1[MOST * MOST], w2[OUT * MOST], d_w1[MOST * MOST], d_w2[OUT * MOST], d_b1[MOST], d_b2[OUT];
clear(w1, H * X); pad(weight1.data, hidden, I, w1, X);
clear(w2, OUT * H); pad(weight2.data, 3, hidden, w2, H);
clear(d_w1, H * X); clear(d_w2, OUT * H); clear(d_b1, H); clear(d_b2, OUT);
for (int from = begin; from < end; from += BLOCK) {
  int size = end - from < BLOCK ? end - from : BLOCK;
  shade(from, size);
  float g[BLOCK * OUT];
  clear(g, BLOCK * OUT);
  for (int s = 0; s < size; ++s) for (int i = 0; i < 3; ++i) {
    float c = out[s * OUT + i];
    g[s * OUT + i] = grad_colours.data[3 * (size_t)(from + s) + i] * c * (1.f - c);
  }
  product(g, 1, OUT, layer1, H, d_w2, H, 4, H, BLOCK);  // three rows and one of zeros
  for (int s = 0; s < BLOCK; ++s) *(f16*)d_b2 += *(f16*)(g + s * OUT);
  float by_layer1[BLOCK * MOST];
  clear(by_layer1, BLOCK * H);
  product(g, OUT, 1, w2, H, by_layer1, H, BLOCK, H, 3);
  for (int h = 0; h < H; h += 16) {
    f16 to_b1 = 0.f;
    for (int i = h; i < BLOCK * H; i += H) {
      f16 by = *(f16*)(layer1 + i) > 0.f ? *(f16*)(by_layer1 + i) : (f16)0.f;
      *(f16*)(by_layer1 + i) = by;
      to_b1 += by;
    }
    *(f16*)(d_b1 + h) += to_b1;
  }
  product(by_layer1, 1, H, x, X, d_w1, X, H, X, BLOCK);
  float by_x[BLOCK * MOST];
  clear(by_x, BLOCK * X);
  product(by_layer1, H, 1, w1, X, by_x, X, BLOCK, X, hidden);
  for (int s = 0; s < size; ++s) {
    for (int o = 0; o < outs; ++o) grad_outputs.data[(size_t)(from + s) * outs + o] = by_x[s * X + o];
    for (int d = 0; d < 3; ++d)
      grad_normals.data[3 * (size_t)(from + s) + d] = by_x[s * X + outs + 3 + width + d];
  }
  scatter(by_x + outs, X, grad_features.data, from, size);
}
float* to = grad_weights.data + (size_t)piece * (H * X + H + OUT * H + OUT);
for (int i = 0; i < H * X; ++i) *to++ = d_w1[i];
for (int i = 0; i < H; ++i) *to++ = d_b1[i];
for (int i = 0; i < OUT * H; ++i) *to++ = d_w2[i];
for (int i = 0; i < OUT; ++i) *to++ = d_b2[i];
"""
)

_Floats = wp.array(dtype=wp.float32)


@wp.func_native(_DISTANCE_FORWARD)
def _distance_forward(
    piece: int, count: int, width: int, hidden: int, outs: int, unit: _Floats, features: _Floats,
    level_weights: _Floats, weight1: _Floats, bias1: _Floats, weight2: _Floats, bias2: _Floats,
    with_slopes: int, residual: _Floats, outputs: _Floats, by_unit: _Floats, by_features: _Floats,
): ...  # fmt: skip


@wp.func_native(_DISTANCE_BACKWARD)
def _distance_backward(
    piece: int, count: int, width: int, hidden: int, outs: int, unit: _Floats, features: _Floats,
    level_weights: _Floats, weight1: _Floats, bias1: _Floats, weight2: _Floats, bias2: _Floats,
    grad_residual: _Floats, grad_outputs: _Floats, grad_by_unit: _Floats,
    grad_by_features: _Floats, grad_features: _Floats, grad_weights: _Floats,
): ...  # fmt: skip


@wp.func_native(_COLOUR_FORWARD)
def _colour_forward(
    piece: int, count: int, width: int, hidden: int, outs: int, unit: _Floats, features: _Floats,
    level_weights: _Floats, weight1: _Floats, bias1: _Floats, weight2: _Floats, bias2: _Floats,
    outputs: _Floats, normals: _Floats, with_directions: int, directions: _Floats,
    colours: _Floats,
): ...  # fmt: skip


@wp.func_native(_COLOUR_BACKWARD)
def _colour_backward(
    piece: int, count: int, width: int, hidden: int, outs: int, unit: _Floats, features: _Floats,
    level_weights: _Floats, weight1: _Floats, bias1: _Floats, weight2: _Floats, bias2: _Floats,
    outputs: _Floats, normals: _Floats, with_directions: int, directions: _Floats,
    grad_colours: _Floats, grad_outputs: _Floats, grad_normals: _Floats, grad_features: _Floats,
    grad_weights: _Floats,
): ...  # fmt: skip


@wp.kernel(enable_backward=False)
def distances(
    first: int, stride: int, count: int, width: int, hidden: int, outs: int, unit: _Floats,
    features: _Floats, level_weights: _Floats, weight1: _Floats, bias1: _Floats,
    weight2: _Floats, bias2: _Floats, with_slopes: int, residual: _Floats, outputs: _Floats,
    by_unit: _Floats, by_features: _Floats,
):  # fmt: skip
    """Outputs of the distance network, and the first one's slopes, in pieces `first`, ..."""
    _distance_forward(
        first + wp.tid() * stride, count, width, hidden, outs, unit, features, level_weights,
        weight1, bias1, weight2, bias2, with_slopes, residual, outputs, by_unit, by_features,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def differentiate_distances(
    first: int, stride: int, count: int, width: int, hidden: int, outs: int, unit: _Floats,
    features: _Floats, level_weights: _Floats, weight1: _Floats, bias1: _Floats,
    weight2: _Floats, bias2: _Floats, grad_residual: _Floats, grad_outputs: _Floats,
    grad_by_unit: _Floats, grad_by_features: _Floats, grad_features: _Floats,
    grad_weights: _Floats,
):  # fmt: skip
    """Gradients of the features, and of the weights per piece."""
    _distance_backward(
        first + wp.tid() * stride, count, width, hidden, outs, unit, features, level_weights,
        weight1, bias1, weight2, bias2, grad_residual, grad_outputs, grad_by_unit,
        grad_by_features, grad_features, grad_weights,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def colours(
    first: int, stride: int, count: int, width: int, hidden: int, outs: int, unit: _Floats,
    features: _Floats, level_weights: _Floats, weight1: _Floats, bias1: _Floats,
    weight2: _Floats, bias2: _Floats, outputs: _Floats, normals: _Floats, with_directions: int,
    directions: _Floats, shaded: _Floats,
):  # fmt: skip
    """The colour network in pieces `first`, `first + stride`, ..."""
    _colour_forward(
        first + wp.tid() * stride, count, width, hidden, outs, unit, features, level_weights,
        weight1, bias1, weight2, bias2, outputs, normals, with_directions, directions, shaded,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def differentiate_colours(
    first: int, stride: int, count: int, width: int, hidden: int, outs: int, unit: _Floats,
    features: _Floats, level_weights: _Floats, weight1: _Floats, bias1: _Floats,
    weight2: _Floats, bias2: _Floats, outputs: _Floats, normals: _Floats, with_directions: int,
    directions: _Floats, grad_colours: _Floats, grad_outputs: _Floats, grad_normals: _Floats,
    grad_features: _Floats, grad_weights: _Floats,
):  # fmt: skip
    """Gradients of the colour network's inputs, and of its weights per piece."""
    _colour_backward(
        first + wp.tid() * stride, count, width, hidden, outs, unit, features, level_weights,
        weight1, bias1, weight2, bias2, outputs, normals, with_directions, directions,
        grad_colours, grad_outputs, grad_normals, grad_features, grad_weights,
    )  # fmt: skip
