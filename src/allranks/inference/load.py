"""A model that answers, as transformers and PEFT load it: a run's, an adapter on its base, or any."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from allranks.data.templates import template_names, template_text
from allranks.errors import CheckpointError, UsageError
from allranks.export.adapter import write_adapter
from allranks.export.checkpoint import Checkpoint
from allranks.export.full import empty_model, stored_dtype
from allranks.export.merge import load_base, merge, source_of
from allranks.export.quantized import quantized_as_trained
from allranks.inference.subject import Subject
from allranks.inference.weights import read_weights
from allranks.model.build import parameters_on_meta
from allranks.model.generation import generation_config
from allranks.model.sharding import materialise
from allranks.observe.libraries import shown
from allranks.train.strategies.native import trained_state

# The dimension of an embedding's or an output layer's rows, in its own weight and in those of an adapter on it.
_ROWS_IN = {"weight": 0, "lora_embedding_A": 1, "lora_B.weight": 0}


@dataclass
class Loaded:
    """`model` generates. `template_kwargs`: further variables of the chat template, those of the training."""

    title: str
    model: Any  # a PreTrainedModel, or a PeftModel around one
    tokenizer: Any
    template_kwargs: dict[str, Any]

    @property
    def longest(self) -> int | None:
        """Tokens that the model has positions for."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Within it, the model is the adapter's base."""
        with self.model.disable_adapter():
            yield


