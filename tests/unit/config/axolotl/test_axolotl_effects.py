"""What each key of the configs in `configs/` changes: a probe with the key as the config has it, and without it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from allranks.checkpoint.commit import complete_checkpoints, step_of
from allranks.cluster.identity import identify
from allranks.config.schema import NESTED
from allranks.config.sections.checkpoint import CheckpointConfig
from allranks.config.sections.data import DataConfig
from allranks.config.sections.evaluation import EvaluationConfig
from allranks.config.sections.model import ModelConfig
from allranks.data import load_tokenizer, prepare
from allranks.errors import AllranksError, ConfigError
from allranks.export.export import export
from allranks.observe import RunDir, read_events
from allranks.train.main import main_rank
from tests.unit.config.axolotl.workshop import (
    CONFIGS,
    blocks,
    furnish,
    held_out,
    load,
    loop,
    model,
    order,
    steps,
    texts,
    trained,
)
from tests.unit.data.conftest import make_tokenizer


class Effect(NamedTuple):
    """`config` of the directory; `probe` of it as it is; the same without the key. `base`: overrides of both."""

    config: str
    probe: Callable[..., Any]
    expected: Any
    without: Any
    base: Mapping[str, str] = MappingProxyType({})


def names(cfg):
    """The first word of each document, block by block."""
    return [
        [text.split("Instruction:\n")[-1].split("\n")[0].split()[0].split("<")[0] for text in b] for b in blocks(cfg)
    ]


def flat(cfg):
    return [name for block in names(cfg) for name in block]


def longest(cfg):
    return int(prepare(cfg).train.token_counts.max())


def of_one_length(cfg):
    lengths = order(cfg)
    size = cfg.optimizer.micro_batch_size
    return all(np.ptp(lengths[at : at + size]) <= 2 for at in range(0, len(lengths), size))


def ids(cfg, text):
    return load_tokenizer(cfg)(text, add_special_tokens=False)["input_ids"]


def error(probe):
    """The probe's result, or what the user is told."""

    def told(cfg):
        try:
            return probe(cfg)
        except AllranksError as failed:
            return said(failed)

    return told


def said(failed):
    return next((words for words in ERRORS if words in str(failed)), str(failed))


PROMPTS = ["[calm] Why (tea): It is.<|im_end|>", "[Be brief.] Who: You.<|im_end|>"]
CHAT = [["one", "four"]]
IN_PIECES = ["five", "five", "five", "six"]  # of 16 tokens
THOUGHTS = [
    "user~hi\nassistant~(so)yes<|im_end|>",
    "user~hi\nassistant~(so)yes<|im_end|>",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n",
]
ERRORS = (
    "no document is left of it",
    "no chat template of its own",
    "1 of 3 records are broken",
    "input_ids",
    "no field messages or conversations",
    "no property role or from",
    "role 'asker' is not known",
    "cannot tell its format from its name",
    "is not text",
    "several formats",
    "no field text",
    "no field instruction",
    "no field output",
    "needs `chat_template_jinja`",
    "leaves out its reasoning (reasoning_content) 'so'",
)
IN_FILE_ORDER = {"curriculum_sampling": "null", "shuffle_merged_datasets": "false"}
WHOLE = {"dataset_shard_num": "null", "dataset_shard_idx": "null"}
APART = {**WHOLE, "shuffle_before_merging_datasets": "null"}
NOT_EVALUATED = dict.fromkeys(
    ("eval_sequence_len", "eval_strategy", "eval_steps", "eval_on_start", "early_stopping_patience"), "null"
) | dict.fromkeys(("load_best_model_at_end", "metric_for_best_model", "greater_is_better"), "null")

