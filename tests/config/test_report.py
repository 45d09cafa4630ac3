"""What `deltaway check` says about a valid file."""

from router.config import defaults, parse
from router.report import report

TEXT = """
server: {heartbeat: 0s, body_limit: 1500KB, cors: {allow_origins: ["https://a.b", "https://c.d"]}}
providers:
  openai: {protocol: openai, base_url: "https://api.openai.com/v1", api_key: "${OPENAI_API_KEY}"}
  mock: {protocol: mock}
models:
  chat: {targets: [openai/gpt-5-mini, mock/echo]}
  longer: {targets: [mock/echo]}
"""


def test_the_report_of_a_file_with_a_missing_key() -> None:
    assert report(parse(TEXT, "c.yaml", {}).config) == [
        "valid: 2 providers, 2 routes; without a key: openai",
        "",
        "providers",
        "  openai  openai https://api.openai.com/v1 (unavailable: set OPENAI_API_KEY)",
        "  mock    mock",
        "",
        "routes (any provider/model works beside them)",
        "  chat    openai/gpt-5-mini (unavailable), then mock/echo",
        "  longer  mock/echo",
        "",
        "plugins, outermost first",
        "  logging, usage",
        "",
        "ledger",
        "  sqlite:///deltaway.db, durability process, journal in deltaway.journal",
        "",
        "server",
        "  heartbeat off",
        "  body limit 1500000B",
        "  cors https://a.b, https://c.d",
        "  shutdown after 2s, running answers get 30s",
    ]


def test_the_report_never_shows_a_key() -> None:
    assert not any("hunter2" in line for line in report(parse(TEXT, "c.yaml", {"OPENAI_API_KEY": "hunter2"}).config))


def test_the_report_without_a_file() -> None:
    lines = report(defaults().config)
    assert lines[0] == "valid: 1 provider, 0 routes"
    assert "  none" in lines


def test_the_report_names_the_store_without_its_password_and_the_prices() -> None:
    config = parse("store: postgresql://me:hunter2@db.example.com/deltaway\n", "c.yaml", {}).config
    lines = report(config, {"mock/echo": "free"})
    assert "  postgresql://me@db.example.com/deltaway, durability store, journal in deltaway.journal" in lines
    assert lines[lines.index("prices (of a million tokens)") + 1] == "  mock/echo  free"
