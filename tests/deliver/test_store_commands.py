"""
The commands about what is kept: their texts word for word, over a store with known times.

Longer than other modules: all commands are held against the same store.
"""

import asyncio
import csv
import io
import json
import shutil
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from proxy.spool.item import Change, Event, Item, Layout, Recipient, State
from proxy.spool.sqlite import SqliteStore
from tests.deliver.site import DeliverSite, command, message, send, site
from tests.operation.program import run, write_settings

DAY_1 = datetime(2026, 11, 22, 9, 0, 0, tzinfo=UTC).timestamp()
DAY_2 = datetime(2026, 11, 23, 10, 0, 0, tzinfo=UTC).timestamp()
HELD_UNTIL = datetime(2100, 1, 1, tzinfo=UTC).timestamp()
FULL = "452 4.2.2 mailbox full"

_STATES = ("received", "sent", "delivered", "deferred", "bounced", "suppressed")
COUNTED = (*_STATES, "opened", "opened_total", "clicked", "clicked_total")
ORDERS = {"group": "orders", **dict.fromkeys(COUNTED, 0), "received": 2, "sent": 2, "delivered": 2}
ORDERS |= {"opened": 1, "opened_total": 2, "clicked": 1, "clicked_total": 1}
UNGROUPED = {"group": "Ungrouped emails", **dict.fromkeys(COUNTED, 0), "received": 1, "sent": 2, "suppressed": 1}
UNGROUPED |= {"delivered": 1, "deferred": 1}
GREETING = {"group": "Grüße, =1+1", **dict.fromkeys(COUNTED, 0), "received": 1, "sent": 1}

NOT_THERE = "no message nobody1.1 that waits; `cmail-proxy queue list` shows those that do"


def item(message_id: str, at: float, addresses: str, **more: object) -> Item:
    """A message as the route keeps it."""
    not_before = more.pop("not_before", 0.0)
    recipients = tuple(
        Recipient(number, address, "(mailbox)", next_attempt_at=float(str(not_before)) or at)
        for number, address in enumerate(addresses.split())
    )
    return Item(message_id, at, "app@example.com", recipients, Layout(7), 7, not_before=not_before, **more)  # type: ignore[arg-type]


def change(message_id: str, number: int, state: State, kind: str, at: float, text: str, next_at: float = 0.0) -> Change:
    """What an attempt brought."""
    return Change(message_id, number, state, Event(at, kind, number, text), next_at, text)  # type: ignore[arg-type]


