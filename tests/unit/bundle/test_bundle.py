"""The bundle of a run: no secret that was planted anywhere is in it, no link is followed, and it lists what it has."""

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import random
import string
import subprocess
import sys
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from allranks.bundle.choose import MAX_FILES
from allranks.bundle.from_nodes import from_nodes
from allranks.bundle.of_node import OfNode, lines_of, read_lines
from allranks.bundle.pack import pack
from allranks.cluster.nodes import Host
from allranks.cluster.transports import Transport
from allranks.observe import RunDir

ALNUM = string.ascii_letters + string.digits


def word(chance: random.Random, length: int, signs: str = ALNUM) -> str:
    return "".join(chance.choice(signs) for _ in range(length))


# Recognised wherever they are.
SHAPED = {
    "hugging face": lambda c: "hf_" + word(c, 34),
    "openai": lambda c: "sk-proj-" + word(c, 40),
    "github": lambda c: "ghp_" + word(c, 36),
    "github fine": lambda c: "github_pat_" + word(c, 60),
    "aws id": lambda c: "AKIA" + word(c, 16, string.ascii_uppercase + string.digits),
    "slack": lambda c: "xoxb-" + word(c, 24),
    "jwt": lambda c: f"eyJ{word(c, 20)}.{word(c, 30)}.{word(c, 20)}",
    "wandb": lambda c: "wandb_v1_" + word(c, 40),
}
# Only their names tell.
NAMED = {
    "wandb": lambda c: word(c, 40, "0123456789abcdef"),
    "password": lambda c: word(c, 14, ALNUM + "!#$%^*+?@"),
    "aws": lambda c: word(c, 40, ALNUM + "/+"),
    "quoted": lambda c: "p" + word(c, 10) + '"x\\' + word(c, 6),
    "not english": lambda c: "пароль" + word(c, 10) + "é",
}
NAMES = ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "db_password", "hub-token", "PGPASSWORD", "clientSecret"]


def key(chance: random.Random) -> tuple[str, list[str]]:
    lines = [word(chance, 64, ALNUM + "+/") for _ in range(12)]
    return "\n".join(["-----BEGIN OPENSSH PRIVATE KEY-----", *lines, "-----END OPENSSH PRIVATE KEY-----"]), lines


def named_places(name: str, value: str, chance: random.Random) -> str:
    """A line of a log that calls `value` a secret."""
    simple = value.isascii() and '"' not in value and "\\" not in value
    places = [
        f"environ({{'A': 'b', {name!r}: {value!r}}})",
        json.dumps({"config": {name: value, "x": [1]}}),
        "[rank0]:     login = Login(**" + json.dumps({name: value}) + ")",
        f"rank 3: {json.dumps(json.dumps({name: value}))}",
    ]
    if simple:
        places += [
            f"export {name}={value}",
            f"\x1b[1m{name}\x1b[0m=\x1b[32m{value}\x1b[0m",
            f"+ python train.py --{name} {value} --lr 1",
            f"argv: ['--{name}', '{value}', '--x']",
            f"{name}: {value}",
            f"    {name} = b'{value}'",
            f"machine hub login me password {value}",
        ]
    return chance.choice(places)


def contents(path: Path) -> tuple[str, dict[str, str]]:
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        assert all(one.isfile() and not one.name.startswith("/") and ".." not in one.name for one in members)
        texts = {one.name.partition("/")[2]: archive.extractfile(one).read().decode() for one in members}  # type: ignore[union-attr]
        return "\n".join([*(one.name for one in members), *texts.values()]), texts


