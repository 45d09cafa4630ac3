"""A wrong file is an error that names line, column and what to do: one table, a mistake a row."""

from pathlib import Path

import pytest

from router.config import ConfigError, Problem, load, parse

PROTOCOLS = ("openai", "dashscope", "mock")
PLUGINS = ("logging", "auth", "usage")
MOCK = "providers: {mock: {protocol: mock}}\n"


def errors(text: str, environ: dict[str, str] | None = None) -> list[str]:
    """The problems of a text, without the file's name."""
    with pytest.raises(ConfigError) as caught:
        parse(text, "c.yaml", environ or {}, protocols=PROTOCOLS, plugins=PLUGINS)
    assert all(problem.file == "c.yaml" for problem in caught.value.problems)
    return [str(problem).removeprefix("c.yaml:") for problem in caught.value.problems]


TOP = (
    "(known: conversations, experiments, health, ledger, models, plugins, prices, providers, server, shared, store, "
    "streams)"
)
ROW = (
    "(known: api_key, api_keys, base_url, can, headers, max_parallel, models, options, price_list, protocol, region, "
    "timeouts, transport)"
)
TOO_LARGE = "the file is larger than 1 MiB, which no configuration needs: is it the right one?"
OWN = "your own: package.module:Class)"
DURATION = "must be a duration of zero or more, such as 500ms, 15s, 2m or 1h"
SIZE = "must be a size of zero or more, such as 32MiB, 10MB or 512KB, or a whole number of bytes"

YAML = {
    "empty": ("", "1:1: the file is empty: write `providers:` and at least one provider, or remove it"),
    "comments-only": (
        "# nothing\n",
        "1:1: the file is empty: write `providers:` and at least one provider, or remove it",
    ),
    "list": ("- a\n", "1:1: the file must be a mapping of keys to values, not a list"),
    "text": ("hello\n", "1:1: the file must be a mapping of keys to values, not text"),
    "null": ("null\n", "1:1: the file must be a mapping of keys to values, not null"),
    "two-documents": (f"{MOCK}---\n{MOCK}", "2:1: a second document begins here: keep one per file"),
    "tab": ("server:\n\theartbeat: 1s\n", "2:1: a tab cannot indent YAML: use spaces"),
    "tab-after-spaces": ("server:\n  \theartbeat: 1s\n", "2:3: a tab cannot indent YAML: use spaces"),
    "colon": (
        "server: heartbeat: 1s\n",
        "1:18: a `:` may not stand here: put the text in quotes, or mend the indentation",
    ),
    "indentation": (
        "server:\n    heartbeat: 1s\n  body_limit: 1MB\n",
        "3:3: this line does not fit the block that began at line 1, column 1: mend the indentation",
    ),
    "open-list": (
        "plugins: [logging\nserver: {}\n",
        "2:7: the bracket opened at line 1, column 10 is not closed: a comma or `]` is missing",
    ),
    "open-mapping": (
        "server: {heartbeat: 1s\n",
        "2:1: the bracket opened at line 1, column 9 is not closed: a comma or `}` is missing",
    ),
    "open-quote": ("plugins: ['logging\n", "2:1: the quote opened at line 1, column 11 is not closed"),
    "no-colon": (f"{MOCK}plugins\n", "2:1: this key has no `:` after it"),
    "at-sign": ("plugins: [@a]\n", "1:11: text cannot begin with `@`: put it in quotes"),
    "escape": (
        'plugins: ["\\q"]\n',
        "1:12: unknown escape in double quotes: write `\\\\` for a backslash, or use single quotes",
    ),
    "variable-in-brackets": (
        "server: {heartbeat: ${X}}\n",
        '1:22: a variable inside brackets needs quotes: write "${NAME}" before the `}`',
    ),
    "control-character": ("server: \x07\n", "1:9: the character U+0007 may not stand in YAML"),
    "lone-surrogate": ("server:\n  \ud800: 1\n", "2:3: the character U+D800 may not stand in YAML"),
    "unknown-alias": (
        "server: &server {}\nplugins: *sever\n",
        "2:10: no anchor `&sever` comes before this alias: did you mean `server`?",
    ),
    "alias-in-itself": ("plugins: &a [*a]\n", "1:14: the alias `*a` stands inside what it names"),
    "merge-of-text": (
        f"{MOCK}server: {{<<: text}}\n",
        "2:14: `<<` merges a mapping, or a list of them, not text",
    ),
    "mapping-as-key": (
        "server: {{heartbeat}}\n",
        "1:10: a mapping cannot be a key: put quotes around text that begins with `{`",
    ),
    "list-as-key": ("server: {[a]: b}\n", "1:10: a list cannot be a key"),
    "python-tag": ("plugins: [!!python/name:os.system x]\n", "1:11: this YAML tag means nothing here: remove it"),
    "wrong-tag": ("plugins: [!!int logging]\n", "1:11: this is not what its tag `!!int` says"),
    "deep": (f"plugins: {'[' * 70}", "1:74: nested deeper than 64 levels"),
    "large": (
        "#" * 1_048_577,
        "1:1: the file is larger than 1 MiB, which no configuration needs: is it the right one?",
    ),
}


