"""`v3d` and `python -m v3d_core`."""

import io
import os
import sys


def main() -> int:
    """Set what torch reads only while it is loaded, then run the command line."""
    # Idle OpenMP threads spin by default and take the cores from Warp's threads: the draft fit of
    # the demo took 186 s on a busy 2-core machine, and 20 s with threads that sleep.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # a terminal that lacks a letter of a file's name shall not end the work
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    from .cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