@pytest.mark.parametrize("seed", range(40))
def test_no_planted_secret_is_in_the_bundle(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    top = tmp_path / "run"
    run = RunDir(top)
    for folder in ("logs/node-0", "logs/node-1", "evidence/t/node-0", "events", "launch"):
        (top / folder).mkdir(parents=True)
    files = ["logs/node-0/rank-00000.log", "logs/node-1/agent.log", "evidence/t/node-0/stacks.txt", "launch/hosts"]
    files += ["events/rank-00000.jsonl", "manifest.json", "logs/node-0/config.yaml"]
    planted: list[str] = []
    lines: dict[str, list[str]] = {name: [f"line {number} of {name}" for number in range(5)] for name in files}
    for kind, make in SHAPED.items():
        secret = make(chance)
        planted.append(secret)
        where = chance.choice(files[:5])
        lines[where].append(
            chance.choice([f"loading with {secret}", f"url?x={secret}&y=1", f'"{secret}",', f"{kind}({secret})"])
        )
        (top / f"logs/node-1/{secret}.log").write_text("by its name\n")
    for make in NAMED.values():
        secret = make(chance)
        planted.append(secret)
        lines[chance.choice(files[:5])].append(named_places(chance.choice(NAMES), secret, chance))
        # Elsewhere it stands without its name.
        lines[chance.choice(files[:5])].append(f"ValueError: {secret} was refused")
    password = word(chance, 12)
    planted.append(password)
    lines[files[0]].append(f"https://me:{password}@proxy.example:3128/x?y=1")
    in_env = word(chance, 20, string.ascii_lowercase)
    planted.append(in_env)
    lines[files[1]].append(f"it printed {in_env} by itself")
    in_config, in_manifest = word(chance, 16), word(chance, 16)
    planted += [in_config, in_manifest]
    text, parts = key(chance)
    planted += parts
    where = chance.choice(files[:4])
    lines[where] += text.split("\n") if chance.random() < 0.5 else [json.dumps(text)]
    for name in files[:5]:
        (top / name).write_text("\n".join(lines[name]) + "\n")
    config = f"base_model: m\nhub_token: >-\n  {in_config}\nnested: {{api_keys: [{in_config}]}}\n"
    (top / files[6]).write_text(config)
    run.manifest.write_text(json.dumps({"config": {"tracker": {"password": {"value": in_manifest}}}, "nodes": {}}))
    (top / "logs/node-0/rank-00001.log").write_text(f"{in_config} and {in_manifest}\n")

    made = pack(run, tmp_path / "out.tar.gz", more={"status.txt": f"{in_env}\n"}, env={"MY_TOKEN": in_env})
    everything, texts = contents(made.path)
    for secret in planted:
        assert secret not in everything, secret
        assert json.dumps(secret)[1:-1] not in everything, secret
    for name in files:
        assert name in texts
    assert "line 4 of logs/node-0/rank-00000.log" in texts[files[0]]  # what is no secret stays
    assert texts["CONTENTS"] == made.contents


@pytest.mark.parametrize("at", [0, 200, 40_000])
def test_a_secret_that_the_bound_of_a_log_cuts_in_two_goes_as_well(tmp_path: Path, at: int, monkeypatch) -> None:
    from allranks.bundle import choose

    monkeypatch.setattr(choose, "_LOG_BYTES", 2000)
    chance = random.Random(at)
    text, parts = key(chance)
    token = "hf_" + word(chance, 34)
    run = RunDir(tmp_path)
    run.logs(0).mkdir(parents=True)
    tail = "x" * (1400 - at % 1000) + "\n"
    before = "early\n" * 20_000
    run.log(0, 0).write_text(f"{before}{text}\n{token} {'-' * at} {token}\n{tail}")
    everything, texts = contents(pack(run, tmp_path / "b.tar.gz", env={}).path)
    assert not any(part in everything or part[10:] in everything for part in [*parts, token])
    assert texts["logs/node-0/rank-00000.log"].endswith(tail)
    assert "the last of" in texts["CONTENTS"]


def test_no_link_is_followed_and_what_is_no_text_is_left_out(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "node-0").mkdir(parents=True)
    (outside / "node-0" / "rank-00000.log").write_text("OUTSIDE")
    run = RunDir(tmp_path / "run")
    logs = run.logs(0)
    logs.mkdir(parents=True)
    (logs / "link.log").symlink_to(outside / "node-0" / "rank-00000.log")
    (logs / "folder").symlink_to(outside)
    (run.path / "events").symlink_to(outside)
    run.manifest.symlink_to(outside / "node-0" / "rank-00000.log")
    os.mkfifo(logs / "fifo")
    (logs / "core").write_bytes(b"\x7fELF\0\0\0OUTSIDE")
    everything, texts = contents(pack(run, tmp_path / "b.tar.gz", env={}).path)
    assert "OUTSIDE" not in everything
    for name in (
        "manifest.json",
        "events",
        "logs/node-0/link.log",
        "logs/node-0/folder",
        "logs/node-0/fifo",
        "logs/node-0/core",
    ):
        assert f"  {name}: left out: it is " in texts["CONTENTS"], texts["CONTENTS"]


def test_it_is_bounded_and_says_what_is_not_in_it(tmp_path: Path, monkeypatch) -> None:
    from allranks.bundle import choose

    monkeypatch.setattr(choose, "MAX_BYTES", 5000)
    run = RunDir(tmp_path / "run")
    run.logs(0).mkdir(parents=True)
    for rank in range(20):
        run.log(0, rank).write_text("a line\n" * 200)
    _, texts = contents(pack(run, tmp_path / "b.tar.gz", env={}).path)
    assert sum(map(len, texts.values())) < 12_000
    assert texts["CONTENTS"].count("left out: the bundle has") >= 15
    assert MAX_FILES < 10_000


def test_nodes_whose_files_are_elsewhere_are_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.logs(0).mkdir(parents=True)
    run.manifest.write_text(json.dumps({"nodes": {"0": {"host": "a"}, "1": {"host": "b"}}}))
    assert "1 (b)" in pack(run, tmp_path / "b.tar.gz", env={}).contents


def test_a_bundle_that_cannot_be_written_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    run = RunDir(tmp_path / "run")
    run.logs(0).mkdir(parents=True)
    target = tmp_path / "b.tar.gz"
    target.write_bytes(b"before")
    monkeypatch.setattr(
        tarfile.TarFile, "addfile", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space"):
        pack(run, target, env={})
    assert target.read_bytes() == b"before" and sorted(path.name for path in tmp_path.iterdir()) == ["b.tar.gz", "run"]


def test_the_command_prints_the_list_and_writes_for_its_user_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.logs(0).mkdir(parents=True)
    run.log(0, 0).write_text("WANDB_API_KEY=0123456789abcdef\n")
    command = [sys.executable, "-m", "allranks", "bundle", str(run.path), "-o", "b.tar.gz"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "logs/node-0/rank-00000.log: 1 secrets removed" in done.stdout and "status.txt" in done.stdout
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o777 == 0o600
    wrong = subprocess.run([*command[:4], str(tmp_path / "nothing")], capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2 and len(wrong.stderr.splitlines()) == 1


def _terminal(text: str, width: int) -> str:
    return "\n".join(text[at : at + width] for at in range(0, len(text), width))


BROKEN = {
    "by a terminal of 80 columns": lambda before, secret: _terminal(f"{'.' * 60} {before}{secret} and so on", 80),
    "in the first signs": lambda before, secret: _terminal(f"{'.' * (76 - len(before))}{before}{secret}", 80),
    "by a printer of structures": lambda before, secret: f"{{'a': ('{before}{secret[:9]}'\n       '{secret[9:]}')}}",
    "by a shell's backslash": lambda before, secret: f"{before}{secret[:20]}\\\n{secret[20:]}",
    "behind the prefix of a rank": lambda before, secret: f"[rank3]: {before}{secret[:12]}\n[rank3]:     {secret[12:]}",
    "quoted in a mail": lambda before, secret: f"> {before}{secret[:15]}\n> {secret[15:]}",
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("kind", ["hugging face", "openai", "github fine", "aws id", "wandb", "url", "header", "known"])
def test_a_secret_that_is_broken_over_lines_goes_with_all_of_its_parts(tmp_path: Path, kind: str, how: str) -> None:
    chance = random.Random(f"{kind} {how}")
    secret = word(chance, 40) if kind in ("url", "header", "known") else SHAPED[kind](chance)
    # Of a word that happens to make it forty signs long, nothing tells that it is not a part of the secret.
    after = "another line of 7 words" if kind == "aws id" else "… and another line"
    before = {"url": "https://me:", "header": "Authorization: Bearer "}.get(kind, "x=")
    written = secret + "@host/x" if kind == "url" else secret
    run = RunDir(tmp_path / "run")
    run.logs(0).mkdir(parents=True)
    run.log(0, 0).write_text(f"a line\n{BROKEN[how](before, written)}\n{after}\n")
    env = {"SOME_TOKEN": secret} if kind == "known" else {}
    everything, texts = contents(pack(run, tmp_path / "b.tar.gz", env=env).path)
    together = "".join(everything.split())
    assert not [secret[at : at + 8] for at in range(4, len(secret) - 8) if secret[at : at + 8] in together], texts
    assert texts["logs/node-0/rank-00000.log"].startswith("a line\n")
    assert texts["logs/node-0/rank-00000.log"].endswith(f"{after}\n")


@pytest.mark.parametrize(
    "text",
    [
        "HUB_TOKEN=\\\n  {}\n",
        "hub_token:\n  {}\n",
        '"api_key":\n    "{}",\n',
        "allranks train c.yaml --hub-token \\\n    {} \\\n    --max-steps 2\n",
        "password = (\n    '{}'\n)\n",
    ],
)
def test_a_secret_on_the_line_below_its_name_goes(tmp_path: Path, text: str) -> None:
    secret = word(random.Random(text), 14)
    run = RunDir(tmp_path / "run")
    run.logs(0).mkdir(parents=True)
    run.log(0, 0).write_text(f"learning_rate: 0.1\n{text.format(secret)}steps: 10\n")
    everything, texts = contents(pack(run, tmp_path / "b.tar.gz", env={}).path)
    assert secret not in everything
    kept = texts["logs/node-0/rank-00000.log"]
    assert kept.startswith("learning_rate: 0.1\n") and kept.endswith("steps: 10\n")


@pytest.mark.parametrize("pack_it", [gzip.compress, bz2.compress, lzma.compress, zlib.compress, pickle.dumps])
def test_what_is_compressed_or_pickled_is_left_out(tmp_path: Path, pack_it) -> None:
    secret = "hf_" + word(random.Random(1), 34)
    run = RunDir(tmp_path / "run")
    run.logs(0).mkdir(parents=True)
    (run.logs(0) / "rank.log").write_bytes(pack_it(secret.encode()))
    (run.logs(0) / "latin.log").write_bytes("größer als nötig, ".encode("latin-1") + b"and more in plain ASCII\n")
    with tarfile.open(pack(run, tmp_path / "b.tar.gz", env={}).path) as archive:
        names = [one.name.partition("/")[2] for one in archive.getmembers()]
        listed = archive.extractfile(archive.getmembers()[0]).read().decode()  # type: ignore[union-attr]
    assert "logs/node-0/rank.log" not in names and "logs/node-0/latin.log" in names
    assert "logs/node-0/rank.log: left out: it is no text" in listed


def test_what_other_nodes_have_is_in_it_and_what_one_calls_a_secret_goes_from_all(tmp_path: Path) -> None:
    chance = random.Random(2)
    secrets = [word(chance, 20) for _ in range(3)]
    runs = [RunDir(tmp_path / f"disk{node}" / "run") for node in (0, 1)]
    for node, run in enumerate(runs):
        run.logs(node).mkdir(parents=True)
        run.log(node, node).write_text(f"of node {node}: {' '.join(secrets)}\n")
        (run.logs(node) / "same.log").write_text("the same\n")
    (runs[0].logs(0) / "x.yaml").write_text(f"hub_token: {secrets[0]}\n")
    (runs[1].logs(1) / "x.yaml").write_text(f"hub_token: {secrets[1]}\n")
    (runs[1].path / "logs" / "node-0").mkdir()
    (runs[1].logs(0) / "same.log").write_text("the same\n")
    nodes = {str(node): {"host": f"gpu{node}"} for node in range(4)}
    runs[0].manifest.write_text(json.dumps({"nodes": nodes}))
    told = read_lines("gpu1", lines_of(runs[1], 2**20))
    elsewhere = [replace(told, secrets=(secrets[2],)), OfNode("gpu2", missing="ssh says: no route")]
    out = io.BytesIO()
    made = pack(runs[0], out, env={}, elsewhere=elsewhere)
    assert made.path is None
    (tmp_path / "b.tar.gz").write_bytes(out.getvalue())
    everything, texts = contents(tmp_path / "b.tar.gz")
    assert not any(secret in everything for secret in secrets)
    assert texts["from-gpu1/logs/node-1/rank-00001.log"].startswith("of node 1: <removed>")
    assert "from-gpu1/logs/node-0/same.log" not in texts  # on a shared disk it is here, too
    assert "gpu1: 3 files of its own, in from-gpu1" in made.contents
    assert "gpu2: nothing: ssh says: no route" in made.contents
    assert "of these nodes nothing is here, run the same there, or name them by --hosts: 3 (gpu3)" in made.contents


@pytest.mark.parametrize("wrong", ["", "x", "AAAA", base64.b64encode(zlib.compress(b'{"files": [{}]}')).decode()])
def test_an_answer_that_is_none_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError):
        read_lines("gpu1", [wrong])


def test_this_machine_as_another_node(tmp_path: Path) -> None:
    """By the agents that start nodes: here on this machine, as with ssh."""
    run = RunDir(tmp_path / "run")
    run.logs(1).mkdir(parents=True)
    run.log(1, 1).write_text("of node 1\n")
    hosts = [Host("here"), Host("also")]
    one, other = from_nodes(hosts, Transport("local"), run.path)
    assert [chosen.path for chosen in one.chosen] == ["logs/node-1/rank-00001.log"] and other.chosen == one.chosen
    (missing, _) = from_nodes(hosts, Transport("local"), tmp_path / "nothing")
    assert missing.missing == f"{tmp_path}/nothing: no run has written anything there"
    (late, _) = from_nodes(hosts, Transport("local"), run.path, seconds=0.0)
    assert late.missing == "no answer within 0 s"


def test_the_archive_goes_to_standard_output_and_its_list_beside_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.logs(0).mkdir(parents=True)
    run.log(0, 0).write_text("a line\n")
    command = [sys.executable, "-m", "allranks", "bundle", str(run.path), "-o", "-"]
    done = subprocess.run(command, capture_output=True, cwd=tmp_path)
    assert done.returncode == 0 and b"rank-00000.log" in done.stderr
    (tmp_path / "b.tar.gz").write_bytes(done.stdout)
    assert "logs/node-0/rank-00000.log" in contents(tmp_path / "b.tar.gz")[1]
    assert not (tmp_path / "-").exists()
    ours, theirs = os.openpty()
    done = subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    os.close(theirs), os.close(ours)
    assert done.returncode == 2 and "is a terminal: name a file" in done.stderr
