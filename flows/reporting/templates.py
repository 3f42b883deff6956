"""The Jinja environment of the HTML pages."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(*folders: Path) -> Environment:
    """An environment of the templates in these folders, and of this folder's `base.html.j2`,
    which they extend; text is escaped, and an undefined name is an error."""
    return Environment(loader=FileSystemLoader([*folders, Path(__file__).parent]), autoescape=True,
                       undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