async def fill(folder: Path) -> None:
    """Make a store in which something of everything has happened, on two days."""
    store = SqliteStore(folder)
    delivered, pending = State.DELIVERED, State.PENDING
    for message_id, at in (("aaaa1.1", DAY_1), ("aaaa2.1", DAY_2)):
        about = item(message_id, at, "ann@example.net", group="orders", subject="Your order", provider="postmark")
        await store.add(about, b"content", 0)
        await store.lease(at, at + 60, 10)
        await store.settle([change(message_id, 0, delivered, "delivered", at + 1, "250 2.0.0 kept")], at + 1)
    for kind, target in (("opened", ""), ("opened", ""), ("clicked", "https://shop.example/orders")):
        await store.hit(kind, "aaaa1.1", 0, target, DAY_2)
    await store.suppress("Gone@Example.net", "550 5.1.1 no such user", DAY_1)
    await store.suppress("left@example.net", "added by hand", DAY_2)
    waits = item(
        "aaaa3.1", DAY_2, "bob@example.net carl@example.net gone@example.net", login="billing", subject="A long " * 9
    )
    await store.add(waits, b"content", 0)
    await store.lease(DAY_2, DAY_2 + 60, 10)
    await store.settle(
        [
            change("aaaa3.1", 0, pending, "deferred", DAY_2 + 2, FULL, DAY_2 + 3600),
            change("aaaa3.1", 1, delivered, "delivered", DAY_2 + 3, "250 2.0.0 kept"),
        ],
        DAY_2 + 3,
    )
    await store.add(item("aaaa4.1", DAY_2, "dora@example.net", group="Grüße, =1+1", not_before=HELD_UNTIL), b"c", 0)
    await store.close()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Settings whose store is filled; for commands that only look."""
    folder = tmp_path_factory.mktemp("store")
    asyncio.run(fill(folder / "var" / "spool"))
    return write_settings(folder / "settings.yaml", {"hostname": "proxy.example.com"})


@pytest.fixture
def own(filled: Path, tmp_path: Path) -> Path:
    """The same store, for one test to change."""
    shutil.copytree(filled.parent, tmp_path / "own")
    return tmp_path / "own" / "settings.yaml"


# report


def test_report_is_a_table_with_a_line_for_each_group(filled: Path) -> None:
    """All days together, groups in order, readers with how often in brackets."""
    assert command(filled, "report") == (
        0,
        "group             received  sent  delivered  deferred  bounced  suppressed  opened  clicked\n"
        "Grüße, =1+1              1     1          0         0        0           0   0 (0)    0 (0)\n"
        "Ungrouped emails         1     2          1         1        0           1   0 (0)    0 (0)\n"
        "orders                   2     2          2         0        0           0   1 (2)    1 (1)\n",
        "",
    )


def test_report_is_the_same_in_a_process_of_its_own(filled: Path) -> None:
    """What the other tests run inside their own process is what the program prints."""
    for arguments in (("report",), ("report", "--csv"), ("queue", "list", "--json"), ("message", "show", "nobody1.1")):
        done = run(*arguments, "--config", filled)
        assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == command(filled, *arguments)


def test_report_by_day_has_a_line_for_each_day_and_group(filled: Path) -> None:
    """Oldest day first; an open counts on the day of the open."""
    assert command(filled, "report", "--by-day") == (
        0,
        "day         group             received  sent  delivered  deferred  bounced  suppressed  opened  clicked\n"
        "2026-11-22  orders                   1     1          1         0        0           0   0 (0)    0 (0)\n"
        "2026-11-23  Grüße, =1+1              1     1          0         0        0           0   0 (0)    0 (0)\n"
        "2026-11-23  Ungrouped emails         1     2          1         1        0           1   0 (0)    0 (0)\n"
        "2026-11-23  orders                   1     1          1         0        0           0   1 (2)    1 (1)\n",
        "",
    )


def test_report_as_json(filled: Path) -> None:
    """The same figures for programs; with --by-day each has its day."""
    code, out, errors = command(filled, "report", "--json")
    assert (code, errors) == (0, "")
    assert json.loads(out) == [GREETING, UNGROUPED, ORDERS]
    by_day = json.loads(command(filled, "report", "--json", "--by-day", "--group", "orders")[1])
    assert [each["day"] for each in by_day] == ["2026-11-22", "2026-11-23"]
    assert [sum(each[name] for each in by_day) for name in COUNTED] == [ORDERS[name] for name in COUNTED]


def test_report_as_csv(filled: Path) -> None:
    """A head and a line for each group, commas quoted; read back it is what --json says."""
    code, out, errors = command(filled, "report", "--csv")
    assert (code, errors) == (0, "")
    assert out.splitlines()[0] == ",".join(["group", *COUNTED])
    rows = list(csv.DictReader(io.StringIO(out, newline="")))
    assert rows == [{name: str(value) for name, value in row.items()} for row in (GREETING, UNGROUPED, ORDERS)]
    assert command(filled, "report", "--csv", "--by-day")[1].startswith("day,group,received,")


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [
        (("--group", "orders"), [("orders", 2)]),
        (("--group", "Ungrouped emails"), [("Ungrouped emails", 1)]),
        (("--group", "nobody's"), []),
        (("--since", "2026-11-23"), [("Grüße, =1+1", 1), ("Ungrouped emails", 1), ("orders", 1)]),
        (("--since", "2026-11-22", "--group", "orders"), [("orders", 2)]),
        (("--since", "2026-11-24"), []),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, tuple) else "",
)
def test_report_of_a_group_and_since_a_day(
    filled: Path, arguments: tuple[str, ...], groups: list[tuple[str, int]]
) -> None:
    """Figures of one group, or from one day on; none is an empty list."""
    code, out, errors = command(filled, "report", "--json", *arguments)
    assert (code, errors) == (0, "")
    assert [(row["group"], row["received"]) for row in json.loads(out)] == groups


def test_report_of_nothing_says_so(filled: Path) -> None:
    """An empty table is only its head; the word for people goes where programs do not read."""
    code, out, errors = command(filled, "report", "--group", "nobody's")
    assert (code, errors) == (0, "nothing of that kind was received yet\n")
    assert out == "group  received  sent  delivered  deferred  bounced  suppressed  opened  clicked\n"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--since", "yesterday"), "'--since': found 'yesterday'; expected a day such as 2026-11-23"),
        (("--since", "2026-13-01"), "'--since': found '2026-13-01'; expected a day such as 2026-11-23"),
        (("--json", "--csv"), "give --json or --csv"),
    ],
)
def test_report_used_wrongly_is_told(filled: Path, arguments: tuple[str, ...], told: str) -> None:
    """A slip in an option is no empty report."""
    code, out, errors = command(filled, "report", *arguments)
    assert (code, out) == (2, "")
    assert told in errors


# queue and message


def test_queue_list_shows_what_waits(filled: Path) -> None:
    """Oldest first, each with the recipients that are not final, when they are due, and what the last attempt said."""
    assert command(filled, "queue", "list") == (
        0,
        "aaaa3.1  2026-11-23 10:00:00Z  -  A long A long A long A long A long A lo…\n"
        f"    bob@example.net  next attempt 2026-11-23 11:00:00Z, 1 made; {FULL}\n"
        "aaaa4.1  2026-11-23 10:00:00Z  Grüße, =1+1  -\n"
        "    dora@example.net  next attempt 2100-01-01 00:00:00Z, 0 made\n",
        "2 messages\n",
    )


def test_queue_list_as_json(filled: Path) -> None:
    """All that is known of what waits, for programs; --limit cuts."""
    code, out, errors = command(filled, "queue", "list", "--json", "--limit", "1")
    assert (code, errors) == (0, "")
    (waits,) = json.loads(out)
    assert (waits["id"], waits["login"], waits["received_at"]) == ("aaaa3.1", "billing", DAY_2)
    assert waits["recipients"] == [
        {
            "number": 0,
            "address": "bob@example.net",
            "destination": "(mailbox)",
            "state": "pending",
            "attempts": 1,
            "next_attempt_at": DAY_2 + 3600,
            "reply": FULL,
            "remote_host": "",
            "leased": False,
        }
    ]
    assert command(filled, "queue", "list", "--limit", "0")[0] == 2


@pytest.mark.parametrize("group", ["queue", "message"])
def test_show_tells_the_timeline(filled: Path, group: str) -> None:
    """Both commands show a message the same way: what it is, where each recipient stands, and what happened when."""
    assert command(filled, group, "show", "aaaa3.1") == (
        0,
        "aaaa3.1: A long A long A long A long A long A long A long A long A long \n"
        "  from       <app@example.com>, login billing\n"
        "  group      none (Ungrouped emails)\n"
        f"  to         bob@example.net: next attempt 2026-11-23 11:00:00Z, 1 made; {FULL}\n"
        "  to         carl@example.net: delivered 250 2.0.0 kept\n"
        "  to         gone@example.net: suppressed 550 5.1.1 no such user\n"
        "  2026-11-23 10:00:00Z  received     7 octets\n"
        "  2026-11-23 10:00:00Z  suppressed   gone@example.net: 550 5.1.1 no such user\n"
        f"  2026-11-23 10:00:02Z  deferred     bob@example.net: {FULL}\n"
        "  2026-11-23 10:00:03Z  delivered    carl@example.net: 250 2.0.0 kept\n",
        "",
    )


def test_show_tells_opens_and_clicks(filled: Path) -> None:
    """What readers did stands in the timeline, with where a link led."""
    assert command(filled, "message", "show", "aaaa1.1") == (
        0,
        "aaaa1.1: Your order\n"
        "  from       <app@example.com>\n"
        "  group      orders\n"
        "  fields of  postmark\n"
        "  to         ann@example.net: delivered 250 2.0.0 kept\n"
        "  2026-11-22 09:00:00Z  received     7 octets\n"
        "  2026-11-22 09:00:01Z  delivered    ann@example.net: 250 2.0.0 kept\n"
        "  2026-11-23 10:00:00Z  opened       ann@example.net\n"
        "  2026-11-23 10:00:00Z  opened       ann@example.net\n"
        "  2026-11-23 10:00:00Z  clicked      ann@example.net: https://shop.example/orders\n",
        "",
    )
    shown = json.loads(command(filled, "message", "show", "aaaa1.1", "--json")[1])
    assert sorted(shown) == ["events", "item"]
    assert shown["events"][-1] == {
        "at": DAY_2,
        "kind": "clicked",
        "recipient": 0,
        "detail": "https://shop.example/orders",
    }


def test_show_tells_what_is_held(filled: Path) -> None:
    """A message without a subject, for another day."""
    assert command(filled, "message", "show", "aaaa4.1") == (
        0,
        "aaaa4.1: (no subject)\n"
        "  from       <app@example.com>\n"
        "  group      Grüße, =1+1\n"
        "  to         dora@example.net: next attempt 2100-01-01 00:00:00Z, 0 made\n"
        "  2026-11-23 10:00:00Z  received     7 octets\n"
        "  2026-11-23 10:00:00Z  held         until 2100-01-01 00:00:00Z\n",
        "",
    )


@pytest.mark.parametrize("group", ["queue", "message"])
def test_show_of_an_unknown_id_is_told(filled: Path, group: str) -> None:
    """A slip in the id ends with 1 and nothing on standard output, with --json, too."""
    error = "cmail-proxy: no message nobody1.1: it never came here, or it is older than deliver.keep_seconds\n"
    assert command(filled, group, "show", "nobody1.1") == (1, "", error)
    assert command(filled, group, "show", "nobody1.1", "--json") == (1, "", error)


def test_queue_retry_makes_due(own: Path) -> None:
    """One message or all that wait; which one must be said."""
    assert command(own, "queue", "retry", "aaaa3.1") == (0, "due now: 1 recipient\n", "")
    assert command(own, "queue", "retry", "--all") == (0, "due now: 2 recipients\n", "")
    assert command(own, "queue", "retry", "nobody1.1") == (1, "", f"cmail-proxy: {NOT_THERE}\n")
    assert command(own, "queue", "retry", "aaaa1.1") == (1, "", f"cmail-proxy: {NOT_THERE}\n".replace("nobody", "aaaa"))
    for arguments in ((), ("aaaa3.1", "--all")):
        code, out, errors = command(own, "queue", "retry", *arguments)
        assert (code, out) == (2, "")
        assert errors.endswith("Error: give the ID of a message, or --all\n")
    waiting = json.loads(command(own, "queue", "list", "--json")[1])
    assert all(each["recipients"][0]["next_attempt_at"] < HELD_UNTIL for each in waiting)


def test_queue_remove_gives_up_what_waits(own: Path) -> None:
    """Who has got it has got it; the others do not get it any more."""
    assert command(own, "queue", "remove", "aaaa3.1") == (0, "removed: 1 recipient\n", "")
    assert command(own, "queue", "remove", "aaaa3.1") == (
        1,
        "",
        f"cmail-proxy: {NOT_THERE}\n".replace("nobody1", "aaaa3"),
    )
    assert command(own, "queue", "remove", "nobody1.1") == (1, "", f"cmail-proxy: {NOT_THERE}\n")
    out = command(own, "message", "show", "aaaa3.1")[1].splitlines()
    assert out[3:6] == [
        "  to         bob@example.net: removed by hand",
        "  to         carl@example.net: delivered 250 2.0.0 kept",
        "  to         gone@example.net: suppressed 550 5.1.1 no such user",
    ]
    assert out[-1].endswith("Z  removed      bob@example.net: by hand")
    assert command(own, "queue", "list")[2] == "1 message\n"


def set_aside(config: Path, message_id: str) -> None:
    """Set a message aside, as the queue does when it finds it damaged."""

    async def work() -> None:
        store = SqliteStore(config.parent / "var" / "spool")
        await store.set_aside(message_id, "its content is gone", DAY_2, [0])
        await store.close()

    asyncio.run(work())


def test_message_that_was_set_aside_is_shown_and_put_back(own: Path) -> None:
    """With the reason, in the list, in its record and for programs; by its name, since --all leaves it alone."""
    set_aside(own, "aaaa3.1")
    assert command(own, "queue", "list", "--limit", "1")[1].splitlines()[1:] == [
        "    set aside: its content is gone",
        f"    bob@example.net  no attempt, 1 made; {FULL}",
    ]
    assert json.loads(command(own, "queue", "list", "--json")[1])[0]["set_aside"] == "its content is gone"
    assert "  set aside  its content is gone\n" in command(own, "queue", "show", "aaaa3.1")[1]
    assert command(own, "queue", "retry", "--all") == (0, "due now: 1 recipient\n", "")
    assert command(own, "queue", "retry", "aaaa3.1") == (
        0,
        "put back, though it was set aside: its content is gone\ndue now: 1 recipient\n",
        "",
    )
    assert "set aside" not in command(own, "queue", "list")[1]
    assert json.loads(command(own, "queue", "list", "--json")[1])[0]["recipients"][0]["next_attempt_at"] < HELD_UNTIL
    set_aside(own, "aaaa3.1")
    assert command(own, "queue", "remove", "aaaa3.1") == (0, "removed: 1 recipient\n", "")
    assert command(own, "queue", "list")[2] == "1 message\n"


def test_what_is_being_attempted_is_not_shown_as_waiting_for_hours(own: Path) -> None:
    """The time of the next attempt is then the end of a lease, which means nothing to anybody."""

    async def list_while_leased() -> tuple[int, str, str]:
        store = SqliteStore(own.parent / "var" / "spool")
        await store.lease(DAY_2 + 7200, DAY_2 + 14400, 10)
        shown = await asyncio.to_thread(command, own, "queue", "list", "--limit", "1")
        await store.close()
        return shown

    lines = asyncio.run(list_while_leased())[1].splitlines()
    assert lines[1] == f"    bob@example.net  attempt 2 begun, or in line for it; {FULL}"


# suppression


def test_suppression_list_is_kept_by_hand(own: Path) -> None:
    """Listed latest first; added and removed without regard to case; a slip is told."""
    assert command(own, "suppression", "list") == (
        0,
        "left@example.net\t2026-11-23 10:00:00Z\tadded by hand\n"
        "gone@example.net\t2026-11-22 09:00:00Z\t550 5.1.1 no such user\n",
        "",
    )
    assert command(own, "suppression", "add", "New@example.net", "--reason", "asked us") == (
        0,
        "suppressed: New@example.net\n",
        "",
    )
    assert command(own, "suppression", "remove", "LEFT@example.net") == (
        0,
        "no longer suppressed: LEFT@example.net\n",
        "",
    )
    assert command(own, "suppression", "remove", "left@example.net") == (
        1,
        "",
        "cmail-proxy: left@example.net is not on the list\n",
    )
    listed = json.loads(command(own, "suppression", "list", "--json")[1])
    assert [(each["address"], each["reason"]) for each in listed] == [
        ("new@example.net", "asked us"),
        ("gone@example.net", "550 5.1.1 no such user"),
    ]
    assert listed[1]["since"] == DAY_1
    quoted = '"two words"@example.net'
    assert command(own, "suppression", "add", quoted) == (0, f"suppressed: {quoted}\n", "")


@pytest.mark.parametrize("address", ["nobody", "@example.net", "nobody@", "a b@example.net", "a@b@\n", ""], ids=ascii)
def test_suppression_of_what_is_no_address_is_told(own: Path, address: str) -> None:
    """What could never be the recipient of a message does not go onto the list."""
    code, out, errors = command(own, "suppression", "add", address)
    assert (code, out) == (2, "")
    assert errors.endswith(f"Error: {address!r} is no address\n")


# No store


COMMANDS = [
    ("report",),
    ("queue", "list"),
    ("queue", "show", "aaaa1.1"),
    ("queue", "retry", "--all"),
    ("queue", "remove", "aaaa1.1"),
    ("message", "show", "aaaa1.1"),
    ("suppression", "list"),
    ("suppression", "add", "ann@example.net"),
    ("suppression", "remove", "ann@example.net"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_without_a_store_it_is_told_and_none_is_made(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """A data_dir that is another one than the proxy's would look like an empty queue; so it is told."""
    config = write_settings(tmp_path / "settings.yaml", {"hostname": "proxy.example.com"})
    assert command(config, *arguments) == (
        1,
        "",
        f"cmail-proxy: no store in {tmp_path}/var/spool: the route deliver makes it when it first runs (data_dir says "
        "where)\n",
    )
    assert not (tmp_path / "var").exists()


