"""Commands about the tool itself: methods, account, cite."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from dpgm import artefact, methods
from dpgm.cli.console import Screen
from dpgm.cli.options import RELATIONS, parse
from dpgm.privacy import accountant
from dpgm.privacy.guarantee import Budget, PrivacyError, Source, ceil_digits
from dpgm.privacy.mechanism import Cost, Event, GaussianEvent, PoissonGaussianEvent
from dpgm.schema import SchemaError


@dataclass(frozen=True, kw_only=True)
class _Methods:
    """What the command takes.

    Attributes:
        json: print one JSON object.
    """

    json: bool = False


@dataclass(frozen=True, kw_only=True)
class _Account:
    """What the command takes.

    Attributes:
        noise_multiplier: noise standard deviation over the sensitivity; with it, epsilon is computed.
        mu: the Gaussian-DP parameter (1/noise multiplier) of one release, instead of the noise multiplier.
        epsilon: privacy loss allowed; with it, the noise multiplier is computed.
        rate: probability with which each record takes part in a step; 1 for a plain Gaussian release.
        steps: how many times.
        delta: slack.
        relation: which data sets are neighbours; the multiplier is relative to the sensitivity under it.
        json: print one JSON object.
    """

    noise_multiplier: float | None = None
    mu: float | None = None
    epsilon: float | None = None
    rate: float = 1.0
    steps: int = 1
    delta: float = 1e-5
    relation: Literal["add-remove", "replace"] = "add-remove"
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class _Cite:
    """What the command takes.

    Attributes:
        what: a run folder, a release file, or a method's name.
        json: print one JSON object.
    """

    what: tyro.conf.Positional[str]
    json: bool = False


def methods_command(words: list[str]) -> int:
    """List the methods."""
    options = parse("methods", _Methods, words, about="The methods there are.")
    found = {name: methods.get(name) for name in methods.names()}
    table = {
        name: {
            "about": (m.__doc__ or "").splitlines()[0],
            "sources": [s.key for s in m.sources],
            "module": m.__module__,
        }
        for name, m in found.items()
    }
    width = max(map(len, table))
    Screen(as_json=options.json).result(table, "\n".join(f"{n:{width}}  {t['about']}" for n, t in table.items()))
    return 0


def account_command(words: list[str]) -> int:
    """Epsilon of a mechanism, or the noise that a budget needs."""
    options = parse("account", _Account, words, about="Price noise, or find the noise for a price.")
    relation = RELATIONS[options.relation]
    given = [options.noise_multiplier, options.mu, options.epsilon]
    if sum(v is not None for v in given) != 1:
        raise PrivacyError("give one of --noise-multiplier, --mu (to get epsilon) or --epsilon (to get the noise)")

    def costs(multiplier: float) -> list[tuple[Cost, int]]:
        event: Event = GaussianEvent(multiplier)
        if options.rate != 1:
            event = PoissonGaussianEvent(options.rate, multiplier)
        return [(Cost(event=event, name="gaussian"), options.steps)]

    if options.epsilon is not None:
        budget = Budget(epsilon=options.epsilon, delta=options.delta)
        multiplier = accountant.calibrate(costs, budget, relation=relation)
    elif options.mu is not None:
        if not options.mu > 0:
            raise PrivacyError(f"mu is {options.mu}; allowed is a number above 0")
        multiplier = 1 / options.mu
    else:
        assert options.noise_multiplier is not None
        multiplier = options.noise_multiplier
    epsilon = accountant.epsilon_of(costs(multiplier), delta=options.delta, relation=relation)
    value: dict[str, Any] = {
        "epsilon": epsilon,
        "delta": options.delta,
        "relation": relation.value,
        "noise_multiplier": multiplier,
        "rate": options.rate,
        "steps": options.steps,
    }
    text = (
        f"epsilon {ceil_digits(epsilon)}, delta {ceil_digits(options.delta, 6)}, {relation.value} record: "
        f"noise multiplier {ceil_digits(multiplier)}, rate {options.rate:g}, "
        f"{options.steps} step{'s' * (options.steps != 1)}"
    )
    Screen(as_json=options.json).result(value, text)
    return 0


def cite_command(words: list[str]) -> int:
    """BibTeX of a run or a method."""
    options = parse("cite", _Cite, words, about="BibTeX of everything a run or a method used.")
    sources: tuple[Source, ...]
    if options.what in methods.names():
        sources = methods.get(options.what).sources
    elif Path(options.what).exists():
        release = artefact.load_release(Path(options.what))
        sources = (*release.method.sources, *release.guarantee.sources)
    else:
        raise SchemaError(
            f"'{options.what}' is neither a run folder nor a method; methods: {', '.join(methods.names())}"
        )
    entries = {s.key: s.bibtex() for s in sources}
    Screen(as_json=options.json).result({"bibtex": entries}, "\n\n".join(entries.values()))
    return 0
