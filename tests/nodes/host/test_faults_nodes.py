"""Every node, often, cancelled anywhere, out of memory, on a full disk: all is given back.

With V3D_TEST_SOAK=1 each node runs 50 times in a row, and is cancelled at 20 moments; a few of both
are tried with every change.
"""

import contextlib
import gc
import os
import random
import threading
import time

import psutil
import pytest
import torch
from comfy import model_management
from live_tensors import live_tensor_bytes
from scenes import asymmetric_splats, orbit_frames, pack
from soak_prompts import CLEAN, EXPORT, FIT, NEUS, NUMBERS, PREPARE, REFINE, RENDER, SAMPLE
from tiny_models import picture, write_models
from torch.utils._python_dispatch import TorchDispatchMode

THOROUGH = bool(os.environ.get("V3D_TEST_SOAK"))
REPEATS = 50 if THOROUGH else 1
MOMENTS = 20 if THOROUGH else 2  # at which each long node is cancelled
SHORTAGES = 6 if THOROUGH else 2  # of memory, in each node
LONGEST_WAIT_S = 1.0  # from Cancel to the end; of this process's own time on a busy machine
SHORT_FIT = FIT | {"resolution": 32, "max_splats": 300, "steps": 6, "seed": 0}
SHORT_NEUS = NEUS | {"resolution": 32, "steps": 4, "seed": 0}
SHORT_SAMPLE = SAMPLE | NUMBERS | {"frames": 3, "seed": 0}
LONG = (
    "V3DFitSplat",
    "V3DRenderSplat",
    "V3DScoreViews",
    "V3DMeshFromSplat",
    "V3DFitNeuS",
    "V3DExtractMesh",
    "V3DCleanMesh",
    "V3DRefineTexture",
    "V3DSampleOrbit",
)
READS_AND_WRITES = (  # on the CPU, where other libraries take most of the memory
    "V3DLoadModel",
    "V3DLoadViews",
    "V3DLoadSDF",
    "V3DSaveSDF",
    "V3DSaveViews",
    "V3DExportMesh",
    "V3DOrbitCameras",
    "V3DEnvironment",
)
TRIES_LESS = ("V3DSampleOrbit", "V3DConditioning")  # before they give up, in encoder or decoder
SHORT = (
    "V3DPrepareImage",
    "V3DLoadModel",
    "V3DConditioning",
    "V3DLoadViews",
    "V3DOrbitCameras",
    "V3DPosedViews",
    "V3DSaveSDF",
    "V3DLoadSDF",
    "V3DExportMesh",
    "V3DSaveViews",
    "V3DEnvironment",
)


@pytest.fixture(autouse=True)
def like_a_prompt(host_folders):
    """ComfyUI runs every prompt in inference mode."""
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """By name: what runs a node once, in small settings."""
    import folder_paths

    checkpoints = tmp_path_factory.mktemp("models") / "checkpoints"
    write_models(checkpoints, pack)
    field_file = tmp_path_factory.mktemp("input")
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        suffixes = folder_paths.folder_names_and_paths["checkpoints"][1]
        known = folder_paths.folder_names_and_paths
        patch.setitem(known, "checkpoints", ([str(checkpoints)], suffixes))
        for kind in ("diffusion_models", "clip_vision", "vae"):
            patch.setitem(known, kind, ([], known[kind][1]))
        folder_paths.filename_list_cache.clear()
        yield _calls(field_file)
    folder_paths.filename_list_cache.clear()