def test_store_that_is_none_is_told(own: Path) -> None:
    """A damaged file is a line, and no trace of Python."""
    for file in (own.parent / "var" / "spool").glob("spool.db*"):
        file.write_bytes(b"no database " * 100)
    assert command(own, "report") == (
        1,
        "",
        f"cmail-proxy: the store in {own.parent}/var/spool: file is not a database\n",
    )


def test_store_of_a_later_version_is_left_alone(own: Path) -> None:
    """An older program must not guess what a newer one keeps."""
    database = sqlite3.connect(own.parent / "var" / "spool" / "spool.db")
    database.execute("PRAGMA user_version = 99")
    database.close()
    code, out, errors = command(own, "queue", "list")
    assert (code, out) == (1, "")
    assert errors.startswith(f"cmail-proxy: the store in {own.parent}/var/spool: ")
    assert "99" in errors


def test_settings_that_are_wrong_are_told(tmp_path: Path) -> None:
    """With file, line and key, as every command does."""
    config = write_settings(tmp_path / "settings.yaml", {"workers": 0})
    assert command(config, "report") == (
        1,
        "",
        f"error: {config}:1: workers: found 0; expected an integer from 1 to 64 (processes)\ncmail-proxy: 1 problem\n",
    )


# Beside a running proxy


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeliverSite]:
    """A proxy."""
    with site(tmp_path_factory.mktemp("beside")) as running:
        yield running


