"""docs/numbers.md: its generated tables are those of the stored results, and refuse what is not."""

import importlib
import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def numbers():
    """The program that writes the tables, imported as if it were run."""
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("update_numbers")
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def stored():
    """A result of both benchmarks' common shape, with an engine that failed."""
    return {
        "benchmark": "rasterizers",
        "command": "python benchmarks/rasterizers.py",
        "commit": "abc1234",
        "device": "a GPU",
        "system": "Linux",
        "versions": {"torch": "2.13"},
        "results": {
            "absent": {"gsplat": "not installed"},
            "cases": [
                {
                    "views": 18,
                    "splats": 50_000,
                    "size": 512,
                    "engines": {
                        "warp": {"forward_ms": 2.0, "both_ms": 5.0, "peak_mib": 100.0},
                        "torch": {"forward_ms": 20.0, "both_ms": 60.0, "peak_mib": 900.0},
                        "other": {"failed": "out of memory"},
                    },
                }
            ],
        },
    }


def page(*names):
    blocks = [f"<!-- numbers: {name} -->\nold\n<!-- end of {name} -->\n" for name in names]
    return "# Numbers\nby hand\n" + "\n".join(blocks) + "by hand, too\n"


def write(folder, name, stored):
    (folder / name).write_text(json.dumps(stored), encoding="utf-8")


def test_document_is_up_to_date(numbers):
    document = numbers.DOCUMENT.read_text(encoding="utf-8")
    assert numbers.rewritten(document, numbers.RESULTS) == document


def test_block_gets_command_table_and_source_and_the_rest_stays(numbers, stored, tmp_path):
    write(tmp_path, "a.json", stored)
    fresh = numbers.rewritten(page("a.json"), tmp_path)
    assert fresh.startswith("# Numbers\nby hand\n") and fresh.endswith("by hand, too\n")
    assert "```\npython benchmarks/rasterizers.py\n```" in fresh and "old" not in fresh
    assert "| 18 | 50,000 | 512 | 2.00 | 5.00 | 20.00 | 60.00 | - | - | 10.00, 12.00 | - |" in fresh
    assert "Absent: gsplat (not installed)." in fresh
    assert "Commit abc1234; a GPU, Linux, torch 2.13." in fresh
    assert numbers.rewritten(fresh, tmp_path) == fresh


def test_result_without_block_and_block_without_result_are_named(numbers, stored, tmp_path):
    write(tmp_path, "forgotten.json", stored)
    with pytest.raises(ValueError, match=r"forgotten\.json"):
        numbers.rewritten(page(), tmp_path)
    with pytest.raises(ValueError, match=r"lost\.json"):
        numbers.rewritten(page("forgotten.json", "lost.json"), tmp_path)


def test_lone_marks_and_repeated_blocks_are_refused(numbers, stored, tmp_path):
    write(tmp_path, "a.json", stored)
    for wrong in (page("a.json", "a.json"), page("a.json") + "<!-- end of a.json -->\n"):
        with pytest.raises(ValueError, match="partner"):
            numbers.rewritten(wrong, tmp_path)


def test_seconds_to_a_level_are_those_of_the_fastest_fit_that_reached_it(numbers):
    def runs(seconds, *values):
        return [{"seconds": seconds, "psnr": value} for value in values]

    result = {
        "runs": runs(5.0, 36.0, 37.0),
        "budgets": [{"budget": 1, "runs": runs(1.1, 30.0, 34.0)}],
    }
    assert numbers.splats.seconds_to(32.0, result) == 1.1
    assert numbers.splats.seconds_to(32.1, result) == 5.0
    assert numbers.splats.seconds_to(37.0, result) is None


def test_command_has_no_folders_of_this_machine(numbers):
    words = ["/x/benchmarks/splats.py", "/data/objects", "--out", "/tmp/a.json", "--commit", "abc"]
    command = numbers.record.command_line(words)
    assert command == "python benchmarks/splats.py objects --out a.json"


def test_settings_are_parsed_and_unknown_ones_refused(numbers):
    from v3d_core.splats.config import SplatFitConfig

    changes = ["steps=7", "means_rate=1e-3", "align=off", "random_background=False"]
    config = numbers.splats.changed(SplatFitConfig(), changes)
    assert (config.steps, config.means_rate, config.align) == (7, 1e-3, "off")
    assert config.random_background is False
    with pytest.raises(SystemExit, match="no such setting"):
        numbers.splats.changed(SplatFitConfig(), ["step=7"])


