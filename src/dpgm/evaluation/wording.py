"""The report's sentences: what an epsilon means, what an access was, and which sharp edges apply."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from dpgm.privacy.guarantee import Evidence, ceil_digits

VERDICTS: Mapping[Evidence, tuple[str, str]] = {
    Evidence.PROVED: ("✓", "A proof is written down and covers every access to the private records."),
    Evidence.CLAIMED: ("≈", "A paper claims this guarantee; its proof was not checked here."),
    Evidence.UNSUPPORTED: ("!", "No argument covers this run. Do not rely on the epsilon below."),
    Evidence.REFUTED: ("✕", "An attack beats the claimed epsilon. There is no privacy guarantee."),
}
"""For each evidence: a sign that is told apart without colour, and a sentence."""

HELD_OUT = "scores are plain statistics of held-out records, and tell their number"
"""The reason of the look that scoring records takes which may be private."""

_EVENTS: Mapping[str, tuple[str, Mapping[str, str], str]] = {
    "GaussianEvent": ("Gaussian noise", {"noise_multiplier": "noise multiplier"}, "gaussian"),
    "PoissonGaussianEvent": (
        "Gaussian noise on a Poisson sample",
        {"rate": "sampling rate", "noise_multiplier": "noise multiplier"},
        "poisson-gradient",
    ),
    "DiscreteGaussianEvent": (
        "discrete Gaussian noise",
        {"sigma": "sigma", "sensitivity": "sensitivity"},
        "discrete-gaussian",
    ),
    "SlicedGaussianEvent": (
        "Gaussian noise behind published random directions",
        {"noise_multiplier": "noise multiplier", "slices": "directions"},
        "slicing",
    ),
    "ShuffledGaussianEvent": (
        "Gaussian noise on every record, in random order",
        {"noise_multiplier": "noise multiplier", "records": "records at least"},
        "shuffling",
    ),
    "ZeroConcentratedEvent": ("zero-concentrated DP", {"rho": "rho"}, ""),
    "BoundedRangeEvent": ("a choice by the exponential mechanism", {"epsilon": "epsilon"}, "exponential"),
    "PureEvent": ("pure DP", {"epsilon": "epsilon"}, ""),
    "ClaimEvent": ("a bare claim", {"epsilon": "epsilon", "delta": "delta"}, ""),
}
"""For each event: in words, its numbers, and the page that proves its curve where there is one for all of its kind."""


def event(cost: Mapping[str, Any]) -> str:
    """An access in words, from a ledger's cost: "Gaussian noise (noise multiplier 3.731)"."""
    words, fields, _ = _EVENTS.get(str(cost.get("event")), (str(cost.get("event", "")), {}, ""))
    numbers = [f"{label} {number(cost[key])}" for key, label in fields.items() if key in cost]
    return f"{words} ({', '.join(numbers)})" if numbers else words


def proof(cost: Mapping[str, Any]) -> str:
    """The page that proves the price of a proved access; "" for others."""
    _, _, page = _EVENTS.get(str(cost.get("event")), ("", {}, ""))
    return f"docs/proofs/{page}.md" if page and cost.get("evidence") == Evidence.PROVED.word else ""


