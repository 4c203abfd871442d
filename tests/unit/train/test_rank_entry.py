"""What a rank refuses that a launcher of the user's started."""

import pytest

from allranks.config import RunConfig
from allranks.errors import UsageError
from allranks.train.entry import begin_rank

KEYS = {"base_model": "m", "datasets": [{"path": "d", "type": "chat_template"}], "learning_rate": 0.1, "max_steps": 9}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
TORCHRUN |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "GROUP_RANK": "0"}


@pytest.fixture(autouse=True)
def under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALLRANKS_RUN_ID", raising=False)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)


def config(**keys: str) -> RunConfig:
    return RunConfig.from_resolved({**KEYS, **keys}, source="-")


def test_a_restart_after_a_hang_is_no_launchers_but_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"on_hang: restart needs ranks that allranks starts.* by torchrun"):
        begin_rank(lambda also: config(on_hang="restart"))
    assert begin_rank(lambda also: config(on_hang="end"))[1].rank == 1
    monkeypatch.setenv("ALLRANKS_RUN_ID", "ours")
    assert begin_rank(lambda also: config(on_hang="restart"))[1].rank == 1
