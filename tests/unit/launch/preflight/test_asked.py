"""What a config says of checks."""

import pytest

from allranks.config import load_config
from allranks.errors import ConfigError
from allranks.launch.preflight.asked import is_skipped, policy_of

CONFIG = """\
base_model: m
learning_rate: 1e-4
max_steps: 1
datasets:
  - {path: d.jsonl, type: alpaca}
"""


def config(tmp_path, section, **overrides):
    path = tmp_path / "c.yaml"
    path.write_text(CONFIG + section)
    return load_config(path, overrides)


def test_checks_and_families(tmp_path):
    cfg = config(tmp_path, "preflight: {strict: [limits.memlock], ignore: [clock], skip: [gpus, disks.tmp]}\n")
    policy = policy_of(cfg, quick=True)
    assert (policy.strict, policy.ignore, policy.skip) == ({"limits.memlock"}, {"clock"}, {"gpus", "disks.tmp"})
    assert not is_skipped(cfg)
    assert is_skipped(config(tmp_path, "preflight: {skip: true}\n"))


def test_an_unknown_id_is_told_with_its_line_and_the_nearest(tmp_path):
    cfg = config(tmp_path, "preflight:\n  ignore:\n    - clock\n    - clock.sprea\n")
    with pytest.raises(
        ConfigError, match=r"c\.yaml:9: preflight\.ignore: .*'clock\.sprea'; did you mean clock\.spread"
    ):
        policy_of(cfg, quick=True)


def test_an_unknown_id_of_the_command_line_has_no_line(tmp_path):
    cfg = config(tmp_path, "", **{"preflight.strict": "clck"})
    with pytest.raises(ConfigError, match=r"^preflight\.strict: there is no check 'clck'; did you mean clock"):
        policy_of(cfg, quick=True)


def test_what_is_accepted_cannot_be_strict(tmp_path):
    cfg = config(tmp_path, "preflight: {ignore: [clock.spread], strict: [clock.spread]}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:6: preflight\.ignore: clock\.spread is in preflight\.strict, too"):
        policy_of(cfg, quick=True)
