"""`perennial drift`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from perennial.arguments import AsOf, PipelineName, moment
from perennial.errors import UsageError

if TYPE_CHECKING:
    from datetime import datetime

    from rich.table import Table

    from flows.context import Context
    from pipelines.spec import DriftPolicy
    from rollout.ledger import Model
    from validation.drift import DriftVerdict

UNITS = {"h": 3_600, "d": 86_400}


def drift(
    pipeline: PipelineName,
    window: Annotated[
        str | None, typer.Option(help="One window of this length, such as 6h or 7d; default the pipeline's windows.")
    ] = None,
    against: Annotated[str, typer.Option(help="Whose reference: `champion`, or a version such as 7.")] = "champion",
    as_of: AsOf = None,
) -> None:
    """Has the data moved: every column against what a model was trained on. Status 0 only if none has; nothing is sent."""
    from rich.console import Console

    from flows.context import moment as clock
    from flows.context import open_context
    from flows.drift import check_drift
    from validation.report import reasons

    context = open_context(pipeline)
    model = _model(context, against)
    until = moment(as_of) if as_of else clock(None)
    policy = context.spec.drift
    if window is not None:
        policy = _with_window(policy, window)
        _refuse_too_long(context, window, policy, until)
    checked = check_drift(context, model, until, policy, clock(None))
    verdict = checked.drift.verdict
    console = Console()
    console.print(
        f"{pipeline}, {checked.since:%Y-%m-%d %H:%M} to {checked.until:%Y-%m-%d %H:%M} UTC, against version {model.version}"
    )
    console.print(_table(checked.drift))
    for line in reasons(checked.drift):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(f"{verdict.status.name}. {verdict.reason}", markup=False, highlight=False, soft_wrap=True)
    if not verdict.passed:
        raise typer.Exit(1)


def _model(context: Context, against: str) -> Model:
    from flows.context import champion
    from rollout.ledger import Model
    from training import registry

    if against == "champion":
        found = champion(context)
        if found is None:
            raise UsageError(
                f"{context.spec.name} has no champion yet; run `perennial retrain {context.spec.name}`, or name a version"
            )
        return found
    version = registry.get(context.settings.mlflow_tracking_uri, context.spec.name, against)
    if version is None:
        raise UsageError(f"{context.spec.name} has no version {against!r} in MLflow; choose `champion` or a version")
    return Model(version.version, version.uri)


def _with_window(policy: DriftPolicy, text: str) -> DriftPolicy:
    """The policy with one window of that length."""
    from pydantic import ValidationError

    read = re.fullmatch(r"([1-9][0-9]{0,4})([hd])", text)
    if read is None:
        raise UsageError(f"--window {text!r} is no length; write it as 6h or 7d")
    seconds = int(read[1]) * UNITS[read[2]]
    try:
        return type(policy).model_validate({**policy.model_dump(), "window_s": seconds, "persistence": 1})
    except ValidationError as error:
        raise UsageError(f"--window {text}: whole days, or hours that divide a day, such as 6h or 7d") from error


def _refuse_too_long(context: Context, window: str, policy: DriftPolicy, until: datetime) -> None:
    """Raise UsageError where more of the window than may be empty lies before the first prediction there is."""
    from features.labels import PREDICTIONS
    from features.lake import EVENT_TIMESTAMP
    from validation.coverage import LEAST_SHARE
    from validation.hours import hour_of, moment_of

    end = moment_of(hour_of(until))
    begin = end - timedelta(seconds=policy.window_s)
    lake = context.lake
    if not lake.exists(PREDICTIONS) or lake.count(PREDICTIONS, None, begin):
        return
    times = lake.read(PREDICTIONS, begin, end, (EVENT_TIMESTAMP,)).get_column(EVENT_TIMESTAMP)
    if not len(times):
        return  # of nothing, the verdict says so
    first = moment_of(hour_of(times.min()))  # type: ignore[arg-type]
    if (end - first).total_seconds() >= LEAST_SHARE * policy.window_s:
        return
    raise UsageError(
        f"--window {window} is longer than there are predictions: the first is of {first:%Y-%m-%d %H:%M} UTC. The longest "
        f"window that they fill until {end:%Y-%m-%d %H:%M} is {longest_within(end - first)}; write --window "
        f"{longest_within(end - first)}, or shorter"
    )


def longest_within(there: timedelta) -> str:
    """The longest window that so much time fills, as it is written: whole days, or hours that divide a day.

    Args:
        there: at least an hour.
    """
    if there.days:
        return f"{there.days}d"
    hours = int(there.total_seconds()) // UNITS["h"]
    return f"{max(h for h in range(1, hours + 1) if 24 % h == 0)}h"


def _table(drift: DriftVerdict) -> Table:
    """Every column in a terminal of 80 characters; why is told below."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from validation.report import narrow_table

    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1))
    shown = ("column", "importance", "PSI", "missing", "state")
    for name in shown:
        right = name not in ("column", "state")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "column", overflow="fold")
    for row in narrow_table(drift):
        table.add_row(*(Text(row[name]) for name in shown))
    return table
