"""The report: what it says, that the page stands alone, and that nothing which is missing breaks it."""

from __future__ import annotations

import io
import json
import math
import random
import re
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import rich.console

from qcompiler.errors import ArtifactError
from qcompiler.report import Report, plots, words
from qcompiler.report.summary import summarize

KEYS = ("coverage", "accuracy", "layers", "speed", "refused", "tensors", "manifest")
HOSTILE = "<script>alert('$x$')</script>\"'&\x1b[31m[red]{{ 7 * 7 }}"


def layer(i: int, op: str, noise: random.Random) -> dict[str, Any]:
    macs = int(noise.uniform(2e6, 4e7))
    plain = macs / noise.uniform(5e4, 9e4)
    return {
        "node": f"{op}_{i}",
        "label": f"layer{i // 5 + 1}.{i % 5}.{op}" if op != "linear" else "fc",
        "op": op,
        "planned": "int8",
        "executed": "int8",
        "kernel": {"conv2d": "QLinearConv", "linear": "QGemm"}.get(op, "QLinearAdd"),
        "why": "the target computes it in integers, and its inputs are quantized",
        "source": f"resnet.py:{40 + i}, in forward: out = self.{op}{i % 5}(out)",
        "sqnr_db": 42 - 12 * math.sqrt(i / 30) + noise.gauss(0, 1.2),
        "time_us": plain / noise.uniform(1.8, 3.9),
        "float_time_us": plain,
        "roofline_us": plain / 5,
        "macs": macs,
        "given_up": False,
    }


def tensor(i: int, noise: random.Random) -> dict[str, Any]:
    spread = noise.uniform(0.5, 3)
    counts = [int(4e4 * math.exp(-(((bin - 40) / (12 * spread)) ** 2) / 2)) for bin in range(256)]
    counts[250] = 3
    hi = noise.uniform(3, 9)
    return {
        "label": f"layer{i // 5 + 1}.{i % 5}.relu",
        "format": "uint8",
        "observer": "mse",
        "lo": -2.1,
        "hi": hi,
        "scale": (hi + 2.1) / 255,
        "zero_point": 65,
        "clipped": 0.00012 * i,
        "sqnr_db": 24.0 + i,
        "scores": {"minmax": 9e-4, "percentile": 3.4e-4, "mse": 1.2e-4, "kl": 2.2e-4},
        "histogram": {"start": -2.4, "width": 0.06, "counts": counts},
    }


def sample(count: int = 21) -> dict[str, Any]:
    """A report as it comes out of a convolutional network of so many layers."""
    noise = random.Random(0)
    ops = ["linear" if i == count - 1 else "add" if i % 5 == 4 else "conv2d" for i in range(count)]
    totals = {op: {"total": ops.count(op), "integer": ops.count(op)} for op in ("conv2d", "add", "linear")}
    return {
        "coverage": {
            "planned_integer": count,
            "executed_integer": count,
            "by_op": totals,
            "surprises": [],
            "stray": [],
            "kernels": {"QLinearConv": ops.count("conv2d"), "QLinearAdd": ops.count("add"), "QGemm": 1},
            "holds": True,
        },
        "accuracy": {
            "sqnr_db": 28.9,
            "samples": 4,
            "reference_sqnr_db": 28.9,
            "agreement": 1.0,
            "distance": {
                "max_lsb": 0.0, "changed": 0.0, "bound_lsb": 0.0, "within": True, "unit": "output LSB 0.0123",
            },
            "nodes": {
                "checked": count,
                "worst": [
                    {
                        "label": "layer2.1.conv2d",
                        "kernel": "QLinearConv",
                        "max_lsb": 1,
                        "allowed": 1,
                        "changed": 2e-5,
                    }
                ],
                "within": True,
            },
            "metric": {"name": "accuracy", "float": 0.9944, "quantized": 0.9917, "samples": 360},
            "weights_are_random": False,
        },
        "layers": [layer(i, op, noise) for i, op in enumerate(ops)],
        "speed": {
            "float_ms": 7.0,
            "quantized_ms": 2.1,
            "ratio": 3.33,
            "threads": 1,
            "batch": 1,
            "rounds": 7,
            "cpu": "Intel Xeon Platinum 8481C",
            "features": ["avx512_vnni", "amx_int8"],
            "kept": "quantized",
            "given_up": [],
            "ratios": [3.21, 3.3, 3.33, 3.33, 3.35, 3.4, 3.41],
        },
        "refused": [
            *(
                {"rule": "quantize-through-add", "node": f"add_{i}", "reason": "the two scales differ"}
                for i in range(4)
            ),
            {"rule": "fold-batch-norm", "node": "bn_7", "reason": "the convolution has two readers"},
        ],
        "tensors": [tensor(i, noise) for i in range(count)],
        "manifest": {
            "model": "resnet18",
            "recipe": {"name": "int8", "weights": "int8", "smooth": None, "overrides": []},
            "target": "cpu",
            "backend": "ort",
            "seed": 0,
            "data_hash": "9f2c61d0",
            "graph_hash": "51be7a24",
            "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1", "qcompiler": "0.1.0"},
            "cpu": {"name": "Intel Xeon Platinum 8481C", "features": ["avx512_vnni", "amx_int8"]},
            "session": {"optimization": "all", "spinning": False},
        },
    }  # fmt: skip


