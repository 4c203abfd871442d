"""The file that is written, as Accelerate itself reads it, and the command, as its parser does."""

from pathlib import Path

import pytest
import yaml

from allranks.config.load import resolve_mapping
from allranks.errors import UsageError
from allranks.launch.node.starters import Place
from allranks.launch.node.starters.accelerate import start_command
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.launch.spec.program import Program, engine
from allranks.observe import RunDir

BASE = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d.jsonl", "type": "alpaca"}]}
SECOND = {"launcher": "accelerate", "nnodes": "2", "node_rank": 1, "master_addr": "10.0.0.1", "nproc_per_node": 4}


def config(**keys):
    return resolve_mapping(BASE | keys)


@pytest.fixture
def as_accelerate_reads_it(tmp_path, monkeypatch):
    """What `accelerate launch` makes of our command: its arguments for torchrun's agent, and its ranks' environment."""
    # It also reads what is set in the environment of the tests.
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def read(options, cfg, program=None):
        from accelerate.commands.launch import _validate_launch_command, launch_command_parser
        from accelerate.utils.launch import prepare_multi_gpu_env

        launch = resolve(LaunchOptions(**options), num_gpus=0)
        place = Place(RunDir(tmp_path), 1, (launch.nproc_per_node,) * launch.max_nodes, cfg)
        start = start_command(launch, program or engine(Path("c.yaml")), place)
        for path, text in start.files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert start.command[1:3] == ["-m", "accelerate.commands.launch"]
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(start.command[3:]))
        return args, prepare_multi_gpu_env(args)

    return read


def test_every_node_has_its_file_with_the_total_number_of_processes(as_accelerate_reads_it):
    args, env = as_accelerate_reads_it({**SECOND, "master_port": 4711}, config(bf16=True))
    assert (args.nnodes, args.node_rank, args.nproc_per_node) == ("2", 1, "4")
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("static", "10.0.0.1:4711")
    assert args.multi_gpu and not args.use_fsdp and not args.use_cpu
    assert args.module and (args.training_script, args.training_script_args) == (
        "allranks.train",
        ["c.yaml", "--resolved"],
    )
    assert env["ACCELERATE_MIXED_PRECISION"] == "bf16" and "ACCELERATE_USE_FSDP" not in env


def test_the_fsdp_section_says_what_the_config_says(as_accelerate_reads_it):
    fsdp = {
        "offload_params": True,
        "state_dict_type": "SHARDED_STATE_DICT",
        "reshard_after_forward": False,
        "transformer_layer_cls_to_wrap": "LlamaDecoderLayer",
    }
    args, env = as_accelerate_reads_it(SECOND, config(fsdp_version=2, fsdp_config=fsdp, gradient_checkpointing=True))
    assert args.use_fsdp
    assert {name: value for name, value in env.items() if name.startswith("FSDP_")}.items() >= {
        "FSDP_VERSION": "2",
        "FSDP_OFFLOAD_PARAMS": "true",
        "FSDP_RESHARD_AFTER_FORWARD": "false",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "LlamaDecoderLayer",
        "FSDP_ACTIVATION_CHECKPOINTING": "true",
    }.items()


def test_one_node_and_any_program(as_accelerate_reads_it):
    program = Program("script", "train.py", ("--lr", "1"))
    args, _ = as_accelerate_reads_it({"launcher": "accelerate", "nproc_per_node": 2, "max_restarts": 3}, None, program)
    assert (args.nproc_per_node, args.max_restarts, args.module) == ("2", 3, None)
    assert (args.training_script, args.training_script_args) == ("train.py", ["--lr", "1"])


def test_unequal_nodes_are_refused_with_the_reason(tmp_path):
    launch = resolve(LaunchOptions(**SECOND), num_gpus=0)
    with pytest.raises(
        UsageError, match=r"2, 4 processes, and Accelerate starts as many on each .*--launcher torchrun"
    ):
        start_command(launch, engine(Path("c")), Place(RunDir(tmp_path), 1, (2, 4), config()))


def test_what_the_user_gave_for_a_program_of_his_own_is_kept(tmp_path):
    given = {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}, "num_machines": 2, "num_processes": 8}
    path = tmp_path / "accelerate.yaml"
    path.write_text(
        yaml.safe_dump(given | {"machine_rank": 1, "main_process_ip": "10.0.0.1", "mixed_precision": "bf16"})
    )
    launch = resolve(LaunchOptions(launcher="accelerate", accelerate_config=str(path)), num_gpus=0)
    (text,) = start_command(launch, Program("script", "t.py"), Place(RunDir(tmp_path), 1, (4, 4))).files.values()
    written = yaml.safe_load(text)
    assert written["fsdp_config"] == {"fsdp_version": 2} and written["mixed_precision"] == "bf16"
    assert (written["num_processes"], written["machine_rank"], written["main_process_port"]) == (8, 1, 29500)


@pytest.mark.parametrize(
    ("gpu_ids", "visible", "message"),
    [
        ("0,1", "2,3", "gpu_ids: 0,1 contradicts CUDA_VISIBLE_DEVICES=2,3"),
        ("0,1,2", None, r"gpu_ids: 0,1,2 are 3 GPUs for 2 process"),
    ],
)
def test_gpus_that_contradict_the_rest_are_refused(tmp_path, monkeypatch, gpu_ids, visible, message):
    path = tmp_path / "accelerate.yaml"
    path.write_text(f"distributed_type: MULTI_GPU\ngpu_ids: {gpu_ids!r}\nnum_processes: 2\n")
    launch = resolve(LaunchOptions(launcher="accelerate", accelerate_config=str(path)), num_gpus=4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UsageError, match=message):
        start_command(launch, engine(Path("c")), Place(RunDir(tmp_path), 0, (2,), config()))
