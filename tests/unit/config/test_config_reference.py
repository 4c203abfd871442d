"""The reference page and the schema say what the models say."""

from pathlib import Path

from allranks.config.reference import TASKS, markdown
from allranks.config.rules import EXCLUSIVE
from allranks.config.run import SECTION_OF, SECTIONS
from allranks.config.schema import NESTED
from allranks.config.sections.section import key_help
from allranks.config.spellings import HINTS, RENAMED
from allranks.config.unsupported import LATER, NO_EFFECT, OUT_OF_SCOPE
from allranks.config.unsupported_values import REFUSED_VALUES
from allranks.config.unused import ADAPTER_ONLY

PAGE = Path(__file__).parents[3] / "docs" / "config.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == markdown(), "run `python -m allranks.config.reference > docs/config.md`"


def test_the_table_of_contents_names_every_section():
    assert sorted(TASKS.values()) == sorted(SECTIONS)
    heads = {line.removeprefix("## ") for line in PAGE.read_text().splitlines() if line.startswith("## ")}
    assert {"Old spellings", "Not supported yet", "Without effect", *SECTIONS} <= heads


def test_every_key_belongs_to_one_section_and_is_described():
    assert sum(len(section.model_fields) for section in SECTIONS.values()) == len(SECTION_OF)
    for section in (*SECTIONS.values(), *NESTED.values()):
        assert set(key_help(section)) == set(section.model_fields), section


def test_tables_name_real_keys():
    for key in [*ADAPTER_ONLY, *(key for pair in EXCLUSIVE for key in pair[:2])]:
        assert key in SECTION_OF
    for key in (*HINTS.values(), *RENAMED.values(), *REFUSED_VALUES):
        assert key.partition(".")[0] in SECTION_OF
    assert not set(SECTION_OF) & {*LATER, *NO_EFFECT, *OUT_OF_SCOPE}
    assert not set(HINTS) & set(SECTION_OF)