def troubled(count: int = 21) -> dict[str, Any]:
    """The same where much went wrong."""
    data = sample(count)
    lost = data["layers"][3]
    lost |= {"executed": "float", "kernel": "FusedConv"}
    for row in data["layers"][5:7]:
        row |= {"executed": "float", "planned": "float", "kernel": "Conv", "given_up": True}
    data["layers"][-1]["sqnr_db"] = 11.2
    data["layers"][0]["sqnr_db"] = math.inf
    given_up = [row["label"] for row in data["layers"][5:7]]
    surprise = {key: lost[key] for key in ("label", "op", "planned", "executed", "source")}
    data["coverage"] |= {
        "executed_integer": data["coverage"]["planned_integer"] - 1,
        "surprises": [surprise | {"reason": "the bias is float; store it as int32"}],
        "stray": ["quantize_3"],
        "holds": False,
    }
    data["accuracy"]["sqnr_db"] = 11.2
    data["accuracy"]["distance"] |= {"max_lsb": 3.0, "changed": 0.02, "within": False}
    data["speed"] |= {
        "kept": "partly",
        "given_up": [{"labels": given_up, "why": "0.93x float, measured alone"}],
    }
    return data


def save(tmp_path: Path, data: dict[str, Any]) -> str:
    return Report(data).save(tmp_path / "report.html").read_text(encoding="utf-8")


class Page(HTMLParser):
    """Every tag of a page with its attributes, the text that is shown, and the tags that were left open."""

    VOID = ("meta", "input", "br", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.tags)


def words_of(report: Report) -> str:
    """The text of the terminal without its line breaks."""
    return " ".join(str(report).split())


def test_the_headline_says_it_all() -> None:
    headline = str(Report(sample())).partition("\n\n")[0]
    assert " ".join(headline.split()) == (
        "int8 on ONNX Runtime: 21 of 21 planned layers run in integers, 3.33x float, 28.9 dB; "
        "engine equals the reference"
    )


def test_the_text_has_one_line_per_topic() -> None:
    text = words_of(Report(sample()))
    assert "Accuracy 99.17 %: accuracy of 360 samples; float has 99.44 %; 28.9 dB against float" in text
    assert "Coverage 21 of 21: planned layers run in integers; conv2d 16/16, add 4/4, linear 1/1" in text
    assert "Speed 3.33x: 2.1 ms against 7 ms in float; rounds from 3.21x to 3.41x; 1 thread" in text
    assert "Distance 0 LSB: largest difference of an output value; 0 LSB allowed" in text
    assert "Refused 5 rewrites quantize-through-add (4): the two scales differ" in text
    assert "Look at" not in text


def test_the_text_names_what_needs_a_look() -> None:
    text = words_of(Report(troubled()))
    assert "engine 3 LSB from the reference, where 0 is allowed" in text
    assert "layer1.3.conv2d (conv2d) was planned in int8 and runs in float: the bias is float" in text
    assert "1 quantize or dequantize node left over: quantize_3" in text
    assert "Given up 2 layers back to float layer2.0.conv2d and 1 more: 0.93x float" in text


@pytest.mark.parametrize(
    ("path", "value", "concern"),
    [
        (("coverage", "holds"), False, "what runs differs from what was planned"),
        (("coverage", "planned_integer"), 0, "no layer was planned in integers"),
        (("coverage", "stray"), ["q", "dq"], "2 quantize or dequantize nodes left over: q, dq"),
        (("accuracy", "distance", "within"), False, "the output is 0 LSB from the reference"),
        (("accuracy", "nodes", "within"), False, "layers further from the reference than allowed"),
        (("accuracy", "sqnr_db"), 14.9, "14.9 dB against float is low"),
        (("accuracy", "sqnr_db"), -math.inf, "−∞ dB against float is low"),
        (("accuracy", "sqnr_db"), math.nan, "the outputs contain values that are not numbers"),
        (("speed", "kept"), "float", "so the float model was kept"),
        (("accuracy", "ranges_from_example"), True, "ranges come from the example inputs alone"),
        (("speed", "ratio"), 0.93, "quantized runs at 0.93x the speed of float"),
    ],
)
def test_a_broken_promise_is_a_concern(path: tuple[str, ...], value: object, concern: str) -> None:
    data = sample()
    part = data
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    summary = summarize(data)
    assert summary.level == "warn"
    assert len(summary.concerns) == 1
    assert concern in summary.concerns[0]


