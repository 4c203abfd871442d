"""Small parts: decoder layers, precision, micro-batches, placement, compilation."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from allranks.config.load import resolve_mapping
from allranks.errors import ConfigError
from allranks.model.batch import to_device
from allranks.model.build import build_model
from allranks.model.placement import place, strategy
from allranks.model.precision import resolve_precision
from allranks.model.sharding import materialise
from tests.tiny_models import config_for, flat_for, make_batch, one_process, saved_model

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("llama", "LlamaDecoderLayer"),
        ("mistral", "MistralDecoderLayer"),
        ("mixtral", "MixtralDecoderLayer"),
        ("gemma3", "Gemma3DecoderLayer"),
        ("phi3", "Phi3DecoderLayer"),
    ],
)
def test_the_layer_class_is_found(name, layer):
    model = build_model(config_for(saved_model(name)), one_process())
    assert model.layer_classes == (layer,)
    named = config_for(saved_model(name), fsdp_version=2, fsdp_config={"transformer_layer_cls_to_wrap": layer})
    assert build_model(named, one_process()).layer_classes == (layer,)


def test_a_wrong_layer_class_lists_the_right_one():
    """Axolotl's own multi-node page names MistralDecoderLayer for Mixtral."""
    cfg = config_for(
        saved_model("mixtral"),
        fsdp_version=2,
        fsdp_config={"transformer_layer_cls_to_wrap": "MistralDecoderLayer"},
    )
    with pytest.raises(ConfigError, match=r"no MistralDecoderLayer; the right value is MixtralDecoderLayer"):
        build_model(cfg, one_process())


@pytest.mark.parametrize(
    ("keys", "trainable", "frozen", "compute"),
    [
        ({"bf16": False}, "float32", "float32", "float32"),
        ({"bf16": "auto"}, "float32", "float32", "float32"),
        ({"bf16": True}, "float32", "bfloat16", "bfloat16"),
        ({"bf16": "full"}, "bfloat16", "bfloat16", "bfloat16"),
        ({"bf16": None, "bfloat16": True}, "bfloat16", "bfloat16", "bfloat16"),
        ({"bf16": None, "fp16": True}, "float32", "float16", "float16"),
    ],
)
def test_dtypes(tmp_path, keys, trainable, frozen, compute):
    precision = resolve_precision(config_for(tmp_path, **keys), CPU, "ddp")
    assert [precision.trainable, precision.frozen, precision.compute] == [
        getattr(torch, name) for name in (trainable, frozen, compute)
    ]


@pytest.mark.parametrize(
    ("has_bf16", "kind", "trainable", "compute"),
    [
        (True, "ddp", "float32", "bfloat16"),
        (True, "fsdp", "float32", "bfloat16"),
        (False, "single", "float32", "float16"),
        (False, "ddp", "float32", "float16"),
        (False, "zero", "float16", "float16"),
        (False, "fsdp", "float32", "float32"),
    ],
)
def test_auto_goes_by_what_the_gpu_computes_in(tmp_path, monkeypatch, has_bf16, kind, trainable, compute):
    """As in Axolotl; bfloat16 that a GPU only emulates does not count."""
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16 or including_emulation
    )
    for asked in ("auto", None):
        precision = resolve_precision(config_for(tmp_path, bf16=asked), torch.device("cuda"), kind)
        assert (precision.trainable, precision.compute) == (getattr(torch, trainable), getattr(torch, compute))


def test_fp16_with_fsdp_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="bf16: true"):
        resolve_precision(config_for(tmp_path, bf16=None, fp16=True), CPU, "fsdp")


@dataclass
class MicroBatch:
    input_ids: np.ndarray
    position_ids: np.ndarray
    lengths: tuple[int, ...]
    label_positions: np.ndarray
    labels: np.ndarray
    num_tokens: int
    block_lengths: tuple[int, ...]


