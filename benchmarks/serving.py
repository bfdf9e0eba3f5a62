"""Requests to a served bundle: 10,000 single-row requests from 8 clients on this machine, no error allowed.

    python benchmarks/serving.py runs/reviews-1/bundle --requests 10000 --clients 8

Target: no error, p95 at most 4x p50. The server runs in a process of its own, as `ontarget serve` starts it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

from record import record


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def rows_of(bundle: Path) -> list[object]:
    selftest = json.loads((bundle / "selftest.json").read_text())
    return list(selftest["inputs"])


async def client(address: str, bodies: list[bytes], count: int, times: list[float], errors: list[str]) -> None:
    async with httpx.AsyncClient(base_url=address, timeout=60) as http:
        for number in range(count):
            start = time.perf_counter()
            try:
                answer = await http.post(
                    "/predict",
                    content=bodies[number % len(bodies)],
                    headers={"content-type": "application/json"},
                )
                if answer.status_code != 200:
                    errors.append(f"{answer.status_code} {answer.text[:200]}")
            except httpx.HTTPError as error:
                errors.append(repr(error))
            times.append(1000 * (time.perf_counter() - start))


async def load(address: str, bodies: list[bytes], requests: int, clients: int) -> tuple[list[float], list[str], float]:
    times: list[float] = []
    errors: list[str] = []
    start = time.perf_counter()
    await asyncio.gather(*(client(address, bodies, requests // clients, times, errors) for _ in range(clients)))
    return times, errors, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    port = free_port()
    command = [
        str(Path(sys.executable).with_name("ontarget")),
        "serve",
        str(arguments.bundle),
        "--port",
        str(port),
    ]
    server = subprocess.Popen(command)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                httpx.get(f"{address}/health", timeout=2)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        bodies = [json.dumps({"rows": [row]}).encode() for row in rows_of(arguments.bundle)]
        asyncio.run(load(address, bodies, 200, arguments.clients))
        times, errors, seconds = asyncio.run(load(address, bodies, arguments.requests, arguments.clients))
    finally:
        server.terminate()
        server.wait(10)
    times.sort()
    p50, p95, p99 = (times[int(share * (len(times) - 1))] for share in (0.5, 0.95, 0.99))
    record(
        "serving",
        headline=f"{len(times)} requests, {arguments.clients} clients: {len(errors)} errors, p50 {p50:.1f} ms, "
        f"p95 {p95:.1f} ms ({p95 / p50:.2f}x), {len(times) / seconds:.0f} requests/s",
        requests=len(times),
        clients=arguments.clients,
        errors=errors[:20],
        error_count=len(errors),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=statistics.fmean(times),
        requests_per_second=len(times) / seconds,
        seconds=seconds,
    )


if __name__ == "__main__":
    main()
