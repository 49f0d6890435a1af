"""HTML pages from Jinja2 templates, which extend base.html and share style.css."""
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.system import console

UNBREAKABLE = '\u00a0'      # a space, which pages have beside numbers
HERE = Path(__file__).parent


def render(template: Path, **values) -> str:
    """The page that a template makes of the values, all of which are escaped as HTML.

    What is not printable, as in names of files and classes, is shown as \\x1b and the like.
    """
    environment = Environment(loader=FileSystemLoader([template.parent, HERE]), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
                              finalize=printable)
    return environment.get_template(template.name).render(values)


def printable(value: object) -> object:
    """A text as console.escaped shows it, but with its unbreakable spaces; HTML as it is."""
    if type(value) is not str:
        return value
    return UNBREAKABLE.join(map(console.escaped, value.split(UNBREAKABLE)))
