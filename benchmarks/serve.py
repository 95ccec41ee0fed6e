"""Benchmark of a server in a process of its own: latency of one client, and throughput under many.

Every client keeps one connection and sends one request after the other, each a phrase and a drawn scene; after a 429 it
waits for Retry-After. Prints statuses, latency, and the server's memory and processor time.

    python benchmarks/serve.py RUN [--clients 200] [--seconds 60] [--images 32] [--single 200] [--json]

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

HEAD = "POST /v1/ground HTTP/1.1\r\nHost: localhost\r\n"
HEAD += "Content-Type: multipart/form-data; boundary=x\r\nContent-Length: "
PART = "--x\r\nContent-Disposition: form-data; name="
WARM_UP = 5  # seconds under load before the measurement: images are decoded, the allocator reaches its size


@dataclass
class Responses:
    """Statuses and latencies of the measured requests."""

    measuring: bool = False
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of requests with status 200

    def add(self, status: str, seconds: float) -> None:
        """Count one request."""
        if self.measuring:
            self.statuses[status] += 1
            if status == "200":
                self.seconds.append(seconds)


def request(image: bytes, phrase: str) -> bytes:
    """Return a request as a browser sends it."""
    form = f'{PART}"phrases"\r\n\r\n{phrase}\r\n{PART}"image"; filename="a"\r\n\r\n'.encode() + image + b"\r\n--x--\r\n"
    return f"{HEAD}{len(form)}\r\n\r\n".encode() + form


def make_requests(images: int) -> list[bytes]:
    """Return requests for the phrases of drawn scenes of 640 px."""
    requests = []
    for number in range(images):
        scene = draw_scene("benchmark", number, side=640)
        out = BytesIO()
        scene.image.save(out, "JPEG", quality=90)
        requests += [request(out.getvalue(), phrase.text) for phrase in scene.phrases]
    return requests


class Connection:
    """One connection to the server, reopened after it breaks."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> tuple[str, float]:
        """Return the status, or the name of the error, and how long to wait before the next request."""
        try:
            if self._streams is None:
                self._streams = await asyncio.open_connection("127.0.0.1", self._port)
            reader, writer = self._streams
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = re.search(r"\r\ncontent-length: (\d+)", head)
            await reader.readexactly(int(length.group(1)) if length else 0)
        except (OSError, asyncio.IncompleteReadError) as error:
            self.close()
            return type(error).__name__, 1.0
        wait = re.search(r"\r\nretry-after: (\d+)", head)
        if wait or "\r\nconnection: close" in head:
            self.close()  # servers close connections that are idle for long
        return head.split(" ", 2)[1], float(wait.group(1)) if wait else 0.0

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def client(port: int, requests: Iterator[bytes], responses: Responses) -> None:
    """Send one request after the other until cancelled."""
    connection = Connection(port)
    try:
        while True:
            started = time.perf_counter()
            status, wait = await connection.send(next(requests))
            responses.add(status, time.perf_counter() - started)
            await asyncio.sleep(wait * random.uniform(1.0, 1.2))
    finally:
        connection.close()


@asynccontextmanager
async def served(run: str, log: Any) -> AsyncIterator[tuple[psutil.Process, int]]:
    """Start a server on a free port; at the end SIGTERM has to stop it."""
    command = [sys.executable, "-m", "epmvg", "serve", run, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=log, text=True)
    assert process.stderr is not None
    try:
        line = await asyncio.to_thread(process.stderr.readline)
        address = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        if address is None:
            raise SystemExit(line + process.stderr.read())
        yield psutil.Process(process.pid), int(address.group(1))
        process.send_signal(signal.SIGTERM)
        _, errors = await asyncio.to_thread(process.communicate, timeout=60)
        if process.returncode not in (0, -signal.SIGTERM) or "Traceback" in errors:
            raise SystemExit(f"The server ended with status {process.returncode}: {errors}")
    finally:
        process.kill()


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return percentiles in ms."""
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {f"p{percent}_ms": round(1000 * cuts[percent - 1], 1) for percent in (50, 95, 99)}


async def measure_many(
    server: psutil.Process, port: int, requests: list[bytes], arguments: argparse.Namespace
) -> dict[str, Any]:
    """Measure throughput and latency under many clients."""
    responses = Responses()
    orders = [
        itertools.cycle(random.Random(number).sample(requests, len(requests))) for number in range(arguments.clients)
    ]
    tasks = [asyncio.create_task(client(port, order, responses)) for order in orders]
    await asyncio.sleep(WARM_UP)
    responses.measuring, busy, started, memory = True, sum(server.cpu_times()[:2]), time.perf_counter(), []
    for second in range(arguments.seconds + 1):
        await asyncio.sleep(max(0.0, started + second - time.perf_counter()))
        memory.append(round(server.memory_info().rss / 1e6))
    responses.measuring, seconds = False, time.perf_counter() - started
    busy = sum(server.cpu_times()[:2]) - busy
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    served = responses.statuses["200"]
    middle = len(memory) // 2
    return {
        "clients": arguments.clients,
        "seconds": round(seconds, 1),
        "statuses": dict(responses.statuses),
        "errors": sum(responses.statuses.values()) - served - responses.statuses["429"],
        "requests_per_s": round(served / seconds, 1),
        **percentiles(responses.seconds),
        "rss_mb": {"start": memory[0], "middle": memory[middle], "end": memory[-1], "peak": max(memory)},
        "server_cpu_ms_per_request": round(1000 * busy / max(served, 1), 1),
    }


async def measure_one(server: psutil.Process, port: int, requests: list[bytes]) -> dict[str, Any]:
    """Measure the latency of a single client; the first request is not counted."""
    connection, seconds = Connection(port), []
    await connection.send(requests[0])
    busy = sum(server.cpu_times()[:2])
    for request in requests[1:]:
        started = time.perf_counter()
        status, _ = await connection.send(request)
        seconds.append(time.perf_counter() - started)
        assert status == "200", status
    connection.close()
    used = sum(server.cpu_times()[:2]) - busy
    return {**percentiles(seconds), "server_cpu_ms_per_request": round(1000 * used / len(seconds), 1)}


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Start a server, measure one client and many, and stop it."""
    scene = draw_scene("benchmark", 0, side=640)
    out = BytesIO()
    scene.image.save(out, "JPEG", quality=90)
    image = out.getvalue()
    known_requests = [request(image, scene.phrases[0].text)] * (arguments.single + 1)
    new_requests = [request(image, f"the {number}th cup") for number in range(arguments.single + 1)]
    async with served(arguments.run, subprocess.DEVNULL) as (server, port):
        return {
            "known image, known phrase": await measure_one(server, port, known_requests),
            "known image, new phrase": await measure_one(server, port, new_requests),
            "many clients": await measure_many(server, port, make_requests(arguments.images), arguments),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--images", type=int, default=32, help="that the clients send")
    parser.add_argument("--single", type=int, default=200, help="requests of the single client")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    results = asyncio.run(measure(arguments))
    if arguments.json:
        print(json.dumps(results))
        return
    for name, metrics in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in metrics.items()))


if __name__ == "__main__":
    main()
