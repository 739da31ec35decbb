from typing import Literal

import pytest
import torch

from qcompiler.models.decoder import Decoder, Growing, Shape
from qcompiler.models.statistics import seeded, settle_transformer


def small(family: Literal["llama", "gpt2"], vocabulary: int = 50) -> Decoder:
    shape = Shape(
        vocabulary=vocabulary, width=64, hidden=128, depth=2, heads=4, kv_heads=2 if family == "llama" else 4,
        positions=32, family=family, tied=family == "gpt2",
    )  # fmt: skip
    with seeded(0), torch.no_grad():
        module = Decoder(shape)
        settle_transformer(module, std=0.1)
    return module.eval().requires_grad_(False)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_prompt_in_parts_or_whole_with_either_cache_is_the_same(family: Literal["llama", "gpt2"]) -> None:
    module, tokens = small(family), torch.randint(0, 50, (2, 12))
    whole, _ = Growing(module)(tokens)
    start, cache, parts = 0, module.empty_cache(2, 16), []
    for part in torch.split(tokens, [5, 4, 1, 1, 1], 1):
        logits, cache = module(part, torch.tensor(start), cache)
        start += part.shape[1]
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-4, atol=1e-5)
    _, past = Growing(module)(tokens[:, :11])
    step, _ = Growing(module)(tokens[:, 11:], past)
    torch.testing.assert_close(step, whole[:, 11:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_token_sees_what_came_before_it_and_nothing_after(family: Literal["llama", "gpt2"]) -> None:
    module, tokens = small(family), torch.randint(0, 50, (1, 8))
    changed = tokens.clone()
    changed[0, 4] = (tokens[0, 4] + 1) % 50
    one, other = (Growing(module)(x)[0] for x in (tokens, changed))
    torch.testing.assert_close(one[:, :4], other[:, :4])
    assert (one[:, 5:] - other[:, 5:]).abs().amax((0, 2)).min() > 1e-3
