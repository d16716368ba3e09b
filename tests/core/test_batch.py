"""Batches: claims, scheduling, resuming, stopping and deaths with work that takes no time, and a real run."""

import argparse
import csv
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))  # spawned processes inherit it
import batch_stub  # noqa: E402

from v3d_core.batch import work  # noqa: E402
from v3d_core.batch_claims import MAX_ATTEMPTS, Claims, this_host  # noqa: E402
from v3d_core.batch_items import find_items  # noqa: E402
from v3d_core.batch_store import BatchFolder, Item, fingerprint, settings_hash  # noqa: E402

WAIT = 30.0  # s, for what takes under one on an idle machine


def until(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.fixture
def place(tmp_path):
    """Folders of inputs, outputs and the ledger."""
    for name in ("in", "ledger"):
        (tmp_path / name).mkdir()
    return tmp_path


def write_items(place, **texts):
    for name, text in texts.items():
        (place / "in" / f"{name}.txt").write_text(text)
    return [Item(p.stem, "picture", p) for p in sorted((place / "in").glob("*.txt"))]


def computed(place, step="compute"):
    """How often each item was computed."""
    parts = [path.name.split() for path in (place / "ledger").iterdir()]
    return Counter(part[0] for part in parts if part[1] == step)


def run_here(place, items, **stub):
    """`work` in this process; rows of what ended."""
    store, rows = BatchFolder(place / "out"), []
    stages = batch_stub.StubStages(place / "ledger", **stub)
    work(
        items,
        store,
        stages,
        since=store.claims.now(),
        tell=lambda event, row: rows.append(row) if event == "ended" else None,
    )
    return {row["name"]: row for row in rows}


def nothing_is_left_over(out):
    return not any((out / ".batch" / "claims").iterdir()) and not any(
        (out / ".batch" / "writing").iterdir()
    )


# --- claims


def test_only_one_of_many_threads_gets_a_claim_and_the_next_after_its_release(tmp_path):
    claims = [Claims(tmp_path) for _ in range(16)]
    for _ in range(5):
        barrier, taken = threading.Barrier(len(claims)), []

        def take(one, barrier=barrier, taken=taken):
            barrier.wait()
            taken.append(one.take("a.b"))

        threads = [threading.Thread(target=take, args=(one,)) for one in claims]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        (held,) = [claim for claim in taken if claim is not None]
        assert held.attempt == 1 and held.held()
        held.release()
    assert not any(tmp_path.iterdir())


def test_only_one_of_many_threads_takes_over_a_stale_claim(tmp_path):
    stale = {"host": "elsewhere", "pid": 1, "token": "x"}
    (tmp_path / "a.1.claim").write_text(json.dumps(stale))
    os.utime(tmp_path / "a.1.claim", (time.time() - 100, time.time() - 100))
    assert Claims(tmp_path, stale_seconds=200).take("a") is None
    claims = [Claims(tmp_path, stale_seconds=50) for _ in range(16)]
    barrier, taken = threading.Barrier(len(claims)), []

    def take(one):
        barrier.wait()
        taken.append(one.take("a"))

    threads = [threading.Thread(target=take, args=(one,)) for one in claims]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    (held,) = [claim for claim in taken if claim is not None]
    assert held.attempt == 2


def test_claim_of_a_process_that_is_gone_from_this_host_is_taken_at_once_others_by_age(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
    process.start()
    process.join()
    claims = Claims(tmp_path)
    for name, host, pid in (
        ("dead", this_host(), process.pid),
        ("living", this_host(), os.getpid()),
        ("elsewhere", "elsewhere", process.pid),
    ):
        text = json.dumps({"host": host, "pid": pid, "token": name})
        (tmp_path / f"{name}.1.claim").write_text(text)
    assert claims.take("dead").attempt == 2
    assert claims.take("living") is None and claims.take("elsewhere") is None
    for name in ("living", "elsewhere"):
        os.utime(tmp_path / f"{name}.1.claim", (0, 0))
        assert claims.take(name).attempt == 2


def test_a_heartbeat_keeps_a_claim_and_a_sleeper_learns_that_it_lost_it(tmp_path):
    mine, others = Claims(tmp_path, 50), Claims(tmp_path, 50)
    claim = mine.take("a")
    path = tmp_path / "a.1.claim"
    os.utime(path, (0, 0))
    mine.beat()
    assert others.take("a") is None
    os.utime(path, (0, 0))
    second = others.take("a")
    assert second.attempt == 2 and not claim.held() and claim.lost and second.held()
    claim.release()  # must not free what is another's
    assert second.held() and mine.take("a") is None
    second.release()
    assert not any(tmp_path.iterdir())


def test_claims_of_an_ended_process_are_removed_unless_another_has_taken_over(tmp_path):
    claims = Claims(tmp_path)
    for name, attempt, pid in (("a", 1, 7), ("b", 1, 7), ("b", 2, 8), ("c", 1, 8)):
        text = json.dumps({"host": "elsewhere", "pid": pid, "token": name})
        (tmp_path / f"{name}.{attempt}.claim").write_text(text)
    assert claims.held_by({("elsewhere", 7)}) == {"a", "b"} and not claims.held_by(set())
    assert claims.release_of({("elsewhere", 7)}) == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "b.1.claim",
        "b.2.claim",
        "c.1.claim",
    ]
    os.utime(tmp_path / "b.2.claim", (0, 0))
    assert claims.release_of({("elsewhere", 7)}) == ["b"]


# --- scheduling in one process


def test_failures_stop_nothing_and_everything_is_said(place):
    items = write_items(place, a="fine", b="fails", c="unreadable", d="fine too")
    rows = run_here(place, items)
    assert {name: row["state"] for name, row in rows.items()} == {
        "a": "done",
        "b": "failed",
        "c": "failed",
        "d": "done",
    }
    out = place / "out"
    assert (out / "d" / "result.txt").read_text() == "fine too 1"
    assert "no splats left" in rows["b"]["error"] and "cannot be read" in rows["c"]["error"]
    log = (out / "logs" / "b.log").read_text()
    assert "RuntimeError: no splats left" in log and "Traceback" in log
    assert not (out / "b").exists() and not (out / "c").exists()
    assert nothing_is_left_over(out)
    record = json.loads((out / "a" / "item.json").read_text())
    assert record["scores"] == {"psnr": 4.0} and record["files"] == ["half.txt", "result.txt"]


def test_the_next_item_is_read_and_the_last_written_while_one_is_computed(place):
    """Each step waits until the neighbour's has begun, which only threads beside it can do."""
    items = write_items(place, a="1", b="2", c="3")
    begun = {(step, name): threading.Event() for step in ("prepare", "compute") for name in "abc"}

    class Meeting(batch_stub.StubStages):
        def prepare(self, item, log):
            begun["prepare", item.name].set()
            return "x"

        def compute(self, item, text, folder, log):
            begun["compute", item.name].set()
            following = {"a": "b", "b": "c"}.get(item.name)
            assert following is None or begun["prepare", following].wait(WAIT)
            return text

        def finish(self, item, text, folder, log):
            following = {"a": "b", "b": "c"}.get(item.name)
            assert following is None or begun["compute", following].wait(WAIT)
            return super().finish(item, text, folder, log)

    store, rows = BatchFolder(place / "out"), []
    tell = lambda event, row: rows.append((event, row["state"]))  # noqa: E731
    work(items, store, Meeting(place / "ledger"), since=store.claims.now(), tell=tell)
    assert rows.count(("ended", "done")) == 3


def test_no_more_than_one_item_is_taken_ahead(place):
    items = write_items(place, **{f"i{k}": "x" for k in range(6)})
    taken, most, lock = set(), [0], threading.Lock()

    def tell(event, row):
        with lock:
            (taken.add if event == "took" else taken.discard)(row["name"])
            most[0] = max(most[0], len(taken))

    store = BatchFolder(place / "out")
    stages = batch_stub.StubStages(place / "ledger", seconds=0.05)
    work(items, store, stages, since=store.claims.now(), tell=tell)
    # one ahead, one computed, one waiting for the writer and one written
    assert 2 <= most[0] <= 4 and computed(place) == {f"i{k}": 1 for k in range(6)}


def test_kept_where_input_and_settings_are_equal(place):
    items = write_items(place, a="one", b="two", c="three")
    run_here(place, items)
    store = BatchFolder(place / "out")
    same, other = settings_hash({"setting": 1}), settings_hash({"setting": 2})
    assert all(store.kept(item, same) for item in items)
    assert not any(store.kept(item, other) for item in items)
    os.utime(items[0].source, (1, 1))  # a new time, the same content
    items[1].source.write_text("TWO")
    (place / "out" / "c" / "result.txt").unlink()
    assert [store.kept(item, same) for item in items] == [True, False, False]
    rows = run_here(place, items[1:])
    assert rows["b"]["state"] == rows["c"]["state"] == "done"
    assert (place / "out" / "b" / "result.txt").read_text() == "TWO 1"
    assert all(store.kept(item, same) for item in items) and nothing_is_left_over(place / "out")


def test_a_folder_that_is_no_result_is_not_replaced(place):
    items = write_items(place, a="one")
    (place / "out" / "a").mkdir(parents=True)
    (place / "out" / "a" / "mine.txt").write_text("mine")
    rows = run_here(place, items)
    assert rows["a"]["state"] == "failed" and "move it" in rows["a"]["error"]
    assert (place / "out" / "a" / "mine.txt").read_text() == "mine"


def test_fingerprint_sees_names_and_contents_and_trusts_unchanged_times(tmp_path):
    (tmp_path / "orbit").mkdir()
    file = tmp_path / "orbit" / "r_000.png"
    file.write_bytes(b"abc")
    item = Item("orbit", "orbit", tmp_path / "orbit")
    first = fingerprint(item)
    assert fingerprint(item, {**first, "sha256": "trusted"})["sha256"] == "trusted"
    os.utime(file, (1, 1))
    assert fingerprint(item, {**first, "sha256": "trusted"})["sha256"] == first["sha256"]
    file.rename(file.with_name("r_001.png"))
    assert fingerprint(item)["sha256"] != first["sha256"]


# --- processes


def spawn(place, **settings):
    """A whole run in a process group of its own."""
    arguments = (place / "in", place / "out", place / "ledger")
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=batch_stub.run_batch, args=arguments, kwargs=settings)
    process.start()
    return process


