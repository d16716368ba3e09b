"""Loading the pack costs a server's start next to nothing, and does nothing but import."""

import json
import os
import subprocess
import sys

import pytest
from bootstrap import COMFYUI
from scenes import REPOSITORY

MAX_SECONDS = 0.3  # of one core, with the host's modules loaded and bytecode cached

# A Python as the host is when it comes to custom nodes. The pack is loaded several times: the
# first one fills the cache of bytecode, of the others the fastest is nearest to an idle machine's.
_LOAD = """
import asyncio, importlib.util, json, os, sys, time
from pathlib import Path
repository, cache = sys.argv[1:3]
sys.path.insert(0, repository + "/tests/nodes/host")
import bootstrap
bootstrap.make_importable("--cpu", "--disable-api-nodes")
import torch, nodes, server, comfy.ldm.modules.temporal_ae, comfy_execution.utils, comfyui_version
from comfy_api.v0_0_2 import io, ui

def load():
    init = repository + "/__init__.py"
    spec = importlib.util.spec_from_file_location("pack", init, submodule_search_locations=[repository])
    module = sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    async def register():
        extension = await module.comfy_entrypoint()
        await extension.on_load()
        return [node.GET_SCHEMA().node_id for node in await extension.get_node_list()]
    return asyncio.run(register())

EVENTS = ("os.mkdir", "os.rename", "os.remove", "os.symlink", "subprocess.Popen", "os.system",
          "os.exec", "os.posix_spawn", "os.putenv", "socket.connect", "socket.getaddrinfo")
done, watching = [], False
def watch(event, arguments):
    if not watching: return
    if event == "open":
        path, mode, flags = arguments  # a number is a file that was opened before, by its path
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or set(mode or "") & set("wax+")
        if writes and not isinstance(path, int) and not str(path).startswith(cache):
            done.append(f"opened {path} to write")
    elif event in EVENTS and not str(arguments[0]).startswith(cache):
        done.append(f"{event} {arguments[0]}")
sys.addaudithook(watch)

before, seconds = set(sys.modules), []
sys.dont_write_bytecode, sys.pycache_prefix = False, cache
for _ in range(4):
    for name in [name for name in sys.modules if name.split(".")[0] == "pack"]:
        del sys.modules[name]
    start, watching = time.process_time(), True
    ids = load()
    seconds.append(time.process_time() - start)
    watching = False
new = sorted({name.split(".")[0] for name in set(sys.modules) - before} - {"pack"})
print(json.dumps({"ids": ids, "seconds": min(seconds[1:]), "done": done, "new": new,
                  "cuda": torch.cuda.is_initialized()}))
"""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("import")
    environment = {**os.environ, "COMFYUI_PATH": str(COMFYUI)}
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(REPOSITORY), str(folder / "cache")],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_it_takes_less_than_a_third_of_a_second(loaded):
    assert len(loaded["ids"]) >= 20
    assert loaded["seconds"] < MAX_SECONDS


def test_it_writes_no_file_starts_nothing_and_leaves_cuda_alone(loaded):
    assert loaded["done"] == []
    assert not loaded["cuda"]


def test_it_imports_nothing_that_the_host_has_not(loaded):
    assert loaded["new"] == []
