"""What a row in `providers.yaml` may say about an OpenAI-compatible vendor. The defaults suit most of them."""

from typing import Literal

from msgspec import Struct


class Options(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How this vendor differs from the others that speak Chat Completions.

    Most refusals (`stream_options`, `max_completion_tokens`, the `developer` role, single fields) need no option: they
    are learned from the vendor's first 400, at the price of that one request.
    """

    path: str = "/chat/completions"
    """Added to `base_url`. `{model}` in it becomes the model's name (Azure's deployments)."""
    query: dict[str, str] = {}
    """Added to the address, as Azure's `api-version`."""
    auth: Literal["bearer", "api-key"] = "bearer"
    """The header that carries the key: `authorization: Bearer …` or `api-key: …`."""
    max_tokens_field: Literal["auto", "max_completion_tokens", "max_tokens"] = "auto"
    """`auto`: `max_completion_tokens` for OpenAI's own hosts and models, `max_tokens` for all others."""
    developer_role: bool | Literal["auto"] = "auto"
    """Whether the role `developer` is sent; where it is not it becomes `system`. `auto` as above."""
    stream_options: bool = True
    """Whether a streamed answer's usage can be asked for."""
    drop: tuple[str, ...] = ()
    """Request fields that the vendor refuses; they are left out and reported."""
    extra_fields: Literal["forward", "drop"] = "forward"
    """What becomes of request fields that the protocol does not name."""
    echo_reasoning: Literal["never", "tool_calls", "always"] = "never"
    """Whether earlier turns' reasoning goes back as `reasoning_content`. `tool_calls`: of turns that called a tool."""
    think_tags: bool = False
    """Whether a thought in `<think>…</think>` at the start of the content is reasoning."""
    think_opened: bool = False
    """With `think_tags`: the vendor writes the opening tag into the prompt, so the answer begins inside the thought."""
    prefill: Literal["none", "plain", "prefix", "partial", "continue_final_message"] = "none"
    """How the vendor is told to go on with a last message of the assistant's, not to answer it: by `prefix: true` in it
    (Mistral, DeepSeek at `/beta`), by `partial: true` (DashScope, Moonshot), by `continue_final_message: true`
    beside it (vLLM, llama.cpp). `plain`: it does so by itself; `none`: it does not."""
    no_finish: Literal["error", "length"] = "error"
    """What an answer is that ends without any finish reason: an error, or one that was cut at the token limit."""
