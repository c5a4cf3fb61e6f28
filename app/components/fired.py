"""The entries that a token selected, layer by layer."""

from collections.abc import Callable
from typing import Any

from app.components.component import make_component
from memscope.query.fired import FiredEntry, FiredLayer

_FIRED = make_component("fired", "\n<div class='box'></div>\n<!-- layers -->\n")
FEW = 4
"""Number of entries of a layer that are shown at first."""
_DECODED = 6
"""Number of nearest tokens shown of a fired entry."""


def fired_view(
    layers: list[FiredLayer], chosen: int, lit: int | None, *, key: str, on_act: Callable[[], None], few: int = FEW
) -> None:
    """Show the entries that a token selected, layer by layer.

    Args:
        layers: ``fired_entries``.
        chosen: layer to mark.
        lit: entry that colours the text, if any.
        key: name of the widget.
        on_act: called when the reader clicks an action: ``st.session_state[key].acted`` has ``act`` (``open``,
            ``where`` or ``light``), ``entry`` (-1: none) and ``layer``.
        few: entries of a layer that are shown at first.
    """
    data = [
        {
            "layer": layer.layer,
            "note": f"effectively reads {layer.effective:.1f} of {len(layer.entries)} entries"
            if layer.effective
            else "reads nothing here",
            "entries": [_fired(entry) for entry in layer.entries],
        }
        for layer in layers
    ]
    _FIRED(
        data={"layers": data, "chosen": chosen, "lit": -1 if lit is None else lit, "few": few},
        key=key,
        on_acted_change=on_act,
    )


def _fired(fired: FiredEntry) -> dict[str, Any]:
    words, reads = fired.words, fired.slots
    slots = None
    if reads is not None:
        # an even read has half the colour, so that it does not look like a strong read of all entries
        levels = reads / max(float(reads.max(initial=0)), 2 * float(reads.mean()), 1e-30)
        texts = zip(words.sentence, levels.tolist(), reads.tolist(), strict=False)
        slots = [(text, level, f"{read:.3g}") for text, level, read in texts]
    return {
        "entry": fired.entry,
        "gate": f"{fired.gate:.3g}",
        "gate_share": fired.gate_share,
        "read": f"{fired.read:.3g}",
        "read_share": fired.read_share,
        "sentence": words.text,
        "slots": slots,
        "decoded": words.decoded[:_DECODED],
        "title": words.title,
    }
