"""A server of files on localhost that counts what it sends, knows ranges, and fails when told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Served:
    """What a server has been asked for.

    Attributes:
        url: its address, without a slash at the end.
        sent: bytes of files sent so far.
        requests: paths asked for, in order.
        fails: given a path, whether to answer with status 500.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.sent = 0
        self.requests: list[str] = []
        self.fails: Callable[[str], bool] = lambda path: False
        self.lock = threading.Lock()


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments, served: Served, **options) -> None:
        self.served = served
        super().__init__(*arguments, **options)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        with self.served.lock:
            self.served.requests.append(self.path)
            fails = self.served.fails(self.path)
        file = Path(self.translate_path(self.path))
        if fails or not file.is_file():
            self.send_response(500 if fails else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content, first = file.read_bytes(), 0
        last = len(content) - 1
        asked = self.headers.get("Range", "")
        if asked.startswith("bytes="):
            start, _, stop = asked[6:].partition("-")
            first = int(start) if start else max(0, len(content) - int(stop))
            last = min(int(stop), last) if start and stop else last
        part = content[first : last + 1]
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if with_body:
            with self.served.lock:
                self.served.sent += len(part)
            self.wfile.write(part)

    def log_message(self, *arguments) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Serves a folder's files on a free port of localhost."""
    served = Served("")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, served=served, directory=str(folder)))
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
