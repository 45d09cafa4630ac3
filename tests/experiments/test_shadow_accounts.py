"""The budget of an experiment's shadows holds wherever budgets are counted, and for all processes together."""

from pathlib import Path

import msgspec
import pytest

import tests.state.backends as backends
from router.accounts import Hold, account
from router.ledger.rows import Labels

UNIT = 10**9
ACCOUNT = account("experiment", "qwen-trial", "total", "USD", 0)
EVERYWHERE = [backends.memory, backends.machine, backends.redis, backends.ledger, backends.postgres]


@pytest.fixture(autouse=True)
def experiments_have_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is booked stands in the ledger under the experiment's name."""
    usual = backends.labels_of

    def labels_of(named: backends.Account) -> Labels:
        if named.kind == "experiment":
            return Labels("m", experiment=named.subject, arm="shadow")
        return usual(named)

    monkeypatch.setattr(backends, "labels_of", labels_of)


@pytest.mark.parametrize("backend", EVERYWHERE)
async def test_what_one_process_reserves_and_books_another_cannot_spend(backend: str, tmp_path: Path) -> None:
    async with backends.bank(backend, tmp_path) as bank:
        await bank.spent_before(ACCOUNT, 3 * UNIT)
        one = await bank.view("journal-1")
        other = await bank.view("journal-2") if bank.shared else one
        assert await one.reserve("req_1", [Hold(ACCOUNT, 10 * UNIT, 5 * UNIT)]) is None
        assert await other.reserve("req_2", [Hold(ACCOUNT, 10 * UNIT, 3 * UNIT)]) is not None
        await bank.settle(one, "req_1", {ACCOUNT: UNIT})
        assert await other.reserve("req_2", [Hold(ACCOUNT, 10 * UNIT, 7 * UNIT)]) is not None
        assert await other.reserve("req_2", [Hold(ACCOUNT, 10 * UNIT, 6 * UNIT)]) is None
        (standing,) = await one.standings([ACCOUNT])
        assert msgspec.structs.astuple(standing) == (ACCOUNT, 4 * UNIT, 6 * UNIT)
