"""Batches on a Ray cluster: two nodes on this machine, deaths, stops, and what cannot be."""

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

TESTS = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TESTS))
import batch_stub  # noqa: E402

from v3d_core import batch_ray_cluster, cli, cli_batch  # noqa: E402
from v3d_core.batch_ray_cluster import RayPlaces, connected, ray_places  # noqa: E402
from v3d_core.batch_ray_worker import RayOrder, RayWorker  # noqa: E402
from v3d_core.batch_store import BatchFolder, Item  # noqa: E402
from v3d_core.cli_shared import EXIT_BAD_INPUT, EXIT_CANCELLED, EXIT_FAILURE  # noqa: E402

WAIT = 120.0  # s, for what takes under ten on an idle machine
STALE_SECONDS = 5.0
NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed; pip install ray"
)


def until(condition):
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


# Makes workers of different nodes take each other for those of different machines, so that what a
# dead one holds is known by its missing heartbeat alone: each is named by the node's main process.
OWN_HOST = "import os, platform\nplatform.node = lambda node=os.getppid(): f'node-{node}'\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two nodes with one CPU each; killed ones are missed in seconds."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    hosts = tmp_path_factory.mktemp("hosts")
    (hosts / "sitecustomize.py").write_text(OWN_HOST)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (hosts, TESTS, TESTS.parent))))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        config = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}
        cluster = cluster_utils.Cluster()
        try:
            cluster.add_node(**NODE, _system_config=config)
            cluster.second = cluster.add_node(**NODE)
            yield cluster
        finally:
            cluster.shutdown()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Folders of inputs and the ledger, and stages that take no time."""
    for name in ("in", "ledger"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(cli_batch, "FromOptions", batch_stub.ClusterStages)
    monkeypatch.setattr(cli_batch, "BatchFolder", partial(BatchFolder, stale_seconds=STALE_SECONDS))
    return tmp_path


def write_items(place, **texts):
    for name, text in texts.items():
        (place / "in" / f"{name}.png").write_text(text)


def run(place, cluster, *more):
    """Exit code of the command."""
    command = ["batch", str(place / "in"), "--out", str(place / "out"), "--seed", "1"]
    return cli.main([*command, "--ray-address", cluster.address, *more])


def table(place):
    with open(place / "out" / "batch.csv", newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def pids(place, step="compute"):
    """Of the processes that began a step, with the items."""
    parts = [path.name.split() for path in (place / "ledger").iterdir()]
    return {(part[0], int(part[2])) for part in parts if part[1] == step}


def workers(place, step="compute"):
    return {pid for _, pid in pids(place, step)}


def nothing_is_left_over(place):
    inner = place / "out" / ".batch"
    return not any(any((inner / name).iterdir()) for name in ("claims", "writing")) and not any(
        inner.glob("shared.*")
    )


def kill_node(node):
    """All processes of a node, as when its machine loses power; their ids."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    victims = [raylet, *raylet.children(recursive=True)]
    for victim in victims:
        victim.send_signal(signal.SIGKILL)
    return {victim.pid for victim in victims}


# --- on a cluster


@needs_ray
def test_two_nodes_share_a_folder_do_nothing_twice_and_keep_what_is_there(place, cluster):
    names = [f"i{k:02d}" for k in range(12)]
    write_items(place, **dict.fromkeys(names, "x"), **dict.fromkeys(("g1", "g2"), "gate"))
    opener = threading.Thread(  # when both nodes are at work
        target=lambda: (
            until(lambda: len(workers(place)) == 2),
            (place / "gate-is-open").touch(),
        )
    )
    opener.start()
    assert run(place, cluster) == 0
    opener.join()
    computed = [name for name, _ in pids(place)]
    assert sorted(computed) == ["g1", "g2", *names]
    assert {row["state"] for row in table(place).values()} == {"done"}
    assert nothing_is_left_over(place)
    before = (place / "out" / "i00" / "item.json").stat().st_mtime_ns
    assert run(place, cluster) == 0
    assert (place / "out" / "i00" / "item.json").stat().st_mtime_ns == before
    assert json.loads((place / "out" / "batch.json").read_text())["kept"] == 14
    write_items(place, i03="fails")
    assert run(place, cluster) == 1
    assert table(place)["i03"]["state"] == "failed" and len(pids(place)) == 15


