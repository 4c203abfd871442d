"""Bad input through the real command line: exit 2 or 3, one screen that says where and what to do, nothing left."""

import json
import shutil

import pytest

SCREEN_LINES = 24
RECORD = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]})


@pytest.fixture
def refused(run, tmp_path):
    """Run `allranks train` with `keys` on top of a good config; it must be refused, with all `parts` in the message."""

    def refuse(*parts: str, arguments: tuple[str, ...] = (), code: int = 2, **keys: object) -> None:
        prepared = tmp_path / "prepared"
        output = run(*arguments, expect=code, **{"dataset_prepared_path": str(prepared), **keys}).output
        lines = output.splitlines()
        assert len(lines) <= SCREEN_LINES, output
        assert "Traceback" not in output
        assert sum(line.startswith("error: ") for line in lines) == 1, output
        for part in parts:
            assert part in output
        assert not list(prepared.glob(".*building*"))
        # Data that was prepared before the error is whole, and is used when the error is mended.
        assert {path.parent.parent for path in prepared.rglob("*.npy")} == {
            path.parent for path in prepared.rglob("manifest.json")
        }
        assert not list((tmp_path / "run").rglob("step-*"))

    return refuse


@pytest.fixture
def refused_at_once(refused, tmp_path):
    """The same for what the config alone tells: not one file is made."""

    def refuse(*parts: str, **keys: object) -> None:
        refused(*parts, **keys)
        assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]

    return refuse


def data(path, text: str) -> list[dict]:
    path.write_text(text)
    return [{"path": str(path), "type": "chat_template"}]


def test_a_misspelt_key(refused_at_once):
    refused_at_once("run.yaml:", "learning_rte: unknown key; did you mean learning_rate?", learning_rte=1e-4)


def test_a_misspelt_option(refused_at_once):
    refused_at_once("--max-step: unknown option", "did you mean --max-steps?", arguments=("--max-step", "3"))


def test_a_wrong_type(refused_at_once):
    refused_at_once("run.yaml:", "micro_batch_size: expected an integer", "got 'two'", micro_batch_size="two")


def test_two_keys_that_exclude_each_other(refused_at_once):
    refused_at_once("run.yaml:", "warmup_ratio: excludes warmup_steps (", "keep one of them", warmup_ratio=0.1)


def test_a_sequence_length_of_0(refused_at_once):
    refused_at_once("run.yaml:", "sequence_len: expected an integer of at least 1, got 0", sequence_len=0)


def test_local_state_dict(refused_at_once):
    refused_at_once(
        "run.yaml:",
        "fsdp_config.state_dict_type",
        "SHARDED_STATE_DICT",
        fsdp_config={"state_dict_type": "LOCAL_STATE_DICT"},
    )


def test_no_such_data_file(refused, tmp_path):
    refused("nowhere.jsonl", "does not exist", datasets=[{"path": str(tmp_path / "nowhere.jsonl"), "type": "alpaca"}])


def test_an_empty_data_file(refused, tmp_path):
    refused("empty.jsonl", datasets=data(tmp_path / "empty.jsonl", ""))


def test_a_broken_line(refused, tmp_path):
    broken = f'{RECORD}\n{RECORD}\n{{"messages": [\n{RECORD}\n'
    refused("broken.jsonl:3", "skip_invalid: true", datasets=data(tmp_path / "broken.jsonl", broken))


@pytest.mark.parametrize("ranks", ["1", "2"])
def test_a_wrong_layer_class(refused, ranks):
    keys = {"fsdp_version": 2, "fsdp_config": {"transformer_layer_cls_to_wrap": "LlamaDecoderLayer"}}
    parts = ("transformer_layer_cls_to_wrap", "LlamaDecoderLayer", "Qwen3DecoderLayer")
    refused(*parts, arguments=("--nproc-per-node", ranks), **keys)


def test_an_output_directory_that_cannot_be_written(refused, tmp_path):
    (tmp_path / "file").touch()
    output_dir = tmp_path / "file" / "run"
    refused("output_dir", "file/run", "cannot be written", "--output-dir", code=3, output_dir=output_dir)


@pytest.mark.parametrize("key", ["base_model", "tokenizer_config"])
def test_no_such_model_or_tokenizer_folder(refused, tmp_path, key):
    refused(f"{key}: {tmp_path}/nowhere", **{key: f"{tmp_path}/nowhere"})


def test_a_model_folder_without_weights(refused, tiny, tmp_path):
    shutil.copytree(tiny.model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors*"))
    refused(f"{tmp_path}/model", "safetensors", base_model=str(tmp_path / "model"))
