"""One page of plain HTML and its pictures, in a folder that opens from disk."""
import io
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from utils.errors import InputError
from utils.files import write_atomically, write_text

GENERATOR = '<meta name="generator" content="utils.report">'    # marks a page as ours
STYLE = '''
body { color: #111; font: 16px/1.5 sans-serif; margin: 2em auto; max-width: 1100px; padding: 0 1em }
figure { margin: 1.5em 0 }
figcaption { color: #444; font-size: 90% }
img { display: block; max-width: 100% }
pre { background: #f3f3f3; overflow-x: auto; padding: .7em }
table { border-collapse: collapse; font-size: 90%; margin: 1em 0 }
th, td { border-bottom: 1px solid #ccc; padding: .15em .7em; text-align: left }
'''


class Page:
    """A page under construction; nothing is written before save(). Texts are plain, not HTML."""

    def __init__(self, title: str):
        self.title = title
        self.parts = [f'<h1>{escape(title)}</h1>']
        self.pictures: dict[str, bytes] = {}    # by file name

    def heading(self, text: str):
        self.parts.append(f'<h2>{escape(text)}</h2>')

    def text(self, text: str):
        self.parts.append(f'<p>{escape(text)}</p>')

    def block(self, text: str):
        self.parts.append(f'<pre>{escape(text)}</pre>')

    def table(self, header: Sequence[str], rows: Iterable[Sequence]):
        """A table; header is empty for one without a header."""
        lines = [html_row('th', header)] if header else []
        lines += [html_row('td', row) for row in rows]
        self.parts.append('\n'.join(['<table>', *lines, '</table>']))

    def figure(self, name: str, caption: str, figure: Figure):
        """A picture `name`.png; the caption says what is plotted, in which unit."""
        png = io.BytesIO()
        figure.savefig(png, format='png')
        self.pictures[f'{name}.png'] = png.getvalue()
        self.parts.append(f'<figure><img src="{name}.png" alt="{escape(caption)}">\n'
                          f'<figcaption>{escape(caption)}</figcaption></figure>')

    def save(self, folder: Path) -> Path:
        """Write the page and its pictures, for those of an earlier report; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in re.findall(r'<img src="([\w.-]+)"', earlier_page(folder)):
            (folder / name).unlink(missing_ok=True)
        for name, png in self.pictures.items():
            write_atomically(folder / name, lambda path: path.write_bytes(png))
        head = (f'<meta charset="utf-8">\n{GENERATOR}\n<title>{escape(self.title)}</title>\n'
                f'<style>{STYLE}</style>')
        body = '\n'.join(self.parts)
        write_text(folder / 'index.html',
                   f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n'
                   f'<body>\n{body}\n</body>\n</html>\n')
        return folder / 'index.html'


def html_row(tag, cells):
    return '<tr>' + ''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells) + '</tr>'


def earlier_page(folder: Path) -> str:
    """The text of the page that an earlier report left in the folder; '' if there is none."""
    index = folder / 'index.html'
    text = index.read_text(encoding='utf-8', errors='replace') if index.is_file() else ''
    return text if GENERATOR in text else ''


def check_folder(folder: Path, overwrite: bool):
    """Raise InputError where a page in the folder could not be written or would replace files."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f'{existing} is a file; give a folder')
    if not os.access(existing, os.W_OK):
        raise InputError(f'{existing} is write-protected; give another folder')
    if existing != folder or not any(folder.iterdir()):
        return
    if not earlier_page(folder):
        raise InputError(f'{folder} holds other files than a report; give another folder')
    if not overwrite:
        raise InputError(f'{folder} holds an earlier report: --overwrite replaces it, '
                         '--out=DIR writes elsewhere')
