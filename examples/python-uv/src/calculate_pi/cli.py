import argparse

from calculate_pi import estimate


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="calculate-pi",
        description="Estimate pi with POINTS random points.",
    )
    parser.add_argument("points", metavar="POINTS", type=int)
    parser.add_argument("--seed", type=int, help="draw the same points each time")
    arguments = parser.parse_args()
    if arguments.points < 1:
        parser.error("POINTS must be at least 1")
    print(f"pi is about {estimate(arguments.points, arguments.seed):.4f}")
