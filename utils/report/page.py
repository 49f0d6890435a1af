"""One page, built from parts, and its pictures, in a folder that opens from disk."""
import contextlib
import io
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace as Part

from matplotlib import rc_context
from matplotlib.figure import Figure

from utils.pages import render
from utils.system import interrupt
from utils.system.errors import InputError
from utils.system.files import replace

TEMPLATE = Path(__file__).with_name('page.html')
GENERATOR = 'utils.report'      # marks a page as ours
UNFINISHED = '.report-'         # begins the name of a folder that a killed report leaves
CSS_PIXELS = 96                 # an inch
RASTER = 2 * CSS_PIXELS         # dots an inch, of what is not drawn as lines
SHRINKS = 0.75                  # to which part of its width a picture shrinks before it scrolls
MANY = 10                       # rows; a longer table can be folded
NUMBER = re.compile(r'[+−-]?(\d{1,3}(,\d{3})+|\d+)(\.\d+)?(e[+-]?\d+)?( %)?|–|')


class Page:
    """A page under construction; nothing is written before save(). Texts are plain, not HTML."""

    def __init__(self, title: str):
        self.title = title
        self.parts: list[Part] = []
        self.headings: list[Part] = []
        self.pictures: dict[str, bytes] = {}    # by file name
        self._inside = self.parts               # where the next part goes

    def _add(self, kind: str, **values) -> Part:
        part = Part(kind=kind, **values)
        self._inside.append(part)
        return part

    def heading(self, text: str):
        """The heading of a section, which the contents link; they follow what is added before."""
        anchor = '-'.join(re.findall(r'\w+', text.lower()))
        self.headings.append(self._add('heading', text=text, anchor=anchor))

    def text(self, text: str):
        self._add('text', text=unbroken(text))

    def block(self, text: str):
        self._add('block', text=text)

    def tiles(self, tiles: Sequence[tuple[str, str, str]]):
        """Key numbers: (value, what it is, details) of each."""
        self._add('tiles', tiles=[tuple(map(unbroken, tile)) for tile in tiles])

    def table(self, header: Sequence[str], rows: Iterable[Sequence]):
        """A table; header is empty for one without a header. Columns of numbers end in line."""
        rows = [[str(cell) for cell in row] for row in rows]
        numeric = [all(map(NUMBER.fullmatch, column)) for column in zip(*rows)]
        self._add('table', header=header, rows=rows, numeric=numeric)

    def long_table(self, summary: str, header: Sequence[str], rows: Sequence[Sequence]):
        """A table, folded under its summary where it has more than MANY rows."""
        with self.folded(summary) if len(rows) > MANY else contextlib.nullcontext():
            self.table(header, rows)

    def figure(self, name: str, caption: str, figure: Figure, alt: str | None = None):
        """A picture `name`.svg; the caption says what is plotted, in which unit.

        alt: what is to be seen in it, for those who cannot see it (default: the caption).
        """
        svg = io.BytesIO()
        with rc_context({'svg.hashsalt': name}):        # the same file from the same numbers
            figure.savefig(svg, format='svg', dpi=RASTER, transparent=True,
                           metadata={'Date': None})
        self.pictures[f'{name}.svg'] = svg.getvalue()
        width, height = (round(CSS_PIXELS * inches) for inches in figure.get_size_inches())
        self._add('figure', file=f'{name}.svg', caption=unbroken(caption), alt=alt or caption,
                  width=width, height=height, narrowest=round(SHRINKS * width))

    @contextlib.contextmanager
    def folded(self, summary: str) -> Iterator[None]:
        """Fold what the block adds; readers open it by `summary`."""
        outside, part = self._inside, self._add('folded', summary=summary, parts=[])
        self._inside = part.parts
        try:
            yield
        finally:
            self._inside = outside

    def save(self, folder: Path) -> Path:
        """Write the page and its pictures, for those of an earlier report; returns its path.

        They replace the earlier ones when all are written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        earlier = set(re.findall(r'<img src="([\w-]+\.(?:png|svg))"', earlier_page(folder)))
        with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=folder) as unfinished:
            for name, picture in self.pictures.items():
                Path(unfinished, name).write_bytes(picture)
            Path(unfinished, 'index.html').write_text(self.html(), encoding='utf-8')
            with interrupt.deferred():
                for name in *self.pictures, 'index.html':
                    replace(Path(unfinished, name), folder / name)
                for name in earlier - self.pictures.keys():
                    (folder / name).unlink(missing_ok=True)
        return folder / 'index.html'

    def html(self) -> str:
        first = self.parts.index(self.headings[0]) if self.headings else len(self.parts)
        return render(TEMPLATE, title=self.title, generator=GENERATOR, headings=self.headings,
                      intro=self.parts[:first], parts=self.parts[first:])


def unbroken(text: str) -> str:
    """The text with no line break between a number and %."""
    return text.replace(' %', '\u00a0%')


def earlier_page(folder: Path) -> str:
    """The text of the page that an earlier report left in the folder; '' if there is none."""
    index = folder / 'index.html'
    text = index.read_text(encoding='utf-8', errors='replace') if index.is_file() else ''
    return text if f'<meta name="generator" content="{GENERATOR}">' in text else ''


def check_folder(folder: Path, overwrite: bool):
    """Raise InputError where a page in the folder could not be written or would replace files."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f'{existing} is a file; give a folder')
    if not os.access(existing, os.W_OK):
        raise InputError(f'{existing} is write-protected; give another folder')
    if existing != folder or not [path for path in folder.iterdir()
                                  if not path.name.startswith(UNFINISHED)]:
        return
    if not earlier_page(folder):
        raise InputError(f'{folder} holds other files than a report; give another folder')
    if not overwrite:
        raise InputError(f'{folder} holds an earlier report: --overwrite replaces it, '
                         '--out=DIR writes elsewhere')
