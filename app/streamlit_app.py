"""The app's frame: navigation, the choice of a recording, and the page. Start it with ``memscope app``."""

from pathlib import Path

import streamlit as st

from app import live, recordings
from app.components.place import place_line

# An icon of Streamlit's own would be fetched from another site.
ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">
<rect width="16" height="16" rx="3" fill="#0072B2"/>
<path d="M3 4h10M3 8h10M3 12h10" stroke="#fff" stroke-opacity=".45" stroke-width="1.6"/>
<circle cx="6" cy="8" r="2.2" fill="#E69F00"/></svg>"""

ICONS = {
    "overview": "dashboard",
    "prompts": "notes",
    "entries": "database",
    "map": "scatter_plot",
    "gate_bias": "balance",
    "reading": "menu_book",
    "routing": "alt_route",
    "facts": "fact_check",
    "what_if": "science",
    "compare": "compare_arrows",
}

st.set_page_config(page_title="memscope", page_icon=ICON, layout="wide", initial_sidebar_state=210)
st.logo(ICON, size="large")

st.html(Path(__file__).with_name("frontend") / "page.css")  # a style alone

pages = recordings.pages()
page = st.navigation(
    [
        st.Page(
            f"app_pages/{name}.py",
            title=pages[name].title,
            icon=f":material/{icon}:",
            url_path=name if name != "overview" else None,
            default=name == "overview",
            help=pages[name].help,
        )
        for name, icon in ICONS.items()
    ]
)
recordings.choose_recording()
place_line(recordings.place())
with recordings.say_what_is_wrong():
    live.expect_small()
    page.run()
