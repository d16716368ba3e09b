"""A default that changes after a release stands in the changelog, by its name.

`python tests/core/test_changed_defaults.py > tests/core/released_defaults.json` renews the list;
only a release does that (docs/releasing.md).
"""

import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.core.test_provenance import numeric_defaults  # noqa: E402

RELEASED = HERE / "released_defaults.json"


def unnamed_changes(released: dict[str, str], now: dict[str, str], changelog: str) -> list[str]:
    """Released defaults that have another value or are gone and that the newest section lacks."""
    newest = re.split(r"^## ", changelog, maxsplit=2, flags=re.MULTILINE)[1]
    return [
        f"{name}: {value} -> {now.get(name, 'gone')}; name `{name}` in CHANGELOG.md's newest section"
        for name, value in released.items()
        if now.get(name) != value and f"`{name}`" not in newest
    ]


def test_changed_defaults_are_in_the_changelog():
    released = json.loads(RELEASED.read_text(encoding="utf-8"))
    assert len(released) > 300
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert unnamed_changes(released, numeric_defaults(), changelog) == []


def test_a_planted_change_is_found_until_it_is_named():
    released, changed = {"a.B": "1", "a.C": "2"}, {"a.B": "1", "a.C": "3", "a.D": "new"}
    old = "# Log\n\n## [0.2]\n- Nothing.\n\n## [0.1]\n- `a.C` began as 2.\n"
    assert [line.split(":")[0] for line in unnamed_changes(released, changed, old)] == ["a.C"]
    assert unnamed_changes(released, {"a.C": "2"}, old)[0].startswith("a.B: 1 -> gone")
    assert unnamed_changes(released, changed, old.replace("Nothing", "`a.C` is 3")) == []


if __name__ == "__main__":
    json.dump(numeric_defaults(), sys.stdout, indent=0, sort_keys=True)
    sys.stdout.write("\n")