def test_the_verdict() -> None:
    assert summarize(sample()).verdict == "Passed"
    assert summarize(troubled()).verdict == "Needs a look"
    assert summarize({}).verdict == "Not checked"


def test_a_distance_within_its_bound_passes() -> None:
    data = sample()
    data["accuracy"]["distance"] |= {"max_lsb": 1.0, "bound_lsb": 1.0}
    assert summarize(data).level == "pass"
    assert summarize(data).headline.endswith("engine within 1 LSB of the reference")


def test_only_what_was_checked_is_claimed(tmp_path: Path) -> None:
    data = sample()
    assert "Checked: what was planned is what runs; the output is within its bound" in save(tmp_path, data)
    data["accuracy"] = None
    text = save(tmp_path, data)
    assert "what was planned is what runs" in text
    assert "within its bound" not in text


def test_where_no_node_is_checked_none_is_praised() -> None:
    data = sample()
    data["accuracy"]["nodes"] = {"checked": 0, "within": None, "worst": []}
    assert "no node could be checked by itself" in words_of(Report(data))
    assert not any("by itself" in claim for claim in summarize(data).assurances)


def test_speed_is_that_of_what_was_kept() -> None:
    data = sample()
    data["speed"] |= {"kept": "partly", "kept_ms": 1.75, "ratio": 4.0, "quantized_ratio": 3.33}
    assert "Speed 4.00x: 1.75 ms against 7 ms in float" in words_of(Report(data))
    data["speed"] |= {
        "kept": "float",
        "kept_ms": 7.0,
        "ratio": 1.0,
        "quantized_ratio": 0.9,
        "quantized_ms": 7.8,
    }
    text = words_of(Report(data))
    assert "Look at quantized runs at 0.90x the speed of float, so the float model was kept" in text
    assert "Speed 1.00x: quantized 7.8 ms against 7 ms in float" in text
    assert text.startswith("float model kept; int8 on ONNX Runtime would be: 21 of 21 planned layers run in")
    assert "0.90x float" in summarize(data).headline


def test_random_weights_are_told() -> None:
    data = sample()
    data["accuracy"] |= {"metric": None, "weights_are_random": True}
    text = words_of(Report(data))
    assert "Accuracy 28.9 dB: signal to noise against float (4 samples)" in text
    assert "the weights are random, so accuracy means little" in text


def test_the_text_stays_short() -> None:
    data = troubled(154)
    long = "a reason that goes on and on, " * 20
    data["coverage"]["surprises"] = [row | {"reason": long} for row in data["coverage"]["surprises"] * 40]
    data["coverage"]["by_op"] = {f"some_long_operator_{i}": {"total": 9, "integer": 9} for i in range(40)}
    data["coverage"]["kernels"] = {f"SomeLongKernel{i}": i for i in range(40)}
    data["speed"]["given_up"] = [{"labels": ["encoder." * 9, "b", "c"], "why": long}] * 30
    data["refused"] = [{"rule": f"rule-{i}", "node": "n", "reason": long} for i in range(30)]
    lines = str(Report(data)).splitlines()
    assert len(lines) <= 36
    assert max(map(len, lines)) <= 100


