"""Projection of 3D Gaussians as native snippets that NVIDIA Warp compiles for CPU and CUDA.

One thread makes one record (Gaussian and picture); the gradient has one thread per Gaussian that
walks over the pictures, so nothing is added atomically and sums are repeatable. The formulas are
those of the oracle, `splats/projection.py`; nothing is kept from the forward pass, the gradient
computes what it needs again from the same few numbers.

A record has 16 floats: x, y, conic a, b, c, opacity, r, g, b, half height, half width, reach (the
Mahalanobis^2 at which alpha falls below the cut), depth, the depth's slopes along x and y, 0.
The gradient of a record has 12 floats, in the order in which the tile kernels find them: r, g, b,
opacity / opacity, and the moments of d_power: dx, dy, dx dx, dx dy, dy dy; three unused.

Every kernel takes `first` and `stride`: CPU threads share the work by striding.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.splat_records"

RECORD = 16  # floats per Gaussian and picture
RECORD_GRADIENT = 12  # floats per Gaussian and picture

# Shared by both directions: rotation, semi-axes in the camera frame, rows of the projection.
_GEOMETRY = r"""
constexpr float NEAR_DEPTH = 0.01f, LOW_PASS = 0.3f, MIN_ALPHA = 1.f / 255.f, MARGIN = 1.3f;
const float* mean = means.data + 3 * (size_t)n;
const float* quat = quats.data + 4 * (size_t)n;
const float* scale = scales.data + 3 * (size_t)n;
float qw = quat[0], qx = quat[1], qy = quat[2], qz = quat[3];
float length = sqrtf(qw * qw + qx * qx + qy * qy + qz * qz);
float shrink = 1.f / (length > 1e-12f ? length : 1e-12f);
qw *= shrink; qx *= shrink; qy *= shrink; qz *= shrink;
float rotation[9] = {
  1.f - 2.f * (qy * qy + qz * qz), 2.f * (qx * qy - qw * qz), 2.f * (qx * qz + qw * qy),
  2.f * (qx * qy + qw * qz), 1.f - 2.f * (qx * qx + qz * qz), 2.f * (qy * qz - qw * qx),
  2.f * (qx * qz - qw * qy), 2.f * (qy * qz + qw * qx), 1.f - 2.f * (qx * qx + qy * qy)};
"""

# Needs `view` and _GEOMETRY; leaves the footprint before its inverse.
_FOOTPRINT = r"""
const float* pose = world_to_camera.data + 16 * (size_t)view;
const float* lens = K.data + 9 * (size_t)view;
float fx = lens[0], fy = lens[4], cx = lens[2], cy = lens[5];
float x = pose[0] * mean[0] + pose[1] * mean[1] + pose[2] * mean[2] + pose[3];
float y = pose[4] * mean[0] + pose[5] * mean[1] + pose[6] * mean[2] + pose[7];
float z = pose[8] * mean[0] + pose[9] * mean[1] + pose[10] * mean[2] + pose[11];
bool in_front = z > NEAR_DEPTH;
float iz = 1.f / (in_front ? z : 1.f);
float u = x * iz, v = y * iz;
float margin_x = (MARGIN - 1.f) * 0.5f * width, margin_y = (MARGIN - 1.f) * 0.5f * height;
float low_u = -(cx + margin_x) / fx, high_u = (width - cx + margin_x) / fx;
float low_v = -(cy + margin_y) / fy, high_v = (height - cy + margin_y) / fy;
float cu = u < low_u ? low_u : (u > high_u ? high_u : u);
float cv = v < low_v ? low_v : (v > high_v ? high_v : v);
float axes[9], row_x[3], row_y[3];
float xx = LOW_PASS, xy = 0.f, yy = LOW_PASS;
for (int k = 0; k < 3; ++k) {
  for (int i = 0; i < 3; ++i)
    axes[3 * i + k] = scale[k] * (pose[4 * i] * rotation[k] + pose[4 * i + 1] * rotation[3 + k]
                                  + pose[4 * i + 2] * rotation[6 + k]);
  row_x[k] = fx * iz * (axes[k] - cu * axes[6 + k]);
  row_y[k] = fy * iz * (axes[3 + k] - cv * axes[6 + k]);
  xx += row_x[k] * row_x[k]; xy += row_x[k] * row_y[k]; yy += row_y[k] * row_y[k];
}
float inverse_det = 1.f / (xx * yy - xy * xy);
"""

_PROJECT = (
    _GEOMETRY
    + _FOOTPRINT
    + r"""
