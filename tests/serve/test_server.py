"""Tests of a server's life: start, connections, shutdown."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import encoded

from epmvg.cli import main
from epmvg.models.factory import save
from epmvg.models.grounder import Grounder
from epmvg.serve.server import listen

EXAMPLE = Path(__file__).parents[2] / "examples" / "serve_client.py"


@contextlib.contextmanager
def served(run: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start `epmvg serve` on a free port; yields the process and its address."""
    command = [sys.executable, "-m", "epmvg", "serve", str(run), "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        line = process.stderr.readline()
        address = re.search(r"at (http://\S+)", line)
        assert address, line + process.stderr.read()
        yield process, address.group(1)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def run(tiny: Grounder, tmp_path: Path) -> Path:
    save(tiny, tmp_path / "run")
    return tmp_path / "run"


def test_a_stopped_server_answers_requests_in_progress(run: Path, tmp_path: Path) -> None:
    """A request whose body is incomplete at SIGTERM is answered; then the server ends."""
    image = encoded()
    part = b"--x\r\nContent-Disposition: form-data; name="
    body = part + b'"phrases"\r\n\r\nit\r\n' + part + b'"image"; filename="a"\r\n\r\n' + image + b"\r\n--x--\r\n"
    with served(run) as (process, address):
        (tmp_path / "a.png").write_bytes(image)
        client = [sys.executable, str(EXAMPLE), str(tmp_path / "a.png"), "it", "a dog"]
        environment = {**os.environ, "EPMVG_SERVER": address}
        done = subprocess.run(client, env=environment, capture_output=True, text=True, check=True)
        assert re.fullmatch(r"0\.\d\d  it  \[.*\]\n0\.\d\d  a dog  \[.*\]\n", done.stdout)
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(
                b"POST /v1/ground HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:100]
            )
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(OSError):
                socket.create_connection((host, int(port)), timeout=5)
            connection.sendall(body[100:])
            response = b"".join(iter(lambda: connection.recv(65536), b""))
        assert response.startswith(b"HTTP/1.1 200") and b'"phrase":"it"' in response
        process.wait(60)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


def test_wrong_options_are_one_sentence(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        wrong = {
            "port taken": (["--port", port], "Choose another"),
            "host of another machine": (["--host", "192.0.2.1"], "Choose another"),
            "port out of range": (["--port", "99999"], "--port is 99999"),
            "no uploads": (["--upload-mb", "0"], "--upload-mb is 0"),
            "token with a line break": (["--token", "a\nb"], "The token is not"),
        }
        for name, (options, words) in wrong.items():
            with pytest.raises(SystemExit) as ended:
                main(["serve", str(run), *options])
            printed = capsys.readouterr().err.strip()
            assert ended.value.code == 2 and words in printed and len(printed.splitlines()) == 1, f"{name}: {printed}"


def test_connections_send_without_delay() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
