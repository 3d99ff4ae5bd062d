"""The language in which objects are found: ``metrics.accuracy > 0.9 and tags.team = "speech"``.

Owns the grammar, what each collection has, and the tree that a query becomes. Pure: knows no database, and no clock but
the one that it is given. Refuses what can never be true by its types (``epoch = "last"``), and points at the place.

::

    query      = and-part { OR and-part }          words in any case
    and-part   = not-part { AND not-part }
    not-part   = NOT not-part | "(" query ")" | comparison
    comparison = field op value | field [NOT] IN "(" value { "," value } ")"
    field      = name { "." segment }              segment: bare, "quoted" or `quoted`
    op         = "=" | "!=" | ">" | ">=" | "<" | "<=" | "~"
    value      = 'text' | "text" | word | number | date | now[-7d] | null

A comparison with what an object does not have is false, also ``!=``; ``x = null`` asks for that. ``docs/find.md`` tells
the whole for people.
"""

from modelbox.find.parsing import (
    MAX_COMPARISONS,
    MAX_DEPTH,
    MAX_ORDER,
    MAX_VALUES,
    attributes_of,
    parse_columns,
    parse_order,
    parse_where,
)
from modelbox.find.query import (
    COLLECTIONS,
    METRIC_PARTS,
    And,
    Comparison,
    Expression,
    Field,
    FieldType,
    Not,
    Op,
    Or,
    Order,
    Scalar,
    Scope,
    scopes_of,
    wildcards,
)
from modelbox.find.reading import MAX_QUERY_CHARS

__all__ = (
    "COLLECTIONS",
    "MAX_COMPARISONS",
    "MAX_DEPTH",
    "MAX_ORDER",
    "MAX_QUERY_CHARS",
    "MAX_VALUES",
    "METRIC_PARTS",
    "And",
    "Comparison",
    "Expression",
    "Field",
    "FieldType",
    "Not",
    "Op",
    "Or",
    "Order",
    "Scalar",
    "Scope",
    "attributes_of",
    "parse_columns",
    "parse_order",
    "parse_where",
    "scopes_of",
    "wildcards",
)
