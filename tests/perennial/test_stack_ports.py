from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import astuple, replace

import pytest

from perennial.errors import UsageError
from perennial.ports import StackPorts, check_free, free_ports, holder_of, is_free, prefer


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def test_free_ports_are_four_different_ones_that_can_be_listened_on() -> None:
    ports = astuple(free_ports())
    assert len(set(ports)) == 4
    assert all(is_free(port) for port in ports)


def test_only_the_port_in_use_is_replaced(taken: int) -> None:
    wanted = replace(free_ports(), mlflow=taken)
    chosen = prefer(wanted)
    assert (chosen.kafka, chosen.prefect, chosen.scoring) == (wanted.kafka, wanted.prefect, wanted.scoring)
    assert chosen.mlflow != taken
    assert is_free(chosen.mlflow)


def test_a_port_in_use_is_told_with_its_holder_and_the_option(taken: int) -> None:
    with pytest.raises(
        UsageError,
        match=rf"port {taken} for kafka is in use by .* \(pid {os.getpid()}\); stop it or pass --kafka-port N",
    ):
        check_free(replace(free_ports(), kafka=taken))


def test_a_port_of_a_part_that_is_left_out_may_be_in_use(taken: int) -> None:
    check_free(replace(free_ports(), kafka=taken), ["prefect", "mlflow", "scoring"])


def test_one_port_for_two_services_is_refused() -> None:
    free = free_ports()
    with pytest.raises(
        UsageError, match=f"port {free.kafka} is given to both kafka and scoring; pass --scoring-port N"
    ):
        check_free(replace(free, scoring=free.kafka))


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match=f"port {port} for prefect is not between 1 and 65535"):
        check_free(replace(free_ports(), prefect=port))


def test_a_free_port_has_no_holder() -> None:
    assert holder_of(StackPorts(*astuple(free_ports())).kafka) == ""
