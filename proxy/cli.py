"""
The command line. Each command imports what it needs: ``serve`` starts fast, ``translate`` opens no socket.

Exit codes: 0 done, 1 a problem with settings, rules or the message, 2 wrong usage.
"""

import asyncio
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from proxy import __version__
from proxy.cli_common import CONFIG, fail, loaded, stop
from proxy.problems import Problem, ProblemsError
from proxy.settings import TOKENS_FILE, Settings, Warned, check, load, load_rules

if TYPE_CHECKING:
    from proxy.inbound.tokens import TokenStore
    from proxy.translate.engine import Engine


class _Commands(click.Group):
    """Commands, of which those of other modules are imported when one is asked for: ``serve`` starts fast."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *_ELSEWHERE])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in _ELSEWHERE:
            module = importlib.import_module(_ELSEWHERE[name])
            commands: Sequence[click.Command] = module.COMMANDS
            return next(command for command in commands if command.name == name)
        return super().get_command(context, name)


_ELSEWHERE = {
    **dict.fromkeys(("dkim", "message", "queue", "report", "suppression"), "proxy.cli_store"),
    "send-test": "proxy.cli_send",
    "sidecar-snippet": "proxy.cli_snippet",
}
"""Commands by the module that has them."""


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cmail-proxy")
def main() -> None:
    """
    Transparent SMTP proxy: turns the header fields of Mailgun, Mailjet, Mandrill, Postmark and SendGrid into X-Cmail
    fields, and sends each message on.

    Begin with `cmail-proxy demo`. Then write a settings file, and try check and serve with `--config FILE`. Without a
    platform it delivers the messages itself; report, queue, message and suppression show what became of them.
    """


@main.command()
@CONFIG
def serve(config: Path | None) -> None:
    """
    Take mail and send it on, until SIGTERM.

    Without any settings it listens on 127.0.0.1:2525, shows a token for your app at its first start, and delivers into
    a mailbox folder: nothing leaves the machine. All of it is kept in ./var.

    Logs one line for each message to standard output. Rule files, certificates, keys and issued tokens are read again
    when they change; a change of the settings file needs a restart.
    """
    from proxy import app
    from proxy.listening import BindError
    from proxy.record.log import Log, Output

    first: Callable[[], None] | None = None
    settings = loaded(config)
    if not config:
        settings, first = _embedded(settings)
    if first is None:  # else all of it is defaults, and nobody can log in yet
        _checked(settings)
    log = Log(settings.log.level, settings.log.format, Output(sys.stdout.fileno()))
    log.install()
    try:
        try:
            if settings.workers > 1:
                from proxy import workers

                code = asyncio.run(workers.serve(settings, log, config))
            else:
                code = app.run(lambda: app.serve(settings, log, first))
        finally:
            log.flush()
    except ProblemsError as error:
        fail(error)
    except BindError as error:
        stop(str(error).replace("\n", "\ncmail-proxy: "))
    sys.exit(code)


@main.command(hidden=True)
@CONFIG
def worker(config: Path | None) -> None:
    """Serve as one of several workers; started by `serve`, on sockets it was handed."""
    from proxy import app, workers
    from proxy.record.log import Log, Output
    from proxy.supervisor import WorkerPlace

    place = WorkerPlace.take(os.environ)
    if place is None:
        raise click.UsageError("this command is for `cmail-proxy serve` to start; set workers in the settings")
    settings = _checked(loaded(config), quiet=True)
    log = Log(settings.log.level, settings.log.format, Output(sys.stdout.fileno()))
    log.install()
    try:
        try:
            code = app.run(lambda: workers.work(settings, log, place))
        finally:
            log.flush()
    except ProblemsError as error:
        fail(error)
    sys.exit(code)


@main.command("check")
@CONFIG
def check_command(config: Path | None) -> None:
    """
    Show all problems of settings and rules.

    Exit code 0 when `serve` would start (ports are not tried), 1 with any problem. Warnings do not count. What keys
    mean together is looked at once each of them can be read.
    """
    try:
        settings = load(config, os.environ)
    except ProblemsError as error:
        fail(ProblemsError([*error.problems, *_rule_problems(config)]))
    settings, first = (settings, None) if config else _embedded(settings)
    problems, warned = ([], []) if first else check(settings)  # as serve does: nobody can log in before its first start
    import attrs

    from proxy import rulebook
    from proxy.inbound.tls import Certificates
    from proxy.inbound.tokens import TokenStore

    warnings = [str(warning) for warning in warned]
    rules = "none"
    try:
        book = rulebook.RuleBook(settings)
        warnings += rulebook.warnings(settings, book.engine)
        rules = f"{book.count} rules of {', '.join(file.provider for file in book.engine.files)}"
    except ProblemsError as error:
        problems.extend(error.problems)
    # What is wrong with the names of the files was told; to look into them would only say so in other words.
    told = {(problem.file, problem.line, problem.key) for problem in problems}
    misnamed = any(settings.source.place(f"tls.{key}") in told for key in ("certificate_file", "key_file"))
    files = None if misnamed else settings.tls.certificate_file
    tls = attrs.evolve(settings.tls, self_signed=False, names=(), certificate_file=files)  # what would make no files
    for look in (
        partial(Certificates, tls, settings.data_dir, settings.hostname),
        partial(TokenStore, settings.data_dir / TOKENS_FILE),
    ):
        try:
            look()
        except ProblemsError as error:
            problems.extend(error.problems)
    if settings.delivers:
        from proxy.compose import dkim

        for index, key in enumerate(settings.deliver.dkim):
            name = f"deliver.dkim[{index}].key_file"
            try:
                weakness = dkim.weakness(dkim.load_key(key.key_file, name))
                warnings += [str(Warned(*settings.source.place(name), weakness))] if weakness else []
            except ProblemsError as error:
                problems.extend(error.problems)
    for warning in warnings:
        click.echo(f"warning: {warning}", err=True)
    if problems:
        fail(ProblemsError(problems))
    listeners = ", ".join(f"{each.address}:{each.port} ({each.tls})" for each in settings.listeners)
    click.echo(f"ok: {rules}; listening on {listeners}; {settings.onward}")
    if first:
        click.echo("no settings, so these; serve makes a certificate and a token at its first start", err=True)


def _rule_problems(config: Path | None) -> Sequence[Problem]:
    """The problems of rule files, though the settings as a whole cannot be read."""
    from proxy import rulebook

    settings = load_rules(config, os.environ)
    try:
        if settings is not None:
            rulebook.RuleBook(settings)
    except ProblemsError as error:
        return error.problems
    return ()


@main.command()
@CONFIG
@click.option("--explain", is_flag=True, help="Print what was set by which rule, and what was lost, instead.")
@click.option(
    "--recipient", "recipients", multiple=True, metavar="ADDRESS", help="Envelope recipient; may be repeated."
)
@click.option("--provider", default="", help="Provider of the login or listener: its fields count first.")
@click.argument("messages", type=click.File("rb"), nargs=-1, metavar="[FILE|-]")
def translate(
    config: Path | None, explain: bool, recipients: tuple[str, ...], provider: str, messages: tuple[BinaryIO, ...]
) -> None:
    """
    Show what becomes of one message.

    FILE or standard input in, the message as it would be sent on out. Without --recipient the recipients are taken from
    To, Cc and Bcc. Exit code 0 when it would be sent on or, in test mode, discarded; 1 when it would be refused.
    """
    from proxy.translate.command import translate_octets

    if len(messages) > 1:
        raise click.UsageError(f"found {len(messages)} files; translate takes one (run it once for each)")
    message = messages[0] if messages else sys.stdin.buffer
    engine = _rules(loaded(config))
    known = [file.provider for file in engine.files]
    if provider and provider not in known:
        raise click.UsageError(f"--provider: found {provider!r}; expected one of {', '.join(known)}")
    if message.isatty():
        click.echo("reading a message from standard input; end it with Ctrl-D", err=True)
    result = translate_octets(message.read(), engine, recipients, provider)
    if explain:
        click.echo(result.explanation, nl=False)
    else:
        sys.stdout.buffer.write(result.message)
        sys.stdout.buffer.flush()
    if result.discarded and not explain:
        click.echo(f"discarded, answered with 250: {result.discarded}", err=True)
    if result.refused:
        if not explain:
            click.echo(f"refused with 554 5.6.0: {result.refused}", err=True)
        sys.exit(1)


@main.command()
@click.option("--port", default=0, show_default="any free one", help="Port of the proxy.")
def demo(port: int) -> None:
    """
    Send one message of each provider through.

    Starts a sink that stands for the platform and a proxy in front of it, and shows each message before and after.
    Then sends them through the sending core into a mailbox folder, and shows the report.
    Stays up on a terminal, so that you can send mail of your own; ends by itself when standard input is none.
    """
    from proxy.demo.run import run

    sys.exit(run(port))


@main.group()
def token() -> None:
    """
    Issue tokens and take them back.

    Who has one may send, with the token as user name and as password.
    """


@token.command("add")
@CONFIG
@click.argument("name")
def token_add(config: Path | None, name: str) -> None:
    """
    Issue a token to NAME and print it.

    It is shown this once, and kept only as a hash.
    """
    from proxy.inbound.tokens import TokenError

    store = _store(config)
    try:
        click.echo(store.add(name))
        click.echo(f"It is user name and password in one; kept as a hash in {store.path}", err=True)
    except TokenError as error:
        stop(str(error))
    except ProblemsError as error:
        fail(error)


@token.command("list")
@CONFIG
def token_list(config: Path | None) -> None:
    """List the names of those who have a token, and since when."""
    store = _store(config)
    for issued in store.list():
        click.echo(f"{issued.name}\t{issued.created_at.isoformat()}")
    if not store.list():
        click.echo(f"none was issued in {store.path}; those in the settings are not listed here", err=True)


@token.command("revoke")
@CONFIG
@click.argument("name")
def token_revoke(config: Path | None, name: str) -> None:
    """
    Take the token of NAME back.

    A running proxy notices within seconds.
    """
    from proxy.inbound.tokens import TokenError

    store = _store(config)
    try:
        store.revoke(name)
    except TokenError as error:
        stop(str(error))
    except ProblemsError as error:
        fail(error)
    click.echo(f"revoked: {name}")


def _store(config: Path | None) -> "TokenStore":
    from proxy.inbound.tokens import TokenStore

    try:
        return TokenStore(loaded(config).data_dir / TOKENS_FILE)
    except ProblemsError as error:
        fail(error)


def _embedded(settings: Settings) -> tuple[Settings, Callable[[], None] | None]:
    """
    Make settings of nothing usable: a certificate of our own, and a token where nobody has one.

    Returns:
        The settings, and what makes the token and shows it, this once: to be called when nothing else is in the way,
        since nobody who saw the start fail would look for a token. None where there is one.
    """
    import attrs

    from proxy.inbound.tokens import TokenStore

    if settings.source.variables or not settings.delivers:
        return settings, None
    try:
        store = TokenStore(settings.data_dir / TOKENS_FILE)
    except ProblemsError as error:
        fail(error)

    def first() -> None:
        token = store.add("first")
        click.echo("No settings, so these: listening on 127.0.0.1:2525, delivering into a mailbox folder.", err=True)
        click.echo(f"Token for your app, user name and password in one, shown this once: {token}", err=True)
        click.echo(f"Everything is kept in {settings.data_dir}. For more: cmail-proxy serve --config FILE", err=True)

    embedded = attrs.evolve(settings, tls=attrs.evolve(settings.tls, self_signed=True))
    return embedded, None if store.list() else first


def _checked(settings: Settings, *, quiet: bool = False) -> Settings:
    """Take settings that are fit to serve with; every problem ends the program."""
    problems, warned = check(settings)
    if problems:
        fail(ProblemsError(problems))
    for warning in () if quiet else warned:
        click.echo(f"warning: {warning}", err=True)
    return settings


def _rules(settings: Settings) -> "Engine":
    from proxy import rulebook

    try:
        return rulebook.RuleBook(settings).engine
    except ProblemsError as error:
        fail(error)