@pytest.mark.parametrize(("text", "expected"), YAML.values(), ids=YAML)
def test_what_is_not_yaml_is_said_in_plain_words(text: str, expected: str) -> None:
    assert expected in errors(text)


KEYS = {
    "top": ("servers: {}\n", f"1:1: unknown key `servers`: did you mean `server`? {TOP}"),
    "not-near": ("zebra: none\n", f"1:1: unknown key `zebra` {TOP}"),
    "server": (
        "server: {heartbeet: 1s}\n",
        (
            "1:10: unknown key `heartbeet` in `server`: did you mean `heartbeat`? "
            "(known: body_limit, cors, heartbeat, on_disconnect, region, shutdown, watch)"
        ),
    ),
    "cors": (
        'server: {cors: {allow_origins: ["*"], allow_origin: "*"}}\n',
        (
            "1:39: unknown key `allow_origin` in `server.cors`: did you mean `allow_origins`? "
            "(known: allow_credentials, allow_origins, max_age)"
        ),
    ),
    "shutdown": (
        "server: {shutdown: {wait: 1s}}\n",
        "1:21: unknown key `wait` in `server.shutdown` (known: delay, grace)",
    ),
    "provider": (
        "providers: {a: {protocol: openai, api_kez: x}}\n",
        f"1:35: unknown key `api_kez` in `providers.a`: did you mean `api_key`? {ROW}",
    ),
    "provider-field-of-the-row-that-is-not-a-key": (
        "providers: {a: {protocol: openai, missing: []}}\n",
        f"1:35: unknown key `missing` in `providers.a` {ROW}",
    ),
    "timeouts": (
        "providers: {a: {protocol: mock, timeouts: {read: 1s}}}\n",
        "1:44: unknown key `read` in `providers.a.timeouts` (known: connect, first_token, idle, min_rate, total)",
    ),
    "route": (
        f"{MOCK}models: {{chat: {{targets: [mock/echo], mirror: {{}}}}}}\n",
        (
            "2:39: unknown key `mirror` in `models.chat` "
            "(known: balance, context, continuation, fallback, hedge, on_disconnect, retry, targets, timeouts)"
        ),
    ),
    "target": (
        f"{MOCK}models: {{chat: {{targets: [{{target: mock/echo, wate: 3}}]}}}}\n",
        (
            "2:47: unknown key `wate` in `models.chat.targets[0]` "
            "(known: can, max_parallel, region, target, weight, when)"
        ),
    ),
    "twice": (
        "server:\n  heartbeat: 1s\n  heartbeat: 2s\n",
        "3:3: `heartbeat` is here for the second time, first in line 2",
    ),
    "provider-twice": (
        "providers:\n  a: {protocol: mock}\n  b: {protocol: mock}\n  a: {protocol: openai}\n",
        "4:3: `a` is here for the second time, first in line 2",
    ),
    "variable-in-key": (
        "server: {'${KEY}': 1}\n",
        "1:10: variables are replaced in values, not in keys: write the key out",
    ),
    "protocol-missing": ("providers:\n  a:\n    models: [x]\n", "3:5: `providers.a` needs the key `protocol`"),
    "targets-missing": (f"{MOCK}models: {{chat: {{}}}}\n", "2:16: `models.chat` needs the key `targets`"),
    "origins-missing": ("server: {cors: {}}\n", "1:16: `server.cors` needs the key `allow_origins`"),
    "no-value": ("server:\nplugins: []\n", "1:1: `server` has no value: write one, or remove the key"),
    "no-optional-value": (
        "providers:\n  a:\n    protocol: openai\n    api_key:\n",
        "4:5: `providers.a.api_key` has no value: write one, or remove the key",
    ),
}


