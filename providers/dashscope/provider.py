"""The adapter of DashScope's native protocol. Sans-io: it holds no socket and no clock.

Each model answers on one of two service paths, and many models answer only in a stream, or think only there. What
the table of families does not know is learned from the vendor's errors, so that one try in a process pays for it.
"""

import re
from typing import ClassVar, Final

import msgspec
from msgspec import Struct

from providers.dashscope.decoder import AnswerDecoder
from providers.dashscope.errors import classify, says_other_path, says_stream_only, says_string_only
from providers.dashscope.families import PATHS, Path, family_of
from providers.dashscope.lessons import Lesson, Lessons
from providers.dashscope.request import draft
from router.errors import ProviderError
from router.messages import Assistant, ChatRequest
from router.provider import Decoder, HttpError, HttpHead, HttpRequest, ProviderSettings, Target
from router.wire.vendor_error import extract_error

_WORKSPACE: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_HEADER_VALUE: Final = re.compile(r"[\x20-\x7e]+")


class Options(Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of a provider row with `protocol: dashscope`."""

    workspace: str | None = None
    """The workspace that calls count for, on a host that several share."""
    data_inspection: str | None = None
    """What the vendor's content inspection does, as its header has it: `{"input": "cip", "output": "cip"}`."""
    path: dict[str, Path] = {}
    """Which service a model is bound to, where the built-in table is wrong: `{my-model: multimodal}`."""
    parameters: tuple[str, ...] = ()
    """Names of more DashScope parameters that clients may send, for those that are newer than this adapter."""

    def __post_init__(self) -> None:
        if self.workspace is not None and not _WORKSPACE.fullmatch(self.workspace):
            raise ValueError("`workspace` must be 1 to 64 letters, digits, `_` or `-`")
        if self.data_inspection is not None and not _HEADER_VALUE.fullmatch(self.data_inspection):
            raise ValueError("`data_inspection` must be printable ASCII")


class DashScope:
    """Alibaba Cloud Model Studio by its own protocol, at a `base_url` that ends in `/api/v1`."""

    Options: ClassVar[type[Struct]] = Options
    base_url: ClassVar[str | None] = "https://dashscope.aliyuncs.com/api/v1"

    def __init__(self, settings: ProviderSettings) -> None:
        options = settings.options
        self._options = options if isinstance(options, Options) else Options()
        self._base_url = settings.base_url.rstrip("/")
        self._parameters = frozenset(self._options.parameters)
        self._key = settings.api_key
        self._lessons = Lessons()
        self._headers = {"content-type": "application/json", "accept": "application/json"}
        if settings.api_key:
            self._headers["authorization"] = f"Bearer {settings.api_key}"
        if self._options.workspace is not None:
            self._headers["x-dashscope-workspace"] = self._options.workspace
        if self._options.data_inspection is not None:
            self._headers["x-dashscope-datainspection"] = self._options.data_inspection
        self._own_headers = {name.lower(): value for name, value in settings.headers.items()}

    def encode(self, request: ChatRequest, target: Target) -> HttpRequest:
        model = target.model
        written = draft(
            request,
            model,
            family_of(model),
            self._lessons.of(model),
            path=self._options.path.get(model),
            known=self._parameters,
        )
        headers = dict(self._headers)
        if written.streamed:
            headers["accept"] = "text/event-stream"
            headers["x-dashscope-sse"] = "enable"
        if written.uses_oss:
            headers["x-dashscope-ossresourceresolve"] = "enable"
        return HttpRequest(
            self._base_url + PATHS[written.path],
            headers | self._own_headers,
            msgspec.json.encode(written.body),
            written.streamed,
            dropped=written.dropped,
        )

    def decoder(self, request: ChatRequest, target: Target, sent: HttpRequest, head: HttpHead) -> Decoder:
        return AnswerDecoder(str(target), target.model, request.protocol, head.headers, self._key)

    def error(self, response: HttpError, target: Target) -> ProviderError:
        said = extract_error(response.body, response.headers.get("content-type"))
        return classify(said, response.status, source=str(target), headers=response.headers, key=self._key)

    def continued(self, request: ChatRequest, target: Target) -> ChatRequest | None:
        """The last message marked `partial`, which models do not take that think."""
        family, thinking, last = family_of(target.model), request.thinking, request.messages[-1]
        asked = request.extra.get("enable_thinking") if thinking.enabled is None else thinking.enabled
        thinks = bool(asked) or (asked is None and (bool(thinking.budget) or thinking.effort not in (None, "none")))
        if thinks or family.thinking == "always" or not family.partial or not isinstance(last, Assistant):
            return None
        marked = msgspec.structs.replace(last, extra={**last.extra, "partial": True})
        return msgspec.structs.replace(request, messages=(*request.messages[:-1], marked))

    def learn(self, error: ProviderError, target: Target, sent: HttpRequest) -> bool:
        """Whether the request, encoded anew, differs from `sent` by what the error says.

        Of calls that run side by side and meet the same error, each gets its second try: the lesson is new to all
        that were sent before it.
        """
        lesson = self._lessons.of(target.model)
        learned = self._learned(error, lesson, sent, bound=target.model in self._options.path)
        if learned is None:
            return False
        if learned != lesson:
            self._lessons.learn(target.model, learned)
        return True

    def _learned(self, error: ProviderError, lesson: Lesson, sent: HttpRequest, *, bound: bool) -> Lesson | None:
        if says_other_path(error) and not bound:
            failed: Path = "text" if sent.url.endswith(PATHS["text"]) else "multimodal"
            other: Path = "multimodal" if failed == "text" else "text"
            if other in lesson.refused:
                return None
            return msgspec.structs.replace(lesson, path=other, refused=lesson.refused | {failed})
        if says_stream_only(error) and not sent.streamed:
            return msgspec.structs.replace(lesson, stream_only=True)
        if says_string_only(error) and b'"cache_control"' in sent.body and not lesson.plain_content:
            return msgspec.structs.replace(lesson, plain_content=True)
        return None