def test_bumpy_ball_is_the_same_every_time_and_covers_its_silhouette(numbers):
    import torch

    from v3d_core.splats.engines import rasterize_oracle

    device = torch.device("cpu")
    scene = numbers.rasterizers.bumpy_ball(3000, device)
    again = numbers.rasterizers.bumpy_ball(3000, device)
    assert all(torch.equal(a, b) for a, b in zip(scene, again, strict=True))
    cameras = numbers.rasterizers.pinholes(2, 64, device)
    means, quats, scales, opacities, colours = scene
    alpha = rasterize_oracle(means, quats, scales, opacities, colours[None], cameras)[..., 3]
    assert 0.2 < float((alpha > 0.5).float().mean()) < 0.6
    assert float((alpha[:, 24:40, 24:40]).min()) > 0.95


def test_table_of_the_neus_kernels_sets_times_against_floors(numbers):
    kernels = numbers.neus_kernels
    floor = {kind: least._asdict() for kind, least in kernels.floors("hash grid", 1000).items()}
    engines = {"warp": {f"{kind}_ms": 2.0 for kind in floor}}
    rates = {"bytes_per_s": 1e9, "flops_per_s": 1e15}
    case = {"task": "hash grid", "samples": 1000, "floor": floor, "engines": engines}
    table = kernels.markdown({"results": {"rates": rates, "cases": [case]}})
    features = floor["features"]["bytes"]
    assert features == 1000 * 4 * (3 + 24) + 8 * kernels.GRID.entries
    line = next(line for line in table.splitlines() if "| features |" in line)
    assert f"| {features / 1e6:.4f} |" in line and f"| {2.0 / (features / 1e6):.1f} |" in line
    assert "Copy 1 GB/s" in table


def test_table_of_surfaces_says_what_guided_them_where_it_is_known(numbers):
    results = {"objects": {}, "preset": "normal", "splat_preset": "normal", "resolution": 384}
    results["runs"] = 1
    assert "splats: `normal`; mean of 1" in numbers.surfaces.markdown({"results": results})
    told = numbers.surfaces.markdown({"results": results | {"guide_steps": 1200}})
    assert "splats: `normal`, 1200 steps where they guide; mean of 1" in told


def test_table_of_a_cpus_kernels_sets_both_engines_side_by_side(numbers):
    kernels = numbers.cpu_kernels
    case = {"task": "colour network", "work": "both", "ms": {"warp": 4.0, "torch": 10.0}}
    table = kernels.markdown({"results": {"cases": [case]}})
    assert "| colour network | both | 4.00 | 10.00 | 2.50 |" in table


def test_works_of_a_cpus_kernels_give_the_same_by_every_engine(numbers, monkeypatch):
    kernels = numbers.cpu_kernels
    monkeypatch.setattr(kernels, "SIDE", 40)
    monkeypatch.setattr(kernels, "POINTS", 100)
    monkeypatch.setattr(kernels, "FIT", kernels.FIT.with_changes(rays=50, start_resolution=32))
    for build in kernels.TASKS.values():
        engines = build()
        assert set(engines) == {"warp", "torch"}
        for kind in engines["torch"]:
            mine, true = (engines[name][kind]() for name in ("warp", "torch"))
            for a, b in zip(mine, true, strict=True):
                a, b = a.detach().float(), b.detach().float()
                assert float((a - b).norm()) <= 0.02 * float(b.norm())


def test_points_of_the_kernels_lie_ray_by_ray_in_a_thin_shell(numbers):
    import torch

    points = numbers.neus_kernels.ray_points(1000, torch.device("cpu"))
    assert points.shape == (1000, 3)
    assert torch.equal(points, numbers.neus_kernels.ray_points(1000, torch.device("cpu")))
    radii = (points - 0.5).norm(dim=-1)
    assert 0.26 < float(radii.min()) and float(radii.max()) < 0.34
    steps = points.diff(dim=0).norm(dim=-1)
    assert float((steps < 0.0015).float().mean()) > 0.97
