"""A token bonus of each system's own, chosen on its development set: what bin.tune_token_bonus makes."""

from typing import Any, Dict, Mapping, Sequence

FILE, RECORD = "token_bonus.json", "token_bonus"
GRID = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)


def best(errors: Mapping[float, int]) -> float:
    """The bonus with the fewest errors, of equal ones the smallest."""
    return min(errors, key=lambda bonus: (errors[bonus], abs(bonus)))


def settings(grid: Sequence[float], beam: int, ignore_events: bool, normalization: str) -> Dict[str, Any]:
    """What the choice depends on, beside system, BPE model and cuts."""
    return {"grid": list(grid), "beam": beam, "ignore_events": ignore_events, "normalization": normalization}
