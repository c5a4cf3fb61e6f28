"""The app's frame: navigation, the choice of a recording, and the page. Start it with ``memscope app``."""

import streamlit as st

from app import state

# An icon of Streamlit's own would be fetched from another site.
ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16">
<rect width="16" height="16" rx="3" fill="#0072B2"/>
<path d="M3 4h10M3 8h10M3 12h10" stroke="#fff" stroke-opacity=".45" stroke-width="1.6"/>
<circle cx="6" cy="8" r="2.2" fill="#E69F00"/></svg>"""

st.set_page_config(page_title="memscope", page_icon=ICON, layout="wide")
st.logo(ICON, size="large")

page = st.navigation(
    [
        st.Page(
            "app_pages/overview.py",
            title="Overview",
            icon=":material/dashboard:",
            default=True,
            help="What was recorded, how training went and how evenly the bank is used.",
        ),
        st.Page(
            "app_pages/prompts.py",
            title="Prompts",
            icon=":material/notes:",
            url_path="prompts",
            help="Token by token: the entries that the gate selected and the attention read.",
        ),
        st.Page(
            "app_pages/entries.py",
            title="Entries",
            icon=":material/database:",
            url_path="entries",
            help="The whole bank: search it, sort it, and open one entry.",
        ),
        st.Page(
            "app_pages/gate_bias.py",
            title="Gate bias",
            icon=":material/balance:",
            url_path="gate_bias",
            help="How far selection is from even, per layer, with tables to download.",
        ),
    ]
)
state.choose_recording()
page.run()
