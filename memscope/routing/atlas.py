"""The atlas of a layer: all its entries in one table, each with its load, what it fires on and what it promotes."""

import pandas as pd

from memscope.query.recording import Recording
from memscope.routing.domains import FALSE_DISCOVERY_RATE, domain_lift
from memscope.routing.rows import routed_site


def atlas(recording: Recording, layer: int) -> pd.DataFrame:
    """One row per entry of a layer, most loaded first.

    Returns ``number entry load count fires_on input next promotes group group_lift``: ``number`` counts from 0 in the
    layer, ``load`` is selections over the even share, ``fires_on`` the headline of its tokens, ``input`` and ``next``
    lists of the input tokens and true next tokens that are most typical, ``promotes`` the tokens that its value points
    to where the layer has a lens, ``group`` the document group of largest significant lift, if there is one.

    Example:
        >>> atlas(recording, layer=0)[["number", "load", "fires_on"]].head()
    """
    site = routed_site(recording, layer)
    entries = range(site.own.start, site.own.stop)
    usage = recording.usage()[recording.info.layers.index(layer), site.own]
    table = pd.DataFrame({"number": range(site.entries), "entry": entries, "count": usage})
    table["load"] = table["count"] * site.entries / max(int(usage.sum()), 1)
    firing = recording.firing_of(entries)
    firing = firing[firing["layer"] == layer].set_index("entry")
    for name, column in (("fires_on", "fires_on"), ("input", "input_tokens"), ("next", "next_tokens")):
        table[name] = [firing[column].get(entry) for entry in entries]
    lens = {card.entry: card.lens.set_index("layer")["top"].get(layer) for card in recording.cards(entries)}
    table["promotes"] = [lens[entry] for entry in entries]
    lifts = domain_lift(recording, layer)
    lifts = lifts[(lifts["q"] <= FALSE_DISCOVERY_RATE) & (lifts["lift"] > 1)] if len(lifts) else lifts
    best = lifts.sort_values("lift", ascending=False).drop_duplicates("entry").set_index("entry")
    table["group"] = [best["group"].get(number) for number in table["number"]]
    table["group_lift"] = [best["lift"].get(number) for number in table["number"]]
    return table.sort_values(["load", "number"], ascending=[False, True], kind="stable", ignore_index=True)
