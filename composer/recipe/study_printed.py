"""Which printed row stands beside a study's row."""

from __future__ import annotations

from typing import Any, Protocol

from composer.errors import suggest
from composer.recipe.studies import Printed
from composer.recipe.write import quote


class Told(Protocol):
    printed: dict[str, Any] | None

    def fail(self, path: tuple[str, ...], what: str, why: str = "", fix: str = "") -> None: ...


def find_printed(reading: Told, path: tuple[str, ...], said: Any, group: str, selectors: dict[str, str]) -> tuple[Printed, ...]:
    """One printed row, or one for each selector of a sweep. A row that is printed in other groups only has none here.

    said   the name, a table { row, column, <column> = value } where the name stands several times, or False
    """
    if said is False:
        return ()
    at = (*path, "printed")
    wanted = {"row": said} if isinstance(said, str) else said
    if not isinstance(wanted, dict):
        reading.fail(at, f"printed = {quote(said)}", why="a row's name, a table or false is needed")
        return ()
    table = reading.printed
    if table is None:
        if isinstance(said, str) and said == path[1]:
            return ()
        reading.fail(at, f"printed = {quote(said)}", why="the study names no printed table", fix='write table = "lma_at/12" at its top')
        return ()
    name = wanted.get("row", path[1])
    others = {key: value for key, value in wanted.items() if key not in ("row", "column")}
    column = wanted.get("column")
    for key in [*others, *([column] if column is not None else [])]:
        if key not in table["columns"]:
            reading.fail(at, f"table {table['id']} has no column {quote(key)}", fix=suggest(str(key), table["columns"], "columns"))
            return ()
    rows = [row for row in table["rows"] if row["row"] == name]
    if not rows:
        reading.fail(at, f"table {table['id']} has no row '{name}'", fix=suggest(str(name), {row["row"] for row in table["rows"]}, "rows"))
        return ()
    rows = [row for row in rows if all(_value(table, row, key) == value for key, value in others.items())]
    if not rows:
        reading.fail(at, f"printed = {quote(said)}", why=f"no row '{name}' of table {table['id']} has these values")
    found: list[Printed] = []
    for selector, its in (selectors or {"": ""}).items():
        fitting = [row for row in rows if row.get("group") in (None, its or group) or not (its or group)]
        if len(fitting) > 1:
            reading.fail(at, f"'{name}' stands {len(fitting)} times in table {table['id']}", why="it cannot be told which is meant",
                         fix=f"write printed = {{ row = {quote(name)}, <column> = <value> }}, or name the [groups]")
        elif fitting:
            found.append(_printed(table, fitting[0], column, selector))
    return tuple(found)


def _value(table: dict[str, Any], row: dict[str, Any], column: str) -> float:
    return float(row["values"][table["columns"].index(column)])


def _printed(table: dict[str, Any], row: dict[str, Any], column: str | None, selector: str) -> Printed:
    def named(key: str) -> dict[str, float]:
        cells = dict(zip(table["columns"], map(float, row.get(key, ())), strict=False))
        return {name: cells[name] for name in cells if column in (None, name)}

    return Printed(row=row["row"], group=row.get("group", ""), values=named("values"), pm=named("pm"), selector=selector)
