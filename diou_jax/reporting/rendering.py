"""The HTML of a page, by templates.

The page is one file. It asks no server for anything, and it is whole without scripts, which only sort and filter
tables.
"""

import functools
import os
import pathlib

from diou_jax.files import replacing
from diou_jax.reporting.charts import clean
from diou_jax.reporting.document import Document

TEMPLATES = pathlib.Path(__file__).parent / "templates"


def render(document: Document) -> str:
    """The HTML of a page."""
    environment = _environment()
    return environment.get_template("page.html").render(page=document)


def write(path: str | os.PathLike, document: Document) -> None:
    """Writes a page atomically; raises OSError."""
    content = render(document).encode("utf-8", "backslashreplace")
    with replacing(path) as draft:
        draft.write_bytes(content)


@functools.cache
def _environment():
    import jinja2
    from markupsafe import Markup

    def safe_text(value):
        return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,  # names of classes and files come from the data
        finalize=safe_text,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["file"] = lambda name: Markup((TEMPLATES / name).read_text(encoding="utf-8"))
    return environment
