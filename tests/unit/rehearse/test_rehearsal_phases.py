"""A rehearsal that fails names the phase and the cause, ends with its exit code, and leaves nothing."""

import json
import shutil
import signal
import tempfile

import pytest
import yaml
from transformers import AutoConfig, AutoTokenizer

from allranks.config import load_config
from allranks.demo import write_files
from allranks.demo.commands import Command
from allranks.errors import UsageError
from allranks.model.shrink import random_model, shrink
from allranks.rehearse import Rehearsal, rehearse
from allranks.rehearse.files import write_model
from allranks.rehearse.nodes import PhaseError, run_phase, train_commands


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_files(tmp_path_factory.mktemp("tiny"), num_records=30, vocab_size=400, hidden_size=32, num_layers=1)


@pytest.fixture
def config(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()

    def write(**keys):
        base = yaml.safe_load(tiny.config.read_text()) | {"output_dir": str(tmp_path / "out")}
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(base | keys))
        return path

    return write


def nothing_left(tmp_path):
    return not list((tmp_path / "tmp").iterdir()) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("phase", "keys", "cause"),
    [
        ("model", {"base_model": "/no/where"}, "base_model: /no/where is not a folder"),
        ("data", {"datasets": [{"path": "/no/data.jsonl", "type": "chat_template"}]}, "/no/data.jsonl does not exist"),
        ("data", {"roles_to_train": ["nobody"]}, "nobody"),
    ],
)
def test_a_phase_that_fails_is_named_with_its_cause(config, tmp_path, capsys, phase, keys, cause):
    assert rehearse(Rehearsal(config(**keys), as_json=True)) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["ok"], told["exit_code"]) == (False, 2)
    failed = told["phases"][-1]
    assert (failed["name"], failed["state"]) == (phase, "failed") and cause in failed["text"]
    assert all(one["state"] == "ok" for one in told["phases"][:-1])
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("asked", [{"num_nodes": 0}, {"num_nodes": -1}, {"nproc_per_node": 0}, {"num_nodes": 17}])
def test_a_number_of_nodes_that_cannot_be_is_refused(config, tmp_path, asked):
    with pytest.raises(UsageError):
        rehearse(Rehearsal(config(), **asked))
    assert nothing_left(tmp_path)


def test_a_folder_to_keep_that_holds_something_is_refused(config, tmp_path):
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "mine").touch()
    with pytest.raises(UsageError, match="files in it"):
        rehearse(Rehearsal(config(), keep=tmp_path / "keep"))
    assert [path.name for path in (tmp_path / "keep").iterdir()] == ["mine"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_the_folder_and_answers_as_before_afterwards(config, tmp_path, monkeypatch, number):
    monkeypatch.setattr("allranks.rehearse.story.write_model", lambda *_: signal.raise_signal(number))
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        rehearse(Rehearsal(config()))
    assert end.value.code == 128 + number and signal.getsignal(number) is before
    assert nothing_left(tmp_path)


def test_no_weights_are_read_and_the_tokenizer_is_the_users(config, tiny, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(tiny.model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    (bare / "model.safetensors").write_text("no weights at all")
    write_model(load_config(config(base_model=str(bare)), {}), tmp_path / "small")
    small = AutoConfig.from_pretrained(tmp_path / "small")
    assert small.vocab_size == AutoConfig.from_pretrained(tiny.model).vocab_size
    text = "What does os.path.join do?"
    own, users = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "small", tiny.model))
    assert own.encode(text) == users.encode(text) and own.chat_template == users.chat_template


def test_a_small_model_does_not_grow():
    tiny_config = AutoConfig.for_model("llama", hidden_size=32, num_attention_heads=2, num_key_value_heads=2)
    small = shrink(tiny_config).config
    assert (small.hidden_size, small.num_attention_heads, small.num_key_value_heads) == (32, 2, 2)
    assert random_model(small)


def test_the_exit_code_and_the_words_of_a_failing_part_come_through(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("import sys; print('error: the port is taken'); print('  use another'); sys.exit(3)")
    with pytest.raises(PhaseError, match=r"node 0: the port is taken\n    use another") as failed:
        run_phase([Command("node 0", ("python", str(script)), tmp_path / "log")])
    assert failed.value.exit_code == 3


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_each_node_gets_its_place(tmp_path, nodes):
    made = train_commands(tmp_path / "c", tmp_path, "train", num_nodes=nodes, words=(), nproc_per_node=1)
    ranks = [one.args[one.args.index("--node-rank") + 1] for one in made if "--node-rank" in one.args]
    assert ranks == ([str(node) for node in range(nodes)] if nodes > 1 else [])
    by_c10d = train_commands(
        tmp_path / "c", tmp_path, "t", num_nodes=2, words=("--rdzv-backend", "c10d"), nproc_per_node=1
    )
    assert all("--rdzv-endpoint" in one.args and "--node-rank" not in one.args for one in by_c10d)
    words = ("--launcher", "torchrun", "--rdzv-backend", "c10d", "--resume")
    (alone,) = train_commands(tmp_path / "c", tmp_path, "t", num_nodes=1, words=words, nproc_per_node=1)
    assert "c10d" not in alone.args and alone.args[-3:] == ("--launcher", "torchrun", "--resume")
