"""A connection to the next hop, where it differs from what a transaction shows: when octets leave."""

import asyncio
import select
import socket

import pytest

from proxy.outbound.client import Connection, NextHop, UpstreamError
from proxy.turns import turns_of


class _Peer:
    """The other end of a connection: says what it is told to, whenever."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            self.sock, _ = listener.accept()
        self.client.setblocking(False)
        self.sock.setblocking(False)

    def say(self, text: bytes) -> None:
        """Say something; the other end can read it on return, and has not."""
        self.sock.sendall(text)
        assert select.select([self.client], [], [], 5)[0]

    async def hear(self) -> bytes:
        """Give what came next."""
        return await asyncio.get_running_loop().sock_recv(self.sock, 1000)

    async def greet(self) -> Connection:
        """Make a connection that is ready for a transaction."""
        hop = NextHop("peer.example", 25, "none", None, "proxy.example")
        self.say(b"220 peer.example\r\n")
        opening = asyncio.create_task(Connection.open(hop, self.client))
        assert await self.hear() == b"EHLO proxy.example\r\n"
        self.say(b"250 peer.example\r\n")
        return await opening


async def _crowd() -> None:
    """Have the event loop see that many connections send."""
    turns = turns_of(asyncio.get_running_loop())
    for _ in range(2):
        turns.send(lambda: None)
    await asyncio.sleep(0)


@pytest.mark.parametrize("said", [b"250 2.0.0 Taken\r\n", b"354 Go on\r\n", b"250 a\r\n550 5.7.1 b\r\n"])
async def test_no_reply_that_comes_before_its_command_has_left_is_a_success_of_it(said: bytes) -> None:
    peer = _Peer()
    connection = await peer.greet()
    await _crowd()
    peer.say(said)
    connection.write(b"The text\r\n.\r\n")
    with pytest.raises(UpstreamError, match="unasked reply"):
        await connection.reply(5)
    assert await peer.hear() == b""


@pytest.mark.parametrize("said", [b"550 5.7.1 Never\r\n", b"421 4.3.2 Going\r\n", b"552 5.3.4 Large\r\n250 a\r\n"])
async def test_a_refusal_that_comes_before_its_command_has_left_counts(said: bytes) -> None:
    peer = _Peer()
    connection = await peer.greet()
    await _crowd()
    peer.say(said)
    connection.write(b"The text\r\n.\r\n")
    assert str(await connection.reply(5)) == said.partition(b"\r\n")[0].decode()
    assert connection.lost.startswith("unasked reply")
    assert await peer.hear() == b""


async def test_a_reply_to_what_was_said_before_still_counts() -> None:
    peer = _Peer()
    connection = await peer.greet()
    connection.write(b"NOOP\r\n")
    assert await peer.hear() == b"NOOP\r\n"
    await _crowd()
    peer.say(b"250 2.0.0 OK\r\n")
    connection.write(b"RSET\r\n")
    assert str(await connection.reply(5)) == "250 2.0.0 OK"
    assert await peer.hear() == b"RSET\r\n"
    peer.say(b"250 2.0.0 Reset\r\n")
    assert str(await connection.reply(5)) == "250 2.0.0 Reset"
    connection.close()


async def test_commands_and_parts_of_a_message_keep_their_order() -> None:
    peer = _Peer()
    connection = await peer.greet()
    await _crowd()
    connection.write(b"DATA\r\n")
    connection.write(b"The text\r\n", replies=0)
    connection.write(b".\r\n")
    heard = b""
    while not heard.endswith(b".\r\n"):
        heard += await peer.hear()
    assert heard == b"DATA\r\nThe text\r\n.\r\n"
    connection.close()


async def test_what_was_just_written_leaves_before_the_goodbye() -> None:
    peer = _Peer()
    connection = await peer.greet()
    await _crowd()
    connection.write(b"RSET\r\n")
    connection.quit()
    heard = b""
    while part := await peer.hear():
        heard += part
    assert heard == b"RSET\r\nQUIT\r\n"
