"""Estimates pi by the share of random points that lie within a circle."""

import random


def estimate(points: int, seed: int | None = None) -> float:
    """Four times the share of `points` in the unit square within a distance of 1 from the origin."""
    draw = random.Random(seed).random
    inside = sum(draw() ** 2 + draw() ** 2 <= 1 for _ in range(points))
    return 4 * inside / points
