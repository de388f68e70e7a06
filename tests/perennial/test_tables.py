from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from perennial.services import WHAT, Service
from perennial.tables import services_table


def test_every_address_is_whole_in_a_narrow_terminal() -> None:
    services = [
        Service(
            name, what, f"http://127.0.0.1:{42_000 + i}", 4_194_304, Path("/home/somebody/checkout/.perennial/logs/x")
        )
        for i, (name, what) in enumerate(WHAT.items())
    ]
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(services_table(services))
    shown = console.export_text()
    for service in services:
        assert service.address in shown
    assert "logs: /home/somebody/checkout/.perennial/logs" in shown
