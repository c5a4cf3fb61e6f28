"""What an entry said at first beside what it says now."""

from typing import Any

from app.components.component import make_component

_DECODING = make_component("decoding", "\n<div class='box'></div>\n<!-- tokens -->\n")


def decoding_view(
    original: list[tuple[str, bool]],
    now: list[tuple[str, bool, str]],
    slots: list[dict[str, Any]],
    *,
    key: str,
) -> None:
    """Show what an entry said at first beside what it says now.

    Args:
        original: tokens of the init sentence, and whether each is among the nearest now.
        now: nearest tokens, whether each stands in the sentence, and its cosine.
        slots: for entries with several: ``slot from to cosine drift`` each; the other two are then left out.
        key: name of the widget.
    """
    _DECODING(data={"original": original, "now": now, "slots": slots}, key=key)
