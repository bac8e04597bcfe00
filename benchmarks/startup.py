"""Seconds that a fresh process needs for `import dpgm` and `dpgm --help`, beside a bare interpreter; medians."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 9
COMMANDS = {
    "python": ["-c", "pass"],
    "import dpgm": ["-c", "import dpgm"],
    "dpgm --help": ["-c", "from dpgm.cli import main; main(['--help'])"],
    "import torch": ["-c", "import torch"],
}


def seconds(words: list[str]) -> float:
    """One run."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(RUNS):  # in turn, so that a slow moment touches all of them
        for name, words in COMMANDS.items():
            times[name].append(seconds(words))
    for name, values in times.items():
        print(f"{name:14} {statistics.median(values):.3f} s (min {min(values):.3f}, max {max(values):.3f})")
