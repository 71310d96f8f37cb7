import click

from calculate_pi import estimate


@click.command()
@click.argument("points", type=click.IntRange(min=1))
@click.option("--seed", type=int, help="Draw the same points each time.")
def main(points: int, seed: int | None) -> None:
    """Estimate pi with POINTS random points."""
    click.echo(f"pi is about {estimate(points, seed):.4f}")
