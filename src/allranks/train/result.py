"""What a run leaves for Hugging Face tools: the small files of each checkpoint, and the adapter or model at the end."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig

from allranks.checkpoint import commit
from allranks.config import RunConfig
from allranks.data import load_tokenizer
from allranks.model.build import TrainModel
from allranks.model.source import model_folder
from allranks.observe import RunDir
from allranks.train.loop import Loop
from allranks.train.step_schedule import wants_result


def write_hugging_face_files(cfg: RunConfig, model: TrainModel, folder: Path) -> None:
    """The files that, with the weights, make a Hugging Face model: config, generation config, tokenizer, adapter."""
    tokenizer = load_tokenizer(cfg)
    model.config.save_pretrained(folder)
    _generation_config(cfg, model, tokenizer.eos_token_id, tokenizer.pad_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if model.peft_config is not None:
        model.peft_config.save_pretrained(str(folder))


def _generation_config(cfg: RunConfig, model: TrainModel, eos: int | None, pad: int | None) -> GenerationConfig:
    """The base model's own, with the end that the tokenizer now has: else the trained model would not stop there."""
    base = model_folder(cfg)
    if (base / "generation_config.json").is_file():
        config = GenerationConfig.from_pretrained(base)
    else:
        config = GenerationConfig.from_model_config(model.config)
    if eos is not None:
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        kept = [end for end in ends if end is not None and end != eos]
        config.eos_token_id = [eos, *kept] if kept else eos
    if config.pad_token_id is None:
        config.pad_token_id = pad
    return config


def result_checkpoint(cfg: RunConfig, run_dir: RunDir, loop: Loop) -> Path | None:
    """The checkpoint that the run's result is made from, or None where none is wanted: the best if bests were saved,
    else the last. Rank 0's folder counts."""
    if not wants_result(cfg):
        return None
    if loop.save_best and loop.best_checkpoint:
        return run_dir.checkpoints / loop.best_checkpoint
    return next(iter(commit.complete_checkpoints(run_dir.checkpoints)), None)


def write_result(cfg: RunConfig, run_dir: RunDir, checkpoint: Path) -> Path:
    """Write the adapter or model of `checkpoint`, tensor by tensor: it is whole in nobody's memory. Rank 0 alone."""
    from allranks.export.export import export

    out = run_dir.path / ("adapter" if cfg.adapter.adapter else "model")
    # This run made it, or checked it when it resumed; whoever started it consented in its config.
    export(checkpoint, out, replace=True, verified=True, trust_remote_code=cfg.model.trust_remote_code)
    return out
