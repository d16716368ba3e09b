"""An evaluation's record as Markdown tables and as one page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from html import escape
from typing import Any

from .report import source_line

# key of the figures, title, form
PICTURES = (
    ("psnr", "PSNR, dB", "{:.2f}"),
    ("psnr_object", "on the object", "{:.2f}"),
    ("ssim", "SSIM", "{:.4f}"),
    ("lpips", "LPIPS", "{:.4f}"),
    ("alpha_iou", "alpha IoU", "{:.4f}"),
)
SURFACES = (
    ("fscore_0.5pct", "F 0.5 %", "{:.3f}"),
    ("fscore_0.5pct_seen", "(seen)", "{:.3f}"),
    ("fscore_1pct", "F 1 %", "{:.3f}"),
    ("fscore_1pct_seen", "(seen)", "{:.3f}"),
    ("chamfer_l1", "Chamfer-L1", "{:.4f}"),
    ("chamfer_l1_seen", "(seen)", "{:.4f}"),
    ("normal_consistency", "normals", "{:.3f}"),
    ("normal_consistency_seen", "(seen)", "{:.3f}"),
    ("watertight", "watertight", "{:.0%}"),
    ("parts", "parts", "{:.0f}"),
    ("faces", "faces", "{:,.0f}"),
)
CONSISTENCY = (
    ("consistency", "consistency, dB", "{:.2f}"),
    ("consistency_object", "on the object", "{:.2f}"),
    ("agreement", "agreement, dB", "{:.2f}"),
    ("agreement_object", "on the object", "{:.2f}"),
)
COSTS = (
    ("splats", "splats", "{:,.0f}"),
    ("seconds", "seconds", "{:.2f}"),
    ("peak_mib", "peak MiB", "{:,.0f}"),
)
TABLES = (("Pictures", "psnr", PICTURES), ("Surfaces", "faces", SURFACES))
TABLES += (("Consistency", "consistency", CONSISTENCY),)
GROUPED = 2  # objects from which there is a line of means

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em;
  color: #1c1c1c; background: #fff; }
table { border-collapse: collapse; margin: 1em 0; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: right; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left; }
figure { display: inline-block; margin: 0 1.5em 1.5em 0; vertical-align: top; }
figure img { display: block; max-width: 100%; border: 1px solid #ddd; }
pre { background: #f4f4f4; padding: .7em; overflow-x: auto; }
.failed { color: #a00000; }
"""

Row = tuple[str, str, list[str]]  # object, method, cells
Table = tuple[str, list[str], list[Row]]  # title, heads of the cells, rows


def markdown_tables(record: dict[str, Any]) -> str:
    """The tables of a record and what they mean, as they stand in `docs/numbers.md`."""
    lines: list[str] = []
    for title, heads, rows in _tables(record):
        lines += [f"**{title}**", "", "| object | method | " + " | ".join(heads) + " |"]
        lines.append("|---" * (len(heads) + 2) + "|")
        for name, method, cells in rows:
            lines.append("| " + " | ".join([_cell(name), method, *cells]) + " |")
        lines.append("")
    for kind, title in (("failed", "Failed"), ("skipped", "Left out")):
        if units := _ended(record, kind):
            lines += [f"**{title}**", ""]
            lines += [f"- {_cell(n)}, {method}: {_cell(reason)}" for n, method, reason in units]
            lines.append("")
    return "\n".join([*lines, _explanation(record)])


def markdown_page(record: dict[str, Any]) -> str:
    """evaluation.md: the command, the tables and where they come from."""
    command = record["command"] or "v3d evaluate"
    return (
        f"# Evaluation\n\n```\n{command}\n```\n\n{markdown_tables(record)}\n\n"
        f"{source_line(record)} v3d {record['v3d']}.\n"
    )


