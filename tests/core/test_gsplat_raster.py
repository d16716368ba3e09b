"""The gsplat adapter on a stand-in for gsplat: its functions' signatures (1.5.3), torch inside."""

import sys
import types

import pytest
import torch

from v3d_core import backends
from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.splats import engines, gsplat_raster
from v3d_core.splats.projection import Pinholes, Projected, project_gaussians
from v3d_core.splats.torch_raster import rasterize_torch


class StandIn(types.ModuleType):
    """Does what gsplat does where the adapter relies on it, and checks shapes as gsplat does."""

    def fully_fused_projection(
        self,
        means,
        covars,
        quats,
        scales,
        viewmats,
        Ks,
        width,
        height,
        eps2d=0.3,
        near_plane=0.01,
        far_plane=1e10,
        radius_clip=0.0,
        packed=False,
        sparse_grad=False,
        calc_compensations=False,
        camera_model="pinhole",
        opacities=None,
    ):
        assert len(means) and covars is None and not packed and not opacities.requires_grad
        assert (eps2d, near_plane) == (0.3, 0.01)
        cameras = Pinholes(viewmats, Ks, width, height)
        projected = project_gaussians(means, quats, scales, opacities, cameras)
        seen = projected.extents[..., :1] > 0
        nan = float("nan")  # gsplat leaves what it does not see uninitialised
        radii = projected.extents.ceil().int()
        means2d = torch.where(seen, projected.means2d, nan)
        conics = torch.where(seen, projected.conics, nan)
        return radii, means2d, projected.depths, conics, None

    def isect_tiles(
        self,
        means2d,
        radii,
        depths,
        tile_size,
        tile_width,
        tile_height,
        sort=True,
        segmented=False,
        packed=False,
        n_images=None,
        image_ids=None,
        gaussian_ids=None,
    ):
        assert not packed and n_images == len(means2d)
        self.tiles, self.size = (tile_height, tile_width), tile_size
        self.depths, self.radii = depths, radii
        return "tiles per gaussian", "keys", "gaussians"

    def isect_offset_encode(self, isect_ids, n_images, tile_width, tile_height):
        assert isect_ids == "keys" and (tile_height, tile_width) == self.tiles
        return n_images

    def rasterize_to_pixels(
        self,
        means2d,
        conics,
        colors,
        opacities,
        image_width,
        image_height,
        tile_size,
        isect_offsets,
        flatten_ids,
        backgrounds=None,
        masks=None,
        packed=False,
        absgrad=False,
    ):
        views, count = means2d.shape[:2]
        assert not packed and isect_offsets == views and flatten_ids == "gaussians"
        assert colors.shape == (views, count, 3) and opacities.shape == (views, count)
        assert (
            self.tiles[0] * tile_size >= image_height and self.tiles[1] * tile_size >= image_width
        )
        seen = (self.radii > 0).all(-1, keepdim=True)
        projected = Projected(
            torch.where(seen, means2d, 0.0),
            torch.where(seen, conics, 1.0),
            self.depths,
            self.radii.float(),
            torch.zeros_like(means2d),
        )
        features = torch.cat([colors, torch.ones_like(colors[..., :1])], dim=-1)
        picture = rasterize_torch(projected, features, opacities[0], image_width, image_height)
        return picture[..., :3], picture[..., 3:]


@pytest.fixture
def stand_in(monkeypatch):
    module = StandIn("gsplat")
    monkeypatch.setattr(backends, "load_gsplat", lambda: (module, ""))
    gsplat_raster._gsplat.cache_clear()
    yield module
    gsplat_raster._gsplat.cache_clear()


@pytest.mark.parametrize("colours_per_view", [False, True])
def test_adapter_is_the_oracle_when_gsplat_is(stand_in, colours_per_view):
    generator = torch.Generator().manual_seed(0)
    pinholes = Pinholes.of(orbit_cameras(Orbit(num_views=3, elevation_deg=10), 40, 27))
    scene = [
        torch.randn(60, 3, generator=generator),  # some behind the camera
        torch.randn(60, 4, generator=generator),
        0.1 * torch.rand(60, 3, generator=generator),
        0.9 * torch.rand(60, generator=generator),
        torch.rand(3 if colours_per_view else 1, 60, 3, generator=generator),
    ]
    weights = torch.rand(3, 27, 40, 4, generator=generator)
    results = []
    for rasterize in (gsplat_raster.rasterize_gsplat, engines.rasterize_oracle):
        inputs = [part.clone().requires_grad_() for part in scene]
        pull = torch.zeros(60)
        picture = rasterize(*inputs, pinholes, pull)
        (picture * weights).sum().backward()
        results.append([picture.detach(), *(part.grad for part in inputs), pull])
    for mine, true in zip(*results, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-5, atol=1e-5)


def test_without_gsplat_the_reason_is_given(monkeypatch):
    monkeypatch.setitem(sys.modules, "gsplat", None)
    gsplat_raster._gsplat.cache_clear()
    with pytest.raises(backends.MissingPackageError, match="pip install gsplat"):
        gsplat_raster._gsplat()
