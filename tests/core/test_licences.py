"""docs/licences.md lists every direct dependency, and none asks for our code in return."""

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from v3d_core.backends import OPTIONAL_PACKAGES

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11")

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \|", re.MULTILINE)
# licences that would ask for the source of what imports them; LGPL and MPL do not
STRONG = re.compile(r"(?<!L)\b(?:A?GPL|GNU (?:Affero )?General Public)", re.IGNORECASE)
TOOLS = {
    "pytest",
    "pytest-xdist",
    "hypothesis",
    "plyfile",
    "ruff",
    "pyright",
}  # of the dev extra: nothing ships


def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def direct():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        lines += extra
    return {plain(Requirement(line).name) for line in lines} - TOOLS


def licence_of(distribution):
    metadata = distribution.metadata
    classifiers = [c for c in metadata.get_all("Classifier", []) if c.startswith("License")]
    return (
        metadata.get("License-Expression")
        or "; ".join(classifiers)
        or metadata.get("License")
        or ""
    )


def closure(names):
    """Installed distributions that a set of names needs, extras aside."""
    found, todo = {}, list(names)
    while todo:
        name = plain(todo.pop())
        if name in found:
            continue
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        for line in found[name].requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                todo.append(needed.name)
    return found


def test_every_direct_and_optional_dependency_has_a_row():
    rows = {name for name, _ in ROW.findall((ROOT / "docs/licences.md").read_text("utf-8"))}
    optional = {
        plain(name) for package in OPTIONAL_PACKAGES.values() for name in package.install.split()
    }
    assert (direct() | optional) - {plain(row) for row in rows} == set()


def test_nothing_installed_asks_for_our_source():
    needed = closure(direct())
    assert {"numpy", "networkx", "trimesh"} <= set(needed)  # the walk goes beyond the first level
    licences = {name: licence_of(d) for name, d in needed.items()}
    assert {n: text[:80] for n, text in licences.items() if STRONG.search(text[:300])} == {}


def test_the_pattern_knows_strong_from_weak():
    assert STRONG.search("GPL-3.0-or-later") and STRONG.search("AGPLv3")
    assert STRONG.search("GNU General Public License v3 (GPLv3)")
    assert not STRONG.search("LGPL-2.1-or-later") and not STRONG.search("MPL-2.0 AND MIT")
    assert not STRONG.search("License :: OSI Approved :: GNU Lesser General Public License")
