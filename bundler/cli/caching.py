"""The command about the builder's cache: gc."""

import click

from bundler.cli.shared import answer, command, json_option, size_text


@command("gc")
@click.option(
    "--older-than",
    "days",
    type=click.IntRange(min=0),
    default=7,
    show_default=True,
    metavar="DAYS",
    help="Keep what was written to since; an interrupted download can go on as long as it is kept.",
)
@json_option
def gc(days: int, *, as_json: bool) -> None:
    """Remove what interrupted downloads and conversions left in the cache; finished content stays."""
    from bundler.leftovers import DAY, collect_leftovers
    from bundler.store import Store

    store = Store()
    removed = collect_leftovers(store, older_than=days * DAY)
    freed = sum(item.size for item in removed)
    found = [{"path": item.path, "size": item.size, "age": int(item.age)} for item in removed]
    lines = [f"{item.path}  {size_text(item.size)}, {item.age / DAY:.0f} days old" for item in removed]
    lines.append(f"{store.root}: {len(removed)} leftovers removed, {size_text(freed)} freed")
    answer({"cache": str(store.root), "removed": found, "freed": freed}, "\n".join(lines), as_json=as_json)
