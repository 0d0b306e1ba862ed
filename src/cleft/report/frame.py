"""What all pages share: the template engine, one look, and files that are whole.

A page asks nothing of any server: style, figures and images stand in it, no script in it runs, and its content policy
forbids requests. Whatever came from a file is escaped.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import jinja2

from cleft.version import __version__

PNG = re.compile(r"iVBORw0KGgo[A-Za-z0-9+/]*={0,2}")
"""An image as a page may hold it: base64 and nothing that could end its attribute."""


def render_page(template: str, **values: Any) -> str:
    """Fills a template of this folder.

    Args:
        template: Its file name.
        values: What it prints. A name it prints and was not given is an error.
    """
    return _environment().get_template(template).render(version=__version__, **values).lstrip()


@functools.cache
def _environment() -> jinja2.Environment:
    """Keeps what templates were compiled to, which takes longer than filling them."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