def worker_pids(place):
    return {int(path.name.split()[2]) for path in (place / "ledger").iterdir()}


def gone(pid):
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        status = "Z"
    return status == "Z"


def test_two_runs_of_two_workers_share_a_folder_and_do_nothing_twice(place):
    write_items(place, **{f"i{k:02d}": "x" for k in range(24)})
    runs = [spawn(place, seconds=0.03, workers=2) for _ in range(2)]
    for run in runs:
        run.join(WAIT)
        assert run.exitcode == 0
    assert computed(place) == {f"i{k:02d}": 1 for k in range(24)}
    assert len(worker_pids(place)) >= 2
    assert nothing_is_left_over(place / "out")


def test_a_killed_run_leaves_nothing_half_done_and_goes_on(place):
    items = write_items(place, a="x", b="slow", c="x")
    run = spawn(place)
    until(lambda: computed(place)["b"] and (place / "out" / "a").exists())
    victims = worker_pids(place)
    for pid in (*victims, run.pid):
        os.kill(pid, signal.SIGKILL)
    run.join(WAIT)
    until(lambda: all(map(gone, victims)))
    out = place / "out"
    assert not (out / "b").exists() and (out / "a" / "item.json").exists()
    assert any((out / ".batch" / "claims").iterdir())
    (place / "in" / "b.txt").write_text("x")
    store = BatchFolder(out)
    left = [item for item in items if not store.kept(item, settings_hash({"setting": 1}))]
    assert [item.name for item in left] == ["b", "c"]
    rows = run_here(place, left)
    assert {row["state"] for row in rows.values()} == {"done"} and len(rows) == 2
    assert computed(place) == {"a": 1, "b": 2, "c": 1} and nothing_is_left_over(out)


