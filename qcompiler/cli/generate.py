"""`qcompiler generate`: compile a decoder, or open a saved one, and stream the tokens behind a prompt."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompiler.cli import options
from qcompiler.cli.screen import complain, say
from qcompiler.errors import CalibrationError, InputError

if TYPE_CHECKING:
    from qcompiler.language import LanguageModel
    from qcompiler.recipe import Recipe

PROMPT_LENGTH = 8  # of the prompt that is drawn where none is given


def run(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder that was saved, a built-in decoder, or `file.py:factory` whose module is one.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str,
        typer.Option("--prompt", "-p", help="Token ids, separated by spaces; random ones if empty."),
    ] = "",
    length: Annotated[
        int | None,
        typer.Option(
            "--length", "-n", min=0, help="New tokens; as many as fit if absent.", show_default=False
        ),
    ] = None,
    temperature: Annotated[float, typer.Option(help="0 for the likeliest token.")] = 0.0,
    top_k: Annotated[
        int | None, typer.Option(help="Draw among so many likeliest tokens.", show_default=False)
    ] = None,
    stop: Annotated[
        list[int] | None,
        typer.Option(help="A token that ends the text; may be repeated.", show_default=False),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", "-r", help="As for compile.  [default: w4a16]", show_default=False),
    ] = None,
    override: options.Overrides = None,
    capacity: Annotated[
        int | None,
        typer.Option(
            min=3, help="Tokens that the cache holds, for a model that is compiled.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="DIR", help="Save the compiled decoder.", show_default=False),
    ] = None,
    threads: options.Threads = None,
    seed: options.Seed = 0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print nothing but tokens and errors.")
    ] = False,
) -> None:
    """Stream the tokens that a decoder puts behind a prompt.

    One id per line is printed as soon as it is known. Ids are not text: what they stand for is the
    tokenizer's business.
    """
    from qcompiler.artifact import check_replaceable
    from qcompiler.cli.recipes import chosen_recipe
    from qcompiler.language import load_decoder
    from qcompiler.steps import Steps

    if output is not None:
        check_replaceable(output)
    if Path(model).is_dir():
        refuse_for_compiled(model, {"--recipe": recipe, "--override": override, "--capacity": capacity})
        ready = load_decoder(model, threads=threads)
    else:
        wanted = chosen_recipe(recipe or "w4a16", override)
        ready = compiled(model, wanted, capacity, threads, seed, visible=not quiet)
        if not quiet:
            tell_verdict(ready)
    if output is not None:
        ready.save(output)
    tokens = numbers(prompt) if prompt.strip() else drawn(ready, seed)
    stream = ready.generate(tokens, length, temperature=temperature, top_k=top_k, seed=seed, stop=stop or ())
    given: list[float] = []
    with Steps(visible=not quiet and not sys.stdout.isatty()) as steps:  # there the tokens are the progress
        began = time.perf_counter()
        for token in stream:
            given.append(time.perf_counter() - began)
            say(str(token))
            steps.tell("generating", len(given), length)
    if not quiet and given:
        sys.stderr.write(summary(len(tokens), given) + "\n")


def refuse_for_compiled(model: str, given: Mapping[str, object]) -> None:
    """Raise InputError for options that say how to compile."""
    idle = [name for name, value in given.items() if value]
    if idle:
        verb = "is" if len(idle) == 1 else "are"
        raise InputError(
            f"'{model}' is compiled already, and {' and '.join(idle)} {verb} for a model that is not",
            fix="leave them out, or name the model that it was compiled from",
        )


def tell_verdict(model: "LanguageModel") -> None:
    """The report's headline, and what to look at, on stderr."""
    from qcompiler.report.summary import summarize

    found = summarize(model.compiled.data)
    sys.stderr.write(f"{found.headline}\n")
    for concern in found.concerns:
        complain(concern, kind="look at")


def compiled(
    model: str, recipe: "Recipe", capacity: int | None, threads: int | None, seed: int, *, visible: bool
) -> "LanguageModel":
    """The decoder that MODEL names, compiled now."""
    from torch import nn

    from qcompiler.cli.source import find_source
    from qcompiler.language import compile_decoder

    if recipe.linear_mode == "static":
        raise CalibrationError(
            f"recipe '{recipe.name}' takes ranges from data, and there is none here",
            fix="use -r int8-dynamic, or compile with prompts in Python, save, and name the folder",
        )
    decoder = find_source(model).model
    if not isinstance(decoder, nn.Module) or not hasattr(decoder, "empty_cache"):
        raise InputError(
            f"'{model}' is no decoder", why="it has no method empty_cache(batch, capacity)",
            fix="name a decoder; docs/language-models.md says what one is",
        )  # fmt: skip
    return compile_decoder(
        decoder, capacity=capacity, recipe=recipe, threads=threads, seed=seed, progress=visible
    )


def numbers(prompt: str) -> list[int]:
    try:
        return [int(word) for word in prompt.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(
            f"the prompt '{prompt}' is not a list of token ids", why=str(error), fix="write -p '12 7 99'"
        ) from error


def drawn(model: "LanguageModel", seed: int) -> list[int]:
    """A random prompt that leaves room for new tokens."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    count = min(PROMPT_LENGTH, model.capacity // 2)
    found: list[int] = torch.randint(model.vocabulary, (count,), generator=generator).tolist()
    return found


def summary(prompt: int, given: list[float]) -> str:
    """Times of the prompt, which ends with the first new token, and of the steps behind it."""
    first, steps = given[0], len(given) - 1
    rate = f"; {steps} more at {steps / (given[-1] - first):.1f} tokens/s" if steps else ""
    return f"prompt of {prompt} tokens: first new one after {first * 1e3:.0f} ms{rate}"
