"""What a page is of: product, model and corpus, and a link to the view."""

from app.components.component import make_component

_PLACE = make_component(
    "place",
    """
<div class="box"><span class="what quiet"></span><button class="link quiet" type="button">Copy link</button></div>
""",
)


def place_line(parts: list[str]) -> None:
    """Show one line with a few names, and a button that copies the address of the view."""
    _PLACE(data={"parts": parts}, key="place")
