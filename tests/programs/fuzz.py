"""Run `test_model.py` with new random trees again and again: `tox run -e fuzz -- SECONDS`."""

from __future__ import annotations

import faulthandler
import os
import random
import subprocess
import sys
import time
from pathlib import Path

TREES_PER_ROUND = 100  # for each backend and caller; the seed repeats a failure


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    faulthandler.enable()
    deadline, trees = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        seed = random.randrange(2**32)
        command = [sys.executable, "-m", "pytest", "-q", "--no-header", "-x", "-s", "-p", "no:cacheprovider"]
        command += [str(Path(__file__).with_name("test_model.py")), "-k", "random_trees", *sys.argv[2:]]
        env = os.environ | {"UNFAZED_FUZZ_SEED": str(seed), "UNFAZED_FUZZ_TREES": str(TREES_PER_ROUND)}
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        trees += sum(int(line.partition("=")[2]) for line in done.stdout.splitlines() if line.startswith("TREES_RUN="))
        print(f"seed {seed}: {trees} trees so far, {max(0, deadline - time.monotonic()):.0f} seconds left", flush=True)
        if done.returncode:
            print(done.stdout)
            sys.exit(1)
    print(f"{trees} trees, no failure")


if __name__ == "__main__":
    main()
