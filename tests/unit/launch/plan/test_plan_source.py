"""What a plan is made from: a config and its model's config.json, a model alone, the data that is prepared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from allranks.config import load_config
from allranks.data import prepare
from allranks.errors import ConfigError, UsageError
from allranks.launch.plan.machines import Asked
from allranks.launch.plan.make import make_plan
from allranks.launch.plan.source import lengths_of, schedule, source_of
from allranks.plan.config_workload import own_workload
from allranks.plan.lengths import Lengths, of_blocks
from tests.planned import MODEL as QWEN3
from tests.planned import SMALL
from tests.unit.data.conftest import make_tokenizer, save_model_folder

MODEL = {"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 2}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    return folder


def written(tmp_path, model, **keys):
    path = tmp_path / "c.yaml"
    data = [{"path": str(tmp_path / "d.jsonl"), "type": "completion"}]
    own = {"base_model": str(model), "datasets": data, "learning_rate": 1e-4, "sequence_len": 32}
    own["dataset_prepared_path"] = str(tmp_path / "prepared")
    path.write_text(yaml.safe_dump({**own, **keys}))
    return path


def test_a_model_alone_is_a_usual_config_with_the_options(model):
    for path in (model, model / "config.json"):
        source = source_of(path, {"sequence-len": "512", "fsdp_config.reshard_after_forward": "false"})
        assert source.config_json["hidden_size"] == 64
        assert source.cfg.data.sequence_len == 512 and not source.cfg.parallel.fsdp_settings.reshard_after_forward
        assert source.usual["sequence_len"] == 512
        assert source.usual["fsdp_config"] == {"reshard_after_forward": False}
    assert source_of(model, {"adapter": "qlora"}).cfg.adapter.quantized_bits == 4


def test_of_a_config_the_keys_that_it_has_are_known_and_the_models_are_changed_as_it_says(tmp_path, model):
    path = written(tmp_path, model, fsdp_version=2, overrides_of_model_config={"num_hidden_layers": 7})
    source = source_of(path, {"micro-batch-size": "2"})
    assert source.usual is None and {"fsdp_version", "micro_batch_size"} <= source.given
    assert "adapter" not in source.given
    assert source.config_json["num_hidden_layers"] == 7


def test_an_entry_that_the_models_config_does_not_have_is_refused_as_ranks_would(tmp_path, model):
    path = written(tmp_path, model, overrides_of_model_config={"num_hiden_layers": 7})
    with pytest.raises(ConfigError, match=r"overrides_of_model_config: the config of \w+ has no num_hiden_layers"):
        source_of(path, {})
    for alone in (model, model / "config.json"):
        with pytest.raises(ConfigError, match="has no num_hiden_layers"):
            source_of(alone, {"overrides-of-model-config.num_hiden_layers": "7"})


def test_what_is_no_model_is_told(tmp_path, model):
    with pytest.raises(UsageError, match=r"hf download org/none config\.json`"):
        source_of(written(tmp_path, "org/none"), {})
    with pytest.raises(UsageError, match=r"in this revision\. .*hf download org/none config\.json --revision v2`"):
        source_of(written(tmp_path, "org/none", revision_of_model="v2"), {})
    with pytest.raises(UsageError, match=r"^org/none: no such file; give a YAML config, or a model's config\.json"):
        source_of(Path("org/none"), {})
    with pytest.raises(UsageError, match=r"c\.yaml: base_model_config: /none is neither"):
        source_of(written(tmp_path, model, base_model_config="/none"), {})
    with pytest.raises(UsageError, match=r"c\.yaml: base_model: /\S+ is no folder on this node") as told:
        source_of(written(tmp_path, tmp_path / "none"), {})
    assert "hf download" not in str(told.value)
    with pytest.raises(UsageError, match=r"has no config\.json; a plan needs a YAML config, or a model's"):
        source_of(tmp_path, {})
    (model / "config.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        source_of(model, {})
    (model / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="no model_type"):
        source_of(model, {})
    with pytest.raises(ConfigError, match="did you mean"):
        source_of(model, {"sequence-length": "3"})


def test_the_lengths_of_prepared_data_are_its_own_and_full_blocks_are_assumed_before(tmp_path):
    model = save_model_folder(tmp_path / "model", make_tokenizer())
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": "ab " * n}) + "\n" for n in (1, 2, 3, 8)))
    path = written(tmp_path, model, micro_batch_size=2, num_epochs=3)
    before = lengths_of(source_of(path, {}))
    assert before == Lengths(32, 32, 32.0)
    assert schedule(load_config(path), 2, before) is None
    assert schedule(load_config(path, {"max_steps": "9"}), 2, before).num_steps == 9
    prepared = prepare(load_config(path))
    found = lengths_of(source_of(path, {}))
    counts, targets = prepared.train.token_counts.tolist(), int(prepared.train.target_counts.sum())
    documents = {count: counts.count(count) for count in counts}  # not packed: a block is a document
    assert found == of_blocks(counts, targets, documents, 2, padded_to=None)
    assert found.num_blocks == 4 and found.longest < 32 and found.mean == sum(counts) / 4
    assert schedule(load_config(path), 2, found).num_steps == 6
    padded = lengths_of(source_of(path, {"pad_to_sequence_len": "true"}))
    assert (padded.longest, padded.usual, padded.mean) == (32, 32, found.mean)


def test_a_micro_batch_is_at_most_as_long_as_the_longest_blocks():
    found = of_blocks([10, 4, 6, 4], 12, {10: 1, 6: 1, 4: 2}, 2, padded_to=None)
    documents = ((4.0, 0.5), (6.0, 0.25), (10.0, 0.25))
    assert found == Lengths(8, 6, 6.0, labelled=0.5, num_blocks=4, documents=documents, sizes=(10, 6, 4, 4))


def test_documents_about_as_long_count_together_for_the_same_attention():
    lengths = {n: 1 + n % 7 for n in range(1, 4000)}
    tokens = sum(n * number for n, number in lengths.items())
    found = of_blocks([4000] * (tokens // 4000), 9, lengths, 1, padded_to=None)
    assert len(found.documents) < 50
    blocks = found.num_blocks
    assert sum(number for _, number in found.documents) * blocks == pytest.approx(sum(lengths.values()))
    squares = sum(n**2 * number for n, number in lengths.items())
    assert sum(n**2 * number for n, number in found.documents) * blocks == pytest.approx(squares)


def test_padding_is_one_more_document_of_a_micro_batch_without_labels(tmp_path, model):
    found = of_blocks([10, 4, 6, 4], 12, {10: 1, 6: 1, 4: 2}, 2, padded_to=16)
    assert found.documents[-1] == (20.0, 0.5)
    source = source_of(written(tmp_path, model), {})
    shape = {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 128, "vocab_size": 500}
    own = own_workload(source.cfg, {**source.config_json, **shape}, num_nodes=1, gpus_per_node=1, on_cpu=True)
    usual = found.usual_of(own)
    assert usual.tokens == 16 and usual.tokens * usual.labelled == 3.0


def test_a_plan_says_for_which_rank_the_others_wait(tmp_path):
    """Rows of one document each, of which a few are long, and packed ones of the same."""
    folder = save_model_folder(tmp_path / "model", make_tokenizer())
    (folder / "config.json").write_text(json.dumps({**QWEN3, **SMALL}))
    texts = ["ab " * (28 if number % 8 == 0 else 3) for number in range(64)]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    told = {}
    for packs in (False, True):
        path = written(tmp_path, folder, micro_batch_size=1, sample_packing=packs, pad_to_sequence_len=False)
        prepare(load_config(path))
        plan = make_plan(path, {}, Asked(num_nodes=1, gpus_per_node=8, gpu="h100-80gb"))
        told[packs] = [line for line in plan.assumptions if "rank with the longest rows" in line]
    assert len(told[False]) == 1 and told[False][0].endswith("sample_packing: true makes rows alike")
    assert not any("sample_packing" in line for line in told[True])
