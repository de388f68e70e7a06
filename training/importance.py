"""How much a model uses each feature."""

from __future__ import annotations

from training.fit import Candidate


def importance(candidate: Candidate) -> dict[str, float] | None:
    """Share of the total gain by feature, adding up to 1; None where the family does not tell (PyTorch)."""
    if candidate.family != "lightgbm":
        return None
    gain = candidate.model.feature_importance("gain")
    total = float(gain.sum())
    if not total:
        return None
    return {f.name: float(g) / total for f, g in zip(candidate.encoder.features, gain, strict=True)}
