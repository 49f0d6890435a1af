"""The page to draw on: what its server refuses, what the network sees, and a person in a
browser."""
import json
import random
import shutil
import signal
import socket
import threading
import time
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import main
from datasets.doodles import CLASSES, DOODLES
from datasets.doodles.pen import Hand, line
from utils import experiment
from utils.draw import __main__ as draw
from utils.draw import server as serving
from utils.draw.drawing import (FRAMES, MAX_BYTES, MAX_POINTS, BadDrawing, frame_of, sketch,
                                strokes_of)
from utils.draw.recognizer import Recognizer
from utils.draw.server import Server

CAT = [list(map(complex, stroke)) for stroke in DOODLES['cat'](Hand(0))]
STROKES = [np.array(stroke) for stroke in CAT]


def as_json(strokes):
    return json.dumps({'strokes': [np.asarray(stroke).view(float).tolist()
                                   for stroke in strokes]}).encode()


def untrained(path, folder, *flags):
    """The checkpoint of a network that has only seen the images in `folder`, for its BatchNorm."""
    one = experiment.from_command(['--dataset=tuberlin', f'--data_dir={folder}', '--workers=0',
                                   '--batch-size=36', *flags])
    network, (loader, _) = one.make_network(), one.make_loaders()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for images, _ in loader:
            network.train()(images)
    torch.save({'epoch': 1, 'best': 50., 'metrics': {'top1': 50., 'top5': 100., 'images': 12},
                'flags': vars(one.flags), 'classes': one.classes,
                'channels': one.channels, 'training_images': None, 'model': network.state_dict(),
                'optimizer': {'state': {}},
                'scaler': None, 'rng': {'cpu': torch.get_rng_state(), 'cuda': []}}, path)


@pytest.fixture(scope='module')
def runs(sketch_folder, tmp_path_factory):
    """Checkpoints of small networks on three classes, two of them packed as well."""
    folder = tmp_path_factory.mktemp('runs')
    for name, *flags in (['wbin', '--model_def=bincifar', '--binaryWeight'],
                         ['fbin', '--model_def=bincifarfbin', '--binaryWeight'],
                         ['real', '--model_def=bincifar'],
                         ['light', '--model_def=bincifar', '--ink=light']):
        untrained(folder / f'{name}.pth.tar', sketch_folder, '--inpsize=16', *flags)
    for name in 'wbin', 'fbin':
        main.main([f'--resume={folder}/{name}.pth.tar', f'--export={folder}/{name}.dab'])
    return folder


@pytest.fixture(scope='module')
def recognizer(runs):
    return Recognizer(draw.sketch_source(f'{runs}/fbin.dab'))


class Served:
    def __init__(self, server):
        self.server, self.port = server, server.server_port
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()

    def send(self, request, wait=10):
        """The whole response to these bytes."""
        with socket.create_connection(('127.0.0.1', self.port), wait) as connection:
            connection.sendall(request)
            response = b''
            while part := connection.recv(2 ** 16):
                response += part
        return response

    def ask(self, request='POST /answer', body=None, **headers):
        """(status, headers and body) of a request as the page makes it, but for these headers; None
        leaves one out."""
        body = as_json(STROKES) if body is None else body
        sent = {'Host': f'127.0.0.1:{self.port}'}
        if request.startswith('POST'):
            sent |= {'Origin': f'http://127.0.0.1:{self.port}', 'Sec-Fetch-Site': 'same-origin',
                     'Content-Type': 'application/json',
                     'Content-Length': len(body)}
        sent |= {name.replace('_', '-'): value for name, value in headers.items()}
        lines = [f'{request} HTTP/1.1',
                 *(f'{name}: {value}' for name, value in sent.items() if value is not None), '', '']
        response = self.send('\r\n'.join(lines).encode() + body
                             * request.startswith('POST')).decode()
        assert response, 'no response'
        return int(response.split()[1]), response

    def answer(self):
        status, response = self.ask()
        assert status == 200, response
        return json.loads(response.partition('\r\n\r\n')[2])


