"""The public Python API: its names, what it costs to import, how it is typed, and what it refuses before any rank."""

import ast
import inspect
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import allranks
import allranks.train.schedule  # the package must stay one, whoever imports parts of it
from allranks.api import _failure
from allranks.doctor import causes
from allranks.observe import EventLog, RunDir

ROOT = Path(__file__).parents[2]
CONFIG = {
    "base_model": "m",
    "learning_rate": 1e-4,
    "datasets": [{"path": "d.jsonl", "type": "alpaca"}],
}


def python(code, *arguments, **settings):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, **settings)


def test_importing_it_costs_nothing():
    done = python("import sys, allranks; print(sorted(name for name in sys.modules if name.startswith('allranks')))")
    assert done.stdout.strip() == "['allranks']", done.stderr
    names = "allranks.load_config, allranks.read_events, allranks.StepEvent, allranks.ConfigError, allranks.train"
    done = python(f"import sys, allranks; {names}; print('torch' in sys.modules, 'transformers' in sys.modules)")
    assert done.stdout.strip() == "False False", done.stderr


@pytest.mark.parametrize("name", allranks.__all__)
def test_every_public_name_is_there_and_documented(name):
    found = getattr(allranks, name)
    assert name in dir(allranks)
    if name != "__version__" and name != "WarningEvent":
        assert inspect.getdoc(found)


def test_type_checkers_see_the_same_names():
    stub = ast.parse((Path(allranks.__file__).parent / "__init__.pyi").read_text())
    seen = {alias.asname: (each.module, alias.name) for each in stub.body[:-1] for alias in each.names}
    assert sorted([*seen, "__version__"]) == allranks.__all__
    for name, (module, original) in seen.items():
        there = getattr(sys.modules[module], original)
        assert getattr(allranks, name) is (allranks.train if name == "train" else there)
        assert name == original


def test_a_name_that_is_none_is_told_as_of_any_module():
    with pytest.raises(AttributeError, match="module 'allranks' has no attribute 'trian'"):
        _ = allranks.trian


def test_train_is_a_function_and_a_package(tmp_path):
    assert inspect.ismodule(allranks.train) and callable(allranks.train)
    # As a user writes it, in the orders that Python allows.
    for lines in (
        "import allranks.train.schedule; import allranks",
        "from allranks import train; import allranks",
        "from allranks.train import schedule; import allranks",
    ):
        done = python(
            f"{lines}\ntry:\n    allranks.train('none.yaml')\nexcept allranks.ConfigError as e:\n    print(e)"
        )
        assert "none.yaml" in done.stdout, done.stderr


USER = """
from pathlib import Path
import allranks

cfg = allranks.load_config("c.yaml", {"max_steps": 20})
reveal_type(cfg.optimizer.learning_rate)
result = allranks.train(cfg, nproc_per_node=2)
reveal_type(result)
reveal_type(result.exit_code)
for event in allranks.read_events(result.run_dir, rank=0):
    if isinstance(event, allranks.StepEvent):
        reveal_type(event.loss)
try:
    allranks.train({"base_model": "m"})
except allranks.TrainingError as error:
    reveal_type(error.first)
"""
WRONG = """
import allranks

allranks.train("c.yaml", nproc_per_node="2")
allranks.train(5)
allranks.load_config("c.yaml").optimizer.learning_rat
allranks.load_confg
"""


# What the API's types do not speak of is not read, and of allranks nothing but signatures: a fifth of the time.
MYPY = """
[mypy]
follow_imports = silent
[mypy-datasets.*,numpy.*,peft.*,ray.*,torch.*,transformers.*]
follow_imports = skip
"""


