"""Reads what vendors say when they fail: whatever shape the body has, one `VendorMessage`.

Pure: it knows the shapes error bodies come in, not what the codes in them mean. Providers classify.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from html import unescape
from typing import Any, Final

import msgspec
from msgspec import Struct

MAX_MESSAGE: Final = 500
"""Characters kept of what a vendor says."""

MAX_RETRY_AFTER: Final = 3600.0
"""Seconds; a longer wait is no hint for a retry."""

_SHORTEST_KEY: Final = 8
"""Characters."""


class VendorMessage(Struct, frozen=True, kw_only=True):
    """What an error body says, masked and shortened. All but `message` are None where the vendor is silent."""

    message: str
    """Never empty."""
    code: str | None = None
    """The vendor's word or number, as text."""
    type: str | None = None
    param: str | None = None
    request_id: str | None = None
    status: int | None = None
    """An HTTP status found inside the body (100 to 599): for errors within a 200."""
    body: Any = None
    """The decoded body, None when it was no JSON; `retry_after` reads it."""


def without_key(said: VendorMessage, key: str | None) -> VendorMessage:
    """The message with our own key masked, which vendors quote, whatever form it has.

    A key too short to be a secret is a placeholder (`none`, `ollama`), and may be an ordinary word of the message.
    """
    if key is None or len(key) < _SHORTEST_KEY:
        return said
    texts = {name: getattr(said, name) for name in ("message", "code", "type", "param", "request_id")}
    masked = {name: text.replace(key, "…") for name, text in texts.items() if text is not None and key in text}
    return msgspec.structs.replace(said, **masked) if masked else said


def extract_error(body: bytes, content_type: str | None = None) -> VendorMessage:
    """The message of an error body: JSON in any of the known shapes, JSON in SSE lines, HTML, or plain text."""
    text = body.decode("utf-8", "replace").lstrip("\ufeff").strip()
    for value in _values(text):
        found = read_error(value)
        if found is not None:
            return found
    if text.startswith("<") or (content_type is not None and "html" in content_type):
        text = _without_tags(text)
    return VendorMessage(message=clean(text) or "(no message)")


def read_error(value: Any) -> VendorMessage | None:
    """The message of a decoded body; None when nothing in it reads like an error."""
    fields = _read(value)
    if fields is None:
        return None
    code = fields.get("code")
    return VendorMessage(
        message=clean(fields["message"]) or code or fields.get("type") or "(no message)",
        code=code,
        type=fields.get("type"),
        param=fields.get("param"),
        request_id=fields.get("request_id"),
        status=_status(code),
        body=value,
    )


