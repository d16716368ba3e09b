"""The promises about repetition: the same seed gives the same bits on a CPU in every stage, from the
picture to the textured mesh, and another engine the same object within stated bounds."""

import dataclasses

import pytest
import torch

from v3d_core.backends import problem
from v3d_core.diffusion.bundled import nano_file
from v3d_core.formats.views import load_views
from v3d_core.mesh.asset import AssetConfig, make_asset
from v3d_core.mesh.config import SplatMeshConfig
from v3d_core.mesh.from_splats import mesh_from_splats
from v3d_core.mesh_queries import MeshQueries
from v3d_core.metrics import psnr
from v3d_core.neus.config import NeusFitConfig
from v3d_core.neus.extract import extract_mesh
from v3d_core.neus.fit import fit_neus
from v3d_core.splats.config import SplatFitConfig
from v3d_core.splats.fit import fit_splats
from v3d_core.splats.raster import render_splats

SPLATS = SplatFitConfig(
    steps=15, resolution=0, initial_splats=800, max_splats=1200, hull_resolution=48
)
NEUS = NeusFitConfig(
    steps=15,
    rays=256,
    samples=12,
    start_resolution=32,
    refresh_steps=8,
    levels=6,
    log2_entries=12,
    hidden=16,
    finest=64,
    extra_points=256,
)
ASSET = AssetConfig(faces=600, texture_size=64)
needs_warp = pytest.mark.skipif(bool(problem("warp")), reason=f"without Warp: {problem('warp')}")


@pytest.fixture(scope="module")
def views(demo_orbit_48):
    return load_views(demo_orbit_48).views


def splats_of(views):
    return fit_splats(views, SPLATS).splats


def field_of(views):
    return fit_neus(views, NEUS).field


def tensors(made):
    """Every tensor of a result, by name."""
    if isinstance(made, torch.Tensor):
        return {"": made}
    if isinstance(made, torch.nn.Module):
        return made.state_dict()
    fields = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
    return {name: value for name, value in fields.items() if isinstance(value, torch.Tensor)}


def assert_same_bits(make):
    first, second = tensors(make()), tensors(make())
    assert first and first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
    return first


@pytest.mark.slow
def test_the_orbit(views):
    from v3d_core.diffusion.diffusers_backend import load_diffusers_model
    from v3d_core.diffusion.edm import SamplerConfig
    from v3d_core.diffusion.model_files import find_model
    from v3d_core.diffusion.orbit import OrbitConfig, sample_orbit

    model = load_diffusers_model(find_model(nano_file()), torch.device("cpu"), torch.float32)
    picture = torch.nn.functional.interpolate(views.images[:1].movedim(3, 1), size=128)
    config = OrbitConfig(sampler=SamplerConfig(steps=1))
    assert_same_bits(lambda: sample_orbit(model, picture.movedim(1, 3), config, seed=3).frames)


def test_the_splat(views):
    assert_same_bits(lambda: splats_of(views))


@pytest.mark.slow
def test_the_mesh_of_a_splat(views):
    splats = splats_of(views)
    config = SplatMeshConfig(resolution=32)
    assert_same_bits(lambda: mesh_from_splats(splats, views.cameras, config, render=render_splats))


def test_the_surface_and_its_mesh_and_its_texture(views):
    field = field_of(views)
    assert_same_bits(lambda: field_of(views))
    mesh = extract_mesh(field, 48)
    assert_same_bits(lambda: extract_mesh(field, 48))
    assert_same_bits(lambda: make_asset(mesh, views, ASSET).mesh)


@pytest.mark.slow
@needs_warp
def test_another_rasteriser_fits_the_same_object(views, monkeypatch):
    shown = []
    for engine in ("torch", "warp"):
        monkeypatch.setenv("V3D_RASTERIZER", engine)
        shown.append(render_splats(splats_of(views), views.cameras, depths=False).colours)
    # rounding decides which of two Gaussians is split; the pictures hardly change
    assert psnr(*shown) > 40


@needs_warp
def test_other_engines_fit_the_same_surface(views, monkeypatch):
    meshes = []
    for engine in ("torch", "warp"):
        monkeypatch.setenv("V3D_HASH_GRID", engine)
        monkeypatch.setenv("V3D_COMPOSITING", engine)
        meshes.append(extract_mesh(field_of(views), 64))
    surface = MeshQueries(meshes[0].vertices, meshes[0].faces)
    away = surface.closest(meshes[1].vertices).distance
    assert float(away.mean()) < 0.002  # a twentieth of a pixel of 48