@pytest.mark.parametrize(("text", "expected"), KEYS.values(), ids=KEYS)
def test_a_wrong_key_is_pointed_at(text: str, expected: str) -> None:
    assert errors(text) == [expected]


VALUES = {
    "rate-in-itself": (
        "prices:\n  currency: EUR\n  rates: {USD: 1.1, EUR: 2}\n",
        "3:26: `prices.rates.EUR` is a rate of `prices.currency` in itself: remove it, or name another currency",
    ),
    "bare-duration": (
        "server: {heartbeat: 15}\n",
        "1:21: `server.heartbeat` must be a duration with a unit: write 15s, or 15ms, …",
    ),
    "bare-zero": (
        "server: {heartbeat: 0}\n",
        "1:21: `server.heartbeat` must be a duration with a unit: write 0s, or 0ms, …",
    ),
    "negative-duration": ("server: {heartbeat: -1s}\n", f"1:21: `server.heartbeat` {DURATION}"),
    "sexagesimal": ("server: {heartbeat: 1:30}\n", f"1:21: `server.heartbeat` {DURATION}"),
    "duration-as-list": ("server: {heartbeat: [1s]}\n", f"1:21: `server.heartbeat` {DURATION}"),
    "endless-duration": ("server: {heartbeat: 721h}\n", "1:21: `server.heartbeat` must be at most 720h"),
    "size": ("server: {body_limit: 32 megs}\n", f"1:22: `server.body_limit` {SIZE}"),
    "negative-size": ("server: {body_limit: -1}\n", f"1:22: `server.body_limit` {SIZE}"),
    "small-body": ("server: {body_limit: 10B}\n", "1:9: `server`: `body_limit` must be from 1KiB to 1GiB"),
    "yes": (
        'server: {cors: {allow_origins: ["https://a.b"], allow_credentials: yes}}\n',
        "1:68: `server.cors.allow_credentials` must be true or false, not text: write true",
    ),
    "origin-with-path": (
        'server: {cors: {allow_origins: ["https://a.b/"]}}\n',
        (
            "1:33: `server.cors.allow_origins[0]` must be an origin such as https://chat.example.com, "
            'without a path or a slash, or "*"'
        ),
    ),
    "credentials-for-all": (
        'server: {cors: {allow_origins: ["*"], allow_credentials: true}}\n',
        '1:16: `server.cors`: browsers refuse `allow_credentials` together with "*": list the origins one by one',
    ),
    "no-origins": (
        "server: {cors: {allow_origins: []}}\n",
        "1:16: `server.cors`: `allow_origins` is empty: list an origin, or remove `cors`",
    ),
    "list-for-mapping": ("server: []\n", "1:9: `server` must be a mapping of keys to values, not a list"),
    "mapping-for-list": ("plugins: {auth: {}}\n", "1:10: `plugins` must be a list, not a mapping"),
    "number-for-text": (
        "providers: {a: {protocol: 1}}\n",
        "1:27: `providers.a.protocol` must be text, not a number: put it in quotes",
    ),
    "number-for-key": (
        "providers: {a: {protocol: openai, api_key: 12345}}\n",
        "1:44: `providers.a.api_key` must be text: put it in quotes",
    ),
    "key-with-line-break": (
        'providers: {a: {protocol: openai, api_key: "k\\n"}}\n',
        "1:44: `providers.a.api_key` must be text of printable ASCII characters, without white space or a line break",
    ),
    "zero-parallel": (
        "providers: {a: {protocol: openai, max_parallel: 0}}\n",
        "1:49: `providers.a.max_parallel` must be at least 1",
    ),
    "quoted-number": (
        "providers: {a: {protocol: openai, max_parallel: '7'}}\n",
        "1:49: `providers.a.max_parallel` must be a whole number, not text: remove the quotes",
    ),
    "transport": (
        "providers: {a: {protocol: openai, transport: htpx}}\n",
        "1:46: `providers.a.transport` must be one of native, aiohttp, httpx: did you mean `httpx`?",
    ),
    "framing-header": (
        "providers: {a: {protocol: openai, headers: {Content-Length: '3'}}}\n",
        "1:45: the key `Content-Length` is a header that the connection sets itself: remove it",
    ),
    "header-name": (
        "providers: {a: {protocol: openai, headers: {x team: a}}}\n",
        "1:45: the key `x team` is not a header name: it may hold letters, digits and -",
    ),
    "header-value": (
        'providers: {a: {protocol: openai, headers: {x: "a\\nb"}}}\n',
        "1:48: `providers.a.headers.x` must be text of printable ASCII characters",
    ),
    "unnamable-provider": (
        "providers: {a/b: {protocol: openai}}\n",
        "1:13: `a/b` cannot name a provider: use letters, digits and `.`, `_`, `-` inside",
    ),
    "no-provider": (
        "providers: {}\n",
        "1:12: `providers` is empty: write a provider, or remove it to have `mock` alone",
    ),
    "protocol": (
        "providers: {a: {protocol: opnai}}\n",
        (
            "1:27: unknown protocol `opnai`: did you mean `openai`? "
            "(known: dashscope, mock, openai; your own: package.module:Class)"
        ),
    ),
    "dotted-protocol": (
        "providers: {a: {protocol: 'my:own:Class'}}\n",
        "1:27: `providers.a.protocol` must be written `package.module:Class`",
    ),
    "model-number": (
        "providers: {a: {protocol: openai, models: [4.1]}}\n",
        "1:44: `providers.a.models[0]` must be text, not a number: put it in quotes",
    ),
    "model-twice": (
        "providers: {a: {protocol: openai, models: [x, y, x]}}\n",
        "1:50: `providers.a.models[2]` is in the list twice: remove one",
    ),
    "region-list": (
        'server: {region: "eu, us"}\n',
        "1:18: `server.region` must be one word without commas, such as eu",
    ),
    "region-of-a-provider": (
        'providers: {a: {protocol: mock, region: ""}}\n',
        "1:41: `providers.a.region` must be one word without commas, such as eu",
    ),
    "region-of-a-target": (
        f"{MOCK}models: {{chat: {{targets: [{{target: mock/echo, region: 'eu,us'}}]}}}}\n",
        "2:55: `models.chat.targets[0].region` must be one word without commas, such as eu",
    ),
    "zero-timeout": (
        "providers: {a: {protocol: mock, timeouts: {idle: 0s}}}\n",
        "1:50: `providers.a.timeouts.idle` must be more than 0s: an answer needs some time",
    ),
    "idle-timeout": (
        "providers: {a: {protocol: mock, timeouts: {idle: 2m, total: 1m}}}\n",
        "1:43: `providers.a.timeouts`: `idle` is longer than `total`, which ends the attempt before it",
    ),
    "unnamable-route": (
        f"{MOCK}models: {{my chat: {{targets: [mock/echo]}}}}\n",
        "2:10: `my chat` cannot name a route: use printable ASCII without white space",
    ),
    "no-target": (
        f"{MOCK}models: {{chat: {{targets: []}}}}\n",
        "2:26: `models.chat.targets` is empty: list a target, provider/model",
    ),
    "target-without-slash": (
        f"{MOCK}models: {{chat: {{targets: [gpt]}}}}\n",
        "2:27: `models.chat.targets[0]` `gpt` is not a target, which is provider/model",
    ),
    "target-without-model": (
        f"{MOCK}models: {{chat: {{targets: [mock]}}}}\n",
        (
            "2:27: `models.chat.targets[0]` `mock` is not a target, which is provider/model: "
            "write `mock/` and the model's name"
        ),
    ),
    "unknown-provider": (
        f"{MOCK}models: {{chat: {{targets: [{{target: mok/echo}}]}}}}\n",
        "2:36: unknown provider `mok`: did you mean `mock`? (providers here: mock)",
    ),
    "target-twice": (
        f"{MOCK}models: {{chat: {{targets: [mock/echo, {{target: mock/echo}}]}}}}\n",
        "2:47: `models.chat.targets[1]` is in the list twice",
    ),
    "plugin": (
        "plugins: [auht]\n",
        f"1:11: unknown plugin `auht`: did you mean `auth`? (known: auth, logging, usage; {OWN}",
    ),
    "plugin-with-settings": (
        "plugins: [auht: {}]\n",
        f"1:11: unknown plugin `auht`: did you mean `auth`? (known: auth, logging, usage; {OWN}",
    ),
    "plugin-twice": ("plugins: [auth, auth: {}]\n", "1:17: `plugins[1]` is in the list twice: remove one"),
    "two-plugins-in-one": (
        "plugins: [{auth: {}, usage: {}}]\n",
        "1:11: `plugins[0]` must be one plugin: begin each with its own `-`",
    ),
    "plugin-settings": (
        "plugins: [auth: 1]\n",
        "1:17: `plugins[0].auth` must be a mapping of keys to values, not a number",
    ),
}
TWO = "targets: [mock/echo, mock/tools]"
NO_EFFECT = {
    "weight-when-ordered": (
        "targets: [{target: mock/echo, weight: 1}, mock/tools]",
        (
            "3:48: `models.chat.targets[0].weight` means nothing with `balance: ordered`: "
            "write `balance: weighted`, or remove it"
        ),
    ),
    "weight-of-a-fallback": (
        "targets: [mock/echo], balance: cost, fallback: {unsupported: [mock/tools, {target: mock/lorem-5, weight: 0}]}",
        (
            "3:115: `models.chat.fallback.unsupported[1].weight` means nothing with `balance: cost`: "
            "write `balance: weighted`, or remove it"
        ),
    ),
    "hedge-of-one-target": (
        "targets: [mock/echo], fallback: {unsupported: [mock/tools]}, hedge: {after: 1s}",
        "3:78: `models.chat.hedge` needs a second target to ask: list one, or remove `hedge`",
    ),
    "hedge-after-the-first-token": (
        f"{TWO}, hedge: {{after: 5s}}, timeouts: {{first_token: 5s}}",
        "3:59: `models.chat.hedge.after` is not shorter than `timeouts.first_token`, which ends the attempt before it",
    ),
    "hedge-after-the-end": (
        f"{TWO}, hedge: {{after: 2m}}, timeouts: {{total: 1m}}",
        "3:59: `models.chat.hedge.after` is not shorter than `timeouts.total`, which ends the attempt before it",
    ),
    "hedge-of-no-call": (
        f"{TWO}, hedge: {{after: 1s, share: 0%}}",
        "3:70: `models.chat.hedge.share` is 0%, so that no call is hedged: remove `hedge`",
    ),
    "hedge-without-a-second-attempt": (
        f"{TWO}, hedge: {{after: 1s}}, retry: {{attempts: 1}}",
        (
            "3:82: `models.chat.retry.attempts` is 1, so that no call is hedged, which takes a second attempt: "
            "write 2, or remove `hedge`"
        ),
    ),
}
URL = "1:45: `providers.a.base_url`"
ADDRESSES = {
    "api.example.com/v1": f"{URL} must be a URL that begins with https:// or http:// and a host",
    "ftp://example.com": f"{URL} must be a URL that begins with https:// or http:// and a host",
    "https:///v1": f"{URL} must be a URL that begins with https:// or http:// and a host",
    "https://[::1/v1": f"{URL} must be a URL such as https://api.example.com/v1: its host or port is not valid",
    "https://a:99999": f"{URL} must be a URL such as https://api.example.com/v1: its host or port is not valid",
    "https://a b": f"{URL} must be a URL: this one holds white space or a control character",
    "https://u:p@a.b": f"{URL} may not hold a user or password: write `api_key` or `headers` instead",
    "https://a.b?v=1": f"{URL} may not have a `?` or `#` part: paths are added at its end",
    "": f"{URL} must be a URL such as https://api.example.com/v1",
}
VARIABLES = {
    "unset": (
        'server: {heartbeat: "${BEAT}"}\n',
        "1:21: `${BEAT}` is not set: set BEAT, or write `${BEAT:-default}`",
    ),
    "empty": (
        'server: {heartbeat: "${EMPTY}"}\n',
        "1:21: `${EMPTY}` is not set: set EMPTY, or write `${EMPTY:-default}`",
    ),
    "in-a-target": (
        f'{MOCK}models: {{chat: {{targets: ["mock/${{MODEL}}"]}}}}\n',
        "2:27: `${MODEL}` is not set: set MODEL, or write `${MODEL:-default}`",
    ),
    "in-plugin-settings": (
        'plugins: [auth: {a: ["${KEY}"]}]\n',
        "1:22: `${KEY}` is not set: set KEY, or write `${KEY:-default}`",
    ),
    "bad-name": (
        'server: {heartbeat: "${1X}"}\n',
        "1:21: `${` begins a variable: write `${NAME}` or `${NAME:-default}`, or `$${` for the characters",
    ),
    "not-closed": (
        'server: {heartbeat: "${X"}\n',
        "1:21: `${` begins a variable: write `${NAME}` or `${NAME:-default}`, or `$${` for the characters",
    ),
}