def test_an_empty_micro_batch_still_runs_the_model():
    """As a rank with nothing left to do gets it: it must meet the others in every collective."""
    nothing = np.zeros((1, 0), np.int64)
    batch = to_device(MicroBatch(nothing, nothing, (), nothing[0], nothing[0], 0, ()), CPU)
    assert batch.input_ids.shape == (1, 1) and batch.lengths == (1,)
    model = build_model(config_for(saved_model("llama")), one_process())
    loss = model.forward_loss(batch)
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None for parameter in model.hf_model.parameters())


def test_a_micro_batch_is_copied_as_it_is():
    ids, positions = np.array([[5, 6, 7]]), np.array([[0, 1, 0]])
    batch = to_device(MicroBatch(ids, positions, (2, 1), np.array([0]), np.array([6]), 3, (3,)), CPU)
    assert batch.input_ids.tolist() == ids.tolist() and batch.position_ids.tolist() == positions.tolist()
    assert (batch.lengths, batch.label_positions.tolist(), batch.labels.tolist()) == ((2, 1), [0], [6])


@pytest.mark.parametrize(
    ("keys", "ranks", "expected"),
    [
        ({}, 1, ("single", 1, 1)),
        ({}, 4, ("ddp", 4, 1)),
        ({"fsdp_version": 2}, 4, ("fsdp", 1, 4)),
        ({"fsdp_version": 2}, 1, ("single", 1, 1)),
        ({"fsdp_version": 2, "fsdp_config": {"offload_params": True}}, 1, ("fsdp", 1, 1)),
        ({"dp_shard_size": 2, "dp_replicate_size": 2}, 4, ("fsdp", 2, 2)),
        ({"fsdp_version": 2, "dp_replicate_size": 2}, 8, ("fsdp", 2, 4)),
    ],
)
def test_strategy(tmp_path, keys, ranks, expected):
    assert strategy(resolve_mapping(flat_for(tmp_path, **keys)), ranks) == expected


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [((0, 0, 1, 1), ("fsdp", 2, 2)), ((0, 0, 0, 0), ("fsdp", 1, 4)), ((0, 1, 2, 3), ("ddp", 4, 1))],
)
def test_shards_of_a_node(tmp_path, nodes, expected):
    cfg = config_for(tmp_path, dp_shard_size="node")
    assert strategy(cfg, 4, nodes.count(0)) == expected


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ((0, 0, 1), "2 on node 0, 1 on node 1"),
        ((0, 1, 0, 1), "lie on nodes 0, 1, 0, 1: start them node by node"),
    ],
)
def test_nodes_that_do_not_allow_a_replica_each_are_refused(tmp_path, nodes, said):
    with pytest.raises(ConfigError, match=said):
        place(config_for(tmp_path, dp_shard_size="node"), CPU, 0, len(nodes), nodes)


def test_sizes_that_do_not_multiply_are_refused(tmp_path):
    cfg = config_for(tmp_path, dp_shard_size=2, dp_replicate_size=2)
    with pytest.raises(ConfigError, match="2 x 2, but there are 6 ranks"):
        strategy(cfg, 6)


def test_a_compiled_model_computes_the_same():
    plain = build_model(config_for(saved_model("qwen3")), one_process())
    compiled = build_model(
        config_for(saved_model("qwen3"), torch_compile=True, torch_compile_backend="aot_eager"), one_process()
    )
    graphs = []
    for seed, lengths in ((1, (7, 5, 9)), (2, (11, 3)), (3, (4, 4, 4, 9)), (4, (2, 2, 2)), (5, (1, 30))):
        batch = make_batch(seed, lengths)
        torch.testing.assert_close(compiled.forward_loss(batch), plain.forward_loss(batch), rtol=1e-5, atol=1e-5)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[1] == graphs[-1], "new lengths of documents must not compile anew"
    compiled.forward_loss(batch).backward()
    plain.forward_loss(batch).backward()
    gradients = dict(plain.hf_model.named_parameters())
    for name, parameter in compiled.hf_model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, rtol=1e-4, atol=1e-5, msg=name)


def test_offloaded_parameters_leave_the_buffers_where_the_model_computes():
    with torch.device("meta"):
        model = torch.nn.BatchNorm1d(3)
    model.running_var = torch.ones(3)
    # The meta device stands for the GPU.
    materialise(model, CPU, buffers=torch.device("meta"))
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}
