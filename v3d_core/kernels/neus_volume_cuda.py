"""NeuS's compositing (Wang et al. 2021) for NVIDIA GPUs, as native snippets that Warp compiles.

One warp of 32 lanes per ray and one lane per sample, so that a ray's samples are read side by side;
transmittances and what lies behind are scans over the lanes, carried from one 32 samples to the
next, near to far, and far to near on the way back. The gradient is that of `neus_volume`. Contract and oracle: `neus/torch_volume.py`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.neus_volume_cuda"

LANES = 32  # threads per ray

_CUDA_ONLY = "#if defined(__CUDA_ARCH__)\n{}\n#endif\n"

_RAY = r"""
constexpr unsigned int ALL = 0xffffffffu;
constexpr float ALPHA_EPSILON = 1e-5f;
const int lane = threadIdx.x & 31;
const float sharpness = inv_s.data[0], blend = anneal.data[0];
const size_t start = (size_t)ray * samples;
"""

# This lane's of 32 samples: half its segment's change of distance, and the sigmoids at both ends.
_ENDS = r"""
  const size_t i = start + base + lane;
  const bool there = base + lane < samples;
  const bool counts = there && inside.data[i];
  float d = 0.f, cosine = 0.f, delta = 0.f;
  if (there) { d = sdf.data[i]; cosine = cosines.data[i]; delta = deltas.data[i]; }
  float half = -(fmaxf(.5f - .5f * cosine, 0.f) * (1.f - blend) + fmaxf(-cosine, 0.f) * blend)
               * delta * .5f;
  float before = 1.f / (1.f + __expf(-(d - half) * sharpness));
  float after = 1.f / (1.f + __expf(-(d + half) * sharpness));
  float share = 1.f / (before + ALPHA_EPSILON);
"""

_FORWARD = _CUDA_ONLY.format(
    _RAY
    + r"""
float T = 1.f, opacity = 0.f;
for (int base = 0; base < samples; base += 32) {
"""
    + _ENDS
    + r"""
  float alpha = counts ? fmaxf((before - after + ALPHA_EPSILON) * share, 0.f) : 0.f;
  float passed = counts ? fminf(after * share, 1.f) : 1.f;  // up to and with this lane
  #pragma unroll
  for (int reach = 1; reach < 32; reach *= 2) {
    float other = __shfl_up_sync(ALL, passed, reach);
    if (lane >= reach) passed *= other;
  }
  float earlier = __shfl_up_sync(ALL, passed, 1);
  float w = T * (lane ? earlier : 1.f) * alpha;
  opacity += w;
  if (there) weights.data[i] = w;
  T *= __shfl_sync(ALL, passed, 31);
}
#pragma unroll
for (int reach = 16; reach > 0; reach /= 2) opacity += __shfl_xor_sync(ALL, opacity, reach);
if (lane == 0) { opacities.data[ray] = opacity; left.data[ray] = T; }
for (int c = 0; c < channels; c += 4) {  // each lane reads its own weights again
  float sum[4] = {0.f, 0.f, 0.f, 0.f};
  for (int k = lane; k < samples; k += 32) {
    float w = weights.data[start + k];
    const float* value = values.data + (start + k) * channels + c;
    #pragma unroll
    for (int j = 0; j < 4; ++j) if (c + j < channels) sum[j] += w * value[j];
  }
  #pragma unroll
  for (int j = 0; j < 4; ++j) {
    #pragma unroll
    for (int reach = 16; reach > 0; reach /= 2) sum[j] += __shfl_xor_sync(ALL, sum[j], reach);
    if (lane == j && c + j < channels) composited.data[(size_t)ray * channels + c + j] = sum[j];
  }
}
"""
)

_BACKWARD = _CUDA_ONLY.format(
    _RAY
    + r"""
const float* grad = grad_composited.data + (size_t)ray * channels;
float T = left.data[ray], behind = 0.f, by_sharpness = 0.f;
for (int base = (samples - 1) / 32 * 32; base >= 0; base -= 32) {
"""
    + _ENDS
    + r"""
  float w = there ? weights.data[i] : 0.f, gain = grad_opacities.data[ray];
  if (there) for (int c = 0; c < channels; ++c) {
    gain += grad[c] * values.data[i * channels + c];
    grad_values.data[i * channels + c] = w * grad[c];
  }
  float share_behind = w, worth_behind = w * gain;  // with this lane's, then without
  #pragma unroll
  for (int reach = 1; reach < 32; reach *= 2) {
    float s = __shfl_down_sync(ALL, share_behind, reach);
    float g = __shfl_down_sync(ALL, worth_behind, reach);
    if (lane + reach < 32) { share_behind += s; worth_behind += g; }
  }
  float all_share = __shfl_sync(ALL, share_behind, 0);
  float all_worth = __shfl_sync(ALL, worth_behind, 0);
  share_behind = __shfl_down_sync(ALL, share_behind, 1);
  worth_behind = __shfl_down_sync(ALL, worth_behind, 1);
  if (lane == 31) { share_behind = 0.f; worth_behind = 0.f; }
  float by_tau = counts ? (T + share_behind) * gain - (behind + worth_behind) : 0.f;
  T += all_share; behind += all_worth;
  float by_after = (after - 1.f) * by_tau;
  float by_before = before * (1.f - before) * share * by_tau;
  by_sharpness += (d + half) * by_after + (d - half) * by_before;
  if (there) {
    grad_sdf.data[i] = sharpness * (by_before + by_after);
    float by_ic = sharpness * (by_after - by_before) * delta * .5f;
    grad_cosines.data[i] = by_ic * ((cosine < 1.f ? .5f * (1.f - blend) : 0.f)
                                    + (cosine < 0.f ? blend : 0.f));
  }
}
#pragma unroll
for (int reach = 16; reach > 0; reach /= 2) by_sharpness += __shfl_xor_sync(ALL, by_sharpness, reach);
if (lane == 0) grad_sharpness.data[ray] = by_sharpness;
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
    """One warp of threads a ray."""
    _forward(
        (first + wp.tid() * stride) // 32, samples, channels, sdf, cosines, deltas, inside, values, inv_s,
        anneal, composited, opacities, weights, left,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def differentiate_rays(
    first: int, stride: int, samples: int, channels: int, sdf: _Floats, cosines: _Floats,
    deltas: _Floats, inside: _Flags, values: _Floats, inv_s: _Floats, anneal: _Floats,
    weights: _Floats, left: _Floats, grad_composited: _Floats, grad_opacities: _Floats,
    grad_sdf: _Floats, grad_cosines: _Floats, grad_values: _Floats, grad_sharpness: _Floats,
):  # fmt: skip
    """One warp of threads a ray; the gradient of inv_s is per ray."""
    _backward(
        (first + wp.tid() * stride) // 32, samples, channels, sdf, cosines, deltas, inside, values, inv_s,
        anneal, weights, left, grad_composited, grad_opacities, grad_sdf, grad_cosines,
        grad_values, grad_sharpness,
    )  # fmt: skip
