"""Make the prepared data set of a config, or open it if it was made before."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from allranks.config import RunConfig
from allranks.data.added_tokens import added_tokens
from allranks.data.blocks import BlockSet
from allranks.data.collection import Collection, SourceStats
from allranks.data.fingerprint import fingerprint, split_seed
from allranks.data.fitting import way_out
from allranks.data.selection import drawn_documents, mixed, split_off
from allranks.data.show import left_out, length_warnings, source_line
from allranks.data.sources import locate, read
from allranks.data.store import Prepared, Report, building, folder_of, lock, open_prepared, write_manifest
from allranks.errors import DataError


def prepare(cfg: RunConfig, *, known: str | None = None, report: Report | None = None) -> Prepared:
    """Open the prepared data set of `cfg`, made once for its content.

    known: the fingerprint that this node's launcher found for the same config: what it prepared is opened, and the data
    files are not read again. report: takes one line of progress at a time. If the set was made before, neither
    transformers nor datasets is imported.
    Errors: `DataError` for data that is missing, empty or broken, naming file and line; `ConfigError` for a tokenizer
    that cannot be loaded.
    """
    report = report or (lambda _: None)
    if known is not None:
        prepared = open_prepared(folder_of(cfg.data.dataset_prepared_path, known), known, report)
        if prepared is not None:
            return prepared
    print_of_data = fingerprint(cfg)
    folder = folder_of(cfg.data.dataset_prepared_path, print_of_data)
    prepared = open_prepared(folder, print_of_data, report)
    if prepared is None:
        with lock(folder, report):
            prepared = open_prepared(folder, print_of_data, report)
            if prepared is None:
                with building(folder) as temporary:
                    stats = _build(cfg, temporary, report)
                    write_manifest(temporary, print_of_data, _block_sizes(cfg.data), stats)
                prepared = open_prepared(folder, print_of_data, report)
    if prepared is None:
        raise DataError(f"the prepared data set {folder} cannot be read back; is its disk full or failing?")
    for line in [*length_warnings(prepared.stats), *prepared.stats.get("notes", [])]:
        report(f"warning: {line}")
    return prepared


def _block_sizes(data: Any) -> dict[str, int]:
    """The most tokens in a block, by split."""
    return {"train": data.sequence_len, "eval": data.eval_sequence_len or data.sequence_len}


def _build(cfg: RunConfig, folder: Path, report: Report) -> dict:
    data, sizes = cfg.data, _block_sizes(cfg.data)
    train, held_out = Collection(folder, "train", sizes["train"]), Collection(folder, "eval", sizes["eval"])
    with _workers(data) as workers:  # they start while the tokenizer's library is imported here
        from allranks.data.notes import notes
        from allranks.data.tokenizer import load_tokenizer

        work = _Work(cfg, load_tokenizer(cfg), workers, report)
        sources = _collect(work, data.datasets, train)
        held_out_sources = _collect(work, data.test_datasets, held_out) if data.test_datasets else []
    drawn = drawn_documents(data, data.datasets, sources)
    train_ids, eval_ids = split_off(drawn, train.origins, data.val_set_size, split_seed(cfg))
    if data.shuffle_merged_datasets:
        train_ids = mixed(train_ids)
    eval_packing = data.sample_packing if data.eval_sample_packing is None else data.eval_sample_packing

    report(f"packing {len(train_ids)} documents into blocks of {data.sequence_len} tokens")
    in_order = bool(data.sample_packing_sequentially)
    blocks = train.write(folder / "train", train_ids, packing=data.sample_packing, in_order=in_order)
    stats = {**_stats(blocks), "datasets": [asdict(source) for source in sources]}
    stats |= added_tokens(cfg, blocks, work.tokenizer) | {"notes": notes(data, work.tokenizer)}
    if data.test_datasets:
        everything = np.arange(held_out.num_documents)
        blocks = held_out.write(folder / "eval", everything, packing=eval_packing)
        stats["eval"] = {**_stats(blocks), "datasets": [asdict(source) for source in held_out_sources]}
        held_out.remove()
    elif len(eval_ids):
        blocks = train.write(folder / "eval", eval_ids, packing=eval_packing)
        stats["eval"] = {**_stats(blocks), "datasets": []}
    train.remove()
    return stats


@dataclass(frozen=True)
class _Work:
    """What every data set is read with."""

    cfg: RunConfig
    tokenizer: Any
    workers: Any  # Workers, or None: in this process
    report: Report


def _workers(data: Any) -> AbstractContextManager[Any]:
    from allranks.data.encode import choose_num_processes
    from allranks.data.workers import Workers

    files = [path for spec in (*data.datasets, *(data.test_datasets or [])) for path, _ in locate(spec).files]
    count = choose_num_processes(data.dataset_num_proc, sum(path.stat().st_size for path in files))
    return Workers(count) if count > 1 else nullcontext()


def _collect(work: _Work, specs: list, collection: Collection) -> list[SourceStats]:
    return [_collect_one(work, spec, collection) for spec in specs]


def _collect_one(work: _Work, spec: Any, collection: Collection) -> SourceStats:
    from allranks.data.encode import SHOWN_PROBLEMS, encode
    from allranks.data.formats import encoder_for

    cfg, report, source = work.cfg, work.report, locate(spec)
    encoder = encoder_for(spec, cfg.data, work.tokenizer)
    kind = spec.type if isinstance(spec.type, str) and spec.type else ("own format" if spec.type else "tokenized")
    stats = SourceStats(path=spec.path, type=kind)
    if source.hub_id is not None:
        from allranks.data.hub import read_hub

        records = read_hub(spec)
    else:
        records = read(source, spec.split)
    if spec.shards:
        records = islice(records, spec.shards_idx, None, spec.shards)

    overlap = (spec.overlap or 0) if kind == "completion" else None
    problems: list[tuple[str, str]] = []
    report(f"{spec.path}: tokenizing as {kind}")
    for encoded in encode(records, encoder, work.tokenizer, work.workers, lambda record: way_out(record, spec)):
        before = stats.records
        stats.records += encoded.num_records
        stats.invalid += len(encoded.problems)
        problems += encoded.problems[: SHOWN_PROBLEMS - len(problems)]
        if stats.invalid and not cfg.data.skip_invalid:
            continue  # the run stops; go on only to count
        collection.add(cfg, encoded, stats, overlap)
        if before // 10_000 != stats.records // 10_000:
            report(f"{spec.path}: {stats.records} records")
    if stats.records == 0:
        raise DataError(f"data set {spec.path}: no record in it")
    if stats.invalid:
        message = _problem_list(spec.path, stats, problems)
        if not cfg.data.skip_invalid:
            raise DataError(f"{message}\nMend the data, or set skip_invalid: true to leave these records out")
        report(message)
    collection.end_source(stats)
    report(source_line(asdict(stats)))
    if stats.documents == 0:
        raise DataError(f"data set {spec.path}: no document is left of it: {_reasons(work, spec, stats, collection)}")
    return stats


def _problem_list(path: str, stats: SourceStats, problems: list[tuple[str, str]]) -> str:
    lines = [f"  {place}: {message}" for place, message in problems]
    if stats.invalid > len(problems):
        lines.append(f"  … and {stats.invalid - len(problems)} more")
    return "\n".join([f"data set {path}: {stats.invalid} of {stats.records} records are broken:", *lines])


def _reasons(work: _Work, spec: Any, stats: SourceStats, collection: Collection) -> str:
    """Why no document is left, and what to change."""
    counts = left_out(asdict(stats))
    key = "sequence_len" if any(spec is one for one in work.cfg.data.datasets) else "eval_sequence_len"
    limit = f". {key} is {collection.sequence_len}"
    if stats.keep_95:
        limit += f"; {stats.keep_95} would keep 95 % of it, {stats.keep_99} 99 %"
    return (", ".join(counts) or "no record gave one") + (limit if stats.too_long or stats.no_target else "")


def _stats(blocks: BlockSet) -> dict:
    tokens = int(blocks.token_counts.sum(dtype=np.int64))
    return {
        "documents": blocks.num_documents,
        "blocks": len(blocks),
        "tokens": tokens,
        "target_tokens": int(blocks.target_counts.sum(dtype=np.int64)),
        "packing_efficiency": tokens / (len(blocks) * blocks.sequence_len),
    }
