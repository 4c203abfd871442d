"""The pictures of `allranks top` in the documentation are what it puts on a terminal now."""

from tests.unit.cli.top_screens import PICTURES, SCREENS, screen, svg


def test_the_pictures_are_what_top_shows_on_a_terminal() -> None:
    found = {name: svg(name, screen(*wanted)) for name, wanted in SCREENS.items()}
    kept = {name: (PICTURES / f"{name}.svg").read_text(encoding="utf-8") for name in SCREENS}
    assert found == kept, "run `python -m tests.unit.cli.top_screens`"