def test_the_text_does_not_depend_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = str(Report(troubled()))
    for key, value in {"COLUMNS": "40", "FORCE_COLOR": "1", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(key, value)
    assert str(Report(troubled())) == plain
    assert "\x1b" not in plain


def test_in_colour_it_says_the_same() -> None:
    out = io.StringIO()
    console = rich.console.Console(file=out, width=100, force_terminal=True, color_system="truecolor")
    console.print(Report(troubled()).rich())
    assert "\x1b[" in out.getvalue()
    assert re.sub(r"\x1b\[[0-9;]*m", "", out.getvalue()).split() == str(Report(troubled())).split()


def test_round_trip_through_json() -> None:
    report = Report(troubled())
    again = Report.from_dict(json.loads(json.dumps(report.to_dict())))
    assert again == report
    assert str(again) == str(report)


def test_what_goes_in_and_out_is_copied() -> None:
    data = sample()
    report = Report.from_dict(data)
    data["coverage"]["holds"] = report.to_dict()["coverage"]["holds"] = False
    assert report.to_dict()["coverage"]["holds"] is True


def test_anything_but_a_mapping_is_refused() -> None:
    with pytest.raises(ArtifactError, match="this is list"):
        Report.from_dict([])  # type: ignore[arg-type]  # that is the point


@pytest.mark.parametrize("data", [sample(), troubled(154)], ids=["passed", "troubled"])
def test_the_page_loads_nothing(tmp_path: Path, data: dict[str, Any]) -> None:
    text = save(tmp_path, data)
    for forbidden in ("http:", "https:", "@import"):
        assert forbidden not in text
    for tag, attributes in Page(text).tags:
        assert tag not in ("link", "iframe", "img", "image", "object", "embed")
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    assert set(re.findall(r"url\((.)", text)) == {"#"}


def test_the_page_is_well_formed(tmp_path: Path) -> None:
    page = Page(save(tmp_path, troubled()))
    assert not page.open
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawings) == 2 + 12
    assert all(attributes["role"] == "img" and attributes["aria-label"] for attributes in drawings)
    assert all(attributes.get("scope") for tag, attributes in page.tags if tag == "th")


def test_what_refers_to_a_part_of_a_plot_finds_it(tmp_path: Path) -> None:
    text = save(tmp_path, sample())
    references = set(re.findall(r'(?:url\(|href=")#([^")]*)', text))
    assert references
    assert references <= set(re.findall(r'id="([^"]*)"', text))


def test_the_page_shows_everything(tmp_path: Path) -> None:
    data = troubled(154)
    page = Page(save(tmp_path, data))
    assert page.count("tr") > 2 * 154  # the layers and the tensors
    for row in data["layers"]:
        assert row["source"] in page.text
        assert f"{row['label']}: " in page.text  # what the plots tell when pointed at
    assert page.text.count("the bias is float; store it as int32") == 2  # in the verdict, and at its layer
    for said in ("not as planned", "given up", "0.93x float, measured alone", "fold-batch-norm", "bn_7"):
        assert said in page.text
    assert "versions.onnxruntime1.31.1" in re.sub(r"\s", "", page.text)
    assert "Needs a look" in page.text


def poison(value: Any, key: str = "") -> Any:
    """Every text but those that select a branch becomes hostile."""
    if isinstance(value, dict):
        return {name: poison(inner, name) for name, inner in value.items()}
    if isinstance(value, list):
        return [poison(inner, key) for inner in value]
    return HOSTILE if isinstance(value, str) and key != "kept" else value


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    data = poison(troubled())
    data["manifest"][HOSTILE] = {HOSTILE: HOSTILE}
    data["coverage"] |= {"by_op": {HOSTILE: {"total": 1, "integer": 1}}, "kernels": {HOSTILE: 1}}
    data["tensors"][0]["scores"][HOSTILE] = 1.0
    text = save(tmp_path, data)
    page = Page(text)
    assert page.count("script") == text.count("<script") == 1
    assert not page.open
    assert "{{ 7 * 7 }}" in page.text
    assert "$x$" in page.text
    said = words_of(Report(data))
    assert "[red]" in said
    assert "\x1b" not in text + said


def test_letters_of_any_language_are_drawn_without_a_warning(tmp_path: Path) -> None:
    data = sample()
    data["layers"][0]["label"] = "畳み込み.\ud800"  # and half of a surrogate pair
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "畳み込み" in save(tmp_path, data)


def test_same_data_same_bytes(tmp_path: Path) -> None:
    once = save(tmp_path, troubled())
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "axes.grid": True}):
        assert save(tmp_path, json.loads(json.dumps(troubled()))) == once


def hollow(value: Any) -> Any:
    """The same structure with nothing in it."""
    if isinstance(value, dict):
        return {name: hollow(inner) for name, inner in value.items()}
    return [hollow(inner) for inner in value] if isinstance(value, list) else None


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "missing", ["absent", "hollow", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("none", "empty"))]
)
def test_what_is_missing_is_told_and_breaks_nothing(tmp_path: Path, key: str, missing: str) -> None:
    data = troubled(8)
    data["tensors"] = data["tensors"][:1]
    replacement = {"none": None, "empty": type(data[key])(), "hollow": hollow(data[key])}
    if missing == "absent":
        del data[key]
    else:
        data[key] = replacement[missing]
    page = Page(save(tmp_path, data))
    for said in (page.text, str(Report(data))):
        assert "None" not in said
        assert "nan" not in said


