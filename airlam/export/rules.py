"""What a rule is: how one operation of a traced graph is written.

It takes the writer, ``like`` (a tensor of the result's shape and dtype) and the operation's own arguments, of
which at least one is a value; it gives a value, several, or a tensor where the result is known by now.
"""

from collections.abc import Callable
from typing import Any

import torch

aten = torch.ops.aten
Like = torch.Tensor
Rule = Callable[..., Any]
Rules = dict[Any, Rule]
"""By operation, whatever its overload."""


def registrar(rules: Rules) -> Callable[..., Callable[[Rule], Rule]]:
    """A decorator that enters a rule for the operations it names."""

    def rule(*targets: Any) -> Callable[[Rule], Rule]:
        def register(function: Rule) -> Rule:
            rules.update(dict.fromkeys(targets, function))
            return function

        return register

    return rule
