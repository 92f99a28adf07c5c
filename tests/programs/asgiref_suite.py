"""Run asgiref's own tests against the adapter: by import, and installed behind asgiref's own classes.

    python tests/programs/asgiref_suite.py [version ...] [-- options of pytest]

The tests come with the source distribution of each version, which pip fetches, and are run as they are, next to the
asgiref that they belong to. None is skipped: where a plugin that they need is missing, that is an error.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

OLDEST = "3.8.1"
NEWEST = ""  # that this Python takes

# What Python runs when it starts: in the processes as well that the tests start.
START = {
    "by import": """
import sys
import asgiref
import unfazed_compat.asgiref
sys.modules["asgiref.sync"] = asgiref.sync = unfazed_compat.asgiref
""",
    "installed": """
import unfazed_compat.asgiref
unfazed_compat.asgiref.install()
""",
}

# That it is the adapter which is tested.
PROOF = """
import inspect
from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
for each in (AsyncToSync.__call__, SyncToAsync.__call__, ThreadSensitiveContext.__aenter__):
    assert "unfazed_compat" in inspect.getfile(each), each
"""


def fetch(version: str, folder: Path) -> Path:
    """Fetch the source distribution, unpack it, and return where it is."""
    wanted = f"asgiref=={version}" if version else "asgiref"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", wanted]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (archive,) = folder.glob("asgiref-*.tar.gz")
    with tarfile.open(archive) as unpacked:
        unpacked.extraction_filter = getattr(tarfile, "data_filter", None)  # the first versions of 3.11 lack it
        unpacked.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


def run_tests(source: Path, start: str, folder: Path, options: list[str]) -> bool:
    """Run the tests, and return whether all have passed."""
    site = folder / re.sub(r"\W", "_", start)
    site.mkdir()
    (site / "sitecustomize.py").write_text(START[start], encoding="utf-8")
    paths = [str(site), str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    subprocess.run([sys.executable, "-c", PROOF], cwd=source, env=environment, check=True)
    # each test in time, by a thread: a signal does not end a hang in C code; and anyio's plugin is not for these
    plugins = ["-p", "no:anyio", "-p", "no:cacheprovider", "--timeout", "60", "--timeout-method", "thread"]
    command = [sys.executable, "-m", "pytest", "-q", "-rsxX", *plugins, *options, "tests"]
    done = subprocess.run(command, cwd=source, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, flush=True)
    return done.returncode == 0 and not re.search(r"\d+ skipped", done.stdout)


def main() -> None:
    """Run the tests of all versions."""
    arguments, _, options = " ".join(sys.argv[1:]).partition("--")
    failed: list[str] = []
    for version in arguments.split() or [OLDEST, NEWEST]:
        with TemporaryDirectory() as name:
            folder = Path(name)
            source = fetch(version, folder)
            for start in START:
                title = f"{source.name}, {start}, Python {sys.version.split()[0]}"
                print(f"==== {title}", flush=True)
                if not run_tests(source, start, folder, options.split()):
                    failed.append(title)
    sys.exit("\n".join(["these have failed:", *failed]) if failed else 0)


if __name__ == "__main__":
    main()
