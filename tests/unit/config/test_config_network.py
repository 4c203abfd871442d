"""The `network:` section: YAML's on and off, sizes, and the time-out that has two names."""

import pytest

from allranks.config import load_config
from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError

REST = "base_model: m\nlearning_rate: 1e-4\ndatasets:\n  - {path: d.jsonl, type: alpaca}\n"


@pytest.fixture
def load(tmp_path):
    def load(text, overrides=None):
        path = tmp_path / "c.yaml"
        path.write_text(REST + text)
        return load_config(path, overrides)

    return load


@pytest.mark.parametrize(
    ("written", "meant"), [("on", "on"), ("off", "off"), ('"off"', "off"), ("auto", "auto"), ("required", "required")]
)
def test_on_and_off_are_words_here(load, written, meant):
    cfg = load(f"network: {{infiniband: {written}}}\n")
    assert cfg.network.settings.infiniband == meant
    assert resolve_mapping(cfg.flat()).network == cfg.network


def test_sizes_and_lists_may_be_text(load):
    cfg = load("network: {buffer_size: 2MiB, hcas: 'mlx5_0, mlx5_1:1', debug: info, debug_subsystems: 'INIT,NET'}\n")
    settings = cfg.network.settings
    assert settings.buffer_size == 2 * 1024 * 1024
    assert settings.hcas == ["mlx5_0", "mlx5_1:1"]
    assert (settings.debug, settings.debug_subsystems) == ("INFO", ["INIT", "NET"])
    assert load("", {"network.buffer-size": "4194304"}).network.settings.buffer_size == 4194304


def test_the_timeout_is_ddp_timeout(load):
    assert load("network: {timeout: 600}\n").parallel.ddp_timeout == 600
    assert load("network: {timeout: 600}\nddp_timeout: 600\n").parallel.ddp_timeout == 600
    assert load("", {"network.timeout": "60"}).parallel.ddp_timeout == 60
    with pytest.raises(ConfigError, match=r"c.yaml:6: ddp_timeout: 1800 contradicts .*c.yaml:5: network.timeout: 600"):
        load("network: {timeout: 600}\nddp_timeout: 1800\n")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("{infiniband: 1}", r"network.infiniband: expected auto, on, off or required, got 1"),
        ("{buffer_size: 4MB}", r"network.buffer_size: expected an integer of at least 1024, got '4MB'"),
        ("{debug: LOUD}", r"network.debug: expected VERSION, WARN, INFO or TRACE"),
        ("{debug: INFO, debug_subsystems: [NETT]}", r"network.debug_subsystems.0: expected INIT, COLL"),
        ("{interfaces: eth0}", r"network.interfaces: unknown key; did you mean network.interface\?"),
        ("{infiniband: off, hcas: [mlx5_0]}", r"network.hcas: has no effect with `infiniband: off`"),
        ("{debug_subsystems: [NET]}", r"network.debug_subsystems: needs `debug: INFO`"),
        ("{cuda_device_max_connections: 64}", r"at least 1 and at most 32, got 64"),
        ("{timeout: 0}", r"network.timeout: expected an integer of at least 1|ddp_timeout"),
    ],
)
def test_what_is_refused(load, network, message):
    with pytest.raises(ConfigError, match=message):
        load(f"network: {network}\n")