def number(value: Any) -> str:
    """A number for reading: four significant digits, whole numbers in full with thousands separated."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def exponent(value: float) -> str:
    """A small number: 1e-5."""
    return f"{value:g}".replace("e-0", "e-")


def meaning(epsilon: float, delta: float, relation: str, unit: str) -> list[str]:
    """What (epsilon, delta) promises, for somebody who decides about the data and is no mathematician.

    The guessing game is exact: against a fair coin's prior, an attacker who tells two neighbours apart is right with
    probability at most (e^epsilon + delta)/(1 + e^epsilon).
    """
    if not math.isfinite(epsilon):
        return ["Epsilon is infinite: nothing is promised about any record."]
    other = "had been replaced by any other" if relation.startswith("replace") else "had not been in the data"
    odds = math.exp(min(epsilon, 700.0))
    right = min(1.0, (odds + delta) / (1 + odds))
    lines = [
        f"Take any one {unit}. Whatever anybody concludes from the published results, they would have concluded almost "
        f"as readily if this {unit} {other}. Epsilon says how large “almost” is: the odds of any conclusion "
        f"move by a factor of at most {_ceil(odds)}.",
        f"As a game: somebody who knows everything except whether the {unit} "
        f"{'is this one or another' if relation.startswith('replace') else 'was in'}, and who would otherwise toss a "
        f"coin, guesses right at most {_percent_up(right)} of the time.",
    ]
    if right > 0.95:
        lines.append("By itself this bound hardly restrains such an attacker; smaller epsilons protect more.")
    if delta > 0:
        lines.append(
            f"Delta, {exponent(delta)}, is the slack: the share of probability that may lie outside this bound. "
            "It should be far below one divided by the number of records."
        )
    else:
        lines.append("Delta is 0: the bound holds without exception (pure differential privacy).")
    lines.append(
        "The promise holds whatever the attacker knows and however the published results are used. It is about single "
        f"{unit}s: what is true of the group as a whole, the results are meant to show."
    )
    return lines


def shown(metrics: Mapping[str, Any]) -> str:
    """What a page with these metrics shows of held-out private records; "" where the scored records are public."""
    looks = metrics.get("exposures")
    reasons = [e.get("reason") for e in looks if isinstance(e, Mapping)] if isinstance(looks, list | tuple) else []
    if HELD_OUT not in reasons:
        return ""
    return f"plain (not private) statistics of {_size(metrics, 'test')}held-out private records"


def summary(
    void: bool, evidence: str, accesses: int | None, metrics: Mapping[str, Any], exposures: Sequence[str]
) -> list[str]:
    """The run in a few sentences, for somebody who reads no further."""
    if void:
        lines = ["Publish nothing of this run that you would not publish of the private records themselves."]
    elif evidence == Evidence.CLAIMED.word:
        lines = ["Before anything is published, have somebody check the proof: so far it is a paper's word."]
    else:
        lines = [
            "Samples, model and release may be published under the promise above, as far as its assumptions are true; "
            "whatever is computed from them keeps it."
        ]
    if page := shown(metrics):
        lines.append(
            f"This page itself must not be published as it is: it shows {page}, which no epsilon covers. How to write "
            "one without them: docs/report.md."
        )
    if accesses is not None:
        times = {0: "never", 1: "once"}.get(accesses, f"{accesses:,} times")
        lines.append(
            f"The method read the private records {times}, {'each time ' * (accesses > 1)}as the ledger below says."
        )
    accuracy, rival = metrics.get("accuracy") or {}, f"one that saw {_size(metrics, 'real')}real records"
    mine, real = mean_of(_named(accuracy)), mean_of(accuracy.get("real_cnn"))
    if mine is not None:
        line = f"A classifier that saw nothing but samples is right on {100 * mine:.1f} % of real records"
        lines.append(f"{line}; {rival}, on {100 * real:.1f} %." if real is not None else f"{line}.")
    utility = metrics.get("utility") or {}
    mine, real = (mean_of(_auc(utility, k)) for k in ("boosting", "real_boosting"))
    if mine is not None:
        line = (
            f"A classifier that saw nothing but samples predicts the label of real records with a ROC AUC of {mine:.3f}"
        )
        lines.append(f"{line}; {rival}, of {real:.3f}." if real is not None else f"{line}.")
    fidelity = mean_of((metrics.get("fidelity") or {}).get("PairSimilarity"))
    if fidelity is not None:
        lines.append(f"The joint shares of two columns agree with those of real records to {100 * fidelity:.0f} %.")
    if exposures:
        lines.append("Records were also looked at without protection; what that means is said above.")
    return lines


def edges(
    guarantee: Mapping[str, Any],
    run: Mapping[str, Any],
    metrics: Mapping[str, Any],
    exposures: Sequence[str],
    *,
    attacked: bool = True,
) -> list[tuple[str, str]]:
    """What this run does not promise, as pairs (severity, sentence), the gravest first."""
    unit, delta, epsilon = str(guarantee.get("unit", "record")), guarantee.get("delta"), guarantee.get("epsilon")
    schema = run.get("schema") or {}
    size, accuracy, utility = schema.get("size"), metrics.get("accuracy") or {}, metrics.get("utility") or {}
    relation = str(guarantee.get("relation", ""))
    public = [a for a in guarantee.get("assumptions") or () if "public" in str(a)]
    found: list[tuple[str, str]] = []

    def add(severity: str, condition: object, sentence: str) -> None:
        if condition:
            found.append((severity, sentence))

    void = str(guarantee.get("evidence")) in (Evidence.REFUTED.word, Evidence.UNSUPPORTED.word)
    add("critical", void, "There is no guarantee. What follows would be left open even if there were one.")
    add(
        "critical",
        exposures,
        "Private records were also looked at without protection (listed above). Epsilon covers no such look; publish "
        "what came of them only if you would publish it of the plain records.",
    )
    add(
        "critical",
        page := shown(metrics),
        f"This page shows {page}. Epsilon covers none of them: publish it only if you would publish them of the plain "
        "records.",
    )
    add(
        "critical",
        public,
        "The guarantee rests on features that were made from data called public (see what it assumes). If the private "
        "records, or people who did not agree, were among them, it is void, and no check can tell.",
    )
    add(
        "critical",
        schema,
        "What is declared as public"
        + (", bounds and categories above all," if schema.get("kind") == "table" else "")
        + " must not have been read off the private records; nobody but you can know.",
    )
    add(
        "serious",
        isinstance(delta, int | float) and isinstance(size, int) and delta * size >= 1,
        f"Delta {exponent(delta or 0.0)} is not below 1/{size or 0:,}: it would allow publishing a record at random.",
    )
    add(
        "serious",
        guarantee,
        f"One {unit} is protected. A person with several {unit}s is protected less: with k of them, epsilon is k times "
        "as large, and delta grows even faster.",
    )
    add(
        "serious",
        epsilon is not None,
        "Each further run on the same records that does not share this ledger adds its epsilon to this one, runs that "
        "were thrown away included.",
    )
    add(
        "serious",
        isinstance(epsilon, int | float) and epsilon > 4,
        "At this epsilon the bound hardly restrains an attacker who knows the other records.",
    )
    add(
        "serious",
        accuracy or utility,
        "The scores are plain statistics of held-out real records; these are not covered by epsilon, and choosing "
        "settings by the scores would use them up.",
    )
    add(
        "minor",
        relation.startswith("replace"),
        "The number of records counts as public: only what a record holds is protected, not its presence.",
    )
    add(
        "minor",
        relation.startswith("add") and run.get("seconds"),
        "Run times and memory depend on the number of records: leave them and the ledger's times out of what is "
        "published, where that number is secret.",
    )
    add(
        "minor",
        guarantee and not attacked and not void,
        "Nobody has attacked this run yet: dpgm audit does. It can refute only.",
    )
    add(
        "minor",
        accuracy and not isinstance(_named(accuracy), Mapping),
        "One seed was run: the scores carry no interval.",
    )
    scores = [v for v in utility.values() if isinstance(v, Mapping)]
    add(
        "minor",
        any(not isinstance(v.get("auc"), Mapping) for v in scores),
        "One seed was run: the scores carry no interval.",
    )
    for name in ("labeller", "dp_cnn", "dp_logreg"):
        pairs = ((_named(accuracy), accuracy.get(name)), (_auc(utility, "boosting"), _auc(utility, name)))
        known = [(mean_of(score), mean_of(rival)) for score, rival in pairs]
        add(
            "minor",
            any(score is not None and rival is not None and rival > score for score, rival in known),
            f"A private classifier trained directly on the real records ({name.replace('_', ' ')}) does better than "
            "one trained on these samples; for classification alone, publish that classifier.",
        )
    return found


def _named(accuracy: Mapping[str, Any]) -> Any:
    """The accuracy of the classifier named beforehand, whatever labels it learnt from."""
    return accuracy.get("cnn", accuracy.get("cnn_soft"))


def _auc(utility: Mapping[str, Any], name: str) -> Any:
    """The ROC AUC of a classifier of a table; None without one."""
    return (utility.get(name) or {}).get("auc")


def _size(metrics: Mapping[str, Any], part: str) -> str:
    """How many records of a part were used, with a space behind it; "" where nobody says."""
    sizes = metrics.get("sizes")
    n = sizes.get(part) if isinstance(sizes, Mapping) else None
    return f"{number(n)} " if n else ""


def mean_of(value: Any) -> float | None:
    """The number itself, or the mean of a value over several seeds; None for anything else."""
    if isinstance(value, Mapping):
        value = value.get("mean")
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _ceil(value: float) -> str:
    """A factor, rounded up."""
    if value >= 1e6:
        return f"10^{math.ceil(math.log10(value))}"
    return f"{math.ceil(value):,}" if value >= 1e3 else ceil_digits(value, 3)


def _percent_up(share: float) -> str:
    """A bound in percent, rounded up, so that it is never stated too small."""
    digits = 1 if share < 0.999 else 2 if share < 0.9999 else 0
    return f"{math.ceil(share * 100 * 10**digits - 1e-9) / 10**digits:.{digits}f} %"
