"""
Commands about what route ``deliver`` keeps: the queue, single messages, reports, the suppression list.

They open the store beside a running proxy; what they change it sees within a second.
"""

import asyncio
import csv
import json
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, TypeVar

import attrs
import click

from proxy.cli_common import CONFIG, fail, loaded, stop
from proxy.problems import ProblemsError
from proxy.spool.item import Figures, Recipient, State
from proxy.spool.sqlite import DATABASE_FILE, SPOOL_FOLDER, SqliteStore
from proxy.spool.store import History, StoreError

_T = TypeVar("_T")

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_MOST = 10_000
_NEVER = 1e12  # the next attempt of what was set aside is behind all times
_SEEN_SECONDS = 4.0  # within which a running proxy has seen what was removed


class _Day(click.ParamType[date]):
    """A day as people write it."""

    name = "day"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> date:
        try:
            return date.fromisoformat(value)
        except ValueError:
            self.fail(f"found {value!r}; expected a day such as 2026-11-23", param, ctx)


@click.group()
def queue() -> None:
    """See and change what waits to be sent."""


@queue.command("list")
@CONFIG
@_JSON
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, _MOST), help="Messages at most.")
def queue_list(config: Path | None, as_json: bool, limit: int) -> None:
    """
    List messages that wait, oldest first.

    Each with its recipients that are not final, their next attempt and what the last one brought. A message that was
    found damaged is set aside: it stays here, with the reason, and is attempted no more unless it is put back by
    `queue retry`.
    """
    items = _with_store(config, lambda store: store.queue(limit))
    if as_json:
        _print_json([attrs.asdict(item, value_serializer=_serialized) for item in items])
        return
    for item in items:
        click.echo(f"{item.id}  {_moment(item.received_at)}  {item.group or '-'}  {_cut(item.subject, 40) or '-'}")
        if item.set_aside:
            click.echo(f"    set aside: {item.set_aside}")
        for recipient in item.recipients:
            click.echo(f"    {recipient.address}  {_waits(recipient)}")
    click.echo(f"{len(items)} message{'s' if len(items) != 1 else ''}", err=True)


@queue.command("show")
@CONFIG
@_JSON
@click.argument("message_id", metavar="ID")
def queue_show(config: Path | None, as_json: bool, message_id: str) -> None:
    """Show one message with its timeline."""
    _show(config, message_id, as_json)


@queue.command("retry")
@CONFIG
@click.argument("message_id", metavar="[ID]", default="")
@click.option("--all", "everything", is_flag=True, help="All messages that wait.")
def queue_retry(config: Path | None, message_id: str, everything: bool) -> None:
    """
    Attempt a message at once.

    A running proxy does it within a second; with --all it does so for all messages that wait. Where their destination
    was out of order a moment ago, it does so when that pause is over, within a quarter of an hour; a restart ends it.
    A message that was set aside is put back where it is named, not by --all: once what was damaged is mended, its
    content from a backup say.
    """
    if bool(message_id) == everything:
        raise click.UsageError("give the ID of a message, or --all")

    async def work(store: SqliteStore) -> tuple[int, str]:
        history = await store.history(message_id) if message_id else None
        return await store.retry(message_id or None, time.time()), history.item.set_aside if history else ""

    count, aside = _with_store(config, work)
    if not count and message_id:
        stop(f"no message {message_id} that waits; `cmail-proxy queue list` shows those that do")
    if aside:
        click.echo(f"put back, though it was set aside: {aside}")
    click.echo(f"due now: {_recipients(count)}")


@queue.command("remove")
@CONFIG
@click.argument("message_id", metavar="ID")
def queue_remove(config: Path | None, message_id: str) -> None:
    """
    Give a message up.

    Its recipients that are not final get it no more, and its sender is not told. No attempt begins for them once this
    has ended. What is on the wire at that moment may still arrive, and then is recorded as delivered: this says so.
    """

    async def work(store: SqliteStore) -> tuple[int, int]:
        await store.release(time.time())  # of a program that is gone nothing is under way
        removal = await store.remove(message_id, "by hand", time.time())
        left, until = removal.under_way, time.monotonic() + _SEEN_SECONDS
        while left and time.monotonic() < until:
            await asyncio.sleep(0.05)
            left = await store.under_way(message_id)
        return removal.recipients, left

    count, left = _with_store(config, work)
    if not count:
        stop(f"no message {message_id} that waits; `cmail-proxy queue list` shows those that do")
    click.echo(f"removed: {_recipients(count)}")
    if left:
        click.echo(f"being sent to {_recipients(left)} at this moment, who may still get it; not tried again", err=True)


