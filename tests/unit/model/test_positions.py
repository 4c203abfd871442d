"""A sequence length over what a model was made for, and what only a GPU can do: told before anything is loaded."""

import pytest

from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError, RefusedError
from allranks.model.needs_gpu import refuse_without_gpu
from allranks.model.positions import known_positions, position_warning

MINIMAL = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d.jsonl", "type": "alpaca"}]}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def config(**keys):
    return resolve_mapping({**MINIMAL, **keys})


@pytest.mark.parametrize(
    ("stored", "known"),
    [
        ({"max_position_embeddings": 2048}, 2048),
        ({"n_positions": 1024, "model_type": "gpt2"}, 1024),
        ({"max_seq_len": 4096, "attn_config": {"alibi": True}}, None),
        ({"model_type": "mamba"}, None),
        ({"text_config": {"max_position_embeddings": 8192}, "max_position_embeddings": 77}, 8192),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.0}}, 8192),
        ({"max_position_embeddings": 32768, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 131072, "rope_parameters": {**YARN, "rope_type": "llama3", "factor": 2}}, 131072),
        ({"max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 4096),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", "long_factor": [1.0]}}, 131072),
        (
            {
                "max_position_embeddings": 4096,
                "rope_parameters": {
                    "sliding_attention": {"rope_type": "default"},
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                },
            },
            32768,
        ),
    ],
)
def test_the_positions_that_a_model_knows(stored, known):
    assert known_positions(stored) == known


def test_a_length_over_them_is_warned_of_with_the_key():
    stored = {"max_position_embeddings": 1024, "model_type": "llama"}
    told = position_warning(stored, config(sequence_len=2048))
    assert told and told.startswith("sequence_len: 2048 is more than the 1024 positions of m") and "rope" in told
    evaluation = config(sequence_len=512, eval_sequence_len=2048, test_datasets=MINIMAL["datasets"])
    told = position_warning(stored, evaluation)
    assert told and told.startswith("eval_sequence_len: 2048")
    assert position_warning(stored, config(sequence_len=1024)) is None
    assert position_warning({}, config(sequence_len=10**6)) is None


def test_a_model_without_such_positions_is_refused():
    with pytest.raises(ConfigError, match="a gpt2 has nothing for those beyond; set sequence_len: 1024"):
        position_warning({"n_positions": 1024, "model_type": "gpt2"}, config(sequence_len=2048))


@pytest.mark.parametrize(
    "keys",
    [
        *(
            {"attn_implementation": name}
            for name in ("flash_attention_2", "flex_attention", "kernels-community/flash-attn2")
        ),
        *({"flash_attention": True}, {"liger_rope": True}, {"cut_cross_entropy": True}),
        *({"liger_fused_linear_cross_entropy": True}, {"optimizer": "paged_adamw_8bit"}, {"optimizer": "ademamix"}),
    ],
)
def test_what_needs_a_gpu_is_refused_where_there_is_none(keys, monkeypatch, tmp_path):
    monkeypatch.setattr("allranks.model.needs_gpu._OTHER_DRIVER", tmp_path / "none")
    (key,) = keys
    named = "attn_implementation: flash_attention_2" if key == "flash_attention" else key
    with pytest.raises(RefusedError, match=f"^{named}.* on GPUs only, and none is visible on this node"):
        refuse_without_gpu(config(**keys), 0)
    refuse_without_gpu(config(**keys), 1)
    refuse_without_gpu(config(attn_implementation="sdpa"), 0)
