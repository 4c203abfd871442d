"""`allranks plan`: what it prints, what a program reads, and that it needs no torch."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy
import pytest
import yaml
from safetensors.numpy import save_file
from transformers import PreTrainedConfig

from allranks.config import load_config
from allranks.config.batch import global_batch
from allranks.errors import AllranksError, ConfigError, UsageError
from allranks.launch.plan.machines import Asked
from allranks.launch.plan.make import make_plan
from allranks.plan.counted import num_parameters
from allranks.plan.message import to_json
from allranks.plan.text import in_full
from tests.planned import CONFIG, FSDP2, LORA, MODEL

TWO_NODES = Asked(num_nodes=2, gpus_per_node=8, gpu="h100-80gb", link="8xib-ndr", price_per_gpu_hour=2.5)
MIXTURE = {
    "model_type": "qwen3_moe",
    **{key: value for key, value in MODEL.items() if key != "model_type"},
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 1536,
    "num_hidden_layers": 4,
}


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    return folder


@pytest.fixture
def config(tmp_path, model):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**CONFIG, **FSDP2, "base_model": str(model), "max_steps": 1000}))
    return path


def planned(config, asked=TWO_NODES, **overrides):
    return make_plan(config, overrides, asked)


def test_torch_is_not_loaded_for_it_and_the_text_says_what_is_best(config):
    code = (
        "import atexit, sys\n"
        "from allranks.cli.main import main\n"
        "slow = ('torch', 'numpy', 'transformers')\n"
        "atexit.register(lambda: print([name for name in slow if name in sys.modules], file=sys.stderr))\n"
        "main()"
    )
    words = ["plan", str(config), "--nodes", "2", "--gpu", "h100-80gb", "--link", "8xib-ndr"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")
    assert "8.19 billion parameters, 36 layers" in done.stdout
    assert "64 = 1 (micro_batch_size) x 4 (accumulation) x 2 (nodes) x 8 (ranks a node)" in done.stdout
    assert "the best, as lines of the config" in done.stdout and "assumed:" in done.stdout


def test_a_batch_that_the_ranks_do_not_divide_is_the_one_that_is_trained(config):
    keys = {"batch_size": "100", "gradient_accumulation_steps": "null", "micro_batch_size": "2"}
    plan, trained = planned(config, **keys), global_batch(load_config(config, keys).optimizer, num_ranks=16)
    told = json.loads(to_json(plan))
    scaled = [one["same_batch"] for one in told["scaling"]]
    assert {row["effective_batch"] for row in told["rows"] + scaled} == {trained} == {100}
    own = next(row for row in told["rows"] if row["is_own"])
    assert own["effective_batch"] + own["empty_places"] == own["micro_batch_size"] * own["accumulation"] * 16
    assert f"batch:      {trained} (`batch_size: {trained}`) in 128 places" in in_full(plan)


def test_the_lines_that_are_printed_make_the_best_of_the_config(config, tmp_path):
    plan = planned(config)
    shown = in_full(plan).partition("the best, as lines of the config")[2]
    lines = yaml.safe_load(shown.partition("\n\n")[2].partition("\n\nmemory")[0])
    assert lines == dict(plan.lines)
    mine = yaml.safe_load(config.read_text())
    changed = tmp_path / "changed.yaml"
    changed.write_text(yaml.safe_dump({**{k: v for k, v in mine.items() if k not in plan.replaced}, **lines}))
    load_config(changed)
    again = planned(changed)
    assert again.best.is_own and again.best.memory == plan.best.memory


def test_where_deepspeed_has_the_batch_as_well_it_is_said_what_it_has_to_say(config, model):
    """Numbers in its settings contradict other lines; what they do not have does not."""
    numbers = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 64}
    for has in ({}, numbers):
        given = {**CONFIG, "base_model": str(model), "deepspeed": {"zero_optimization": {"stage": 3}, **has}}
        config.write_text(yaml.safe_dump(given))
        plan = planned(config)
        assert any("deepspeed" in one.workload.changes for one in plan.rows)
        read = json.loads(to_json(plan))["rows"]
        for one, row in zip(plan.rows, read, strict=True):
            lines = {key: value for key, value in one.workload.changes.items() if value is not None}
            told = in_full(replace(plan, rows=[one, *plan.rows], lines=lines))
            needed = bool(has) and "micro_batch_size" in lines and "deepspeed" not in one.workload.changes
            assert set(row["deepspeed_changes"]) == (set(numbers) if needed else set())
            shown = "`auto` for train_batch_size, train_micro_batch_size_per_gpu, where" in told
            assert shown == (needed and one.fits)


def test_a_program_reads_the_same(config):
    plan = planned(config)
    read = json.loads(to_json(plan))
    assert read["rows"][0]["memory_bytes"]["total"] == plan.best.memory.total
    assert {"parameters", "gradients", "optimizer", "activations", "logits"} < set(read["rows"][0]["memory_bytes"])
    assert read["best"]["run"]["num_steps"] == 1000
    assert read["best"]["run"]["cost"] == pytest.approx(16 * 2.5 * read["best"]["run"]["hours"])
    assert [one["nodes"] for one in read["scaling"]] == [1, 2]
    assert read["error_bounds"]["memory"] > 0 and read["assumptions"]


def test_that_a_part_of_the_model_is_counted_as_the_whole_is_told(config):
    told = "unfrozen_parameters: all is counted as if the whole model were trained"
    assert told not in to_json(planned(config))
    assert told in to_json(planned(config, unfrozen_parameters="['model.layers.1.*']"))


def test_what_cannot_fit_says_what_would(config):
    plan = planned(config, Asked(num_nodes=1, gpus_per_node=2, gpu="l40s"))
    assert not plan.own.fits and any(one.is_enough for one in plan.remedies)
    text = in_full(plan)
    assert "this config does not fit: " in text
    assert "gradient_checkpointing: true" in text and "Q-LoRA" in text and "nodes" in text


@pytest.mark.parametrize("width", [80, 200])
def test_a_table_fits_the_terminal(config, width):
    shown = in_full(planned(config), width=width).partition("the best")[0].splitlines()
    (first,) = (number for number, line in enumerate(shown) if "strategy" in line)
    (last,) = (number for number, line in enumerate(shown) if line.startswith("* this config."))  # folded when printed
    table = shown[first:last]
    assert max(map(len, table)) <= width
    assert any("of a step" in line for line in table)


def test_a_batch_is_kept_on_other_nodes_or_it_is_said_that_it_cannot(config):
    assert planned(config, Asked(2, 8, "h100-80gb", "8xib-ndr", batch=256)).own.batch.told().startswith("256 = 1 ")
    uneven = planned(config, Asked(3, 8, "h100-80gb", "8xib-ndr", batch=256))
    assert "256 (`batch_size: 256`) in 264 places" in in_full(uneven)


@pytest.mark.parametrize("key", ["batch_size", "batch-size", "gradient_accumulation_steps"])
def test_a_batch_that_is_said_twice_is_refused(config, key):
    with pytest.raises(AllranksError, match=f"--{key.replace('_', '-')}: --batch says"):
        planned(config, Asked(2, 8, "h100-80gb", batch=256), **{key: "2"})


def test_a_mixture_of_experts_is_planned_from_its_config_alone(model):
    (model / "config.json").write_text(json.dumps(MIXTURE))
    plan = planned(model / "config.json")
    assert "8 of 128 experts for a token" in plan.model
    assert yaml.safe_load(in_full(plan).partition("as lines of the config:")[2].partition("\n\nmemory")[0])


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Asked(gpu="h1000"), "no device 'h1000' is known"),
        (Asked(gpu="h100-80gb", link="fast"), "no link 'fast' is known"),
        (Asked(gpu="h100-80gb", link=""), "no link '' is known"),
        (Asked(gpu="h100-80gb", price_per_gpu_hour=math.inf), "--price-per-gpu-hour: expected a number, got inf"),
    ],
)
def test_names_that_are_not_known_are_told(config, asked, said):
    with pytest.raises(AllranksError, match=said):
        planned(config, asked)


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"quant_method": "gptq", "bits": 4}, LORA),
        ({"quant_method": "awq", "bits": 4}, {**LORA, "adapter": "qlora"}),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, {}),
        ({"quant_method": "mxfp4"}, {**LORA, "adapter": "qlora"}),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {}),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {**LORA, "load_in_8bit": True}),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {**LORA, "peft_use_dora": True}),
    ],
)
def test_stored_weights_that_training_refuses_are_refused_in_the_same_words(config, model, settings, keys):
    from allranks.model.quantized.stored import stored_settings

    (model / "config.json").write_text(json.dumps({**MODEL, "quantization_config": settings}))
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **keys}))
    with pytest.raises(ConfigError) as of_training:
        stored_settings(PreTrainedConfig(quantization_config=settings), load_config(config), model)
    with pytest.raises(ConfigError) as of_plan:
        planned(config)
    assert str(of_plan.value) == str(of_training.value)


def test_over_weights_stored_in_4_bits_what_is_planned_is_held_so_and_nothing_is_offered_that_cannot_be(config, model):
    def rows_of(adapter, **settings):
        (model / "config.json").write_text(json.dumps({**MODEL, **settings}))
        config.write_text(yaml.safe_dump({**CONFIG, **FSDP2, **LORA, "base_model": str(model), "adapter": adapter}))
        return planned(config)

    as_asked = rows_of("qlora")
    stored = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_type": "nf4"}
    found = rows_of("lora", quantization_config={"quant_method": "bitsandbytes", **stored})
    assert {one.workload.method for one in as_asked.rows} == {"full", "lora", "qlora"}
    assert {one.workload.method for one in found.rows} == {"qlora"}
    assert found.own.memory == as_asked.own.memory
    assert len({one.workload.name for one in found.rows}) > 3
    plainer = {**stored, "bnb_4bit_use_double_quant": False}
    scales = rows_of("lora", quantization_config={"quant_method": "bitsandbytes", **plainer}).own.memory
    assert scales.parameters > found.own.memory.parameters
    (traced,) = planned(config, replace(TWO_NODES, traces=True)).traced[-1:]
    assert "load_in_4bit: bitsandbytes' kernels cannot be traced" in traced.why_not


def test_a_plan_tells_what_a_run_would_be_told_of_its_model(config, model):
    (model / "config.json").write_text(json.dumps({**MODEL, "max_position_embeddings": 2048}))
    assert any("more than the 2048 positions" in line for line in planned(config).remarks)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "brandnew"},
        {"hidden_size": -64},
        {"num_hidden_layers": 10**6},
        {"num_key_value_heads": 5},
        {"vision_config": {}},
    ],
)
def test_a_model_that_cannot_be_planned_is_told_by_its_file_and_key(tmp_path, config, model, changes):
    named = next(iter(changes)) if "vision_config" not in changes else "model_type"
    (model / "config.json").write_text(json.dumps({**MODEL, **changes}))
    another = tmp_path / "small-model.json"
    (model / "config.json").rename(another)
    for given, file in ((another, another), (model, model / "config.json"), (config, model / "config.json")):
        another.replace(file)
        with pytest.raises(UsageError) as told:
            planned(given)
        assert str(told.value).startswith(f"{file}: ") and named in str(told.value)
        file.replace(another)


def test_a_number_that_the_config_puts_into_the_models_is_told_as_the_configs(config):
    config.write_text(config.read_text() + "overrides_of_model_config: {hidden_size: -64}\n")
    with pytest.raises(UsageError, match="cannot be below 0") as told:
        planned(config)
    assert str(told.value).startswith(f"{config}: overrides_of_model_config: hidden_size is -64")


def test_of_a_family_that_is_not_known_the_plan_reads_the_tensors_from_the_models_files(config, model):
    (model / "config.json").write_text(json.dumps({**MODEL, "model_type": "brandnew"}))
    tensors = {"model.embed_tokens.weight": (64, 32), "model.layers.0.self_attn.q_proj.weight": (32, 32)}
    save_file({name: numpy.zeros(shape, numpy.float16) for name, shape in tensors.items()}, model / "model.safetensors")
    assert num_parameters(planned(config).own.workload.shape) == 64 * 32 + 32 * 32


@pytest.mark.parametrize(("saving", "num_saved"), [({"save_steps": 0.1}, 10), ({"saves_per_epoch": 4}, 4)])
def test_the_hours_of_a_run_that_stops_to_save_count_each_checkpoint(config, saving, num_saved):
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), "save_async": False, **saving}))
    plan = planned(config)
    training = plan.cost.num_steps * plan.best.time.total
    assert 3600 * plan.cost.hours - training == pytest.approx(num_saved * plan.cost.checkpoint_seconds)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"lora_target_modules": ["q_proj", "qproj"]}, "lora_target_modules: the model has no module qproj; it has "),
        ({"lora_target_modules": r".*\.q_prj"}, "lora_target_modules: no layer of the model gets an adapter"),
        ({"lora_target_modules": ["q_proj"], "lora_modules_to_save": ["head"]}, "lora_modules_to_save: .* module head"),
        ({"lora_target_parameters": ["experts.w1"]}, "lora_target_parameters: the model has no parameter experts.w1"),
        ({"lora_model_dir": "/none", "lora_target_linear": True}, "lora_model_dir: /none holds no adapter_config.json"),
        ({"lora_target_modules": ["q_proj"], "peft_layers_to_transform": [99]}, r"peft_layers_to_transform: .* \[99\]"),
    ],
)
def test_an_adapter_that_goes_nowhere_is_refused_as_training_does(config, keys, said):
    """What a plan counted as an adapter of nothing."""
    given = {**yaml.safe_load(config.read_text()), "adapter": "lora", "lora_r": 8, "lora_alpha": 16}
    config.write_text(yaml.safe_dump({**given, **keys}))
    with pytest.raises(ConfigError, match=said):
        planned(config)


@pytest.mark.parametrize(
    "keys",
    [
        {"lora_target_modules": ["self_attn.q_proj", "lm_head"]},
        {"lora_target_linear": True, "lora_modules_to_save": ["embed_tokens", "lm_head"]},
        {"lora_target_modules": r".*\.[qk]_proj", "peft_layers_to_transform": [1]},
        {"lora_target_modules": "all-linear"},
    ],
)
def test_names_that_the_model_has_are_planned(config, keys):
    given = {**yaml.safe_load(config.read_text()), "adapter": "lora", "lora_r": 8, "lora_alpha": 16}
    config.write_text(yaml.safe_dump({**given, **keys}))
    assert planned(config).own.workload.num_trained > 0


def test_where_no_names_are_given_and_the_usual_ones_are_not_there_a_plan_says_so(config, model):
    (model / "config.json").write_text(json.dumps({**MODEL, "model_type": "phi3"}))
    config.write_text(
        yaml.safe_dump({**yaml.safe_load(config.read_text()), "adapter": "lora", "lora_r": 8, "lora_alpha": 8})
    )
    with pytest.raises(ConfigError, match=r"lora_target_modules: PEFT has no usual modules for phi3; set .*qkv_proj"):
        planned(config)
