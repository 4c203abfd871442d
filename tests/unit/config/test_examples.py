from pathlib import Path

import pytest

from allranks.config import load_config
from allranks.config.strategy import strategy

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_loads_without_a_warning_and_is_listed(path):
    cfg = load_config(path)
    assert cfg.warnings == () or cfg.warnings == []
    assert f"[{path.name}]({path.name})" in (EXAMPLES / "README.md").read_text()
    strategy(cfg, 64)
