import torch

from qcompiler.models.data import PIXEL_RANGE, load_digits, structured_images, zipf_tokens


def test_images_follow_from_the_seed() -> None:
    first, again, other = (structured_images(2, seed, batch=3, size=64) for seed in (0, 0, 1))
    assert [images.shape for (images,) in first] == [(3, 3, 64, 64)] * 2
    assert all(torch.equal(a, b) for (a,), (b,) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])
    assert not torch.equal(first[0][0], first[1][0])


def test_images_are_in_range_and_smooth() -> None:
    ((images,),) = structured_images(1, 0, batch=4, size=224)
    assert images.min() >= PIXEL_RANGE[0]
    assert images.max() <= PIXEL_RANGE[1]
    # White noise would have a ratio of 2 between neighbour differences and variance.
    assert (images.diff(dim=-1).square().mean() / images.var()) < 0.1


def test_tokens_have_zipf_frequencies() -> None:
    sentences = zipf_tokens(100, 0, length=128, vocabulary=1000)
    ids = torch.cat([ids[mask.bool()] for ids, mask in sentences])
    counts = torch.bincount(ids, minlength=1000).float()
    assert len(counts) == 1000
    harmonic = (1 / torch.arange(1, 1001)).sum()
    for rank in (1, 2, 4, 8):
        expected = len(ids) / (rank * harmonic)
        assert abs(counts[rank - 1] - expected) < 5 * expected.sqrt()


def test_every_fourth_sentence_is_padded() -> None:
    sentences = zipf_tokens(8, 0, length=128, vocabulary=1000)
    assert [int(mask.sum()) for _, mask in sentences] == [128, 128, 128, 96] * 2
    assert all((ids[mask == 0] == 0).all() for ids, mask in sentences)


def test_digits_are_split_without_overlap_and_in_proportion() -> None:
    digits = load_digits()
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 1
    seen = {image.numpy().tobytes() for image in digits.train_images}
    assert not any(image.numpy().tobytes() in seen for image in digits.test_images)
    assert torch.bincount(digits.test_labels).tolist() == [36, 36, 35, 37, 36, 37, 36, 36, 35, 36]
    assert torch.equal(load_digits().test_labels, digits.test_labels)
