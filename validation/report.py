"""What moved, for people: a short summary, a table, and Evidently's page on a bounded sample.

The only module that touches Evidently.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Literal

import polars as pl

from perennial.errors import UsageError
from validation.drift import DriftVerdict, FeatureDrift
from validation.verdict import Status

MAX_ROWS = 50_000
"""Rows of each side that Evidently draws: it takes tens of seconds on a million, and the picture does not change."""

MAX_COLUMNS = 50
"""Columns that Evidently draws, the first ones asked for: on a thousand it takes hours."""

LONGEST_TEXT = 60
HARMLESS = "‹"

NOT_THE_VERDICT = (
    "This page is to look at, not perennial's verdict: it is Evidently's, drawn from a sample of the rows. Evidently bins both "
    "sides pooled and knows no days, so its scores, and whether it says that drift is detected, may differ."
)
BANNER = (
    '<body><p role="note" style="font: 16px/1.5 sans-serif; color: #1c1c1c; background: #fff3cd; margin: 0; '
    'padding: .8rem 1.2rem; border-bottom: 1px solid #8a6d00">{told}</p>'
)

HEADLINES: Mapping[Status, str] = {
    Status.PASS: "The data has not moved",
    Status.INCONCLUSIVE: "Too little data to tell whether the data has moved",
    Status.ERROR: "Drift could not be checked",
    Status.FAIL: "The data has moved",
}


@dataclass(frozen=True)
class DriftReport:
    """A page Evidently wrote.

    Attributes:
        path: where it is.
        columns: what it shows.
        left_out: columns it cannot show, each with the reason.
    """

    path: Path
    columns: tuple[str, ...]
    left_out: Mapping[str, str]


def drift_table_markdown(verdict: DriftVerdict, *, most: int = 20) -> str:
    """How far each column moved, worst first, as a table in Markdown, and why below it; empty where there is nothing to show.

    Args:
        verdict: what drift detection found.
        most: how many columns the table shows.
    """
    lines: list[str] = []
    table = narrow_table(verdict)[:most]
    if table:
        lines.append("| " + " | ".join(table[0]) + " |")
        lines.append("| --- | --- | ---: | ---: | ---: | --- |")
        lines.extend("| " + " | ".join(escaped(cell) for cell in row.values()) + " |" for row in table)
    if len(verdict.features) > most:
        lines.extend(["", f"{len(verdict.features) - most} more columns moved less."])
    if why := reasons(verdict)[:most]:
        lines.extend(["", *(f"- {escaped(line)}" for line in why)])
    return "\n".join(lines)


def narrow_table(verdict: DriftVerdict) -> list[dict[str, str]]:
    """`drift_table` for where there is little room, such as Prefect's pages, 800 pixels wide: no sentences, fewer columns."""
    return [
        {
            "column": row["column"],
            "state": row["state"],
            "PSI": row["PSI"],
            "missing": f"{row['missing before']} -> {row['missing now']}",
            "importance": row["importance"],
            "since": row["since"],
        }
        for row in drift_table(verdict)
    ]


def reasons(verdict: DriftVerdict) -> list[str]:
    """Why, for each column that moved or could not be judged by itself, a line each, worst first."""
    told = []
    for one in verdict.features:
        moved = one.status is Status.FAIL or one.watched
        # What keeps all columns from being judged is the verdict's own sentence.
        alone = one.status is Status.INCONCLUSIVE and one.reason not in verdict.verdict.reason
        if moved or alone:
            told.append(f"{one.feature}{f', since {one.since:%Y-%m-%d %H:%M}' if one.since else ''}: {one.reason}")
    return told


def drift_table(verdict: DriftVerdict) -> list[dict[str, str]]:
    """One row a column, worst first, every cell a short text: elsewhere a raw float shows all its digits."""
    return [
        {
            "column": f.feature,
            "importance": "-" if f.importance is None else _percent(f.importance),
            "PSI": _rounded(f.psi),
            "missing before": _percent(f.missing_rate_reference),
            "missing now": _percent(f.missing_rate_current),
            "state": _state(f),
            "since": f"{f.since:%Y-%m-%d %H:%M}" if f.since else "",
            "why": f.reason,
        }
        for f in verdict.features
    ]