def _calls(field_file):
    colours, alphas, cameras = orbit_frames(6, 48)
    views = pack("v3d_core.structures").Views(images=colours, masks=alphas, cameras=cameras)
    splat = pack("nodes.convert").splats_to_host(asymmetric_splats())
    white = colours * alphas[..., None] + 1 - alphas[..., None]

    def run(name, module, **inputs):
        return lambda: getattr(pack(f"nodes.{module}"), name).execute(**inputs)

    names = {"model_name": "V3D.ckpt", "clip_vision_name": "svd_xt.safetensors"}
    calls = {"V3DLoadModel": run("V3DLoadModel", "models", **names, vae_name="auto")}
    model, clip, vae = calls["V3DLoadModel"]().args
    encoders = {"clip_vision": clip, "vae": vae, "image": picture()}
    mesh_inputs = {"splat": splat, "views": views, "resolution": 24, "smooth": 2, "min_part": 0.05}
    calls["V3DMeshFromSplat"] = run("V3DMeshFromSplat", "mesh", **mesh_inputs)
    mesh = calls["V3DMeshFromSplat"]().args[0]
    calls["V3DFitNeuS"] = run("V3DFitNeuS", "neus", views=views, **SHORT_NEUS)
    field = calls["V3DFitNeuS"]().args[0]
    pack("v3d_core.neus.store").save_field(field_file / "field.safetensors", field)

    def load_field():
        import folder_paths

        target = os.path.join(folder_paths.input_directory, "field.safetensors")
        if not os.path.exists(target):
            os.link(field_file / "field.safetensors", target)
        return pack("nodes.neus").V3DLoadSDF.execute(file="field.safetensors")

    shown = {"images": white, "truth": white.flip(0), "masks": alphas, "gain": 4.0}
    return calls | {
        "V3DPrepareImage": run("V3DPrepareImage", "prepare", image=picture(), **PREPARE),
        "V3DConditioning": run("V3DConditioning", "sampling", **encoders, seed=0, **NUMBERS),
        "V3DSampleOrbit": run("V3DSampleOrbit", "sampling", model=model, **encoders, **SHORT_SAMPLE),
        "V3DLoadViews": run("V3DLoadViews", "datasets", folder="demo orbit (shipped)", split="test"),
        "V3DOrbitCameras": run("V3DOrbitCameras", "orbit", orbit={"orbit": "v3d"}, frame=0, width=64, height=64),
        "V3DPosedViews": run("V3DPosedViews", "views", images=white, masks=alphas, cameras=cameras, mask_is="object"),
        "V3DFitSplat": run("V3DFitSplat", "splats", views=views, **SHORT_FIT),
        "V3DRenderSplat": run("V3DRenderSplat", "splats", splat=splat, cameras=cameras, resolution=0, **RENDER),
        "V3DScoreViews": run("V3DScoreViews", "scores", **shown, truth_is="opaque"),
        "V3DExtractMesh": run("V3DExtractMesh", "neus", sdf=field, resolution=16, min_part=0.02, colours=True),
        "V3DSaveSDF": run("V3DSaveSDF", "neus", sdf=field, filename_prefix="v3d/field"),
        "V3DLoadSDF": load_field,
        "V3DCleanMesh": run("V3DCleanMesh", "clean", mesh=mesh, **(CLEAN | {"faces": 400})),
        "V3DRefineTexture": run("V3DRefineTexture", "texture", mesh=mesh, views=views, **REFINE),
        "V3DExportMesh": run("V3DExportMesh", "mesh", mesh=mesh, format="glb", filename_prefix="3d/mesh", **EXPORT),
        "V3DSaveViews": run("V3DSaveViews", "datasets", views=views, filename_prefix="v3d/views", colmap=True),
        "V3DEnvironment": run("V3DEnvironment", "environment", try_engines=False),
    }  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def nothing_older_counts(nodes):
    """Looks at tensors pass over all that is there already, which takes a hundredth of the time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held():
    """What this process has open and runs."""
    process = psutil.Process()
    handles = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    return {
        "handles": handles,
        "threads": threading.active_count(),
        "torch threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "inference": torch.is_inference_mode_enabled(),
        "fits": dict(pack("nodes.finish")._running),
    }


def half_files(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_these_are_all_nodes():
    import asyncio

    known = asyncio.run(pack("nodes").V3DExtension().get_node_list())
    assert sorted(node.define_schema().node_id for node in known) == sorted(LONG + SHORT)


class Cancel:
    """Counts a node's looks at Cancel, and cancels just after the `last`-th."""

    def __init__(self, monkeypatch, last=-1):
        self.looks, self.last, self.sent = 0, last, (0.0, 0.0)
        self.throw = model_management.throw_exception_if_processing_interrupted
        if last == 0:
            self.send()
        name = "throw_exception_if_processing_interrupted"
        monkeypatch.setattr(model_management, name, self.look)

    def send(self):
        self.sent = (time.monotonic(), time.process_time())
        model_management.interrupt_current_processing(True)

    def seconds(self):
        wall, own = time.monotonic() - self.sent[0], time.process_time() - self.sent[1]
        return min(wall, own)

    def look(self):
        self.throw()
        self.looks += 1
        if self.looks == self.last:
            self.send()


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


def run_often(run, before):
    for _ in range(REPEATS):
        run()
        assert held() == before


def cancel_anywhere(run, before, looks, dice):
    """Each ends at once."""
    for _ in range(MOMENTS):
        with pytest.MonkeyPatch.context() as patch:
            cancel = Cancel(patch, last=dice.randrange(round(0.9 * looks)))
            with pytest.raises(model_management.InterruptProcessingException):
                run()
            assert cancel.seconds() < LONGEST_WAIT_S
        assert held() == before


def run_out_of_memory(run, before, operations, dice, may_recover):
    """The error is torch's own, for which ComfyUI unloads its models and says what to do."""
    late, told = round(0.9 * operations), 0  # some counts depend on the time that passed
    for moment in (1, *(dice.randint(2, late) for _ in range(SHORTAGES - 1))):
        try:
            with Short(moment):
                run()
        except Exception as error:
            assert model_management.is_oom(error) and str(error) == "planted"
            told += 1
        assert held() == before
    assert told == SHORTAGES or (may_recover and told)


@pytest.mark.parametrize("name", LONG + SHORT)
def test_a_node_run_often_cancelled_and_short_of_memory_leaves_nothing_behind(
    name, nodes, host_folders
):
    run, dice = nodes[name], random.Random(name)
    run()
    with pytest.MonkeyPatch.context() as patch, Short() as operations:
        looks = Cancel(patch)
        run()
    before, memory = held(), live_tensor_bytes()
    run_often(run, before)
    if name in LONG:
        assert looks.looks >= 3
        cancel_anywhere(run, before, looks.looks, dice)
    if name not in READS_AND_WRITES:
        run_out_of_memory(run, before, operations.seen, dice, name in TRIES_LESS)
    run()  # torch keeps what a broken backward pass left in its queue until the next one
    assert live_tensor_bytes() == memory
    assert held() == before
    assert not half_files(host_folders)


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


@pytest.mark.parametrize("name", ["V3DSaveSDF", "V3DExportMesh", "V3DSaveViews"])
def test_a_node_on_a_full_disk_says_so_and_leaves_no_file(name, nodes, host_folders):
    with pytest.raises(OSError, match=r"^V3D (Save|Export) .*cannot write .*the disk is full"):
        with files_end_at(1000):
            nodes[name]()
    assert not [path for path in host_folders.rglob("*") if path.is_file()]
    nodes[name]()
    assert [path for path in host_folders.rglob("*") if path.is_file()]
