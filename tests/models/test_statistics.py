from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from qcompiler.models import Bundle
from qcompiler.models.data import structured_images
from qcompiler.models.statistics import seeded, settle_convolutional, settle_transformer, with_random_weights
from qcompiler.models.vit import VisionTransformer

SMALL_VIT = partial(VisionTransformer, image=64, width=64, depth=2, heads=4, hidden=128, classes=10)


def small_cnn() -> Bundle:
    def architecture() -> nn.Module:
        features = [nn.Conv2d(3, 16, 3, stride=8, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))

    return with_random_weights(architecture, settle_convolutional, structured_images)


def small_vit() -> Bundle:
    return with_random_weights(
        SMALL_VIT, partial(settle_transformer, std=0.03), partial(structured_images, size=64)
    )


@pytest.mark.parametrize("builder", [small_cnn, small_vit])
def test_two_builds_are_equal_whatever_the_global_seed(builder: Callable[[], Bundle]) -> None:
    torch.manual_seed(1)
    first = builder()
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again = builder()
    assert torch.equal(torch.get_rng_state(), state)
    weights, weights_again = first.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(weights[key], weights_again[key]) for key in weights)
    assert again.metric(first.module)["sqnr_db"] == torch.inf


def test_seeding_is_undone_after_an_error() -> None:
    def fail() -> None:
        with seeded(0):
            torch.randn(3)
            raise RuntimeError

    state = torch.get_rng_state()
    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(torch.get_rng_state(), state)


def test_batch_norm_has_the_statistics_of_its_input() -> None:
    conv, norm = nn.Conv2d(3, 32, 3, bias=False), nn.BatchNorm2d(32)
    with seeded(0), torch.no_grad():
        settle_convolutional(nn.Sequential(conv, norm))
        ((images,),) = structured_images(1, 17, batch=32)
        normed = norm.eval()(conv(images))
    deviations = normed.std(dim=(0, 2, 3)) / norm.weight
    assert deviations.min() > 0.7
    assert deviations.max() < 1.4
    assert norm.weight.std() > 0.15


def test_layer_norm_has_four_channels_that_stand_out() -> None:
    norm = nn.LayerNorm(768)
    with seeded(0), torch.no_grad():
        settle_transformer(norm, std=0.03)
    gains = norm.weight.detach().sort(descending=True).values
    assert gains[:4].mean() > 3
    assert gains[4:].log().mean() == pytest.approx(0, abs=0.03)
    assert gains[4:].log().std() == pytest.approx(0.2, abs=0.03)
