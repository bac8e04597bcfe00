"""The refiner: it puts back what low frequencies leave out of pictures that it has not seen, record by record."""

import numpy as np
import pytest
import torch

from dpgm.nets.classifiers import to_unit
from dpgm.nets.coordinates import Coordinates
from dpgm.nets.procedural import procedural_images
from dpgm.nets.refiner import Refiner, refiner_from, train_refiner

PLACE = Coordinates(height=16, width=16, channels=1, block=4)


@pytest.fixture(scope="module")
def refiner() -> Refiner:
    return train_refiner(PLACE, steps=60, seed=0)


def test_unseen_pictures_come_out_sharper(refiner: Refiner) -> None:
    sharp = to_unit(procedural_images(60, height=16, width=16, channels=1, rng=np.random.default_rng(5)))
    blurred = PLACE.synthesise(PLACE.analyse(sharp))
    assert (refiner.refined(blurred) - sharp).abs().mean() < 0.95 * (blurred - sharp).abs().mean()


def test_it_begins_at_nothing_and_treats_each_picture_alone(refiner: Refiner) -> None:
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Refiner(3, rng=torch.Generator().manual_seed(0))(x), x)
    grey = x[:, :1]
    torch.testing.assert_close(refiner.refined(grey, batch=2), refiner(grey))


def test_it_is_seeded_and_comes_back_from_its_weights(refiner: Refiner) -> None:
    again = train_refiner(PLACE, steps=60, seed=0)
    back = refiner_from({name: t.numpy() for name, t in refiner.state_dict().items()}, 1)
    x = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again(x), refiner(x))
    assert torch.equal(back(x), refiner(x))
