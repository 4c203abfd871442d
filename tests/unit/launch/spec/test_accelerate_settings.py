"""A file of `accelerate config`: what is taken from it, and every way in which it can contradict the rest."""

import pytest
import yaml

from allranks.config.load import resolve_mapping
from allranks.errors import UsageError
from allranks.launch.spec.accelerate_settings import read_settings, refuse_contradictions
from allranks.launch.spec.options import LaunchOptions, resolve

BASE = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d.jsonl", "type": "alpaca"}], "bf16": True}
FSDP = {"fsdp_version": 2, "fsdp_config": {"offload_params": True, "reshard_after_forward": True}}
# As multi-node guides print it.
PUBLISHED = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
machine_rank: 1
main_process_ip: "10.0.0.1"
main_process_port: 29501
num_machines: 2
num_processes: 16
"""
# As `accelerate config` of 1.15 writes it.
QUESTIONNAIRE = """\
compute_environment: LOCAL_MACHINE
debug: false
distributed_type: FSDP
downcast_bf16: 'no'
enable_cpu_affinity: false
fsdp_config:
  fsdp_activation_checkpointing: false
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_cpu_ram_efficient_loading: true
  fsdp_offload_params: true
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: FULL_STATE_DICT
  fsdp_version: 2
machine_rank: 1
main_process_ip: 10.0.0.1
main_process_port: 29501
main_training_function: main
mixed_precision: bf16
num_machines: 2
num_processes: 16
rdzv_backend: static
same_network: true
tpu_env: []
tpu_use_cluster: false
tpu_use_sudo: false
use_cpu: false
"""


@pytest.fixture
def file(tmp_path):
    def write(text=PUBLISHED, **changes):
        path = tmp_path / "accelerate.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(text), **changes}, sort_keys=False))
        return str(path)

    return write


def launch(path, **options):
    return resolve(LaunchOptions(launcher="accelerate", accelerate_config=path, **options), num_gpus=8)


@pytest.mark.parametrize("text", [PUBLISHED, QUESTIONNAIRE], ids=["published", "questionnaire"])
def test_whole_files_work_as_they_stand(file, text):
    found = launch(file(text))
    assert (found.max_nodes, found.node_rank, found.nproc_per_node, found.endpoint) == (2, 1, 8, "10.0.0.1:29501")
    refuse_contradictions(found.accelerate, resolve_mapping(BASE | FSDP))


def test_what_the_command_line_says_too_must_be_the_same(file):
    launch(file(), nnodes="2", node_rank=1, master_addr="10.0.0.1", master_port=29501, nproc_per_node=8)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"nnodes": "3"}, r"accelerate.yaml:6: num_machines: 2 contradicts --nnodes 3"),
        ({}, {"node_rank": 0}, r"accelerate.yaml:3: machine_rank: 1 contradicts --node-rank 0"),
        ({}, {"master_addr": "10.0.0.2"}, r"accelerate.yaml:4: main_process_ip: 10.0.0.1 contradicts --master-addr"),
        ({}, {"master_port": 29500}, r"accelerate.yaml:5: main_process_port: 29501 contradicts --master-port 29500"),
        (
            {},
            {"nproc_per_node": 4},
            r"accelerate.yaml:7: num_processes: 16 \(of all nodes: 8 on each\) contradicts --npr",
        ),
        ({"num_processes": 3}, {}, r"num_processes: 3 processes cannot be divided among 2 machines.*torchrun"),
        ({"num_processes": "many"}, {}, r"num_processes: many: expected a whole number"),
        ({"machine_rank": 2}, {}, r"--node-rank 2 with --nnodes 2"),
        ({"use_cpu": True}, {}, r"use_cpu: true: ranks take the GPUs that they see"),
        ({"rdzv_backend": "c10d"}, {}, r"rdzv_backend: c10d: .*--launcher torchrun"),
        (
            {"compute_environment": "AMAZON_SAGEMAKER"},
            {},
            r"compute_environment: AMAZON_SAGEMAKER: expected LOCAL_MACH",
        ),
        ({"num_machine": 2}, {}, r"accelerate.yaml:8: num_machine: did you mean num_machines\?"),
    ],
)
def test_contradictions_about_nodes_are_refused_by_field(file, changes, options, message):
    with pytest.raises(UsageError, match=message):
        launch(file(**changes), **options)


def refusal(path, cfg, options=()):
    with pytest.raises(UsageError) as refused:
        refuse_contradictions(read_settings(path, dict(options)), cfg)
    return str(refused.value)


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ({"fsdp_version": 1}, FSDP, "fsdp_config.fsdp_version: 1 contradicts fsdp_version of <dict>: 2"),
        ({"fsdp_offload_params": False}, FSDP, "fsdp_offload_params: false contradicts fsdp_config.offload_params of"),
        ({"fsdp_reshard_after_forward": False}, FSDP, "contradicts fsdp_config.reshard_after_forward of <dict>: true"),
        ({"fsdp_sharding_strategy": "SHARD_GRAD_OP"}, FSDP, "contradicts the config, which asks for FULL_SHARD"),
        (
            {"fsdp_state_dict_type": "SHARDED_STATE_DICT"},
            FSDP,
            "fsdp_config.state_dict_type of <dict>: FULL_STATE_DICT",
        ),
        ({"fsdp_activation_checkpointing": True}, FSDP, "contradicts gradient_checkpointing of <dict>: false"),
        ({"fsdp_auto_wrap_policy": "SIZE_BASED_WRAP"}, FSDP, "cannot be done: the engine shards layer by layer"),
        ({"fsdp_use_orig_params": False}, FSDP, "cannot be done: FSDP2 always does"),
        ({"fsdp_offload_params": True}, {}, "is for FSDP, which <dict> does not ask for"),
    ],
)
def test_a_section_that_contradicts_the_config_is_refused_by_field(file, section, keys, message):
    assert message in refusal(file(fsdp_config=section), resolve_mapping(BASE | keys))


@pytest.mark.parametrize(
    ("changes", "keys", "message"),
    [
        ({"mixed_precision": "no"}, FSDP, "mixed_precision: no contradicts bf16 of <dict>: bf16"),
        ({"mixed_precision": False}, FSDP, "mixed_precision: no contradicts"),  # as YAML 1.1 reads `no`
        ({"mixed_precision": "fp16"}, {**FSDP, "bf16": "auto"}, "fp16 contradicts bf16 of <dict>: auto"),
        ({"distributed_type": "MULTI_GPU"}, FSDP, "MULTI_GPU contradicts the config, which asks for FSDP"),
        ({}, {}, "distributed_type: FSDP contradicts the config, which does not ask for FSDP"),
        ({"distributed_type": "NO"}, {}, "makes `accelerate launch` start one process"),
        ({"distributed_type": "MULTI_CPU"}, {}, "makes `accelerate launch` start one process"),
        ({"distributed_type": "DEEPSPEED"}, {}, "asks for DeepSpeed's engine"),
        ({"dynamo_backend": "INDUCTOR"}, FSDP, "INDUCTOR contradicts torch_compile of <dict>: no"),
        ({"deepspeed_config": {"zero_stage": 3}}, FSDP, "deepspeed_config: allranks' engine does not use it"),
        ({"debug": True}, FSDP, "debug: true would have no effect"),
        ({"parallelism_config": {"parallelism_config_tp_size": 2}}, FSDP, "tensor parallelism is not supported"),
        (
            {"parallelism_config": {"parallelism_config_dp_replicate_size": 4}},
            {**FSDP, "dp_replicate_size": 2},
            "contradicts dp_replicate_size of <dict>: 2",
        ),
    ],
)
def test_other_settings_that_contradict_the_config_are_refused_by_field(file, changes, keys, message):
    assert message in refusal(file(**changes), resolve_mapping(BASE | keys))


def test_settings_of_deepspeed_are_compared_with_the_configs(file):
    offload = {"offload_optimizer": {"device": "cpu"}}
    cfg = resolve_mapping(BASE | {"deepspeed": {"zero_optimization": {"stage": 3, **offload}}})
    agreeing = {"zero_stage": 3, "offload_optimizer_device": "cpu", "offload_param_device": "none"}
    agreeing |= {
        "zero3_init_flag": True,
        "gradient_accumulation_steps": "auto",
        "deepspeed_multinode_launcher": "standard",
    }
    path = file(distributed_type="DEEPSPEED", deepspeed_config=agreeing)
    refuse_contradictions(read_settings(path, {}), cfg)
    for changed, message in (
        ({"zero_stage": 2}, "zero_stage: 2 contradicts deepspeed.zero_optimization.stage of <dict>: 3"),
        ({"offload_optimizer_device": "none"}, "none contradicts deepspeed.zero_optimization.offload_optimizer.device"),
        ({"gradient_clipping": 0.5}, "0.5 contradicts max_grad_norm of <dict>: 1.0"),
        ({"deepspeed_multinode_launcher": "pdsh"}, "pdsh contradicts --launcher"),
        ({"deepspeed_config_file": "x.json"}, "write `deepspeed: FILE` there"),
        ({"zero_stages": 3}, "zero_stages: unknown setting of DeepSpeed"),
    ):
        told = refusal(file(distributed_type="DEEPSPEED", deepspeed_config={**agreeing, **changed}), cfg)
        assert message in told, told


def test_all_contradictions_are_told_at_once_with_their_lines(file):
    path = file(QUESTIONNAIRE, mixed_precision="fp16", fsdp_config={"fsdp_version": 1, "fsdp_offload_params": False})
    told = refusal(path, resolve_mapping(BASE | FSDP))
    assert f"{path}:7: fsdp_config.fsdp_version: 1" in told and f"{path}:8: fsdp_config.fsdp_offload_params" in told
    assert f"{path}:13: mixed_precision: fp16" in told


def test_options_are_compared_too(file):
    cfg = resolve_mapping(BASE | FSDP)
    assert "--mixed_precision: fp16 contradicts bf16" in refusal(file(), cfg, {"mixed_precision": "fp16"})
    told = refusal(file(num_processes=8), cfg, {"num_processes": "16"})
    assert "--num_processes 16 contradicts" in told and "num_processes: 8" in told