def test_workers_notice_that_their_parent_was_killed(place):
    write_items(place, a="slow")
    run = spawn(place)
    until(lambda: computed(place)["a"])
    (worker,) = worker_pids(place)
    run.kill()
    run.join(WAIT)
    until(lambda: gone(worker))
    assert nothing_is_left_over(place / "out")


def test_an_item_that_kills_its_process_fails_alone(place):
    items = write_items(place, a="x", b="kills", c="x", d="x")
    rows = batch_stub.run_batch(place / "in", place / "out", place / "ledger")
    states = {row["name"]: row["state"] for row in rows}
    assert states.pop("b") == "failed" and len(items) == 4
    assert states == {"c": "done", "d": "done"} | ({"a": "done"} if "a" in states else {})
    assert (place / "out" / "a" / "item.json").exists()
    assert computed(place)["b"] == MAX_ATTEMPTS
    assert nothing_is_left_over(place / "out")


@pytest.mark.parametrize("text", ["slow", "slow deaf"])
def test_an_interrupt_ends_workers_within_two_seconds_and_frees_the_items(place, text):
    write_items(place, a="x", b=text, c="x")
    main = threading.main_thread().ident
    times = []

    def interrupt():
        until(lambda: computed(place)["b"] and (place / "out" / "a").exists())
        times.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        batch_stub.run_batch(place / "in", place / "out", place / "ledger")
    assert time.monotonic() - times[0] < 2.0
    assert all(map(gone, worker_pids(place)))
    assert nothing_is_left_over(place / "out")
    assert not (place / "out" / "b").exists()


