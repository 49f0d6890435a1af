"""One page of plain HTML and its pictures in a folder that opens from disk."""
import os
import re
from html import escape

GENERATOR = '<meta name="generator" content="utils.report">'    # by which a later report knows an earlier one
STYLE = '''body { max-width: 1100px; margin: 2em auto; padding: 0 1em; font: 16px/1.5 sans-serif; color: #111 }
img { max-width: 100%; display: block } figure { margin: 1.5em 0 } figcaption { color: #444; font-size: 90% }
table { border-collapse: collapse; font-size: 90%; margin: 1em 0 } td, th { padding: .15em .7em; text-align: left }
th, td { border-bottom: 1px solid #ccc } pre { background: #f3f3f3; padding: .7em; overflow-x: auto }'''


class Page:
    """A page under construction; its pictures are drawn into `folder` at once. Texts are plain, not HTML."""

    def __init__(self, folder, title):
        self.folder, self.title, self.parts = folder, title, [f'<h1>{escape(title)}</h1>']

    def heading(self, text):
        self.parts.append(f'<h2>{escape(text)}</h2>')

    def text(self, text):
        self.parts.append(f'<p>{escape(text)}</p>')

    def block(self, text):
        self.parts.append(f'<pre>{escape(text)}</pre>')

    def table(self, header, rows):
        lines = [('th', header)] * any(header) + [('td', row) for row in rows]
        self.parts.append('<table>\n' + '\n'.join(
            '<tr>' + ''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells) + '</tr>'
            for tag, cells in lines) + '\n</table>')

    def figure(self, name, caption, draw, *numbers):
        """The picture that draw(path, *numbers) makes, with a caption that says what is plotted in which unit."""
        draw(self.folder / name, *numbers)
        self.parts.append(f'<figure><img src="{name}" alt="{escape(caption)}">\n'
                          f'<figcaption>{escape(caption)}</figcaption></figure>')

    def write(self):
        head = f'<meta charset="utf-8">\n{GENERATOR}\n<title>{escape(self.title)}</title>\n<style>{STYLE}</style>'
        (self.folder / 'index.html').write_text(
            f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n' + '\n'.join(self.parts) +
            '\n</body>\n</html>\n', encoding='utf-8')


def earlier_page(folder):
    """The text of the page that an earlier report left in the folder, or '' where it holds none."""
    index = folder / 'index.html'
    text = index.read_text(encoding='utf-8', errors='replace') if index.is_file() else ''
    return text if GENERATOR in text else ''


def refuse_another(folder, overwrite):
    """Raise ValueError where a page in the folder would replace what lies there."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'--out: {folder} is a file; give a folder')
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not earlier_page(folder):
        raise ValueError(f'--out: {folder} holds other files than a report; give another folder')
    if not overwrite:
        raise ValueError(f'{folder} holds an earlier report: --overwrite replaces it, --out=DIR writes elsewhere')


def install(new, folder):
    """Move the page and its pictures from the folder `new` to `folder`, for those of an earlier report."""
    folder.mkdir(exist_ok=True)
    for picture in re.findall(r'<img src="([\w.-]+)"', earlier_page(folder)):
        (folder / picture).unlink(missing_ok=True)
    for path in new.iterdir():
        os.replace(path, folder / path.name)
