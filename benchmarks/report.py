"""The report of a benchmark: ratios with their spread, and everything needed to do it again."""

import datetime
import json
import platform
import re
import statistics
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.measure import Measurement

REPORTS = Path(__file__).parent / "reports"
_MOST_OF_PART = 60  # characters; a file's name may have 255
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers", "numpy")


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """`median (min to max)`."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def speed_table(rounds: Sequence[dict[str, Measurement]], names: dict[str, str], baselines: Sequence[str]) -> list[str]:
    """Tokens per second of each contestant, and its ratio to each baseline *within the same round*, over the rounds."""
    header = ["", "real tokens/s", *[f"x {names[baseline]}" for baseline in baselines], "peak memory, MiB"]
    rows = []
    for key, name in names.items():
        rates = [measured[key].tokens_per_second for measured in rounds]
        ratios = [
            spread([measured[key].tokens_per_second / measured[base].tokens_per_second for measured in rounds])
            for base in baselines
        ]
        memory = [measured[key].peak_memory_bytes / 2**20 for measured in rounds]
        rows.append([name, spread(rates, ".0f"), *ratios, spread(memory, ".0f")])
    return table(header, rows)


def start_table(rounds: Sequence[dict[str, Measurement]], names: dict[str, str], baselines: Sequence[str]) -> list[str]:
    """Seconds from the start of the process to the end of the first step, by phase (medians), and ratios."""
    phases = list(dict.fromkeys(phase for measured in rounds for one in measured.values() for phase in one.phases))
    header = ["", *phases, "together", *[f"x {names[baseline]}" for baseline in baselines]]
    rows = []
    for key, name in names.items():
        medians = [f"{statistics.median(one[key].phases.get(phase, 0.0) for one in rounds):.2f}" for phase in phases]
        ratios = [
            spread([one[key].first_step_seconds / one[base].first_step_seconds for one in rounds]) for base in baselines
        ]
        rows.append([name, *medians, spread([one[key].first_step_seconds for one in rounds]), *ratios])
    return table(header, rows)


def machine() -> dict[str, str]:
    """Processor, cores, memory and versions of what matters."""
    import os

    import psutil

    facts = {
        "processor": _processor(),
        "cores used": str(len(os.sched_getaffinity(0))),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def raw(rounds: Sequence[dict[str, Measurement]], names: dict[str, str]) -> list[str]:
    """Every single measurement."""
    header = ["round", "", "real tokens/s", "first step, s", "peak memory, MiB", "load average before"]
    rows = [
        [
            str(number),
            names[key],
            f"{one.tokens_per_second:.0f}",
            f"{one.first_step_seconds:.2f}",
            f"{one.peak_memory_bytes / 2**20:.0f}",
            f"{one.load_average:.2f}",
        ]
        for number, measured in enumerate(rounds, 1)
        for key, one in measured.items()
    ]
    return table(header, rows)


def settings(title: str, values: dict) -> list[str]:
    return [f"## {title}", "", "```json", json.dumps(values, indent=1), "```", ""]


def hardware(facts: dict[str, str]) -> str:
    """Of `machine()`, in the words that reports begin with."""
    return f"{facts['cores used']} cores of {facts['processor']}"


def today() -> str:
    return datetime.date.today().isoformat()


def saved(kind: str, where: str, lines: Sequence[str], *, part: str = "") -> Path:
    """Write a report of that kind into `reports`, named by where and when it was made.

    `part`: what alone was run of it, as asked for: such a report leaves the whole one of the same day as it is.
    """
    name = f"{kind}-{slug(part)[:_MOST_OF_PART].strip('-')}" if part else kind
    path = REPORTS / f"{name}_{slug(where)}_{today()}.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines))
    return path


def part_of(chosen: Sequence[str], every: Iterable[str]) -> str:
    """As `saved` takes it: what was chosen, unless that is all there is."""
    return "" if set(chosen) == set(every) else " ".join(chosen)


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def table(header: list[str], rows: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