# --- the command


def test_kinds_of_items_are_found_out(tmp_path):
    folder, out, masks = tmp_path / "in", tmp_path / "in" / "out", tmp_path / "in" / "masks"
    for inner in ("data", "frames", "empty", "out", "masks/frames"):
        (folder / inner).mkdir(parents=True)
    for name in ("data/transforms.json", "frames/r_0.png", "cup.png", "turn.MP4", "notes.txt"):
        (folder / name).touch()
    for name in ("cup.jpg", "out/old.png", ".hidden.png"):
        (folder / name if "/" in name or name[0] == "." else masks / name).touch()
    items, others = find_items(folder, out, masks)
    assert {item.name: item.kind for item in items} == {
        "cup": "picture",
        "data": "orbit",
        "frames": "orbit",
        "turn": "orbit",
    }
    assert {item.name: item.masks for item in items} == {
        "cup": masks / "cup.jpg",
        "data": None,
        "frames": masks / "frames",
        "turn": None,
    }
    assert sorted(others) == ["empty", "notes.txt"]
    (folder / "CUP.webp").touch()
    with pytest.raises(ValueError, match=r"(?i)cup.png.*cup.webp|cup.webp.*cup.png"):
        find_items(folder, out, masks)
    with pytest.raises(ValueError, match="is one orbit"):
        find_items(folder / "data", out)


