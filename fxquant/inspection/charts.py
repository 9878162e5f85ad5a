"""Charts as SVG: histograms, errors along the network, the memory plan over time."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, sqrt

from markupsafe import Markup

from fxquant.inspection.device import MemoryMap
from fxquant.inspection.histogram import Histogram
from fxquant.inspection.measure import Measurement
from fxquant.inspection.svg import tag

WIDTH, HEIGHT = 960, 220  # of a wide chart
MARGIN = 60
TOP_DECIBEL = 60.0  # of the axis; more is drawn here


def histogram_chart(histogram: Histogram, width: int = 112, height: int = 26) -> Markup:
    """Before quantization as an area, after as a line; heights are square roots of counts."""
    counts = [c for c in (histogram.before, histogram.after) if c]
    top = sqrt(max(max(c) for c in counts)) or 1.0
    drawn = [
        tag("path", d=_steps(c, top, width, height), class_=kind)
        for c, kind in ((histogram.before, "before"), (histogram.after, "after"))
        if c
    ]
    low, high = histogram.ends
    title = tag("title", f"grid from {low:.4g} to {high:.4g}; clipped {histogram.clipped:.2%}")
    return tag("svg", Markup("").join([title, *drawn]), class_="histogram", width=width,
               height=height, role="img", viewBox=f"0 0 {width} {height}")  # fmt: skip


def _steps(counts: Sequence[int], top: float, width: int, height: int) -> str:
    step = width / len(counts)
    parts = [f"M0 {height}"]
    for i, count in enumerate(counts):
        y = (height - 1) * (1 - sqrt(count) / top) + 0.5
        parts.append(f"V{y:.1f}H{(i + 1) * step:.1f}")
    return "".join([*parts, f"V{height}"])


def error_chart(measured: Sequence[Measurement]) -> Markup:
    """Signal-to-noise ratio along the network: cumulative as a line, isolated as points."""
    step = (WIDTH - MARGIN) / max(len(measured), 1)
    xs = [MARGIN + (i + 0.5) * step for i in range(len(measured))]
    lines = []
    for level in range(0, int(TOP_DECIBEL) + 1, 20):
        y = _height(level)
        lines.append(tag("path", d=f"M{MARGIN} {y:.1f}H{WIDTH}", class_="rule"))
        lines.append(tag("text", f"{level} dB", x=MARGIN - 6, y=f"{y + 4:.1f}", class_="tick"))
    pairs = zip(xs, measured, strict=True)
    points = [f"{x:.1f} {_height(m.cumulative.sqnr):.1f}" for x, m in pairs]
    curve = tag("path", d="M" + "L".join(points), class_="cumulative") if points else ""
    dots = [
        tag(
            "a",
            tag("circle", tag("title", f"{m.node}: isolated {m.isolated.sqnr:.1f} dB, "
                              f"cumulative {m.cumulative.sqnr:.1f} dB"),
                cx=f"{x:.1f}", cy=f"{_height(m.isolated.sqnr):.1f}", r=3, class_="isolated"),
            href=f"#{m.node}",
        )
        for x, m in zip(xs, measured, strict=True)
    ]  # fmt: skip
    return _wide(Markup("").join([*lines, curve, *dots]))


def _height(sqnr: float) -> float:
    level = min(max(sqnr, 0.0), TOP_DECIBEL) if isfinite(sqnr) else TOP_DECIBEL * (sqnr > 0)
    return 8 + (HEIGHT - 20) * (1 - level / TOP_DECIBEL)


def memory_chart(memory: MemoryMap) -> Markup:
    """Values as boxes: steps of the program from left to right, addresses from bottom to top."""
    steps = max((v.last for v in memory.values), default=0) + 1
    step, scale = (WIDTH - MARGIN) / steps, (HEIGHT - 20) / max(memory.nbytes, 1)
    floor = HEIGHT - 12

    def box(index: int) -> Markup:
        value = memory.values[index]
        title = tag("title", f"{value.name}: {kib(value.nbytes)} at {kib(value.offset)}, "
                    f"steps {value.first} to {value.last}")  # fmt: skip
        left, width = value.first * step, (value.last - value.first + 1) * step
        top = floor - (value.offset + value.nbytes) * scale
        return tag("rect", title, class_="value", style=f"--hue:{index * 137 % 360}",
                   x=f"{MARGIN + left:.2f}", y=f"{top:.2f}", width=f"{width:.2f}",
                   height=f"{max(value.nbytes * scale, 0.5):.2f}")  # fmt: skip

    parts = [box(i) for i in range(len(memory.values))]
    for name, level in (("0", 0), (kib(memory.nbytes), memory.nbytes)):
        y = floor - level * scale
        parts.append(tag("path", d=f"M{MARGIN} {y:.1f}H{WIDTH}", class_="rule"))
        parts.append(tag("text", name, x=MARGIN - 4, y=f"{y + 4:.1f}", class_="tick"))
    return _wide(Markup("").join(parts))


def _wide(content: Markup) -> Markup:
    return tag("svg", content, class_="chart", role="img", viewBox=f"0 0 {WIDTH} {HEIGHT}")


def kib(size: int) -> str:
    """A size in KiB, or in MiB from there on."""
    return f"{size / 2**20:.2f} MiB" if size >= 1 << 20 else f"{size / 2**10:.1f} KiB"
