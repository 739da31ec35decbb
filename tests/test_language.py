"""Decoders as a user compiles them: what is generated, what is saved, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import qcompiler as qc
from qcompiler import api
from qcompiler.backends.ort.memory import BoundMemory
from qcompiler.errors import ArtifactError, InputError, QCompilerError
from qcompiler.ir import format_text, spec
from qcompiler.models.decoder import Shape
from qcompiler.models.decoding import random_decoder
from tests.models.test_decoder import small

CAPACITY = 24


def made(
    recipe: str = "w4a16", family: Literal["llama", "gpt2"] = "llama", **options: Any
) -> qc.LanguageModel:
    """Without the speed guard: which of two models this small is faster changes from run to run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(api, "raced", lambda *_, **__: None)
        return qc.compile_decoder(
            small(family), recipe=recipe, threads=1, progress=False, **{"capacity": CAPACITY, **options}
        )


@pytest.fixture(scope="module")
def model() -> qc.LanguageModel:
    return made()


@pytest.mark.parametrize(
    ("family", "recipe"),
    [
        ("llama", "w4a16"),
        ("gpt2", "int8-dynamic"),
        pytest.param("llama", "int8-dynamic", marks=pytest.mark.thorough),
        pytest.param("gpt2", "w4a16", marks=pytest.mark.thorough),
    ],
)
def test_greedy_tokens_are_those_of_the_reference(family: Literal["llama", "gpt2"], recipe: str) -> None:
    engine, reference = made(recipe, family), made(recipe, family, backend="reference")
    for prompt in ([3, 1, 4], [15]):
        assert list(engine.generate(prompt, 20)) == list(reference.generate(prompt, 20))


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.thorough)])
def test_a_decoder_in_halves_has_weights_of_few_bits_on_a_gpu(dtype: torch.dtype) -> None:
    """Its cache has its type, too."""
    shape = Shape(vocabulary=64, width=64, hidden=128, depth=1, heads=2, kv_heads=2, positions=CAPACITY)
    decoder = random_decoder(shape, std=0.1).to(dtype)
    model = qc.compile_decoder(
        decoder, capacity=CAPACITY, target="cuda", recipe="w4a16", threads=1, progress=False
    )
    assert {found.dtype for node in model.compiled.graph.inputs[2:] if (found := spec(node))} == {dtype}
    ran = model.compiled.executable.execution(model.compiled.plan).layers
    kernels = Counter(layer.kernel for layer in ran if layer.kernel.startswith("weight_only"))
    assert kernels == {"weight_only_linear": 6, "weight_only_linear gated": 1}
    assert len([*model.generate([3, 1, 4], 3)]) == 3


def test_the_prompt_in_float_gives_what_the_decoder_gives() -> None:
    """With every layer in float, generation is the decoder's own, token by token."""
    decoder = small("llama")
    float_recipe = qc.Recipe(name="float", weights=None, activations=None)
    model = qc.compile_decoder(decoder, capacity=CAPACITY, recipe=float_recipe, threads=1, progress=False)
    tokens = [3, 1, 4]
    for token in model.generate(tokens, 12):
        logits, _ = decoder(torch.tensor([tokens]), torch.tensor(0), decoder.empty_cache(1, CAPACITY))
        assert token == int(logits[0, -1].argmax())
        tokens.append(token)


def test_one_graph_serves_prompts_and_steps_in_place(model: qc.LanguageModel) -> None:
    text = format_text(model.compiled.graph)
    assert text.count("qcompiler.cached_attention") == 2
    assert isinstance(model.memory(), BoundMemory)
    assert (model.capacity, model.vocabulary) == (CAPACITY, 50)
    # Behind the last attention only the last token is computed: it is selected there, and beside it.
    assert text.count("aten.select.int(") == 2 and "aten.select.int(getitem" in text


def test_what_it_is_stands_in_one_line(model: qc.LanguageModel) -> None:
    assert repr(model).startswith("<LanguageModel: w4a16 on ONNX Runtime: ") and len(repr(model)) < 200


def test_generations_do_not_disturb_one_another(model: qc.LanguageModel) -> None:
    alone = list(model.generate([7, 8], 8))
    first, second = model.generate([7, 8], 8), model.generate([30], 8)
    assert [token for pair in zip(first, second, strict=True) for token in pair][::2] == alone


def test_it_streams_and_stops(model: qc.LanguageModel) -> None:
    tokens = list(model.generate([7, 8], 8))
    stream = model.generate([7, 8])
    assert next(stream) == tokens[0]
    cut = list(model.generate([7, 8], 8, stop=[tokens[2]]))
    assert cut == tokens[: tokens.index(tokens[2]) + 1]
    assert list(model.generate([7, 8], 0)) == []


def test_it_fills_the_cache_to_the_end(model: qc.LanguageModel) -> None:
    assert len(list(model.generate([1] * (CAPACITY - 3)))) == 4
    assert len(list(model.generate([1] * CAPACITY))) == 1


