"""`perennial cost`."""

from __future__ import annotations

import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perennial.arguments import PipelineName
from perennial.errors import UsageError
from perennial.wording import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from perennial.cost.bill import Bill
    from perennial.cost.prices import Prices
    from perennial.cost.retrain import RetrainCost, RetrainCosts

PLAN_COMMAND = "terraform show -json PLAN"
HOW_TO_PLAN = "terraform plan -out=plan && terraform show -json plan > plan.json"
DEFAULT_REGION = "us-east-1"
DEFAULT_TYPES = ("g4dn.xlarge", "g5.xlarge", "g6.xlarge", "g6e.xlarge")
LONGEST_H = 8_760
NOT_COUNTED = (
    "and, not counted here: requests to S3, KMS and Secrets Manager, notices, logs that are kept, backups beyond the free "
    "ones, data to the internet."
)
LAST = 10
"""So many of the newest retrains say how long one takes."""


def cost(
    pipeline: PipelineName,
    plan: Annotated[
        Path | None,
        typer.Option(help="What `terraform show -json PLAN` wrote, - for a pipe: also tells what a month costs."),
    ] = None,
    hours: Annotated[
        float | None,
        typer.Option(help="How long a retrain takes; default the median of those on record.", min=0.001, max=LONGEST_H),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object.")] = False,
) -> None:
    """What a month in AWS costs, and a retrain on spot and on demand. Status 0 only if every price is known."""
    import json
    from datetime import UTC

    from rich.console import Console

    from perennial import terraform
    from perennial.cost.bill import bill_of, gpu_types, region_of
    from perennial.cost.prices import how_to_add, read_prices
    from perennial.cost.retrain import retrain_costs
    from perennial.cost.spot import spot_prices
    from perennial.settings import settings
    from pipelines.spec import add_pipelines_dir, load_pipeline

    now = datetime.now(UTC)
    if (added := settings().pipelines_dir) is not None:
        add_pipelines_dir(added)
    load_pipeline(pipeline)  # a name that is none is told before anything else
    work_h, source = (hours, "by --hours") if hours else _on_record(pipeline)
    planned = _plan(terraform.read_text(plan), str(plan)) if plan else None
    region = (region_of(planned) if planned else None) or _own_region() or DEFAULT_REGION
    prices = read_prices(region)
    bill = bill_of(planned, prices) if planned else None
    types = gpu_types(planned) if planned else DEFAULT_TYPES
    retrain = retrain_costs(work_h, types, prices, spot_prices(region, types, now)) if work_h and types else None
    missing = [sentence for line in (bill.lines if bill else ()) for sentence in line.missing]
    missing += [how_to_add(region, one.item, one.unit) for one in (bill.by_use if bill else ()) if one.usd is None]
    if retrain:
        told_all = (_unknown(one, region, retrain.spot_is_measured) for one in retrain.types)
        missing += [sentence for sentence in told_all if sentence]
    if not work_h:
        missing.append(f"say how long a retrain takes: --hours 0.5, or run `perennial retrain {pipeline}` first")
    if planned and not types:
        missing.append("the plan has no spot nodes for a retrain: take one of infra/terraform")
    missing = list(dict.fromkeys(missing))
    if as_json:
        told = {
            "status": "INCONCLUSIVE" if missing else "PASS",
            "missing": missing,
            "region": region,
            "prices_as_of": prices.months(),
            "bill": {**asdict(bill), "expected_usd": bill.expected_usd, "most_usd": bill.most_usd} if bill else None,
            "retrain": {**asdict(retrain), "work_h_from": source} if retrain else None,
        }
        print(json.dumps(told, indent=2))
    else:
        console = Console()
        _say(console, _prices_told(prices, now))
        if bill:
            console.print(_bill_table(bill, region))
            _say(console, _on_top(bill))
        else:
            _say(console, f"What a month costs is told with --plan plan.json ({HOW_TO_PLAN}).\n")
        if retrain:
            _say(
                console,
                f"A retrain of {pipeline}, {_length(retrain.work_h)} of work {source}: the node, without its disk.",
            )
            console.print(_retrain_table(retrain))
            _say(console, _explained(retrain, prices))
        if missing:
            _say(console, "\n- ".join(["INCONCLUSIVE:", *missing]))
    if missing:
        raise typer.Exit(1)


def _own_region() -> str | None:
    """The region of this shell, by either of the names that AWS's tools look at."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


def _unknown(one: RetrainCost, region: str, measured: bool) -> str | None:
    """What is needed to know what a retrain on a type costs; None if it is known."""
    from perennial.cost.prices import how_to_add

    if one.on_demand_usd_h is None:
        return how_to_add(region, f"ec2/{one.instance_type}")
    if one.spot_usd_h is None and not measured:
        return f"{how_to_add(region, f'spot/{one.instance_type}')}, or give AWS credentials"
    if one.spot_usd_h is None:
        return f"EC2 tells no price of {one.instance_type} on spot in {region}: take another type or region"
    return None


def _on_record(pipeline: str) -> tuple[float | None, str]:
    """Hours that a retrain took lately, None if none is known, and where that comes from."""
    from statistics import median

    from flows.context import open_context
    from training.history import durations

    known = durations(open_context(pipeline).lake)[-LAST:]
    if not known:
        return None, "not on record"
    hours = median(took.total_seconds() for took in known) / 3_600
    return hours, f"(median of {counted(len(known), 'retrain')} on record, wherever they ran)"


def _plan(text: str, source: str) -> dict[str, Any]:
    from perennial import terraform

    told = terraform.parsed(text, source, PLAN_COMMAND)
    if "root_module" not in (told.get("planned_values") or {}):
        raise UsageError(f"{source} is no plan; write it with `{HOW_TO_PLAN}`")
    return told


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)


def _prices_told(prices: Prices, now: datetime) -> str:
    months = prices.months()
    if months is None:
        return f"The table of prices has none of {prices.region}."
    year, month = map(int, months[0].split("-"))
    age = (now.year - year) * 12 + now.month - month
    old = f", the oldest {counted(age, 'month')} old" if age > 6 else ""
    of = months[0] if months[0] == months[1] else f"{months[0]} to {months[1]}"
    unchecked, of_all = prices.unchecked()
    look = f" {unchecked} of {of_all} were found in no dated data: look up the large ones." if unchecked else ""
    return f"US dollars, without taxes. List prices of {prices.region} of {of}{old}.{look}"


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, pad_edge=False, padding=(0, 1), show_footer=False)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left", no_wrap=bool(number))
    return table


def _usd(value: float | None, digits: int = 2) -> str:
    return "?" if value is None else f"{value:,.{digits}f}"


def _bill_table(bill: Bill, region: str) -> Table:
    table = _table(f"a month in {region}", "begins with", "at most")
    for line in bill.lines:
        table.add_row(line.part, _usd(line.expected_usd), _usd(line.most_usd))
    table.add_section()
    left_out = sum(bool(line.missing) for line in bill.lines)
    name = f"all but {left_out} without a price" if left_out else "together"
    table.add_row(name, _usd(bill.expected_usd), _usd(bill.most_usd))
    return table


def _on_top(bill: Bill) -> str:
    """What no plan tells."""
    lines = [f"  {one.what}: {_usd(one.usd, 3)} a {one.unit}" for one in bill.by_use]
    most = '"at most": every group at its largest size all month, GPU nodes too, on demand.'
    return "\n".join([most, "On top comes what depends on use:", *lines, NOT_COUNTED, ""])


def _length(hours: float) -> str:
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.0f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"


def _retrain_table(retrain: RetrainCosts) -> Table:
    mark = "" if retrain.spot_is_measured else " *"
    table = _table("one retrain", "hour on demand", f"hour on spot{mark}", "on demand", "on spot", "saves")
    for one in retrain.types:
        saves = "?" if one.saving is None else f"{one.saving * 100:.0f} %"
        hours = (_usd(one.on_demand_usd_h, 3), _usd(one.spot_usd_h, 3))
        table.add_row(one.instance_type, *hours, _usd(one.on_demand_usd, 3), _usd(one.spot_usd, 3), saves)
    return table


def _explained(retrain: RetrainCosts, prices: Prices) -> str:
    from perennial.cost.retrain import GOAL

    model, spot = retrain.model, retrain.spot
    measured = "Spot: EC2's own prices of the last seven days, on average."
    months = sorted({line.as_of for one in retrain.types if (line := prices.get(f"spot/{one.instance_type}"))})
    listed = (
        f"* The lowest of the region's zones on one day of {' and '.join(months) or 'no month'}, from the table: prices on "
        "spot change, and may be twice that today. With AWS credentials, EC2's own are taken."
    )
    savings = [one.saving for one in retrain.types if one.saving is not None]
    met = sum(saving >= GOAL for saving in savings)
    return "\n".join(
        [
            measured if retrain.spot_is_measured else listed,
            f"Assumed on spot: {model.rate_per_h:g} interruptions an hour, {model.away_h * 60:.0f} min until the next node, "
            f"{model.start_h * 60:.0f} min until it works, a checkpoint every {model.checkpoint_h * 60:.0f} min. So a retrain "
            f"is interrupted {spot.interruptions:.2f} times on average and takes {_length(spot.wall_h)}, on demand "
            f"{_length(retrain.on_demand.wall_h)}, starts included.",
            f"Goal: save {GOAL * 100:.0f} %. {met} of {counted(len(savings), 'type')} would; it takes an hour on spot at "
            f"{retrain.goal_share * 100:.1f} % of on demand or less.",
            *_of_the_group(retrain),
        ]
    )


def _of_the_group(retrain: RetrainCosts) -> list[str]:
    """What the node group saves, which does not choose the type as a person does."""
    if retrain.saves_at_best is None or retrain.saves_at_worst is None or len(retrain.types) < 2:
        return []
    first = retrain.types[0].instance_type
    return [
        f"The group on demand buys {first}, its first type; the group on spot what EC2 has most of, at a low price. Of the "
        f"cost of {first} on demand, spot {_saved(retrain.saves_at_best)} with its cheapest type and "
        f"{_saved(retrain.saves_at_worst)} with its dearest."
    ]


def _saved(share: float) -> str:
    return f"saves {share * 100:.0f} %" if share >= 0 else f"costs {-share * 100:.0f} % more"
