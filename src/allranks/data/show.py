"""Show prepared data to a person: samples with what is trained and what is masked, and the counts."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from allranks.data.store import Prepared

_CHANGED = {"truncated": "truncated", "in_pieces": "of them cut into pieces"}
_LEFT_OUT = {
    "invalid": "broken",
    "too_long": "too long",
    "too_short": "too short",
    "no_target": "without a target once truncated",
    "duplicates": "repeated",
    "not_drawn": "not drawn (weight)",
}
_TRAINED_STYLE, _MASKED_STYLE = "bold green", "dim"


def show_samples(prepared: Prepared, tokenizer: Any, count: int, console: Any = None) -> None:
    """Print `count` documents: trained text green, masked text dim.

    Without colours (in a file, with NO_COLOR) trained text stands in ⟦ ⟧. Documents are taken evenly from the whole
    set, so that several data sets are seen.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console(highlight=False, soft_wrap=True)
    brackets = ("", "") if console.color_system and not console.no_color else ("⟦", "⟧")
    blocks = prepared.train
    for index in np.linspace(0, blocks.num_documents - 1, min(count, blocks.num_documents)).astype(int).tolist():
        tokens, mask = blocks.document(index)
        console.print(
            f"[bold]document {index}[/bold]: {len(tokens)} tokens, {int(mask.sum())} trained "
            f"([{_TRAINED_STYLE}]{brackets[0]}trained{brackets[1]}[/], [{_MASKED_STYLE}]masked[/])"
        )
        text = Text()
        for is_trained, ids in runs(tokens, mask):
            decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if is_trained:
                text.append(f"{brackets[0]}{decoded}{brackets[1]}", _TRAINED_STYLE)
            else:
                text.append(decoded, _MASKED_STYLE)
        console.print(text)
        console.print()


def runs(tokens: np.ndarray, mask: np.ndarray) -> Iterator[tuple[bool, list[int]]]:
    """Stretches of tokens that are all trained or all masked: (trained, token ids)."""
    edges = np.flatnonzero(np.diff(mask)) + 1
    for ids, trained in zip(np.split(tokens, edges), np.split(mask, edges), strict=True):
        if len(ids):
            yield bool(trained[0]), ids.tolist()


def stats_lines(stats: dict) -> list[str]:
    """The counts of a prepared data set, one line each."""
    lines = [source_line(source) for source in stats["datasets"] + stats.get("eval", {}).get("datasets", [])]
    for name, counts in (("train", stats), ("eval", stats.get("eval"))):
        if counts:
            share = counts["target_tokens"] / counts["tokens"]
            lines.append(
                f"{name}: {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
                f"{counts['target_tokens']:,} of them trained ({share:.1%}); {counts['blocks']:,} blocks, "
                f"{counts['packing_efficiency']:.1%} full"
            )
    return lines


def source_line(source: dict) -> str:
    """What became of the records of one data set."""
    counts = left_out(source)
    done = [f"{source[field]:,} {what}" for field, what in _CHANGED.items() if source[field]]
    return (
        f"{source['path']} ({source['type']}): {source['records']:,} records -> {source['documents']:,} documents"
        f"{''.join(f', {text}' for text in done)}{'; left out: ' + ', '.join(counts) if counts else ''}"
    )


def left_out(source: dict) -> list[str]:
    """How many records of a data set were left out, by reason."""
    return [f"{source[field]:,} {what}" for field, what in _LEFT_OUT.items() if source[field]]


def length_warnings(stats: dict) -> list[str]:
    """A line for each data set of which `sequence_len` leaves out, or cuts, more than 5 % of the samples."""
    lines = []
    for key, part in (("sequence_len", stats), ("eval_sequence_len", stats.get("eval", {}))):
        for source in part.get("datasets", []):
            if source["keep_95"]:
                what = "cut" if source["truncated"] else "left out"
                longer = source["too_long"] + source["truncated"]
                total = source["documents"] + longer - source["truncated"] + source["no_target"]
                lines.append(
                    f"data set {source['path']}: {longer:,} of {total:,} samples ({longer / total:.0%}) are longer "
                    f"than {key} and {what}; {key}: {source['keep_95']} keeps 95 % "
                    f"of them whole, {source['keep_99']} keeps 99 %"
                )
    return lines