@needs_ray
def test_a_node_killed_in_the_middle_loses_nothing_and_does_nothing_twice(place, cluster):
    """A third node, started after the death, gets the lost worker's successor."""
    names = [f"i{k:02d}" for k in range(10)]
    write_items(place, **dict.fromkeys(names, "gate"))
    codes = []
    command = threading.Thread(target=lambda: codes.append(run(place, cluster)), daemon=True)
    command.start()  # for only the main thread can add a node
    until(lambda: len(workers(place)) == 2)
    killed = kill_node(cluster.second)
    cluster.second = cluster.add_node(**NODE)
    until(lambda: len(workers(place, "prepare")) == 3)
    (place / "gate-is-open").touch()
    command.join(WAIT)
    assert codes == [0]
    lost = {name for name, pid in pids(place) if pid in killed}
    assert len(lost) == 1  # computed by the dead one, and by somebody else again
    begun = {name for name, pid in pids(place, "prepare") if pid in killed}
    done = {}
    for name in names:
        log = (place / "out" / "logs" / f"{name}.log").read_text()
        done[name] = log.count(" done after ")
        assert ("attempt 2" in log) == (name in begun)
        assert (place / "out" / name / "result.txt").read_text() == "gate 1"
    assert done == dict.fromkeys(names, 1)
    rows = table(place)
    assert sorted(rows) == names and {row["state"] for row in rows.values()} == {"done"}
    assert json.loads((place / "out" / "batch.json").read_text())["counts"] == {"done": 10}
    assert len(workers(place, "finish")) == 2 and not workers(place, "finish") & killed
    assert nothing_is_left_over(place)


@needs_ray
def test_an_item_that_kills_its_worker_fails_alone(place, cluster):
    write_items(place, a="x", b="kills", c="x")
    assert run(place, cluster, "--workers", "1") == 1
    rows = table(place)
    assert {name: row["state"] for name, row in rows.items()} == {
        "a": "done",
        "b": "failed",
        "c": "done",
    }
    assert "3 processes died" in rows["b"]["error"] and nothing_is_left_over(place)


@needs_ray
@pytest.mark.parametrize("text", ["slow", "slow deaf"])
def test_an_interrupt_ends_the_workers_and_frees_the_items(place, cluster, text):
    write_items(place, a="x", b=text)
    main, times = threading.main_thread().ident, []

    def interrupt():
        until(lambda: "b" in {name for name, _ in pids(place)} and (place / "out" / "a").exists())
        times.append(time.monotonic())
        signal.pthread_kill(main, signal.SIGINT)

    threading.Thread(target=interrupt).start()
    assert run(place, cluster) == EXIT_CANCELLED
    assert time.monotonic() - times[0] < 10.0  # 2 s and the end of the connection
    assert nothing_is_left_over(place) and not (place / "out" / "b").exists()
    until(lambda: not any(map(psutil.pid_exists, workers(place))))


@needs_ray
def test_errors_of_the_options_are_those_of_the_command(place, cluster, capsys):
    write_items(place, a="x")
    assert run(place, cluster, "--seed", "-1") == EXIT_BAD_INPUT
    assert capsys.readouterr().err.splitlines()[-1] == "v3d: a negative seed"
    assert run(place, cluster, "--device", "cuda") == EXIT_BAD_INPUT
    assert "offers no GPU, 2 CPU on 2 nodes" in capsys.readouterr().err


@needs_ray
def test_without_room_it_says_what_was_asked_for_and_what_is_there(
    place, cluster, capsys, monkeypatch
):
    write_items(place, a="x")
    monkeypatch.setattr(batch_ray_cluster, "ROOM_SECONDS", 2.0)
    monkeypatch.setattr(cli_batch, "ray_places", lambda *_: RayPlaces(1, cpus=64, gpus=0))
    assert run(place, cluster) == EXIT_FAILURE
    error = capsys.readouterr().err
    assert "each asks for 64 CPU and 0 GPU; the cluster has 2 CPU and 0 GPU" in error
    assert nothing_is_left_over(place)


