"""How a batch is said to SQLite: many rows in a statement, and no more parameters than any build takes."""

from itertools import chain

import pytest

from router.ledger.rows import AttemptRow, Batch, CallRow, Labels
from router.store.batches import statements_of


@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 50, 333])
def test_all_rows_are_said_once_in_their_order_by_few_statements(count: int) -> None:
    names = [f"req_{number:04d}" for number in range(count)]
    batch = Batch(
        "jrn",
        1,
        {name: CallRow(name, 1, Labels("m"), "openai.chat", False, "jrn") for name in names},
        {(name, 1): AttemptRow(name, 1, 1, Labels("m"), "v", "m", "jrn") for name in names},
    )
    said = {"calls": [], "attempts": [], "journals": []}  # type: dict[str, list[object]]
    executions = 0
    for sql, rows in statements_of(batch, 1, "sqlite"):
        table = sql.split()[2]
        executions += len(rows)
        for values in rows:
            assert len(values) == sql.count("?") <= 999
        said[table] += chain.from_iterable(rows)
    assert [value for value in said["calls"] if value in batch.calls] == names
    assert [value for value in said["attempts"] if value in batch.calls] == names
    assert executions <= 2 * (count // 16 + 4) + 1
