"""Two small components for corpus text: a stretch of coloured, clickable tokens, and lines with one token marked.

Corpus text is untrusted. It travels as data and is set with ``textContent`` or ``title`` alone, so that no character
of it is ever read as markup.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import streamlit as st

MEASURES = {
    "loss": "loss of predicting the next token, nats",
    "gate_entropy": "entropy of a token's gate shares, nats, mean over layers",
    "top_share": "largest gate share of a token, mean over layers",
    "silent_layers": "layers in which the token read nothing",
}
"""Columns of ``Trace.tokens`` that can colour tokens, with what they mean."""

_CSS = """
.tokens { font-family: var(--st-font); font-size: 1rem; line-height: 1.95; color: var(--st-text-color);
          white-space: pre-wrap; overflow-wrap: anywhere; max-height: 18rem; overflow-y: auto;
          padding: 0.6rem 0.8rem; border: 1px solid var(--st-border-color); border-radius: var(--st-base-radius); }
.tokens:focus-within { border-color: var(--st-primary-color); }
.token { cursor: pointer; border-radius: 3px; padding: 0.12em 0; box-decoration-break: clone;
         -webkit-box-decoration-break: clone;
         background: color-mix(in srgb, var(--st-primary-color) var(--level), transparent); }
.token:hover { outline: 1px solid var(--st-text-color); }
.token:focus-visible { outline: 2px dashed var(--st-text-color); outline-offset: 1px; }
.token[aria-selected="true"] { outline: 2px solid var(--st-text-color); outline-offset: 1px; }
.token.special { opacity: 0.75; font-family: var(--st-code-font); font-size: 0.8em; }
.legend { display: flex; align-items: center; gap: 0.5rem; margin-bottom: 0.4rem; font-family: var(--st-font);
          font-size: 0.85rem; color: var(--st-text-color); }
.legend i { width: 9rem; height: 0.7rem; border-radius: 3px; border: 1px solid var(--st-border-color);
            background: linear-gradient(to right, transparent,
                                        color-mix(in srgb, var(--st-primary-color) 60%, transparent)); }
"""

_JS = """
const shown = text => text === "" ? "\\u2205" : text.replaceAll("\\n", "\\u21b5\\n").replaceAll("\\t", "\\u21e5\\t")

export default function ({ data, parentElement, setTriggerValue }) {
  const find = name => parentElement.querySelector("." + name)
  find("low").textContent = data.low
  find("high").textContent = data.high
  find("meaning").textContent = data.meaning
  const box = find("tokens")
  // Tokens are reused, so that the focused one keeps the focus after a rerun.
  while (box.children.length > data.texts.length) box.lastChild.remove()
  while (box.children.length < data.texts.length) box.append(document.createElement("span"))
  const spans = [...box.children]
  const select = number => setTriggerValue("clicked", data.first + number)
  const focus = number => {
    const next = Math.max(0, Math.min(spans.length - 1, number))
    spans.forEach((span, i) => { span.tabIndex = i === next ? 0 : -1 })
    spans[next].focus()
  }
  spans.forEach((span, number) => {
    const chosen = data.first + number === data.selected
    span.className = data.special[number] ? "token special" : "token"
    span.textContent = shown(data.texts[number])
    span.title = data.tips[number]
    span.setAttribute("role", "option")
    span.setAttribute("aria-selected", String(chosen))
    span.style.setProperty("--level", (60 * data.levels[number]).toFixed(1) + "%")
    span.tabIndex = chosen ? 0 : -1
    span.onclick = () => { focus(number); select(number) }
  })
  const selected = spans.findIndex(span => span.tabIndex === 0)
  if (selected < 0 && spans.length) spans[0].tabIndex = 0
  box.onkeydown = event => {
    const number = spans.indexOf(event.target)
    const step = { ArrowRight: number + 1, ArrowLeft: number - 1, Home: 0, End: spans.length - 1 }[event.key]
    const row = { ArrowDown: 1, ArrowUp: -1 }[event.key]
    if (step !== undefined) focus(step)
    else if (row !== undefined) focus(neighbour(spans, number, row))
    else if (event.key === "Enter" || event.key === " ") select(number)
    else return
    event.preventDefault()
  }
}

// The token of the next or previous line that lies nearest below or above.
function neighbour(spans, number, direction) {
  const from = spans[number].getBoundingClientRect()
  let best = number, distance = Infinity
  for (let i = number + direction; i >= 0 && i < spans.length; i += direction) {
    const to = spans[i].getBoundingClientRect()
    const lines = direction * (to.top - from.top) / from.height
    if (lines < 0.5) continue
    if (lines > 2.5) break
    const away = Math.abs(to.left - from.left) + 1000 * Math.round(lines)
    if (away < distance) { best = i; distance = away }
  }
  return best
}
"""

_TOKENS = st.components.v2.component(
    "memscope_tokens",
    html="""