@pytest.mark.parametrize(("text", "expected"), VALUES.values(), ids=VALUES)
def test_a_wrong_value_is_pointed_at(text: str, expected: str) -> None:
    assert errors(text) == [expected]


@pytest.mark.parametrize(("route", "expected"), NO_EFFECT.values(), ids=NO_EFFECT)
def test_what_would_do_nothing_is_pointed_at(route: str, expected: str) -> None:
    assert errors(f"{MOCK}models:\n  chat: {{{route}}}\n") == [expected]


@pytest.mark.parametrize(
    "route",
    [
        "targets: [{target: mock/echo, weight: 3}], balance: weighted",
        f"{TWO}, hedge: {{after: 4s}}, retry: {{attempts: 2}}, timeouts: {{first_token: 5s, total: 5s}}",
        f"{TWO}, retry: {{attempts: 1}}",
        "targets: [mock/echo], balance: latency, continuation: true, retry: {attempts: 1}",
    ],
)
def test_what_does_something_is_valid(route: str) -> None:
    assert parse(f"{MOCK}models:\n  chat: {{{route}}}\n", "c.yaml", {}).config.models


@pytest.mark.parametrize(("address", "expected"), ADDRESSES.items())
def test_a_wrong_address_is_pointed_at(address: str, expected: str) -> None:
    assert errors(f"providers: {{a: {{protocol: openai, base_url: '{address}'}}}}\n") == [expected]


