"""A server in a crowd: errors, latency and memory while many clients ask at once, and a quiet client's latency before.

Starts `epmvg serve RUN` in a process of its own. First one client asks one phrase after another about the same drawn
scene (`quiet`). Then `--clients` ask for `--seconds`, each about one of `--pictures` scenes and a phrase that is true
of it; who is told 429 comes back after the time that Retry-After names. Memory is the server's own, looked at each
second. Prints JSON: what every status was answered, percentiles in ms of answers, and memory of the quarters of the
time in MB.

    python benchmarks/serve.py RUN [--clients 200] [--seconds 60] [--pictures 40]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from epmvg.serve.app import sample


@dataclass(slots=True)
class Tally:
    """What clients were answered."""

    statuses: Counter[str] = field(default_factory=Counter)
    ms: list[float] = field(default_factory=list)  # of answers with a box

    def percentiles(self) -> dict[str, float]:
        """Latency of answers, ms."""
        return (
            {f"p{share}": round(float(np.percentile(self.ms, share)), 1) for share in (50, 95, 99)} if self.ms else {}
        )


def question(number: int) -> list[bytes]:
    """Write requests about one drawn scene, one for each phrase that is true of it."""
    picture, phrases = sample(number)
    requests = []
    for phrase in phrases:
        parts = [
            b'--cut\r\nContent-Disposition: form-data; name="image"; filename="scene.jpg"\r\n\r\n' + picture,
            b'--cut\r\nContent-Disposition: form-data; name="phrases"\r\n\r\n' + phrase.encode(),
            b"--cut--\r\n",
        ]
        body = b"\r\n".join(parts)
        head = (
            "POST /v1/ground HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=cut\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        requests.append(head.encode() + body)
    return requests


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, float]:
    """Send a request -> status, and the seconds that Retry-After names (0: none)."""
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    await reader.readexactly(int(_header(head, "content-length")))
    return int(head.split(" ", 2)[1]), float(_header(head, "retry-after"))


def _header(head: str, name: str) -> str:
    found = re.search(rf"^{name}: (\d+)", head, re.MULTILINE)
    return found.group(1) if found else "0"


async def client(port: int, requests: list[bytes], until: float, tally: Tally) -> None:
    """Ask one thing after another until the time is over; a connection that breaks is counted."""
    turn = itertools.cycle(requests)
    while time.monotonic() < until:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            status, wait = 200, 0.0
            while status != 429 and time.monotonic() < until:
                start = time.monotonic()
                status, wait = await ask(reader, writer, next(turn))
                tally.statuses[str(status)] += 1
                if status == 200:
                    tally.ms.append(1000 * (time.monotonic() - start))
            writer.close()
            await asyncio.sleep(max(0.0, min(wait, until - time.monotonic())))
        except (OSError, asyncio.IncompleteReadError) as error:
            tally.statuses[type(error).__name__] += 1


async def watch(server: psutil.Process, until: float) -> list[float]:
    """Look at a process's resident memory each second, MB."""
    seen = []
    while time.monotonic() < until:
        seen.append(server.memory_info().rss / 1e6)
        await asyncio.sleep(1)
    return seen


async def crowd(
    port: int, server: psutil.Process, questions: list[list[bytes]], clients: int, seconds: float
) -> dict[str, object]:
    tally = Tally()
    until = time.monotonic() + seconds
    asking = [client(port, questions[number % len(questions)], until, tally) for number in range(clients)]
    watching = asyncio.create_task(watch(server, until))
    await asyncio.gather(*asking)
    memory = await watching
    quarter = max(1, len(memory) // 4)
    return {
        "clients": clients,
        "seconds": seconds,
        "statuses": dict(tally.statuses),
        "answers_per_s": round(len(tally.ms) / seconds, 1),
        "ms": tally.percentiles(),
        "memory_mb": [
            round(statistics.fmean(memory[start : start + quarter])) for start in range(0, 4 * quarter, quarter)
        ],
    }


async def quiet(port: int, requests: list[bytes], rounds: int) -> dict[str, float]:
    """One client, one phrase at a time about a picture that the server has seen -> percentiles, ms."""
    tally = Tally()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for request in itertools.islice(itertools.cycle(requests), rounds + len(requests)):
        start = time.monotonic()
        status, _ = await ask(reader, writer, request)
        if status != 200:
            raise RuntimeError(f"the quiet server answered {status}")
        tally.ms.append(1000 * (time.monotonic() - start))
    writer.close()
    tally.ms = tally.ms[len(requests) :]  # the first round's phrases were new
    return tally.percentiles()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--pictures", type=int, default=40)
    arguments = parser.parse_args()
    questions = [question(number) for number in range(arguments.pictures)]
    command = [sys.executable, "-m", "epmvg", "serve", str(arguments.run), "--port", "0"]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        assert server.stderr is not None
        try:
            line = server.stderr.readline()
            found = re.search(r":(\d+) ", line)
            if found is None:
                sys.exit(line + server.stderr.read())
            port = int(found.group(1))
            result: dict[str, object] = {"quiet_ms": asyncio.run(quiet(port, questions[0], 200))}
            held = psutil.Process(server.pid)
            result |= asyncio.run(crowd(port, held, questions, arguments.clients, arguments.seconds))
        finally:
            server.terminate()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
