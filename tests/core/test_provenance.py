"""docs/provenance.md names every numeric default of the library with its value and its source."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from types import ModuleType

import v3d_core
from v3d_core.neus.config import GPU_NEUS_PRESETS, NEUS_PRESETS
from v3d_core.splats.config import GPU_SPLAT_PRESETS, SPLAT_PRESETS

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| `([^`]+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def text_of(value: object) -> str | None:
    """A number, or a flat tuple of them, as the document writes it; None for anything else."""
    if isinstance(value, tuple) and value:
        parts = [text_of(part) for part in value if not isinstance(part, tuple)]
        return ", ".join(map(str, parts)) if len(parts) == len(value) and all(parts) else None
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{value:.6g}"
    return None


def constant_names(module: ModuleType) -> list[str]:
    """Public upper-case names that a module itself assigns, in their order."""
    names: list[str] = []
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in filter(None, targets):
            names += [leaf.id for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]
    return [name for name in names if name.isupper() and not name.startswith("_")]


def numeric_defaults() -> dict[str, str]:
    """Dataclass fields, constants and public functions' parameters, by name."""
    found: dict[str, object] = {}
    for info in pkgutil.walk_packages(v3d_core.__path__, "v3d_core."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        short = info.name.removeprefix("v3d_core.")
        found |= {f"{short}.{name}": getattr(module, name) for name in constant_names(module)}
        for name, member in vars(module).items():
            if getattr(member, "__module__", None) != info.name or name.startswith("_"):
                continue
            if isinstance(member, type) and dataclasses.is_dataclass(member):
                for field in dataclasses.fields(member):
                    found[f"{short}.{name}.{field.name}"] = field.default
            elif inspect.isfunction(member):
                for parameter in inspect.signature(member).parameters.values():
                    found[f"{short}.{name}({parameter.name})"] = parameter.default
    tables = {
        "SPLAT_PRESETS": SPLAT_PRESETS,
        "GPU_SPLAT_PRESETS": GPU_SPLAT_PRESETS,
        "NEUS_PRESETS": NEUS_PRESETS,
        "GPU_NEUS_PRESETS": GPU_NEUS_PRESETS,
    }
    for title, presets in tables.items():
        for preset, config in presets.items():
            for field in dataclasses.fields(config):
                value = getattr(config, field.name)
                if value != field.default:
                    found[f"{title}[{preset}].{field.name}"] = value
    texts = {name: text_of(value) for name, value in found.items()}
    return {name: text for name, text in texts.items() if text is not None}


def differences(document: str, expected: dict[str, str]) -> list[str]:
    rows = {name: value.strip() for name, value, _ in ROW.findall(document)}
    return [
        *(f"add: | `{n}` | {v} | its source |" for n, v in expected.items() if n not in rows),
        *(f"remove: `{name}`" for name in rows if name not in expected),
        *(
            f"`{n}` is {v}, the document says {rows[n]}"
            for n, v in expected.items()
            if rows.get(n, v) != v
        ),
    ]


def test_document_names_every_numeric_default_with_its_value():
    document = (ROOT / "docs" / "provenance.md").read_text(encoding="utf-8")
    assert differences(document, numeric_defaults()) == []


def test_every_row_has_a_source():
    document = (ROOT / "docs" / "provenance.md").read_text(encoding="utf-8")
    rows = ROW.findall(document)
    assert rows and all(len(source.strip()) >= 3 for _, _, source in rows)


def test_changed_missing_and_stale_rows_are_told_apart():
    document = "| `a.B.c` | 1 | paper |\n| `a.B.old` | 2 | paper |\n"
    assert differences(document, {"a.B.c": "3", "a.B.new": "4"}) == [
        "add: | `a.B.new` | 4 | its source |",
        "remove: `a.B.old`",
        "`a.B.c` is 3, the document says 1",
    ]