def test_draws_repeat_with_their_seed_and_obey_top_k(model: qc.LanguageModel) -> None:
    hot = [list(model.generate([5], 12, temperature=5.0, seed=seed)) for seed in (0, 0, 1)]
    assert hot[0] == hot[1] != hot[2]
    assert list(model.generate([5], 12, temperature=5.0, top_k=1)) == list(model.generate([5], 12))


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        (([1] * 25,), {}, "a prompt of 25 tokens does not fit, because the cache holds 24; shorten it"),
        (
            ([1] * 20, 6),
            {},
            "a prompt of 20 tokens with 6 new ones behind it does not fit, because the cache holds 24",
        ),
        (([],), {}, "the prompt has shape"),
        (([50],), {}, "the model has no token 50, because its vocabulary goes from 0 to 49"),
        (([-1],), {}, "the model has no token -1"),
        (([1], -1), {}, "-1 is no number of new tokens; ask for 0 or more"),
        (([1], 1.5), {}, "1.5 is no number of new tokens"),
        (("12 7",), {}, "the prompt is a str that is no list of numbers, because tokens are ids"),
        (([[1, 2], [3]],), {}, "the prompt is a list that is no list of numbers"),
        (([1],), {"temperature": -1.0}, "describe no distribution"),
        (([1],), {"top_k": 0}, "describe no distribution"),
        (([1],), {"temperature": float("nan")}, "describe no distribution"),
        (([1.5, 2.0],), {}, "tokens are ids"),
    ],
)
def test_what_cannot_be_generated_is_refused_at_once(
    model: qc.LanguageModel, arguments: Any, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        model.generate(*arguments, **options)


def test_a_saved_model_generates_the_same(model: qc.LanguageModel, tmp_path: Path) -> None:
    model.save(tmp_path / "model.qc")
    loaded = qc.load_decoder(tmp_path / "model.qc", threads=1)
    assert list(loaded.generate([9, 9, 9])) == list(model.generate([9, 9, 9]))
    assert loaded.capacity == CAPACITY
    assert loaded.report().to_dict()["manifest"]["session"]["accuracy_level"] == 4


def test_a_full_cache_takes_no_more(model: qc.LanguageModel) -> None:
    memory = model.memory()
    memory.feed(torch.ones(1, CAPACITY, dtype=torch.int64))
    with pytest.raises(InputError, match=f"1 tokens behind {CAPACITY} do not fit"):
        memory.feed(torch.ones(1, 1, dtype=torch.int64))


def test_a_part_of_a_prompt_in_a_batch_is_refused_in_one_sentence(model: qc.LanguageModel) -> None:
    """The kernel takes it for one sequence only."""
    cache = small("llama").empty_cache(2, CAPACITY)
    with pytest.raises(
        InputError, match=r"ONNX Runtime cannot run this call, because .*batch_size must be 1"
    ):
        model.compiled(torch.ones(2, 4, dtype=torch.int64), torch.tensor(5), cache)


def test_draws_are_among_so_many_tokens_even_if_some_are_alike() -> None:
    from qcompiler.generation import Choice

    logits = torch.tensor([1.0, 1.0, 1.0, 0.5])
    drawn = {Choice(temperature=t, top_k=2, generator=torch.Generator().manual_seed(seed)).of(logits)
             for seed in range(40) for t in (1e-45, 1.0)}  # fmt: skip
    assert len(drawn) == 2


def test_another_model_is_no_decoder(tmp_path: Path) -> None:
    linear = torch.nn.Linear(4, 4).eval()
    qc.compile(linear, torch.randn(2, 4), threads=1, progress=False).save(tmp_path / "linear.qc")
    with pytest.raises(ArtifactError, match="holds no decoder"):
        qc.load_decoder(tmp_path / "linear.qc")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"recipe": "int8"}, "recipe 'int8' takes ranges from data, and there are no prompts"),
        ({"calibration": []}, "the prompts hold nothing"),
        (
            {"capacity": 33},
            "A cache holds 1 to 32 tokens, not 33; choose a smaller capacity",
        ),
        ({"calibration": [torch.ones(1, 2, dtype=torch.int64)]}, r"a tensor of shape \[1, 2\]"),
        ({"calibration": [["a", "b", "c"]]}, "the prompts hold a list"),
        ({"calibration": [torch.full((1, 4), 99)]}, "no token 99, because its vocabulary goes from 0 to 49"),
        ({"capacity": 2}, "the capacity is 2"),
        ({"capacity": 0}, "the capacity is 0"),
        ({"capacity": 64.5}, "the capacity is 64.5, because it is a number of tokens; pass an integer"),
        ({"calibration": [torch.ones(1, 25, dtype=torch.int64)]}, "the cache holds 24"),
    ],
)
def test_what_cannot_be_compiled_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(QCompilerError, match=sentence):
        made(**{"recipe": "w4a16", **options})


def test_a_model_without_a_cache_is_refused() -> None:
    with pytest.raises(InputError, match="a Linear is no decoder, because it has no method empty_cache"):
        qc.compile_decoder(torch.nn.Linear(2, 2), progress=False)


def test_static_integers_are_calibrated_on_prompts_and_steps() -> None:
    given: list[Tensor | list[int]] = [torch.randint(50, (1, 16)), [3, 1, 4, 1, 5], [9, 2, 6]]
    static = made("int8", calibration=given)
    assert len(list(static.generate([1, 2, 3], 6))) == 6
