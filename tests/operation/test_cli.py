"""The command line itself: help, version, and what is said to wrong usage."""

import re
import sys
from pathlib import Path

import pytest

from proxy import __version__
from tests.operation.program import MODULE, run

SCRIPT = (Path(sys.executable).with_name("cmail-proxy"),)

OPTIONS = {
    "": {"--version", "--help"},
    "serve": {"--config", "--help"},
    "check": {"--config", "--help"},
    "translate": {"--config", "--explain", "--recipient", "--provider", "--help"},
    "demo": {"--port", "--help"},
    "dkim": {"--config", "--help"},
    "message show": {"--config", "--json", "--help"},
    "queue list": {"--config", "--json", "--limit", "--help"},
    "queue show": {"--config", "--json", "--help"},
    "queue retry": {"--config", "--all", "--help"},
    "queue remove": {"--config", "--help"},
    "report": {"--config", "--json", "--csv", "--group", "--since", "--by-day", "--help"},
    "send-test": {
        *("--server", "--tls", "--ca-file", "--insecure", "--token-file", "--username", "--password-file"),
        *("--from", "--to", "--field", "--discard", "--timeout", "--help"),
    },
    "sidecar-snippet": {"--image", "--settings", "--help"},
    "suppression list": {"--config", "--json", "--help"},
    "suppression add": {"--config", "--reason", "--help"},
    "suppression remove": {"--config", "--help"},
    "token": {"--help"},
    "token add": {"--config", "--help"},
    "token list": {"--config", "--help"},
    "token revoke": {"--config", "--help"},
}
WORTH_SAYING = {
    "serve": "until SIGTERM",
    "check": "Exit code 0 when `serve` would start (ports are not tried), 1 with any problem.",
    "translate": "Exit code 0 when it would be sent on or, in test mode, discarded; 1 when it would be refused.",
    "demo": "ends by itself when standard input is none",
    "dkim": "Show the DNS records to publish for DKIM.",
    "message show": "Show one message with its timeline",
    "queue list": "List messages that wait, oldest first.",
    "queue show": "Show one message with its timeline",
    "queue retry": "Where their destination was out of order a moment ago, it does so when that pause is over",
    "queue remove": "Give a message up.",
    "report": "Show what became of messages, by group.",
    "send-test": "Exit code 0 when the message was answered 250, with --discard when it was discarded; else 1.",
    "sidecar-snippet": "The patch is for a Deployment, and goes to standard output.",
    "suppression list": "List the addresses",
    "suppression add": "Put ADDRESS on the list.",
    "suppression remove": "Take ADDRESS off the list.",
    "token": "with the token as user name and as password",
    "token add": "It is shown this once, and kept only as a hash.",
    "token list": "List the names of those who have a token",
    "token revoke": "Take the token of NAME back",
}


@pytest.mark.parametrize("command", OPTIONS)
def test_help_of_every_command_names_its_options(command: str) -> None:
    """--help tells what a command does and lists all options it has, and no others."""
    shown = run(*command.split(), "--help")
    assert (shown.returncode, shown.stderr) == (0, b"")
    text = " ".join(shown.stdout.decode().split())
    assert WORTH_SAYING.get(command, "Begin with `cmail-proxy demo`") in text
    options = text.partition(" Options: ")[2].partition(" Commands: ")[0]
    assert set(re.findall(r"--[a-z]+(?:-[a-z]+)*", options)) == OPTIONS[command]
    if "--config" in options:
        assert "CMAIL_PROXY_CONFIG" in options


def test_help_lists_the_commands_users_are_to_know() -> None:
    """The list of commands is whole, in short as in long form, and leaves out what only the program itself starts."""
    shown = run("--help").stdout.decode()
    commands = [line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines()]
    assert commands == [
        *("check", "demo", "dkim", "message", "queue", "report", "send-test", "serve", "sidecar-snippet"),
        *("suppression", "token", "translate"),
    ]
    assert run("-h").stdout.decode() == shown


@pytest.mark.parametrize("command", [MODULE, SCRIPT], ids=["python -m proxy", "cmail-proxy"])
def test_program_under_either_name_tells_its_version(command: tuple[str | Path, ...]) -> None:
    """``cmail-proxy`` and ``python -m proxy`` are the same program."""
    shown = run("--version", command=command)
    assert (shown.returncode, shown.stdout.decode()) == (0, f"cmail-proxy, version {__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["nonsense"], "Error: No such command 'nonsense'."),
        (["serve", "--nonsense"], "Error: No such option '--nonsense'."),
        (["serve", "nonsense"], "Error: Got unexpected extra argument (nonsense)"),
        (["translate", "README.md", "LICENSE"], "Error: found 2 files; translate takes one (run it once for each)"),
        (["token", "nonsense"], "Error: No such command 'nonsense'."),
        (["token", "add"], "Error: Missing argument 'NAME'."),
        (["worker"], "Error: this command is for `cmail-proxy serve` to start; set workers in the settings"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_told_with_exit_code_2(arguments: list[str], error: str) -> None:
    """Wrong usage is no problem of settings: exit code 2, the mistake on standard error, nothing on standard output."""
    shown = run(*arguments, command=SCRIPT)
    assert (shown.returncode, shown.stdout) == (2, b"")
    assert shown.stderr.decode().splitlines()[-1] == error


def test_no_command_shows_the_help_as_wrong_usage() -> None:
    """Who only types the name is shown what there is."""
    shown = run(command=SCRIPT)
    assert shown.returncode == 2
    assert shown.stderr.decode().startswith("Usage: cmail-proxy [OPTIONS] COMMAND [ARGS]...")