@pytest.mark.parametrize(("text", "expected"), VARIABLES.values(), ids=VARIABLES)
def test_a_variable_that_is_wrong_or_not_set_is_pointed_at(text: str, expected: str) -> None:
    assert expected in errors(text, {"EMPTY": ""})


def test_all_problems_are_told_in_the_order_of_the_text() -> None:
    text = (
        "server: {heartbeat: 5}\n"
        "providers:\n"
        "  a: {protocol: openai, base_url: x, max_parallel: none}\n"
        "  b: {protocl: openai}\n"
        "models:\n"
        "  chat: {targets: [c/x, a/y], weights: 3}\n"
        "plugins: [logging, logging]\n"
    )
    places = [error.split(": ")[0] for error in errors(text)]
    assert places == ["1:21", "3:35", "3:52", "4:6", "4:7", "6:20", "6:31", "7:20"]


def test_a_row_that_cannot_be_read_is_still_known_to_the_routes() -> None:
    text = "providers: {a: {protocol: openai, max_parallel: 0}}\nmodels: {chat: {targets: [a/x]}}\n"
    assert len(errors(text)) == 1


def test_an_alias_repeats_no_problem() -> None:
    text = f"{MOCK}models:\n  a: &a {{targets: [mok/echo]}}\n  b: *a\n"
    assert errors(text) == ["3:20: unknown provider `mok`: did you mean `mock`? (providers here: mock)"]


