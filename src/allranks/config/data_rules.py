"""What the keys of the data say about each other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from allranks.config.dataset_types import PROMPT_TYPES, to_template, wrong_type
from allranks.config.run import RunConfig
from allranks.config.yaml_lines import KeyPath

if TYPE_CHECKING:
    from allranks.config.rules import Broken, Given

TEMPLATE_ARGUMENTS = {"messages", "tools", "documents", "add_generation_prompt", "chat_template"}
"""What a chat template is given for each conversation."""


def template_rules(config: RunConfig, given: Given) -> Broken:
    """Templates, and what is put into them."""
    data = config.data
    for path, holder in [((), data), *_specs(config)]:
        template, jinja = holder.chat_template, holder.chat_template_jinja
        if template == "jinja" and not jinja:
            yield (*path, "chat_template"), "`jinja` needs `chat_template_jinja`"
        if jinja and template not in (None, "jinja"):
            yield (*path, "chat_template_jinja"), f"needs `chat_template: jinja`, not {template}"
    for name in TEMPLATE_ARGUMENTS & set(data.chat_template_kwargs or {}):
        yield ("chat_template_kwargs", name), "is set by the data itself; remove it"
    for number in config.model.added_tokens_overrides or {}:
        if not number.isdecimal():
            yield ("added_tokens_overrides", number), "expected the number of a token, such as 128011"


def type_rules(config: RunConfig, given: Given) -> Broken:
    """Types of data sets, and keys that theirs does not read."""
    for path, spec in _specs(config):
        wrong = wrong_type(spec)
        if wrong:
            yield (*path, wrong[0]), wrong[1]


def sample_rules(config: RunConfig, given: Given) -> Broken:
    """Which samples are taken, and in which order."""
    data = config.data
    parts = [(path, spec.shards, spec.shards_idx, ("shards", "shards_idx")) for path, spec in _specs(config)]
    parts.append(((), data.dataset_shard_num, data.dataset_shard_idx, ("dataset_shard_num", "dataset_shard_idx")))
    for path, count, index, (count_key, index_key) in parts:
        if (count is None) != (index is None):
            yield (*path, count_key), f"`{count_key}` and `{index_key}` need each other"
        elif count is not None and index >= count:
            yield (*path, index_key), f"must be below `{count_key}`, {count}"
    for path, spec in _specs(config):
        longest = (data.eval_sequence_len if path[0] == "test_datasets" else None) or data.sequence_len
        if spec.overlap and spec.overlap >= longest:
            yield (*path, "overlap"), f"must be below the length of a block, {longest}: a piece would hold nothing new"
    if data.min_sample_len and data.min_sample_len > data.sequence_len:
        yield "min_sample_len", f"is above `sequence_len`, {data.sequence_len}: nothing would be left"
    if data.eval_sequence_len not in (None, data.sequence_len) and not data.test_datasets:
        yield "eval_sequence_len", "needs `test_datasets`; `val_set_size` takes samples of the training data"
    if data.sample_packing_sequentially and not data.sample_packing:
        yield "sample_packing_sequentially", "needs `sample_packing: true`"
    if data.curriculum_sampling and data.sample_packing and data.sample_packing_sequentially is False:
        yield "sample_packing_sequentially", "must be true for `curriculum_sampling`: else packing changes the order"


def unused_template(config: RunConfig, given: Given) -> Iterator[str]:
    """A line for a `chat_template` that no data set goes through, as many of Axolotl's configs have it."""
    specs = [spec for _, spec in _specs(config)]
    key = "chat_template" if config.data.chat_template else "chat_template_jinja"
    if not getattr(config.data, key) or any(_goes_through(spec) for spec in specs):
        return
    name = config.data.chat_template or "jinja"
    kinds = sorted({spec.type.partition(":")[0] for spec in specs if spec.type and isinstance(spec.type, str)})
    prompts = [kind for kind in kinds if kind in PROMPT_TYPES]
    way = ""
    if prompts or any(map(_is_own_prompt, specs)):
        setting = to_template(prompts[0] if prompts else None, name)
        way = f"; `{setting}` in a data set sends its records through it"
    why = "has no effect on what is trained: no data set goes through it"
    yield f"{given.label((key,))}: {why}{way}. The exported tokenizer has it"


def _is_own_prompt(spec: Any) -> bool:
    return spec.type is not None and not isinstance(spec.type, str)


def _goes_through(spec: Any) -> bool:
    """Whether a data set takes the config's chat template."""
    if spec.type == "chat_template":
        return not (spec.chat_template or spec.chat_template_jinja)
    named = spec.type.partition(":")[2] if isinstance(spec.type, str) else spec.chat_template
    return "jinja" in (named, spec.chat_template) and not spec.chat_template_jinja


def _specs(config: RunConfig) -> list[tuple[KeyPath, Any]]:
    named = (("datasets", config.data.datasets), ("test_datasets", config.data.test_datasets or []))
    return [((name, index), spec) for name, specs in named for index, spec in enumerate(specs)]
