"""What becomes of the measurements: JSON, tables in the pages, and pictures.

No figure is copied by hand. The pages have blocks between `<!-- figures: NAME -->` and `<!-- /figures -->`, which are
written here. A test checks that they are what the last results say.
"""

from __future__ import annotations

import json
import os
import platform
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PACKAGES = ("unfazed-concurrency", "anyio", "asgiref", "asyncer", "fastapi", "loky", "starlette", "trio", "uvloop")
MICROSECONDS = 1e6
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
FIGURES = ROOT / "docs" / "explanation" / "figures.md"  # all tables; a page of its own
PAGES = (ROOT / "README.md", ROOT / "docs" / "explanation" / "speed.md")  # with blocks
PICTURES = ROOT / "docs" / "images"
BACKENDS = ("asyncio", "uvloop", "trio")
MAIN = (  # what the README shows
    ("run_in_threadpool", "anyio"),
    ("run_in_threadpool_sync", "anyio portal"),
    ("run_in_eventloop_sync", "anyio portal"),
    ("run_in_eventloop_sync", "asgiref"),
    ("run_in_executor", "loop.run_in_executor"),
    ("run_in_processpool", "anyio"),
    ("run_in_processpool", "ProcessPoolExecutor"),
    ("run_in_processpool_sync", "ProcessPoolExecutor"),
    ("run_in_processpool, 1 MB both ways", "anyio"),
    ("iterate_in_threadpool(prefetch=100)", "Starlette"),
)


def circumstances() -> dict[str, Any]:
    """Return what the figures belong to: machine, versions, date."""
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {package: version(package) for package in PACKAGES},
    }


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write the results; if they go where the committed ones are, the pages and pictures as well."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    if folder.resolve() == RESULTS:
        write_pages(results)
        _draw(PICTURES, results)


def write_pages(results: dict[str, Any]) -> None:
    """Write all figures that the documentation shows."""
    FIGURES.write_text(figures_page(results), encoding="utf-8")
    for page in PAGES:
        page.write_text(fill(page.read_text(encoding="utf-8"), results), encoding="utf-8")


def figures_page(results: dict[str, Any]) -> str:
    """Return the page with all tables."""
    return f"# All figures\n\n{markdown(results)}\n![our time for each second of theirs](../images/speed-ratios.svg)\n"


def fill(text: str, results: dict[str, Any]) -> str:
    """Return the text of a page with each block written anew."""

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{BLOCKS[found[2]](results)}\n\n{found[3]}"

    return re.sub(r"(<!-- figures: (\w+) -->).*?(<!-- /figures -->)", block, text, flags=re.DOTALL)


def _summary(results: dict[str, Any], calls: Iterable[tuple[str, str]] | None = None) -> str:
    """Return a table of ratios: a line for each call and contender, a column for each backend."""
    ratios: dict[tuple[str, str], dict[str, str]] = {}
    for row in results["rows"]:
        for name, timing in row["others"].items():
            ratios.setdefault((row["name"], name), {})[row["backend"]] = _ratio(row, name, timing)
    lines = ["| call | against | " + " | ".join(BACKENDS) + " |", "|---|---|" + "---:|" * len(BACKENDS)]
    for call, against in ratios if calls is None else calls:
        cells = ratios.get((call, against), {})
        lines.append(f"| {call} | {against} | " + " | ".join(cells.get(backend, "") for backend in BACKENDS) + " |")
    return "\n".join(lines)


def _main(results: dict[str, Any]) -> str:
    return _summary(results, MAIN)


def _goals(results: dict[str, Any]) -> str:
    """Return how many goals were missed, and which."""
    goals = [(row, name) for row in results["rows"] for name in row["limits"] if name in row["others"]]
    ratios = [(row, name, row["others"][name]["ratio"]) for row, name in goals]
    missed = [(row, name, ratio) for row, name, ratio in ratios if ratio > row["limits"][name]]
    lines = [f"{len(goals) - len(missed)} of {len(goals)} goals were met. Missed were:", ""]
    lines += ["| call | on | against | ratio | goal |", "|---|---|---|---:|---:|"]
    lines += [
        f"| {row['name']} | {row['backend']} | {name} | {ratio:.2f} | {row['limits'][name]:.2f} |"
        for row, name, ratio in missed
    ]
    return "\n".join(lines)


def _growth(results: dict[str, Any]) -> str:
    callers, limits = results["callers"], results["limits"]
    return "\n".join([*_curves("callers", callers), "", *_curves("limit", limits)])


def _memory(results: dict[str, Any]) -> str:
    return "\n".join(_values("memory of one", results["memory_bytes"], "kB", 1e-3))