def test_a_document_cannot_be_blown_up_by_aliases() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    assert errors("\n".join(lines)) == ["5:45: the document has more than 100000 values, aliases included"]


@pytest.mark.parametrize("place", ["api_key", "base_url", "transport", "max_parallel", "protocol", "nothing"])
def test_a_variables_value_is_never_told(place: str) -> None:
    text = f'providers: {{a: {{protocol: openai, {place}: "${{SECRET}} x"}}}}\n'
    text += 'models: {c: {targets: ["${SECRET}/x"]}}\n'
    for secret in ("hunter2", "1234567890", "https://u:hunter2@example.com"):
        assert not any("hunter2" in error or "1234567890" in error for error in errors(text, {"SECRET": secret}))


def test_a_file_that_is_not_there_is_a_problem_without_a_place(tmp_path: Path) -> None:
    path = tmp_path / "providers.yaml"
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    assert str(caught.value) == f"{path}: there is no such file: name another with --config"
    assert caught.value.problems == (Problem(str(path), 0, 0, "there is no such file: name another with --config"),)


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path, {})


def test_bytes_that_are_not_utf_8_have_a_place(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes("server: {}\n# gr\u00fc\u00df".encode() + b"\xff")
    with pytest.raises(ConfigError, match=r"c\.yaml:2:7: this byte is not UTF-8: save the file as UTF-8"):
        load(path, {})


def test_a_large_file_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xff" * (2 * 1024 * 1024))
    with pytest.raises(ConfigError, match=r"c\.yaml:1:1: the file is larger than 1 MiB"):
        load(path, {})