@click.group()
def message() -> None:
    """Look at single messages."""


@message.command("show")
@CONFIG
@_JSON
@click.argument("message_id", metavar="ID")
def message_show(config: Path | None, as_json: bool, message_id: str) -> None:
    """Show one message with its timeline; the ID is in the reply to the app, the log and the Received field."""
    _show(config, message_id, as_json)


@click.command()
@CONFIG
@_JSON
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--group", default=None, help="Only this group.")
@click.option(
    "--since",
    default=None,
    type=_Day(),
    metavar="YYYY-MM-DD",
    help="Only from this day on (UTC).",
)
@click.option("--by-day", is_flag=True, help="A line for each day, instead of one for each group.")
def report(
    config: Path | None, as_json: bool, as_csv: bool, group: str | None, since: date | None, by_day: bool
) -> None:
    """
    Show what became of messages, by group.

    received: messages. sent, delivered, bounced, suppressed: recipients. deferred: attempts. opened, clicked: readers
    who did so, and in brackets how often in all.
    """
    if as_json and as_csv:
        raise click.UsageError("give --json or --csv")
    day = since.isoformat() if since else ""
    figures = _with_store(config, lambda store: store.report(day, group))
    if not by_day:
        figures = _summed(figures)
    rows = [attrs.asdict(each) for each in figures]
    if not by_day:
        for row in rows:
            del row["day"]
    if as_json:
        _print_json(rows)
    elif as_csv:
        names = [field.name for field in attrs.fields(Figures) if by_day or field.name != "day"]
        writer = csv.DictWriter(sys.stdout, names)
        writer.writeheader()
        writer.writerows(rows)
    else:
        _print_table(figures, by_day=by_day)
        if not figures:
            kind = " of that kind" if day or group is not None else ""
            click.echo(f"nothing{kind} was received yet", err=True)


@click.group()
def suppression() -> None:
    """
    Addresses that get no more mail.

    A hard bounce puts an address on the list. Later messages to it are taken, and recorded as suppressed.
    """


@suppression.command("list")
@CONFIG
@_JSON
def suppression_list(config: Path | None, as_json: bool) -> None:
    """List the addresses, latest first, since when and why."""
    entries = _with_store(config, lambda store: store.suppressions())
    if as_json:
        _print_json([attrs.asdict(each) for each in entries])
        return
    for each in entries:
        click.echo(f"{each.address}\t{_moment(each.since)}\t{each.reason}")
    if not entries:
        click.echo("no address is suppressed", err=True)


@suppression.command("add")
@CONFIG
@click.argument("address")
@click.option("--reason", default="added by hand", show_default=True, help="Why.")
def suppression_add(config: Path | None, address: str, reason: str) -> None:
    """Put ADDRESS on the list."""
    local, _, domain = address.rpartition("@")
    quoted = len(local) > 2 and local.startswith('"') and local.endswith('"')
    if not (local and domain and address.isprintable()) or " " in (domain if quoted else address):
        raise click.UsageError(f"{address!r} is no address")
    _with_store(config, lambda store: store.suppress(address, reason, time.time()))
    click.echo(f"suppressed: {address}")


@suppression.command("remove")
@CONFIG
@click.argument("address")
def suppression_remove(config: Path | None, address: str) -> None:
    """Take ADDRESS off the list."""
    if not _with_store(config, lambda store: store.unsuppress(address)):
        stop(f"{address} is not on the list")
    click.echo(f"no longer suppressed: {address}")


@click.command()
@CONFIG
def dkim(config: Path | None) -> None:
    """
    Show the DNS records to publish for DKIM.

    One for each key in deliver.dkim: its name, and its text. Receivers look the public key up there.
    """
    from proxy.compose.dkim import SigningKey, dns_record, load_key

    settings = loaded(config)
    if not settings.deliver.dkim:
        stop("deliver.dkim names no key; add domain, selector and key_file")
    try:
        for index, each in enumerate(settings.deliver.dkim):
            key = load_key(each.key_file, f"deliver.dkim[{index}].key_file")
            name = SigningKey(each.domain, each.selector, key).dns_name
            text = dns_record(key)
            strings = [text[start : start + 255] for start in range(0, len(text), 255)]  # RFC 1035, 3.3
            quoted = " ".join([f'"{each}"' for each in strings])
            click.echo(f"{name}. IN TXT {quoted}")
    except ProblemsError as error:
        fail(error)


