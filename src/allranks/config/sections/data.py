"""Keys of the data: sources, templates, what is trained, blocks."""

from typing import Any, Literal

from pydantic import Field

from allranks.config.sections.section import Count, FilePath, Fraction, Section

TrainOnEnd = Literal["all", "turn", "last", "none"]


class PromptFormat(Section):
    """A prompt format of the user's own, given as a mapping under `type`."""

    system_prompt: str | None = None
    """System text used where a record has none."""
    system_format: str | None = None
    """How the system text is written, with `{system}` in it."""
    field_system: str | None = None
    """Column of the system text."""
    field_instruction: str | None = None
    """Column of the instruction."""
    field_input: str | None = None
    """Column of the input."""
    field_output: str | None = None
    """Column of the answer, which is what is trained."""
    format: str | None = None
    """The prompt, with `{instruction}` and `{input}` in it."""
    no_input_format: str | None = None
    """The prompt of a record without an input, with `{instruction}` in it."""


class DatasetSpec(Section):
    """One data set of `datasets` or `test_datasets`."""

    path: FilePath = Field(min_length=1)
    """File, folder or Hub id; or a loader's name (`json`, `csv`, …) with `data_files`."""
    type: str | PromptFormat | None = None
    """Form of the records: `chat_template`, `alpaca`, `alpaca:llama3`, …; or a mapping: your own prompt format."""
    ds_type: Literal["json", "jsonl", "parquet", "csv", "tsv", "text", "arrow"] | None = None
    """File format, where it cannot be told from the name."""
    data_files: FilePath | list[FilePath] | None = None
    """Files to read from `path`."""
    name: str | None = None
    """Configuration (subset) of a data set on the Hub, or of a folder whose `README.md` lists some."""
    split: str = "train"
    """Split to read, such as `train` or `train[:10%]`."""
    revision: str | None = None
    """Branch, tag or commit of the data set on the Hub."""
    trust_remote_code: Literal[False] = False
    """Accepted: code that comes with a data set is never run."""
    chat_template: str | None = None
    """Template of this data set; of `type: chat_template` the config's if not given, of prompts none."""
    chat_template_jinja: FilePath | None = None
    """A Jinja template, or the path of a file with one, for `chat_template: jinja`."""
    field_messages: str | None = None
    """Column of the list of messages (`messages`)."""
    message_property_mappings: dict[str, str] | None = None
    """Names of a message's properties: template name -> name in the data, such as `{role: from, content: value}`."""
    field_tools: str | None = None
    """Column of the tool definitions (`tools`)."""
    field_system: str | None = None
    """Column of a system text that is put before the messages."""
    field_thinking: str | None = None
    """Property of a message that holds its reasoning (`reasoning_content`)."""
    template_thinking_key: str | None = None
    """Name by which the template knows the reasoning (`reasoning_content`)."""
    field: str | None = None
    """Column of the text for `type: completion` (`text`)."""
    overlap: int | None = Field(None, ge=0)
    """Tokens that each piece of a `completion` text longer than `sequence_len` repeats of the one before (0)."""
    roles: dict[str, list[str]] | None = None
    """Role names: template role -> names in the data, such as `{assistant: [gpt, model]}`."""
    roles_to_train: list[str] | None = None
    """Roles whose turns are trained; the config's `roles_to_train` if not given."""
    train_on_eos: TrainOnEnd | None = None
    """Which end-of-sequence tokens are trained."""
    train_on_eot: TrainOnEnd | None = None
    """Which end-of-turn tokens are trained."""
    message_field_training: str | None = None
    """Property of a message that says whether it is trained."""
    message_field_training_detail: str | None = None
    """Property of a message that lists the character ranges to train."""
    drop_system_message: bool = False
    """Leave the system message out."""
    split_thinking: bool = False
    """Split `<think>…</think>` off the answer, for templates that want it apart."""
    shards: int | None = Field(None, ge=1)
    """Split the data set into this many parts and …"""
    shards_idx: int | None = Field(None, ge=0)
    """… use the one with this index."""
    weight: float | None = Field(None, gt=0, le=1)
    """Share of its samples that is trained on, drawn once for the whole run."""