def html_page(record: dict[str, Any], pictures: dict[tuple[str, str], bytes]) -> str:
    """evaluation.html: the same with pictures inside the page; it loads nothing and runs nothing.

    Args:
        record: See `evaluation.evaluate`.
        pictures: PNG files by object and method.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Evaluation</title><style>{STYLE}</style></head><body>",
        f"<h1>Evaluation</h1><pre>{escape(record['command'] or 'v3d evaluate')}</pre>",
    ]
    for title, heads, rows in _tables(record):
        parts.append(f"<h2>{title}</h2><table><tr><th>object</th><th>method</th>")
        parts += [f"<th>{escape(head)}</th>" for head in heads]
        parts.append("</tr>")
        for name, method, cells in rows:
            cells = [escape(cell) for cell in (name, method, *cells)]
            parts.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
        parts.append("</table>")
    for kind, title in (("failed", "Failed"), ("skipped", "Left out")):
        if units := _ended(record, kind):
            parts.append(f'<h2>{title}</h2><ul class="{kind}">')
            parts += [f"<li>{escape(f'{n}, {m}: {reason}')}</li>" for n, m, reason in units]
            parts.append("</ul>")
    parts.append(f"<p>{escape(_explanation(record))}</p><p>{escape(source_line(record))}</p>")
    for name in record["results"]["objects"]:
        shown = {method: data for (owner, method), data in pictures.items() if owner == name}
        if not shown:
            continue
        parts.append(f"<h2>{escape(name)}</h2>")
        for method, data in shown.items():
            encoded = base64.b64encode(data).decode("ascii")
            caption = _caption(method)
            parts.append(
                f'<figure><figcaption>{escape(caption)}</figcaption><img alt="{escape(caption)}" '
                f'src="data:image/png;base64,{encoded}"></figure>'
            )
    return "\n".join([*parts, "</body></html>"]) + "\n"


def _caption(method: str) -> str:
    if method == "consistency":
        return "consistency: picture, render of the half that never saw it, difference x 4"
    return f"{method}: truth, render, difference x 4"


def _tables(record: dict[str, Any]) -> Iterator[Table]:
    """The tables that have rows; columns that nobody has are left out."""
    for title, needed, columns in TABLES:
        units = [unit for unit in _ended_well(record) if needed in unit[2]["means"]]
        shown = [c for c in (*columns, *COSTS) if any(c[0] in u["means"] for _, _, u in units)]
        rows = [
            (name, method, [_figure(unit["runs"], key, form) for key, _, form in shown])
            for name, method, unit in units
        ]
        for method in dict.fromkeys(method for _, method, _ in units):
            of_method = [unit["means"] for _, name, unit in units if name == method]
            if len(of_method) >= GROUPED:
                rows.append(
                    ("mean", method, [_mean(of_method, key, form) for key, _, form in shown])
                )
        if rows:
            yield title, [head for _, head, _ in shown], rows


def _figure(runs: list[dict[str, Any]], key: str, form: str) -> str:
    """The mean over runs, with the smallest and the largest where they differ."""
    values = [run[key] for run in runs if key in run]
    if len(values) < len(runs):
        return "-"
    texts = [form.format(x) for x in (sum(values) / len(values), min(values), max(values))]
    return texts[0] if texts[1] == texts[2] else f"{texts[0]} ({texts[1]} to {texts[2]})"


def _mean(rows: list[dict[str, float]], key: str, form: str) -> str:
    if not all(key in row for row in rows):
        return "-"
    return form.format(sum(row[key] for row in rows) / len(rows))


def _ended_well(record: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return _units(record, lambda unit: "means" in unit)


def _ended(record: dict[str, Any], kind: str) -> list[tuple[str, str, str]]:
    units = _units(record, lambda unit: unit["kind"] == kind)
    return [(name, method, unit["reason"]) for name, method, unit in units]


def _units(
    record: dict[str, Any], chosen: Callable[[dict[str, Any]], bool]
) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (name, method, unit)
        for name, entry in record["results"]["objects"].items()
        for method, unit in entry["methods"].items()
        if chosen(unit)
    ]


MEANINGS = {
    "Pictures": "Pictures: held-out views on white, object: pixels of either mask.",
    "Surfaces": "Surfaces: {samples:,} points each, not aligned; thresholds in shares of the true "
    "bounding box's diagonal; seen: recall over what the training views see.",
    "Consistency": "Consistency: PSNR of the splats of the even and of the odd views at the views "
    "that each never saw; agreement: between the two there.",
}


def _explanation(record: dict[str, Any]) -> str:
    """How the figures of the tables that are there were made."""
    results = record["results"]
    units = [unit for _, _, unit in _ended_well(record)]
    engines = {run["engine"] for unit in units for run in unit["runs"] if "engine" in run}
    preset = f"`{results['preset']}` preset" if results["preset"] else "Own settings"
    engine = f", rasteriser {', '.join(sorted(engines))}" if engines else ""
    runs = results["runs"]
    repeats = "one run" if runs == 1 else f"mean of {runs} runs (smallest to largest)"
    peak = "torch's max_memory_allocated" if results["on_cuda"] else "resident, whole process"
    sentences = [
        f"{preset}{engine}; {repeats}, seed {results['seed']}; seconds from views in memory to the "
        f"result, stages before it included; peak: {peak}."
    ]
    for title, _, _ in _tables(record):
        sentences.append(MEANINGS[title].format(samples=results["samples"]))
    lpips = {unit["lpips"] for unit in units if unit["lpips"] not in (None, "alex")}
    if lpips:
        sentences.append(f"No LPIPS: {'; '.join(sorted(lpips))}.")
    return " ".join(sentences)


def _cell(text: str) -> str:
    """Text that cannot leave its place in a table or a list, nor be read as markup."""
    for mark in "\\`*_{}[]<>|#~":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())
