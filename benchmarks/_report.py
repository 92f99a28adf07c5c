"""What becomes of the measurements: JSON, Markdown tables, and pictures."""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

PACKAGES = ("unfazed-concurrency", "anyio", "asgiref", "asyncer", "fastapi", "loky", "starlette", "trio", "uvloop")
MICROSECONDS = 1e6


def circumstances() -> dict[str, Any]:
    """Return what the figures belong to: machine, versions, date."""
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "versions": {package: version(package) for package in PACKAGES},
    }


def write(folder: Path, results: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "results.md").write_text(markdown(results), encoding="utf-8")
    _draw(folder, results)


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
            lines += ["", f"| {title} | {unit} |", "|---|---:|"]
            lines += [f"| {name} | {value * factor:,.1f} |" for name, value in values.items()]
    for title, curves in (("callers", results["callers"]), ("limit", results["limits"])):
        if curves:
            lines += ["", *_curves(title, curves)]
    return "\n".join(lines) + "\n"


def _line(row: dict[str, Any], name: str, timing: dict[str, Any]) -> str:
    limit = row["limits"].get(name)
    ratio = f"{timing['ratio']:.2f}"
    cells = (
        row["name"],
        row["backend"],
        f"{row['ours']['microseconds']:,.1f}",
        name,
        f"{timing['microseconds']:,.1f}",
        f"**{ratio}**" if limit is not None and timing["ratio"] > limit else ratio,
        f"{timing['low']:.2f} to {timing['high']:.2f}",
        "" if limit is None else f"{limit:.2f}",
    )
    return "| " + " | ".join(cells) + " |"


def _curves(title: str, curves: dict[str, list[tuple[int, float]]]) -> Iterable[str]:
    yield f"| {title} | " + " | ".join(f"{name}, calls a second" for name in curves) + " |"
    yield "|---:" * (len(curves) + 1) + "|"
    for points in zip(*curves.values(), strict=True):
        yield f"| {points[0][0]:,} | " + " | ".join(f"{rate:,.0f}" for _, rate in points) + " |"


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
    axes.invert_yaxis()
    axes.set_xlabel("our time for each second of theirs")
    axes.legend()
    figure.suptitle(heading(results), fontsize=6)
    figure.savefig(folder / "ratios.svg", metadata={"Date": None})
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
    figure.savefig(folder / "growth.svg", metadata={"Date": None})
    plt.close(figure)
