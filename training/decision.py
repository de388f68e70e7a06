"""Should this model be retrained now: why, or why not, in a sentence with numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pipelines.spec import RetrainPolicy
from validation.verdict import Status, Verdict

TRIGGERS = ("drift", "performance")
DATA = "data"
DAY_S = 86_400.0
RETRY_S = DAY_S
"""A retrain that did not end is asked for again after a day: not every hour, and not only after a whole cooldown."""


@dataclass(frozen=True)
class ChampionHistory:
    """What is known about the model that serves.

    Attributes:
        trained_as_of: the moment as which the champion's training data was read; None = there is no champion.
        last_attempt: as_of of the newest retrain that ended, whatever became of it; None = there was none.
        new_labels: labelled rows that came since trained_as_of; without a champion, all there are.
        rollout_in_flight: whether a challenger is taking over right now.
        last_unended: as_of of the newest retrain that began and did not end: it still runs, failed or was killed; None =
            there is none.
        candidate: what became of the last attempt's candidate where it does not serve, as a clause with what a person can do
            about it; empty where it does.
    """

    trained_as_of: datetime | None
    last_attempt: datetime | None
    new_labels: int
    rollout_in_flight: bool
    last_unended: datetime | None = None
    candidate: str = ""


@dataclass(frozen=True)
class RetrainDecision:
    """Whether to retrain.

    Attributes:
        retrain: yes or no.
        reason: a sentence with the numbers that decided.
        triggers: what asks for a retrain: "no_champion", "drift", "performance", "age"; also when the answer is no.
        cost_usd: what one retrain costs.
        staleness_s: age of the champion's training data; None without a champion.
        new_labels: labelled rows since then.
        enough_data: whether those are enough for a retrain to pay.
        summary: the reason in a few words, for those who have read what the checks found.
    """

    retrain: bool
    reason: str
    triggers: tuple[str, ...]
    cost_usd: float
    staleness_s: float | None
    new_labels: int
    enough_data: bool
    summary: str = ""


def decide(
    verdicts: Mapping[str, Verdict], history: ChampionHistory, policy: RetrainPolicy, as_of: datetime
) -> RetrainDecision:
    """Decide whether a retrain pays.

    In this order: data that FAILs its contract or could not be judged, no; no champion, yes; a rollout in flight, no; an
    attempt that did not end within the last day, no; cooldown, no; too few new labels, no; then drift that FAILs,
    performance that FAILs, or age, yes; otherwise no. A check that is INCONCLUSIVE, could not run or is absent triggers
    nothing, and the reason says so.

    Args:
        verdicts: by check; "drift" and "performance" can trigger, "data" can hinder, others are only told.
        history: of the champion.
        policy: cooldown, age, labels, cost.
        as_of: the moment of the decision (UTC).
    """
    staleness_s = (as_of - history.trained_as_of).total_seconds() if history.trained_as_of else None
    causes = _causes(verdicts, staleness_s, policy)
    hindered = _unfit(verdicts) or (hindrance(history, policy, as_of) if history.trained_as_of else None)
    if hindered:
        wish = f", although {'; '.join(causes.values())}" if causes else ""
        reason = f"no retrain: {hindered}{wish}"
        summary = f"no retrain: {_unfit(verdicts, with_reason=False) or hindered}"
    elif staleness_s is None:
        summary = reason = f"retrain: there is no champion; {history.new_labels} labels"
    elif causes:
        summary = f"retrain, because of {' and '.join(causes)}"
        reason = f"retrain: {'; '.join(causes.values())}; {history.new_labels} new labels"
    else:
        passed = [name for name in TRIGGERS if name in verdicts and verdicts[name].passed]
        age = f"the champion is {_days(staleness_s)} old, at most {_days(policy.max_age_s)}"
        summary = "no retrain: no check asks for one"
        reason = f"no retrain: {', '.join([*(f'{name} passed' for name in passed), age])}"
    return RetrainDecision(
        retrain=bool(causes) and hindered is None,
        reason="; ".join([reason, *_unclear(verdicts)]),
        triggers=tuple(causes),
        cost_usd=policy.cost_usd,
        staleness_s=staleness_s,
        new_labels=history.new_labels,
        enough_data=history.new_labels >= policy.min_new_labels,
        summary=summary,
    )


def undecided(policy: RetrainPolicy) -> RetrainDecision:
    """The answer where it could not be asked, such as when no labels can be read: no."""
    why = "no retrain: whether one pays could not be decided, see the run's log"
    return RetrainDecision(False, why, (), policy.cost_usd, None, 0, False, why)


def _causes(verdicts: Mapping[str, Verdict], staleness_s: float | None, policy: RetrainPolicy) -> dict[str, str]:
    """Everything that asks for a retrain, as a clause each."""
    causes: dict[str, str] = {}
    if staleness_s is None:
        causes["no_champion"] = "there is no champion"
    for name in TRIGGERS:
        if name in verdicts and verdicts[name].status is Status.FAIL:
            causes[name] = f"{name} failed ({verdicts[name].reason})"
    if staleness_s is not None and staleness_s >= policy.max_age_s:
        causes["age"] = f"the champion is {_days(staleness_s)} old, at most {_days(policy.max_age_s)}"
    return causes


def _unfit(verdicts: Mapping[str, Verdict], *, with_reason: bool = True) -> str | None:
    """Why nothing should be learned from the data as it is, as a clause with the mend; None if it may.

    Args:
        verdicts: by check.
        with_reason: whether what was found is told, too.
    """
    data = verdicts.get(DATA)
    if data is None or data.status < Status.ERROR:
        return None
    what = "fails its contract" if data.status is Status.FAIL else "could not be judged"
    found = f" ({data.reason})" if with_reason else ""
    return f"the data {what}{found}: mend its source or the contract, or retrain by hand"


def hindrance(history: ChampionHistory, policy: RetrainPolicy, as_of: datetime) -> str | None:
    """The first thing that speaks against a retrain now, as a clause with numbers; None if nothing does."""
    if history.rollout_in_flight:
        return "a rollout is in flight"
    if history.last_unended is not None:
        since_s, wait_s = (as_of - history.last_unended).total_seconds(), min(RETRY_S, policy.cooldown_s)
        if since_s < wait_s:
            return (
                f"the attempt of {_days(since_s)} ago did not end, and the next one waits {_days(wait_s)}; "
                "see its run, or retrain by hand"
            )
    if history.last_attempt is not None:
        since_s = (as_of - history.last_attempt).total_seconds()
        if since_s < policy.cooldown_s:
            told = f"the last attempt was {_days(since_s)} ago, cooldown {_days(policy.cooldown_s)}"
            return f"{told}; {history.candidate}" if history.candidate else told
    if history.new_labels < policy.min_new_labels:
        return f"{history.new_labels} new labels are fewer than {policy.min_new_labels}"
    return None


def _unclear(verdicts: Mapping[str, Verdict]) -> list[str]:
    """What the checks that neither passed nor triggered have to say."""
    absent = [f"{name} was not checked" for name in TRIGGERS if name not in verdicts]
    return absent + [
        f"{name} is {verdict.status.name} ({verdict.reason})"
        for name, verdict in verdicts.items()
        if not verdict.passed
        and not (name in TRIGGERS and verdict.status is Status.FAIL)
        and not (name == DATA and verdict.status >= Status.ERROR)
    ]


def _days(seconds: float) -> str:
    return f"{seconds / DAY_S:.1f} d"
