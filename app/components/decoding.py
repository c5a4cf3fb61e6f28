"""Tokens of an entry's init sentence beside its nearest tokens now."""

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
    """Show the tokens of an entry's init sentence beside its nearest tokens now.

    Args:
        original: tokens of the init sentence, and whether each is among the nearest now.
        now: nearest tokens, whether each is in the sentence, and its cosine.
        slots: for entries with several slots: ``slot from to cosine drift`` of each; the other two are then omitted.
        key: name of the widget.
    """
    _DECODING(data={"original": original, "now": now, "slots": slots}, key=key)
