"""TRL's SFTTrainer with its default packing. `python -m benchmarks.contestants.trl DIRECTORY RECORD`"""

import sys
from pathlib import Path

from benchmarks.clock import Clock
from benchmarks.workload import read


def main(directory: Path, record: Path) -> None:
    clock = Clock(record)
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    clock.phase("imports")
    workload = read(directory)
    dataset = load_dataset("json", data_files=str(directory / "train.jsonl"), split="train")
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    clock.phase("data")
    model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=workload.dtype)
    clock.phase("model")

    class Counting(SFTTrainer):
        tokens = 0

        def training_step(self, model, inputs, *args, **kwargs):
            # Packed rows are joined into one without padding: every token is a real one.
            assert "attention_mask" not in inputs
            Counting.tokens += inputs["input_ids"].numel()
            return super().training_step(model, inputs, *args, **kwargs)

    class Tick(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            clock.step(Counting.tokens)
            Counting.tokens = 0

    arguments = SFTConfig(
        output_dir=str(record.parent / "trl"),
        packing=True,
        max_length=workload.sequence_len,
        per_device_train_batch_size=workload.blocks_per_step,
        gradient_accumulation_steps=1,
        max_steps=workload.num_steps,
        learning_rate=workload.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        weight_decay=0.0,
        max_grad_norm=1.0,
        seed=workload.seed,
        use_cpu=workload.device == "cpu",
        bf16=workload.device == "cuda",
        gradient_checkpointing=workload.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    adapter = None
    if workload.lora_rank:
        from peft import LoraConfig

        adapter = LoraConfig(r=workload.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = Counting(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[Tick()],
    )
    clock.phase("data")  # SFTTrainer packs when it is made
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
