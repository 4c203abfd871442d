"""Code in a run's folder runs only if the command that exports it says so, whatever the folder says."""

import json
from pathlib import Path

import pytest

from allranks.checkpoint import commit
from allranks.errors import UsageError
from allranks.export.export import export
from tests.tiny_models import saved_model
from tests.tiny_runs import LORA, train

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({ran!r}).touch()

class PlantedConfig(LlamaConfig):
    model_type = "planted"

class PlantedForCausalLM(LlamaForCausalLM):
    config_class = PlantedConfig
"""
AUTO_MAP = {
    "AutoConfig": "modeling_planted.PlantedConfig",
    "AutoModelForCausalLM": "modeling_planted.PlantedForCausalLM",
}


def plant(folder: Path, ran: Path, model_type: str) -> None:
    (folder / "modeling_planted.py").write_text(CODE.format(ran=str(ran)))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": AUTO_MAP}))


def change(checkpoint: Path, **config: object) -> None:
    """Change the checkpoint's config and commit all of it again, as somebody would who wants it to look sound."""
    state = json.loads((checkpoint / "state.json").read_text())
    state["config"] |= config
    (checkpoint / "state.json").write_text(json.dumps(state))
    files = [path for path in checkpoint.rglob("*") if path.is_file() and path.name != commit.MARKER]
    commit.commit(checkpoint, {str(path.relative_to(checkpoint)): commit.digest(path) for path in files}, step=7)


@pytest.fixture
def planted(tmp_path):
    """Makes a run whose folder holds code; returns the run and the file that the code writes when imported."""

    def make(model_type: str = "planted", claims: bool = True, **keys: object) -> tuple[Path, Path]:
        run, ran = tmp_path / "run", tmp_path / "ran"
        checkpoint = train(run, "llama", **keys).run / "checkpoints" / "step-00000007"
        plant(checkpoint / "hf", ran, model_type)
        change(checkpoint, trust_remote_code=claims)
        return run, ran

    return make


@pytest.mark.parametrize("keys", [{}, LORA], ids=["model", "adapter"])
@pytest.mark.parametrize(("model_type", "claims"), [("planted", True), ("llama", True), ("planted", False)])
def test_the_folder_is_no_consent(planted, keys, model_type, claims):
    run, ran = planted(model_type, claims, **keys)
    with pytest.raises(UsageError, match=r"hf/config\.json names Python code .*modeling_planted.* --trust-remote-code"):
        export(run)
    assert not ran.exists()
    assert not (run / "export").exists()


def test_the_option_is(planted):
    run, ran = planted()
    assert export(run, trust_remote_code=True).kind == "model"
    assert ran.exists()


def test_code_that_nobody_needs_does_not_run_and_asks_for_nothing(planted):
    run, ran = planted("llama", claims=False)
    assert export(run).kind == "model"
    assert export(run, run / "other", trust_remote_code=True).kind == "model"
    assert not ran.exists()


def test_the_folder_cannot_send_a_merge_to_a_base_model_with_code(tmp_path):
    ran, base = tmp_path / "ran", tmp_path / "base"
    checkpoint = train(tmp_path / "run", "llama", **LORA).run / "checkpoints" / "step-00000007"
    base.mkdir()
    for file in Path(saved_model("llama")).iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    plant(base, ran, "planted")
    change(checkpoint, trust_remote_code=True, base_model=str(base))
    with pytest.raises(UsageError, match=r"base/config\.json names Python code"):
        export(tmp_path / "run", merge=True)
    assert not ran.exists()


def test_no_module_that_an_adapter_config_names_is_imported(tmp_path, monkeypatch):
    checkpoint = train(tmp_path / "run", "llama", **LORA).run / "checkpoints" / "step-00000007"
    (tmp_path / "planted_core.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = checkpoint / "hf" / "adapter_config.json"
    changed = {"megatron_config": {"a": 1}, "megatron_core": "planted_core"}
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    change(checkpoint)
    with pytest.raises(UsageError, match="megatron_config"):
        export(tmp_path / "run")
    assert not (tmp_path / "ran").exists()
