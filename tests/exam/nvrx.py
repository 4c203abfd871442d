"""The same questions to NVIDIA's restart agent, which also reads logs without a language model (Apache-2.0):

    git clone https://github.com/NVIDIA/nvidia-resiliency-ext
    make exam EXAM_ARGS="--nvrx nvidia-resiliency-ext/src"

It names no causes of ours, so what is graded is the lines that it cites for the primary failure: whether one of them
shows the cause, by our own rules or because our right answer cites it, too. It is made for the whole log of an attempt
and the attempts before it, and gets excerpts here. The release on PyPI (0.4.1) does not have it.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from allranks.doctor.read_logs import diagnosis_of_text
from tests.exam.score import HERE, Question, graded, questions

SHOWN, OTHER, NONE = "cause's line", "another line", "none"


def agent(source: Path) -> Callable[[str], list[str]]:
    """What asks it for the lines that it cites of a log; none where it names no failure."""
    sys.path.insert(0, str(source))
    module = importlib.import_module("nvidia_resiliency_ext.attribution.restart_agent")
    restart_agent = module.RestartAgent()

    def cited(log: str) -> list[str]:
        with tempfile.NamedTemporaryFile("w", suffix=".log") as file:
            file.write(log + "\n")
            file.flush()
            request = module.RestartAgentRequest(log_path=file.name, job_id="exam", cycle_id=1)
            told = restart_agent.run(request).result.to_payload()
        failure = told["primary_failure"]
        if not failure:
            return []
        lines = log.splitlines()
        own = [lines[failure["line"] - 1]] if failure.get("line") else []
        return [line.strip() for line in (*own, *(one["quote"] for one in told["evidence"])) if line.strip()] or [""]

    return cited


def shows_the_cause(question: Question, cited: list[str]) -> bool:
    accepted = (question.cause, *question.also)
    grade, told = graded(question)
    ours = [one.text.strip() for one in told.evidence] if grade.startswith("right") else []
    if any(line in our or our in line for line in cited for our in ours if line and our):
        return True
    alone = (diagnosis_of_text(line) for line in cited)
    return any((one.cause or one.symptom) in accepted for one in alone)


def print_beside(source: Path, halves: str) -> None:
    """Its table, and how many healthy logs it names a failure of."""
    cited = agent(source)
    counts: Counter[tuple[str, str, str]] = Counter()
    for question in questions(halves):
        if question.cause == "unknown":
            continue
        lines = cited(question.log)
        grade = NONE if not lines else SHOWN if shows_the_cause(question, lines) else OTHER
        counts[question.half, question.family, grade] += 1
    for half in halves:
        print(f"\nNVRx's restart agent, half {half.upper():5} {'all':>5} {SHOWN:>14} {OTHER:>14} {NONE:>14}")
        families = sorted({family for of, family, _ in counts if of == half})
        for family in [*families, "all"]:
            row = [sum(counts[half, one, grade] for one in families if family in (one, "all"))
                   for grade in (SHOWN, OTHER, NONE)]  # fmt: skip
            print(f"{family:32} {sum(row):5} " + " ".join(f"{number:14}" for number in row))
    healthy = sorted((HERE / "healthy").glob("*"))
    named = [file.name for file in healthy if cited(file.read_text(encoding="utf-8", errors="replace"))]
    print(f"\nhealthy logs: {len(healthy)}, of which it names a failure of {len(named)}: {', '.join(named)}")
