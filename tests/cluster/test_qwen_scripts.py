"""Qwen's shell scripts as they are, with one line in the place of their finetune.py."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from allranks.observe import RunDir
from tests.cluster.conftest import ENVIRONMENT, Run
from tests.patience import TIMEOUT_SECONDS
from tests.ports import free_port

# What docs/qwen.md tells its readers to write.
FINETUNE = "from allranks.compat.qwen import main; main()\n"

# Written after the documentation of finetune_lora_ds.sh: its options, variables and every argument that it passes on.
SCRIPT = """\
#!/bin/bash
export CUDA_DEVICE_MAX_CONNECTIONS=1
GPUS_PER_NODE=$(python -c 'import torch; print(torch.cuda.device_count())')
DS_CONFIG_PATH="finetune/ds_config_zero2.json"
while [[ "$1" != "" ]]; do
  case $1 in
    -m | --model ) shift; MODEL=$1 ;;
    -d | --data ) shift; DATA=$1 ;;
    --deepspeed ) shift; DS_CONFIG_PATH=$1 ;;
    * ) echo "Unknown argument ${1}"; exit 1 ;;
  esac
  shift
done
DISTRIBUTED_ARGS="
  --nproc_per_node $GPUS_PER_NODE \\
  --nnodes ${NNODES:-1} \\
  --node_rank ${NODE_RANK:-0} \\
  --master_addr ${MASTER_ADDR:-localhost} \\
  --master_port ${MASTER_PORT:-6001}
"
torchrun $DISTRIBUTED_ARGS finetune.py \\
  --model_name_or_path $MODEL \\
  --data_path $DATA \\
  --bf16 True \\
  --output_dir output_qwen \\
  --num_train_epochs 5 \\
  --per_device_train_batch_size 2 \\
  --per_device_eval_batch_size 1 \\
  --gradient_accumulation_steps 8 \\
  --evaluation_strategy "no" \\
  --save_strategy "steps" \\
  --save_steps 1000 \\
  --save_total_limit 10 \\
  --learning_rate 3e-4 \\
  --weight_decay 0.1 \\
  --adam_beta2 0.95 \\
  --warmup_ratio 0.01 \\
  --lr_scheduler_type "cosine" \\
  --logging_steps 1 \\
  --report_to "none" \\
  --model_max_length 512 \\
  --lazy_preprocess True \\
  --use_lora \\
  --gradient_checkpointing \\
  --deepspeed ${DS_CONFIG_PATH}
"""
# What docs/qwen.md says for machines without GPUs, where the scripts' own line counts 0.
ON_CPUS = "sed -i 's/^GPUS_PER_NODE=.*/GPUS_PER_NODE=1/' finetune*.sh"
ZERO2 = Path(__file__).parents[2] / "examples" / "deepspeed" / "zero2.json"


@pytest.fixture
def folder(qwen_data, tmp_path) -> Path:
    (tmp_path / "finetune.py").write_text(FINETUNE)
    (tmp_path / "finetune_lora_ds.sh").write_text(SCRIPT)
    assert ON_CPUS in (Path(__file__).parents[2] / "docs" / "qwen.md").read_text()
    if not torch.cuda.is_available():
        subprocess.run(["bash", "-c", ON_CPUS], cwd=tmp_path, check=True)
    (tmp_path / "finetune").mkdir()
    shutil.copy(ZERO2, tmp_path / "finetune" / "ds_config_zero2.json")
    return tmp_path


@pytest.mark.thorough
def test_finetune_lora_ds_sh_on_two_nodes(tiny, folder):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    place = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    nodes = [
        subprocess.Popen(
            ["bash", "finetune_lora_ds.sh", "-m", str(tiny.model), "-d", "data.json"],
            env={**ENVIRONMENT, **place, "NODE_RANK": str(rank), "PATH": path},
            cwd=folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [node.communicate(timeout=TIMEOUT_SECONDS)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    run = Run(0, outputs[0], RunDir(folder / "output_qwen"))
    # 64 conversations, 2 x 8 x 2 ranks a step, 5 epochs.
    assert sorted(run.losses()) == list(range(1, 11))
    assert run.losses()[10] < run.losses()[1]
    assert "ZeRO-2 on 2 ranks" in outputs[0]
    assert "--lazy_preprocess: has no effect" in outputs[0] and "is a base model by its name" in outputs[0]
    adapter = json.loads((folder / "output_qwen" / "adapter" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["modules_to_save"]) == (64, ["embed_tokens", "lm_head"])
