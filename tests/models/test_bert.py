import torch

from qcompiler.models.bert import Bert
from qcompiler.models.data import zipf_tokens
from qcompiler.models.statistics import seeded, settle_transformer


def test_used_tokens_do_not_see_the_padding() -> None:
    with seeded(0), torch.no_grad():
        module = Bert(vocabulary=100, positions=32, width=64, depth=2, heads=4, hidden=128)
        settle_transformer(module, std=0.1)
    ids, mask = zipf_tokens(4, 0, length=16, vocabulary=100)[3]
    used = mask[0].bool()
    assert used.tolist() == [True] * 12 + [False] * 4
    outputs, others = (module(x, mask) for x in (ids, torch.where(mask.bool(), ids, 7)))
    torch.testing.assert_close(others[:, used], outputs[:, used])
    assert (others[:, ~used] - outputs[:, ~used]).abs().max() > 0.1
    unmasked = module(ids, torch.ones_like(mask))
    assert (unmasked[:, used] - outputs[:, used]).abs().max() > 0.1