def write_drift_report(
    reference: pl.DataFrame,
    current: pl.DataFrame,
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    back: str | None = None,
    max_rows: int = MAX_ROWS,
    seed: int = 7,
) -> DriftReport:
    """Write Evidently's drift page of two frames.

    Its own drift scores differ from ours, because it bins both sides pooled: the page is to look at, not to decide by,
    and says so at its top.

    Args:
        reference: the rows a champion was held to.
        current: the rows of the current window.
        path: where the HTML goes; its folder is made.
        columns: what to draw, most important first; None = all. At most `MAX_COLUMNS` are drawn.
        back: address of the page that has the verdict, to which its first lines link; None = they do not.
        max_rows: rows drawn from each side at random.
        seed: of the draw, so that the same rows give the same page.

    Raises:
        UsageError: no column can be shown, because a side is empty or they share none.
    """
    wanted = list(dict.fromkeys(columns if columns is not None else [*reference.columns, *current.columns]))
    reference, current = (
        f.select(c for c in wanted if c in f.columns).sample(min(max_rows, f.height), seed=seed)
        for f in (reference, current)
    )
    kinds, left_out = _showable(reference, current)
    for name in list(kinds)[MAX_COLUMNS:]:
        kinds.pop(name)
        left_out[name] = f"at most {MAX_COLUMNS} columns are drawn"
    if not kinds:
        raise UsageError(
            f"there is no drift report to draw from {reference.height} reference and {current.height} current rows: "
            f"{'; '.join(f'{c}: {why}' for c, why in left_out.items()) or 'no columns'}."
        )
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    shown = {c: _harmless(c) for c in kinds}
    definition = DataDefinition(
        numerical_columns=[shown[c] for c, kind in kinds.items() if kind == "numeric"],
        categorical_columns=[shown[c] for c, kind in kinds.items() if kind == "categorical"],
    )
    with warnings.catch_warnings():
        # Constant columns make its statistics divide by zero, which it handles and NumPy and SciPy report.
        warnings.simplefilter("ignore")
        was, now = (
            Dataset.from_pandas(_plain(f, kinds).rename(shown).to_pandas(), data_definition=definition)
            for f in (reference, current)
        )
        page = Report([DataDriftPreset()]).run(current_data=now, reference_data=was).get_html_str(as_iframe=False)
    verdict = f' <a href="{escape(back)}">What moved, and by how much</a>' if back else ""
    page = page.replace("<body>", BANNER.format(told=f"{escape(NOT_THE_VERDICT)}{verdict}"), 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not half a page under its name, should this be killed.
    written = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    written.write_text(page, encoding="utf-8")
    written.replace(path)
    return DriftReport(path, tuple(kinds), left_out)


def _showable(
    reference: pl.DataFrame, current: pl.DataFrame
) -> tuple[dict[str, Literal["numeric", "categorical"]], dict[str, str]]:
    """The kind of each column both sides can show, and why the others cannot be."""
    kinds: dict[str, Literal["numeric", "categorical"]] = {}
    left_out: dict[str, str] = {}
    for name in dict.fromkeys([*reference.columns, *current.columns]):
        lacking = [side for side, f in (("reference", reference), ("current", current)) if name not in f.columns]
        if lacking:
            left_out[name] = f"not a column of the {lacking[0]} rows"
            continue
        found = {_kind(f.schema[name]) for f in (reference, current)}
        kind = found.pop()
        if found or kind is None:
            left_out[name] = f"types {reference.schema[name]} and {current.schema[name]} cannot be drawn"
        elif not all(_plain(f, {name: kind}).get_column(name).count() for f in (reference, current)):
            left_out[name] = "one side has no values"
        else:
            kinds[name] = kind
    return kinds, left_out


def _kind(dtype: pl.DataType) -> Literal["numeric", "categorical"] | None:
    if dtype.is_numeric():
        return "numeric"
    return "categorical" if dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum) else None


def _plain(frame: pl.DataFrame, kinds: Mapping[str, Literal["numeric", "categorical"]]) -> pl.DataFrame:
    """The columns as floats and texts; infinities have no place in a histogram and become null."""
    return frame.select(
        pl.when(pl.col(c).cast(pl.Float64).is_finite()).then(pl.col(c).cast(pl.Float64)).alias(c)
        if kind == "numeric"
        else pl.col(c).cast(pl.String).str.slice(0, LONGEST_TEXT).str.replace_all("<", HARMLESS, literal=True)
        for c, kind in kinds.items()
    )


def _harmless(text: str) -> str:
    """Text that Evidently may put on its page: it writes it into a script as it is, where `</script>` would end it."""
    return text.replace("<", HARMLESS)


def _state(drift: FeatureDrift) -> str:
    if drift.watched:
        return "watched"
    return {Status.PASS: "stable", Status.FAIL: "drifted"}.get(drift.status, "not known")


def _rounded(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _percent(share: float) -> str:
    return f"{share:.1%}" if math.isfinite(share) else "-"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: categories come from outside and may hold anything."""
    shown = "".join(f"\\{c}" if c in r"\`*_[]<>|" else c for c in text)
    return " ".join(shown.split())
