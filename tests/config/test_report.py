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


ROUTES = """
providers:
  a: {protocol: mock}
  b: {protocol: openai, base_url: "https://b.example.com/v1", api_key: "${B_KEY}"}
models:
  mixed:
    targets: [{target: a/x, weight: 3}, {target: b/y, region: eu}]
    balance: weighted
    fallback: {context_length: [a/long]}
    hedge: {after: 800ms}
    continuation: true
  fast: {targets: [a/x, a/y], balance: latency}
experiments:
  trial:
    route: mixed
    unit: user
    arms: {control: {share: 90}, other: {share: 10, target: b/y}}
    holdout: 5
    shadow: {target: a/z, share: 2, budget: 3 USD}
"""


def test_the_report_says_how_a_route_chooses_and_what_it_does_when_a_target_fails() -> None:
    lines = report(parse(ROUTES, "c.yaml", {}).config)
    assert (
        "  mixed  a/x ×3, b/y ×1 in eu (unavailable); by weight; context_length → a/long; hedged after 800ms; "
        "continued in the middle" in lines
    )
    assert "  fast   a/x, a/y; the fastest first" in lines
    assert lines[lines.index("experiments") + 1] == (
        "  trial  on mixed by user: control 90 %, other 10 %; 5 % held out; shadow a/z 2 % up to 3.00 USD"
    )
