"""A server in a process of its own under many clients, then asked by one about a picture it knows.

Every client keeps one connection, asks a phrase of a drawn scene, waits for the answer and asks again; told 429 it
waits as long as Retry-After says. Prints what came back, how long it took, and the server's memory and processor time.

    python benchmarks/serve.py RUN [--clients 200] [--seconds 60] [--pictures 32] [--single 200] [--json]

The clients speak HTTP by hand: they share the cores with the server, and a client library would need as many.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import psutil

from epmvg.data.synthetic.scenes import draw_scene

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

HEAD = "POST /v1/ground HTTP/1.1\r\nHost: here\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: "
PART = "--x\r\nContent-Disposition: form-data; name="
WARM_UP = 5  # seconds under load before anything is counted: pictures are decoded, the allocator finds its size


@dataclass
class Tally:
    """What the clients saw while it counted."""

    counts: bool = False
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of what was answered with 200

    def note(self, status: str, seconds: float) -> None:
        """Count one request."""
        if self.counts:
            self.statuses[status] += 1
            if status == "200":
                self.seconds.append(seconds)


def request(image: bytes, phrase: str) -> bytes:
    """Write a question as a browser would."""
    form = f'{PART}"phrases"\r\n\r\n{phrase}\r\n{PART}"image"; filename="a"\r\n\r\n'.encode() + image + b"\r\n--x--\r\n"
    return f"{HEAD}{len(form)}\r\n\r\n".encode() + form


def questions(pictures: int) -> list[bytes]:
    """Draw scenes of 640 px and ask each for what is true of it."""
    asked = []
    for number in range(pictures):
        scene = draw_scene("benchmark", number, side=640)
        out = BytesIO()
        scene.image.save(out, "JPEG", quality=90)
        asked += [request(out.getvalue(), phrase.text) for phrase in scene.phrases]
    return asked


class Line:
    """One connection to the server, opened again after it broke."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, question: bytes) -> tuple[str, float]:
        """Return the answer's status, or the error's name, and how long to wait before asking again."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(question)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = re.search(r"\r\ncontent-length: (\d+)", head)
            await reader.readexactly(int(length.group(1)) if length else 0)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            return type(error).__name__, 1.0
        wait = re.search(r"\r\nretry-after: (\d+)", head)
        if wait or "\r\nconnection: close" in head:
            self.close()  # a server does not keep a line that is silent for long
        return head.split(" ", 2)[1], float(wait.group(1)) if wait else 0.0

    def close(self) -> None:
        """Hang up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def client(port: int, asked: Iterator[bytes], tally: Tally) -> None:
    """Ask without end, one question after the other."""
    line = Line(port)
    try:
        while True:
            started = time.perf_counter()
            status, wait = await line.ask(next(asked))
            tally.note(status, time.perf_counter() - started)
            await asyncio.sleep(wait * random.uniform(1.0, 1.2))
    finally:
        line.close()


@asynccontextmanager
async def served(run: str, log: Any) -> AsyncIterator[tuple[psutil.Process, int]]:
    """Start a server on a free port; at the end it has to stop by itself when told."""
    command = [sys.executable, "-m", "epmvg", "serve", run, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=log, text=True)
    assert process.stderr is not None
    try:
        said = await asyncio.to_thread(process.stderr.readline)
        address = re.search(r"http://127\.0\.0\.1:(\d+)", said)
        if address is None:
            raise SystemExit(said + process.stderr.read())
        yield psutil.Process(process.pid), int(address.group(1))
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.to_thread(process.communicate, timeout=60)
        if process.returncode not in (0, -signal.SIGTERM) or "Traceback" in errors:
            raise SystemExit(f"The server ended with status {process.returncode}: {errors}")
    finally:
        process.kill()


def spread(seconds: list[float]) -> dict[str, float]:
    """Percentiles in ms."""
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"p{percent}_ms": round(1000 * cuts[percent - 1], 1) for percent in (50, 95, 99)}


async def crowd(server: psutil.Process, port: int, asked: list[bytes], arguments: argparse.Namespace) -> dict[str, Any]:
    """Let all clients ask for so long."""
    tally = Tally()
    turns = [itertools.cycle(random.Random(number).sample(asked, len(asked))) for number in range(arguments.clients)]
    tasks = [asyncio.create_task(client(port, turn, tally)) for turn in turns]
    await asyncio.sleep(WARM_UP)
    tally.counts, busy, started, memory = True, sum(server.cpu_times()[:2]), time.perf_counter(), []
    for second in range(arguments.seconds + 1):
        await asyncio.sleep(max(0.0, started + second - time.perf_counter()))
        memory.append(round(server.memory_info().rss / 1e6))
    tally.counts, seconds = False, time.perf_counter() - started
    busy = sum(server.cpu_times()[:2]) - busy
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    answered = tally.statuses["200"]
    middle = len(memory) // 2
    return {
        "clients": arguments.clients,
        "seconds": round(seconds, 1),
        "statuses": dict(tally.statuses),
        "errors": sum(tally.statuses.values()) - answered - tally.statuses["429"],
        "answered_per_s": round(answered / seconds, 1),
        **spread(tally.seconds),
        "rss_mb": {"start": memory[0], "middle": memory[middle], "end": memory[-1], "peak": max(memory)},
        "server_cpu_ms_per_answer": round(1000 * busy / max(answered, 1), 1),
    }


async def alone(server: psutil.Process, port: int, questions: list[bytes]) -> dict[str, Any]:
    """Ask one question after the other; the first is not counted."""
    line, seconds = Line(port), []
    await line.ask(questions[0])
    busy = sum(server.cpu_times()[:2])
    for question in questions[1:]:
        started = time.perf_counter()
        status, _ = await line.ask(question)
        seconds.append(time.perf_counter() - started)
        assert status == "200", status
    line.close()
    used = sum(server.cpu_times()[:2]) - busy
    return {**spread(seconds), "server_cpu_ms_per_answer": round(1000 * used / len(seconds), 1)}


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start a server, ask it alone and in a crowd, stop it."""
    scene = draw_scene("benchmark", 0, side=640)
    out = BytesIO()
    scene.image.save(out, "JPEG", quality=90)
    image = out.getvalue()
    asked_before = [request(image, scene.phrases[0].text)] * (arguments.single + 1)
    never_asked = [request(image, f"the {number}th cup") for number in range(arguments.single + 1)]
    async with served(arguments.run, subprocess.DEVNULL) as (server, port):
        return {
            "known picture, known phrase": await alone(server, port, asked_before),
            "known picture, new phrase": await alone(server, port, never_asked),
            "crowd": await crowd(server, port, questions(arguments.pictures), arguments),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--pictures", type=int, default=32, help="that the clients ask about")
    parser.add_argument("--single", type=int, default=200, help="questions of the client that asks alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments))
    if arguments.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in figures.items()))


if __name__ == "__main__":
    main()
