"""What everybody trains: a model with random weights, and documents of random tokens, written once for all."""

import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

UNSUPERVISED = -100  # the label that every contestant leaves out of the loss


@dataclass(frozen=True)
class Workload:
    """A small body under a large vocabulary and masked prompts: the shape of a fine-tune, at a laptop's size."""

    name: str = "llama-22m"
    model_type: str = "llama"
    vocab_size: int = 32_000
    hidden_size: int = 256
    intermediate_size: int = 768
    num_layers: int = 6
    num_heads: int = 4
    num_key_value_heads: int = 4
    num_documents: int = 2_000
    # Lengths are lognormal, cut at sequence_len; these give the mean of 147 tokens that an instruction data set has.
    median_tokens: int = 115
    sigma_tokens: float = 0.75
    min_tokens: int = 16
    target_share: float = 0.4  # of a document's tokens, at its end: the assistant's answer
    sequence_len: int = 512
    blocks_per_step: int = 4
    documents_per_step: int = 14  # for who does not pack: as many real tokens as in four blocks
    warmup_steps: int = 3
    measured_steps: int = 8
    learning_rate: float = 1e-4
    device: str = "cpu"  # or "cuda", then everything is in bfloat16
    lora_rank: int | None = None  # of adapters on all linear layers; None trains every parameter
    gradient_checkpointing: bool = False
    seed: int = 7

    @property
    def num_steps(self) -> int:
        return self.warmup_steps + self.measured_steps

    @property
    def dtype(self) -> str:
        return "bfloat16" if self.device == "cuda" else "float32"


def write(workload: Workload, directory: Path) -> int:
    """Write `workload.json`, `train.jsonl` (input_ids, attention_mask, labels) and `model/` with a tokenizer.

    Returns the number of the model's parameters.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "workload.json").write_text(json.dumps(asdict(workload), indent=1))
    with (directory / "train.jsonl").open("w") as file:
        for document in _documents(workload):
            file.write(json.dumps(document) + "\n")
    return _write_model(workload, directory / "model")


def read(directory: Path) -> Workload:
    return Workload(**json.loads((directory / "workload.json").read_text()))


def _documents(workload: Workload) -> list[dict[str, list[int]]]:
    generator = random.Random(workload.seed)
    documents = []
    for _ in range(workload.num_documents):
        length = round(generator.lognormvariate(0, workload.sigma_tokens) * workload.median_tokens)
        length = min(max(length, workload.min_tokens), workload.sequence_len)
        tokens = [generator.randrange(3, workload.vocab_size) for _ in range(length)]
        first_target = length - max(1, round(length * workload.target_share))
        documents.append(
            {
                "input_ids": tokens,
                "attention_mask": [1] * length,
                "labels": [UNSUPERVISED] * first_target + tokens[first_target:],
            }
        )
    return documents


def model_config(workload: Workload) -> "PreTrainedConfig":
    """The configuration of the workload's model, as transformers has it."""
    from transformers import AutoConfig

    return AutoConfig.for_model(
        workload.model_type,
        vocab_size=workload.vocab_size,
        hidden_size=workload.hidden_size,
        intermediate_size=workload.intermediate_size,
        num_hidden_layers=workload.num_layers,
        num_attention_heads=workload.num_heads,
        num_key_value_heads=workload.num_key_value_heads,
        max_position_embeddings=workload.sequence_len,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        dtype=workload.dtype,
    )


def _write_model(workload: Workload, directory: Path) -> int:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(workload.seed)
    config = model_config(workload)
    with torch.device(workload.device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, workload.dtype))
    model.save_pretrained(directory)
    # Nobody tokenizes here, but every trainer wants a tokenizer beside the model.
    words = {"<pad>": 0, "<unk>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, workload.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
    fast.save_pretrained(directory)
    return model.num_parameters()
