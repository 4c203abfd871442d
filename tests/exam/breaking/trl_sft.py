"""A fine-tune by TRL's SFTTrainer that breaks as FAULT says. `torchrun … trl_sft.py FOLDER OUTPUT`"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

folder, output = Path(sys.argv[1]), sys.argv[2]
fault = os.environ.get("FAULT", "")
is_broken = os.environ.get("RANK", "0") == "1"


class Breaking(TrainerCallback):
    """What happens on rank 1 before the third step."""

    def on_step_begin(self, args, state, control, **kwargs):
        if not is_broken or state.global_step != 2:
            return
        if fault == "exception":
            raise ValueError("bad batch 17")
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "late":
            time.sleep(600)
        if fault == "other-collective":
            torch.distributed.all_reduce(torch.zeros(3))
        if fault == "host-memory":
            torch.zeros(1 << 50)


dataset = load_dataset("json", data_files=str(folder / os.environ.get("DATA", "train.jsonl")), split="train")
tokenizer = AutoTokenizer.from_pretrained(folder / "model")
model = AutoModelForCausalLM.from_pretrained(
    folder / os.environ.get("MODEL", "model"), attn_implementation=os.environ.get("ATTENTION", "sdpa")
)
if fault == "unused":
    model.unused = torch.nn.Linear(8, 8)
if fault == "tokens":
    tokenizer.add_tokens(["new"])
    dataset = dataset.map(lambda _: {"text": "new w4 w5"})

trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=output,
        max_length=64,
        per_device_train_batch_size=2,
        max_steps=6,
        learning_rate=1e-4,
        use_cpu=fault != "bf16",
        bf16=fault == "bf16",
        save_strategy="steps" if fault in ("full-disk", "resume") else "no",
        save_steps=2,
        logging_steps=1,
        report_to="none",
        ddp_timeout=20,
        ddp_find_unused_parameters=False,
    ),
    train_dataset=dataset,
    processing_class=tokenizer,
    callbacks=[Breaking()],
)
trainer.train(resume_from_checkpoint=os.environ.get("RESUME"))
