"""What a store reads: the statements that are run, and the rows that they look at."""

from typing import Any

from sqlalchemy import event, text

from router.store.store import Store


def counted(store: Store) -> list[tuple[str, Any]]:
    """The statements that are run from now on, with their parameters."""
    found: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        found.append((statement, parameters))

    for engine in (store._opened().reading, store._opened().writing):
        event.listen(engine.sync_engine, "before_cursor_execute", note)
    return found


async def analyzed(store: Store) -> None:
    async with store.writing() as connection:
        await connection.execute(text("ANALYZE"))


async def rows_read(store: Store, statements: list[tuple[str, Any]]) -> int:
    """Steps of SQLite's machine, or rows that all nodes of Postgres' plan gave."""
    assert statements
    total = 0
    async with store.reading() as connection:
        for statement, parameters in statements:
            if store.dialect == "sqlite":
                total += await steps(connection, statement, parameters)
            else:
                explained = "EXPLAIN (ANALYZE, FORMAT JSON) " + statement
                plan = (await connection.exec_driver_sql(explained, parameters)).scalar_one()
                total += in_plan(plan[0]["Plan"])
    return total


async def steps(connection: Any, statement: str, parameters: Any) -> int:
    driver = (await connection.get_raw_connection()).driver_connection
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return 0

    await driver.set_progress_handler(step, 1)
    try:
        await driver.execute_fetchall(statement, parameters)
    finally:
        await driver.set_progress_handler(None, 1)
    return count


def in_plan(node: dict[str, Any]) -> int:
    own = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
    return int(own + sum(in_plan(each) for each in node.get("Plans", ())))
