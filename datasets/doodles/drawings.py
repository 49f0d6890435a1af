"""The drawings of the doodles, one function per class.

A class is a generator function, registered with @doodle, that yields strokes; `hand` makes its
choices. A new class is one more function. It changes the labels of all that follow in the alphabet.
"""
import numpy as np

from .pen import arc, bow, box, direction, line, loop, wave

DOODLES: dict = {}


def doodle(strokes):
    """Register the generator function `strokes(hand)` as the class of its name."""
    DOODLES[strokes.__name__] = strokes
    return strokes


@doodle
def boat(hand):
    deck, keel, depth, mast = hand(.8, 1.1), hand(.4, .7), hand(.25, .5) * 1j, hand(-.2, .2)
    yield loop(deck, keel + depth, -keel + depth, -deck)
    if hand.maybe(.3):
        yield box(-keel, 2 * keel, -.3)
        yield from (box(x - .3j, .15, -hand(.2, .6)) for x in (-.3, .1))
    else:
        top = mast - hand(.8, 1.5) * 1j
        yield line(mast, top)
        for reach in (hand(.4, .8), -hand(.3, .7))[:hand.randint(1, 2)]:
            yield loop(top, mast - .1j, mast - .1j + reach)
    if hand.maybe(.4):
        yield wave(depth - 1.3, depth + 1.3, hand.randint(3, 6), .02)


@doodle
def cat(hand):
    w, h, ear, eye = hand(.55, .8), hand(.5, .65), hand(.35, .6), hand(.05, .13)
    yield arc(0, w, h)
    yield loop(.12j - .07, .12j + .07, .22j)
    yield wave(.3j - .25, .3j + .25, 1, hand(-.15, .15))
    for side in (w, -w):
        yield line(side * .95 - h * .4j, side * .85 - (h * .6 + ear) * 1j, side * .3 - h * .95j)
        yield arc(side * .4 - .1j, eye, eye * hand(.6, 1.3))
        for _ in hand.times(2, 3):
            yield line(side * .4 + .2j, side * 1.3 + hand(0, .5) * 1j)
    if hand.maybe(.4):
        yield arc(h * 1j + .6j, w * hand(.7, 1), .65, .8, 1.7)
        yield wave(w * .8 + 1.1j, w * 1.7 + hand(.3, .9) * 1j, 1, .2)


@doodle
def cloud(hand):
    w, h, bumps, flat = hand(.8, 1.2), hand(.35, .65), hand.randint(5, 10), hand.maybe(.35)
    yield arc(0, w, h, .5 * flat, 1, bumps, hand(.15, .45))
    if flat:
        yield line(w, -w)
    if hand.maybe(.3):
        yield arc(w * .9 + h * .9j, w * .5, h * .5, 0, 1, bumps - 1, .3)
    for k in hand.times(3, 6, .3):
        yield line(w * (.3 * k - .8) + h * 1.5j, w * (.3 * k - .9) + h * hand(2, 2.6) * 1j)


@doodle
def face(hand):
    w, h, eye, fringe = hand(.65, 1), hand(.8, 1.05), hand(.05, .16), hand(.3, 1)
    hair = hand.choice(('none', 'short', 'long'))
    yield arc(0, w, h)
    yield bow(-.4 + h * .5j, .4 + h * .5j, hand(-.2, .4))
    for side in (1, -1):
        yield arc(side * w * .4 - h * .25j, eye, eye * hand(.6, 1.2))
        if hair == 'long':
            yield bow(-h * 1j, side * w * 1.2 + h * fringe * 1j, -.4 * side)
    for _ in hand.times(5, 12, hair == 'short'):
        root = direction(hand(.6, .9))
        yield line(w * root.real + h * root.imag * 1j, 1.3 * root * h)
    if hand.maybe(.7):
        yield line(-.1j, hand(.1, .2) + .2j, .2j)


@doodle
def fish(hand):
    fat, tail, fork = hand(.15, .32), hand(.25, .5), hand(0, .3)
    yield from (bow(-1, .7, sag) for sag in (fat, -fat))
    yield loop(.7, .7 + tail - tail * 1j, .7 + tail - fork, .7 + tail + tail * 1j)
    yield arc(-.65 - fat * .3j, hand(.03, .1))
    if hand.maybe(.5):
        yield bow(-.4 - fat * 1j, -.4 + fat * 1j, -.2)
    if hand.maybe(.5):
        yield line(-.3 - fat * 1.5j, hand(-.1, .1) - fat * 3j, .3 - fat * 1.2j)
    for _ in hand.times(3, 8, .5):
        yield arc(hand(-.25, .35) + fat * hand(-.8, .8) * 1j, .1, .1, .25, .75)


@doodle
def flower(hand):
    heart, petal, n, phase = hand(.15, .35), hand(.25, .45), hand.randint(4, 9), hand(0, 1)
    wide, top = petal * hand(.5, 1), (heart + 2 * petal) * 1j
    foot = top + hand(-.3, .3) + hand(.6, 1.5) * 1j
    yield arc(0, heart)
    if hand.maybe(.35):
        yield arc(0, heart + petal, bumps=n, height=hand(.3, .6))
    else:
        yield from (direction(phase + k / n) * arc(heart + petal, petal, wide) for k in range(n))
    if hand.maybe(.8):
        yield bow(top, foot, hand(-.15, .15))
        for side in (1, -1)[:hand.randint(0, 2)]:
            tip = foot + side * hand(.3, .6) - hand(.2, .5) * 1j
            yield from (bow(foot - .1j, tip, sag) for sag in (-.2, .2))