<div class="legend"><span class="low"></span><i></i><span class="high"></span><span class="meaning"></span></div>
<div class="tokens" role="listbox" aria-label="Tokens: arrow keys move, Enter selects"></div>
""",
    css=_CSS,
    js=_JS,
)

_CONTEXTS = st.components.v2.component(
    "memscope_contexts",
    html="""
<div class="contexts"></div>
""",
    css="""
.contexts { font-family: var(--st-font); color: var(--st-text-color); font-size: 0.95rem; }
.context { display: block; width: 100%; text-align: left; font: inherit; color: inherit; background: none; border: 0;
           border-bottom: 1px solid var(--st-border-color); padding: 0.5rem 0.25rem; cursor: pointer; }
.context:hover, .context:focus-visible { background: var(--st-secondary-background-color); outline: none; }
.about { font-size: 0.8rem; opacity: 0.75; margin-bottom: 0.15rem; font-variant-numeric: tabular-nums; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.6; }
mark { color: inherit; border-radius: 3px; padding: 0.1em 0;
       background: color-mix(in srgb, var(--st-primary-color) 45%, transparent);
       outline: 1px solid var(--st-primary-color); }
""",
    js="""
const make = (name, kind, text) => Object.assign(document.createElement(name), { className: kind, textContent: text })
const flat = text => text.replace(/\\s*\\n\\s*/g, " \\u21b5 ")

export default function ({ data, parentElement, setTriggerValue }) {
  parentElement.querySelector(".contexts").replaceChildren(...data.lines.map((line, number) => {
    const button = make("button", "context", "")
    button.type = "button"
    button.title = "Open this token on the prompts page"
    button.append(make("div", "about", line.about))
    const text = make("div", "text", flat(line.before))
    text.append(make("mark", "", line.token.replaceAll("\\n", "\\u21b5") || "\\u2205"), flat(line.after))
    button.append(text)
    button.onclick = () => setTriggerValue("clicked", number)
    return button
  }))
}
""",
)


def token_view(
    tokens: pd.DataFrame, measure: str, selected: int, *, key: str, on_click: Callable[[], None] | None = None
) -> int | None:
    """Show a stretch of text as tokens coloured by a measure; returns the position just clicked, if any.

    Args:
        tokens: rows of ``Trace.tokens``, positions without gaps.
        measure: a key of ``MEASURES``.
        selected: position to mark; may lie outside.
        key: name of the widget; in ``on_click`` the position is ``st.session_state[key].clicked``.
        on_click: called before the rerun that a click starts.
    """
    values = tokens[measure].to_numpy(dtype=np.float64)
    low, high = color_range(values)
    data: dict[str, Any] = {
        "texts": tokens["text"].tolist(),
        "special": [bool(text.startswith("<|") and text.endswith("|>")) for text in tokens["text"]],
        "tips": [
            f"token {pos}, {measure.replace('_', ' ')} {'none' if np.isnan(value) else f'{value:.3g}'}"
            for pos, value in zip(tokens["pos"], values, strict=True)
        ],
        "levels": color_levels(values, low, high).tolist(),
        "first": int(tokens["pos"].iloc[0]),
        "selected": int(selected),
        "low": f"{low:.3g}",
        "high": f"{high:.3g}",
        "meaning": MEASURES[measure],
    }
    clicked = _TOKENS(data=data, key=key, on_clicked_change=on_click or _nothing).clicked
    return None if clicked is None else int(clicked)


def context_view(contexts: pd.DataFrame, *, key: str) -> int | None:
    """Show ``Recording.contexts()`` as lines with the firing token marked; returns the row just clicked, if any."""
    lines = [
        {
            "about": f"layer {c['layer']} · gate {c['gate']:.3g} · read {c['read']:+.3g} · "
            f"{c['title'] or 'untitled'} (document {c['doc']}), token {c['pos']}",
            "before": c["before"],
            "token": c["token"],
            "after": c["after"],
        }
        for c in contexts.to_dict("records")
    ]
    clicked = _CONTEXTS(data={"lines": lines}, key=key, on_clicked_change=_nothing).clicked
    return None if clicked is None else int(clicked)


def color_range(values: np.ndarray) -> tuple[float, float]:
    """Lowest value and 98th percentile of ``values``: one outlier must not turn the rest pale."""
    known = values[~np.isnan(values)]
    if not len(known):
        return 0.0, 0.0
    return float(known.min()), float(np.quantile(known, 0.98))


def color_levels(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Strength of the colour per value, 0 at ``low`` to 1 at ``high`` and above; NaN gets none."""
    return np.nan_to_num(np.clip((values - low) / max(high - low, 1e-12), 0, 1))


def visible(text: str) -> str:
    """A token as a table cell: leading and trailing spaces, newlines and tabs become signs that can be seen."""
    inner = text.strip(" ")
    if not inner:
        return "␣" * len(text) or "∅"
    start = len(text) - len(text.lstrip(" "))
    end = len(text) - len(text.rstrip(" "))
    return "␣" * start + inner.replace("\n", "↵").replace("\t", "⇥") + "␣" * end


def _nothing() -> None:
    """A trigger needs a callback to be in the result on every run."""