def load(
    subject: Subject,
    *,
    merged: bool = False,
    chat_template: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Loaded:
    """Load `subject` onto this machine's GPU, or its CPU.

    `merged`: add the adapter to the base model's weights. `chat_template`: a name or a file, in place of the model's.

    Raises AllranksError where files are missing or do not fit each other.
    """
    disable_progress_bar()  # transformers' own, for each file of weights
    report(f"loading {subject.title}")
    checkpoint = subject.checkpoint
    tokenizer = _tokenizer(subject)
    if chat_template:
        is_file = "{" in chat_template or Path(chat_template).expanduser().is_file()
        tokenizer.chat_template = template_text(
            "jinja" if is_file else chat_template, chat_template if is_file else None, tokenizer
        )
    if checkpoint is None:
        model = _model(subject.base, subject.trust_remote_code)
        if subject.folder is not None and subject.kind == "adapter":
            _grow(model, _num_rows(subject.folder, model))
            model = _with_adapter(model, subject.folder, merged)
    elif checkpoint.is_adapter:
        base, moved = subject.base, subject.base != checkpoint.config.get("base_model")
        meta = empty_model(checkpoint)
        generation, _ = generation_config(checkpoint.hf, meta.config)
        source = {**source_of(checkpoint, moved=moved), "generation_config": generation, **_spread()}
        dtype = stored_dtype(meta)
        if not merged and (quantized := quantized_as_trained(checkpoint, dtype)) is not None:
            source["quantization_config"] = quantized
        model = load_base(meta, base, dtype, source)
        with tempfile.TemporaryDirectory(prefix="allranks-adapter-") as folder:
            write_adapter(checkpoint, Path(folder), base_model=base)
            model = _with_adapter(model, Path(folder), merged)
    else:
        model = _trained_whole(checkpoint)
    model.eval()
    kwargs = dict(checkpoint.config.get("chat_template_kwargs") or {}) if checkpoint else {}
    return Loaded(subject.title, model, tokenizer, kwargs)


def load_base_of(subject: Subject, like: Loaded) -> Loaded:
    """The model that a run trained whole began with, with the tokenizer and template of `like`, what came of it."""
    if subject.checkpoint is None or subject.is_adapter:
        raise UsageError(
            f"{subject.title} is a whole model, so its base is not known: compare with another by its name"
        )
    source = source_of(subject.checkpoint, moved=subject.base != subject.checkpoint.config.get("base_model"))
    model = _model(subject.base, source["trust_remote_code"], revision=source["revision"])
    _grow(model, len(like.tokenizer))
    model.generation_config = like.model.generation_config
    return Loaded(subject.base, model.eval(), like.tokenizer, like.template_kwargs)


def _device() -> torch.device:
    return torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")


def _spread() -> dict[str, Any]:
    """Where `from_pretrained` puts the layers: on all GPUs where there are several, and Accelerate is installed."""
    if torch.cuda.device_count() > 1 and importlib.util.find_spec("accelerate"):
        return {"device_map": "auto"}
    return {}


def _model(base: str, trust_remote_code: bool, **source: Any) -> PreTrainedModel:
    try:
        with shown():
            model = AutoModelForCausalLM.from_pretrained(
                base, dtype="auto", trust_remote_code=trust_remote_code, **source, **_spread()
            )
    except (OSError, ValueError) as error:
        raise UsageError(f"the model {base} cannot be loaded: {' '.join(str(error).split())[:300]}") from error
    if model.dtype == torch.float16 and _device().type == "cpu":
        model = model.float()  # few operations of CPUs take float16
    return model if _spread() else model.to(_device())  # type: ignore[arg-type]


def _with_adapter(model: PreTrainedModel, folder: Path, merged: bool) -> Any:
    if not _spread() and not getattr(model, "quantization_method", None):
        model = model.to(_device())  # type: ignore[arg-type]
    try:
        with_adapter = PeftModel.from_pretrained(model, str(folder))
    except (RuntimeError, ValueError, KeyError) as error:
        raise UsageError(
            f"the adapter in {folder} does not fit {model.config.name_or_path}: {' '.join(str(error).split())[:300]}"
        ) from error
    return merge(with_adapter, model) if merged else with_adapter


def _trained_whole(checkpoint: Checkpoint) -> PreTrainedModel:
    meta = empty_model(checkpoint)  # consent to code of its own is asked there
    trusted = checkpoint.trust_remote_code and bool(checkpoint.config.get("trust_remote_code"))
    config = AutoConfig.from_pretrained(checkpoint.hf, trust_remote_code=trusted)
    with parameters_on_meta():
        model = AutoModelForCausalLM.from_config(config, dtype=stored_dtype(meta), trust_remote_code=trusted)
    materialise(model, _device(), buffers=_device())
    state = trained_state(model, whole=True)
    if missing := sorted(state.keys() - checkpoint.tensors.keys()):
        raise CheckpointError(f"{checkpoint.path} lacks {', '.join(missing[:4])} of {type(model).__name__}")
    with torch.no_grad():
        read_weights(state, checkpoint)
    model.generation_config, _ = generation_config(checkpoint.hf, config)
    return model


def _tokenizer(subject: Subject) -> Any:
    folder: str | Path = subject.base
    if subject.checkpoint is not None:
        folder = subject.checkpoint.hf
    elif subject.folder is not None and (subject.folder / "tokenizer_config.json").is_file():
        folder = subject.folder
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=subject.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UsageError(f"the tokenizer in {folder} cannot be loaded: {reason}") from error


def _grow(model: PreTrainedModel, rows: int) -> None:
    """Give the model rows for the tokens that training added."""
    if rows > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(rows, mean_resizing=False)


def _num_rows(adapter: Path, model: PreTrainedModel) -> int:
    """The rows of the embeddings that an adapter was trained on, by its tensors; 0 where it has none of theirs.

    Its tokenizer does not tell: the rows may have been rounded up.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    file = adapter / "adapter_model.safetensors"
    if not names or not file.is_file():  # PEFT says what is missing
        return 0
    with safe_open(file, "pt") as tensors:
        shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    of_ends = re.compile(rf"(?:^|\.)(?:{'|'.join(map(re.escape, names))})\.(.+)$")
    found = ((shape, of_ends.search(name)) for name, shape in shapes.items())
    return max((shape[_ROWS_IN[at[1]]] for shape, at in found if at and at[1] in _ROWS_IN), default=0)


def no_template(title: str) -> UsageError:
    """The error for a tokenizer that has no chat template."""
    return UsageError(
        f"the tokenizer of {title} has no chat template: give one with --chat-template, a file or one of "
        f"{', '.join(template_names())}; `allranks generate --raw` goes on from a text as it is"
    )
