"""One step of Adam for one tensor on NVIDIA GPUs; NVIDIA Warp compiles it.

Rate and step count are read from the device, so that a step can be captured as a CUDA graph.
Contract and oracle: `splats/adam`.
"""

# Annotations must be evaluated: Warp reads the types of kernel arguments from them.
import warp as wp

# Warp names its cache files after this; ComfyUI imports the pack under a name with slashes in it.
__name__ = "v3d_core.kernels.adam_cuda"

_Floats = wp.array(dtype=wp.float32)


@wp.kernel(enable_backward=False)
def adam_step(
    values: _Floats,
    gradients: _Floats,
    means: _Floats,
    squares: _Floats,
    rate: _Floats,
    steps: _Floats,
    beta1: float,
    beta2: float,
    epsilon: float,
):
    """One thread a number; `steps` counts this step already."""
    i = wp.tid()
    g = gradients[i]
    mean = beta1 * means[i] + (1.0 - beta1) * g
    square = beta2 * squares[i] + (1.0 - beta2) * g * g
    means[i] = mean
    squares[i] = square
    correction1 = 1.0 - wp.pow(beta1, steps[0])
    correction2 = 1.0 - wp.pow(beta2, steps[0])
    size = wp.sqrt(square / correction2) + epsilon
    values[i] = values[i] - rate[0] * (mean / correction1) / size
