"""The Jinja environment of the HTML pages."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def environment(*folders: Path) -> Environment:
    """Templates of these folders, on the frame `base.html.j2` of
    this one; text is escaped, a name that is missing an error."""
    return Environment(loader=FileSystemLoader([*folders, Path(__file__).parent]), autoescape=True,
                       undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
