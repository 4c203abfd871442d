import os

import pytest

from allranks.errors import UsageError
from allranks.launch.run_token import TOKEN, make_token, take_token
from allranks.launch.spec.options import LaunchOptions
from allranks.launch.start import start


def test_a_token_is_taken_out_of_the_environment():
    env = {TOKEN: "mine", "OTHER": "1"}
    assert take_token(env) == "mine" and env == {"OTHER": "1"} and take_token(env) == ""


def test_what_is_made_is_long_and_never_the_same():
    assert len({make_token() for _ in range(100)}) == 100 and len(bytes.fromhex(make_token())) == 32


@pytest.mark.parametrize("token", ["caf\u00e9", "a\nb", "\udcff"])
def test_a_token_that_two_nodes_might_read_differently_is_refused_without_showing_it(token):
    with pytest.raises(UsageError, match=f"^{TOKEN}: expected printable ASCII") as caught:
        take_token({TOKEN: token})
    assert token not in str(caught.value)


def test_nothing_that_a_launch_starts_inherits_it(monkeypatch, tmp_path):
    monkeypatch.setenv(TOKEN, "mine")
    with pytest.raises(UsageError):
        start(tmp_path / "no.yaml", {}, LaunchOptions(), argv=())
    assert TOKEN not in os.environ
