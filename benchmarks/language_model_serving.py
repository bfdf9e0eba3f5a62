"""Streamed completions of a served SmolLM2-135M: none lost, memory flat, and what batching brings.

    OMP_NUM_THREADS=1 python benchmarks/language_model_serving.py --requests 1000 --clients 4

1,000 completions of 8 to 16 tokens from 4 clients, every tenth of which is dropped after its third piece. Target: no
error, all slots free at the end, memory of the server at the last hundred at most 5% above the first. The server runs
in a process of its own, as `ontarget serve` starts it. First-token times are from sending to the first piece of text.
Then tokens/s of one client alone and of all at once, 64 tokens each, on the same server.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from typing import Any

import httpx
import psutil

from record import record
from serving import free_port

WORDS = ("river", "engine", "the law of", "a recipe for", "music and", "in winter the", "numbers such as", "her letter")
MODEL = "smollm2-135m"


def prompt(number: int) -> str:
    return f"{number}. " + " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 3 + number % 7))


async def completion(http: httpx.AsyncClient, number: int, tokens: int, drop_after: int | None) -> tuple[float, str]:
    """Seconds to the first text, and "stop", "length" or "dropped". Raises on everything else."""
    body = {"model": MODEL, "prompt": prompt(number), "max_tokens": tokens, "temperature": 0, "stream": True}
    start, first, pieces, finish = time.perf_counter(), 0.0, 0, None
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                break
            if not line.startswith("data: "):
                continue
            choice = json.loads(line[6:])["choices"][0]
            if choice["text"]:
                first, pieces = first or time.perf_counter() - start, pieces + 1
            finish = choice["finish_reason"] or finish
            if drop_after is not None and pieces >= drop_after:
                return first, "dropped"
    if finish is None:
        raise RuntimeError(f"request {number} ended without a finish")
    return first, finish


async def load(address: str, requests: int, clients: int, server: psutil.Process) -> dict[str, Any]:
    ended: list[str] = []
    firsts: list[float] = []
    memory_mb: dict[int, float] = {}
    errors: list[str] = []
    numbers = iter(range(requests))
    every = max(1, requests // 10)

    async def client() -> None:
        async with httpx.AsyncClient(base_url=address, timeout=120) as http:
            for number in numbers:
                try:
                    first, how = await completion(http, number, 8 + number % 9, 3 if number % 10 == 9 else None)
                    firsts.append(first)
                    ended.append(how)
                except (httpx.HTTPError, RuntimeError, KeyError, ValueError) as error:
                    errors.append(repr(error))
                done = len(ended) + len(errors)
                if done % every == 0:
                    memory_mb[done] = server.memory_info().rss / 2**20

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - start
    firsts.sort()
    return {
        "requests": requests, "clients": clients, "seconds": seconds, "requests_per_second": requests / seconds,
        "first_token_p50_ms": 1000 * firsts[len(firsts) // 2],
        "first_token_p95_ms": 1000 * firsts[int(0.95 * (len(firsts) - 1))],
        "ended": {how: ended.count(how) for how in sorted(set(ended))}, "errors": errors[:20],
        "error_count": len(errors), "memory_mb": memory_mb,
    }  # fmt: skip


async def tokens_per_second(address: str, clients: int, tokens: int = 64) -> float:
    async with httpx.AsyncClient(base_url=address, timeout=300) as http:
        body = {"model": MODEL, "max_tokens": tokens, "temperature": 0}
        start = time.perf_counter()
        answers = await asyncio.gather(
            *(http.post("/v1/completions", json={**body, "prompt": prompt(number)}) for number in range(clients))
        )
        made: int = sum(answer.json()["usage"]["completion_tokens"] for answer in answers)
        return made / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-c", "from ontarget.cli import main; main()", "serve", f"zoo:{MODEL}",
               "--port", str(port), "--slots", str(arguments.clients),
               "--threads", os.environ.get("OMP_NUM_THREADS", "1")]  # fmt: skip
    server = subprocess.Popen(command)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                httpx.get(f"{address}/health", timeout=2)
                break
            except httpx.HTTPError:
                time.sleep(0.2)
        alone = asyncio.run(tokens_per_second(address, 1))
        together = asyncio.run(tokens_per_second(address, arguments.clients))
        found = asyncio.run(load(address, arguments.requests, arguments.clients, psutil.Process(server.pid)))
        time.sleep(2)
        left = httpx.get(f"{address}/health").json()["requests"]
    finally:
        server.terminate()
        server.wait(60)
    memory = list(found["memory_mb"].values())
    record(
        "language_model_serving",
        headline=f"{found['requests']} requests, {found['clients']} clients: {found['error_count']} errors, "
        f"{left['running']} slots taken at the end, memory {memory[0]:.0f} to {memory[-1]:.0f} MiB, "
        f"{found['requests_per_second']:.1f} requests/s, first token p50 {found['first_token_p50_ms']:.0f} ms, "
        f"p95 {found['first_token_p95_ms']:.0f} ms; {alone:.0f} tokens/s of one client, {together:.0f} of "
        f"{found['clients']}",
        tokens_per_second={"1": alone, str(arguments.clients): together},
        health_at_the_end=left,
        load_average=os.getloadavg()[0],
        **found,
    )


if __name__ == "__main__":
    main()
