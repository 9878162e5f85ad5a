"""The HTML report: complete, self-contained, escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxquant
from fxquant.inspection import report
from fxquant.inspection.facts import node_facts
from fxquant.inspection.svg import hue, shortened
from tests.inspection.nets import FakeCompiled, quantized_net, small_net

VOID = {"meta", "br"}


class Balanced(HTMLParser):
    """Checks that elements close in order; collects ids, link targets and loaded resources."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        for key, value in attrs:
            if key == "id" and value:
                self.ids.add(value)
            if key == "href" and value:
                self.links.add(value)
            if key in ("src", "data") or tag in ("script", "link", "iframe"):
                self.loaded.append(f"{tag} {key}={value}")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def parse(path: Path) -> tuple[str, Balanced]:
    text = path.read_text("utf-8")
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    return text, parser


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Balanced]:
    model, x = small_net()
    quantized = quantized_net(fxquant.W4A8.with_rules(names={"gate.2": None}))
    path = tmp_path_factory.mktemp("report") / "deep" / "net.html"
    assert report(quantized, path, x, compiled=quantized.reference, model=model) == path
    return parse(path)


class Labels(nn.Module):
    """Methods of tensors stay in float; one of them delivers integers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y.argmax(1), y.roll(1, 3).sum(1)


def test_methods_and_labels_have_rows(tmp_path: Path) -> None:
    model, x = Labels().eval(), torch.randn(4, 3, 8, 8)
    quantized = fxquant.quantize(model, x, x[:1], progress=False)
    text, _ = parse(quantized.report(tmp_path / "net.html", data=x, model=model))
    assert all(f">{name}<" in text for name in ("conv", "argmax", "roll", "sum"))


def test_it_is_self_contained(full: tuple[str, Balanced]) -> None:
    text, parser = full
    assert parser.loaded == []
    assert not re.search(r"https?://|@import|url\(", text)


def test_every_node_has_a_row_and_a_box(full: tuple[str, Balanced]) -> None:
    _, parser = full
    names = {f.node for f in node_facts(quantized_net())}
    assert names <= parser.ids
    assert {f"#{n}" for n in names} <= parser.links
    assert {link.removeprefix("#") for link in parser.links} <= parser.ids


def test_float_islands_come_with_their_reason(full: tuple[str, Balanced]) -> None:
    text, _ = full
    assert "left in float by the configuration" in text
    assert "node float" in text


def test_sections_follow_what_is_given(full: tuple[str, Balanced], tmp_path: Path) -> None:
    text, _ = full
    assert "Latency" in text and "float32 torch" in text and "Weakest operators" in text
    bare, _ = parse(report(quantized_net(), tmp_path / "bare.html"))
    assert "Latency" not in bare and "dB" not in bare
    assert "None: from the quantized input" in bare


def test_text_from_the_network_is_escaped(tmp_path: Path) -> None:
    model, x = small_net()
    quantized = fxquant.quantize(model, [x], progress=False)
    quantized.notes["head"] = "<script>alert(1)</script>"
    quantized.provenance["config"] = "a & b <c>"
    text, parser = parse(report(quantized, tmp_path / "net.html"))
    assert parser.loaded == []
    assert "&lt;script&gt;" in text and "a &amp; b &lt;c&gt;" in text


def test_sizes_count_packed_codes() -> None:
    facts = {f.node: f for f in node_facts(quantized_net(fxquant.W4A8))}
    weight = facts["left_0"].weight
    assert weight is not None and weight.bits == 4
    assert weight.float_bytes == 4 * (8 * 8 * 9 + 8)
    assert weight.integer_bytes == 8 * 8 * 9 // 2 + 8 * 7
    counts = weight.histogram().after
    assert sum(counts) == 8 * 8 * 9
    assert len(counts) == 15 + 2


def test_a_plain_chain_without_weights(tmp_path: Path) -> None:
    _, x = small_net()
    quantized = fxquant.quantize(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), [x], progress=False)
    text, _ = parse(report(quantized, tmp_path / "net.html", x))
    assert "max_pool2d" in text


def test_colors_go_from_red_to_green() -> None:
    assert hue(float("-inf")) == hue(5.0) == "--hue:0"
    assert hue(float("inf")) == hue(60.0) == "--hue:120"


def test_suggestions_stand_beside_the_layer(full: tuple[str, Balanced]) -> None:
    text, _ = full
    assert "remove the rule from the configuration" in text
    assert "weights dominate" in text


def test_histograms_show_both_sides_of_quantization(full: tuple[str, Balanced]) -> None:
    text, _ = full
    assert 'class="before"' in text and 'class="after"' in text


def test_a_compiled_network_shows_its_memory_and_kernels(tmp_path: Path) -> None:
    quantized = quantized_net()
    text, _ = parse(report(quantized, tmp_path / "net.html", compiled=FakeCompiled()))
    assert "The arena has 0.1 KiB" in text
    assert "kernel_of_the_stem" in text and "0.2500" in text
    assert 'class="value"' in text


def test_long_names_are_shortened_in_the_middle() -> None:
    assert shortened("short", 10) == "short"
    assert shortened("features.0.conv.block.depthwise", 13) == "feat…epthwise"
    assert len(shortened("x" * 99, 25)) == 25
