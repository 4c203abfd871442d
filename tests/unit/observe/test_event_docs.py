"""docs/record.md lists every kind of event with its fields, and no others."""

import re
from dataclasses import fields
from pathlib import Path

from allranks.observe.events import KINDS

DOC = Path(__file__).parents[3] / "docs" / "record.md"


def test_the_docs_list_the_kinds_and_fields_that_are_written():
    _, _, section = DOC.read_text(encoding="utf-8").partition("\n## Events\n")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", section, re.MULTILINE)
    head = {"t", "rank", "run", "other"}
    assert {kind: re.findall(r"`(\w+)`", names) for kind, names in rows} == {
        kind: [each.name for each in fields(event) if each.name not in head] for kind, event in KINDS.items()
    }
