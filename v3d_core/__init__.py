"""One picture or views of an object in, splats and meshes out; knows torch, not ComfyUI.

This is the table of contents. A name is imported from its module at first use, so that importing
the package costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_CONTENTS = {
    # values that travel between stages
    "structures": ("Cameras", "GaussianSplats", "Mesh", "Views"),
    "progress": ("Progress", "never", "silent"),
    # cameras and pictures
    "cameras": (
        "ORBIT_PRESETS",
        "Orbit",
        "camera_rays",
        "flip_splat_frame",
        "look_at",
        "orbit_cameras",
        "project_points",
        "resize_cameras",
    ),
    "holdout": ("hold_out_every",),
    "images": ("composite", "contact_sheet", "resize_views"),
    "keying": ("key_uniform_background",),
    "metrics": ("psnr", "score_pictures", "score_views"),
    "normals": ("decode_normals",),
    "visual_hull": ("VisualHull", "carve_visual_hull"),
    # stage: one picture to the frames of an orbit
    "prepare": ("PrepareConfig", "PreparedPicture", "prepare_picture"),
    "diffusion.conditioning": ("ConditioningConfig",),
    "diffusion.convert": ("convert_to_diffusers", "convert_to_safetensors"),
    "diffusion.diffusers_backend": ("load_diffusers_model",),
    "diffusion.edm": ("SamplerConfig",),
    "diffusion.guidance": ("Guidance",),
    "diffusion.model_files": ("ModelParts", "find_model"),
    "diffusion.orbit": ("OrbitConfig", "SampledOrbit", "sample_orbit"),
    # stage: views to splats, splats to pictures
    "splats.config": ("SPLAT_PRESETS", "SplatFitConfig", "splat_preset"),
    "splats.consensus": ("align_frames",),
    "splats.fit": ("SplatFit", "fit_splats"),
    "splats.raster": ("Rendered", "render_splats"),
    # stage: views to a surface, the surface to meshes
    "neus.config": ("NEUS_PRESETS", "NeusFitConfig", "neus_preset"),
    "neus.extract": ("ExtractConfig", "extract_mesh"),
    "neus.field": ("SDFField",),
    "neus.fit": ("NeusFit", "fit_neus"),
    "neus.store": ("load_field", "save_field"),
    # stage: splats to mesh
    "mesh.config": ("SplatMeshConfig",),
    "mesh.from_splats": ("mesh_from_splats",),
    # orbits to train on
    "training.mesh_orbits": ("MeshOrbitConfig", "render_mesh_orbit"),
    "training.orbit_data": ("MeshFiles", "OrbitDataConfig", "ProceduralObjects", "make_orbit_data"),
    "training.shards": ("OrbitShards", "ShardWriter"),
    # pictures to orbits on disk
    "generate": ("ModelSource", "PictureJob", "PictureOutcome", "plan_jobs", "sample_pictures"),
    # files
    "formats.atomic": ("OutputError",),
    "formats.colmap": ("write_colmap_text",),
    "formats.mesh_files": ("read_mesh", "write_mesh"),
    "formats.ply": ("read_splat_ply", "write_splat_ply"),
    "formats.video": ("read_video_frames", "write_video"),
    "formats.views": ("LoadedViews", "load_views", "save_views"),
    "backends": ("MissingPackageError",),
}
_HOME = {name: module for module, names in _CONTENTS.items() for name in names}

__all__ = [*_HOME]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
