"""The three loads, one measured run of each, and the check that a gateway's answers are right before it is measured."""

import http.client
import json
import subprocess
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks import tools, upstream
from benchmarks.gateways import KEY, Gateway
from benchmarks.processes import Failed, Running


@dataclass(frozen=True)
class Load:
    name: str
    model: str
    streamed: bool
    connections: int
    deltas: int
    about: str
    logged: bool = False
    """Whether the streams are asked for as such that can be come back to."""

    def with_log(self) -> "Load":
        return replace(self, name=f"{self.name}+log", about=f"{self.about}; every stream logged", logged=True)


LOADS = (
    Load("whole", "x", False, 32, 0, "one JSON answer, 32 connections"),
    Load("burst", "burst-100", True, 32, 100, "100 deltas that arrive in one read, 32 connections"),
    Load("paced", "paced-50-10", True, 150, 50, "50 deltas, 10 ms apart, 150 streams open"),
)


@dataclass(frozen=True)
class Run:
    """What one run of one load on one gateway has shown."""

    gateway: str
    load: str
    round: int
    requests: int
    cpu_us: float
    """CPU time of the gateway's processes per finished request, in microseconds."""
    per_second: float
    p50_ms: float
    p99_ms: float
    memory_mb: float
    errors: str
    """What went wrong, if anything; the run then counts for nothing."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(gateway: Gateway, process: Running, load: Load, number: int, seconds: int, warm_up: int) -> Run:
    """One run: warm up, then the load for `seconds`, with the CPU time of the gateway before and after."""
    _wrk(gateway, load, warm_up)
    # what the warm-up left open is closed now, not within the measured time
    time.sleep(0.2)
    before = process.cpu()
    result = _wrk(gateway, load, seconds)
    spent = process.cpu() - before
    process.check()
    requests = result["requests"]
    errors = [f"{result[kind]} {kind}" for kind in ("connect", "read", "write", "status", "timeout") if result[kind]]
    if not requests:
        errors.append("no request finished")
    return Run(
        gateway=gateway.name,
        load=load.name,
        round=number,
        requests=requests,
        cpu_us=spent * 1e6 / max(requests, 1),
        per_second=requests * 1e6 / max(result["microseconds"], 1),
        p50_ms=result["p50"] / 1000,
        p99_ms=result["p99"] / 1000,
        memory_mb=process.memory(),
        errors=", ".join(errors),
    )


def _wrk(gateway: Gateway, load: Load, seconds: int) -> dict[str, int]:
    command = [
        *(tools.program("wrk"), "-t1", f"-c{load.connections}", f"-d{seconds}s", "--timeout", "10s"),
        *("-s", str(tools.HERE / "post.lua"), gateway.url),
        *("--", gateway.prefix + load.model, str(load.streamed).lower(), KEY, *(["logged"] if load.logged else [])),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 30, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise Failed(f"wrk failed on {gateway.name}:\n{done.stdout}{done.stderr}")
    result: dict[str, int] = json.loads(lines[-1])
    return result


def check(gateway: Gateway, load: Load, seconds: float = 20) -> None:
    """Ask once and look at the whole answer, since wrk looks at its status alone. Tries again until `seconds` are
    over: a gateway may listen before it has met its upstream."""
    end = time.monotonic() + seconds
    while True:
        fault = _fault(gateway, load)
        if not fault:
            return
        if time.monotonic() > end:
            raise Failed(f"{gateway.name} answers the load `{load.name}` wrongly: {fault}")
        time.sleep(0.25)


def _fault(gateway: Gateway, load: Load) -> str:
    body = {
        "model": gateway.prefix + load.model,
        "stream": load.streamed,
        "messages": [{"role": "user", "content": "Hello"}],
    }
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    if load.logged:
        headers["x-deltaway-resumable"] = "true"
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        response = connection.getresponse()
        answer = response.read().decode()
        named = response.headers["x-deltaway-stream"]
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    finally:
        connection.close()
    if response.status != 200:
        return f"status {response.status}: {answer[:500]}"
    if load.logged and (named is None or f"\nid: {named}-{load.deltas}\n" not in answer):
        return f"its events bear no ids: {answer[:500]}"
    try:
        return _stream_fault(answer, load.deltas) if load.streamed else _whole_fault(answer)
    except (ValueError, LookupError, TypeError) as error:
        return f"{error!r} in {answer[:500]}"


def _whole_fault(answer: str) -> str:
    content = json.loads(answer)["choices"][0]["message"]["content"]
    return "" if content == upstream.TEXT else f"its text is {content!r}"


def _stream_fault(answer: str, deltas: int) -> str:
    events = [line.removeprefix("data:").strip() for line in answer.splitlines() if line.startswith("data:")]
    if events[-1] != "[DONE]":
        return f"it ends with {events[-1]!r}"
    chunks = [json.loads(event) for event in events[:-1]]
    texts = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
    found = texts.count(upstream.DELTA_TEXT)
    return "" if found == deltas else f"{found} deltas instead of {deltas}"