def clean(text: str) -> str:
    """A vendor's text, fit for an error message: keys masked, white space collapsed, cut to `MAX_MESSAGE`."""
    text = _KEY.sub(_masked, " ".join(text.split()))
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def retry_after(
    headers: Mapping[str, str], message: str = "", body: Any = None, *, limited: bool = True
) -> float | None:
    """Seconds the vendor asks to wait, at most `MAX_RETRY_AFTER`.

    Read in this order: `retry-after-ms` and Azure's `x-ms-retry-after-ms`, `retry-after` (seconds, a duration or a
    point in time), Google's `RetryInfo.retryDelay` and fields such as `retry_after` in the body, "try again in 41.7s"
    in the message, and when the exhausted limit starts anew (`x-ratelimit-reset-*`, `anthropic-ratelimit-*-reset`,
    `ratelimit-reset`; OpenRouter has such headers in the body). The last are on every response of some vendors and mean
    something only when the call was `limited` (429). Points in time are relative to the response's own `date`, as
    there is no clock here; without one they tell nothing. Header names are in lower case.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        milliseconds = _number(headers.get(name))
        if milliseconds is not None:
            return _capped(milliseconds / 1000)
    for read in (
        _retry_after_header(headers),
        _retry_delay(body),
        _retry_field(body),
        _retry_text(message),
        _reset_headers(headers, body) if limited else None,
    ):
        if read is not None:
            return _capped(read)
    return None


def should_retry(headers: Mapping[str, str]) -> bool | None:
    """What the vendor says of another try, by `x-should-retry` (OpenAI, Anthropic); None where it says nothing."""
    said = headers.get("x-should-retry", "").strip().lower()
    return {"true": True, "false": False}.get(said)


def duration(text: str) -> float | None:
    """Seconds of a Go duration (`1m30.5s`, `20ms`) or a plain number of seconds; None for anything else."""
    text = text.strip().lower()
    plain = _number(text)
    if plain is not None:
        return plain
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION_PART.findall(text))


# -- the body ------------------------------------------------------------------------------------------------------


def _values(text: str) -> list[Any]:
    """The JSON values in a body: the body itself, or else its SSE data lines (DashScope frames its 400s so)."""
    try:
        return [msgspec.json.decode(text)]
    except (msgspec.DecodeError, RecursionError):
        pass
    values = []
    for line in text.replace("\r", "\n").split("\n"):
        if line.startswith("data:"):
            try:
                values.append(msgspec.json.decode(line[5:].strip()))
            except (msgspec.DecodeError, RecursionError):
                continue
    return values


def _read(value: Any, depth: int = 0) -> dict[str, str] | None:
    """`message`, `code`, `type`, `param`, `request_id` as texts, as far as they are there."""
    if depth > 4:
        return None
    if isinstance(value, str):
        return {"message": value} if value.strip() else None
    if isinstance(value, list):
        return _read_list(value, depth)
    if not isinstance(value, dict):
        return None
    outer = {
        name: text
        for name, keys in _FIELDS.items()
        if (text := next((t for key in keys if (t := _text(value.get(key))) is not None), None)) is not None
    }
    inner = _read_message(value, depth)
    if inner is None:
        # DashScope and others: a code without a message
        return {**outer, "message": ""} if "code" in outer and "choices" not in value else None
    return {**outer, **inner}


def _read_message(value: dict[str, Any], depth: int) -> dict[str, str] | None:
    error = value.get("error")
    if isinstance(error, dict):
        fields = _read(error, depth + 1)
        if fields is not None:
            raw = error.get("metadata")
            cause = raw.get("raw") if isinstance(raw, dict) else None
            if isinstance(cause, str) and cause:
                # OpenRouter says "Provider returned error" and keeps the provider's own words here
                fields["message"] = f"{fields['message']}: {cause}"
            return fields
    if isinstance(error, str) and error:
        said = value.get("message") or value.get("error_description")
        return {"message": f"{error}: {said}" if isinstance(said, str) and said != error else error}
    base = value.get("base_resp")
    if isinstance(base, dict) and base.get("status_code"):
        # MiniMax puts its failures beside an empty answer
        return {"message": str(base.get("status_msg") or ""), "code": str(base["status_code"])}
    if value.get("loc") is not None and isinstance(value.get("msg"), str):
        return _read_validation(value)
    for key in ("error", "message", "detail", "msg", "error_msg", "errorMessage", "errors"):
        fields = _read(value.get(key), depth + 1)
        if fields is not None:
            return fields
    return None


def _read_list(value: list[Any], depth: int) -> dict[str, str] | None:
    """The first readable item; the messages of the others follow (FastAPI lists every field it refuses)."""
    found = [fields for item in value[:8] if (fields := _read(item, depth + 1)) is not None]
    if not found:
        return None
    return {**found[0], "message": "; ".join(fields["message"] for fields in found)}


def _read_validation(value: dict[str, Any]) -> dict[str, str]:
    """One complaint of a FastAPI or Pydantic validator: `{"loc": ["body", "store"], "msg", "type"}`."""
    loc = value["loc"] if isinstance(value["loc"], list) else [value["loc"]]
    param = ".".join(str(step) for step in loc if step != "body")
    fields = {"message": f"{param}: {value['msg']}" if param else value["msg"]}
    if param:
        fields["param"] = param
    if isinstance(value.get("type"), str):
        fields["code"] = value["type"]
    return fields


_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    "code": ("code", "error_code"),
    "type": ("type", "status"),
    "param": ("param",),
    "request_id": ("request_id", "requestId"),
}


def _text(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return None


def _status(code: str | None) -> int | None:
    return int(code) if code is not None and len(code) == 3 and code.isdecimal() and "100" <= code < "600" else None


_INVISIBLE: Final = re.compile(r"<(script|style|head)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)", re.I | re.S)
_TITLE: Final = re.compile(r"<title\b[^>]*>(.*?)</title", re.I | re.S)
_TAG: Final = re.compile(r"<[^<>]*>")


def _without_tags(html: str) -> str:
    html = html[:65536]
    title = _TITLE.search(html)
    body = unescape(_TAG.sub(" ", _INVISIBLE.sub(" ", html)))
    return f"{unescape(title[1])} {body}" if title else body


_KEY: Final = re.compile(
    r"\b(sk|pk|rk|dw|xai|gsk|hf|tgp|nvapi|AIza|AQ)([-_.]|(?<=AIza))[A-Za-z0-9_\-.*•…]{6,}|\b(Bearer)\s+[^\s'\",;]{6,}",
    re.I,
)


def _masked(match: re.Match[str]) -> str:
    return f"{match[3]} …" if match[3] else f"{match[1]}{match[2]}…"


# -- when to come back ---------------------------------------------------------------------------------------------

_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9}
_DURATION_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|us|µs|μs|ns|h|m|s)")
_DURATION: Final = re.compile(rf"(?:{_DURATION_PART.pattern})+")
_AGAIN: Final = re.compile(
    r"(?:(?:try again|retry|retry again)\s+(?:in|after)|wait(?:\s+(?:for|at least))?)\s+"
    r"(?:(\d+(?:\.\d+)?)\s*d(?:ays?)?(?![a-z])\s*)?"
    r"(?:(\d+(?:\.\d+)?)\s*h(?:(?:ou)?rs?)?(?![a-z])\s*)?"
    r"(?:(\d+(?:\.\d+)?)\s*m(?:in(?:ute)?s?)?(?![a-z])\s*)?"
    r"(?:(\d+(?:\.\d+)?)\s*(ms|milliseconds?|s|secs?|seconds?)(?![a-z]))?",
    re.I,
)
_RESET: Final = re.compile(r"(?:[a-z]+-)?ratelimit(?:bysize)?-(?:.+-)?reset(?:-.+)?")
"""`x-ratelimit-reset-tokens`, `anthropic-ratelimit-tokens-reset`, `ratelimit-reset`, `ratelimitbysize-reset`."""
_WAITS: Final = {"retry_after": 1.0, "retry_after_seconds": 1.0, "retry_after_ms": 1e-3, "estimated_time": 1.0}
"""Fields of error bodies → seconds of their unit. `estimated_time`: how long Hugging Face still loads the model."""
_LONGEST_RESET: Final = 1e6
"""Seconds; a greater number is a point in time."""
_FIRST_MOMENT: Final = 1e9
"""Unix seconds that a point in time is at least; a thousand times that, and it is in milliseconds."""


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < float("inf") else None


def _capped(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime(text) if text else None
    except ValueError:
        return None
    return date if date is not None and date.tzinfo is not None else None


def _moment(text: str) -> float | None:
    """Unix seconds of a point in time: of HTTP, of RFC 3339, or a number of seconds or milliseconds."""
    number = _number(text)
    if number is not None:
        return number / 1000 if number >= _FIRST_MOMENT * 1000 else number if number >= _FIRST_MOMENT else None
    try:
        date = datetime.fromisoformat(text.strip())
    except ValueError:
        found = _date(text)
        return None if found is None else found.timestamp()
    return date.timestamp() if date.tzinfo is not None else None


def _wait_of(text: str, headers: Mapping[str, str]) -> float | None:
    """Seconds from now, of a duration or a point in time."""
    seconds = duration(text)
    if seconds is not None and seconds < _LONGEST_RESET:
        return seconds
    then, now = _moment(text), _date(headers.get("date"))
    return None if then is None or now is None else then - now.timestamp()


def _retry_after_header(headers: Mapping[str, str]) -> float | None:
    value = headers.get("retry-after")
    if not value:
        return None
    # a number too large for a wait is one all the same
    return _number(value) if (wait := _wait_of(value, headers)) is None else wait


def _error_object(body: Any) -> dict[str, Any] | None:
    if isinstance(body, list):
        body = body[0] if body else None
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else None


def _retry_field(body: Any) -> float | None:
    """A wait among the fields of the error, of its metadata, or beside it."""
    error = _error_object(body)
    metadata = error.get("metadata") if error is not None else None
    for holder in (error, metadata, body):
        if not isinstance(holder, dict):
            continue
        for name, unit in _WAITS.items():
            value = holder.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = str(value)
            if isinstance(value, str) and (seconds := duration(value)) is not None:
                return seconds * unit
    return None


def _retry_delay(body: Any) -> float | None:
    """`retryDelay` of a google.rpc.RetryInfo among the error's details."""
    error = _error_object(body)
    details = error.get("details") if error is not None else None
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and (seconds := duration(delay)) is not None:
            return seconds
    return None


