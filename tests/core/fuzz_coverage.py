"""Coverage-guided fuzzing of the readers of `test_fuzz.py` with atheris, by hand.

    pip install atheris
    python tests/core/fuzz_coverage.py glb --seconds 60
    python tests/core/fuzz_coverage.py all --seconds 60

libFuzzer changes the valid file of a kind, and keeps what reaches lines of ours that no input
reached before. A reader may read or refuse; any other error, more than 20 s for one input, or 4 GB
of memory ends the run with a code that is not 0, and the input is kept in the current folder.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE), str(HERE.parent), str(HERE.parents[1])]

with atheris.instrument_imports(include=["v3d_core"]):
    from test_fuzz import KINDS, REFUSALS, write_originals

LIMITS = ("-timeout=20", "-rss_limit_mb=4096", "-max_len=65536", "-print_final_stats=1")


def fuzz(kind: str, seconds: int) -> None:
    """Fuzz one reader; libFuzzer ends the process."""
    folder = Path(tempfile.mkdtemp())
    original, read = write_originals(folder)[kind]
    corpus = folder / "corpus"
    corpus.mkdir()
    (corpus / "valid").write_bytes(original.read_bytes())

    def one(data: bytes) -> None:
        original.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read(original)
        except REFUSALS:
            pass

    atheris.Setup([sys.argv[0], *LIMITS, f"-max_total_time={seconds}", str(corpus)], one)
    atheris.Fuzz()


def main() -> None:
    """One kind in this process, or all in processes of their own, with a line for each."""
    parser = argparse.ArgumentParser(description="Coverage-guided fuzzing of the file readers.")
    parser.add_argument("kind", choices=(*KINDS, "all"))
    parser.add_argument("--seconds", type=int, default=60, help="for each kind; %(default)s")
    options = parser.parse_args()
    if options.kind != "all":
        fuzz(options.kind, options.seconds)
    worst = 0
    for kind in KINDS:
        command = [sys.executable, __file__, kind, "--seconds", str(options.seconds)]
        done = subprocess.run(command, capture_output=True, text=True)
        runs = re.findall(r"number_of_executed_units: (\d+)", done.stderr)
        lines = re.findall(r"cov: (\d+)", done.stderr)
        found = f"{runs[-1] if runs else '?'} inputs, coverage {lines[0]} to {lines[-1]}"
        sys.stdout.write(f"{kind}: code {done.returncode}, {found}\n")
        if done.returncode:
            sys.stdout.write(done.stderr[-3000:] + "\n")
        sys.stdout.flush()
        worst = max(worst, done.returncode)
    sys.exit(worst)


if __name__ == "__main__":
    main()
