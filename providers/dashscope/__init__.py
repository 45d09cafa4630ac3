"""The native DashScope protocol of Alibaba Cloud Model Studio: Qwen and the models it hosts."""

from providers.dashscope.provider import DashScope

__all__ = ["DashScope"]