@pytest.fixture(scope='module')
def served(recognizer, runs):
    page = draw.render(draw.TEMPLATE,
                       **draw.facts(draw.sketch_source(f'{runs}/fbin.pth.tar'), recognizer))
    with Server(page, recognizer.answer) as server:
        server.warm_up()
        yield Served(server)
        server.shutdown()


# ---- what the network sees

@pytest.mark.parametrize('dataset', FRAMES)
def test_a_drawing_is_framed_and_inked_like_the_training_images(dataset):
    frame = frame_of(dataset)
    images = [sketch(strokes, frame) for strokes in (
        STROKES, [stroke + 3000 - 7j for stroke in STROKES], [7.3 * stroke for stroke in STROKES],
        [stroke / 100 for stroke in STROKES],
        [np.interp(np.linspace(0, 1, 2 * len(stroke) - 1), np.linspace(0, 1, len(stroke)), stroke)
         for stroke in STROKES])]
    assert images[0].size == (frame.side, frame.side) and images[0].mode == 'L'
    first, *others = (np.asarray(image).astype(int) for image in images)
    for other in others:
        assert (np.abs(first - other) > 8).mean() < 0.002
    rows, columns = np.nonzero(first < 192)
    sides = [np.ptp(places) + 1 for places in (rows, columns)]
    assert max(sides) == pytest.approx(frame.side * (frame.extent + frame.pen), abs=2)
    assert [places.min() + np.ptp(places) / 2
            for places in (rows, columns)] == pytest.approx([frame.side / 2 - .5] * 2, abs=1)
    # a vertical line
    bar = (255 - np.asarray(sketch([np.array([0, 100j])], frame)).astype(float)) / 255
    assert bar[frame.side // 2].sum() == pytest.approx(frame.side * frame.pen, rel=0.15)


def test_the_pen_is_that_of_the_doodles():
    """The share of ink in framed doodles is between those of the thinnest and the thickest pen, as
    they are drawn."""
    from datasets.doodles import Doodles
    own = [1 - np.asarray(image).mean() / 255
           for image, _ in (Doodles('val')[index] for index in range(39))]
    framed = [1
              - np.asarray(sketch([*DOODLES[CLASSES[index % 13]](Hand(index))],
                                  frame_of('doodles'))).mean() / 255 for index in range(39)]
    assert np.mean(framed) == pytest.approx(np.mean(own), rel=0.15)


def test_dots_and_endless_ink():
    for dataset in FRAMES:
        frame = frame_of(dataset)
        ink = 255 - np.asarray(sketch([np.array([5 + 5j])], frame)).astype(float)
        assert 0 < ink.sum() / 255 < 2 * (frame.side * frame.pen + 1) ** 2
        assert ink[frame.side // 2 - 1:frame.side // 2 + 1].sum() > ink.sum() / 2
        assert sketch([np.array([5 + 5j]), np.array([0, 10, 10 + 10j])], frame)
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    sketch([rng.random(2 * MAX_POINTS).view(complex)], frame_of('tuberlin'))
    assert time.perf_counter() - start < 5


def test_light_ink(runs):
    seen, other = (Recognizer(draw.sketch_source(f'{runs}/{name}.pth.tar')).seen(STROKES)
                   for name in ('light', 'wbin'))
    assert torch.equal(seen, other)


def test_other_data_has_the_frame_of_tuberlin():
    assert frame_of('folder:mine') == frame_of('tuberlin') != frame_of('doodles')


# ---- what the network answers

def classified(capsys, flag, path, image):
    capsys.readouterr()
    main.main([f'--{flag}={path}', '--classify', str(image)])
    shares = capsys.readouterr().out.partition(': ')[2].strip().split(', ')
    return [(share.split()[0], float(share.split()[1])) for share in shares]


@pytest.mark.parametrize('name, flag, expected', [
    ('wbin.pth.tar', 'resume', 'float32 with two-valued weights'),
    ('wbin.dab', 'packed', 'float32 with two-valued weights'),
    ('fbin.pth.tar', 'resume', 'bits in 6 of 8 convolutions, float32 in the others'),
    ('fbin.dab', 'packed', 'bits in 6 of 8 convolutions, float32 in the others'),
    ('real.pth.tar', 'resume', 'float32')])
def test_it_answers_what_classify_does(runs, tmp_path, capsys, name, flag, expected):
    recognizer = Recognizer(draw.sketch_source(f'{runs}/{name}'))
    assert recognizer.arithmetic == expected
    sketch(STROKES, recognizer.frame).save(tmp_path / 'drawing.png')
    answer = recognizer.answer(STROKES)
    found = classified(capsys, flag, f'{runs}/{name}', tmp_path / 'drawing.png')
    assert [label for label, _ in answer['likeliest']] == [label for label, _ in found]
    for (_, share), (_, percent) in zip(answer['likeliest'], found):
        assert 100 * share == pytest.approx(percent, abs=0.06)


def test_without_the_kernel_nothing_is_said_to_compute_on_bits(runs, monkeypatch):
    monkeypatch.setattr('utils.draw.recognizer.has_kernel', lambda: False)
    assert Recognizer(
        draw.sketch_source(f'{runs}/fbin.dab')).arithmetic == 'float32 with two-valued weights'


def picture(url):
    import base64
    return Image.open(BytesIO(base64.b64decode(url.removeprefix('data:image/png;base64,'))))


def test_the_picture_is_what_the_network_saw(served, recognizer):
    answer = served.answer()
    shown = np.asarray(picture(answer['seen'])).astype(float)
    mean, std = (values[0] for values in datasets.normalization('tuberlin'))
    np.testing.assert_allclose(255 * (1 - (recognizer.seen(STROKES)[0].numpy() * std + mean)),
                               shown, atol=0.51)
    assert 0 < answer['network_ms'] < answer['total_ms'] and len(answer['likeliest']) == 3


def test_names_reach_the_page_as_printable_text(runs, tmp_path):
    name, path = '\033]0;title\07a\u202e', tmp_path / 'a\033b.pth.tar'
    torch.save(torch.load(runs / 'fbin.pth.tar') | {'classes': [name, 'b', 'c']}, path)
    source = draw.sketch_source(str(path))
    recognizer = Recognizer(source)
    page = draw.render(draw.TEMPLATE, **draw.facts(source, recognizer))
    assert all(line.isprintable() for line in page.split('\n')) and r'a\x1bb.pth.tar' in page
    # in its script: what to type to start it again
    assert 'a\\\\x1bb.pth.tar' in page and '\\u001b' not in page
    named = [guess for guess, _ in recognizer.answer([np.zeros(1, complex)])['likeliest']]
    assert sorted(named) == [r'\x1b]0;title\x07a\u202e', 'b', 'c']


def test_weights_are_binarized_once(runs, monkeypatch):
    from torch.nn.utils import parametrize

    from utils import binarize
    recognizer, calls = Recognizer(draw.sketch_source(f'{runs}/wbin.pth.tar')), []
    parametrization, = {type(conv.parametrizations.weight[0])
                        for _, conv in binarize.binarized(recognizer.network)}
    forward = parametrization.forward
    monkeypatch.setattr(parametrization, 'forward', lambda self, weight: calls.append(self)
                        or forward(self, weight))

    def serve(options, source, recognizer):
        with Server('', recognizer.answer) as server:
            for _ in range(3):
                server.warm_up()
    monkeypatch.setattr(draw, 'serve', serve)
    monkeypatch.setattr(draw, 'Recognizer', lambda source: recognizer)
    draw.main([f'{runs}/wbin.pth.tar'])
    assert len(calls) == len(set(calls)) == 6 and not parametrize._cache_enabled


# ---- what the server refuses

def test_the_page_and_its_headers(served):
    status, response = served.ask('GET /')
    head, _, page = response.partition('\r\n\r\n')
    assert status == 200 and '<canvas' in page and 'bincifarfbin' in page and 'ring' in page
    # nothing from elsewhere
    assert not any(word in page for word in ('http:', 'https:', 'src="/', '@import'))
    for header in ("default-src 'none'", "frame-ancestors 'none'", 'nosniff', 'no-store',
                   'no-referrer'):
        assert header in head
    assert 'unsafe' not in head and 'Python' not in head
    assert served.ask('GET /', Host='localhost:9999')[0] == 200      # through a tunnel
    # a link somewhere
    assert served.ask('GET /', Sec_Fetch_Site='cross-site', Sec_Fetch_Mode='navigate')[0] == 200


@pytest.mark.parametrize('status, request_line, headers', [
    (403, 'GET /', dict(Host=None)), (403, 'GET /', dict(Host='evil.example')),
    (403, 'GET /', dict(Host='127.0.0.1.evil.example:80')),
    (403, 'GET /', dict(Host='[::1]')),
    (403, 'GET /', dict(Sec_Fetch_Site='cross-site', Sec_Fetch_Mode='no-cors')),
    (403, 'POST /answer', dict(Host='evil.example', Origin='http://evil.example')),
    (403, 'POST /answer', dict(Origin='http://evil.example')),
    (403, 'POST /answer', dict(Origin='null')),
    (403, 'POST /answer', dict(Origin='http://127.0.0.1:1')),
    (403, 'POST /answer', dict(Origin='http://localhost')),
    (403, 'POST /answer', dict(Sec_Fetch_Site='cross-site')),
    (403, 'POST /answer', dict(Sec_Fetch_Site='same-site')),
    (403, 'POST /answer', dict(Sec_Fetch_Site='cross-site', Sec_Fetch_Mode='navigate')),
    (404, 'GET /etc/passwd', {}), (404, 'GET /../main.py', {}), (404, 'GET http://127.0.0.1/', {}),
    (404, 'POST /classify', {}),
    (405, 'GET /answer', {}), (405, 'POST /', {}), (405, 'PUT /', {}), (405, 'OPTIONS /answer', {}),
    (405, 'HEAD /', {}),
    (415, 'POST /answer', dict(Content_Type='text/plain')),
    (415, 'POST /answer', dict(Content_Type=None)),
    (400, 'POST /answer', dict(Content_Length=None)),
    (400, 'POST /answer', dict(Content_Length='-1')),
    (400, 'POST /answer', dict(Content_Length='x')),
    (400, 'POST /answer', dict(Content_Length=None, Transfer_Encoding='chunked')),
    (413, 'POST /answer', dict(Content_Length=MAX_BYTES + 1)),
    (413, 'POST /answer', dict(Content_Length='9' * 15)),
    (431, 'GET /', dict(X='x' * 70000)), (414, f'GET /{"x" * 70000}', {}),
    (400, 'GET / x x x', {})])
def test_refusals(served, status, request_line, headers):
    found, response = served.ask(request_line, **headers)
    head, _, text = response.partition('\r\n\r\n')
    assert found == status, response
    assert 'text/plain' in head
    assert len(text) < 80
    assert 'Traceback' not in text
    assert ('Allow: ' in head) == (status == 405)


@pytest.mark.parametrize('body', [
    b'', b'{', b'[]', b'{}', b'null', b'\xff\xfe', b'[' * 100000, b'{"strokes": 1}',
    b'{"strokes": []}', b'{"strokes": [[]]}',
    b'{"strokes": [[1]]}', b'{"strokes": [[1, 2, 3]]}', b'{"strokes": [["1", 2]]}',
    b'{"strokes": [[true, 2]]}', b'{"strokes": [[null, 2]]}',
    b'{"strokes": [[NaN, 2]]}', b'{"strokes": [[Infinity, 2]]}', b'{"strokes": [[1e999, 2]]}',
    b'{"strokes": [[1e7, 2]]}',
    b'{"strokes": [[[1], 2]]}', b'{"strokes": [[' + b'1' * 5000 + b', 2]]}', as_json([[0j]] * 1001),
    as_json([[0j] * (MAX_POINTS + 1)])])
def test_what_is_not_a_drawing(served, body):
    with pytest.raises(BadDrawing):
        strokes_of(body)
    status, response = served.ask(body=body)
    assert status == 400 and len(response.partition('\r\n\r\n')[2]) < 80


def test_the_largest_drawing_fits():
    assert len(strokes_of(as_json([[-99.5 + 999.9j] * (MAX_POINTS // 1000)] * 1000))) == 1000
    assert len(as_json([[999.9 + 999.9j] * MAX_POINTS])) < MAX_BYTES


def test_slow_requests_end(served, monkeypatch):
    monkeypatch.setattr(serving, 'DEADLINE', 0.3)
    head = f'POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {10 ** 5}\r\n\r\n'
    start = time.monotonic()
    for beginning in b'', b'GET / HT', b'GET / HTTP/1.1\r\nHost: loc', head.encode():
        with socket.create_connection(('127.0.0.1', served.port), 10) as connection:
            connection.sendall(beginning)
            try:
                while not select_readable(connection, 0.02):      # slowly, a byte at a time
                    connection.sendall(b' ' if beginning else b'')
                response = connection.recv(1000)
            except (ConnectionResetError, BrokenPipeError):
                response = b''
        assert response[:12] in (b'', b'HTTP/1.0 400', b'HTTP/1.0 408'), response
        if beginning == head.encode():
            assert b' 408 ' in response
    assert time.monotonic() - start < 4
    monkeypatch.undo()
    assert served.answer()


def select_readable(connection, seconds):
    import select
    return select.select([connection], [], [], seconds)[0]


def test_many_idle_connections_do_not_stop_it(served, monkeypatch):
    monkeypatch.setattr(serving, 'DEADLINE', 0.3)
    idle = [socket.create_connection(('127.0.0.1', served.port))
            for _ in range(serving.MAX_CONNECTIONS + 8)]
    deadline = time.monotonic() + 10
    while True:
        try:
            served.answer()
            break
        except (AssertionError, ConnectionError):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    for connection in idle:
        connection.close()


def malformed(rng, port):
    """A request that a browser does not send: random bytes, or a good one with bytes changed, cut,
    doubled."""
    body = as_json(STROKES[:3])
    good = (f'POST /answer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n'
            f'Content-Length: {len(body)}\r\n\r\n').encode() + body
    kind = rng.randrange(4)
    if kind == 0:
        return rng.randbytes(rng.randrange(300)) + b'\r\n\r\n'
    data = bytearray(good)
    if kind == 1:
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        del data[rng.randrange(len(data)):]
    else:
        start = rng.randrange(len(data))
        data[start:start] = rng.choice([b'\r\n', b'\0', b'9' * 400, data[start:], b'"', b'[' * 5000,
                                        b'-', b'e9', '∞'.encode()])
    return bytes(data)


@pytest.mark.parametrize('count', [60, pytest.param(1000, marks=pytest.mark.soak)])
def test_malformed_requests_leave_it_alive(served, count, capfd):
    rng = random.Random(0)
    for _ in range(count):
        with socket.create_connection(('127.0.0.1', served.port), 30) as connection:
            try:
                connection.sendall(malformed(rng, served.port))
                connection.shutdown(socket.SHUT_WR)
                response = b''
                while part := connection.recv(2 ** 16):
                    response += part
            except (ConnectionResetError, BrokenPipeError):
                continue
        assert b'Traceback' not in response and (not response or b'\r\n\r\n' in response)
    assert served.answer()
    out = capfd.readouterr()
    assert out.out == out.err == ''


def test_a_bug_is_one_line_and_ends_nothing(served, monkeypatch, capfd):
    def broken(strokes):
        raise KeyError('x\ny')
    monkeypatch.setattr(served.server, 'answer', broken)
    assert served.ask()[0] == 500
    assert capfd.readouterr().err == "utils.draw: error: KeyError: 'x\\ny'\n"
    monkeypatch.undo()
    assert served.answer()


# ---- the command

def error_of(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        draw.main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(
        'utils.draw: error: ') and error.count('\n') == 1, error
    return error


def test_mistakes_get_a_sentence(runs, served, tmp_path, capsys):
    (tmp_path / 'text.pth.tar').write_text('text')
    checkpoint = f'{runs}/wbin.pth.tar'
    assert 'nothing.dab' in error_of(capsys, 'nothing.dab')
    assert 'text.pth.tar' in error_of(capsys, tmp_path / 'text.pth.tar')
    assert f'--port={served.port}: ' in error_of(capsys, checkpoint, f'--port={served.port}')
    assert '--port' in error_of(capsys, checkpoint, '--port=65536')
    assert '--port' in error_of(capsys, checkpoint, '--port=http')
    assert 'CHECKPOINT_OR_PACKED' in error_of(capsys)


def test_photographs_are_refused(sketch_folder, tmp_path, capsys):
    untrained(tmp_path / 'birds.pth.tar', sketch_folder, '--dataset=folder:birds', '--channels=3',
              '--model_def=bincifar', '--inpsize=8')
    error = error_of(capsys, tmp_path / 'birds.pth.tar')
    assert '3 channels' in error and 'birds' in error and 'sketches' in error


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_quietly(runs, start, number):
    command = start(draw.main, [f'{runs}/fbin.dab'])
    command.wait_for(lambda: command.outputs[0].exists()
                     and 'http://127.0.0.1:' in command.outputs[0].read_text())
    port = int(command.outputs[0].read_text().split('127.0.0.1:')[1].split('/')[0])
    idle = socket.create_connection(('127.0.0.1', port))     # holds nothing up
    begin = time.monotonic()
    command.send(number)
    code, out, error = command.wait()
    assert (code, error) == (0, '') and time.monotonic() - begin < 3 and '(Ctrl-C ends it)' in out
    idle.close()


@pytest.mark.parametrize('environment, opened', [
    ({'DISPLAY': ':0'}, True), ({'WAYLAND_DISPLAY': 'w'}, True), ({}, False),
    ({'DISPLAY': ':0', 'SSH_CONNECTION': 'a 1 b 2'}, False)])
def test_a_browser_is_opened_where_there_is_a_desktop(runs, monkeypatch, capsys, environment,
                                                      opened):
    for name in 'DISPLAY', 'WAYLAND_DISPLAY', 'SSH_CONNECTION':
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    urls = []
    monkeypatch.setattr(draw.webbrowser, 'open', urls.append)
    monkeypatch.setattr(Server, 'serve_forever', lambda self: time.sleep(0.05))
    draw.main([f'{runs}/fbin.dab'])
    out = capsys.readouterr().out
    assert len(urls) == opened and ('ssh -L' in out) == ('SSH_CONNECTION' in environment)
    draw.main([f'{runs}/fbin.dab', '--no-browser'])
    assert len(urls) == opened
    assert not urls or urls[0] in out


# ---- in a browser

class Person:
    """Someone with a mouse, a finger or a pen, in headless Chromium."""

    def __init__(self, downloads):
        webdriver = pytest.importorskip('selenium.webdriver')
        programs = [shutil.which('chromium') or shutil.which('google-chrome'),
                    shutil.which('chromedriver')]
        if None in programs:
            pytest.skip('Chromium and its driver are not installed')
        options = webdriver.ChromeOptions()
        options.binary_location = programs[0]
        for argument in '--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage':
            options.add_argument(argument)
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        self.browser = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
        self.browser.execute_cdp_cmd('Browser.setDownloadBehavior',
                                     {'behavior': 'allow', 'downloadPath': str(downloads)})

    def open(self, url, width=1000, height=800):
        self.browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                                     dict(width=width, height=height, deviceScaleFactor=1,
                                          mobile=False))
        self.browser.get(url)

    def draw(self, strokes, kind='mouse'):
        """Draw with the mouse or a finger, the drawing about as large as a person makes it."""
        from selenium.webdriver.common.actions.action_builder import ActionBuilder
        left, top, side = self.run(
            "const box = document.getElementById('paper').getBoundingClientRect(); return [box.left, box.top, box.width]")
        points = np.concatenate(strokes)
        corner, size = complex(points.real.min(), points.imag.min()), max(np.ptp(points.real),
                                                                          np.ptp(points.imag))
        actions = ActionBuilder(self.browser, duration=1)
        for stroke in strokes:
            places = [(round(place.real), round(place.imag))
                      for place in complex(left, top) + side
                      * (.12 + .12j + .7 * (np.asarray(stroke) - corner) / size)]
            if kind == 'touch':
                for event, place in [('touchStart', places[0]),
                                     *(('touchMove', place) for place in places[1:])]:
                    self.browser.execute_cdp_cmd('Input.dispatchTouchEvent',
                                                 {'type': event,
                                                  'touchPoints': [dict(zip('xy', place))]})
                self.browser.execute_cdp_cmd('Input.dispatchTouchEvent',
                                             {'type': 'touchEnd', 'touchPoints': []})
                continue
            actions.pointer_action.move_to_location(*places[0]).pointer_down()
            for place in places[1:]:
                actions.pointer_action.move_to_location(*place)
            actions.pointer_action.pointer_up()
        actions.perform()

    def run(self, script):
        return self.browser.execute_script(script)

    def see(self):
        """[[class, share in percent, width of its bar in percent]] once the answer is there."""
        self.wait('return answered === version && !asking || !strokes.length')
        return self.run(
            """return [...document.querySelectorAll('#bars li')].map(item => [item.querySelector('.name').textContent,
            parseFloat(item.querySelector('.share').textContent), parseFloat(item.querySelector('.bar').style.width)])""")

    def wait(self, script, seconds=20):
        deadline = time.monotonic() + seconds
        while not (found := self.run(script)):
            assert time.monotonic() < deadline, script
            time.sleep(0.02)
        return found

    def click(self, name):
        self.browser.find_element('id', name).click()


@pytest.fixture(scope='module')
def person(tmp_path_factory):
    person = Person(tmp_path_factory.mktemp('downloads'))
    yield person
    person.browser.quit()


HOUSE = [line(0, 2, 2 + 2j, 2j, 0), line(-.2, 1 - 1j, 2.2)]


@pytest.mark.parametrize('kind', ['mouse', 'touch'])
def test_a_person_draws(served, person, kind, recognizer):
    person.open(served.server.url)
    empty = person.see()
    assert all(width in (None, 0) for *_, width in empty)
    person.draw([HOUSE[0]], kind)
    first = person.see()
    person.draw([HOUSE[1] - 1j], kind)
    second = person.see()
    for bars in first, second:
        assert sorted(share for _, share, _ in bars) == [share for _, share, _ in bars][::-1]
        assert sum(share for _, share, _ in bars) == pytest.approx(100, abs=0.2)
        assert [share for _, share, _ in bars] == pytest.approx([width for *_, width in bars],
                                                                abs=0.06)
    assert second != first and person.run('return strokes.length') == 2
    drawn = [np.array(stroke, float).view(complex) for stroke in person.run('return strokes')]
    assert second[0][0] == recognizer.answer(drawn)['likeliest'][0][0]
    assert 'ms' in person.run("return document.getElementById('ms').textContent")
    person.click('undo')
    assert person.see() == first
    person.click('clear')
    assert person.see()[0][0].strip() == '' and person.run('return strokes.length') == 0
    person.click('undo')        # of the clearing
    assert person.see() == first
    person.run(
        "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'z', ctrlKey: true, bubbles: true}))")
    assert person.run('return strokes.length') == 0
    assert person.browser.get_log('browser') == []      # no script or style that the policy refuses


def test_save(served, person, tmp_path):
    person.browser.execute_cdp_cmd('Browser.setDownloadBehavior',
                                   {'behavior': 'allow', 'downloadPath': str(tmp_path)})
    person.open(served.server.url)
    person.draw(HOUSE)
    person.click('save')
    deadline = time.monotonic() + 10
    while not (tmp_path / 'drawing.png').exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    image = datasets.read_image(tmp_path / 'drawing.png', 1)
    assert datasets.paper_fault(image) is None and np.asarray(image).min() < 30


@pytest.mark.parametrize('width', [320, 400, 1200])
def test_the_page_fits(served, person, width):
    person.open(served.server.url, width, 800)
    person.draw(HOUSE)
    person.see()
    assert person.run('return document.documentElement.scrollWidth') <= width
    side, height = person.run(
        "const box = document.getElementById('paper').getBoundingClientRect(); return [box.width, box.height]")
    assert side == pytest.approx(height) and side >= min(width - 60, 288)


def test_it_says_when_the_server_has_gone(person):
    answers = {'likeliest': [['house', 0.9], ['tree', 0.1]], 'seen': 'data:,', 'network_ms': 1,
               'total_ms': 2}
    facts = dict(title='', network='', file='', data='', classes=['house', 'tree'], accuracy='',
                 arithmetic='', inpsize=8, shown=2, command='draw again')
    page = draw.render(draw.TEMPLATE, **facts)
    server = Server(page, lambda strokes: answers)
    served = Served(server)
    person.open(server.url)
    person.draw(HOUSE[:1])
    assert person.see()[0][:2] == ['house', 90]
    assert person.run("return document.getElementById('problem').hidden")
    server.shutdown()
    server.server_close()
    person.draw(HOUSE[1:])
    assert 'draw again' in person.wait(
        "return !document.getElementById('problem').hidden && document.getElementById('problem').textContent")
    # started again
    with Server(page, lambda strokes: answers | {'likeliest': [['tree', 0.8], ['house', 0.2]]},
                served.port) as server:
        Served(server)
        person.wait(
            "return document.getElementById('problem').hidden && document.querySelector('#bars .name').textContent === 'tree'")
        server.shutdown()


@pytest.mark.soak
@pytest.mark.parametrize('name, epochs, file',
                         [('sketchanetwbin', 20, 'run/best.pth.tar'),
                          ('sketchanetfbin', 50, 'model.dab')])
def test_it_recognizes_doodles_that_a_person_draws(person, tmp_path, name, epochs, file):
    """Nine of twelve validation doodles, one of each class but the last, by a network trained as by
    runx.sh demo."""
    main.main(['--binaryWeight', f'--model_def={name}', '--inpsize=81', '--minCrop=0.7',
               '--learningratescheduler=cosine',
               '--maxlr=0.003', f'--epochs={epochs}', '--workers=0', f'--logdir={tmp_path}',
               '--name=run'])
    main.main([f'--resume={tmp_path}/run/best.pth.tar', f'--export={tmp_path}/model.dab'])
    source = draw.sketch_source(f'{tmp_path}/{file}')
    recognizer, right = Recognizer(source), 0
    with Server(draw.render(draw.TEMPLATE, **draw.facts(source, recognizer)),
                recognizer.answer) as server:
        Served(server)
        for label, drawn in enumerate(CLASSES[:12]):
            person.open(server.url)
            person.draw([np.array(stroke) for stroke in DOODLES[drawn](Hand(f'0 val {label}'))])
            right += person.see()[0][0] == drawn
        server.shutdown()
    assert right >= 9