@needs_ray
@pytest.mark.parametrize(
    ("address", "words"), [("127.0.0.1:1", "no answer within 3 s"), ("nonsense", "nonsense")]
)
def test_a_wrong_address_is_said_in_bounded_time(tmp_path, address, words):
    """In a process of its own, in which Ray may go on trying."""
    (tmp_path / "a.png").write_text("x")
    code = (
        "import sys\nfrom v3d_core import batch_ray_cluster, cli\n"
        "batch_ray_cluster.CONNECT_SECONDS = 3.0\nsys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "batch", str(tmp_path), "--out", str(tmp_path / "out")]
    ended = subprocess.run(
        [*command, "--ray-address", address], cwd=TESTS.parent, capture_output=True, timeout=WAIT
    )
    assert ended.returncode in (EXIT_FAILURE, EXIT_BAD_INPUT)
    assert f"--ray-address {address}" in ended.stderr.decode()
    assert words in ended.stderr.decode() and not (tmp_path / "out").exists()


# --- without Ray


def test_without_ray_its_pip_line_is_named(place, capsys, monkeypatch):
    write_items(place, a="x")
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = ["batch", str(place / "in"), "--out", str(place / "out")]
    assert cli.main([*arguments, "--ray-address", "auto"]) == EXIT_FAILURE
    error = capsys.readouterr().err
    assert "ray (batches on a cluster)" in error and "pip install ray" in error
    assert not (place / "out").exists()


class SilentRay:
    """Connects when the event is set."""

    def __init__(self):
        self.event = threading.Event()

    def init(self, **_):
        self.event.wait(WAIT)


def test_a_connection_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(batch_ray_cluster, "CONNECT_SECONDS", 0.1)
    ray = SilentRay()
    with pytest.raises(ConnectionError, match=r"no answer within 0\.1 s"):
        with connected(ray, "far:1"):
            pass
    ray.event.set()


def nodes(*resources, dead=0):
    found = [{"Alive": True, "Resources": {"CPU": c, "GPU": g}} for c, g in resources]
    return found + [{"Alive": False, "Resources": {"CPU": 99, "GPU": 9}}] * dead


@pytest.mark.parametrize(
    ("found", "device", "count", "expected"),
    [
        (nodes((8, 0), (8, 0), dead=1), "auto", None, RayPlaces(2, 8, 0)),
        (nodes((8, 0), (4, 0)), "auto", None, RayPlaces(2, 4, 0)),
        (nodes((8, 0), (4, 0)), "auto", 3, RayPlaces(3, 4, 0)),
        (nodes((0, 0), (4, 0)), "auto", None, RayPlaces(1, 4, 0)),
        (nodes((16, 4), (16, 2)), "auto", None, RayPlaces(6, 4, 1)),
        (nodes((64, 0), (16, 2)), "cuda", None, RayPlaces(2, 8, 1)),
        (nodes((16, 2)), "auto", 3, RayPlaces(3, 5, 0.5)),
        (nodes((16, 2)), "cpu", None, RayPlaces(1, 16, 0)),
        (nodes((1, 0)), "auto", 5, RayPlaces(5, 1, 0)),
    ],
)
def test_workers_have_the_most_cores_with_which_all_have_room(found, device, count, expected):
    assert ray_places(found, device, count) == expected


def test_wrong_numbers_of_workers_and_missing_devices_are_refused():
    with pytest.raises(ValueError, match="--workers is 0"):
        ray_places(nodes((8, 0)), "auto", 0)
    with pytest.raises(ValueError, match="no GPU, 12 CPU on 2 nodes"):
        ray_places(nodes((8, 0), (4, 0), dead=1), "cuda", None)


def order(tmp_path, **changes):
    mark, source = tmp_path / "mark", tmp_path / "a.txt"
    mark.touch()
    source.write_text("x")
    (tmp_path / "ledger").mkdir()
    fields = {
        "items": (Item("a", "picture", source),),
        "out": tmp_path / "out",
        "stale_seconds": STALE_SECONDS,
        "make_stages": partial(batch_stub.StubStages, tmp_path / "ledger"),
        "since": 0.0,
        "folder": os.getcwd(),
        "mark": mark,
    }
    return RayOrder(**{**fields, **changes})


def test_a_machine_that_does_not_see_the_folder_or_has_another_version_does_nothing(tmp_path):
    unseen = order(tmp_path, mark=tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"does not see .*elsewhere.* all machines"):
        RayWorker().begin(unseen)
    (tmp_path / "ledger").rmdir()
    other = order(tmp_path, version="0.0.1")
    with pytest.raises(RuntimeError, match=r"the driver 0\.0\.1; install one version"):
        RayWorker().begin(other)
    assert not (tmp_path / "out").exists()


def test_a_worker_tells_its_news_and_begins_only_once(tmp_path):
    worker, given, told = RayWorker(), order(tmp_path), []
    for _ in range(2):
        assert worker.begin(given) == []
    until(lambda: told.extend(worker.news()) or ("over", {}) in told)
    assert [(event, row.get("state")) for event, row in told] == [
        ("took", "working"),
        ("ended", "done"),
        ("over", None),
    ]
    assert worker.news() == worker.stop() == [("over", {})]  # again, for answers get lost
    assert worker.kept(given) == [("kept", {"names": ["a"]}), ("over", {})]
