"""Hundreds of prompts in a row to a running ComfyUI: does anything leak, or get a wrong answer?

    V3D_TEST_SOAK=1 python tests/nodes/comfy_env.py --test -k test_soak

runs it with its 200 prompts, every node of the pack among them and every fourth one broken. By
hand, with the interpreter that `python tests/nodes/comfy_env.py` prints, and COMFYUI_PATH set:

    PYTHON tests/nodes/host/soak.py --prompts 200 --out figures.json

The exit code is 1 when anything was wrong; the figures say what.
"""

from __future__ import annotations

import argparse
import collections
import importlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

import psutil
import soak_prompts
from comfy_server import ComfyServer
from prompts import node

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
# Until each kind of prompt has come about a dozen times, memory still settles: by 5 to 6 % from the
# 40th to the 100th, by less than 1 % from there to the 200th.
PROMPTS, WARM_UP = 200, 100
SHARE_OF_BAD = 0.25
MOST_GROWTH = 0.05  # of resident memory and of it in use, from the end of the warm-up to the end
CLIENTS = 32  # more than the threads that asyncio starts for files
REST_S = 2.0  # until the host has freed what it was asked to
ENDLESS = {"steps": 100_000, "max_splats": 20_000, "resolution": 256}


def make_base(base: Path) -> None:
    """A fresh base directory: the pack, nodes for the test, a picture, tiny models, two fields."""
    (base / "custom_nodes").mkdir(parents=True)
    (base / "input").mkdir()
    os.symlink(REPOSITORY, base / "custom_nodes" / "ComfyUI-V3D", target_is_directory=True)
    (base / "custom_nodes" / "test_nodes.py").write_text(soak_prompts.TEST_NODES)
    frame = REPOSITORY / "v3d_core" / "data" / "demo_orbit" / "r_000.png"
    shutil.copy(frame, base / "input" / "example.png")
    sys.path += [str(HERE.parents[1]), str(REPOSITORY)]
    write_models = importlib.import_module("tiny_models").write_models
    write_models(base / "models" / "checkpoints", importlib.import_module)
    (base / "input" / "broken.safetensors").write_bytes(b"\x10" + bytes(7) + b'{"a": "no field"')
    (base / "input" / "field.safetensors").write_bytes(b"")  # listed now, filled by `first_field`


def first_field(server: ComfyServer) -> None:
    """Fit a small surface and put it where V3D Load SDF finds it."""
    good = soak_prompts.fitted_surface(0)
    run = server.run(good.graph)
    good.check(server, run)
    (name,) = run.outputs["3"]["text"]
    made = server.base / "output" / name.removesuffix(" [output]")
    shutil.copy(made, server.base / "input" / "field.safetensors")


def start_the_hosts_threads(server: ComfyServer) -> None:
    """Ask for many files at once: the threads that serve files start when they are needed."""

    def client() -> None:
        for _ in range(4):
            server.get("/view?filename=example.png&type=input")

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()


def at_rest(server: ComfyServer) -> dict[str, int]:
    """What the server holds after the host has let go of models and results.

    `used` is resident memory without what the C library keeps for later: freed pieces between
    pieces in use, up to a hundred MiB more or less from one look to the next.
    """
    server.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(REST_S)
    process = psutil.Process(server.process.pid)
    count = process.num_fds if hasattr(process, "num_fds") else process.num_handles
    handles = []
    for _ in range(5):  # connections that were closed just now go within a second or two
        handles.append(count())
        time.sleep(0.5)
    held = {
        "resident_mib": round(process.memory_info().rss / 2**20),
        "handles": min(handles),
        "threads": process.num_threads(),
    }
    look = server.run({"1": node("WhatIsHeld", seed=time.monotonic_ns())})
    return held | {
        "used_mib": round(process.memory_info().rss / 2**20),
        "tensors_mib": round(look.outputs["1"]["bytes"][0] / 2**20, 1),
    }


def order(count: int, seed: int) -> list[tuple[str, int]]:
    """Names of the prompts and a seed for each: all kinds of good and of bad ones, mixed."""
    dice = random.Random(seed)
    good, bad = [make.__name__ for make in soak_prompts.GOOD], list(soak_prompts.bad_prompts())
    many_bad = round(count * SHARE_OF_BAD)
    names = [bad[i % len(bad)] for i in range(many_bad)]
    names += [good[i % len(good)] for i in range(count - many_bad)]
    dice.shuffle(names)
    return [(name, number + 1) for number, name in enumerate(names)]


