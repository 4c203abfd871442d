"""`~` in a key that names a file or folder is a home, as in a shell."""

import re
import typing

import pytest

from allranks.config.load import load_config, resolve_mapping
from allranks.config.run import SECTIONS, RunConfig
from allranks.config.schema import NESTED
from allranks.config.sections.section import FilePath, key_help

PATHS = {
    "base_model": lambda c: c.model.base_model,
    "base_model_config": lambda c: c.model.base_model_config,
    "tokenizer_config": lambda c: c.model.tokenizer_config,
    "output_dir": lambda c: c.checkpoint.output_dir,
    "resume_from_checkpoint": lambda c: c.checkpoint.resume_from_checkpoint,
    "dataset_prepared_path": lambda c: c.data.dataset_prepared_path,
    "chat_template_jinja": lambda c: c.data.chat_template_jinja,
    "datasets.0.path": lambda c: c.data.datasets[0].path,
    "datasets.0.data_files": lambda c: c.data.datasets[0].data_files,
    "lora_model_dir": lambda c: c.adapter.lora_model_dir,
    "mlflow_tracking_uri": lambda c: c.tracking.mlflow_tracking_uri,
}
REST = """\
learning_rate: 1e-4
adapter: lora
lora_r: 8
lora_alpha: 8
base_model: m
datasets:
  - {path: d.jsonl, type: alpaca}
"""


@pytest.mark.parametrize("key", PATHS)
def test_a_home_is_put_in_the_place_of_its_sign(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = tmp_path / "c.yaml"
    config.write_text(REST)
    assert PATHS[key](load_config(config, {key: "~/a b"})) == "/home/me/a b"
    assert PATHS[key](load_config(config, {key: "./~/x~"})) == "./~/x~"
    resolved = load_config(config, {key: "~/a b"})
    assert RunConfig.from_resolved(resolved.flat()).flat() == resolved.flat()


def test_in_the_file_and_in_lists(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    spec = {"path": "~/d", "type": "alpaca", "data_files": ["~/e", "f"]}
    config = resolve_mapping({"base_model": "~/m", "learning_rate": 1e-4, "datasets": [spec], "test_datasets": [spec]})
    assert config.model.base_model == "/home/me/m"
    for found in (config.data.datasets[0], (config.data.test_datasets or [])[0]):
        assert (found.path, found.data_files) == ("/home/me/d", ["/home/me/e", "f"])


def test_a_settings_file_of_deepspeed_is_found_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    (tmp_path / "c.yaml").write_text(REST)
    assert load_config(tmp_path / "c.yaml", {"deepspeed": "~/ds.json"}).deepspeed.stage == 2


def test_no_key_that_names_a_file_or_folder_is_forgotten():
    """By what the docs say of it: whoever adds such a key writes the sentence as well."""
    (_, expand) = typing.get_args(FilePath)
    without = []
    for section in (*SECTIONS.values(), *NESTED.values()):
        for key, sentence in key_help(section).items():
            field = section.model_fields[key]
            names_one = re.match(
                r"(Files?(?! format)|Folder|The run directory|Checkpoint folder)\b|.*\bpath of\b", sentence
            )
            if names_one and expand not in _metadata(field.annotation) + list(field.metadata):
                without.append(key)
    assert without == []


def _metadata(annotation: object) -> list[object]:
    own = list(getattr(annotation, "__metadata__", ()))
    return own + [one for inner in typing.get_args(annotation) for one in _metadata(inner)]