@doodle
def house(hand):
    w, h, roof, ridge = hand(.6, 1.1), hand(.6, 1), hand(.4, .9) * 1j, hand.choice((0, 0, .3, .5))
    eave, size, walls = w + hand(0, .25), w * hand(.3, .45), hand.sample((-.6, 0, .6), 3)
    yield box(-w, 2 * w, h)
    yield loop(-eave, -ridge - roof, ridge - roof, eave)
    yield box(w * (walls[0] - .2) + h * 1j, w * .4, -h * hand(.5, .7))
    for k in hand.times(1, 2, .7):
        pane = w * walls[k + 1] + h * .4j
        yield box(pane - size * (.5 + .5j), size, size)
        yield from (line(pane - size * d, pane + size * d) for d in (.5, .5j) if hand.maybe(.5))
    if hand.maybe(.4):
        yield box(w * .4 - roof * .4, .2, -hand(.4, .7))


@doodle
def key(hand):
    along, ring, length = direction(hand(-.25, .25)), hand(.3, .5), hand(.9, 1.6)
    thick, tooth = hand.choice((0, hand(.06, .14))) * 1j, hand(.06, .12)
    yield along * arc(-ring, ring, ring * hand(.7, 1.2), bumps=hand.choice((0, 0, 3)), height=.3)
    if hand.maybe(.5):
        yield along * arc(-ring * hand(1, 1.4), ring * hand(.2, .6))
    yield along * line(-thick, length - thick, length + thick, thick)
    for k in hand.times(2, 4):
        end, depth = length - 2 * tooth * k + thick, hand(.15, .35) * 1j
        yield along * line(end, end + depth, end + depth - tooth, end - tooth)


@doodle
def mug(hand):
    top, foot, h, ear, grip = hand(.5, .8), hand(.4, .8), hand(.5, 1), hand(.3, .6), hand(.4, .7)
    yield arc(-h * 1j, top, hand(.08, .2))
    yield from (line(side * top - h * 1j, side * foot + h * 1j) for side in (-1, 1))
    yield bow(-foot + h * 1j, foot + h * 1j, hand(0, .15))
    for inset in (0, .13)[:hand.randint(1, 2)]:
        yield arc((top + foot) / 2, ear - inset, h * grip - inset, -.25, .25)
    for k in hand.times(2, 3, .4):
        yield wave(.3 * k - .3 - (h + .3) * 1j, .3 * k - .3 - (h + hand(.6, .9)) * 1j, 1, .12)


@doodle
def star(hand):
    n, inner = hand.choice((4, 5, 5, 5, 6, 7, 8)), hand(.3, .55)
    outline = [(inner if k % 2 else 1) * direction(k / n / 2 - .25) for k in range(2 * n)]
    pentagram = [direction(.4 * k - .25) for k in range(5)]
    yield loop(*(pentagram if hand.maybe(.25) else outline))
    if hand.maybe(.2):
        yield loop(*outline) * hand(.5, .8)
    for tip in outline[::2] if hand.maybe(.2) else ():
        yield line(0, tip)


@doodle
def sun(hand):
    disc, n, phase, kind = hand(.35, .6), hand.randint(6, 16), hand(0, 1), hand.randint(0, 3)
    inside, outside, half = disc + hand(0, .15), disc + hand(.3, .6), direction(.3 / n)
    yield arc(0, disc)
    for out in (direction(phase + k / n) for k in range(n)):
        yield (wave(out * inside, out * outside, 1, .15) if kind == 0 else
               line(out * disc * half, out * outside, out * disc / half) if kind == 1 else
               line(out * inside, out * outside * hand(.8, 1)))
    if hand.maybe(.3):
        yield from (arc(disc * (x - .2j), disc * .1) for x in (-.35, .35))
        yield bow(disc * (-.45 + .3j), disc * (.45 + .3j), .25)


@doodle
def tree(hand):
    trunk, h, w, crown = hand(.08, .25), hand(.5, 1.1), hand(.5, 1), hand(.5, .9)
    tiers = hand.choice((0, 0, 0, 1, 2, 3, 4))
    yield from (line(side * trunk, side * trunk * hand(1, 1.8) + h * 1j) for side in (1, -1))
    for k in range(tiers):
        half, tip = w * (1 - .18 * k), (crown / tiers + .6) * 1j
        yield loop(-half - .5j * k, -.5j * k - tip, half - .5j * k)
    if not tiers:
        yield arc(-crown * .9j, w, crown, bumps=hand.randint(5, 12), height=hand(0, .3))
        for _ in hand.times(2, 6, .4):
            yield arc(hand(-.6, .6) * w - crown * hand(.4, 1.4) * 1j, .07)
    if hand.maybe(.3):
        yield line(-1 + h * 1j, 1 + h * 1j)


@doodle
def umbrella(hand):
    h, ribs, hook, grip = hand(.6, 1), hand.randint(1, 5), hand(.12, .25), hand(.7, 1.3) * 1j
    edge, sag = np.linspace(-1, 1, ribs + 2), hand.choice((0, -.2, -.3))
    yield arc(0, 1, h, .5, 1)
    yield line(-h * hand(1, 1.15) * 1j, grip)
    yield arc(grip + hook, hook, hook * 1.2, .5, 0)
    yield from (bow(a, b, sag) for a, b in zip(edge, edge[1:]))
    if hand.maybe(.6):
        yield from (bow(-h * 1j, x, .15 * x) for x in edge[1:-1])
