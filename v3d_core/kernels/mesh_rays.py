"""Rays against a triangle mesh and nearest points on it, by Warp's tree of boxes (CPU and CUDA).

One ray or point is one piece of work. Contract and oracle: `mesh_queries`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.mesh_rays"

_Floats = wp.array(dtype=wp.float32)
_Ints = wp.array(dtype=wp.int32)


@wp.kernel(enable_backward=False)
def cast_rays(
    first: int, stride: int, mesh: wp.uint64, reach: float, origins: _Floats, directions: _Floats,
    faces: _Ints, barycentric: _Floats, distances: _Floats,
):  # fmt: skip
    """Rays `first`, `first + stride`, ...; outputs of rays that miss are left as they are."""
    ray = first + wp.tid() * stride
    origin = wp.vec3(origins[3 * ray], origins[3 * ray + 1], origins[3 * ray + 2])
    direction = wp.vec3(directions[3 * ray], directions[3 * ray + 1], directions[3 * ray + 2])
    hit = wp.mesh_query_ray(mesh, origin, direction, reach)
    if hit.result:
        faces[ray] = hit.face
        barycentric[3 * ray] = hit.u
        barycentric[3 * ray + 1] = hit.v
        barycentric[3 * ray + 2] = 1.0 - hit.u - hit.v
        distances[ray] = hit.t


@wp.kernel(enable_backward=False)
def nearest_points(
    first: int, stride: int, mesh: wp.uint64, reach: float, points: _Floats, faces: _Ints,
    barycentric: _Floats, distances: _Floats,
):  # fmt: skip
    """Points `first`, `first + stride`, ..."""
    index = first + wp.tid() * stride
    point = wp.vec3(points[3 * index], points[3 * index + 1], points[3 * index + 2])
    found = wp.mesh_query_point_no_sign(mesh, point, reach)
    if found.result:
        faces[index] = found.face
        barycentric[3 * index] = found.u
        barycentric[3 * index + 1] = found.v
        barycentric[3 * index + 2] = 1.0 - found.u - found.v
        nearest = wp.mesh_eval_position(mesh, found.face, found.u, found.v)
        distances[index] = wp.length(point - nearest)
