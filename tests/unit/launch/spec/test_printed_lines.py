"""The command lines, files and job scripts that Axolotl's and Qwen's guides print, with the name exchanged.

Each becomes a launch on several nodes, or is refused in words. None trains alone without a word."""

from dataclasses import dataclass, field

import pytest

from allranks.cli.main import main
from allranks.cluster.identity import identify, is_numbered
from allranks.config import load_config
from allranks.config.foreign.finetune import read_finetune
from allranks.config.load import resolve_mapping
from allranks.launch import start as starting
from allranks.launch.spec.accelerate_settings import refuse_contradictions
from allranks.launch.spec.from_environment import with_environment
from allranks.launch.spec.options import resolve
from allranks.launch.spec.where import find_nodes

# Axolotl's guide, model_config.yaml: its FSDP2 block as printed, in a config that is otherwise the smallest there is.
MODEL_CONFIG = """\
base_model: m
learning_rate: 1e-4
datasets:
  - {path: d.jsonl, type: alpaca}
fsdp_version: 2
fsdp_config:
  offload_params: true               # offload optimizer states to CPU; saves HBM at cost of throughput
  state_dict_type: FULL_STATE_DICT   # gather full weights on rank 0 for checkpointing
  auto_wrap_policy: TRANSFORMER_BASED_WRAP
  transformer_layer_cls_to_wrap: LlamaDecoderLayer   # match to your model architecture
  reshard_after_forward: true        # release parameter shards after forward pass; reduces peak HBM
"""
ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: FSDP
machine_rank: {rank}                      # unique integer per node; 0 = head
main_process_ip: "10.0.0.1"         # head node IP, reachable from all workers
main_process_port: 29500             # must be open in firewall on head node
num_machines: 2                      # total node count
num_processes: 16                    # total GPU count across all nodes
"""
TRAIN = "train model_config.yaml"
BY_HAND = f"{TRAIN} --launcher torchrun --num-nodes 2 --master-addr 10.0.0.1 --master-port 29500 --node-rank"
NCCL = {"NCCL_IB_DISABLE": "0", "NCCL_SOCKET_IFNAME": "eth0,en,eth,em,bond", "NCCL_BUFFSIZE": "2097152"}
EXPORTS = {"NNODES": "2", "MASTER_ADDR": "192.168.1.100", "MASTER_PORT": "6001"}
QWEN = "-d d.json --deepspeed none"
LORA = f"qwen lora -m Qwen/Qwen-14B-Chat {QWEN}"
# In the batch script of Qwen's Slurm block; `srun` copies it to every task, where SLURM_NODEID is the node's own.
SLURM = {"SLURM_JOB_ID": "9", "SLURM_JOB_NODELIST": "n[0-3]", "SLURM_NODELIST": "n[0-3]", "SLURM_JOB_NUM_NODES": "4"}
SLURM |= {"SLURM_NNODES": "4", "SLURM_GPUS_PER_NODE": "8", "SLURMD_NODENAME": "n0"}
BLOCK = {"MASTER_ADDR": "n0", "MASTER_PORT": "6001", "NNODES": "4", "NODE_RANK": "0", "GPUS_PER_NODE": "8"}
TASK = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "4", "SLURM_STEP_NODELIST": "n[0-3]"}


def task(node):
    return {**SLURM, **BLOCK, **TASK, "SLURM_NODEID": str(node), "SLURM_PROCID": str(node), "SLURM_LOCALID": "0"}


@dataclass
class Line:
    """What is typed, with what is exported, and what comes of it: nodes and this node's rank (None: starts them all),
    or words of a refusal."""

    words: str
    nodes: int = 0
    rank: int | None = None
    refused: str = ""
    env: dict[str, str] = field(default_factory=dict)
    file: str = ""
    """Accelerate's default_config.yaml of this node."""


