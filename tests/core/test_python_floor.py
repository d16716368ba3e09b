"""The oldest Python of pyproject.toml can read what is shipped, whichever Python runs the tests."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOOR = (3, 10)
SHIPPED = [
    ROOT / "__init__.py",
    *(p for n in ("nodes", "v3d_core") for p in (ROOT / n).rglob("*.py")),
]

# Of the standard library, what Python 3.11 to 3.13 added and shipped code could be tempted by.
NEWER = {
    "copy": {"replace"},
    "datetime": {"UTC"},
    "enum": {"StrEnum", "ReprEnum", "verify", "EnumCheck", "member", "nonmember"},
    "hashlib": {"file_digest"},
    "itertools": {"batched"},
    "math": {"cbrt", "exp2", "sumprod", "fma"},
    "operator": {"call"},
    "pathlib": {"UnsupportedOperation"},
    "typing": {"Self", "assert_never", "assert_type", "Never", "LiteralString", "Required"}
    | {"NotRequired", "Unpack", "TypeVarTuple", "override", "reveal_type", "dataclass_transform"}
    | {"TypeIs", "ReadOnly", "NoDefault", "get_overloads"},
    "warnings": {"deprecated"},
}
NEWER_MODULES = {"tomllib", "wsgiref.types", "_colorize"}
NEWER_BUILTINS = {"ExceptionGroup", "BaseExceptionGroup", "PythonFinalizationError"}


def too_new(source: str) -> list[str]:
    """What in a module Python 3.10 would refuse, line and name."""
    try:
        tree = ast.parse(source, feature_version=FLOOR)
    except SyntaxError as error:
        return [f"{error.lineno}: {error.msg}"]
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and not node.level:
            added = NEWER.get(node.module or "", set())
            names = [alias.name for alias in node.names if alias.name in added]
            names += [node.module] if node.module in NEWER_MODULES else []
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name in NEWER_MODULES]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = [node.attr] if node.attr in NEWER.get(node.value.id, set()) else []
        elif isinstance(node, ast.Name) and node.id in NEWER_BUILTINS:
            names = [node.id]
        elif isinstance(node, ast.ClassDef) and len(node.bases) > 1:
            # a NamedTuple may have further bases since 3.11 only
            bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
            names = [node.name] if bases & {"NamedTuple", "TypedDict"} else []
        found += [f"{node.lineno}: {name}" for name in names]
    return found


def test_shipped_code_is_readable_by_the_oldest_python():
    assert len(SHIPPED) > 100
    found = {str(p.relative_to(ROOT)): too_new(p.read_text(encoding="utf-8")) for p in SHIPPED}
    assert not {path: names for path, names in found.items() if names}


def test_the_floor_is_the_one_of_the_metadata():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert 'requires-python = ">={}.{}"'.format(*FLOOR) in text
    assert sys.version_info[:2] >= FLOOR


@pytest.mark.parametrize(
    "source",
    [
        "class A(NamedTuple, Generic[T]):\n    x: T",
        "class A(typing.TypedDict, Generic[T]):\n    x: T",
        "from typing import Self",
        "import tomllib",
        "import itertools\nitertools.batched([], 2)",
        "try:\n    f()\nexcept* ValueError:\n    pass",
        "raise ExceptionGroup('a', [])",
        "import datetime\ndatetime.UTC",
    ],
)
def test_a_planted_novelty_is_found(source):
    assert len(too_new(source)) == 1


def test_what_python_3_10_has_is_lawful():
    source = "class A(NamedTuple):\n    x: int\nclass B(Base, Generic[T]):\n    pass\n"
    assert not too_new(source + "match 1:\n    case 1:\n        pass\n")