float opacity = opacities.data[n];
float ratio = opacity / MIN_ALPHA;
float reach = 2.f * logf(ratio > 1.f ? ratio : 1.f);
bool visible = in_front && reach > 0.f;
float zx = axes[6] * row_x[0] + axes[7] * row_x[1] + axes[8] * row_x[2];
float zy = axes[6] * row_y[0] + axes[7] * row_y[1] + axes[8] * row_y[2];
const float* colour = colours.data + 3 * ((size_t)view * colour_stride + n);
float record[16] = {
  fx * u + cx, fy * v + cy, yy * inverse_det, -xy * inverse_det,
  xx * inverse_det, opacity, colour[0], colour[1],
  colour[2], visible ? sqrtf(reach * yy) : 0.f, visible ? sqrtf(reach * xx) : 0.f, reach,
  z, (zx * yy - zy * xy) * inverse_det, (zy * xx - zx * xy) * inverse_det, 0.f};
float* out = records.data + 16 * ((size_t)view * count + n);
#if defined(__CUDA_ARCH__)
for (int k = 0; k < 4; ++k)  // whole sectors: single floats took several times as long
  ((float4*)out)[k] = make_float4(record[4 * k], record[4 * k + 1], record[4 * k + 2],
                                  record[4 * k + 3]);
#else
for (int k = 0; k < 16; ++k) out[k] = record[k];
#endif
"""
)

_DIFFERENTIATE = (
    _GEOMETRY
    + r"""
float opacity = opacities.data[n];
float d_mean[3] = {0.f, 0.f, 0.f}, d_shape[9] = {0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f, 0.f};
float d_colour[3] = {0.f, 0.f, 0.f}, d_opacity = 0.f, total_pull = 0.f;
for (int view = 0; view < views; ++view) {
  const float* g = gradients.data + 12 * ((size_t)view * count + n);
  float g0 = g[0], g1 = g[1], g2 = g[2], g3 = g[3];
  float m0 = g[4], m1 = g[5], m2 = g[6], m3 = g[7], m4 = g[8];
  if (colour_stride > 0) {
    float* out = d_colours.data + 3 * ((size_t)view * count + n);
    out[0] = g0; out[1] = g1; out[2] = g2;
  } else {
    d_colour[0] += g0; d_colour[1] += g1; d_colour[2] += g2;
  }
  d_opacity += g3;
  if (m0 == 0.f && m1 == 0.f && m2 == 0.f && m3 == 0.f && m4 == 0.f) continue;
"""
    + _FOOTPRINT
    + r"""
  float A = yy * inverse_det, B = -xy * inverse_det, C = xx * inverse_det;
  // power = -(A dx^2 + C dy^2) / 2 - B dx dy with d = centre - pixel
  float gx = -(A * m0 + B * m1), gy = -(C * m1 + B * m0);
  total_pull += sqrtf(gx * gx + gy * gy);
  float ga = -0.5f * m2, gb = -0.5f * m3, gc = -0.5f * m4;  // gb: half of the gradient of B
  // d(conic) = -Q d(cov) Q, so the covariance's gradient is -Q G Q
  float q00 = A * ga + B * gb, q01 = A * gb + B * gc, q10 = B * ga + C * gb, q11 = B * gb + C * gc;
  float h00 = -(q00 * A + q01 * B), h01 = -(q00 * B + q01 * C), h11 = -(q10 * B + q11 * C);
  float d_iz = 0.f, d_u = fx * gx, d_v = fy * gy, d_cu = 0.f, d_cv = 0.f;
  float hx = fx * iz, hy = fy * iz;
  for (int k = 0; k < 3; ++k) {
    float dx = 2.f * (h00 * row_x[k] + h01 * row_y[k]);
    float dy = 2.f * (h01 * row_x[k] + h11 * row_y[k]);
    d_iz += dx * fx * (axes[k] - cu * axes[6 + k]) + dy * fy * (axes[3 + k] - cv * axes[6 + k]);
    d_cu -= hx * dx * axes[6 + k]; d_cv -= hy * dy * axes[6 + k];
    float a0 = hx * dx, a1 = hy * dy, a2 = -hx * cu * dx - hy * cv * dy;
    for (int i = 0; i < 3; ++i)
      d_shape[3 * i + k] += pose[i] * a0 + pose[4 + i] * a1 + pose[8 + i] * a2;
  }
  if (cu == u) d_u += d_cu;
  if (cv == v) d_v += d_cv;
  d_iz += d_u * x + d_v * y;
  float px = d_u * iz, py = d_v * iz, pz = -d_iz * iz * iz;
  for (int i = 0; i < 3; ++i) d_mean[i] += pose[i] * px + pose[4 + i] * py + pose[8 + i] * pz;
}
float d_r[9];
for (int k = 0; k < 3; ++k) {
  float along = 0.f;
  for (int i = 0; i < 3; ++i) {
    along += d_shape[3 * i + k] * rotation[3 * i + k];
    d_r[3 * i + k] = d_shape[3 * i + k] * scale[k];
  }
  d_scales.data[3 * (size_t)n + k] = along;
  d_means.data[3 * (size_t)n + k] = d_mean[k];
}
float dw = 2.f * (-qz * d_r[1] + qy * d_r[2] + qz * d_r[3] - qx * d_r[5] - qy * d_r[6] + qx * d_r[7]);
float dx = 2.f * (qy * d_r[1] + qz * d_r[2] + qy * d_r[3] - 2.f * qx * d_r[4] - qw * d_r[5]
                  + qz * d_r[6] + qw * d_r[7] - 2.f * qx * d_r[8]);
