import re
from pathlib import Path

from allranks.preflight.catalogue import CHECKS, FAMILIES
from allranks.preflight.reference import CHECKLISTS, markdown

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_of_checks_is_that_of_the_code():
    written = (DOCS / "checks.md").read_text(encoding="utf-8")
    assert written == markdown(), "run: python -m allranks.preflight.reference > docs/checks.md"


def test_links_to_checks_lead_to_their_headings():
    page = markdown()
    headings = {line.removeprefix("### ").replace(".", "") for line in page.splitlines() if line.startswith("### ")}
    assert set(re.findall(r"\]\(#([^)]*)\)", page)) == headings


def test_checklists_name_checks_that_there_are():
    known = {check.id for check in CHECKS} | set(FAMILIES)
    named = set(re.findall(r"`([a-z]+\.(?!json)[a-z-]+)`", CHECKLISTS)) | set(
        re.findall(r"checks of `([a-z]+)`", CHECKLISTS)
    )
    assert named - known <= {"fabric", "gpus"}
    assert len(named) > 20
