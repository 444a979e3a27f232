"""What the benchmarks share: contestants take turns in one process, and the facts of the machine.

A ratio is only fair if both sides met the same machine: all contestants are warmed up, then each
round runs every one of them once, so that heat and other work on the machine meet all alike.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path("artifacts") / "benchmarks"
LOAD_BEFORE = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
"""Of the machine, before the benchmark itself had begun to work."""
PACKAGES = (
    "torch",
    "transformers",
    "FlagEmbedding",
    "sentence-transformers",
    "tokenizers",
    "faiss-cpu",
    "numpy",
    "openvino",
    "onnxruntime",
)


@dataclass
class Timing:
    """What one contestant did.

    Attributes:
        seconds: one entry a round.
        output: what it returned in the last round.
    """

    seconds: list[float] = field(default_factory=list)
    output: Any = None

    @property
    def median(self) -> float:
        """Median seconds of a round."""
        return float(np.median(self.seconds))

    def rates(self, amount: float) -> dict[str, float]:
        """Median, slowest and fastest rate for this amount of work."""
        return {
            "median": amount / self.median,
            "slowest": amount / max(self.seconds),
            "fastest": amount / min(self.seconds),
        }


def take_turns(
    contestants: Mapping[str, Callable[[], Any]],
    rounds: int,
    warm_up: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Timing]:
    """Run every contestant once a round; progress bars are swallowed.

    An interrupt after the first round ends the run; the whole rounds that were timed count.

    Args:
        contestants: name -> the work.
        rounds: how often each is timed.
        warm_up: name -> what is run before, untimed; by default the work itself.
    """
    timings = {name: Timing() for name in contestants}
    for name, work in (contestants if warm_up is None else warm_up).items():
        with _quiet():
            work()
        print(f"warm: {name}", flush=True)
    for number in range(1, rounds + 1):
        try:
            for name, work in contestants.items():
                _time(work, timings[name])
                print(f"round {number}: {name} {timings[name].seconds[-1]:.2f} s", flush=True)
        except KeyboardInterrupt:
            if number == 1:
                raise
            print(f"Interrupted in round {number}: the figures are those of the rounds before.")
            for timing in timings.values():
                del timing.seconds[number - 1 :]
            break
    return timings


def gather(parts: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of all parts, each measured when its turn comes; an interrupt keeps those before."""
    rows: list[dict[str, Any]] = []
    try:
        for part in parts:
            rows += part
    except KeyboardInterrupt:
        if not rows:
            raise
        print("Interrupted: what was measured before is kept.")
    return rows


def rounds_done(timings: Mapping[str, Timing]) -> int:
    """How many whole rounds these timings are from."""
    return min(len(timing.seconds) for timing in timings.values())


def _time(work: Callable[[], Any], timing: Timing) -> None:
    with _quiet():
        started = time.perf_counter()
        timing.output = work()
        timing.seconds.append(time.perf_counter() - started)


@contextlib.contextmanager
def _quiet():
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def machine() -> dict[str, Any]:
    """Facts that a figure needs to be understood elsewhere; no names, no paths."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "load before": LOAD_BEFORE,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(name: str, facts: Mapping[str, Any], rows: list[dict[str, Any]]) -> Path:
    """Print the rows as a table and write them with the facts to `RESULTS`."""
    print(f"\n{markdown(rows)}")
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {"facts": dict(facts), "machine": machine(), "rows": rows}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(f"\nwritten: {path}")
    return path


def markdown(rows: list[dict[str, Any]]) -> str:
    """Rows of equal or different keys as a Markdown table."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_cell(row.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value + 0.0:.3g}"  # no "-0"
    return str(value)
