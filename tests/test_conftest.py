from __future__ import annotations

import os
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import pytest_collection_modifyitems


def test_other_machines_are_out_of_reach() -> None:
    for address in (("192.0.2.1", 80), ("example.org", 80)):
        with socket.socket() as client, pytest.raises(RuntimeError, match="tests run offline"):
            client.connect(address)
    with (
        socket.socket(socket.AF_INET6) as client,
        pytest.raises(RuntimeError, match="tests run offline"),
    ):
        client.connect_ex(("2001:db8::1", 80, 0, 0))


def test_this_machine_is_in_reach() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_a_file_s_tests_run_in_one_process(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("loadgroup", default=False):
        pytest.skip("runs in one of several processes: --numprocesses 2 --dist loadgroup")
    # The process that hands the tests out knows their groups by this alone.
    assert request.node.nodeid.endswith("@tests/test_conftest.py")


class Named:
    def __init__(self, nodeid: str, *marks: str) -> None:
        self.nodeid, self.marks, self.group = nodeid, marks, ""

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.marks else None

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        (self.group,) = mark.args


@pytest.mark.parametrize("grouped", [True, False])
def test_groups_that_take_long_come_first(grouped: bool) -> None:
    items: list[Any] = [
        Named("a.py::1"),
        Named("b.py::1"),
        Named("b.py::2"),
        Named("c.py::1"),
        Named("c.py::2", "java"),
        Named("d.py::1", "slow"),
        Named("e.py::1", "java"),
    ]
    collected = [item.nodeid for item in items]
    config: Any = SimpleNamespace(getoption=lambda name, default: grouped)
    pytest_collection_modifyitems(config, items)
    ordered = ["c.py::2", "e.py::1", "d.py::1", "b.py::1", "b.py::2", "a.py::1", "c.py::1"]
    assert [item.nodeid for item in items] == (ordered if grouped else collected)
    assert [item.group for item in items if "c.py" in item.nodeid or "e.py" in item.nodeid] == (
        ["java", "java", "c.py"] if grouped else ["c.py", "java", "java"]
    )


def test_model_hubs_are_off() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
