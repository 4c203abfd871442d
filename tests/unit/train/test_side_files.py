"""What every checkpoint needs beside its weights is made before the first step, and no save can fail on it."""

import json
import shutil

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from allranks.errors import ConfigError, RefusedError
from allranks.model.build import build_model
from allranks.observe import RunDir
from allranks.train.side_files import make_side_files
from allranks.train.storage import ALONE
from tests.tiny_models import VOCABULARY, config_for, one_process, saved_model


@pytest.fixture
def base(tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(saved_model("llama"), folder)
    words = {f"w{number}": number for number in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w2", pad_token="w0").save_pretrained(folder)
    return folder


def made(tmp_path, base, **keys):
    cfg = config_for(base, output_dir=str(tmp_path / "run"), **keys)
    told = []
    files = make_side_files(cfg, build_model(cfg, one_process()), ALONE, RunDir(tmp_path / "run"), told.append)
    return files, told


def test_sampling_values_without_do_sample_cost_no_run(tmp_path, base):
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.9, "top_p": 0.6, "eos_token_id": 2}))
    files, told = made(tmp_path, base)
    (tmp_path / "hf").mkdir()
    files.write(tmp_path / "hf")
    read = GenerationConfig.from_pretrained(tmp_path / "hf")
    assert (read.temperature, read.top_p, read.do_sample, read.eos_token_id) == (0.9, 0.6, True, 2)
    assert AutoTokenizer.from_pretrained(tmp_path / "hf").eos_token == "w2"
    [line] = told
    assert "do_sample is not set, which temperature, top_p need" in line
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]


def test_what_cannot_be_written_is_refused_before_the_first_step(tmp_path, base, monkeypatch):
    def refuse(self, *args, **options):
        raise TypeError("Object of type dtype is not JSON serializable")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", refuse)
    with pytest.raises(ConfigError, match=r"the tokenizer of .*base cannot be written.*not JSON serializable"):
        made(tmp_path, base)


def test_a_folder_for_checkpoints_that_is_none_is_refused_before_the_first_step(tmp_path, base):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("")
    with pytest.raises(RefusedError, match="checkpoints cannot be written"):
        made(tmp_path, base)


def test_what_stops_a_turn_in_the_trained_text_is_the_end_in_every_file(tmp_path, base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.save_pretrained(base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))
    data = [{"path": "none.jsonl", "type": "chat_template"}]
    files, _ = made(tmp_path, base, datasets=data, chat_template="chatml", train_on_eot="turn")
    (tmp_path / "hf").mkdir()
    files.write(tmp_path / "hf")
    written = AutoTokenizer.from_pretrained(tmp_path / "hf")
    end = written.convert_tokens_to_ids("<|im_end|>")
    assert written.eos_token == "<|im_end|>" and "<|im_end|>" in written.chat_template
    assert GenerationConfig.from_pretrained(tmp_path / "hf").eos_token_id == [end, 2]
    assert AutoConfig.from_pretrained(tmp_path / "hf").eos_token_id == [end, 2]
