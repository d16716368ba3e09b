"""Memory that runs out and disks that are full: a clear error, nothing half done, all given back."""

import contextlib
import dataclasses
import errno
import os
import random
import subprocess
import sys
import threading
from functools import partial

import psutil
import pytest
import torch
from live_tensors import live_tensor_bytes
from torch.utils._python_dispatch import TorchDispatchMode

from v3d_core.cameras import Orbit, orbit_cameras
from v3d_core.demo_object import demo_robot
from v3d_core.formats.atomic import OutputError
from v3d_core.formats.colmap import write_colmap_text
from v3d_core.formats.mesh_files import MESH_SUFFIXES, write_mesh
from v3d_core.formats.ply import write_splat_ply
from v3d_core.formats.video import write_video
from v3d_core.formats.views import save_views
from v3d_core.mesh.asset import AssetConfig, put_texture
from v3d_core.mesh.clean import clean
from v3d_core.mesh.clean_config import CleanConfig
from v3d_core.mesh.config import SplatMeshConfig
from v3d_core.mesh.from_splats import mesh_from_splats
from v3d_core.neus.config import NeusFitConfig
from v3d_core.neus.engines import HASH_GRIDS
from v3d_core.neus.extract import extract_mesh
from v3d_core.neus.fit import fit_neus
from v3d_core.neus.store import save_field
from v3d_core.procedural import render_object
from v3d_core.splats import engines
from v3d_core.splats.config import SplatFitConfig
from v3d_core.splats.fit import fit_splats
from v3d_core.splats.raster import render_splats

SPLATS = SplatFitConfig(
    steps=12,
    resolution=48,
    initial_splats=200,
    max_splats=400,
    hull_resolution=32,
    coarse_until=0.0,
    align="off",
)
NEUS = NeusFitConfig(
    steps=4,
    rays=64,
    samples=8,
    start_resolution=32,
    refresh_steps=20,
    levels=3,
    coarsest=8,
    finest=32,
    log2_entries=13,
    hidden=8,
    active_levels=3,
)
MESH = SplatMeshConfig(resolution=32, picture_size=48, extra_elevations_deg=())
TEXTURE = AssetConfig(faces=0, texture_size=64, align="off")
MOMENTS = 3  # of each stage at which memory runs out


@pytest.fixture(scope="module")
def views():
    return render_object(orbit_cameras(Orbit(num_views=6), 48, 48), demo_robot(), supersample=1)


@pytest.fixture(scope="module")
def stages(views):
    """By name: what makes it from what the stages before it made."""
    splats = fit_splats(views, SPLATS).splats
    field = fit_neus(views, NEUS).field
    mesh = mesh_from_splats(splats, views.cameras, MESH, render=render_splats, views=views)
    light = CleanConfig(target_faces=400, max_error=1.0)
    return {
        "splat": partial(fit_splats, views, SPLATS),
        "neus": partial(fit_neus, views, NEUS),
        "mesh": partial(
            mesh_from_splats, splats, views.cameras, MESH, render=render_splats, views=views
        ),
        "extract": partial(extract_mesh, field, 24),
        "clean": partial(clean, mesh, light),
        "texture": partial(put_texture, clean(mesh, light).mesh, views, TEXTURE),
    }


class Short(TorchDispatchMode):
    """Memory that runs out at the `last`-th operation that torch is asked for; counts them."""

    def __init__(self, last=None):
        super().__init__()
        self.last, self.seen = last, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        if self.seen == self.last:
            raise torch.OutOfMemoryError("planted")
        return func(*args, **(kwargs or {}))


def tensors_of(value):
    """All tensors in a result, in order."""
    if isinstance(value, torch.Tensor):
        return [value.detach()]
    if isinstance(value, torch.nn.Module):
        return [tensor.detach() for tensor in value.state_dict().values()]
    if dataclasses.is_dataclass(value):
        value = tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    return [t for part in value for t in tensors_of(part)] if isinstance(value, tuple) else []


def settings():
    """What a stage changes for the whole process while it runs."""
    return (
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        threading.active_count(),
        psutil.Process().num_fds() if hasattr(psutil.Process, "num_fds") else 0,
    )


