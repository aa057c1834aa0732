"""The rows of a table: all at once, or one after the other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from adapterx.errors import DataError, speaker

Row = dict[str, object]  # the value of every column


@dataclass(frozen=True)
class Rows:
    """A table as it stands in its source.

    Attributes:
        source: how the user named it.
        columns: the column names in order.
        values: for each row, the value of every column (None where it has none).
        places: for each row, where it stands, such as `line 7`.
    """

    source: str
    columns: list[str]
    values: list[Row]
    places: list[str]


@dataclass(frozen=True)
class RowStream:
    """A table that is read once, row by row, because it may be larger than memory.

    Attributes:
        source: how the user named it.
        columns: the column names that are known; where rows bring new ones, it grows while they are read.
        rows: for each row, where it stands and its values.
    """

    source: str
    columns: list[str]
    rows: Iterator[tuple[str, Row]]

    def all(self) -> Rows:
        """Read it to its end."""
        places, values = [], []
        for place, value in self.rows:
            places.append(place)
            values.append(value)
        return Rows(self.source, self.columns, values, places)


def listed(names: Iterable[str]) -> str:
    """Return names as a message shows them: in quotes, and no more than 20."""
    names = list(names)
    return ", ".join(map(repr, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def require_unique(source: str, columns: Iterable[str], place: str) -> None:
    """Refuse a column that stands twice.

    Raises:
        DataError: one does.
    """
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise DataError(f"{speaker()}: {source}: {place} has the column {column!r} twice")
        seen.add(column)


def require_same_columns(source: object, first: Rows | RowStream, other: Rows | RowStream) -> None:
    """Refuse two parts of one table that have different columns.

    Raises:
        DataError: they have.
    """
    if different := set(other.columns) ^ set(first.columns):
        raise DataError(
            f"{speaker()}: {source}: the files must have the same columns; {first.source} and {other.source} "
            f"differ in {listed(sorted(different))}"
        )
