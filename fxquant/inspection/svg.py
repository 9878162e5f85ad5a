"""SVG elements as text. Every attribute and text is escaped; colors live in style sheets."""

from __future__ import annotations

from markupsafe import Markup

GOOD, BAD = 40.0, 10.0  # dB: green from here up, red from here down


def tag(name: str, content: Markup | str = "", **attributes: object) -> Markup:
    """An element; `class_` stands for `class`, underscores for hyphens."""
    written = Markup(" ").join(
        Markup('{}="{}"').format(key.rstrip("_").replace("_", "-"), value)
        for key, value in attributes.items()
        if value != ""
    )
    return Markup("<{0} {1}>{2}</{0}>").format(Markup(name), written, content)


def hue(sqnr: float) -> str:
    """Style that sets the traffic-light hue of a signal-to-noise ratio: 0 is red, 120 green."""
    share = min(max((sqnr - BAD) / (GOOD - BAD), 0.0), 1.0)
    return f"--hue:{120 * share:.0f}"


def shortened(text: str, limit: int) -> str:
    """The text, its middle left out where it is longer: the ends of names tell most."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 3
    return f"{text[:head]}…{text[head + 1 - limit :]}"
