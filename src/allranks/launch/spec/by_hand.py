"""The command of one node: what a user would type on it by hand."""

from collections.abc import Collection, Sequence


def by_hand(
    words: Sequence[str], *, num_nodes: int, node_rank: int, address: str, port: int, nproc_per_node: int | None
) -> list[str]:
    """`words` (such as `train c.yaml -- --max_steps 2`) with this node's place added, before a lone `--`."""
    place: list[str] = []
    if num_nodes > 1:
        place += ["--nnodes", f"{num_nodes}", "--node-rank", f"{node_rank}"]
        place += ["--master-addr", address, "--master-port", f"{port}"]
    else:
        place += ["--nnodes", "1"]
    if nproc_per_node is not None:
        place += ["--nproc-per-node", f"{nproc_per_node}"]
    cut = words.index("--") if "--" in words else len(words)
    return [*words[:cut], *place, *words[cut:]]


def without_options(words: Sequence[str], names: Collection[str]) -> list[str]:
    """`words` without the options `names` (spelt with `-`) and their values; what follows a lone `--` is left alone."""
    cut = words.index("--") if "--" in words else len(words)
    kept: list[str] = []
    rest = list(words[:cut])
    while rest:
        word = rest.pop(0)
        name, equals, _ = word.partition("=")
        if word.startswith("--") and name.replace("_", "-") in names:
            if not equals and rest:
                rest.pop(0)
        else:
            kept.append(word)
    return kept + list(words[cut:])