def failure_of(server: ComfyServer, name: str, seed: int) -> str:
    """Run one prompt; why its answer is wrong, or ""."""
    bad = soak_prompts.bad_prompts().get(name)
    if bad is not None:
        run = server.run(bad.graph)
        if run.ended not in ("rejected", "execution_error"):
            return f"{name}: ended with {run.ended}, must be refused"
        matches = re.search(bad.error, run.error, re.DOTALL)
        return "" if matches else f"{name}: answered {run.error[:600]!r}"
    good = getattr(soak_prompts, name)(seed)
    run = server.run(good.graph)
    if run.ended != "execution_success":
        return f"{name} {seed}: {run.ended}: {run.error[:600]}"
    try:
        good.check(server, run)
    except Exception:  # whatever is wrong is counted, and the soak goes on
        return f"{name} {seed}: {traceback.format_exc(limit=-2)}"
    return ""


def two_at_once(server: ComfyServer) -> list[str]:
    """Two clients queue at the same moment; each must get its own result."""
    failures = []

    def client(name: str, seed: int) -> None:
        failures.append(failure_of(server, name, seed))

    pairs = [("scored_splat", 9001), ("textured_mesh", 9002)]
    clients = [threading.Thread(target=client, args=pair) for pair in pairs]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert len(failures) == len(pairs)
    return [f"two at once: {failure}" for failure in failures if failure]


def half_files(base: Path) -> list[str]:
    """Files under a temporary name, and empty ones, in the output folder."""
    files = [path for path in (base / "output").rglob("*") if path.is_file()]
    return [str(f) for f in files if f.name.startswith(".") or not f.stat().st_size]


def killed_in_a_fit(server: ComfyServer) -> None:
    """SIGKILL while a fit runs, some steps after its start."""
    graph = soak_prompts.fit(**ENDLESS)

    def kill(kind: str, data: dict) -> None:
        if kind == "progress" and data.get("node") == "2" and data["value"] >= 20:
            server.process.kill()

    try:
        server.run(graph, on_event=kill, timeout_s=60)
    except (OSError, KeyError, TimeoutError):  # nobody is left to answer
        pass
    server.process.wait(timeout=20)
    server.stop()


def soak(base: Path, prompts: int, warm_up: int, seed: int, log) -> dict:
    """The whole soak; `log` gets a line now and then."""
    make_base(base)
    server = ComfyServer(base, "--cache-classic")
    started, failures, samples = time.monotonic(), [], {}
    slowest: dict[str, float] = collections.defaultdict(float)
    try:
        server.wait_until_ready()
        start_the_hosts_threads(server)
        first_field(server)
        for number, (name, prompt_seed) in enumerate(order(prompts, seed)):
            if number == warm_up or (number and number % 20 == 0):
                samples[number] = at_rest(server)
                log(f"{number} prompts, {time.monotonic() - started:.0f} s, {samples[number]}")
            began = time.monotonic()
            failure = failure_of(server, name, prompt_seed)
            slowest[name] = max(slowest[name], time.monotonic() - began)
            if failure:
                failures.append(failure)
                log(failure)
        samples[prompts] = at_rest(server)
        seconds = time.monotonic() - started
        failures += two_at_once(server)
        killed_in_a_fit(server)
        failures += [f"half a file: {name}" for name in half_files(base)]
        server = ComfyServer(base, "--cache-classic")
        server.wait_until_ready()
        after = failure_of(server, "scored_splat", 9003)
        failures += [f"after the restart: {after}"] if after else []
        failures += [f"half a file: {name}" for name in half_files(base)]
    finally:
        server.stop()
    first, last = samples[warm_up], samples[prompts]
    growth = {what: last[what] / first[what] - 1 for what in ("resident_mib", "used_mib")}
    for what, share in growth.items():
        if share > MOST_GROWTH:
            failures.append(f"{what} grew by {100 * share:.1f} %")
    for what in ("handles", "threads", "tensors_mib"):
        if last[what] > first[what]:
            failures.append(f"{what} grew from {first[what]} to {last[what]}")
    return {
        "prompts": prompts,
        "bad": round(prompts * SHARE_OF_BAD),
        "seconds": round(seconds),
        "growth": {what: round(value, 4) for what, value in growth.items()},
        "samples": samples,
        "slowest": {name: round(value, 1) for name, value in slowest.items() if value > 1},
        "failures": failures,
    }


def main() -> int:
    """Parse options, soak, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--warm-up", type=int, default=WARM_UP)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="base directory that stays; else a temporary one")
    parser.add_argument("--out", type=Path, help="file for the figures")
    options = parser.parse_args()

    def log(line: str) -> None:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        base = options.base or Path(temporary) / "base"
        figures = soak(base, options.prompts, options.warm_up, options.seed, log)
    text = json.dumps(figures, indent=1)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    return 1 if figures["failures"] else 0


if __name__ == "__main__":
    sys.exit(main())
