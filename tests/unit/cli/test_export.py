import json

import pytest
import yaml
from transformers import AutoModelForCausalLM

from allranks.checkpoint import commit
from allranks.cli.export import _bytes
from allranks.cli.main import main
from allranks.errors import UsageError
from tests.tiny_runs import LORA, train


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(list(arguments))
    return int(done.value.code or 0)


def test_export_writes_beside_the_run_and_tells_what(tmp_path, capsys):
    train(tmp_path, "llama")
    capsys.readouterr()  # what libraries print when they are imported
    assert run("export", str(tmp_path), "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["kind"] == "model" and told["step"] == 7 and told["num_bytes"] > 0
    AutoModelForCausalLM.from_pretrained(told["folder"])
    assert run("export", str(tmp_path)) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "kind"), [("merge-lora", "merged model"), ("export", "adapter")])
def test_a_config_stands_for_its_run(tmp_path, capsys, command, kind):
    trained = train(tmp_path / "run", "llama", **LORA)
    config = tmp_path / "config.yaml"
    keys = trained.model_keys | {"output_dir": str(tmp_path / "run"), **LORA}
    config.write_text(yaml.safe_dump(keys))
    assert run(command, str(config), "--output", str(tmp_path / "out")) == 0
    assert capsys.readouterr().out.startswith(f"{kind} of step 7: {tmp_path / 'out'}")


def test_axolotls_name_for_sharded_runs(tmp_path, capsys):
    train(tmp_path, "llama-tied")
    assert run("merge-sharded-fsdp-weights", str(tmp_path)) == 0
    assert (tmp_path / "merged" / "model.safetensors").is_file()


@pytest.mark.parametrize("command", ["export", "merge-lora", "merge-sharded-fsdp-weights"])
def test_consent_to_a_models_code_is_an_option_of_each_command(tmp_path, capsys, command):
    hf = train(tmp_path, "llama").run / "checkpoints" / "step-00000007" / "hf"
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | {"model_type": "m", "auto_map": {"AutoConfig": "code.Config"}}))
    files = [path for path in hf.parent.rglob("*") if path.is_file() and path.name != commit.MARKER]
    commit.commit(hf.parent, {str(path.relative_to(hf.parent)): commit.digest(path) for path in files}, step=7)
    assert run(command, str(tmp_path)) == 2
    assert "then give --trust-remote-code" in capsys.readouterr().err
    with pytest.raises(OSError, match=r"code\.py"):
        main([command, str(tmp_path), "--trust-remote-code"])


def test_no_such_run(tmp_path, capsys):
    assert run("export", str(tmp_path / "nowhere")) == 2
    assert "does not exist" in capsys.readouterr().err
    assert run("export", str(tmp_path)) == 2
    assert "no complete checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "size"), [("5GB", 5 * 10**9), ("1.5 mb", 1_500_000), ("2GiB", 2 << 30)])
def test_sizes(text, size):
    assert _bytes(text) == size


@pytest.mark.parametrize("text", ["5", "GB", "-1GB", "0GB", "five GB"])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match="such as 5GB"):
        _bytes(text)
