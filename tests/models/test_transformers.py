"""Models of transformers as decoders: the same logits, or one sentence why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.models.transformers import from_transformers

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 50, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT2_SIZES = {
    "vocab_size": 50, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def built(family: str, **changes: Any) -> Any:
    """A random model of a family; biases, norms and embeddings away from their initial 0 and 1."""
    sizes = GPT2_SIZES if family == "GPT2" else SIZES
    head = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
    model = getattr(transformers, head)(getattr(transformers, f"{family}Config")(**sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


CASES = [
    ("Llama", {}),
    (
        "Llama",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "tie_word_embeddings": True},
    ),
    ("Mistral", {"rms_norm_eps": 1e-3}),
    ("Qwen2", {"tie_word_embeddings": True}),
    ("GPT2", {}),
    ("GPT2", {"n_inner": 80}),
]


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_logits_are_those_of_the_model(family: str, changes: dict[str, Any]) -> None:
    model = built(family, **changes)
    decoder, tokens = from_transformers(model), torch.randint(50, (2, 9))
    with torch.no_grad():
        wanted = model(tokens).logits
    cache, parts = decoder.empty_cache(2, 16), []
    for start, part in ((0, tokens[:, :8]), (8, tokens[:, 8:])):
        logits, cache = decoder(part, torch.tensor(start), cache)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, 1), wanted, rtol=1e-4, atol=1e-4)
    assert decoder.shape.tied == model.config.tie_word_embeddings
    assert (decoder.head.weight is decoder.embedding.weight) == decoder.shape.tied


def test_the_global_random_state_is_left_alone() -> None:
    model = built("Llama")
    before = torch.get_rng_state()
    from_transformers(model)
    assert torch.equal(torch.get_rng_state(), before)


def test_positions_may_be_fewer() -> None:
    assert from_transformers(built("GPT2"), positions=8).position.weight.shape == (8, 64)
    assert from_transformers(built("Mistral", sliding_window=8), positions=8).cos.shape == (8, 8)


@pytest.mark.parametrize(
    ("family", "changes", "why"),
    [
        (
            "Llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "are scaled",
        ),
        ("Mistral", {"sliding_window": 8}, "a sliding window of 8 tokens; pass positions of at most 8"),
        ("Llama", {"hidden_act": "gelu"}, "its MLP has 'gelu', not 'silu'"),
        ("Llama", {"head_dim": 32}, "its heads do not fill its width"),
        ("Llama", {"attention_bias": True}, "the output of its attention has a bias"),
        ("Llama", {"mlp_bias": True}, "its MLP has biases"),
        ("GPT2", {"activation_function": "relu"}, "its MLP has 'relu', not the tanh form of GELU"),
        ("GPT2", {"scale_attn_by_inverse_layer_idx": True}, "its attention is scaled in another way"),
    ],
)
def test_what_a_decoder_has_not_is_refused(family: str, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        from_transformers(built(family, **changes))


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "GPT2"])
def test_a_model_without_its_head_is_refused(family: str) -> None:
    base = built(family).base_model
    with pytest.raises(ValueError, match=f"a {family}Model has no head that gives logits; load it with Auto"):
        from_transformers(base)


def test_a_name_is_no_model() -> None:
    with pytest.raises(ValueError, match="not 'meta-llama/x'; load it with transformers first"):
        from_transformers("meta-llama/x")  # type: ignore[arg-type]  # as a user might try


def test_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="type 'Linear' is not known here; known are llama, mistral"):
        from_transformers(torch.nn.Linear(2, 2))