@pytest.mark.parametrize("name", ["splat", "neus", "mesh", "extract", "clean", "texture"])
def test_memory_that_runs_out_anywhere_is_told_and_given_back(name, stages):
    """The error is torch's own, which ComfyUI and the command line know how to tell."""
    with Short() as counter:
        expected = tensors_of(stages[name]())
    dice = random.Random(name)
    before, memory = settings(), live_tensor_bytes()
    late = round(0.9 * counter.seen)  # some counts depend on the time that passed
    moments = [1, *(dice.randint(2, late) for _ in range(MOMENTS - 2)), late]
    for moment in moments:
        with pytest.raises(torch.OutOfMemoryError, match="planted") as caught, Short(moment):
            stages[name]()
        del caught
        assert settings() == before, f"after operation {moment} of {counter.seen}"
    again = tensors_of(stages[name]())
    assert len(again) == len(expected) > 0
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    # only now: torch keeps what a broken backward pass left in its queue until the next one
    del again
    assert live_tensor_bytes() == memory


# --- a full disk --------------------------------------------------------------------------------


def picture_of_noise(size=96):
    return torch.rand(size, size, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def writers(views, stages):
    """By file name: what writes it, each some kilobytes long."""
    splats, field = stages["splat"]().splats, stages["neus"]().field
    textured = stages["texture"]().mesh
    mesh = dataclasses.replace(textured, texture=picture_of_noise())
    noise = torch.stack([picture_of_noise()] * 4)
    writers = {f"mesh{suffix}": partial(write_mesh, mesh=mesh) for suffix in MESH_SUFFIXES}
    return writers | {
        "splat.ply": partial(write_splat_ply, splats=splats),
        "field.safetensors": partial(save_field, field=field),
        "turn.mp4": partial(write_video, frames=noise, fps=6),
        "turn.mkv": partial(write_video, frames=noise, fps=6),
        "views": partial(save_views, views=views),
        "colmap": partial(write_colmap_text, views=views),
    }


WRITTEN = [f"mesh{suffix}" for suffix in MESH_SUFFIXES]
WRITTEN += ["splat.ply", "field.safetensors", "turn.mp4", "turn.mkv", "views", "colmap"]


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def opened_below(folder):
    """Files there that this process has open, removed ones too."""
    links = [
        os.readlink(f"/proc/self/fd/{n}")
        for n in os.listdir("/proc/self/fd")
        if os.path.islink(f"/proc/self/fd/{n}")
    ]
    return [link for link in links if link.startswith(str(folder))]


@contextlib.contextmanager
def files_end_at(size):
    """The system refuses to make any file longer, as it refuses on a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.01, 0.6], ids=["at once", "half-way"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_that_may_not_grow_leaves_the_old_one_and_nothing_else(
    name, share, writers, tmp_path
):
    if name == "mesh.usdz":
        pytest.importorskip("pxr")
    write, handles = writers[name], settings()
    write(tmp_path / name)
    before = contents(tmp_path)
    limit = round(share * max(map(len, before.values())))
    with pytest.raises(OutputError, match=r"cannot write .*the disk is full") as caught:
        with files_end_at(limit):
            write(tmp_path / name)
    del caught
    assert contents(tmp_path) == before
    assert settings() == handles
    with pytest.raises(OutputError), files_end_at(limit):
        write(tmp_path / "new" / name)
    assert contents(tmp_path) == before


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory):
    """A file system of 4 MB, where one may be made."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root of a Linux mounts a small file system")
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this root may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_disk_that_is_full_leaves_the_old_file_and_nothing_else(name, writers, small_disk):
    if name == "mesh.usdz":
        pytest.importorskip("pxr")
    target = small_disk / "out" / name
    target.parent.mkdir()
    filler = small_disk / "filler"
    try:
        writers[name](target)
        before = contents(target.parent)
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        with pytest.raises(OutputError, match=r"cannot write .*the disk is full") as caught:
            writers[name](target)
        assert caught.value.errno == errno.ENOSPC
        del caught
        assert not opened_below(small_disk)
        assert contents(target.parent) == before
        filler.unlink()
        writers[name](target)  # with room it is written
    finally:
        filler.unlink(missing_ok=True)
        subprocess.run(["rm", "-r", str(target.parent)], check=True)


def test_an_engine_is_not_given_up_for_memory_that_ran_out_in_its_check(monkeypatch):
    """Else every later fit would take the slow one."""
    pytest.importorskip("warp")
    device = torch.device("cpu")

    def short(*_):
        raise torch.OutOfMemoryError("planted")

    def fresh():
        engines.find_engine.cache_clear()
        engines._best_engine.cache_clear()

    fresh()
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(engines, "compare_with_oracle", short)
        engines.choose_engine(device, torch.float32)
    assert engines.choose_engine(device, torch.float32).name == "warp"
    with monkeypatch.context() as patch, pytest.raises(torch.OutOfMemoryError):
        patch.setattr(HASH_GRIDS, "check", short)
        HASH_GRIDS.forget()
        HASH_GRIDS.choose(device, torch.float32)
    assert HASH_GRIDS.choose(device, torch.float32).name == "warp"
