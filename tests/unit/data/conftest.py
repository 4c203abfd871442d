"""Tiny tokenizers and configs for the tests of the data room."""

import json
from pathlib import Path

import pytest

from allranks.config.load import resolve_mapping

CORPUS = [
    "system user assistant tool human model You are a helpful assistant. What is the sum of two and three? It is five.",
    "### Instruction: Write a response that appropriately completes the request. ### Response: ### Input:",
    "Below is an instruction that describes a task, paired with an input that provides further context.",
    'search weather {"name": "search", "arguments": {"city": "Paris"}} <tool_call> <tool_response> <think> </think>',
    "你好。很高兴为你提供帮助。 Grüße aus Köln, naïve café.\n\n\n",
] * 5
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>"]


def make_tokenizer(*, special=tuple(SPECIAL), eos="<|im_end|>", bos=None, begin_with_bos=False):
    """A byte-level BPE tokenizer; `begin_with_bos` makes it put `bos` before every text by itself."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(CORPUS, trainer)
    if begin_with_bos:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=eos,
        bos_token=bos,
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )


def save_model_folder(folder: Path, tokenizer) -> Path:
    """A folder that `base_model` can name, as far as data is concerned."""
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer):
    return save_model_folder(tmp_path_factory.mktemp("model"), tokenizer)


@pytest.fixture
def make_config(tmp_path, model_folder):
    """Builds a RunConfig for one data set and settings by flat key."""

    def make(dataset=None, **keys):
        flat = {
            "base_model": str(model_folder),
            "learning_rate": 1e-3,
            "dataset_prepared_path": str(tmp_path / "prepared"),
            "sequence_len": 128,
            "chat_template": "chatml",
        } | keys
        if dataset is not None:
            flat["datasets"] = [dataset]
        return resolve_mapping({key: value for key, value in flat.items() if value is not None})

    return make


@pytest.fixture
def write_jsonl(tmp_path):
    def write(records, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
        return path

    return write


@pytest.fixture
def encode(make_config, tokenizer):
    """Encodes one record: (tokens, mask) of each document that comes of it."""
    from allranks.data.drafts import tokenize
    from allranks.data.formats import encoder_for

    def encode(record, dataset, tokenizer=tokenizer, **keys):
        cfg = make_config({"path": "unused.jsonl"} | dataset, **keys)
        return tokenize(encoder_for(cfg.data.datasets[0], cfg.data, tokenizer)(record), tokenizer)

    return encode


@pytest.fixture
def trained(encode, tokenizer):
    """The trained stretches of the only document of a record, as text."""

    def trained(record, dataset, tokenizer=tokenizer, **keys):
        (sample,) = encode(record, dataset, tokenizer, **keys)
        return trained_stretches(sample, tokenizer)

    return trained


def trained_stretches(sample, tokenizer):
    from allranks.data.show import runs

    return [tokenizer.decode(ids) for is_trained, ids in runs(*sample) if is_trained]