LINES = {
    "Axolotl: new CLI, head": Line(f"{BY_HAND} 0", 2, 0, env=NCCL),
    "Axolotl: new CLI, worker": Line(f"{BY_HAND} 1", 2, 1, env=NCCL),
    "Axolotl: smoke run": Line(f"{BY_HAND} 0 -- --max_steps 2", 2, 0, env={"NCCL_DEBUG": "INFO"}),
    "Axolotl: Accelerate, head": Line(TRAIN, 2, 0, file=ACCELERATE.format(rank=0)),
    "Axolotl: Accelerate, worker": Line(TRAIN, 2, 1, file=ACCELERATE.format(rank=1)),
    "Axolotl: Accelerate, a path you specify": Line(
        f"{TRAIN} --launcher accelerate --accelerate-config accelerate_config_node1.yaml", 2, 1
    ),
    "Axolotl: Accelerate, a wrong total": Line(
        TRAIN,
        refused="15 processes cannot be divided among 2 machines",
        file=ACCELERATE.format(rank=0).replace("16", "15"),
    ),
    "Axolotl: Accelerate, a wrong rank": Line(
        TRAIN, refused="node ranks go from 0 to 1", file=ACCELERATE.format(rank=2)
    ),
    "Axolotl: into a log": Line(f"{TRAIN} ...", refused="unexpected extra argument"),
    "Axolotl: shards in LOCAL_STATE_DICT": Line(
        f"{BY_HAND} 0 --fsdp_config.state_dict_type LOCAL_STATE_DICT", refused="SHARDED_STATE_DICT"
    ),
    "Axolotl: --node-rank forgotten": Line(BY_HAND.removesuffix(" --node-rank"), refused="also needs --node-rank"),
    "Qwen: LoRA, master": Line(LORA, 2, 0, env={**EXPORTS, "NODE_RANK": "0"}),
    "Qwen: LoRA, worker": Line(LORA, 2, 1, env={**EXPORTS, "NODE_RANK": "1"}),
    "Qwen: full": Line(f"qwen full -m Qwen/Qwen-14B {QWEN}", 4, 3, env={**EXPORTS, "NNODES": "4", "NODE_RANK": "3"}),
    "Qwen: Q-LoRA": Line(
        f"qwen qlora -m Qwen/Qwen-7B-Chat-Int4 {QWEN}", refused="Int4", env={**EXPORTS, "NODE_RANK": "0"}
    ),
    "Qwen: Q-LoRA of the usual model": Line(
        f"qwen qlora -m Qwen/Qwen-7B-Chat {QWEN}", 2, 0, env={**EXPORTS, "NODE_RANK": "0"}
    ),
    "Qwen: NODE_RANK forgotten": Line(LORA, refused="NNODES=2 also needs NODE_RANK", env=EXPORTS),
    "Qwen: Slurm, srun, first task": Line(LORA, 4, 0, env=task(0)),
    "Qwen: Slurm, srun, other tasks": Line(
        LORA, refused="NODE_RANK=0, but Slurm says that this is node 2", env=task(2)
    ),
    "Qwen: Slurm, without srun": Line(LORA, 4, env={**SLURM, **BLOCK}),
    "Qwen: Slurm, the variables left out": Line(LORA, 4, env=SLURM),
    "Qwen: a GPU of another size in GPUS_PER_NODE": Line(
        LORA, refused="GPUS_PER_NODE='h200:8'", env={**task(0), "GPUS_PER_NODE": "h200:8"}
    ),
    # `$i` is not set, and exports do not cross ssh: nothing but ssh's own variables arrives.
    "Qwen: PBS, over ssh": Line(
        LORA,
        1,
        refused="warning: this node trains alone: it was started over ssh",
        env={"SSH_CONNECTION": "10.0.0.1 1 10.0.0.2 22"},
    ),
    "Qwen: PBS, the script's own exports": Line(
        LORA, refused="NNODES=4 also needs NODE_RANK", env={**EXPORTS, "NNODES": "4", "NODE_RANK": ""}
    ),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "model_config.yaml").write_text(MODEL_CONFIG)
    (tmp_path / "accelerate_config_node1.yaml").write_text(ACCELERATE.format(rank=1))
    return tmp_path


