"""Rates of a device, measured in turns."""

import pytest
import torch

from allranks.cluster.measure import rates
from allranks.cluster.measure.pieces import HEADS, Piece, of_sizes

CPU = torch.device("cpu")


def test_each_piece_has_all_its_turns_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what disturbs a machine for a second is in a part of the runs of many."""
    order: list[str] = []

    def piece(name: str) -> Piece:
        return Piece(lambda: [lambda: order.append(name)])

    monkeypatch.setattr(rates, "_MOST_REPEATS", 3)
    found, _ = rates._in_turns({"a": {1: piece("a1"), 2: piece("a2")}, "b": {0: piece("b")}}, CPU, 60.0)
    assert set(found) == {("a", 1), ("a", 2), ("b", 0)}
    turns = [name for at, name in enumerate(order) if not at or order[at - 1] != name]
    assert turns[:6] == ["a1", "a2", "b", "a1", "a2", "b"]
    assert turns.count("b") == turns.count("a1") >= 3


def test_one_bad_turn_of_all_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([[9.0, 9.0], [1.0, 1.2, 1.1], [1.0, 1.3, 1.2], [1.1], [1.1, 1.2]])
    monkeypatch.setattr(rates, "_times", lambda piece, device, budget: next(taken))
    found, spread = rates._in_turns({"a": {1: Piece(list)}}, CPU, 60.0)
    assert found["a", 1] == pytest.approx(1.2, abs=0.1)
    assert spread == pytest.approx((9.0 - 1.1) / 1.2, rel=0.1), "but is told"


@pytest.mark.parametrize("name", HEADS)
def test_attentions_operations_are_those_of_its_products(name: str) -> None:
    """Two products forward and five back, of half of all pairs; both head sizes have as many numbers in all."""
    piece = dict(of_sizes(CPU))[name][256]
    assert piece.amount == 7 * 2 * 512 * 256 * 1024 / 2
    assert piece.start[1] * 256 / 8 == 4  # calls


def test_what_is_cold_has_caches_emptied_before_each_of_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Walk:
        def sum(self) -> None:
            order.append("walk")

    monkeypatch.setattr(rates, "_walk", Walk)
    parts = [lambda: order.append("ahead"), lambda: order.append("back")]
    rates._times(Piece(lambda: parts, is_cold=True), CPU, 0.0)
    assert order == ["walk", "ahead", "walk", "back"] * 2
    order.clear()
    rates._times(Piece(lambda: parts), CPU, 0.0)
    assert "walk" not in order
