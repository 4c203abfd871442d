"""The report of an acceptance run: Markdown for people and JSON lines for programs, both whole at every moment."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TextIO

from benchmarks import report
from benchmarks.parts.part import Part, Row

Word = Literal["passed", "failed", "skipped", "broke", "killed", "not reached", "running"]
_BAD: tuple[Word, ...] = ("failed", "broke", "killed")


@dataclass
class Outcome:
    """What became of a part. `note`: why, in a line; `output`: the end of what it printed, where it broke."""

    part: Part
    word: Word
    seconds: float
    rows: list[Row] = field(default_factory=list)
    note: str = ""
    output: str = ""


class Report:
    """Two files in `folder`, named after the day and, once it is known, the device."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._began = datetime.datetime.now()
        self._name = f"acceptance_{self._began:%Y-%m-%d_%H%M}"
        self._lines: TextIO = (folder / f"{self._name}.jsonl").open("w", buffering=1)
        self._notes: list[str] = []
        self._names: list[str] = []
        self._title = "this machine"
        self._budget_seconds = 0.0
        self._is_over = False
        self.outcomes: list[Outcome] = []

    @property
    def path(self) -> Path:
        return self._folder / f"{self._name}.md"

    @property
    def is_bad(self) -> bool:
        """Whether something is not as expected, or a part came to no end."""
        return any(outcome.word in _BAD for outcome in self.outcomes)

    def begin(self, names: Sequence[str], budget_seconds: float) -> None:
        """Which parts are to run."""
        self._names, self._budget_seconds = list(names), budget_seconds
        self._line(machine=report.machine(), parts=self._names, budget_seconds=budget_seconds)
        self._write()

    def row(self, part: Part, row: Row) -> None:
        """A running part has said something."""
        if "device_name" in row.values:
            self._rename(str(row.values["device_name"]))
        self._line(part=part.name, **asdict(row))
        running = next((one for one in self.outcomes if one.part is part), None)
        if running is None:
            running = Outcome(part, "running", 0.0)
            self.outcomes.append(running)
        running.rows.append(row)
        self._write()

    def outcome(self, outcome: Outcome) -> None:
        """A part is over."""
        self._line(part=outcome.part.name, outcome=outcome.word, seconds=outcome.seconds, note=outcome.note)
        running = [one for one in self.outcomes if one.part is outcome.part]
        if running:
            self.outcomes[self.outcomes.index(running[0])] = outcome
        else:
            self.outcomes.append(outcome)
        self._write()

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._write()

    def end(self) -> None:
        """Nothing more will come."""
        self._is_over = True
        self._write()

    def _rename(self, device: str) -> None:
        """Name the files after the device, now that it is known."""
        self._title = device
        name = f"acceptance_{report.slug(device)}_{self._began:%Y-%m-%d_%H%M}"
        for suffix in ("md", "jsonl"):
            old = self._folder / f"{self._name}.{suffix}"
            if old.exists():
                old.rename(self._folder / f"{name}.{suffix}")
        self._name = name

    def _line(self, **fields: object) -> None:
        self._lines.write(json.dumps(fields) + "\n")

    def _write(self) -> None:
        spent = (datetime.datetime.now() - self._began).total_seconds()
        state = "" if self._is_over else "; it goes on"
        lines = [
            f"# Acceptance on {self._title}, {self._began:%Y-%m-%d}",
            "",
            f"{spent:.0f} s of a budget of {self._budget_seconds:.0f} s{state}. Weights are random.",
            "",
            *self._notes,
            *self._summary(),
        ]
        for outcome in self.outcomes:
            lines += _section(outcome)
        lines += report.settings("Machine", report.machine())
        draft = self._folder / f"{self._name}.md.draft"
        draft.write_text("\n".join(lines))
        draft.replace(self.path)

    def _summary(self) -> list[str]:
        known = {outcome.part.name: outcome for outcome in self.outcomes}
        rows = []
        for name in dict.fromkeys([*known, *self._names]):
            if name in known:
                one = known[name]
                rows.append([name, one.part.about, one.word, f"{one.seconds:.1f}" if one.seconds else "", one.note])
            else:
                rows.append([name, "", "", "", "not begun"])
        return report.table(["part", "", "", "seconds", ""], rows)


def _section(outcome: Outcome) -> list[str]:
    if not outcome.rows and not outcome.output:
        return []
    words = {True: "yes", False: "**no**", None: ""}
    rows = [[row.what, row.measured, row.expected, words[row.ok]] for row in outcome.rows]
    lines = [
        f"## {outcome.part.name}: {outcome.part.about}",
        "",
        f"{outcome.word}; {outcome.note}".rstrip("; ") + ".",
        "",
    ]
    if rows:
        lines += report.table(["", "measured", "expected, or predicted", "as expected"], _plain(rows))
    if outcome.output:
        lines += ["```", outcome.output.replace("```", "'''"), "```", ""]
    return lines


def _plain(rows: list[list[str]]) -> list[list[str]]:
    """What a table can hold: no bars."""
    return [[cell.replace("|", "/") for cell in row] for row in rows]