def _retry_text(message: str) -> float | None:
    found = _AGAIN.search(message)
    if found is None or not any(found.groups()):
        return None
    days, hours, minutes, number, unit = found.groups()
    last = float(number or 0) * (1e-3 if unit and unit.lower().startswith("m") else 1.0)
    return float(days or 0) * 86400 + float(hours or 0) * 3600 + float(minutes or 0) * 60 + last


def _reset_headers(headers: Mapping[str, str], body: Any) -> float | None:
    """When the exhausted one of the limits starts anew; when none says how much is left, the latest of them; when all
    have something left, which was not enough, the first."""
    error = _error_object(body)
    metadata = error.get("metadata") if error is not None else None
    within = metadata.get("headers") if isinstance(metadata, dict) else None
    said: dict[str, str] = {**headers}
    if isinstance(within, dict):
        said |= {name.lower(): value for name, value in within.items() if isinstance(value, str)}
    resets: dict[str, float] = {}
    for name, value in said.items():
        if _RESET.fullmatch(name) and (seconds := _wait_of(value, headers)) is not None:
            resets[name] = seconds
    left = {name: _number(said.get(name.replace("-reset", "-remaining"))) for name in resets}
    exhausted = [resets[name] for name, number in left.items() if number == 0]
    untold = [resets[name] for name, number in left.items() if number is None]
    return max(exhausted or untold, default=min(resets.values(), default=None))
