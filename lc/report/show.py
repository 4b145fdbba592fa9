"""How pages show things: sentences, frames, sources."""
from collections.abc import Iterable

import pandas as pd
from IPython.display import HTML, Markdown, display


def say(*sentences: str) -> None:
    """Show sentences as text of the page, one paragraph each."""
    display(Markdown("\n\n".join(sentences)))


def frames(items: pd.DataFrame | Iterable[pd.DataFrame], digits: int = 2, missing: str = "not run") -> None:
    """Show one or several tables of numbers, with the caption in their attrs if any; `missing` stands where there is none."""
    for frame in [items] if isinstance(items, pd.DataFrame) else items:
        style = frame.style.format(precision=digits, na_rep=missing).set_table_attributes('class="numbers"')
        display(style.set_caption(frame.attrs.get("caption", "")))


def page(frame: pd.DataFrame) -> None:
    """A table of texts with links, over the width of the page."""
    display(HTML(frame.to_html(escape=False, border=0, classes="sources")))
