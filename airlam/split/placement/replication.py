"""More replicas in the memory that a placement leaves, for routers that look at queues."""

import numpy as np

from airlam.split.placement.services import Placement
from airlam.split.placement.tables import Room, Tables


def replicated(tables: Tables, placement: Placement) -> Placement:
    """The placement with further instances where there is room; its routes stay.

    An instance is worth what the objective is when the call that gains most by it moves there; the most
    valuable come first.
    """
    at, held = tables.nodes_of(placement), tables.held_of(placement)
    room = Room(tables, held)
    moves = [(k, int(v)) for k, nodes in enumerate(tables.allowed) for v in nodes]
    candidates = np.repeat(at[None], len(moves), axis=0)
    for row, (k, v) in enumerate(moves):
        candidates[row, k] = v
    priced = tables.price(candidates)
    for index in np.lexsort((priced.value_s, priced.excess)):
        k, v = moves[index]
        m = tables.call_service[k]
        if room.fits(m)[v] and not held[m, v] and tables.may_host[m, v]:
            held[m, v] = True
            room.take(m, v)
    return tables.placement(at, held)