class DataConfig(Section):
    """What is trained on."""

    datasets: list[DatasetSpec] = Field(min_length=1)
    """The training data."""
    test_datasets: list[DatasetSpec] | None = None
    """The evaluation data."""
    val_set_size: Count | Fraction = 0
    """Part of the training data set aside for evaluation: a fraction below 1, or a number of samples."""
    dataset_prepared_path: FilePath = "last_run_prepared"
    """Folder of the prepared data sets, relative to the working directory."""
    chat_template: str | None = None
    """`tokenizer_default`, `tokenizer_default_fallback_NAME`, a template's name such as `chatml`, or `jinja`."""
    chat_template_jinja: FilePath | None = None
    """A Jinja template, or the path of a file with one, for `chat_template: jinja`."""
    chat_template_kwargs: dict[str, Any] | None = None
    """Further variables of the template, such as `{enable_thinking: false}`."""
    default_system_message: str | None = None
    """System message of conversations that have none."""
    sequence_len: int = Field(2048, ge=1)
    """Tokens in a block (a row that the model is given), and the most in a sample."""
    eval_sequence_len: int | None = Field(None, ge=1)
    """The same for `test_datasets`."""
    excess_length_strategy: Literal["drop", "truncate", "raise"] = "drop"
    """What to do with a sample that is longer than `sequence_len`."""
    min_sample_len: int | None = Field(None, ge=0)
    """Leave out samples with fewer tokens."""
    sample_packing: bool = False
    """Pack several samples into a block. They do not see each other."""
    sample_packing_sequentially: bool | None = None
    """Pack the samples in their order, at the price of more padding; only with `curriculum_sampling` if not given."""
    eval_sample_packing: bool | None = None
    """The same for evaluation; only with `torch_compile` if not given."""
    pad_to_sequence_len: bool | None = None
    """Pad every block to `sequence_len`, so that shapes never change; only with `torch_compile` if not given."""
    train_on_inputs: bool = False
    """Train the prompt as well as the answer; with `chat_template` what every turn says, and no header of a role."""
    roles_to_train: list[str] | None = None
    """Roles whose turns are trained (`[assistant]`), by any name that the data has for them."""
    train_on_eos: TrainOnEnd | None = None
    """Which end-of-sequence tokens are trained (`turn`: those that end a trained turn)."""
    eot_tokens: list[str] | None = None
    """Tokens that end a turn; the end-of-sequence token if not given."""
    train_on_eot: TrainOnEnd | None = None
    """Which end-of-turn tokens are trained; follows `train_on_eos`."""
    dataset_num_proc: int | None = Field(None, ge=1)
    """Processes that prepare the data."""
    skip_invalid: bool = False
    """Leave out broken records with a count, instead of stopping at the first."""
    shuffle_merged_datasets: bool | None = None
    """Mix the data sets before packing; yes, but for `curriculum_sampling`, if not given."""
    shuffle_before_merging_datasets: bool = False
    """Shuffle each data set by itself; they then follow one another, unless `shuffle_merged_datasets` mixes them."""
    curriculum_sampling: bool = False
    """Train in the order of the data, the same in every epoch: data set after data set, line after line."""
    group_by_length: bool = False
    """Put blocks of about the same length into a step: less waiting and padding, but the losses go up and down."""
    dataset_shard_num: int | None = Field(None, ge=1)
    """Split all data together into this many parts and …"""
    dataset_shard_idx: int | None = Field(None, ge=0)
    """… train on the one with this index."""
    dataset_exact_deduplication: bool = False
    """Leave out samples that repeat an earlier one exactly."""
    data_seed: int | None = Field(None, ge=0, le=2**32 - 1)
    """Seed of the order of the data; follows `seed`."""
