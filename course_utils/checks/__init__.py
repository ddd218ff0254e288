"""What the check cells of the exercises call.

`answers` asks a learner's function and says in a sentence what is off, `spies` watches the model meanwhile,
`side_effects` puts back what the function changed, and `tiny` is a model that answers at once.
"""

from .answers import CheckFailed, NotAnswered, ask, expect, expect_heads, expect_shape, same_in_another_process, show
from .spies import asked, planted, rows_read
from .tiny import tiny

__all__ = [
    "CheckFailed",
    "NotAnswered",
    "ask",
    "asked",
    "expect",
    "expect_heads",
    "expect_shape",
    "planted",
    "rows_read",
    "same_in_another_process",
    "show",
    "tiny",
]
