"""Should this model be retrained now: why, or why not, in a sentence with numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from pipelines.spec import RetrainPolicy
from validation.verdict import Status, Verdict

TRIGGERS = ("drift", "performance")
DAY_S = 86_400.0


@dataclass(frozen=True)
class ChampionHistory:
    """What is known about the model that serves.

    Attributes:
        trained_as_of: the moment as which the champion's training data was read; None = there is no champion.
        last_attempt: as_of of the newest retrain, whatever became of it; None = there was none.
        new_labels: labelled rows that came since trained_as_of; without a champion, all there are.
        rollout_in_flight: whether a challenger is taking over right now.
    """

    trained_as_of: datetime | None
    last_attempt: datetime | None
    new_labels: int
    rollout_in_flight: bool


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
    """

    retrain: bool
    reason: str
    triggers: tuple[str, ...]
    cost_usd: float
    staleness_s: float | None
    new_labels: int
    enough_data: bool


def decide(
    verdicts: Mapping[str, Verdict], history: ChampionHistory, policy: RetrainPolicy, as_of: datetime
) -> RetrainDecision:
    """Decide whether a retrain pays.

    In this order: no champion, yes; a rollout in flight, no; cooldown, no; too few new labels, no; then drift that
    FAILs, performance that FAILs, or age, yes; otherwise no. A check that is INCONCLUSIVE, could not run or is absent
    triggers nothing, and the reason says so.

    Args:
        verdicts: by check; "drift" and "performance" can trigger, others are only told.
        history: of the champion.
        policy: cooldown, age, labels, cost.
        as_of: the moment of the decision (UTC).
    """
    staleness_s = (as_of - history.trained_as_of).total_seconds() if history.trained_as_of else None
    causes = _causes(verdicts, staleness_s, policy)
    hindered = hindrance(history, policy, as_of)
    if staleness_s is None:
        reason = f"retrain: there is no champion; {history.new_labels} labels"
    elif hindered:
        wish = f", although {'; '.join(causes.values())}" if causes else ""
        reason = f"no retrain: {hindered}{wish}"
    elif causes:
        reason = f"retrain: {'; '.join(causes.values())}; {history.new_labels} new labels"
    else:
        passed = [name for name in TRIGGERS if name in verdicts and verdicts[name].passed]
        age = f"the champion is {_days(staleness_s)} old, at most {_days(policy.max_age_s)}"
        reason = f"no retrain: {', '.join([*(f'{name} passed' for name in passed), age])}"
    return RetrainDecision(
        retrain=bool(causes) and (staleness_s is None or hindered is None),
        reason="; ".join([reason, *_unclear(verdicts)]),
        triggers=tuple(causes),
        cost_usd=policy.cost_usd,
        staleness_s=staleness_s,
        new_labels=history.new_labels,
        enough_data=history.new_labels >= policy.min_new_labels,
    )


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


def hindrance(history: ChampionHistory, policy: RetrainPolicy, as_of: datetime) -> str | None:
    """The first thing that speaks against a retrain now, as a clause with numbers; None if nothing does."""
    if history.rollout_in_flight:
        return "a rollout is in flight"
    if history.last_attempt is not None:
        since_s = (as_of - history.last_attempt).total_seconds()
        if since_s < policy.cooldown_s:
            return f"the last attempt was {_days(since_s)} ago, cooldown {_days(policy.cooldown_s)}"
    if history.new_labels < policy.min_new_labels:
        return f"{history.new_labels} new labels are fewer than {policy.min_new_labels}"
    return None


def _unclear(verdicts: Mapping[str, Verdict]) -> list[str]:
    """What the checks that neither passed nor triggered have to say."""
    absent = [f"{name} was not checked" for name in TRIGGERS if name not in verdicts]
    return absent + [
        f"{name} is {verdict.status.name} ({verdict.reason})"
        for name, verdict in verdicts.items()
        if not verdict.passed and not (name in TRIGGERS and verdict.status is Status.FAIL)
    ]


def _days(seconds: float) -> str:
    return f"{seconds / DAY_S:.1f} d"
