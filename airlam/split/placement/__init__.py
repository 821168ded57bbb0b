"""Services placed, replicated, routed and migrated over an edge network: numpy and scipy only."""
