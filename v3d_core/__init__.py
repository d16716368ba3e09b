"""Views of one object in, Gaussian splats and meshes out; knows torch, not ComfyUI."""

__version__ = "0.1.0"