# Keys that only make sense together are written together.
EFFECTS = {
    # Records: where they come from and which are taken.
    "datasets.0.split": Effect("mixture", lambda c: flat(c)[:2], ["n11", "n13"], ["n1", "n3"], APART),
    "datasets.0.shards datasets.0.shards_idx": Effect(
        "mixture", lambda c: flat(c)[:2], ["n11", "n13"], ["n10", "n11"], APART
    ),
    "datasets.1.weight": Effect("mixture", lambda c: len(flat(c)), 10 + 10, 10 + 40, APART),
    "dataset_shard_num dataset_shard_idx": Effect("mixture", lambda c: len(flat(c)), 10, 20),
    "datasets.0.data_files": Effect("completion", lambda c: prepare(c).stats["datasets"][0]["records"], 3, 4),
    "datasets.0.ds_type": Effect("completion", error(flat), IN_PIECES, "cannot tell its format from its name"),
    "datasets.0.field": Effect("completion", flat, IN_PIECES, ["x", "broken", "y"]),
    "datasets.0.type": Effect("segments", error(trained), [["ked told"]], "input_ids"),
    "skip_invalid": Effect("completion", error(flat), IN_PIECES, "1 of 3 records are broken"),
    "dataset_exact_deduplication": Effect("own-prompt", lambda c: len(texts(c)), 2, 3),
    "min_sample_len": Effect("lora-alpaca", lambda c: len(flat(c)), 2, 4),
    "sequence_len": Effect("completion", longest, 16, 43),
    "excess_length_strategy": Effect(
        *("own-prompt", error(lambda c: len(texts(c))), 2, "no document is left of it"),
        {"excess_length_strategy": "truncate", "sequence_len": "19"},
    ),
    "val_set_size": Effect(
        "lora-alpaca", lambda c: (len(flat(c)), held_out(c) and len(held_out(c))), (2, 2), (4, None)
    ),
    "test_datasets": Effect("evaluating", lambda c: (held_out(c) or [[""]])[0][0][:2], "h0", "", NOT_EVALUATED),
    "eval_sequence_len": Effect("evaluating", lambda c: len(held_out(c)), 10, 8),
    "dataset_prepared_path": Effect(
        "lora-alpaca", lambda c: str(prepare(c).path.parent), "prepared/lora", "last_run_prepared"
    ),
    # Their order, and how they are packed.
    "shuffle_merged_datasets": Effect("mixture", lambda c: flat(c)[:2] == ["n11", "n13"], True, False, APART),
    "shuffle_before_merging_datasets": Effect("mixture", lambda c: flat(c)[:2] == ["n11", "n13"], False, True, WHOLE),
    "curriculum_sampling": Effect(
        "curriculum",
        order,
        [48, 49, 50, 51, 52, 53, 41, 42, 43, 44],
        [44, 50, 43, 42, 49, 48, 53, 52, 41, 51],
        {"sample_packing": "false", "sample_packing_sequentially": "null"},
    ),
    "sample_packing_sequentially": Effect(
        "curriculum",
        names,
        [["q0", "q1", "q2", "q3"], ["q4", "q5", "r0", "r1"], ["r2", "r3"]],
        [["q3", "q4", "q5", "r3"], ["q0", "q1", "q2", "r2"], ["r0", "r1"]],
        IN_FILE_ORDER,
    ),
    "sample_packing": Effect(
        "curriculum", lambda c: len(names(c)), 3, 10, {**IN_FILE_ORDER, "sample_packing_sequentially": "null"}
    ),
    "eval_sample_packing": Effect("lora-alpaca", lambda c: len(held_out(c)), 2, 1),
    "group_by_length": Effect("mixture", of_one_length, True, False),
    "data_seed": Effect(
        "mixture",
        lambda c: order(c) == order(load("mixture", data_seed="42", group_by_length="null")),
        False,
        True,
        {"group_by_length": "null"},
    ),
    # Prompts of one's own: a record with everything in it, and one with the question alone.
    **{
        f"datasets.0.type.{key}": Effect("own-prompt", error(texts), PROMPTS, without)
        for key, without in {
            "system_prompt": [PROMPTS[0], "Who: You.<|im_end|>"],
            "system_format": ["calmWhy (tea): It is.<|im_end|>", "Be brief.Who: You.<|im_end|>"],
            "field_system": ["[Be brief.] Why (tea): It is.<|im_end|>", PROMPTS[1]],
            "field_instruction": "no field instruction",
            "field_input": ["[calm] Why: It is.<|im_end|>", PROMPTS[1]],
            "field_output": "no field output",
            "format": ["[calm] Why teaIt is.<|im_end|>", PROMPTS[1]],
            "no_input_format": [PROMPTS[0], "[Be brief.] Who (): You.<|im_end|>"],
        }.items()
    },
    "train_on_inputs": Effect("segments", trained, [["ked told"]], [["told"]]),
    # Conversations: how they are read, written and masked.
    "chat_template": Effect("chat", error(lambda c: texts(c)[0][:12]), "<|im_start|>", "no chat template of its own"),
    "default_system_message": Effect("chat", lambda c: "Be kind." in texts(c)[0], True, False),
    "datasets.0.field_messages": Effect("chat", error(trained), CHAT, "no field messages or conversations"),
    "datasets.0.message_property_mappings": Effect("chat", error(trained), CHAT, "no property role or from"),
    "datasets.0.roles": Effect("chat", error(trained), CHAT, "role 'asker' is not known"),
    "datasets.0.message_field_training": Effect("chat", trained, CHAT, [["one", "two", "three", "four"]]),
    "datasets.0.message_field_training_detail": Effect("chat", trained, CHAT, [["one", "four five"]]),
    "roles_to_train": Effect("chat", trained, CHAT, [["four"]]),
    "train_on_eos": Effect("chat", trained, CHAT, [["one<|im_end|>", "four", "<|im_end|>"]]),
    "datasets.0.field_system": Effect("tools", lambda c: "be exact" in texts(c)[0], True, False),
    "datasets.0.field_tools": Effect("tools", lambda c: "These functions" in texts(c)[0], True, False),
    "datasets.0.train_on_eos": Effect("tools", lambda c: len(trained(c)[0]), 3, 2),
    "datasets.0.roles_to_train": Effect(
        "tools", lambda c: "rain" in "".join(trained(c)[0][:-1]), False, True, {"roles_to_train": "[assistant, tool]"}
    ),
    "chat_template_jinja": Effect("thinking", error(texts), THOUGHTS, "needs `chat_template_jinja`"),
    "chat_template_kwargs": Effect(
        "thinking", lambda c: texts(c)[0], THOUGHTS[0], "user:hi\nassistant:(so)yes<|im_end|>"
    ),
    "datasets.0.split_thinking": Effect(
        "thinking", lambda c: texts(c)[0], THOUGHTS[0], "user~hi\nassistant~<think>so</think>yes<|im_end|>"
    ),
    "datasets.0.drop_system_message": Effect(
        "thinking", lambda c: texts(c)[0], THOUGHTS[0], "system~be kind\n" + THOUGHTS[0]
    ),
    "datasets.0.template_thinking_key": Effect(
        "thinking", error(texts), THOUGHTS, "leaves out its reasoning (reasoning_content) 'so'"
    ),
    "datasets.1.field_thinking": Effect(
        "thinking", lambda c: texts(c)[1], THOUGHTS[1], "user~hi\nassistant~yes<|im_end|>"
    ),
    "datasets.2.chat_template": Effect(
        "thinking", lambda c: texts(c)[2], THOUGHTS[2], "user~hi\nassistant~yes<|im_end|>"
    ),
    # The tokenizer and the model.
    "tokens": Effect("tokens", lambda c: len(ids(c, "<|call|>")), 1, 5),
    "added_tokens_overrides": Effect("tokens", lambda c: ids(c, "<|tool|>"), [4], [33, 97, 283, 97, 35]),
    **{
        f"special_tokens.{role}_token": Effect(
            "tokens", lambda c, role=role: getattr(load_tokenizer(c), f"{role}_token"), token, before
        )
        for role, token, before in [
            ("bos", "<|im_start|>", None),
            ("eos", "<|endoftext|>", "<|im_end|>"),
            ("pad", "<|im_end|>", "<|endoftext|>"),
            ("unk", "<|reserved_1|>", None),
        ]
    },
    "special_tokens.additional_special_tokens": Effect("tokens", lambda c: len(ids(c, "<|note|>")), 1, 8),
    "resize_token_embeddings_to_32x": Effect("tokens", lambda c: model(c).config.vocab_size, 512, 502),
    "overrides_of_model_config": Effect("tokens", lambda c: model(c).config.rms_norm_eps, 0.5, 1e-6),
    "attn_implementation": Effect(
        "tokens", lambda c: model(c).hf_model.config._attn_implementation == "eager", True, False
    ),
    # When a run evaluates and saves.
    "eval_steps eval_strategy": Effect("evaluating", lambda c: steps("eval_at")(c)[:4], [0, 2, 4, 6], [0, 10, 20, 30]),
    "evals_per_epoch": Effect("lora-alpaca", steps("eval_at"), [5, 10], [10]),
    "eval_on_start": Effect("evaluating", lambda c: 0 in steps("eval_at")(c), True, False),
    "eval_batch_size": Effect("evaluating", lambda c: loop(c).eval_plan.micro_batch_size, 2, 4),
    "early_stopping_patience": Effect("evaluating", lambda c: loop(c).limits.eval_patience, 3, None),
    "load_best_model_at_end": Effect(
        "evaluating", lambda c: loop(c).save_best, True, False, {"metric_for_best_model": "null"}
    ),
    "pad_to_sequence_len": Effect("lora-alpaca", lambda c: loop(c).pad_blocks_to, 256, None),
    "save_strategy save_steps": Effect("evaluating", lambda c: steps("save_at")(c)[:2], [5, 10], [10, 20]),
    "saves_per_epoch": Effect("saving", steps("save_at"), [1, 5, 10], [1, 10]),
    "save_first_step": Effect("saving", steps("save_at"), [1, 5, 10], [5, 10]),
    "save_total_limit": Effect("saving", lambda c: loop(c).checkpointer.keep, 2, 4),
    "save_only_model": Effect("saving", lambda c: loop(c).checkpointer.only_model, True, False),
}


