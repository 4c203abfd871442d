"""transformers' Trainer, padded to the longest document of the batch.
`python -m benchmarks.contestants.trainer DIRECTORY RECORD`
"""

import sys
from pathlib import Path

from benchmarks.clock import Clock
from benchmarks.workload import read


def main(directory: Path, record: Path) -> None:
    clock = Clock(record)
    from datasets import load_dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    clock.phase("imports")
    workload = read(directory)
    dataset = load_dataset("json", data_files=str(directory / "train.jsonl"), split="train")
    tokenizer = AutoTokenizer.from_pretrained(directory / "model")
    clock.phase("data")
    model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=workload.dtype)
    if workload.lora_rank:
        from peft import LoraConfig, get_peft_model

        model.enable_input_require_grads()  # frozen embeddings would cut checkpointed layers off the graph
        adapter = LoraConfig(r=workload.lora_rank, target_modules="all-linear", task_type="CAUSAL_LM")
        get_peft_model(model, adapter)  # puts the adapters into `model` itself

    class Counting(Trainer):
        tokens = 0

        def training_step(self, model, inputs, *args, **kwargs):
            Counting.tokens += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *args, **kwargs)

    class Tick(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            clock.step(Counting.tokens)
            Counting.tokens = 0

    arguments = TrainingArguments(
        output_dir=str(record.parent / "trainer"),
        per_device_train_batch_size=workload.documents_per_step,
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
    trainer = Counting(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Tick()],
    )
    clock.phase("model")
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
