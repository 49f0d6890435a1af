"""Strokes, and the pen that draws them with the unsteadiness of a hand.

Strokes are polylines of complex numbers x + yj in units of about half a drawing, y pointing down:
rotation and scaling are products, translation is a sum.
"""
import cmath
import random

import numpy as np
from PIL import Image, ImageDraw


class Hand(random.Random):
    """The random choices of one drawing: `hand(low, high)` is a number between the two."""
    __call__ = random.Random.uniform

    def maybe(self, probability):
        return self.random() < probability

    def times(self, fewest, most, probability=1):
        """With this probability range(n) for an n from `fewest` to `most`, else an empty range."""
        return range(self.randint(fewest, most) if self.maybe(probability) else 0)


def direction(turns):
    """The unit vector at an angle in turns: 0 points right, .25 down, .75 up."""
    return cmath.exp(2j * cmath.pi * turns)


def line(*points):
    return np.array(points, complex)


def loop(*points):
    return line(*points, points[0])


def box(corner, width, height):
    return loop(corner, corner + width, corner + width + 1j * height, corner + 1j * height)


def bow(start, end, sag):
    """A bent line, at most the share `sag` of its length to the right of the straight one."""
    t = np.linspace(0, 1, 13)
    return start + (end - start) * (t + 4j * sag * t * (1 - t))


def wave(start, end, periods, height):
    """A sine along a straight line, its amplitude the share `height` of the length."""
    t = np.linspace(0, 1, 8 * periods + 1)
    return start + (end - start) * (t + 1j * height * np.sin(2 * np.pi * periods * t))


def arc(center, rx, ry=None, start=0, end=1, bumps=0, height=0):
    """An ellipse, or its part between two angles in turns, with bumps outwards."""
    angle = 2 * np.pi * np.linspace(start, end, 25 + 6 * bumps)
    radius = 1 + height * np.abs(np.sin(bumps * angle / 2))
    return center + radius * (rx * np.cos(angle) + 1j * (ry or rx) * np.sin(angle))


def draw(strokes, hand, side):
    """Draw strokes in ink (0) on white paper (255): a PIL image, mode 'L', side x side pixels."""
    wobble, fine_side = hand(.4, 1.2), 2 * side
    sampled = [_sample(stroke, hand, wobble) for stroke in strokes]
    ends = np.cumsum([len(stroke) for stroke in sampled])
    ink = np.concatenate(sampled)
    for size, rate in (.12, 1), (.05, 2.5):
        ink += _ripple(hand, (ink * direction(hand.random())).real, size, rate)
    for size, rate in (.03, 2), (.015, 6), (.008, 19):
        ink += _ripple(hand, .05 * np.arange(len(ink)), wobble * size, rate)
    tilt = direction(hand(-.03, .03))
    ink = tilt * (ink.real * hand(.8, 1.25) * hand.choice((1, -1)) + 1j * ink.imag)
    ink -= complex(ink.real.min(), ink.imag.min())
    ink *= hand(.55, .88) / max(ink.real.max(), ink.imag.max())
    ink += complex(hand(.06, .94 - ink.real.max()), hand(.06, .94 - ink.imag.max()))

    paper = Image.new('L', (fine_side, fine_side), 255)
    pen, width = ImageDraw.Draw(paper), round(fine_side * hand(.008, .022))
    for stroke in np.split(fine_side * ink, ends[:-1]):
        pen.line(stroke.view(float).tolist(), fill=0, width=width)
    return paper.reduce(2)


def _sample(stroke, hand, wobble):
    """Points every .05 units along the stroke, which misses its ends; a loop begins anywhere."""
    closed = abs(stroke[0] - stroke[-1]) < 1e-9
    if closed:
        stroke = np.append(stroke, stroke[1:])
    else:
        stroke[[0, -1]] += wobble * hand(-.02, .06) * (stroke[[0, -1]] - stroke[[1, -2]])
    distance = np.append(0, np.abs(stroke[1:] - stroke[:-1]).cumsum())
    begin, end = 0, distance[-1]
    if closed:
        begin = hand(0, .45) * distance[-1]
        end = begin + distance[-1] * (.5 + wobble * hand(-.01, .02))
    step = min(.05, (end - begin) / 8)
    return np.interp(np.arange(begin, end + step, step), distance, stroke)


def _ripple(hand, x, size, rate):
    """A sine of x in units, of random direction and phase; `rate` is in radians per unit."""
    return size * direction(hand.random()) * np.sin(rate * x + hand(0, 7))