@pytest.fixture(scope="module", autouse=True)
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    furnish(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def test_what_the_base_model_makes_needless_is_told_when_a_run_is_put_together(capsys):
    kind = {"model_quantization_config": "Mxfp4Config", "model_quantization_config_kwargs__dequantize": "true"}
    loop(load("evaluating", output_dir="needless", **kind))
    assert "model_quantization_config: Mxfp4Config is without effect: " in capsys.readouterr().out


@pytest.mark.parametrize("config", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_each_config_loads_and_its_data_can_be_prepared(config):
    cfg = load(config)
    assert len(prepare(cfg).train)
    assert all("has no effect" in line for line in cfg.warnings)


@pytest.mark.parametrize("key", EFFECTS)
def test_the_effect_of(key):
    effect = EFFECTS[key]
    base = {name.replace(".", "__"): text for name, text in effect.base.items()}
    assert effect.probe(load(effect.config, **base)) == effect.expected
    gone = {name.replace(".", "__"): "null" for name in key.split()}
    try:
        without = effect.probe(load(effect.config, **{**base, **gone}))
    except ConfigError as failed:
        without = said(failed)
    assert without == effect.without != effect.expected


class TestARun:
    """What only a whole run shows: on one process, here."""

    def test_the_best_model_is_the_result_although_the_run_saves_by_steps(self, workshop):
        cfg = load("evaluating")
        assert main_rank(cfg, identify({})) == 0
        losses = {event.step: event.eval_loss for event in events(cfg, "eval")}
        assert losses.pop(0), "eval_on_start"
        best = min(losses, key=losses.__getitem__)
        assert max(losses) == best + 3 * 2, "early_stopping_patience: 3 evaluations, 2 steps apart"
        kept = [step_of(path) for path in complete_checkpoints(workshop / cfg.checkpoint.output_dir / "checkpoints")]
        assert set(kept) == {max(losses), best}, "the newest (save_total_limit: 1) and the best"
        export(workshop / cfg.checkpoint.output_dir, workshop / "best", step=best)
        export(workshop / cfg.checkpoint.output_dir, workshop / "last", step=max(losses))
        weights = [load_file(workshop / name / "model.safetensors") for name in ("best", "last")]
        result = load_file(workshop / cfg.checkpoint.output_dir / "model" / "model.safetensors")
        assert all(torch.equal(result[name], weights[0][name]) for name in result)
        assert not all(torch.equal(result[name], weights[1][name]) for name in result)

    def test_what_is_saved(self, workshop):
        cfg = load("saving")
        assert main_rank(cfg, identify({})) == 0
        saved = [event.step for event in events(cfg, "checkpoint") if event.state == "started"]
        assert saved == [1, 4, 8], "save_first_step, then saves_per_epoch: 2"
        folder = workshop / cfg.checkpoint.output_dir / "checkpoints"
        assert [step_of(path) for path in complete_checkpoints(folder)] == [8, 4], "save_total_limit: 2"
        # auto_resume_from_checkpoints finds a checkpoint without the optimizer, and says that it is none to go on from.
        assert main_rank(load("saving", num_epochs="2"), identify({})) != 0
        assert "save_only_model" in events(cfg, "error")[-1].message


def events(cfg, kind):
    return [event for event in read_events(RunDir(cfg.checkpoint.output_dir).events(0)) if event.kind == kind]


# Keys of our sections whose effect another test asserts, or that need a network.
ELSEWHERE = {
    "datasets.overlap": "tests/unit/data/test_prepare.py",
    "datasets": "every test",
    "base_model": "every test",
    "output_dir": "TestARun",
    "datasets.path": "tests/unit/data/test_sources.py",
    "datasets.name": "tests/unit/data/test_sources.py",
    "datasets.revision": "tests/unit/data/test_sources.py",
    "datasets.trust_remote_code": "tests/unit/config/test_config_load.py",
    "datasets.chat_template_jinja": "tests/unit/data/test_templates.py",
    "datasets.train_on_eot": "tests/unit/data/test_chat.py",
    "eot_tokens": "tests/unit/data/test_chat.py",
    "train_on_eot": "tests/unit/data/test_chat.py",
    "dataset_num_proc": "tests/unit/data/test_prepare.py",
    "base_model_config": "tests/unit/export/test_export_checkpoint.py",
    "revision_of_model": "tests/unit/launch/test_manifest.py",
    "tokenizer_config": "test_a_tokenizer_of_another_folder",
    "special_tokens": "special_tokens.*",
    "metric_for_best_model": "tests/unit/config/test_config_load.py",
    "save_async": "tests/cluster/test_trackers.py",
    "resume_from_checkpoint": "tests/cluster/test_invariance.py",
    "auto_resume_from_checkpoints": "TestARun",
    # Accepted for Axolotl's sake: only the value that is true anyway.
    "model_type": "",
    "tokenizer_type": "",
    "trust_remote_code": "",
    "save_safetensors": "",
    "greater_is_better": "",
    "model_quantization_config": "tests/unit/model/test_mxfp4.py",
    "model_quantization_config_kwargs": "tests/unit/model/test_mxfp4.py",
}


def test_every_key_of_ours_is_covered():
    covered = {key for keys in EFFECTS for key in keys.split()}
    covered = {".".join(part for part in key.split(".") if not part.isdecimal()) for key in covered}
    keys = [
        key for section in (DataConfig, ModelConfig, EvaluationConfig, CheckpointConfig) for key in section.model_fields
    ]
    for path in ("datasets.N", "datasets.N.type", "special_tokens"):
        keys += [f"{path.replace('.N', '')}.{key}" for key in NESTED[path].model_fields]
    assert sorted(set(keys) - covered - set(ELSEWHERE)) == []
    assert sorted((covered | set(ELSEWHERE)) - set(keys)) == [], "keys that are no more"
    root = Path(__file__).parents[4]
    assert [place for place in ELSEWHERE.values() if place.startswith("tests/") and not (root / place).is_file()] == []


def test_a_tokenizer_of_another_folder(workshop):
    make_tokenizer(eos="<s>").save_pretrained(workshop / "other")
    assert (
        load_tokenizer(
            load("tokens", tokenizer_config="other", special_tokens="null", added_tokens_overrides="null")
        ).eos_token
        == "<s>"
    )
