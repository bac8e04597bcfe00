"""Folders that hold no VQ model: one line says what was given and what is needed."""

import json
from pathlib import Path

import pytest
import torch

from dpgm.nets.codes import load_vq, make_code, vq_model
from dpgm.nets.unet import diffusers


def folder(path: Path, kind: str) -> Path:
    """A folder without anything, without weights, with damaged ones, or with those of another model."""
    path.mkdir()
    if kind == "weights":
        (path / "config.json").write_text(json.dumps({"_class_name": "VQModel"}))
    if kind == "damaged":
        vq_model(channels=1, side=16, rng=torch.Generator().manual_seed(0)).save_pretrained(path)
        (path / "diffusion_pytorch_model.safetensors").write_bytes(b"none")
    if kind == "another":
        diffusers().AutoencoderKL(block_out_channels=(32,), norm_num_groups=8).save_pretrained(path)
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("empty", "config.json"), ("weights", "safetensors"), ("damaged", "load weights"), ("another", "state_dict")],
)
def test_a_folder_without_a_vq_model_is_refused(tmp_path: Path, kind: str, reason: str) -> None:
    path = folder(tmp_path / "model", kind)
    with pytest.raises(ValueError, match="the folder model holds no VQ model") as caught:
        load_vq(path)
    said = str(caught.value)
    assert reason in said.partition("give one that")[0]
    assert "dpgm features train PUBLIC --kind vq" in said
    assert str(tmp_path) not in said
    with pytest.raises(ValueError, match="holds no VQ model"):
        make_code(f"vq:{path}")
