"""The acceptance run: its parts can fail, crash and hang, and the report tells; the quick ones agree on this CPU."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import acceptance
from benchmarks.parts import attentions, losses, losses_in_chunks, speed
from benchmarks.parts.part import Part, Place, agreement
from benchmarks.parts.prediction import predicted
from benchmarks.parts.table import ENVIRONMENT, PARTS


def part(name: str, seconds: float = 60, **keys: object) -> Part:
    return Part(name, f"tries {name}", "tests.acceptance_parts", seconds, argument=name, **keys)


def ran(folder: Path, *parts: Part, options: tuple[str, ...] = ()) -> tuple[int, str, list[dict]]:
    """Exit code, Markdown and lines of a run on the CPU."""
    code = acceptance.main(["--device", "cpu", "--reports", str(folder), *options], parts)
    (markdown,), (lines,) = folder.glob("*.md"), folder.glob("*.jsonl")
    return code, markdown.read_text(), [json.loads(line) for line in lines.read_text().splitlines()]


def place(folder: Path, argument: str = "") -> Place:
    return Place("cpu", folder, folder, argument)


def outcomes(lines: list[dict]) -> dict[str, str]:
    return {line["part"]: line["outcome"] for line in lines if "outcome" in line}


def is_alive(pid: int) -> bool:
    """Whether it runs: one that is dead and not reaped has no command line."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.exists() and path.read_bytes() != b""


def test_each_part_comes_to_its_own_end(tmp_path):
    parts = [part(name) for name in ("good", "wrong", "raises", "crashes")]
    parts += [part("hangs", 2), part("gpu", needs=("cuda",)), part("library", needs=("no_such_library",))]
    code, markdown, lines = ran(tmp_path, *parts, options=("--jobs", "4"))
    assert code == 1
    assert outcomes(lines) == {
        "good": "passed",
        "wrong": "failed",
        "raises": "broke",
        "crashes": "broke",
        "hangs": "killed",
        "gpu": "skipped",
        "library": "skipped",
    }
    assert "needs a CUDA device, and this run is on the CPU" in markdown
    assert "needs the package no_such_library, which is not installed" in markdown
    assert "ended by SIGSEGV" in markdown
    assert "RuntimeError: no | such kernel" in markdown and "said" in markdown
    started = next(line["measured"] for line in lines if line.get("what") == "started")
    assert not is_alive(int(started)), "what a part started dies with it"
    assert all(not is_alive(line["values"]["pid"]) for line in lines if line.get("what") == "first")
    assert "it goes on" not in markdown


def test_parts_share_a_folder_and_run_one_by_one_where_they_measure(tmp_path):
    code, _, lines = ran(tmp_path, part("shares"), part("finds", is_alone=True), options=("--jobs", "3"))
    assert code == 0
    assert outcomes(lines) == {"shares": "passed", "finds": "passed"}


def test_a_spent_budget_is_told_of_each_part_left(tmp_path):
    code, markdown, lines = ran(tmp_path, part("good"), options=("--budget-seconds", "3"))
    assert code == 0
    assert outcomes(lines) == {"good": "not reached"}
    assert "3 s of the budget were left" in markdown


def test_parts_are_chosen_by_name_and_pattern():
    def names(only: str = "", skip: str = "") -> list[str]:
        return [one.name for one in acceptance.choose(PARTS, only, skip)]

    assert names("8b-*,losses", "*-trl") == ["losses", *(n for n in names("8b-*") if n != "8b-trl")]
    assert {"8b-allranks", "1b-trainer", "nccl", "zero"} <= set(names())
    assert not {"tiny-allranks", "8b-stored"} & set(names())
    with pytest.raises(ValueError, match=r"no part is called 'losess'; choose from environment, losses"):
        names("losess")


def test_without_a_gpu_each_part_that_needs_one_says_so_and_all_fit_the_budget():
    assert all("CUDA" in (one.lack("cpu") or "") for one in PARTS if "cuda" in one.needs)
    assert {"syncs", "8b-allranks"} <= {one.name for one in PARTS if one.lack("cpu")}
    assert len({one.name for one in PARTS}) == len(PARTS)


def test_the_list_names_all_parts_without_running_one(capsys, tmp_path):
    assert acceptance.main(["--list", "--reports", str(tmp_path / "none")]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [one.name for one in PARTS]
    assert not (tmp_path / "none").exists()


def test_the_environment_is_looked_at_first_and_names_the_device(tmp_path):
    code = acceptance.main(
        ["--reports", str(tmp_path), "--only", "good,gpu"], [part("good"), part("gpu", needs=("cuda",))]
    )
    (markdown,) = tmp_path.glob("acceptance_cpu_*.md")
    assert code == 0
    text = markdown.read_text()
    assert f"## {ENVIRONMENT.name}" in text and "| torch |" in text
    assert "needs a CUDA device" in text


def test_what_is_tried_on_a_gpu_holds_on_this_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(losses, "PRECISIONS", {"bfloat16": losses.PRECISIONS["bfloat16 over float32 weights"]})
    monkeypatch.setattr(attentions, "ARCHITECTURES", ("mistral",))
    monkeypatch.setattr(attentions, "TOLERANCES", {"float32": 1e-4})
    rows = {row.what: row for part in (losses, losses_in_chunks, attentions) for row in part.run(place(tmp_path))}
    rows |= {row.what: row for row in attentions.run(place(tmp_path, "flex"))}
    assert [row for row in rows.values() if row.ok is False] == []
    for tried in ("losses, bfloat16", "in chunks, float32: off from float64", "mistral, eager, float32"):
        assert rows[tried].ok, tried
    assert rows["mistral, flex_attention, float32"].measured.startswith("not tried: attn_implementation")
    assert rows["Liger's (liger-kernel)"].measured == "not tried: liger-kernel runs on CUDA only"


def test_the_speed_parts_know_what_the_plan_says_of_their_shapes():
    named = {one.argument for one in PARTS if one.module == speed.__name__}
    assert {argument.partition("-")[0] for argument in named} == set(speed.SHAPES)
    small, large = (
        predicted(replace(speed.SHAPES[shape], device="cuda"), {}, "NVIDIA H100 80GB HBM3") for shape in ("1b", "8b")
    )
    assert small and large and 0 < small.step_seconds < large.step_seconds
    # 8 billion frozen weights in bfloat16; 1.5 billion, their gradients and two states of Adam in it.
    assert large.memory_bytes > 16e9 and small.memory_bytes > 12e9
    assert predicted(speed.SHAPES["8b"], {}, "a device that nobody knows") is None


@pytest.mark.parametrize(
    ("found", "wanted", "ok"),
    [
        ([1.0, 2.0], [1.0, 2.0001], True),
        ([1.0, 2.0], [1.0, 2.1], False),
        ([1.0], [1.0, 2.0], False),
        ([], [], False),
        ([float("nan")], [float("nan")], False),
    ],
)
def test_agreement(found, wanted, ok):
    assert agreement("losses", found, wanted or [1.0], 1e-3).ok is ok
