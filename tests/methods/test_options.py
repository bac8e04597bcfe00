"""Options of a form that is not chosen are refused where they are given, and load where they are stored."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpgm
from dpgm.cli import BAD_INPUT, OK, main
from dpgm.cli.options import parse, with_method
from dpgm.methods.denoising import Denoising
from dpgm.methods.labelled import Labelled
from dpgm.methods.options import check_forms
from dpgm.methods.pge import PGE
from dpgm.methods.published_pge import Published
from dpgm.schema import SchemaError

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (
            PGE(published=Published(net="small", steps=7)),
            "published.net='small', published.steps=7 belong to privacy 'published', and privacy is 'one-shot': leave "
            "them out, or take privacy 'published'",
        ),
        (PGE(denoising=Denoising(steps=7)), "denoising.steps=7 belongs to privacy 'dp-sgd', and privacy is 'one-shot'"),
        (PGE(directions=5), "directions=5 belongs to features 'scattering', and features is 'cosine': leave it out"),
        (PGE(privacy="dp-sgd", published=Published(k=3)), "published.k=3 belongs to privacy 'published'"),
        (PGE(privacy="published", denoising=Denoising(levels=3)), "denoising.levels=3 belongs to privacy 'dp-sgd'"),
        (
            PGE(privacy="published", temperature=3.0, picture="strokes", components=4),
            "picture='strokes', components=4, temperature=3.0 belong to privacy 'one-shot' or 'dp-sgd', and privacy is",
        ),
        (PGE(privacy="published", block=3), "block=3"),
        (PGE(privacy="published", wobble=0.1), "wobble=0.1"),
        (PGE(privacy="published", rounds=3), "rounds=3"),
        (PGE(privacy="published", n_leapfrog=3), "n_leapfrog=3"),
        (PGE(directions=5, published=Published(k=3)), "; directions=5 belongs"),
        (Labelled(generator=PGE(directions=5)), "directions=5 belongs to features 'scattering'"),
    ],
)
def test_options_of_another_form_are_refused_and_still_load(method: Any, said: str) -> None:
    with pytest.raises(SchemaError) as caught:
        check_forms(method)
    assert said in str(caught.value)
    assert type(method).from_json(method.to_json()) == method
    check_forms(method, method)  # as stored, and nothing given beside it


@pytest.mark.parametrize(
    "method",
    [
        PGE(),
        PGE(features="scattering", directions=5, copies=2, wobble=0.4),
        PGE(privacy="published", published=Published(net="small", steps=7)),
        PGE(
            privacy="dp-sgd",
            denoising=Denoising(steps=7),
            picture="strokes",
            components=2,
            block=5,
            temperature=2.0,
            wobble=0.1,
            rounds=3,
            n_leapfrog=3,
        ),
        Labelled(),
    ],
)
def test_options_of_the_chosen_form_pass(method: Any) -> None:
    check_forms(method)


def test_commands_and_calls_refuse_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "digits", "--method", "pge"]
    assert main([*words, "--published.net", "small", "--labeller", "0.3"]) == BAD_INPUT
    assert "published.net='small' belongs to privacy 'published'" in capsys.readouterr().err
    assert main([*words, "--privacy", "published", "--picture", "strokes"]) == BAD_INPUT
    assert "picture='strokes' belongs to privacy 'one-shot' or 'dp-sgd'" in capsys.readouterr().err
    assert main([*words, "--privacy", "published", "--published.net", "small"]) == OK
    images, labels = np.zeros((4, 8, 8, 1), np.uint8), np.arange(4) % 2
    with pytest.raises(SchemaError, match="directions=5 belongs"):
        dpgm.fit(PGE(directions=5), images, labels, classes=2, size=4, epsilon=1.0, delta=1e-2)


@dataclass(frozen=True, kw_only=True)
class Words:
    """What a command takes beside the method."""

    json: bool = False


def test_what_a_release_has_stored_is_not_held_against_a_new_training() -> None:
    stored = PGE(directions=5)  # as versions that did not look have kept it
    options = with_method(Words, stored)
    assert parse("train", options, ["--temperature", "3"], about="").config == PGE(directions=5, temperature=3.0)
    for given in (["--directions", "6"], ["--published.rounds", "3"]):
        with pytest.raises(SchemaError, match="belongs to"):
            parse("train", options, given, about="")


def test_committed_experiments_give_no_useless_option() -> None:
    seen = 0
    for path in sorted(EXPERIMENTS.glob("*.toml")):
        for row in tomllib.loads(path.read_text())["row"]:
            if row.get("method") == "pge":
                for place in row.get("on", {"anywhere": {}}).values():
                    check_forms(PGE.from_json({**row.get("options", {}), **place}))
                    seen += 1
    assert seen > 5


@pytest.mark.parametrize("form", [Published, Denoising])
def test_a_learning_rate_of_0_is_refused(form: type[Any]) -> None:
    with pytest.raises(SchemaError, match=r"lr is 0; allowed is a number above 0"):
        form(lr=0.0)
