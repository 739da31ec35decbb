"""Decoders from transformers: LLaMA, Mistral, Qwen2 and GPT-2 models as `Decoder`, weights and all.

    from_transformers(AutoModelForCausalLM.from_pretrained(path))  -->  Decoder with the same logits

Only the model's config and state are read, so this module does not need transformers itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from qcompiler.models.decoder import Decoder, Shape
from qcompiler.models.statistics import seeded

# Our name -> theirs. Both linears of a gated MLP and its third are named alike in all three families.
ROTARY = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
ROTARY_LAYER = {
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
GPT2 = {
    "embedding": "transformer.wte",
    "position": "transformer.wpe",
    "norm": "transformer.ln_f",
    "head": "lm_head",
}
GPT2_LAYER = {"norm1": "ln_1", "norm2": "ln_2"}
# GPT-2 keeps its linears as [inputs, outputs], and queries, keys and values in one.
GPT2_TURNED = {
    "attention.query": ("attn.c_attn", 0, 3),
    "attention.key": ("attn.c_attn", 1, 3),
    "attention.value": ("attn.c_attn", 2, 3),
    "attention.output": ("attn.c_proj", 0, 1),
    "mlp.0": ("mlp.c_fc", 0, 1),
    "mlp.2": ("mlp.c_proj", 0, 1),
}


def from_transformers(model: nn.Module, *, positions: int | None = None) -> Decoder:
    """The decoder that computes what a causal language model of transformers does, in float32.

    positions: how long a sequence may be at most; as long as the model allows if absent.
    Raises ValueError, in one sentence, for a model with parts that `Decoder` does not have.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(
            f"A model is wanted, not {model!r}; load it with transformers first, "
            "as AutoModelForCausalLM.from_pretrained(...) does."
        )
    config = getattr(model, "config", None)
    kind = getattr(config, "model_type", type(model).__name__)
    if kind not in READERS:
        raise ValueError(f"A model of type {kind!r} is not known here; known are {', '.join(READERS)}.")
    given = model.state_dict()
    refuse(
        "lm_head.weight" not in given,
        f"a {type(model).__name__} has no head that gives logits; load it with AutoModelForCausalLM",
    )
    shape, state = READERS[kind](config, given, positions)
    with seeded(0):  # the weights that it starts with are overwritten
        decoder = Decoder(shape)
    decoder.load_state_dict({name: tensor.detach().float() for name, tensor in state.items()})
    return decoder.eval().requires_grad_(False)


def rotary(
    config: Any, state: Mapping[str, Tensor], positions: int | None
) -> tuple[Shape, dict[str, Tensor]]:
    rope = dict(getattr(config, "rope_parameters", None) or {})
    kind = rope.get("rope_type", "default")
    longest = min(positions or config.max_position_embeddings, config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    width = config.hidden_size // config.num_attention_heads
    refuse(kind != "default", f"its rotary positions are scaled ({kind!r})")
    refuse(
        window is not None and window < longest,
        f"it sees a sliding window of {window} tokens; pass positions of at most {window}",
    )
    refuse(config.hidden_act != "silu", f"its MLP has {config.hidden_act!r}, not 'silu'")
    refuse((getattr(config, "head_dim", None) or width) != width, "its heads do not fill its width")
    refuse("model.layers.0.self_attn.o_proj.bias" in state, "the output of its attention has a bias")
    refuse("model.layers.0.mlp.down_proj.bias" in state, "its MLP has biases")
    shape = Shape(
        vocabulary=config.vocab_size, width=config.hidden_size, hidden=config.intermediate_size,
        depth=config.num_hidden_layers, heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads, positions=longest, base=rope.get("rope_theta", 10000.0),
        epsilon=config.rms_norm_eps, qkv_bias="model.layers.0.self_attn.q_proj.bias" in state,
        tied=config.tie_word_embeddings,
    )  # fmt: skip
    names = ROTARY | {
        f"layers.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(shape.depth)
        for ours, theirs in ROTARY_LAYER.items()
    }
    return shape, renamed(state, names)


def gpt2(config: Any, state: Mapping[str, Tensor], positions: int | None) -> tuple[Shape, dict[str, Tensor]]:
    refuse(config.activation_function not in ("gelu_new", "gelu_pytorch_tanh"),
           f"its MLP has {config.activation_function!r}, not the tanh form of GELU")  # fmt: skip
    refuse(not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx,
           "its attention is scaled in another way")  # fmt: skip
    longest = min(positions or config.n_positions, config.n_positions)
    shape = Shape(
        vocabulary=config.vocab_size, width=config.n_embd, hidden=config.n_inner or 4 * config.n_embd,
        depth=config.n_layer, heads=config.n_head, kv_heads=config.n_head, positions=longest,
        family="gpt2", epsilon=config.layer_norm_epsilon, tied=config.tie_word_embeddings,
    )  # fmt: skip
    names, found = dict(GPT2), dict[str, Tensor]()
    for layer in range(shape.depth):
        names |= {
            f"layers.{layer}.{ours}": f"transformer.h.{layer}.{theirs}" for ours, theirs in GPT2_LAYER.items()
        }
        for ours, (theirs, part, parts) in GPT2_TURNED.items():
            weight, bias = (state[f"transformer.h.{layer}.{theirs}.{kind}"] for kind in ("weight", "bias"))
            found[f"layers.{layer}.{ours}.weight"] = weight.chunk(parts, 1)[part].t()
            found[f"layers.{layer}.{ours}.bias"] = bias.chunk(parts)[part]
    found |= renamed(state, names)
    found["position.weight"] = found["position.weight"][:longest]
    return shape, found


READERS = {"llama": rotary, "mistral": rotary, "qwen2": rotary, "gpt2": gpt2}


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Weights and biases by our names."""
    return {
        f"{ours}.{kind}": state[f"{theirs}.{kind}"]
        for ours, theirs in names.items()
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in state
    }


def refuse(found: bool, why: str) -> None:
    if found:
        raise ValueError(f"This model cannot become a Decoder, because {why}.")


__all__ = ["from_transformers"]
