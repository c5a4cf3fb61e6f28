"""The app's frame: navigation, the choice of a recording, and the page. Start it with ``memscope app``."""

import streamlit as st

from app import recordings

# An icon of Streamlit's own would be fetched from another site.
ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">
<rect width="16" height="16" rx="3" fill="#0072B2"/>
<path d="M3 4h10M3 8h10M3 12h10" stroke="#fff" stroke-opacity=".45" stroke-width="1.6"/>
<circle cx="6" cy="8" r="2.2" fill="#E69F00"/></svg>"""

PAGES = {
    "overview": ("Overview", "dashboard", "The recording, its training and the health of the memory."),
    "prompts": ("Prompts", "notes", "Token by token: the entries that the gate selected and the attention read."),
    "entries": ("Entries", "database", "The whole bank: search it, sort it, and open one entry."),
    "map": ("Map", "scatter_plot", "The bank in two dimensions, coloured by what entries are and do."),
    "gate_bias": ("Gate bias", "balance", "Evenness of selection, preferences, anomalies and the full report."),
    "reading": ("Reading", "menu_book", "How the attention weighs what the gate selected."),
    "routing": (
        "Routing",
        "alt_route",
        "Load, domains, tokens, pairs and paths of layers with few entries; their atlas.",
    ),
    "facts": ("Facts", "fact_check", "Does a question select, read and need the entries that started from its fact?"),
    "what_if": ("What if", "science", "Ablate, force, swap or rewrite entries, and see what changes."),
    "compare": ("Compare", "compare_arrows", "Two recordings side by side, such as two checkpoints or seeds."),
}

st.set_page_config(page_title="memscope", page_icon=ICON, layout="wide", initial_sidebar_state=210)
st.logo(ICON, size="large")

page = st.navigation(
    [
        st.Page(
            f"app_pages/{name}.py",
            title=title,
            icon=f":material/{icon}:",
            url_path=name if name != "overview" else None,
            default=name == "overview",
            help=help_,
        )
        for name, (title, icon, help_) in PAGES.items()
    ]
)
recordings.choose_recording()
with recordings.say_what_is_wrong():
    page.run()
