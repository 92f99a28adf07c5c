"""Run asyncer's own tests against the adapter.

    python tests/programs/asyncer_suite.py [version ...] [-- options of pytest]

The tests come with the source distribution of each version, which pip fetches, and are run as they are, next to the
asyncer that they belong to, with our functions in it. None is skipped. Those of the script with which asyncer is
released are left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

NEWEST = ""  # that this Python takes

# What pytest imports before the tests, as a plugin: not as Python starts, when it would have pytest warn.
SWAP = """
import asyncer
import unfazed_compat.asyncer
for name in unfazed_compat.asyncer.__all__:
    setattr(asyncer, name, getattr(unfazed_compat.asyncer, name))
"""

# That it is the adapter which is tested, in place of asyncer's own.
PROOF = """
import asyncer
import swap
from pathlib import Path
assert Path(asyncer.__file__).is_relative_to(Path.cwd()), asyncer.__file__
for name in ("asyncify", "syncify", "runnify"):
    assert getattr(asyncer, name).__module__ == "unfazed_compat.asyncer", name
"""


def fetch(version: str, folder: Path) -> Path:
    """Fetch the source distribution, unpack it, and return where it is."""
    wanted = f"asyncer=={version}" if version else "asyncer"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", wanted]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (archive,) = folder.glob("asyncer-*.tar.gz")
    with tarfile.open(archive) as unpacked:
        unpacked.extraction_filter = getattr(tarfile, "data_filter", None)  # the first versions of 3.11 lack it
        unpacked.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


def run_tests(source: Path, folder: Path, options: list[str]) -> bool:
    """Run the tests, and return whether all have passed."""
    site = folder / "site"
    site.mkdir()
    (site / "swap.py").write_text(SWAP, encoding="utf-8")
    paths = [str(site), str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", PROOF], cwd=source, env=environment, check=True)
    plugins = [
        "-p",
        "swap",
        "-p",
        "no:anyio",
        "-p",
        "no:cacheprovider",
        "--timeout",
        "60",
        "--timeout-method",
        "thread",
    ]
    left_out = ["--ignore", "tests/test_prepare_release.py"]
    command = [sys.executable, "-m", "pytest", "-v", "-rsxX", *plugins, *left_out, *options, "tests"]
    done = subprocess.run(command, cwd=source, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    return done.returncode == 0 and not re.search(r"\d+ skipped", done.stdout)


def main() -> None:
    """Run the tests of all versions."""
    arguments, _, options = " ".join(sys.argv[1:]).partition("--")
    failed: list[str] = []
    for version in arguments.split() or [NEWEST]:
        with TemporaryDirectory() as name:
            folder = Path(name)
            source = fetch(version, folder)
            print(f"==== {source.name}, Python {sys.version.split()[0]}", flush=True)
            if not run_tests(source, folder, options.split()):
                failed.append(source.name)
    sys.exit("\n".join(["these have failed:", *failed]) if failed else 0)


if __name__ == "__main__":
    main()
