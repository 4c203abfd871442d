"""A folder in which the configs of `configs/` run: a tiny model with its tokenizer, and data of every form."""

import csv
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from allranks.cluster.identity import identify
from allranks.config import RunConfig, load_config
from allranks.data import BlockSet, load_tokenizer, prepare
from allranks.data.show import runs
from allranks.model.build import build_model
from allranks.model.train_model import TrainModel
from allranks.observe import EventLog, RunDir
from allranks.train.assemble import assemble, block_order
from allranks.train.loop import Loop
from allranks.train.signals import StopRequest
from allranks.train.step_schedule import lay_out
from allranks.train.storage import ALONE
from tests.tiny_models import one_process
from tests.unit.data.conftest import make_tokenizer

CONFIGS = Path(__file__).parent / "configs"
TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "<|reserved_0|>", "<|reserved_1|>")
OWN_TEMPLATE = (
    "{% for m in messages %}{{ m.role + (mark or ':') + ('(' + m.thought + ')' if m.thought else '') + m.content }}"
    "{{ eos_token if m.role == 'assistant' else '\n' }}{% endfor %}"
)
CALL = {"name": "search", "arguments": {"city": "Paris"}}


def furnish(folder: Path) -> None:
    """Write the model and the data into `folder`, which becomes the working directory of the tests."""
    _model(folder / "model")
    data = folder / "data"
    (data / "texts").mkdir(parents=True)

    def lines(name: str, records: list) -> None:
        (data / name).write_text("".join(json.dumps(record) + "\n" for record in records))

    lines("alpaca.jsonl", [{"instruction": f"q{i}", "input": "", "output": "five " * (10 + i)} for i in range(6)])
    lines("more.jsonl", [{"instruction": f"r{i}", "input": "", "output": "two " * (3 + i)} for i in range(4)])
    lines("many.jsonl", [{"text": f"n{i}" + " five" * (i % 7)} for i in range(40)])
    lines("held-out.jsonl", [{"text": f"h{i}" + " two" * i} for i in range(8)])
    lines("tools.jsonl", [{"text": "a<|tool|><|call|><|note|><s>"}])
    with (data / "questions.csv").open("w", newline="") as file:
        rows = [("calm", "Why", "tea", "It is."), ("", "Who", "", "You."), ("", "Who", "", "You.")]
        csv.writer(file).writerows([("mood", "question", "about", "answer"), *rows])
    lines(
        "turns.jsonl",
        [
            {
                "turns": [
                    {"who": "asker", "says": "one"},
                    {"who": "helper", "says": "two", "learn": False},
                    {"who": "asker", "says": "three", "learn": False},
                    {
                        "who": "helper",
                        "says": "four five",
                        "parts": [{"begin_offset": 0, "end_offset": 3, "train": True}],
                    },
                ]
            }
        ],
    )
    lines(
        "calls.jsonl",
        [
            {
                "rules": "be exact",
                "functions": [{"name": "search", "parameters": {"type": "object", "properties": {}}}],
                "messages": [
                    {"role": "user", "content": "weather?"},
                    {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]},
                    {"role": "tool", "content": "rain"},
                    {"role": "assistant", "content": "It is rain."},
                ],
            }
        ],
    )
    user, system = {"role": "user", "content": "hi"}, {"role": "system", "content": "be kind"}
    thinking = {"role": "assistant", "content": "<think>so</think>yes"}
    lines("thoughts.jsonl", [{"messages": [system, user, thinking]}])
    lines("thoughts-apart.jsonl", [{"messages": [user, {"role": "assistant", "content": "yes", "why": "so"}]}])
    lines("hello.jsonl", [{"messages": [user, {"role": "assistant", "content": "yes"}]}])
    (data / "thinking.jinja").write_text(OWN_TEMPLATE)
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]
    lines("sharegpt.jsonl", [{"conversations": talk} for _ in range(100)])
    lines("texts/a.records", [{"body": "five " * 40, "text": "x"}, {"text": "broken"}, {"body": "six", "text": "y"}])
    lines("texts/b.jsonl", [{"text": "not read"}])
    segments = [{"label": False, "text": "asked "}, {"label": True, "text": "told"}]
    lines("segments.jsonl", [{"segments": segments}])


def _model(folder: Path) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    make_tokenizer(special=TOKENS).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=500, num_key_value_heads=2, max_position_embeddings=512, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def load(name: str, **overrides: str) -> RunConfig:
    """A config of the directory. `overrides` are as on the command line, `__` for a dot; "null" takes a key out."""
    return load_config(CONFIGS / f"{name}.yaml", {key.replace("__", "."): text for key, text in overrides.items()})


def texts(cfg: RunConfig) -> list[str]:
    """The training documents as text, block by block."""
    return [text for block in blocks(cfg) for text in block]


def blocks(cfg: RunConfig) -> list[list[str]]:
    """The training blocks, each the texts of its documents."""
    return _decoded(prepare(cfg).train, load_tokenizer(cfg))


def held_out(cfg: RunConfig) -> list[list[str]] | None:
    """The evaluation blocks."""
    prepared = prepare(cfg).eval
    return None if prepared is None else _decoded(prepared, load_tokenizer(cfg))


def trained(cfg: RunConfig) -> list[list[str]]:
    """The trained stretches of each training document."""
    decode, documents = load_tokenizer(cfg).decode, prepare(cfg).train
    return [
        [decode(ids) for is_trained, ids in runs(*documents.document(i)) if is_trained]
        for i in range(documents.num_documents)
    ]


def order(cfg: RunConfig) -> list[int]:
    """The tokens of the blocks of the first epoch, in the order of training."""
    prepared = prepare(cfg).train
    ids = block_order(cfg, prepared, cfg.optimizer.micro_batch_size).block_ids(0, len(prepared))
    return prepared.token_counts[ids].tolist()


def steps(pick: str, blocks: int = 20, step: int = 2) -> Callable[[RunConfig], list[int]]:
    """When a run over `blocks` blocks, `step` a step, does what `pick` names: `save_at` or `eval_at`."""

    def probe(cfg: RunConfig) -> list[int]:
        evaluates = bool(cfg.data.test_datasets) or cfg.data.val_set_size > 0
        step_schedule = lay_out(cfg, num_blocks=blocks, global_batch=step, has_eval=evaluates)
        return sorted(getattr(step_schedule, pick))

    return probe


def _decoded(block_set: BlockSet, tokenizer) -> list[list[str]]:
    documents = [tokenizer.decode(block_set.document(i)[0]) for i in range(block_set.num_documents)]
    bounds = block_set.block_documents.tolist()
    return [documents[start:stop] for start, stop in pairwise(bounds)]


def model(cfg: RunConfig) -> TrainModel:
    """The model that one process trains."""
    return build_model(cfg, one_process(), tokenizer=load_tokenizer(cfg))


def loop(cfg: RunConfig) -> Loop:
    """The training loop of one process, put together and not started."""
    run = RunDir(cfg.checkpoint.output_dir)
    events = EventLog(run.events(0), 0)
    batch = cfg.optimizer.micro_batch_size * cfg.optimizer.gradient_accumulation_steps
    parts = {"global_batch": batch, "run_dir": run, "storage": ALONE, "events": events, "stop_request": StopRequest()}
    return assemble(cfg, identify({}), prepare(cfg), model(cfg), warn=print, **parts)
