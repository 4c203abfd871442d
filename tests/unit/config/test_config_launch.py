"""The keys of Ray Train."""

import pytest

from allranks.config import load_config
from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError

REQUIRED = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d.jsonl", "type": "alpaca"}]}


def config(**keys):
    return resolve_mapping(REQUIRED | keys)


def test_the_keys_of_axolotl_are_taken():
    cfg = config(use_ray=True, ray_num_workers=4, resources_per_worker={"GPU": 1, "CPU": 4.5}, ray_run_name="qwen-7b.1")
    assert cfg.launch.use_ray
    assert cfg.launch.ray_num_workers == 4
    assert cfg.launch.resources_per_worker == {"GPU": 1, "CPU": 4.5}
    assert not cfg.warnings


def test_by_default_the_ranks_are_restarted_three_times():
    assert config(use_ray=True).launch.ray_max_failures == 3


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"resources_per_worker": {"GPU": 2}}, "resources_per_worker.GPU: a rank uses one GPU, or none: 1 or 0"),
        ({"resources_per_worker": {"GPU": 0.5}}, "a rank uses one GPU, or none"),
        ({"resources_per_worker": {"CPU": -1}}, "resources_per_worker.CPU: expected a number of at least 0, got -1"),
        ({"ray_num_workers": 0}, "ray_num_workers: expected an integer of at least 1, got 0"),
        ({"ray_run_name": "../x"}, "ray_run_name: expected text of the form"),
        ({"ray_run_name": ".."}, "ray_run_name: expected text of the form"),
        ({"ray_num_worker": 2}, "ray_num_worker: unknown key; did you mean ray_num_workers?"),
    ],
)
def test_a_wrong_value_is_explained(keys, message):
    with pytest.raises(ConfigError) as refused:
        config(use_ray=True, **keys)
    assert message in str(refused.value)


def test_keys_that_do_nothing_without_ray_are_warned_of():
    assert config(ray_num_workers=4).warnings == ("<dict>: ray_num_workers: has no effect without --use-ray",)


def test_any_of_them_is_an_option(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("base_model: m\nlearning_rate: 1e-4\ndatasets:\n  - {path: d.jsonl, type: alpaca}\n")
    cfg = load_config(path, {"use_ray": "true", "resources_per_worker.GPU": "1", "ray_address": "10.0.0.1:6379"})
    assert cfg.launch.resources_per_worker == {"GPU": 1}
    assert cfg.launch.ray_address == "10.0.0.1:6379"
