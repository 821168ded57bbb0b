"""What Ray finds in the environment when a process connects."""

import logging
import os
import sys
import types
from typing import Any

import pytest

from airlam.errors import DataError
from airlam.ray_cluster import connect

NAMES = ("RAY_USAGE_STATS_ENABLED", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """The environment at ``ray.init``, of a process in which something else imported Ray before."""
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the code sets is taken back
        monkeypatch.delenv(name)
    at_init: dict[str, str | None] = {}

    def init(**_options: Any) -> None:
        at_init.update({name: os.environ.get(name) for name in NAMES})

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init, is_initialized=lambda: False))  # type: ignore[arg-type]
    return at_init


def test_what_ray_reads_at_init_is_set_also_where_ray_was_imported_before(
    found: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert connect("local")[1]
    assert found == dict.fromkeys(NAMES[:2], "0") | dict.fromkeys(NAMES[2:])
    assert "Ray was imported before, so it asks for no token" in caplog.text


def test_what_the_user_set_wins(found: dict[str, str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    mine = dict(zip(NAMES, ("1", "1", "token", "secret"), strict=True))
    for name, value in mine.items():
        monkeypatch.setenv(name, value)
    connect("local")
    assert found == mine


def test_what_ray_says_in_an_exception_of_no_class_is_one_line(
    found: dict[str, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(**_options: Any) -> None:
        raise Exception("The current node timed out during startup.\nIts logs say more.")  # as Ray does

    monkeypatch.setattr(sys.modules["ray"], "init", init)
    with pytest.raises(DataError, match="timed out during startup") as refused:
        connect("local")
    assert "\n" not in str(refused.value)
