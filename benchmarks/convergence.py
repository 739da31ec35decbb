"""Whether training in few bits ends where float does: three small models on real data, three seeds each.

    python -m benchmarks.convergence [--seeds 3] [--learners ...] [--out benchmarks/results/convergence.json]

Each recipe runs the same loop from the same weights on the same batches. The gate is one-sided: the mean over
the seeds may be worse than float's by 0.03 nats, or by one percent of the digits. A gate bites where
everything in 2 bits, inputs instead of derivatives, does not pass it: on the characters it does not, on the
digits it does, and the page says so. Recipes of 4 bits are left out where no layer of the model can take
them. Writes JSON with the curves, Markdown and SVG.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from rich.progress import Progress
from torch import nn

from benchmarks.learners import LEARNERS, Run
from benchmarks.records import commit, machine, table, versions
from qcompiler.passes.training.noise import carry_keys
from qcompiler.training import compile_training, training_report
from qcompiler.training.memory import Memory

FLOAT = "float"
NAIVE = "2 bits, naive"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A recipe and a memory; `naive` stores what torch would keep, in 2 bits whoever reads it."""

    recipe: str = "float"
    memory: str = "keep"
    naive: bool = False


SETTINGS: Mapping[str, Setting] = {
    FLOAT: Setting(),
    "act8": Setting(memory="act8"),
    "act4": Setting(memory="act4"),
    "act2": Setting(memory="act2"),
    "int8, act4": Setting(recipe="int8", memory="act4"),
    "fp8-hybrid": Setting(recipe="fp8-hybrid"),
    "fp8-delayed": Setting(recipe="fp8-delayed"),
    "int4-hq": Setting(recipe="int4-hq"),
    "int4-hq-all": Setting(recipe="int4-hq-all"),
    "int4-lsq-luq": Setting(recipe="int4-lsq-luq"),
    NAIVE: Setting(memory="act2", naive=True),
}


class Naive(Memory):
    """Everything that is a float in 2 bits."""

    def choose(self, values: Any) -> dict[str, int]:
        return {
            value.name: 2 if value.dtype.is_floating_point else value.bits[0]
            for value in values
            if value.bits
        }


def settings_of(learner: str, names: Iterable[str]) -> list[str]:
    """Those that differ from float on a learner."""
    return [name for name in names if LEARNERS[learner].hidden or "int4" not in SETTINGS[name].recipe]


def trained(learner: str, setting: Setting, seed: int) -> Run:
    """Train one. Of a recipe that is not float's, some product has to have been in few bits."""
    models: list[nn.Module] = []

    def prepare(model: nn.Module) -> nn.Module:
        models.append(model)
        if setting == Setting():
            return model
        memory = Naive(bits=2) if setting.naive else setting.memory
        return compile_training(
            model, recipe=setting.recipe, memory=memory, verify=False, guard=False, seed=seed
        )

    torch._dynamo.reset()
    chosen = LEARNERS[learner]
    with patch("qcompiler.training.session.prepare", carry_keys) if setting.naive else nullcontext():
        run = chosen.train(prepare, seed, chosen.steps)
    if setting.recipe != FLOAT:
        pieces = training_report(models[-1]).pieces
        assert any(row.formats != FLOAT for piece in pieces for row in piece.products), (learner, setting)
    return run


def page(result: dict[str, Any]) -> str:
    parts = []
    for name, runs in result["learners"].items():
        learner = LEARNERS[name]
        exact = [run["figure"] for run in runs[FLOAT]]
        rows = []
        for setting, found in runs.items():
            figures = [run["figure"] for run in found]
            gaps = [figure - float_ for figure, float_ in zip(figures, exact, strict=True)]
            gap = sum(gaps) / len(gaps)
            verdict = "" if setting == FLOAT else "passes" if gap <= learner.gap else "fails"
            listed = " ".join(f"{figure:.3f}" for figure in figures)
            rows.append((setting, listed, f"{gap:+.3f}", verdict))
        parts.append(f"## {name}, {learner.unit}, {learner.steps} steps\n")
        parts.append(table(("setting", "seeds", "mean gap", f"gate {learner.gap:g}"), rows))
        verdicts = {row[0]: row[3] for row in rows}
        if verdicts.get(NAIVE) == "passes":
            parts.append("Everything in 2 bits passes as well: here the gate tells nothing of fewer bits.\n")
    return "\n".join(parts)


def draw(result: dict[str, Any], path: Path) -> None:
    """The losses of the first seed, smoothed over ten steps."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "qcompiler", "svg.fonttype": "none", "font.size": 8}):
        picture = Figure(figsize=(5 * len(result["learners"]), 3.6), layout="constrained")
        panels = picture.subplots(1, len(result["learners"]), squeeze=False).flat
        for axes, (name, runs) in zip(panels, result["learners"].items(), strict=True):
            for setting, found in runs.items():
                losses = torch.tensor(found[0]["losses"]).unfold(0, 10, 10).mean(-1)
                color = f"C{[*SETTINGS].index(setting) - 1}"  # the legend is of all panels
                style = {"color": "black", "linewidth": 2} if setting == FLOAT else {"color": color}
                steps = range(10, 10 * len(losses) + 10, 10)
                axes.plot(steps, losses, label=setting, **{"linewidth": 1, **style})
            axes.set_title(name)
            axes.set_xlabel("step")
            axes.set_yscale("log")
        picture.axes[0].set_ylabel("loss")
        picture.axes[0].legend(fontsize=7)
        picture.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learners", nargs="+", choices=[*LEARNERS], default=[*LEARNERS])
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS], default=[*SETTINGS])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/convergence.json"))
    given = parser.parse_args()
    at = commit()
    torch.set_num_threads(1)
    settings = dict.fromkeys((FLOAT, *given.settings))
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    runs = sum(len(settings_of(learner, settings)) for learner in given.learners)
    with Progress() as progress:
        task = progress.add_task("training", total=runs * given.seeds)
        for learner in given.learners:
            for setting in settings_of(learner, settings):
                for seed in range(given.seeds):
                    progress.update(task, description=f"{learner}, {setting}, seed {seed}")
                    run = trained(learner, SETTINGS[setting], seed)
                    kept = found.setdefault(learner, {}).setdefault(setting, [])
                    kept.append({"losses": [round(loss, 4) for loss in run.losses], "figure": run.figure})
                    progress.advance(task)
            write(given.out, record(at, found))
    print(page(record(at, found)))


def record(at: str, found: Mapping[str, Any]) -> dict[str, Any]:
    return {"commit": at, **machine(), "versions": versions(("torch",)), "learners": found}


def write(out: Path, result: dict[str, Any]) -> None:
    """JSON, Markdown and SVG, after each learner: a run that is stopped keeps those that are done."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, sort_keys=True) + "\n")
    out.with_suffix(".md").write_text(page(result))
    draw(result, out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
