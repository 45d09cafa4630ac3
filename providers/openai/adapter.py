"""The adapter for every vendor that speaks OpenAI's Chat Completions. One instance per row of `providers.yaml`."""

import re
from typing import ClassVar, Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from msgspec import Struct

from providers.openai.decoder import ChatDecoder
from providers.openai.errors import Failures
from providers.openai.lessons import Lessons
from providers.openai.options import Options
from providers.openai.request import Manner, body_of
from router.errors import ProviderError
from router.messages import ChatRequest
from router.provider import HttpError, HttpHead, HttpRequest, ProviderSettings, Target
from router.wire.vendor_error import extract_error

_encode: Final = msgspec.json.Encoder().encode
_OWN_HOSTS: Final = ("api.openai.com", ".openai.azure.com", ".cognitiveservices.azure.com")
_OWN_MODELS: Final = re.compile(r"(?:^|/)(?:o\d|gpt-[5-9]|gpt-\d\d|chatgpt-|codex-)")
"""OpenAI's models since they reason; gateways put a vendor's name before them."""
_UNKNOWN_TO_OPENAI: Final = frozenset({"top_k", "repetition_penalty", "enable_thinking", "thinking_budget"})


class OpenAI:
    """Implements `router.provider.Provider`."""

    Options: ClassVar[type[Struct]] = Options
    base_url: ClassVar[str | None] = "https://api.openai.com/v1"

    def __init__(self, settings: ProviderSettings) -> None:
        options = settings.options if settings.options is not None else Options()
        self._options: Options = options
        self._key = settings.api_key
        self._lessons = Lessons()
        self._url = settings.base_url.rstrip("/") + options.path
        if options.query:
            self._url += ("&" if "?" in self._url else "?") + urlencode(options.query)
        host = urlsplit(settings.base_url).hostname or ""
        self._is_openai = host.endswith(_OWN_HOSTS)
        self._quota_refills = host.endswith(".aliyuncs.com")
        headers = {"content-type": "application/json"}
        if self._key is not None:
            if options.auth == "bearer":
                headers["authorization"] = f"Bearer {self._key}"
            else:
                headers["api-key"] = self._key
        own = {name.lower(): value for name, value in settings.headers.items()}
        self._headers = {**headers, "accept": "application/json", **own}
        self._stream_headers = {**headers, "accept": "text/event-stream, application/json", **own}

    def encode(self, request: ChatRequest, target: Target) -> HttpRequest:
        body, dropped = body_of(request, target.model, self._manner(target.model))
        headers = self._stream_headers if request.stream else self._headers
        return HttpRequest(self._address(target.model), headers.copy(), _encode(body), request.stream, dropped=dropped)

    def decoder(self, request: ChatRequest, target: Target, sent: HttpRequest, head: HttpHead) -> ChatDecoder:
        return ChatDecoder(request, target, head, self._options, quota_refills=self._quota_refills, key=self._key)

    def error(self, response: HttpError, target: Target) -> ProviderError:
        said = extract_error(response.body, response.headers.get("content-type"))
        failures = Failures(target.provider, response.headers, quota_refills=self._quota_refills, key=self._key)
        return failures.answered(said, response.status)

    def learn(self, error: ProviderError, target: Target, sent: HttpRequest) -> bool:
        return self._lessons.learn(error, target.model, sent.body)

    def continued(self, request: ChatRequest, target: Target) -> ChatRequest | None:
        """The request as it is, where the vendor can be told that its last message is to be continued.

        A model that is asked to think would begin anew, or the vendor refuse: it is told in words.
        """
        thinking = request.thinking
        thinks = thinking.enabled
        if thinks is None:
            thinks = bool(thinking.budget) or thinking.effort not in (None, "none")
        return None if thinks or self._options.prefill == "none" else request

    def _address(self, model: str) -> str:
        return self._url.replace("{model}", quote(model, safe="")) if "{model}" in self._url else self._url

    def _manner(self, model: str) -> Manner:
        options, facts = self._options, self._lessons.of(model)
        modern = self._is_openai or _OWN_MODELS.search(model) is not None
        field = facts.max_tokens_field or options.max_tokens_field
        if field == "auto":
            field = "max_completion_tokens" if modern else "max_tokens"
        developer = facts.developer if facts.developer is not None else options.developer_role
        drop = facts.drop.union(options.drop) if options.drop else facts.drop
        return Manner(
            field,
            modern if developer == "auto" else developer,
            options.stream_options and self._lessons.stream_options,
            options.echo_reasoning,
            options.extra_fields == "forward",
            drop | _UNKNOWN_TO_OPENAI if self._is_openai else drop,
            options.prefill,
        )