def test_nothing_at_all(tmp_path: Path) -> None:
    assert str(Report({})).splitlines() == [
        "quantized: nothing was measured",
        "",
        "Accuracy  not measured",
        "Coverage  not checked",
        "Speed     not measured",
        "Distance  not checked",
    ]
    assert "No layers were recorded." in Page(save(tmp_path, {})).text


def test_layers_that_equal_the_reference_are_not_listed(tmp_path: Path) -> None:
    data = sample()
    data["accuracy"]["nodes"]["worst"][0]["max_lsb"] = 0
    text = save(tmp_path, data)
    assert "each one that was checked gives exactly what the reference gives" in text
    assert "Values that differ" not in text


def test_columns_without_a_value_are_left_out(tmp_path: Path) -> None:
    data = sample()
    for row in data["layers"]:
        row |= {"time_us": None, "float_time_us": None, "roofline_us": None}
    page = Page(save(tmp_path, data))
    assert "Roofline" not in page.text
    assert "SQNR" in page.text


def test_a_plot_without_data_is_no_plot() -> None:
    assert plots.layer_sqnr([]) == plots.layer_time([{"label": "a"}]) == ""
    assert plots.layer_sqnr([{"sqnr_db": math.inf}]) == ""
    assert plots.histogram({"histogram": {"start": 0.0, "width": 1.0, "counts": [0, 0]}}, "x") == ""


@pytest.mark.parametrize("counts", [[1], [0, 5, 0], [10**9, 1]])
@pytest.mark.parametrize("width", [0.0, 1e-30, 1.0])
def test_a_histogram_of_any_shape(counts: list[int], width: float) -> None:
    bins = {"start": 0.0, "width": width, "counts": counts}
    assert plots.histogram({"label": "a", "lo": 0.0, "hi": 0.0, "histogram": bins}, "x").startswith("<svg")


def test_the_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("before", encoding="utf-8")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(ArtifactError, match="no space left"):
            Report(sample()).save(path)
    assert path.read_text(encoding="utf-8") == "before"
    assert Report(sample()).save(str(path)) == path
    assert "Passed" in path.read_text(encoding="utf-8")
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "folder").mkdir()
    for name in ("missing/report.html", "file/report.html", "folder", "nul\0"):
        with pytest.raises(ArtifactError, match="the report cannot be written") as caught:
            Report({}).save(tmp_path / name)
        assert caught.value.why
        assert caught.value.fix
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (words.percent(0.5), "50 %"),
        (words.percent(1.0), "100 %"),
        (words.percent(0.999999), "99.9999 %"),
        (words.percent(2e-5), "0.002 %"),
        (words.percent(0.000124), "0.01 %"),
        (words.percent(0), "0 %"),
        (words.decibel(28.94), "28.9 dB"),
        (words.decibel(math.inf), "∞ dB"),
        (words.number(12345), "12,345"),
        (words.number(1452.4, 3), "1,452"),
        (words.number(0.0123456, 3), "0.0123"),
        (words.number(None), "–"),
        (words.large(1234567), "1.23 M"),
        (words.metric("sqnr_db", 20.0), "20.0 dB"),
        (words.metric("perplexity", 12.5), "12.5"),
        (words.shorten("encoder.layer.11.output.dense", 12), "enc…ut.dense"),
        (words.some(["a", "b", "c"], 2), "a, b and 1 more"),
        (words.clean("a\nb"), "a\ufffdb"),
    ],
)
def test_words(said: str, expected: str) -> None:
    assert said == expected


def test_nested_values_become_rows() -> None:
    value = {"a": {"b": [1, 2], "c": {}}, "d": [{"e": True}], "f": None}
    assert words.flatten(value) == [("a.b", "1, 2"), ("a.c", "–"), ("d[0].e", "yes"), ("f", "–")]


def test_drawing_waits_until_a_page_is_saved() -> None:
    question = (
        "import sys, qcompiler.report; print({'matplotlib', 'jinja2', 'rich', 'torch'} & {*sys.modules})"
    )
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_the_engines_that_were_tried(tmp_path: Path) -> None:
    engines = [
        {"backend": "ort", "ms": 2.5, "sqnr_db": 28.9, "kept": False, "why": ""},
        {"backend": "tvm", "ms": 2.1, "sqnr_db": 28.4, "kept": True, "why": ""},
        {"backend": "other", "kept": False, "why": "it <is> not here"},
    ]
    report = Report({**sample(), "engines": engines})
    assert "Engines ort: 2.5 ms, 28.9 dB tvm: 2.1 ms, 28.4 dB, kept other: it <is> not here" in words_of(
        report
    )
    text = " ".join(Page(save(tmp_path, {**sample(), "engines": engines})).text.split())
    assert "Engine" in text and "2.1 ms" in text and "it <is> not here" in text