def mypy(folder, text):
    (folder / "user.py").write_text(text)
    (folder / "mypy.ini").write_text(MYPY)
    command = [sys.executable, "-m", "mypy", "--config-file", folder / "mypy.ini", "--cache-dir", folder, "user.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT / "src")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)


def test_a_users_program_is_typed(tmp_path):
    done = mypy(tmp_path, USER + WRONG)
    shown = [line.partition('is "')[2].rstrip('"') for line in done.stdout.splitlines() if "Revealed" in line]
    of = "allranks."
    assert [name.rpartition("|")[0] or name for name in shown] == [
        "float",
        f"{of}api.TrainResult",
        "int",
        "float",
        f"{of}observe.events.ErrorEvent ",
    ], done.stdout
    wrong = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(wrong) == 4, done.stdout
    assert all(int(line.split(":")[1]) > USER.count("\n") for line in wrong)


def test_a_config_is_a_path_a_mapping_or_one_that_was_loaded(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("base_model: m\nlearning_rate: 1e-4\ndatasets:\n  - {path: d.jsonl, type: alpaca}\n")
    loaded = [allranks.load_config(one) for one in (path, str(path), CONFIG)]
    assert len({cfg.sha256() for cfg in loaded}) == 1
    assert allranks.load_config(loaded[0]) is loaded[0]
    assert allranks.load_config(loaded[0], {"max_steps": 3}).optimizer.max_steps == 3
    with pytest.raises(TypeError, match="a config is a path, a mapping or what load_config returned, not list"):
        allranks.load_config([CONFIG])


def test_overrides_are_pythons_values():
    overrides = {
        "learning-rate": 3e-5,
        "max_steps": 7,
        "bf16": False,
        "sequence_len": "512",
        "datasets.0.path": Path("other.jsonl"),
        "output_dir": "run #3",
        "fsdp_version": 2,
        "fsdp_config": {"offload_params": True},
        "unfrozen_parameters": ["^lm_head"],
        "warmup_steps": None,
    }
    cfg = allranks.load_config({**CONFIG, "warmup_steps": 9}, overrides)
    flat = cfg.flat()
    assert (flat["learning_rate"], flat["max_steps"], flat["bf16"], flat["sequence_len"]) == (3e-5, 7, False, 512)
    assert flat["datasets"][0]["path"] == "other.jsonl" and flat["output_dir"] == "run #3"
    assert flat["fsdp_config"]["offload_params"] is True and flat["unfrozen_parameters"] == ["^lm_head"]
    assert flat.get("warmup_steps") == allranks.load_config(CONFIG).flat().get("warmup_steps")
    with pytest.raises(allranks.ConfigError, match=r"--learning-rat: .*learning-rate"):
        allranks.load_config(CONFIG, {"learning_rat": 1})


def train_refused(kind, match, *arguments, **options):
    with pytest.raises(kind, match=match) as refused:
        allranks.train(*arguments, **options)
    return refused.value


def test_what_is_wrong_is_raised_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = dict(os.environ)
    assert train_refused(allranks.ConfigError, "base_mdel", {**CONFIG, "base_mdel": "x"}).exit_code == 2
    assert train_refused(allranks.UsageError, r"d\.jsonl", CONFIG).exit_code == 2
    train_refused(allranks.UsageError, "--node-rank without --nnodes", CONFIG, node_rank=1)
    told = train_refused(allranks.UsageError, "file that they see", CONFIG, hosts="no-such-host.invalid,other.invalid")
    assert "give its path" in str(told)
    assert dict(os.environ) == environment
    assert not (tmp_path / "model-out").exists()


def test_hosts_that_are_not_reached_refuse_the_run(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("base_model: m\nlearning_rate: 1e-4\ndatasets:\n  - {path: d.jsonl, type: alpaca}\n")
    refused = train_refused(allranks.RefusedError, "cannot be reached", path, hosts="no-such-host.invalid")
    assert refused.exit_code == 3


def test_a_rank_takes_no_options_about_nodes(monkeypatch):
    numbers = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}
    for name, value in numbers.items():
        monkeypatch.setenv(name, value)
    train_refused(allranks.UsageError, "rank 1 of 4 already", CONFIG, nproc_per_node=2)


def test_another_thread_is_refused():
    raised = []

    def call():
        try:
            allranks.train(CONFIG)
        except allranks.UsageError as error:
            raised.append(str(error))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert "main thread" in raised[0]


def test_a_failure_is_that_of_the_rank_that_failed_first(tmp_path):
    record(tmp_path, 0, allranks.ErrorEvent(message="of the run before", host="a"))
    before = {path: path.stat().st_size for path in RunDir(tmp_path).all_events()}
    record(tmp_path, 0, allranks.ErrorEvent(message="lost rank 1", host="a", code=causes.PEER_GONE))
    record(tmp_path, 1, allranks.ErrorEvent(message="no such thing", host="b"))
    failure = _failure(1, RunDir(tmp_path), before)
    assert isinstance(failure, allranks.TrainingError) and failure.exit_code == 1 and failure.run_dir == tmp_path
    assert str(failure) == "rank 1 on b: no such thing"
    assert failure.first is not None and failure.first.rank == 1
    assert type(_failure(2, RunDir(tmp_path), before)) is allranks.UsageError
    assert type(_failure(3, RunDir(tmp_path), before)) is allranks.RefusedError
    unknown = _failure(137, RunDir(tmp_path / "empty"), {})
    assert isinstance(unknown, allranks.TrainingError) and unknown.exit_code == 137 and unknown.first is None
    assert f"{tmp_path / 'empty' / 'logs'}" in str(unknown)


def record(run, rank, *events):
    log = EventLog(RunDir(run).events(rank), rank, run_id="r")
    for event in events:
        log.write(event)
    log.close()


def test_the_events_of_a_run_in_the_order_of_their_times(tmp_path):
    record(tmp_path, 0, allranks.StepEvent(step=1, loss=2.0))
    record(tmp_path, 1, allranks.StepEvent(step=1, loss=2.0), allranks.ErrorEvent(message="no"))
    record(tmp_path, 0, allranks.ExitEvent(code=1))
    ranks = [(event.rank, type(event).__name__) for event in allranks.read_events(tmp_path)]
    assert ranks == [(0, "StepEvent"), (1, "StepEvent"), (1, "ErrorEvent"), (0, "ExitEvent")]
    assert [event.rank for event in allranks.read_events(str(tmp_path), rank=1)] == [1, 1]
    assert [event.rank for event in allranks.read_events(RunDir(tmp_path).events(0))] == [0, 0]
    with pytest.raises(allranks.UsageError, match=r"no events of rank 2 among those of 2 rank\(s\)"):
        allranks.read_events(tmp_path, rank=2)
    with pytest.raises(allranks.UsageError, match=r"no events of a run: expected a run's output_dir"):
        allranks.read_events(tmp_path / "events")