COMMANDS = (queue, message, report, suppression, dkim)


def _with_store(config: Path | None, work: Callable[[SqliteStore], Awaitable[_T]]) -> _T:
    """Do something with the store that the settings name; it must exist."""
    settings = loaded(config)
    folder = settings.data_dir / SPOOL_FOLDER
    if not (folder / DATABASE_FILE).is_file():
        stop(f"no store in {folder}: the route deliver makes it when it first runs (data_dir says where)")

    async def run() -> _T:
        store = SqliteStore(folder)
        try:
            return await work(store)
        finally:
            await store.close()

    try:
        return asyncio.run(run())
    except StoreError as error:
        stop(f"the store in {folder}: {error}")


def _show(config: Path | None, message_id: str, as_json: bool) -> None:
    history = _with_store(config, lambda store: store.history(message_id))
    if history is None:
        stop(f"no message {message_id}: it never came here, or it is older than deliver.keep_seconds")
    if as_json:
        _print_json(attrs.asdict(history, value_serializer=_serialized))
        return
    _print_history(history)


def _print_history(history: History) -> None:
    item = history.item
    click.echo(f"{item.id}: {item.subject or '(no subject)'}")
    click.echo(f"  from       <{item.reverse_path}>{f', login {item.login}' if item.login else ''}")
    click.echo(f"  group      {item.group or 'none (Ungrouped emails)'}")
    if item.set_aside:
        click.echo(f"  set aside  {item.set_aside}")
    if item.provider:
        click.echo(f"  fields of  {item.provider}")
    for recipient in item.recipients:
        click.echo(f"  to         {recipient.address}: {_waits(recipient)}")
    addresses = {each.number: each.address for each in item.recipients}
    for event in history.events:
        who = str(addresses.get(event.recipient, event.recipient)) if event.recipient is not None else ""
        detail = f"until {_moment(item.not_before)}" if event.kind == "held" else event.detail
        what = ": ".join(part for part in (who, detail) if part)
        click.echo(f"  {_moment(event.at)}  {event.kind:<12} {what}".rstrip())


def _recipients(count: int) -> str:
    return f"{count} recipient{'s' if count != 1 else ''}"


def _waits(recipient: Recipient) -> str:
    if recipient.state is not State.PENDING:
        return " ".join(part for part in (recipient.state.value, recipient.reply) if part)
    at = recipient.next_attempt_at
    if recipient.leased:
        text = f"attempt {recipient.attempts} begun, or in line for it"
    else:
        text = f"{f'next attempt {_moment(at)}' if at < _NEVER else 'no attempt'}, {recipient.attempts} made"
    return f"{text}; {recipient.reply}" if recipient.reply else text


def _summed(figures: Sequence[Figures]) -> list[Figures]:
    by_group: dict[str, dict[str, int]] = {}
    for each in figures:
        sums = by_group.setdefault(each.group, {})
        for name, value in attrs.asdict(each).items():
            if name not in ("day", "group"):
                sums[name] = sums.get(name, 0) + value
    return [Figures("", group, **sums) for group, sums in sorted(by_group.items())]


def _print_table(figures: Sequence[Figures], *, by_day: bool) -> None:
    heads = ["group", "received", "sent", "delivered", "deferred", "bounced", "suppressed", "opened", "clicked"]
    rows = [
        [
            _cut(each.group, 40),
            *(str(getattr(each, name)) for name in heads[1:-2]),
            f"{each.opened} ({each.opened_total})",
            f"{each.clicked} ({each.clicked_total})",
        ]
        for each in figures
    ]
    if by_day:
        heads.insert(0, "day")
        rows = [[each.day, *row] for each, row in zip(figures, rows, strict=True)]
    widths = [max(len(row[column]) for row in (heads, *rows)) for column in range(len(heads))]
    words = 2 if by_day else 1
    for row in (heads, *rows):
        cells = [
            text.ljust(width) if column < words else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _serialized(_instance: object, _field: object, value: object) -> object:
    return value.value if isinstance(value, State) else value


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, ensure_ascii=False, indent=2))


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
