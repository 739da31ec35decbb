from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from qcompiler.models import Bundle, build
from qcompiler.models.data import load_digits
from qcompiler.models.lenet import CHECKPOINT, LeNet, load, shifted, train


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return build("lenet")


def test_the_checkpoint_is_small_and_accurate(bundle: Bundle) -> None:
    assert CHECKPOINT.stat().st_size < 400_000
    figures = bundle.metric(bundle.module)
    assert figures["samples"] == 360
    assert figures["accuracy"] >= 0.975


def test_accuracy_needs_the_weights() -> None:
    assert build("lenet").metric(LeNet().eval())["accuracy"] < 0.5


def test_the_test_batches_end_with_a_smaller_one(bundle: Bundle) -> None:
    assert [len(images) for (images,) in bundle.metric.inputs()] == [64] * 5 + [40]


def test_calibration_comes_from_the_training_digits(bundle: Bundle) -> None:
    train_images = load_digits().train_images
    assert [images.shape for (images,) in bundle.calibration] == [(32, 1, 8, 8)] * 24
    assert torch.equal(torch.cat([images for (images,) in bundle.calibration]), train_images[: 24 * 32])


def test_there_is_something_to_fold_and_to_remove(bundle: Bundle) -> None:
    kinds = {type(part) for part in bundle.module.modules()}
    assert {nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d, nn.Dropout, nn.Linear} <= kinds
    for part in bundle.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_mean.abs().max() > 0.1


def test_training_follows_from_the_seed_and_reports_progress() -> None:
    epochs: list[int] = []

    def progress(sequence: Iterable[int]) -> Iterator[int]:
        for epoch in sequence:
            epochs.append(epoch)
            yield epoch

    torch.manual_seed(1)
    first = train(seed=3, epochs=2, progress=progress).state_dict()
    assert epochs == [0, 1]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, other = train(seed=3, epochs=2).state_dict(), train(seed=4, epochs=2).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["features.0.weight"], other["features.0.weight"])


def test_shifting_moves_each_image_by_at_most_a_pixel() -> None:
    dot = torch.zeros(200, 1, 8, 8)
    dot[:, :, 4, 4] = 1
    moved = shifted(dot)
    assert moved.shape == dot.shape
    assert set(map(tuple, moved.nonzero()[:, 2:].tolist())) == {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}


def test_a_missing_checkpoint_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m qcompiler\.models\.lenet"):
        load(tmp_path / "none.safetensors")
