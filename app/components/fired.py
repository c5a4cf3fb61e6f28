"""The entries that a token selected, layer by layer."""

from collections.abc import Callable
from typing import Any

from app.components.component import make_component
from memscope.query.fired import FiredEntry, FiredLayer
from memscope.recording.info import RecordingInfo
from memscope.recording.sites import SCORES, Site
from memscope.report.words import has_start, own_number, start_name

_FIRED = make_component("fired", "\n<div class='box'></div>\n<!-- layers -->\n")
FEW = 4
"""Number of entries of a layer that are shown at first."""
_DECODED = 6
"""Number of nearest tokens shown of a fired entry."""


def fired_view(
    layers: list[FiredLayer],
    chosen: int,
    lit: int | None,
    info: RecordingInfo,
    *,
    key: str,
    on_act: Callable[[], None],
    changes: bool = False,
    lights: bool = True,
    few: int = FEW,
) -> None:
    """Show the entries that a token selected, layer by layer.

    Args:
        layers: ``fired_entries``.
        chosen: layer to mark.
        lit: entry that colours the text, if any.
        info: of the recording, which names entries and scores.
        key: name of the widget.
        on_act: called when the reader clicks an action: ``st.session_state[key].acted`` has ``act`` (``open``,
            ``light`` or ``ablate``), ``entry`` (-1: none) and ``layer``.
        changes: whether the model can be changed and run, so that rows offer to ablate.
        lights: whether an entry can colour the text of the page, so that rows offer it.
        few: entries of a layer that are shown at first.
    """
    data = [
        {
            "layer": layer.layer,
            "note": _note(layer, info.site(layer.layer)),
            "heads": _heads(info.site(layer.layer)),
            "entries": [_fired(entry, info, _most_read(layer)) for entry in layer.entries],
        }
        for layer in layers
    ]
    _FIRED(
        data={
            "layers": data,
            "chosen": chosen,
            "lit": -1 if lit is None else lit,
            "few": few,
            "word": info.word(),
            "changes": changes,
            "lights": lights,
        },
        key=key,
        on_acted_change=on_act,
    )


def _most_read(layer: FiredLayer) -> float:
    """The largest read weight of a word of an entry."""
    return max((float(entry.slots.max(initial=0)) for entry in layer.entries if entry.slots is not None), default=0.0)


def _note(layer: FiredLayer, site: Site) -> str:
    if layer.effective is None:
        return f"{len(layer.entries)} of {site.entries:,} {site.word(2)}"
    if layer.effective:
        return f"effectively reads {layer.effective:.1f} of {len(layer.entries)} {site.word(2)}"
    return "reads nothing here"


def _heads(site: Site) -> list[str]:
    """Heads of the columns; empty where a layer has no such numbers."""
    named = start_name(site) if "starts" in site.has else "fires on"
    return [
        site.word(),
        SCORES[site.kind] if "scores" in site.has else "",
        "read weight" if "reads" in site.has else "",
        named,
    ]


def _fired(fired: FiredEntry, info: RecordingInfo, most: float) -> dict[str, Any]:
    """An entry as the script has it; ``most`` is the largest read weight of a word in its layer."""
    words, reads = fired.words, fired.slots
    slots = None
    if reads is not None:
        # an even read has half the colour, so that it does not look like a strong read of all entries
        levels = reads / max(most, 2 * float(reads.mean()), 1e-30)
        texts = zip(words.sentence, levels.tolist(), reads.tolist(), strict=False)
        slots = [(text, level, f"{read:.3g}") for text, level, read in texts]
    return {
        "entry": fired.entry,
        "name": own_number(info, fired.entry),
        "known": has_start(info, fired.entry),
        "gate": None if fired.gate is None else f"{fired.gate:.3g}",
        "gate_share": fired.gate_share,
        "read": None if fired.read is None else f"{fired.read:.3g}",
        "read_share": fired.read_share,
        "sentence": words.text,
        "slots": slots,
        "decoded": words.decoded[:_DECODED],
        "title": words.title,
    }
