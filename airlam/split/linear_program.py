"""Columns and rows of a mixed-integer linear program as they are added, and HiGHS on them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

Term = tuple[int, float]  # a variable and its coefficient
INFEASIBLE = 2  # the status that ``milp`` gives where no point is within the limits


@dataclass(slots=True)
class LinearProgram:
    """Minimise cost . x, 0 <= x <= upper, row_lower <= rows x <= row_upper, x[i] whole where integer[i]."""

    cost: list[float] = field(default_factory=list)
    upper: list[float] = field(default_factory=list)
    integer: list[int] = field(default_factory=list)
    rows: list[list[Term]] = field(default_factory=list)
    row_lower: list[float] = field(default_factory=list)
    row_upper: list[float] = field(default_factory=list)

    def variable(self, *, cost: float = 0.0, upper: float = np.inf, integer: bool = False) -> int:
        """A new column; its number."""
        self.cost.append(cost)
        self.upper.append(upper)
        self.integer.append(int(integer))
        return len(self.cost) - 1

    def require(self, terms: Iterable[Term], *, lower: float = -np.inf, upper: float = np.inf) -> None:
        """A new row; a column may stand in it several times."""
        self.rows.append([term for term in terms if term[1] != 0.0])
        self.row_lower.append(lower)
        self.row_upper.append(upper)

    def matrix(self) -> csr_array:
        """The rows, sparse."""
        counts = np.cumsum([0, *(len(row) for row in self.rows)])
        columns = np.array([column for row in self.rows for column, _ in row], dtype=np.int64)
        values = np.array([value for row in self.rows for _, value in row], dtype=np.float64)
        matrix = csr_array((values, columns, counts), shape=(len(self.rows), len(self.cost)))
        matrix.sum_duplicates()
        return matrix

    def solve(self, *, relaxed: bool = False, time_limit_s: float = 60.0, gap: float = 1e-9) -> Any:
        """What scipy's ``milp`` returns; ``relaxed`` drops integrality. gap: relative, at which it stops.

        HiGHS has a line that it prints to the process's standard output whatever its options say.
        """
        return milp(
            self.cost,
            integrality=None if relaxed else self.integer,
            bounds=Bounds(0.0, self.upper),
            constraints=LinearConstraint(self.matrix(), self.row_lower, self.row_upper),
            # without presolve: with it HiGHS has called infeasible points optimal (scipy issue 24141);
            # these programs take as long either way
            options={"time_limit": time_limit_s, "mip_rel_gap": gap, "presolve": False},
        )
