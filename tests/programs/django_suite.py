"""Run Django's own tests of what it does with asgiref, with the adapter installed behind asgiref's own classes.

    python tests/programs/django_suite.py [label ...]

The tests come with the source distribution of the Django that is installed, which pip fetches, and are run as they are.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

import django

# what adapts views, middleware, receivers, tests and the ORM; those that this Django does not have are left out
LABELS = (
    *("async", "asgi", "handlers", "signals", "tasks", "test_client", "test_client_regress"),
    *("middleware", "middleware_exceptions", "decorators", "httpwrappers", "responses"),
)

# What Python runs when it starts: in the processes as well that the tests start.
START = """
import unfazed_compat.asgiref
unfazed_compat.asgiref.install()
"""

# That it is the adapter which is tested, and that Django which has the tests.
PROOF = """
import inspect
import django
from asgiref.sync import AsyncToSync, SyncToAsync, ThreadSensitiveContext
for each in (AsyncToSync.__call__, SyncToAsync.__call__, ThreadSensitiveContext.__aenter__):
    assert "unfazed_compat" in inspect.getfile(each), each
print(f"==== Django {django.__version__} in {django.__path__[0]}, Python {sys.version.split()[0]}", flush=True)
"""


def fetch(folder: Path) -> Path:
    """Fetch the source distribution, unpack it, and return where it is."""
    wanted = f"django=={django.get_version()}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", wanted]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as unpacked:
        unpacked.extraction_filter = getattr(tarfile, "data_filter", None)  # the first versions of 3.11 lack it
        unpacked.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


def main() -> None:
    """Run the tests."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        source = fetch(folder)
        tests = source / "tests"
        site = folder / "site"
        site.mkdir()
        (site / "sitecustomize.py").write_text(START, encoding="utf-8")
        paths = [str(site), str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
        # Django's tests say themselves which warnings they mean, and how to find out more
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDEVMODE": ""}
        subprocess.run([sys.executable, "-c", f"import sys\n{PROOF}"], cwd=tests, env=environment, check=True)
        labels = sys.argv[1:] or [label for label in LABELS if (tests / label).is_dir()]
        command = [sys.executable, "runtests.py", "--parallel", "1", "--timing", *labels]
        sys.exit(subprocess.run(command, cwd=tests, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
