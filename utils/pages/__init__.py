"""HTML pages from Jinja2 templates, which extend base.html and share style.css."""
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

HERE = Path(__file__).parent


def render(template: Path, **values) -> str:
    """The page that a template makes of the values, all of which are escaped as HTML.

    What is not Unicode, as names of files can be, is shown as \\udc80 and the like.
    """
    environment = Environment(loader=FileSystemLoader([template.parent, HERE]), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template(template.name).render(values)
    return page.encode('utf-8', 'backslashreplace').decode()
