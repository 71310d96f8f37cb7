"""Shows the planets, largest first."""

from tabulate import tabulate

PLANETS = {
    "Mercury": 4_879,
    "Venus": 12_104,
    "Earth": 12_756,
    "Mars": 6_792,
    "Jupiter": 142_984,
    "Saturn": 120_536,
    "Uranus": 51_118,
    "Neptune": 49_528,
}

rows = sorted(PLANETS.items(), key=lambda planet: planet[1], reverse=True)
print(tabulate(rows, headers=["planet", "diameter in km"], tablefmt="github"))