def test_suppressed_address_gets_no_later_message(here: DeliverSite) -> None:
    """From the next message on, it is taken and recorded as suppressed, while the others get theirs; and back again."""
    content = message(b"X-Cmail-GroupName: suppressed")
    assert here.command("suppression", "add", "Ann@example.net")[0] == 0
    with here.client() as client:
        one = send(client, content, "ann@EXAMPLE.net", "bob@example.net")
        alone = send(client, content, "ann@example.net")
        assert list(here.delivered(one)) == ["bob@example.net"]
        here.wait_for_figures("suppressed", received=2, sent=1, delivered=1, suppressed=2, bounced=0)
        states = {each["address"]: each["state"] for each in here.told("message", "show", one)["item"]["recipients"]}
        assert states == {"ann@EXAMPLE.net": "suppressed", "bob@example.net": "delivered"}
        assert here.told("message", "show", alone)["item"]["recipients"][0]["reply"] == "added by hand"
        assert here.waiting() == {}
        assert here.logged("queued", alone)[0]["suppressed"] == 1
        assert here.proxy.metric("cmail_proxy_suppressed_total") == 2
        assert here.command("suppression", "remove", "ann@example.net")[0] == 0
        assert list(here.delivered(send(client, content, "ann@example.net"))) == ["ann@example.net"]


def test_commands_do_not_disturb_a_running_proxy(here: DeliverSite) -> None:
    """Looking while mail comes in costs no message, on either side."""
    with here.client() as client:
        ids = []
        for _ in range(5):
            ids += [send(client, message()) for _ in range(10)]
            assert here.command("report")[0] == 0
        for each in ids:
            here.only(each)