def _starts(results: dict[str, Any]) -> str:
    imports = _values("import", results["import_seconds"], "ms", 1e3)
    calls = _values("import and first call", results["first_call_seconds"], "ms", 1e3)
    return "\n".join([*imports, "", *calls])


def heading(results: dict[str, Any]) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in results["versions"].items())
    return f"{results['date']}, {results['python']}, {results['machine']}; {versions}"


def markdown(results: dict[str, Any]) -> str:
    """Return all tables."""
    lines = [
        f"Measured on {heading(results)}.",
        "Calls to processes have all CPUs, the others one. In bold, what is above its goal.",
        "",
        "| call | on | µs | against | µs | ratio | the middle half of the ratios | at most |",
        "|---|---|---:|---|---:|---:|---|---:|",
        *(_line(row, name, timing) for row in results["rows"] for name, timing in row["others"].items()),
    ]
    for title, values, unit, factor in (
        ("import", results["import_seconds"], "ms", 1e3),
        ("import and first call", results["first_call_seconds"], "ms", 1e3),
        ("memory of one", results["memory_bytes"], "kB", 1e-3),
    ):
        if values:
            lines += ["", *_values(title, values, unit, factor)]
    for title, curves in (("callers", results["callers"]), ("limit", results["limits"])):
        if curves:
            lines += ["", *_curves(title, curves)]
    return "\n".join(lines) + "\n"


def _values(title: str, values: dict[str, float], unit: str, factor: float) -> list[str]:
    return [
        f"| {title} | {unit} |",
        "|---|---:|",
        *(f"| {name} | {value * factor:,.1f} |" for name, value in values.items()),
    ]


def _ratio(row: dict[str, Any], name: str, timing: dict[str, Any]) -> str:
    limit = row["limits"].get(name)
    ratio = f"{timing['ratio']:.2f}"
    return f"**{ratio}**" if limit is not None and timing["ratio"] > limit else ratio


def _line(row: dict[str, Any], name: str, timing: dict[str, Any]) -> str:
    limit = row["limits"].get(name)
    cells = (
        row["name"],
        row["backend"],
        f"{row['ours']['microseconds']:,.1f}",
        name,
        f"{timing['microseconds']:,.1f}",
        _ratio(row, name, timing),
        f"{timing['low']:.2f} to {timing['high']:.2f}",
        "" if limit is None else f"{limit:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def _curves(title: str, curves: dict[str, list[tuple[int, float]]]) -> Iterable[str]:
    yield f"| {title} | " + " | ".join(f"{name}, calls a second" for name in curves) + " |"
    yield "|---:" * (len(curves) + 1) + "|"
    for points in zip(*curves.values(), strict=True):
        yield f"| {points[0][0]:,} | " + " | ".join(f"{rate:,.0f}" for _, rate in points) + " |"


BLOCKS: dict[str, Callable[[dict[str, Any]], str]] = {
    "main": _main,
    "ratios": _summary,
    "goals": _goals,
    "growth": _growth,
    "memory": _memory,
    "starts": _starts,
    "heading": lambda results: f"Measured on {heading(results)}.",
}


def _draw(folder: Path, results: dict[str, Any]) -> None:
    """Draw the ratios against their limits, and the curves."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "unfazed"  # the same figures give the same file
    mpl.rcParams["svg.fonttype"] = "none"  # letters as letters: a tenth of the size
    from matplotlib import pyplot as plt

    bars = [
        (f"{row['name']}, {row['backend']}, against {name}", timing["ratio"], row["limits"].get(name))
        for row in results["rows"]
        for name, timing in row["others"].items()
        if name in row["limits"]
    ]
    figure, axes = plt.subplots(figsize=(9, 0.28 * len(bars) + 1), layout="constrained")
    axes.barh([name for name, *_ in bars], [ratio for _, ratio, _ in bars], color="#4477aa", label="measured")
    axes.plot([most for *_, most in bars], range(len(bars)), "|", color="#cc3311", markersize=10, label="at most")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlabel("our time for each second of theirs")
    axes.legend()
    figure.suptitle(heading(results), fontsize=6)
    figure.savefig(folder / "speed-ratios.svg", metadata={"Date": None})
    plt.close(figure)

    figure, all_axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axes, label, curves in zip(
        all_axes,
        ("callers at once", "may run at once (1,000 callers)"),
        (results["callers"], results["limits"]),
        strict=True,
    ):
        for name, points in curves.items():
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
        axes.set_xscale("log")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("calls in a second")
        axes.legend(fontsize=7)
    figure.suptitle(heading(results), fontsize=6)
    figure.savefig(folder / "speed-growth.svg", metadata={"Date": None})
    plt.close(figure)
