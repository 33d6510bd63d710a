"""Serves a folder on localhost with byte ranges: `python -m scripts.benchmarks.http_server FOLDER` prints its port.

For measurements and tests of layers over HTTP: it counts the bytes it sends, and answers with errors on request. It
runs in a process of its own, because GDAL opens files without letting other threads of its process run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CONTROL = "/control"


class Served:
    """A running server.

    Attributes:
        url: its address, without a slash at the end.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def sent(self) -> int:
        """Bytes of files sent so far."""
        return self._ask()["sent"]

    def fail(self, part: str, *, times: int, when: Path | None = None) -> None:
        """Answers the next requests for paths with `part` in them with status 500, once the file `when` exists."""
        self._ask(part=part, times=times, when="" if when is None else str(when))

    def _ask(self, **query: Any) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}{CONTROL}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
            return json.loads(answer.read())


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    """Serves a folder's files on a free port of localhost."""
    command = [sys.executable, "-m", "scripts.benchmarks.http_server", str(folder)]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None
        try:
            yield Served(f"http://127.0.0.1:{int(process.stdout.readline())}")
        finally:
            process.kill()


class _State:
    """Bytes sent, and the errors to answer with; shared by the server's threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.sent = self.times = 0
        self.part, self.when = "", ""

    def fails(self, path: str) -> bool:
        with self.lock:
            if self.part not in path or self.times < 1 or (self.when and not Path(self.when).exists()):
                return False
            self.times -= 1
            return True


STATE = _State()


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Sends a file or a part of it, or answers a request to `CONTROL`."""
        path, _, query = self.path.partition("?")
        if path != CONTROL:
            self._answer(with_body=True)
            return
        asked = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        with STATE.lock:
            if asked:
                STATE.part, STATE.times, STATE.when = asked["part"], int(asked["times"]), asked["when"]
            answer = json.dumps({"sent": STATE.sent}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_HEAD(self) -> None:
        """Sends a file's size."""
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        fails, file = STATE.fails(self.path), Path(self.translate_path(self.path))
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
            with STATE.lock:
                STATE.sent += len(part)
            self.wfile.write(part)

    def log_message(self, *arguments: Any) -> None:
        """Logs no requests."""


def main(folder: str) -> None:
    """Serves until killed; prints its port first."""

    def handler(*arguments: Any) -> _Handler:
        return _Handler(*arguments, directory=folder)

    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        print(server.server_address[1], flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1])