def test_each_worker_has_its_gpu_and_its_share_of_the_cores(monkeypatch):
    import torch

    from v3d_core import cli_batch

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cli_batch.os, "cpu_count", lambda: 12)
    monkeypatch.setattr(cli_batch, "chosen_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(cli_batch.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    share = {"OMP_NUM_THREADS": "6"}
    first, second = {"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}
    room = [1, 1]
    monkeypatch.setattr(cli_batch, "workers_of_gpu", lambda index, *_: room[index])
    assert cli_batch.worker_places("auto", None) == [first | share, second | share]
    room[:] = 3, 1  # a large card beside a small one: one after the other, the large one again
    found = cli_batch.worker_places("auto", None)
    assert found == [place | {"OMP_NUM_THREADS": "3"} for place in (first, second, first, first)]
    assert cli_batch.worker_places("auto", 1) == [first]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-x")
    found = [place["CUDA_VISIBLE_DEVICES"] for place in cli_batch.worker_places("auto", 3)]
    assert found == ["5", "GPU-x", "5"]
    with pytest.raises(ValueError, match="--workers is 0"):
        cli_batch.worker_places("auto", 0)


@pytest.mark.parametrize(
    ("card", "machine", "cores", "gpus", "pictures", "workers"),
    [
        (140, 256, 32, 2, True, 3),
        (48, 256, 32, 1, True, 3),
        (23.6, 64, 16, 1, True, 1),
        (23.6, 64, 16, 1, False, 3),
        (24, 64, 16, 1, True, 2),
        (80, 30, 64, 1, True, 2),  # the machine's memory ends first
        (80, 30, 64, 4, False, 2),
        (80, 256, 16, 2, False, 2),  # and here its cores
        (6, 16, 16, 1, False, 2),
        (2, 2, 2, 2, True, 1),
    ],
)
def test_a_gpu_has_as_many_workers_as_memory_and_cores_allow(
    monkeypatch, card, machine, cores, gpus, pictures, workers
):
    from types import SimpleNamespace

    from v3d_core import cli_batch

    properties = SimpleNamespace(total_memory=int(card * 2**30))
    memory = SimpleNamespace(total=machine * 2**30)
    monkeypatch.setattr(cli_batch.torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(cli_batch.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(cli_batch.os, "cpu_count", lambda: cores)
    assert cli_batch.workers_of_gpu(0, gpus, pictures) == workers


def test_no_more_workers_start_than_there_are_items(monkeypatch):
    from v3d_core import cli_batch

    started = []
    monkeypatch.setattr(
        cli_batch, "run_workers", lambda items, store, stages, places, **_: started.append(places)
    )
    workers = cli_batch.LocalWorkers(
        lambda: None, [{"OMP_NUM_THREADS": "1"}, {"A": "1"}, {"B": "1"}]
    )
    for count in (1, 2, 5):
        workers.run([None] * count, None)
    assert [len(places) for places in started] == [1, 2, 3]


def test_every_option_of_the_two_commands_is_there():
    from v3d_core import cli

    parser = cli.build_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    names = {
        name: {text for action in commands.choices[name]._actions for text in action.option_strings}
        for name in ("batch", "reconstruct", "image-to-3d")
    }
    assert names["batch"] == names["reconstruct"] | names["image-to-3d"] | {
        "--workers",
        "--ray-address",
    }


@pytest.mark.slow
def test_two_orbits_and_a_broken_one_from_end_to_end(tmp_path, capsys, demo_orbit_48):
    from v3d_core import cli

    folder, out = tmp_path / "in", tmp_path / "out"
    for name in ("one", "two"):
        shutil.copytree(demo_orbit_48, folder / name)
    (folder / "broken").mkdir()
    (folder / "broken" / "r_000.png").write_bytes(b"no picture")
    command = ["batch", str(folder), "--out", str(out), "--device", "cpu", "--preset", "draft"]
    command += ["--resolution", "48", "--max-splats", "800", "--seconds", "0.3", "--mesh", "none"]
    assert cli.main(command) == 1
    summary = json.loads((out / "batch.json").read_text())
    assert summary["counts"] == {"done": 2, "failed": 1} and summary["kept"] == 0
    assert "3 orbits" in capsys.readouterr().out
    with open(out / "batch.csv", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert "broken" in rows["broken"]["error"] and rows["broken"]["state"] == "failed"
    for name in ("one", "two"):
        assert rows[name]["state"] == "done" and float(rows[name]["psnr"]) > 15
        report = json.loads((out / name / "report.json").read_text())
        assert report["scores"]["psnr"] == float(rows[name]["psnr"])
        there = {p.name for p in (out / name).iterdir() if p.is_file()}
        assert there == {*report["files"], "report.json", "item.json"}
        assert {"splat.ply", "turntable.mp4", "contact_sheet.png"} <= there
    assert nothing_is_left_over(out)

    shutil.rmtree(folder / "broken")
    before = (out / "one" / "item.json").stat()
    assert cli.main(command) == 0
    assert (out / "one" / "item.json").stat().st_mtime_ns == before.st_mtime_ns
    assert json.loads((out / "batch.json").read_text())["kept"] == 2


class ModelOfFrames:
    """Hands out the demo's frames for any picture."""

    def __init__(self, folder):
        import torch

        from v3d_core.formats.views import load_views
        from v3d_core.images import composite

        self.device = torch.device("cpu")
        views = load_views(folder).views
        self.frames = composite(views.images, views.masks)


@pytest.mark.slow
def test_pictures_are_sampled_by_a_model_that_is_loaded_once(
    tiny, demo_orbit_48, tmp_path, monkeypatch
):
    from PIL import Image

    from v3d_core import cli, cli_batch_stages, generate
    from v3d_core.diffusion.orbit import SampledOrbit

    loads = []
    model = ModelOfFrames(demo_orbit_48)
    monkeypatch.setattr(generate.ModelSource, "load", lambda source: loads.append(source) or model)
    monkeypatch.setattr(
        generate,
        "sample_orbit",
        lambda model, image, config, seed, progress: SampledOrbit(model.frames, {"frames": 18}),
    )
    (tmp_path / "in").mkdir()
    for name in ("cup", "pot", "nothing"):
        image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
        if name != "nothing":
            image.paste((200, 40, 30, 255), (8, 6, 32, 36))
        image.save(tmp_path / "in" / f"{name}.png")
    common = ["batch", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--device", "cpu"]
    common += ["--model", str(tiny.v3d), "--companion", str(tiny.svd), "--mesh", "none"]
    common += ["--preset", "draft", "--resolution", "48", "--seconds", "0.3", "--align", "off"]
    store, items = BatchFolder(tmp_path / "out"), find_items(tmp_path / "in", tmp_path / "out")[0]

    def run(items, *more):
        stages = cli_batch_stages.FromOptions(
            cli.build_parser().parse_args([*common, *more]), pictures=True
        )
        rows = {}
        work(
            items,
            store,
            stages,
            since=store.claims.now(),
            tell=lambda event, row: rows.update({row["name"]: row}) if event == "ended" else None,
        )
        return stages, rows

    stages, rows = run(items, "--max-splats", "800")
    assert {name: row["state"] for name, row in rows.items()} == {
        "cup": "done",
        "pot": "done",
        "nothing": "failed",
    }
    assert "empty mask" in rows["nothing"]["error"] and len(loads) == 1
    cup = next(item for item in items if item.name == "cup")
    assert store.kept(cup, settings_hash(stages.settings(cup)))
    orbit = tmp_path / "out" / "cup" / "orbit" / "orbit.json"
    before = orbit.read_text()
    assert json.loads(before)["picture"] == "cup.png"

    loads.clear()
    stages, rows = run([cup], "--max-splats", "700")  # another fit of the same orbit
    assert rows["cup"]["state"] == "done" and not loads and orbit.read_text() == before
    _, rows = run([cup], "--max-splats", "700", "--seed", "5")
    assert rows["cup"]["state"] == "done" and len(loads) == 1 and orbit.read_text() != before
