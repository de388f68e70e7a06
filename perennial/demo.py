"""The main job, watched: real flights of 2013 out of New York, on a stack of its own."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from perennial.addresses import variable
from perennial.errors import UsageError
from perennial.figures import Figures
from perennial.intake import Intake
from perennial.memory import PeakMemory
from perennial.ports import StackPorts, prefer
from perennial.settings import Settings, settings
from perennial.stack import Stack, start_stack
from perennial.story import Story, Telling
from perennial.tables import figures_table, services_table

PIPELINE = "flights"
BEGIN = datetime(2013, 1, 1, tzinfo=UTC)
BOOTSTRAP_UNTIL = datetime(2013, 3, 1, tzinfo=UTC)
BROKEN_DAY = datetime(2013, 3, 1, tzinfo=UTC)
LAST_DAY = datetime(2013, 12, 31, tzinfo=UTC)


def run_demo(through: datetime, json_file: Path | None, keep: bool) -> int:
    """Run the demo.

    Args:
        through: the last simulated day.
        json_file: where the figures go, as JSON.
        keep: leave the stack running at the end until Ctrl-C.

    Returns:
        0 if every stage really happened, otherwise 1.

    Raises:
        UsageError: the day is not one of March to December 2013, the file cannot be written, or the folder for the
            demo's state holds something else.
    """
    if not BOOTSTRAP_UNTIL <= through <= LAST_DAY:
        raise UsageError(
            f"--through {through:%Y-%m-%d} is not between {BOOTSTRAP_UNTIL:%Y-%m-%d} and {LAST_DAY:%Y-%m-%d}; "
            "January and February train the first model"
        )
    if json_file is not None and not json_file.resolve().parent.is_dir():
        raise UsageError(f"--json {json_file}: there is no folder {json_file.resolve().parent}; make it first")
    console = Console()
    began = time.monotonic()
    left_out = _leave_out_addresses()
    if left_out:
        console.print(f"The demo has a stack of its own and leaves out {', '.join(left_out)}")
    home = settings().root / "demo"
    os.environ["PERENNIAL_HOME"] = str(home)
    settings.cache_clear()
    with PeakMemory() as memory:
        _clear(home)
        console.print(f"[bold]perennial demo[/]: real flights of 2013, {BEGIN:%d %B} to {through:%d %B}. State: {home}")
        # These imports take seconds; they are made while the stack starts.
        threading.Thread(target=_import_ahead, daemon=True).start()
        story = Story(PIPELINE, BEGIN, BOOTSTRAP_UNTIL, through, BROKEN_DAY)
        ports = prefer(StackPorts())
        with Intake(settings(), ports, PIPELINE) as intake:

            def tell(name: str, seconds: float) -> None:
                console.print(f"{name} is ready after {seconds:.1f} s")
                if name == "kafka":
                    intake.produce(BEGIN, BOOTSTRAP_UNTIL)

            # Once more the intake: where the story was stopped, it ends before the servers that it talks to.
            with start_stack(settings(), ports, schedules=False, on_ready=tell) as stack, intake:
                console.print(services_table(stack.services))
                figures = Telling(story, stack, intake, settings(), console).run()
                figures.wall_s = round(time.monotonic() - began, 1)
                figures.peak_rss_mb, figures.peak_rss_process = memory.peak()
                _tell(console, stack, figures, json_file)
                if keep:
                    console.print("Everything keeps running. Ctrl-C stops it.")
                    with suppress(KeyboardInterrupt):
                        stack.wait()
    return 0 if figures.stages and all(figures.stages.values()) else 1


def _import_ahead() -> None:
    for module in ("features.feast_lake", "pyiceberg.table", "lightgbm", "onnxmltools", "onnxruntime"):
        importlib.import_module(module)


def _leave_out_addresses() -> list[str]:
    """Take every address out of this process's environment: nothing real is to get the demo's inverted model.

    Returns:
        The names of the variables that were there.
    """
    # The options of the Kafka client are those of the broker that is left out.
    addresses = Settings.model_fields.keys() - {"home", "pipelines_dir"}
    # Settings are read by either name, whatever the case of its letters.
    names = {name.lower() for field in addresses for name in (variable(field), f"PERENNIAL_{field}")}
    left_out = sorted(name for name in os.environ if name.lower() in names)
    for name in left_out:
        del os.environ[name]
    settings.cache_clear()
    return left_out


def _clear(home: Path) -> None:
    """An earlier demo's state goes, all but its lock, unless its stack still runs.

    Raises:
        StateError: it does.
        UsageError: the folder is not an earlier demo's.
    """
    from perennial.claim import LOCK_FILE, Claim
    from perennial.processes import stop_trees

    if home.is_dir() and any(home.iterdir()) and not (home / LOCK_FILE).exists():
        raise UsageError(
            f"{home} is not empty, and not an earlier demo's (it has no {LOCK_FILE}), so it is not removed; "
            "move it away, or give another home in PERENNIAL_HOME"
        )
    home.mkdir(parents=True, exist_ok=True)
    claim = Claim(home, os.getpid())
    try:
        stop_trees(claim.left_over)
        claim.record([])
        # All but the lock: cut off in between, the rest is still known to be a demo's, and the next one clears it. And a
        # lock that were removed could be held twice.
        for path in home.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != LOCK_FILE:
                path.unlink()
    finally:
        claim.release()


def _tell(console: Console, stack: Stack, figures: Figures, json_file: Path | None) -> None:
    console.print(figures_table(asdict(figures)))
    addresses: Mapping[str, str] = stack.addresses
    console.print(
        f"Prefect {addresses['prefect_api_url'].removesuffix('/api')}   MLflow {addresses['mlflow_tracking_uri']}"
    )
    if json_file is not None:
        json_file.write_text(json.dumps(asdict(figures), indent=1))
        console.print(f"figures: {json_file}")
    missing = [name for name, happened in figures.stages.items() if not happened]
    console.print("[green]every stage happened[/]" if not missing else f"[red]did not happen: {', '.join(missing)}[/]")