@pytest.mark.parametrize("name", LINES)
def test_a_printed_line_is_a_launch_on_several_nodes_or_refused_in_words(name, folder, monkeypatch, capsys):
    line = LINES[name]
    for variable, value in line.env.items():
        monkeypatch.setenv(variable, value)
    if line.file:
        (folder / "hf" / "accelerate").mkdir(parents=True)
        (folder / "hf" / "accelerate" / "default_config.yaml").write_text(line.file)
    launched = []

    def launch(config, overrides, options, nodes, *, argv, **settings):
        """As `start` does before anything is started."""
        options, notes = with_environment(options, nodes)
        starting.tell(notes)
        everywhere = find_nodes(nodes, options, argv)
        cfg = load_config(config, overrides)
        launched.append(everywhere if everywhere is not None else resolve(options, num_gpus=8))
        if everywhere is None and launched[0].accelerate is not None:
            refuse_contradictions(launched[0].accelerate, cfg)
        return 0

    monkeypatch.setattr(starting, "start", launch)
    monkeypatch.setattr("sys.argv", ["allranks", *line.words.split()])
    with pytest.raises(SystemExit) as exit:
        main(line.words.split())
    said = capsys.readouterr().err
    if line.refused:
        assert line.refused.lower() in said.lower(), said
        assert exit.value.code == (0 if line.nodes else 2)
    else:
        assert exit.value.code == 0, said
        (found,) = launched
        if line.rank is None:
            assert len(found.hosts) == line.nodes
        else:
            assert (found.max_nodes, found.node_rank) == (line.nodes, line.rank)
            assert found.world_size == line.nodes * 8


def test_axolotls_older_form_is_one_rank_of_the_launcher_around_it():
    ranks = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "8", "GROUP_RANK": "1"}
    ranks |= {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "TORCHELASTIC_RUN_ID": "none"}
    assert is_numbered(ranks) and identify(ranks).world_size == 16


# What finetune_lora_ds.sh passes to finetune.py, and the lines by which the guide changes it: key of the config, value.
SCRIPT = (
    "--model_name_or_path Qwen/Qwen-7B-Chat --data_path d.json --bf16 True --output_dir output_qwen "
    "--num_train_epochs 5 --per_device_train_batch_size 2 --gradient_accumulation_steps 8 --learning_rate 3e-4 "
    "--weight_decay 0.1 --warmup_ratio 0.01 --lr_scheduler_type cosine --model_max_length 512 --save_strategy steps "
    "--save_steps 1000 --lazy_preprocess True --use_lora --gradient_checkpointing"
)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("", {"micro_batch_size": 2, "gradient_accumulation_steps": 8, "learning_rate": 3e-4, "num_epochs": 5}),
        ("--per_device_train_batch_size 4 --gradient_accumulation_steps 4", {"micro_batch_size": 4}),
        ("--dataloader_num_workers 4", {}),
        ("--per_device_train_batch_size 1", {"micro_batch_size": 1}),
        ("--output_dir /shared/checkpoints/a --save_total_limit 3", {"save_total_limit": 3}),
        ("--gradient_accumulation_steps 16", {"gradient_accumulation_steps": 16}),
        ("--resume_from_checkpoint /shared/c/checkpoint-5000", {"resume_from_checkpoint": "/shared/c/checkpoint-5000"}),
        ("--save_steps 500", {"save_steps": 500}),
    ],
)
def test_the_arguments_of_qwens_script_are_what_is_trained(changed, expected):
    asked = read_finetune(f"{SCRIPT} {changed}".split())
    cfg = resolve_mapping(asked.flat, "finetune.py", asked.overrides, flags=asked.written)
    flat = cfg.flat()
    assert {key: flat[key] for key in expected} == expected and flat["base_model"] == "Qwen/Qwen-7B-Chat"
