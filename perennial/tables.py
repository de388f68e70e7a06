"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from perennial.services import Service


def services_table(services: Sequence[Service]) -> Table:
    """What runs where; narrow enough for 80 columns with every address whole."""
    logs = sorted({service.log.parent for service in services if service.log})
    table = Table(caption=f"logs: {', '.join(map(str, logs))}" if logs else None, caption_justify="left")
    table.add_column("service", no_wrap=True)
    table.add_column("address", no_wrap=True)
    table.add_column("what it is")
    table.add_column("pid", no_wrap=True)
    for service in services:
        table.add_row(service.name, service.address, service.what, str(service.pid or ""))
    return table


def figures_table(figures: Mapping[str, Any]) -> Table:
    """The demo's closing figures."""
    table = Table("figure", "value", title="what happened")
    produced, ingested, dead = (figures[k] for k in ("events_produced", "events_ingested", "dead_lettered"))
    table.add_row("events", f"{produced:,} produced = {ingested:,} ingested + {dead:,} dead-lettered")
    for month, auc in figures["monthly_auc"].items():
        table.add_row(f"AUC {month}", _both(auc))
    if figures["mean_auc"]:
        table.add_row("AUC, mean of months", _both(figures["mean_auc"]))
    table.add_row("alerts", str(len(figures["drift_alerts"])))
    for retrain in figures["retrains"]:
        champion, candidate = retrain["champion_auc"], retrain["candidate_auc"]
        table.add_row(
            f"retrain {retrain['as_of'][:10]}", f"{retrain['decision']}: champion {champion}, candidate {candidate}"
        )
    table.add_row("drift to new champion serving", ", ".join(f"{s} s" for s in figures["drift_to_serving_s"]))
    if bad := figures["bad_release"]:
        answered = f"{bad['bad_responses']} bad answers, version {bad['restored_version']} restored"
        took = f"{bad['rollback_s']} s, {bad['exposed_s']} s of them with a share"
        table.add_row("bad release to 0 % of traffic", f"{took}; {answered}")
    if live := figures["live_traffic"]:
        p50, p99 = (f"{live[k]:.1f}" if live[k] else "-" for k in ("p50_ms", "p99_ms"))
        table.add_row("live requests", f"{live['requests']:,}: {live['answers']}, P50 {p50} ms, P99 {p99} ms")
    table.add_row("wall time", f"{figures['wall_s']} s")
    table.add_row("largest process", f"{figures['peak_rss_mb']} MB ({figures['peak_rss_process']})")
    for stage, happened in figures["stages"].items():
        table.add_row(f"stage {stage}", "[green]happened[/]" if happened else "[red]did not happen[/]")
    return table


def _both(auc: Mapping[str, float | None]) -> str:
    static, kept_fresh = (f"{value:.4f}" if value is not None else "-" for value in (auc["static"], auc["kept_fresh"]))
    return f"trained once {static}   kept fresh {kept_fresh}"
