"""Work of a batch that takes no time, in a module that spawned processes can import."""

import os
import time
from functools import partial
from pathlib import Path

from v3d_core import batch
from v3d_core.batch_store import BatchFolder, Item, settings_hash
from v3d_core.batch_workers import run_workers


class StubStages:
    """Copies each item's text; words in it make it fail, wait, or kill its process.

    Every computation is noted in `ledger` by a file of its own.
    """

    def __init__(self, ledger, seconds=0.0, setting=1):
        self.ledger, self.seconds, self.setting = Path(ledger), seconds, setting

    def settings(self, item):
        return {"setting": self.setting}

    def note(self, step, item):
        (self.ledger / f"{item.name} {step} {os.getpid()} {time.monotonic_ns()}").touch()

    def prepare(self, item, log):
        self.note("prepare", item)
        text = item.source.read_text()
        if "unreadable" in text:
            raise ValueError(f"{item.source}: cannot be read")
        return text

    def compute(self, item, text, folder, log):
        self.note("compute", item)
        (folder / "half.txt").write_text("half")
        if "fails" in text:
            raise RuntimeError("no splats left")
        if "kills" in text:
            os._exit(9)
        gate = self.ledger.parent / "gate-is-open"
        with log.stage("compute") as progress:
            end = time.monotonic() + (60 if "slow" in text else self.seconds)
            while time.monotonic() < end or ("gate" in text and not gate.exists()):
                if "deaf" not in text:
                    progress(1, 2)
                time.sleep(0.01)
        return text

    def finish(self, item, text, folder, log):
        (folder / "result.txt").write_text(f"{text} {self.setting}")
        self.note("finish", item)
        return {"scores": {"psnr": float(len(text))}}


def run_batch(folder, out, ledger, seconds=0.0, workers=1, stale_seconds=180.0, setting=1):
    """A whole run on a folder of text files; the rows of what ended in it."""
    store = BatchFolder(Path(out), stale_seconds)
    items = [Item(path.stem, "picture", path) for path in sorted(Path(folder).glob("*.txt"))]
    since = store.claims.now()  # before the look at what is there, so that nothing is missed
    settings = settings_hash({"setting": setting})
    rows = []
    run_workers(
        [item for item in items if not store.kept(item, settings)],
        store,
        partial(StubStages, ledger, seconds, setting),
        [{} for _ in range(workers)],
        since=since,
        tell=lambda event, row: rows.append(row) if event == "ended" else None,
    )
    return rows


class ClusterStages(StubStages):
    """Instead of `FromOptions`; hearts beat more often, so that a missing beat tells sooner."""

    def __init__(self, options, pictures):
        if options.seed < 0:
            raise ValueError("a negative seed")
        batch.BEAT_SECONDS = 0.5
        super().__init__(options.out.parent / "ledger", setting=options.seed)
