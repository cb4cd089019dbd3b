from __future__ import annotations

import os
import socket

import pytest


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


def test_model_hubs_are_off() -> None:
    assert os.environ["HF_HUB_OFFLINE"] == os.environ["TRANSFORMERS_OFFLINE"] == "1"
