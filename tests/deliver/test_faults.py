"""What goes wrong behind a 250: the smarthost, the disk, the store. Nothing is lost, and everything else goes on."""

import errno
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from proxy import cli_store
from tests.deliver.plant import IMPATIENT, Plant, eventually
from tests.deliver.site import command
from tests.support.upstream import Reply, Upstream

LATER = {"first_seconds": 3600, "max_seconds": 3600}
LARGE = b"z" * 70 + b"\r\n"


def via(upstream: Upstream, **more: object) -> dict[str, object]:
    """The section of the settings for a smarthost."""
    smarthost = {"host": "127.0.0.1", "port": upstream.port, "tls": "none", **more}
    return {"via": "smarthost", "smarthost": smarthost, "retry": LATER}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """The smarthost."""
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module")
def plant(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """A proxy in front of it, which tries again only when it is told to."""
    with Plant(tmp_path_factory.mktemp("faults"), via(upstream), first=IMPATIENT) as started:
        yield started


CASES: dict[str, tuple[dict[str, Reply], str, str]] = {
    # what the smarthost does: (script, event, what the record says of it)
    "greeting 421": ({"banner": "421 4.3.2 not now"}, "deferred", "421 4.3.2 not now"),
    "greeting 554": ({"banner": "554 5.7.1 blocked"}, "deferred", "554 5.7.1 blocked"),
    "no greeting": ({"banner": "close"}, "deferred", "before its greeting"),
    "EHLO 550": ({"EHLO": "550 5.7.1 who are you", "HELO": "550 5.7.1 who are you"}, "deferred", "550 5.7.1"),
    "MAIL 421": ({"MAIL": "421 4.3.2 closing"}, "deferred", "421 4.3.2 closing"),
    "MAIL 451": ({"MAIL": "451 4.3.0 later"}, "deferred", "451 4.3.0 later"),
    "MAIL 550": ({"MAIL": "550 5.7.1 not you"}, "bounced", "550 5.7.1 not you"),
    "MAIL 530": ({"MAIL": "530 5.7.0 authenticate first"}, "deferred", "530 5.7.0"),
    "MAIL stall": ({"MAIL": "stall"}, "deferred", "at MAIL"),
    "MAIL reset": ({"MAIL": "reset"}, "deferred", "at MAIL"),
    "MAIL nonsense": ({"MAIL": b"what?\r\n"}, "deferred", "at MAIL"),
    "RCPT 450": ({"RCPT": "450 4.2.0 greylisted"}, "deferred", "450 4.2.0 greylisted"),
    "RCPT 550": ({"RCPT": "550 5.7.1 no"}, "bounced", "550 5.7.1 no"),
    "RCPT 552 quota": ({"RCPT": "552 5.2.2 over quota"}, "deferred", "552 5.2.2 over quota"),
    "RCPT reset": ({"RCPT": "reset"}, "deferred", "at RCPT"),
    "DATA 451": ({"DATA": "451 4.3.0 later"}, "deferred", "451 4.3.0 later"),
    "DATA 554": ({"DATA": "554 5.7.1 never"}, "bounced", "554 5.7.1 never"),
    "DATA 250": ({"DATA": "250 2.0.0 fine"}, "deferred", "250 2.0.0 fine"),
    "reset before the dot": ({"after:1": "reset"}, "deferred", ""),
    "dot 451": ({"dot": "451 4.3.0 later"}, "deferred", "451 4.3.0 later"),
    "dot 452": ({"dot": "452 4.3.1 disk full"}, "deferred", "452 4.3.1 disk full"),
    "dot 554": ({"dot": "554 5.6.0 spam"}, "bounced", "554 5.6.0 spam"),
    "dot 421": ({"dot": "421 4.7.0 suspicious"}, "deferred", "421 4.7.0 suspicious"),
    "dot stall": ({"dot": "stall"}, "deferred", "may have been taken"),
    "reset behind the dot": ({"dot": "reset"}, "deferred", "may have been taken"),
}


@pytest.mark.parametrize("name", CASES)
def test_fault_of_the_smarthost_ends_as_the_table_says(plant: Plant, upstream: Upstream, name: str) -> None:
    """The app hears 250, whatever comes; the record says what came, and when it is tried again, and then it is."""
    script, outcome, text = CASES[name]
    upstream.hang_up()
    upstream.script(script)
    message_id = plant.send("ann@example.net", reverse_path="")
    eventually(lambda: outcome in plant.kinds(message_id), outcome)
    recipient = plant.recipient(message_id)
    assert text in recipient.reply
    assert recipient.attempts == 1
    upstream.hang_up()
    upstream.script()
    if outcome == "bounced":
        assert recipient.state.value == "bounced"
        return
    assert recipient.state.value == "pending"
    assert recipient.next_attempt_at > time.time() + 3000
    plant.retry()
    eventually(lambda: plant.recipient(message_id).state.value == "delivered", "delivered")
    kinds = [each for each in plant.kinds(message_id) if each != "retried"]
    assert kinds == ["received", "deferred", "delivered"]


def test_recipients_of_one_message_end_each_by_its_own_reply(plant: Plant, upstream: Upstream) -> None:
    """One is delivered, one deferred, one fails; only the one that is left is tried again."""
    replies = {"good": "250 2.1.5 fine", "later": "450 4.2.0 later", "never": "550 5.7.1 never"}
    upstream.script({"RCPT": lambda line: next(reply for word, reply in replies.items() if word in line)})
    before = len(upstream.taken)
    message_id = plant.send("good@example.net", "later@example.net", "never@example.net", reverse_path="")
    eventually(lambda: len(plant.kinds(message_id)) == 4, "three outcomes")
    states = [each.state.value for each in plant.history(message_id).item.recipients]
    assert states == ["delivered", "pending", "bounced"]
    upstream.script()
    plant.retry()
    eventually(lambda: plant.recipient(message_id, 1).state.value == "delivered", "delivered")
    recipients = [each.recipients for each in upstream.taken[before:]]
    assert recipients == [["RCPT TO:<good@example.net>"], ["RCPT TO:<later@example.net>"]]


def test_smarthost_that_is_not_there_defers_and_costs_waiting_messages_no_attempt(
    plant: Plant, upstream: Upstream
) -> None:
    """While a destination is paused, those that were not tried keep their attempts and go as soon as it is back."""
    upstream.hang_up()
    upstream.script({"banner": "close"})
    ids = [plant.send(f"r{number}@example.net", reverse_path="") for number in range(30)]
    eventually(lambda: any("deferred" in plant.kinds(each) for each in ids), "deferred")
    upstream.script()
    plant.retry()
    eventually(lambda: not plant.pending(), "all delivered")
    for each in ids:
        recipient = plant.recipient(each)
        assert recipient.attempts == plant.kinds(each).count("deferred") + 1


def test_tls_that_is_missing_and_auth_that_is_refused_defer(tmp_path: Path) -> None:
    """Both are the operator's to mend, and no app's mail bounces meanwhile; nothing goes out in clear."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    with Upstream({"AUTH": "535 5.7.8 wrong"}, extensions=("PIPELINING", "AUTH PLAIN"), context=context) as upstream:
        login = {"tls": "required", "username": "u", "password": "p", "ca_file": str(tmp_path / "ca.pem")}
        with Plant(tmp_path, via(upstream, **login), first=IMPATIENT) as plant:
            message_id = plant.send()
            plant.settled(message_id, "received", "deferred")
            assert "535 5.7.8 wrong" in plant.recipient(message_id).reply
            upstream.context = None
            plant.retry()
            plant.settled(message_id, "received", "deferred", "deferred")
            assert "offers no STARTTLS" in plant.recipient(message_id).reply
            assert not upstream.taken
            assert not any(each.count("AUTH") for each in upstream.dialogues if not each.tls)
            upstream.context = context
            upstream.script({}, ("PIPELINING", "AUTH PLAIN"))
            plant.retry()
            plant.settled(message_id, "received", "deferred", "deferred", "delivered")


# Damage


def test_damaged_content_is_set_aside_and_everything_else_goes_on(plant: Plant, upstream: Upstream) -> None:
    """A file that was cut or changed, or a row that was: logged, counted, seen in the record, never sent."""
    upstream.script({"MAIL": "451 4.3.0 later"})
    ids = [plant.send(reverse_path="", body=LARGE * 5000) for _ in range(3)]
    kept = (plant.data / "spool" / "content" / ids[0]).read_bytes()
    ids.append(plant.send(reverse_path=""))
    for each in ids:
        eventually(lambda each=each: "deferred" in plant.kinds(each), "deferred")  # type: ignore[misc]
    folder = plant.data / "spool" / "content"
    os.truncate(folder / ids[0], 1000)
    with (folder / ids[1]).open("r+b") as file:
        file.seek(5000)
        file.write(b"changed")
    (folder / ids[2]).unlink()
    sql = f"UPDATE content SET octets = CAST('other' AS BLOB) WHERE message_id = '{ids[3]}'"  # noqa: S608
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], timeout=20); c.execute(sys.argv[2]); c.commit()"
    subprocess.run([sys.executable, "-c", code, str(plant.data / "spool" / "spool.db"), sql], check=True)
    upstream.script()
    before = len(upstream.taken)
    plant.retry()
    for each in ids:
        eventually(lambda each=each: "set_aside" in plant.kinds(each), "set aside")  # type: ignore[misc]
    good = plant.send(reverse_path="")
    eventually(lambda: plant.recipient(good).state.value == "delivered", "others go on")
    assert len(upstream.taken) == before + 1
    assert {each["id"] for each in plant.proxy.events("set_aside")} == set(ids)
    assert plant.proxy.metric("cmail_proxy_set_aside_total") == 4
    shown = subprocess.run(
        [sys.executable, "-m", "proxy", "message", "show", "--config", str(plant.proxy.config), ids[0]],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert "set_aside" in shown.stdout
    assert "its content is not what was kept" in shown.stdout
    assert plant.store(lambda store: store.depth()).set_aside == 4
    (folder / ids[0]).write_bytes(kept)  # from a backup
    exit_code, out, errors = command(plant.proxy.config, "queue", "retry", ids[0])
    assert (exit_code, out.splitlines()[-1], errors) == (0, "due now: 1 recipient", "")
    eventually(lambda: plant.recipient(ids[0]).state.value == "delivered", "delivered")
    assert upstream.taken[-1].content == kept
    command(plant.proxy.config, "queue", "retry", ids[1])  # what is still damaged is found so again
    eventually(lambda: plant.kinds(ids[1]).count("set_aside") == 2, "set aside again")


def test_removed_message_may_still_arrive_where_it_is_on_the_wire_and_only_there(
    plant: Plant, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command says what may still arrive; of what waits nothing does, however long the host takes."""
    monkeypatch.setattr(cli_store, "_SEEN_SECONDS", 1.0)  # the host is waited for for two
    upstream.hang_up()
    upstream.script({"dot": "stall"})
    before = len(upstream.taken)
    message_id = plant.send("ann@example.net", reverse_path="")
    upstream.wait_for(lambda: len(upstream.taken) == before + 1)
    assert command(plant.proxy.config, "queue", "remove", message_id) == (
        0,
        "removed: 1 recipient\n",
        "being sent to 1 recipient at this moment, who may still get it; not tried again\n",
    )
    eventually(lambda: not plant.store(lambda store: store.under_way(message_id)), "the end of the attempt")
    upstream.hang_up()
    upstream.script()
    plant.retry()
    plant.settled(plant.send(reverse_path=""), "received", "delivered")
    assert plant.kinds(message_id) == ["received", "removed"]
    assert len(upstream.taken) == before + 2


# Disks


def test_large_message_without_a_place_for_it_hears_a_reply(tmp_path: Path) -> None:
    """A folder that is gone, a disk that went read-only: 451 as for every failure of ours, and no broken connection."""
    with Plant(tmp_path, {"via": "mailbox", "mailbox": str(tmp_path / "mailbox")}) as plant:
        spool = plant.data / "spool"
        spool.rename(plant.data / "away")
        code, text = plant.try_to_send(body=LARGE * 20_000)
        assert (code, text[:5]) == (451, "4.3.0")
        (plant.data / "away").rename(spool)
        plant.settled(plant.send(body=LARGE * 20_000), "received", "delivered")


@contextmanager
def small_disk(folder: Path, octets: int) -> Iterator[Path]:
    """A file system of that size."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={octets}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if mounted.returncode:
        pytest.skip(f"no small disk, for which root is needed: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path, left: int) -> None:
    """Leave only so many octets free."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    free = os.statvfs(disk)
    with ballast.open("wb") as file:
        try:
            file.write(bytes(max(0, free.f_bavail * free.f_bsize - left)))
            file.flush()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


def test_full_disk_is_told_before_250_and_nothing_is_lost_behind_it(tmp_path: Path, upstream: Upstream) -> None:
    """452 4.3.1 at whatever write it happens; what got 250 arrives once, and mail is taken as soon as there is room."""
    upstream.hang_up()
    upstream.script()
    before = len(upstream.taken)
    with small_disk(tmp_path / "disk", 6 << 20) as disk:
        settings = {**via(upstream), "retry": {"first_seconds": 1}}
        with Plant(tmp_path, settings, first=IMPATIENT, data_dir=str(disk / "var")) as plant:
            plant.data = disk / "var"
            told, refused = [], []
            for left in (0, 4096, 8192, 16384, 32768, 65536, 131_072, 280_000, 320_000, 400_000, 600_000):
                fill(disk, left)
                for body in (b"small\r\n", LARGE * 4000, LARGE * 100, LARGE * 8000):
                    code, text = plant.try_to_send(body=body, reverse_path="")
                    if code == 250:
                        told.append(text.rpartition(" ")[2])
                    else:
                        refused.append((code, text))
            assert {(code, text[:5]) for code, text in refused} == {(452, "4.3.1")}
            assert len(refused) > 10
            (disk / "ballast").unlink()
            told.append(plant.send(reverse_path="", body=LARGE * 8000))
            eventually(lambda: not plant.pending(), "all delivered")
            for each in told:
                assert plant.recipient(each).state.value == "delivered"
            assert len(upstream.taken) - before == len(told)
            assert {path.name for path in (plant.data / "spool" / "content").iterdir()} <= set(
                told
            )  # nothing left over
            assert plant.proxy.stop() == 0


def test_full_disk_of_the_mailbox_defers_and_then_delivers(tmp_path: Path) -> None:
    """The message stays where it is durable until the folder takes it."""
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        deliver = {"via": "mailbox", "mailbox": str(disk / "mailbox"), "retry": LATER}
        with Plant(tmp_path, deliver) as plant:
            plant.settled(plant.send(), "received", "delivered")
            fill(disk, 8192)
            message_id = plant.send(body=LARGE * 1000)
            plant.settled(message_id, "received", "deferred")
            assert "no room to store the message" in plant.recipient(message_id).reply
            (disk / "ballast").unlink()
            plant.retry()
            plant.settled(message_id, "received", "deferred", "delivered")
            assert len(list((disk / "mailbox" / "new").iterdir())) == 2
            assert not list((disk / "mailbox" / "tmp").iterdir())
