"""Rewrite the generated tables of docs/numbers.md from the results stored in docs/numbers/.

    python benchmarks/update_numbers.py           # rewrite
    python benchmarks/update_numbers.py --check   # exit 1 if the file is not up to date

A table stands between `<!-- numbers: NAME.json -->` and `<!-- end of NAME.json -->`; to add one,
store a result in docs/numbers/, write the two lines where it belongs, and run this program.
Everything else in the file is written by hand and left alone.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import cpu_kernels
import neus_kernels
import rasterizers
import record
import splats
import surfaces
import textures
import training_step

from v3d_core import evaluation_report

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "numbers.md"
RESULTS = ROOT / "docs" / "numbers"
TABLES = {
    "cpu_kernels": cpu_kernels.markdown,
    "evaluate": evaluation_report.markdown_tables,
    "neus_kernels": neus_kernels.markdown,
    "rasterizers": rasterizers.markdown,
    "splats": splats.markdown,
    "surfaces": surfaces.markdown,
    "textures": textures.markdown,
    "training_step": training_step.markdown,
}
BLOCK = re.compile(
    r"(?P<begin><!-- numbers: (?P<name>[\w-]+\.json) -->\n).*?(?P<end><!-- end of (?P=name) -->)",
    re.S,
)
MARK = re.compile(r"<!-- (?:numbers:|end of) ([\w-]+\.json) -->")


def section(stored: dict[str, Any]) -> str:
    """Command, tables and source of one stored result."""
    table = TABLES[stored["benchmark"]](stored)
    return f"```\n{stored['command']}\n```\n\n{table}\n\n{record.source_line(stored)}\n"


def rewritten(document: str, results: Path) -> str:
    """The document with every generated block made anew.

    Raises:
        ValueError: A block without a result, a result without a block, or a lone mark.
    """
    blocks = [match["name"] for match in BLOCK.finditer(document)]
    stored = {path.name for path in results.glob("*.json")}
    if len(blocks) != len(set(blocks)) or len(MARK.findall(document)) != 2 * len(blocks):
        raise ValueError("a mark without its partner, or two blocks of one name")
    if set(blocks) != stored:
        raise ValueError(
            f"blocks without a result: {sorted(set(blocks) - stored)}; "
            f"results without a block: {sorted(stored - set(blocks))}"
        )

    def filled(match: re.Match[str]) -> str:
        text = (results / match["name"]).read_text(encoding="utf-8")
        return match["begin"] + section(json.loads(text)) + match["end"]

    return BLOCK.sub(filled, document)


def main() -> None:
    """Rewrite or check the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    document = DOCUMENT.read_text(encoding="utf-8")
    fresh = rewritten(document, RESULTS)
    if options.check and fresh != document:
        raise SystemExit(
            "docs/numbers.md is not up to date; run python benchmarks/update_numbers.py"
        )
    if not options.check:
        DOCUMENT.write_text(fresh, encoding="utf-8")


if __name__ == "__main__":
    main()
