"""NeuS's compositing (Wang et al. 2021) for the CPU, as native snippets that NVIDIA Warp compiles.

Facts about Warp on the CPU are in `splat_tiles`. One ray is one piece of work; its samples go in
blocks, whose opacities are vectorised and whose transmittance is not. The gradient is taken by
tau = -log(1 - alpha), where it needs no division: with G what a sample's weight is worth,
d loss / d tau = T G - R, where T is the transmittance behind the sample, which is what is left at
the ray's end and all weights behind, and R what these weights are worth. Walking back from far to
near, both are sums that do not cancel. Contract and oracle: `neus/torch_volume.py`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.neus_volume"

LANES = 1  # pieces of work per ray

SIGMOID = r"""
// by a polynomial of what is left after powers of two, which vectorises: relative error 1e-7
auto sigmoid = [](float x) -> float {
  float y = x > 80.f ? -80.f : (x < -80.f ? 80.f : -x);
  int power = (int)(y * 1.44269504f + 127.5f);
  float n = (float)(power - 127);
  float r = (y - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.f + r * (1.f + r * (.5f + r * (.16666667f + r * (.041666667f
            + r * (.0083333333f + r * .0013888889f)))));
  int bits = power << 23;
  float scale;
  __builtin_memcpy(&scale, &bits, 4);
  return 1.f / (1.f + p * scale);
};
"""

_SIGMOIDS = (
    SIGMOID
    + r"""
constexpr int BLOCK = 64;
constexpr float ALPHA_EPSILON = 1e-5f;
const float sharpness = inv_s.data[0], blend = anneal.data[0];
const size_t start = (size_t)ray * samples;
"""
)

# Per sample of a block: half its segment's change of distance, and the sigmoids at both ends.
_ENDS = r"""
  int size = samples - block < BLOCK ? samples - block : BLOCK;
  const float* __restrict__ d = sdf.data + start + block;
  const float* __restrict__ cosine = cosines.data + start + block;
  const float* __restrict__ delta = deltas.data + start + block;
  const bool* __restrict__ counts = inside.data + start + block;
  float half[BLOCK], before[BLOCK], after[BLOCK];
  for (int k = 0; k < size; ++k) {
    float general = .5f - .5f * cosine[k], true_ = -cosine[k];
    general = general > 0.f ? general : 0.f; true_ = true_ > 0.f ? true_ : 0.f;
    float h = -(general * (1.f - blend) + true_ * blend) * delta[k] * .5f;
    float b = sigmoid((d[k] - h) * sharpness), a = sigmoid((d[k] + h) * sharpness);
    half[k] = h; before[k] = b; after[k] = a;
  }
  const float* __restrict__ value = values.data + (start + block) * channels;
"""

_FORWARD = (
    _SIGMOIDS
    + r"""
float T = 1.f, opacity = 0.f;
float* __restrict__ out = composited.data + (size_t)ray * channels;
for (int c = 0; c < channels; ++c) out[c] = 0.f;
for (int block = 0; block < samples; block += BLOCK) {
"""
    + _ENDS
    + r"""
  float alpha[BLOCK], keep[BLOCK];
  for (int k = 0; k < size; ++k) {
    float share = 1.f / (before[k] + ALPHA_EPSILON);
    float opaque = (before[k] - after[k] + ALPHA_EPSILON) * share, kept = after[k] * share;
    alpha[k] = counts[k] && opaque > 0.f ? opaque : 0.f;
    keep[k] = counts[k] && kept < 1.f ? kept : 1.f;
  }
  float* __restrict__ weight = weights.data + start + block;
  for (int k = 0; k < size; ++k) {
    float w = T * alpha[k];
    weight[k] = w; opacity += w; T *= keep[k];
    for (int c = 0; c < channels; ++c) out[c] += w * value[k * channels + c];
  }
}
opacities.data[ray] = opacity; left.data[ray] = T;
"""
)

_BACKWARD = (
    _SIGMOIDS
    + r"""
const float* __restrict__ grad = grad_composited.data + (size_t)ray * channels;
float T = left.data[ray], behind = 0.f, by_sharpness = 0.f;
for (int block = (samples - 1) / BLOCK * BLOCK; block >= 0; block -= BLOCK) {
"""
    + _ENDS
    + r"""
  float by_tau[BLOCK];
  const float* __restrict__ weight = weights.data + start + block;
  float* __restrict__ by_value = grad_values.data + (start + block) * channels;
  for (int k = size - 1; k >= 0; --k) {
    float w = weight[k], gain = grad_opacities.data[ray];
    for (int c = 0; c < channels; ++c) {
      gain += grad[c] * value[k * channels + c];
      by_value[k * channels + c] = w * grad[c];
    }
    by_tau[k] = counts[k] ? T * gain - behind : 0.f;
    behind += w * gain; T += w;
  }
  float* __restrict__ by_sdf = grad_sdf.data + start + block;
  float* __restrict__ by_cosine = grad_cosines.data + start + block;
  for (int k = 0; k < size; ++k) {
    float by_after = (after[k] - 1.f) * by_tau[k];
    float by_before = before[k] * (1.f - before[k]) / (before[k] + ALPHA_EPSILON) * by_tau[k];
    by_sdf[k] = sharpness * (by_before + by_after);
    float by_ic = sharpness * (by_after - by_before) * delta[k] * .5f;
    by_cosine[k] = by_ic * ((cosine[k] < 1.f ? .5f * (1.f - blend) : 0.f)
                            + (cosine[k] < 0.f ? blend : 0.f));
    before[k] = (d[k] + half[k]) * by_after + (d[k] - half[k]) * by_before;
  }
  for (int k = 0; k < size; ++k) by_sharpness += before[k];
}
grad_sharpness.data[ray] = by_sharpness;
"""
)

_Floats = wp.array(dtype=wp.float32)
_Flags = wp.array(dtype=wp.bool)


@wp.func_native(_FORWARD)
def _forward(
    ray: int, samples: int, channels: int, sdf: _Floats, cosines: _Floats, deltas: _Floats,
    inside: _Flags, values: _Floats, inv_s: _Floats, anneal: _Floats, composited: _Floats,
    opacities: _Floats, weights: _Floats, left: _Floats,
): ...  # fmt: skip


@wp.func_native(_BACKWARD)
def _backward(
    ray: int, samples: int, channels: int, sdf: _Floats, cosines: _Floats, deltas: _Floats,
    inside: _Flags, values: _Floats, inv_s: _Floats, anneal: _Floats, weights: _Floats,
    left: _Floats, grad_composited: _Floats, grad_opacities: _Floats, grad_sdf: _Floats,
    grad_cosines: _Floats, grad_values: _Floats, grad_sharpness: _Floats,
): ...  # fmt: skip


@wp.kernel(enable_backward=False)
def composite_rays(
    first: int, stride: int, samples: int, channels: int, sdf: _Floats, cosines: _Floats,
    deltas: _Floats, inside: _Flags, values: _Floats, inv_s: _Floats, anneal: _Floats,
    composited: _Floats, opacities: _Floats, weights: _Floats, left: _Floats,
):  # fmt: skip
    """Rays `first`, `first + stride`, ..."""
    _forward(
        first + wp.tid() * stride, samples, channels, sdf, cosines, deltas, inside, values, inv_s,
        anneal, composited, opacities, weights, left,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def differentiate_rays(
    first: int, stride: int, samples: int, channels: int, sdf: _Floats, cosines: _Floats,
    deltas: _Floats, inside: _Flags, values: _Floats, inv_s: _Floats, anneal: _Floats,
    weights: _Floats, left: _Floats, grad_composited: _Floats, grad_opacities: _Floats,
    grad_sdf: _Floats, grad_cosines: _Floats, grad_values: _Floats, grad_sharpness: _Floats,
):  # fmt: skip
    """Gradients of rays `first`, `first + stride`, ...; that of inv_s per ray."""
    _backward(
        first + wp.tid() * stride, samples, channels, sdf, cosines, deltas, inside, values, inv_s,
        anneal, weights, left, grad_composited, grad_opacities, grad_sdf, grad_cosines,
        grad_values, grad_sharpness,
    )  # fmt: skip