float dy = 2.f * (-2.f * qy * d_r[0] + qx * d_r[1] + qw * d_r[2] + qx * d_r[3] + qz * d_r[5]
                  - qw * d_r[6] + qz * d_r[7] - 2.f * qy * d_r[8]);
float dz = 2.f * (-2.f * qz * d_r[0] - qw * d_r[1] + qx * d_r[2] + qw * d_r[3] - 2.f * qz * d_r[4]
                  + qy * d_r[5] + qx * d_r[6] + qy * d_r[7]);
float along = qw * dw + qx * dx + qy * dy + qz * dz;
float* d_quat = d_quats.data + 4 * (size_t)n;
d_quat[0] = (dw - qw * along) * shrink; d_quat[1] = (dx - qx * along) * shrink;
d_quat[2] = (dy - qy * along) * shrink; d_quat[3] = (dz - qz * along) * shrink;
d_opacities.data[n] = opacity > 0.f ? d_opacity / opacity : 0.f;
if (colour_stride == 0) for (int k = 0; k < 3; ++k) d_colours.data[3 * (size_t)n + k] = d_colour[k];
pull.data[n] += total_pull;
"""
)

_Floats = wp.array(dtype=wp.float32)


@wp.func_native(_PROJECT)
def _project(
    n: int,
    view: int,
    count: int,
    means: _Floats,
    quats: _Floats,
    scales: _Floats,
    opacities: _Floats,
    colours: _Floats,
    colour_stride: int,
    world_to_camera: _Floats,
    K: _Floats,
    width: int,
    height: int,
    records: _Floats,
): ...


@wp.func_native(_DIFFERENTIATE)
def _differentiate(
    n: int,
    views: int,
    count: int,
    means: _Floats,
    quats: _Floats,
    scales: _Floats,
    opacities: _Floats,
    colour_stride: int,
    world_to_camera: _Floats,
    K: _Floats,
    width: int,
    height: int,
    gradients: _Floats,
    d_means: _Floats,
    d_quats: _Floats,
    d_scales: _Floats,
    d_opacities: _Floats,
    d_colours: _Floats,
    pull: _Floats,
): ...


@wp.kernel(enable_backward=False)
def project_records(
    first: int,
    stride: int,
    count: int,
    means: _Floats,
    quats: _Floats,
    scales: _Floats,
    opacities: _Floats,
    colours: _Floats,
    colour_stride: int,
    world_to_camera: _Floats,
    K: _Floats,
    width: int,
    height: int,
    records: _Floats,
):
    """Records of all Gaussians in all pictures; `colour_stride` 0 = one colour for all of them."""
    i = first + wp.tid() * stride
    view = i // count
    _project(
        i - view * count, view, count, means, quats, scales, opacities, colours, colour_stride,
        world_to_camera, K, width, height, records,
    )  # fmt: skip


@wp.kernel(enable_backward=False)
def differentiate_records(
    first: int,
    stride: int,
    views: int,
    count: int,
    means: _Floats,
    quats: _Floats,
    scales: _Floats,
    opacities: _Floats,
    colour_stride: int,
    world_to_camera: _Floats,
    K: _Floats,
    width: int,
    height: int,
    gradients: _Floats,
    d_means: _Floats,
    d_quats: _Floats,
    d_scales: _Floats,
    d_opacities: _Floats,
    d_colours: _Floats,
    pull: _Floats,
):
    """Gradients of every Gaussian from those of its records; `pull` is added to."""
    n = first + wp.tid() * stride
    _differentiate(
        n, views, count, means, quats, scales, opacities, colour_stride, world_to_camera, K,
        width, height, gradients, d_means, d_quats, d_scales, d_opacities, d_colours, pull,
    )  # fmt: skip
