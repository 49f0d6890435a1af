"""The server of the page: on this machine only, for its own page only.

Other sites cannot use it: the Host of a request must be a name of this machine, so that no other
name leads here (DNS rebinding), its Origin the server's own, and Sec-Fetch-Site the same site's. A
request has a deadline, and its size is bounded.
"""
import base64
import hashlib
import json
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

from utils.system import console
from utils.system.errors import naming

from .drawing import MAX_BYTES, BadDrawing, strokes_of

ADDRESS = '127.0.0.1'
HOST = re.compile(r'(127\.0\.0\.1|localhost)(:\d{1,5})?', re.ASCII)     # of a tunnel, any port
DEADLINE = 10           # seconds in which a request has to be here
MAX_CONNECTIONS = 32    # at a time; more are closed
PATHS = {'/': 'GET', '/answer': 'POST'}


class Server(ThreadingHTTPServer):
    """Serves `page` at /, and at /answer what answer(strokes), called in one thread, returns.

    port: 0 for a free one. Raises InputError where the port cannot be had.
    """

    request_queue_size = MAX_CONNECTIONS
    has_ended = False

    def __init__(self, page: str, answer: Callable, port: int = 0):
        self.page, self.answer = page.encode(), answer
        self.policy = content_security_policy(page)
        # In one thread, since PyTorch keeps a pool of threads for each that computes.
        self.computer = ThreadPoolExecutor(1)
        self.places = threading.BoundedSemaphore(MAX_CONNECTIONS)
        with naming(f'--port={port}'):
            super().__init__((ADDRESS, port), Handler)

    @property
    def url(self) -> str:
        return f'http://{ADDRESS}:{self.server_port}/'

    def warm_up(self):
        """Answer to a dot, so that the first real answer takes no longer than the others."""
        for _ in range(2):
            self.computer.submit(self.answer, [np.zeros(1, complex)]).result()

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)    # HTTPServer's asks the DNS for a name
        self.server_name, self.server_port = self.server_address

    def process_request(self, request, client_address):
        if not self.places.acquire(blocking=False):
            return self.shutdown_request(request)
        try:
            super().process_request(request, client_address)
        except RuntimeError:    # the system allows no more threads
            self.places.release()
            self.shutdown_request(request)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request, client_address):
        """One line for a bug of ours; none where the browser has gone away."""
        error = sys.exception()
        if not isinstance(error, OSError):
            complain_of(error)

    def server_close(self):
        self.has_ended = True
        super().server_close()
        self.computer.shutdown(wait=False, cancel_futures=True)


class Handler(BaseHTTPRequestHandler):
    """One request, answered by one response, a refusal in plain text."""

    timeout = DEADLINE
    default_request_version = 'HTTP/1.0'    # not 0.9, whose responses have no status
    is_late = False

    def setup(self):
        super().setup()
        self.alarm = threading.Timer(DEADLINE, self.stop_reading)
        self.alarm.daemon = True
        self.alarm.start()

    def finish(self):
        self.alarm.cancel()
        super().finish()

    def stop_reading(self):
        self.is_late = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def do_GET(self):
        if self.is_acceptable():
            self.respond(200, 'text/html', self.server.page)

    def do_POST(self):
        if not self.is_acceptable():
            return
        if self.headers.get_content_type() != 'application/json':
            return self.refuse(415, 'the content must be application/json')
        body = self.body()
        if body is None:
            return
        try:
            strokes = strokes_of(body)
        except BadDrawing as error:
            return self.refuse(400, str(error))
        try:
            answer = self.server.computer.submit(self.server.answer, strokes).result()
            content = json.dumps(answer, allow_nan=False).encode()
        except Exception as error:      # a bug of ours ends neither the server nor the page
            if not self.server.has_ended:
                complain_of(error)
            return self.refuse(500, 'the network failed; the terminal says why')
        self.respond(200, 'application/json', content)

    def is_acceptable(self) -> bool:
        """Whether the request is from this machine's own page, and in time; if not, refuse it."""
        host, path = self.headers.get('Host', ''), self.path.partition('?')[0]
        if self.is_late:
            self.refuse(408, 'the request took too long')
        elif not (HOST.fullmatch(host) and self.is_from(f'http://{host}')):
            self.refuse(403, 'only this page itself can ask')
        elif path not in PATHS:
            self.refuse(404, 'not found')
        elif PATHS[path] != self.command:
            self.refuse(405, f'{path} takes {PATHS[path]}', Allow=PATHS[path])
        else:
            return True
        return False

    def is_from(self, origin: str) -> bool:
        """Whether no other site than `origin` asks; a link to the page may be anywhere."""
        site, mode = (self.headers.get(f'Sec-Fetch-{name}') for name in ('Site', 'Mode'))
        is_link = self.command == 'GET' and mode == 'navigate'
        return (self.headers.get('Origin', origin) == origin
                and (site in (None, 'same-origin', 'none') or is_link))

    def body(self) -> bytes | None:
        """The body of a request; None where it has been refused."""
        length = self.headers.get('Content-Length', '')
        if not re.fullmatch('[0-9]{1,15}', length):
            return self.refuse(400, 'Content-Length must be a number of bytes')
        if int(length) > MAX_BYTES:
            return self.refuse(413, f'a drawing has at most {MAX_BYTES} bytes')
        with suppress(TimeoutError):
            body = self.rfile.read(int(length))
            if len(body) == int(length):
                return body
            if not self.is_late:
                return self.refuse(400, 'the body is shorter than Content-Length')
        return self.refuse(408, 'the request took too long')

    def refuse(self, status: int, sentence: str, **headers: str):
        self.respond(status, 'text/plain', f'{sentence}\n'.encode(), **headers)

    def respond(self, status: int, kind: str, content: bytes, **headers: str):
        self.send_response(status)
        headers |= {
            'Content-Type': f'{kind}; charset=utf-8', 'Content-Length': str(len(content)),
            'Content-Security-Policy': self.server.policy, 'X-Content-Type-Options': 'nosniff',
            'Cross-Origin-Resource-Policy': 'same-origin', 'Referrer-Policy': 'no-referrer',
            'Cache-Control': 'no-store'}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def send_error(self, code, message=None, explain=None):
        """What http.server refuses: a request that is not HTTP, or an unknown method."""
        if code == 501:
            self.refuse(405, 'the methods are GET and POST', Allow='GET, POST')
        else:
            self.refuse(code, 'the request is not HTTP')

    def version_string(self):
        return 'utils.draw'

    def log_message(self, *_):
        pass


def complain_of(error: BaseException):
    console.complain(console.one_line(f'utils.draw: error: {type(error).__name__}: {error}'))


def content_security_policy(page: str) -> str:
    """Of a page that runs its own scripts and styles only, and asks its own server only."""
    def hashes(tag):
        texts = re.findall(rf'<{tag}[^>]*>(.*?)</{tag}>', page, re.DOTALL)
        digests = (hashlib.sha256(text.encode()).digest() for text in texts)
        return ' '.join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
            "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
            "frame-ancestors 'none'")
