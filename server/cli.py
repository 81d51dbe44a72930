"""``flower-server``: the centre of a real federation, from an empty folder to the released model."""

import logging
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.table import Table

from aecnn.config import validate_config
from aecnn.console import JsonOption, plain, print_json, run_cli, say, say_plain, table_of
from aecnn.enrolment import EnrolmentRequest, read_request, split_address
from aecnn.errors import ConfigError, FederationError
from aecnn.processes import FolderLock, ProcessError, stop_holder
from server.settings import CentrePaths, ServerConfig, read_server_config
from server.words import counted

if TYPE_CHECKING:
    from server.centre_setup import NewFederation

EXIT_FAILED = 1
STOP_TIMEOUT_S = 60.0
PIPE_WIDTH = 200  # of tables that go to a file or another program

DEFAULT_PORT = 9092

app = typer.Typer(
    help="The coordinating centre of a federation of hospitals. `init` makes a folder, `enroll` lets a hospital in, "
    "`start` runs everything, and goes on where it was whenever it is started again. All other commands look at the "
    "folder, or change it while it runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The federation folder that `init` made.")]
AddressOption = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="What hospitals connect to; asked for at a terminal.")
]
ListenOption = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Where this machine answers hospitals. Default: everywhere, on the address's port.",
        show_default=False,
    ),
]
HostNameOption = Annotated[
    list[str] | None, typer.Option(help="Another name or IP address hospitals may know this machine by. Repeatable.")
]
ConfigOption = Annotated[
    Path | None, typer.Option(help="Another configuration than FOLDER/server.yaml.", show_default=False)
]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="New or empty folder to make the federation in.")],
    name: Annotated[
        str | None, typer.Option(help="Of the federation, such as chest-2027; asked for at a terminal.")
    ] = None,
    address: AddressOption = None,
    listen: ListenOption = None,
    local_port: Annotated[int, typer.Option(help="Of the services that stay on this machine's loopback.")] = 8000,
    host_name: HostNameOption = None,
    json_: JsonOption = False,
) -> None:
    """Make a federation folder: certificates, server.yaml, and federation.yaml for the hospitals.

    The folder holds the authority's key (tls/ca.key) and the server's, readable by you alone: back it up, and give it a
    Unix account of its own, because whoever may read it owns the federation. Either all of it is made, or nothing.
    """
    from server.centre_setup import NewFederation, make_federation, refuse_used

    refuse_used(folder)
    name, address = _asked(name, address)
    answers: dict[str, Any] = {
        "name": name,
        "address": address,
        "listen": listen or f"0.0.0.0:{address.rpartition(':')[2] if ':' in address else DEFAULT_PORT}",
        "local_port": local_port,
        "host_names": host_name or [],
    }
    wanted = validate_config(answers, NewFederation, subject="flower-server init")
    paths = make_federation(folder, wanted)
    if json_:
        print_json({"folder": str(paths.folder), **wanted.model_dump(mode="json")})
    else:
        _tell_next(paths, wanted, folder)


def _tell_next(paths: CentrePaths, wanted: "NewFederation", folder: Path) -> None:
    """Says what a person does after `init`; `folder` is as it was given, to be copied."""
    port, console = split_address(wanted.listen)[1], Console()
    say(console, f"The federation [bold]{wanted.name}[/] is in {escape(str(paths.folder))}. Next:")
    say_plain(console, f"  1. look through {paths.config}: rounds, model, training")
    say_plain(console, f"  2. send {paths.federation} to the hospitals (nothing in it is secret)")
    say_plain(console, f"  3. open port {port} of this machine to them, no other")
    say_plain(console, f"  4. flower-server enroll NAME REQUEST.json --folder {folder}, for each hospital's answer")
    say_plain(console, f"  5. flower-server start --folder {folder}")


@app.command()
def enroll(
    name: Annotated[str, typer.Argument(help="The hospital's name, as in its request.")],
    request_file: Annotated[
        Path, typer.Argument(metavar="REQUEST", help="The enrolment-request.json that the hospital sent.")
    ],
    folder: FolderOption = Path(),
    replace: Annotated[
        bool, typer.Option("--replace", help="It is enrolled already: this is its new key, or its new numbers.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; the key was compared before.")] = False,
) -> None:
    """Let a hospital take part: show its request, register its key.

    Compare the key's fingerprint with the hospital by another way than the one the request came, such as the
    telephone. What it declares binds: with more images or patients it cannot join. Works while the federation runs.
    """
    from server.roster import changing_roster, read_roster

    paths, config, console = CentrePaths(folder), _config(folder), Console(stderr=True)
    request = read_request(request_file)
    if request.name != name:
        raise ConfigError(request_file, [f"is the request of {request.name!r}, not of {name!r}: give its own name"])
    roster = read_roster(paths.roster)
    current = roster.enrolled.get(name)
    if current is not None and current.is_as(request):
        say_plain(console, f"{name} is enrolled so already, since {current.enrolled_at}")
    else:
        roster.with_request(request, replaces=replace)  # what cannot be is told before a question is asked
        _show_request(request, config.accepted_fingerprints, console)
        if not yes:
            _confirm(f"Enrol {name} with this key?")
        with changing_roster(paths.roster) as change:
            change.save(change.roster.with_request(request, replaces=replace))
        say_plain(console, f"{name} is enrolled")
    _tell_link(paths, f"{name} may connect")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The hospital's name.")],
    folder: FolderOption = Path(),
) -> None:
    """Cut a hospital off, at once where the federation runs.

    Its key is never accepted again. To come back it makes a new key and is enrolled with that.
    """
    from server.roster import changing_roster

    paths = CentrePaths(folder)
    _config(folder)
    with changing_roster(paths.roster) as change:
        change.save(change.roster.without(name))
    say_plain(Console(stderr=True), f"{name} is revoked")
    _tell_link(paths, f"{name} is cut off")


@app.command()
def hospitals(folder: FolderOption = Path(), json_: JsonOption = False) -> None:
    """List the hospitals: what they declared, their keys, and who is online now."""
    from server.centre import running_process
    from server.roster import read_roster

    paths = CentrePaths(folder)
    _config(folder)
    roster = read_roster(paths.roster)
    online = _online(paths) if running_process(paths) else None
    rows = [
        {
            "name": hospital.name,
            "is_enrolled": hospital.revoked_at is None,
            "is_online": None if online is None else hospital.public_key in online,
            **hospital.model_dump(exclude={"name", "public_key"}),
            "key_fingerprint": hospital.key_fingerprint,
        }
        for hospital in roster.newest.values()
    ]
    if json_:
        print_json({"is_running": online is not None, "hospitals": rows})
        return
    table = table_of("hospital", "state", "images", "patients", "since", "key")
    for row in rows:
        state = (
            "revoked"
            if not row["is_enrolled"]
            else {True: "online", False: "offline", None: "enrolled"}[row["is_online"]]
        )
        since = row["revoked_at"] or row["enrolled_at"]
        table.add_row(
            plain(row["name"]), state, str(row["num_images"]), str(row["num_patients"]), since, row["key_fingerprint"]
        )
    _print_table(table)


@app.command()
def start(
    folder: FolderOption = Path(),
    config: ConfigOption = None,
    new: Annotated[
        bool, typer.Option("--new", help="Begin a new run, although one is unfinished. Its folder is kept.")
    ] = False,
) -> None:
    """Run the federation: Flower's SuperLink, and the rounds, under one roof.

    It shows the run as it goes, and ends when the runs are done. Ctrl-C (or `stop`) ends it cleanly at any time;
    started again it goes on from the last finished round, with the same hospitals. What crashes in between is started
    again by itself. Logs are in FOLDER/state/logs. Exit codes: 0 done or stopped, 1 the run failed, 2 faulty input.
    """
    from server.centre import check_ready

    console = Console(stderr=True)
    handler = RichHandler(console=console, show_time=False, show_path=False)
    logging.basicConfig(handlers=[handler], format="%(message)s", force=True)
    paths, config_file = CentrePaths(folder), config or CentrePaths(folder).config
    settings = read_server_config(config_file)
    lock = FolderLock(paths.lock)
    lock.acquire(what=f"flower-server of {paths.folder}")
    try:
        for warning in check_ready(paths, settings):
            logging.warning(warning)
        code = _run_shown(paths, settings, config_file, anew=new, console=console)
    finally:
        lock.release()
    _tell_end(code, paths, console)


def _run_shown(paths: CentrePaths, settings: ServerConfig, config_file: Path, *, anew: bool, console: Console) -> int:
    """Runs the processes, shows the run meanwhile, and tells at the end what each run has come to; gives their code."""
    from server.centre import commands_of, run_processes
    from server.centre_runs import begin_plan, outcome, read_plan, summary_of
    from server.centre_view import CentreView, describe_end

    commands = commands_of(paths, settings, config_file)
    plan = begin_plan(paths, num_runs=settings.num_runs, anew=anew)
    done_before = [name for name in plan.runs if outcome(paths.runs / name) == "completed"]
    say_plain(
        console, f"{settings.name} answers hospitals on {settings.listen}; Ctrl-C stops it, logs are in {paths.logs}"
    )
    with CentreView(paths, console) as view:
        code = run_processes(commands, paths, on_tick=view.update)
    for name in [name for name in read_plan(paths).runs if name not in done_before]:
        for line in describe_end(summary_of(paths.runs / name), paths.runs / name):
            say_plain(console, line)
    return code


def _tell_end(code: int, paths: CentrePaths, console: Console) -> None:
    """Says why the processes ended, where the runs are not done.

    Raises:
        FederationError: A run failed.
    """
    from server.centre import EXIT_ALL_DONE, EXIT_RUN_FAILED, read_json

    if code == EXIT_RUN_FAILED:
        last = read_json(paths.status)
        reason = last.get("reason") or f"see {paths.logs / 'coordinator.log'}"
        again = ". Started again it goes on from the last finished round; `start --new` begins another run"
        raise FederationError(f"{reason}{again if last.get('goes_on', True) else ''}")
    if code != EXIT_ALL_DONE:
        say_plain(console, "stopped; started again it goes on from the last finished round")


@app.command()
def status(folder: FolderOption = Path(), json_: JsonOption = False) -> None:
    """Tell what the federation is doing: processes, run, round, who has answered, who is online."""
    from server.centre import read_json, running_process
    from server.centre_runs import newest_run, summary_of
    from server.centre_view import describe_newest, describe_status
    from server.roster import read_roster

    paths, settings = CentrePaths(folder), _config(folder)
    pid, newest = running_process(paths), newest_run(paths)
    now = read_json(paths.status) if pid else {}
    last = None if newest is None else summary_of(newest)
    document = {
        "name": settings.name,
        "is_running": pid is not None,
        "processes": {"start": pid, **read_json(paths.processes)} if pid else {},
        "enrolled": list(read_roster(paths.roster).enrolled),
        "online": now.get("online", []),
        "now": now or None,
        "newest_run": None if last is None else last.to_json(),
    }
    if json_:
        print_json(document)
        return
    lines = {
        "federation": f"{settings.name}, " + (f"runs (process {pid})" if pid else "does not run"),
        "enrolled hospitals": ", ".join(document["enrolled"]) or "none",
    }
    if pid:
        lines |= {"online hospitals": ", ".join(document["online"]) or "none", "doing now": describe_status(now)}
    if last is not None:
        lines |= describe_newest(last, now)
    for label, told in lines.items():
        say_plain(Console(), f"{label + ':':<21}{told}")


@app.command()
def stop(folder: FolderOption = Path()) -> None:
    """Stop the federation cleanly; `start` goes on from the last finished round."""
    paths = CentrePaths(folder)
    _config(folder)
    was_running = stop_holder(FolderLock(paths.lock), timeout_s=STOP_TIMEOUT_S)
    say_plain(Console(stderr=True), "stopped" if was_running else "it does not run")


@app.command()
def runs(folder: FolderOption = Path(), json_: JsonOption = False) -> None:
    """List the runs of the folder, the oldest first."""
    from server.centre_runs import summaries

    _config(folder)
    found = summaries(CentrePaths(folder))
    if json_:
        print_json({"runs": [summary.to_json() for summary in found]})
        return
    table = table_of("run", "run id", "status", "hospitals", "rounds", "released", "validation AUROC", "test AUROC")
    for run in found:
        table.add_row(
            plain(run.run),
            plain(run.run_id or "–"),
            plain(run.status),
            str(len(run.hospitals)),
            f"{run.rounds_done} of {run.num_rounds}",
            "–" if run.released_round is None else f"round {run.released_round}",
            _figure(run.validation_macro_auroc),
            _figure(run.test_macro_auroc),
        )
    _print_table(table)


@app.command()
def report(
    run: Annotated[str | None, typer.Argument(help="Name of the run. Default: the newest.", show_default=False)] = None,
    folder: FolderOption = Path(),
    json_: JsonOption = False,
) -> None:
    """Write the report of a run again, from its folder as it is now, and print where it is."""
    from aecnn.evaluation.report import write_report
    from server.centre_runs import newest_run, summaries

    paths = CentrePaths(folder)
    _config(folder)
    path = newest_run(paths) if run is None else paths.runs / run
    known = [summary.run for summary in summaries(paths)]
    if path is None or path.name not in known:
        raise ConfigError(run or paths.runs, [f"is no run of this folder; there are: {', '.join(known) or 'none yet'}"])
    written = write_report(path)
    if json_:
        print_json({"run": path.name, "report": str(written)})
    else:
        typer.echo(written)


@app.command("rotate-certificate")
def rotate_certificate(
    folder: FolderOption = Path(),
    host_name: Annotated[
        list[str] | None, typer.Option(help="Another name or IP address the certificate is for. Repeatable.")
    ] = None,
) -> None:
    """Issue a new server certificate by the same authority, before the old one expires or for a new address.

    Hospitals need nothing new. A federation that runs keeps the old one until it is started again.
    """
    from server.centre import running_process
    from server.centre_setup import rotate_certificate as issue
    from server.certificates import days_left

    paths, settings = CentrePaths(folder), _config(folder)
    names = issue(paths, settings, host_names=host_name or [])
    console = Console(stderr=True)
    days = days_left(paths.certificate.read_bytes())
    say_plain(console, f"the new certificate is for {', '.join(names)}, and {counted(days, 'day')}")
    if running_process(paths):
        say_plain(console, "it is used from the next start: flower-server stop, then start")


@app.command()
def federation(folder: FolderOption = Path()) -> None:
    """Write federation.yaml again, after a change of address or of the installed version, and print where it is."""
    from server.centre_setup import write_federation

    paths = CentrePaths(folder)
    write_federation(paths, _config(folder))
    typer.echo(paths.federation)


def _asked(name: str | None, address: str | None) -> tuple[str, str]:
    if not _is_asked():
        missing = [flag for flag, value in (("--name", name), ("--address", address)) if value is None]
        if missing:
            raise ConfigError(
                "flower-server init", [f"{flag} is missing, and nobody is there to ask" for flag in missing]
            )
    return (
        name or str(typer.prompt("Name of the federation")),
        address or str(typer.prompt("What hospitals connect to (host:port)")),
    )


def _is_asked() -> bool:
    """Tells whether a person sits at the other end."""
    return sys.stdin.isatty()


def _confirm(question: str) -> None:
    if not _is_asked():
        raise ConfigError("flower-server enroll", ["nobody is there to confirm: compare the key, then give --yes"])
    typer.confirm(question, abort=True, err=True)


def _show_request(request: EnrolmentRequest, accepted: tuple[str, ...], console: Console) -> None:
    from aecnn.contract import code_fingerprint

    own, theirs = code_fingerprint(), request.code_fingerprint
    code = (
        "the same as here"
        if theirs == own
        else "accepted in server.yaml"
        if theirs in accepted
        else ("[bold red]another than here[/]: install the same version at both ends, or accept it in server.yaml")
    )
    images, patients = counted(request.num_images, "image"), counted(request.num_patients, "patient")
    say_plain(console, f"  hospital          {request.name}")
    say(console, f"  key               [bold]{request.key_fingerprint}[/]  (compare it by telephone)")
    say_plain(console, f"  declares          {images} of {patients}")
    say(console, f"  code              {theirs[:12]}…, {code}")


def _tell_link(paths: CentrePaths, done: str) -> None:
    """Brings the roster to the SuperLink where it runs."""
    from server.centre import link_of, running_process

    console = Console(stderr=True)
    if not running_process(paths):
        say_plain(console, "the federation does not run; it counts from the next start")
        return
    from server.flower import Control
    from server.roster import bring_to_link

    try:
        with closing(Control(link_of(paths, _config(paths.folder)))) as control:
            bring_to_link(paths.roster, control)
    except FederationError as error:
        raise FederationError(f"{error}. The roster is written; the coordinator goes on trying to tell it") from error
    say_plain(console, f"{done}, from now on")


def _online(paths: CentrePaths) -> set[str] | None:
    """Gives the public keys of those that are online; None where the SuperLink does not answer now."""
    from server.centre import link_of
    from server.flower import Control, LinkError

    try:
        with closing(Control(link_of(paths, _config(paths.folder)))) as control:
            return {node.public_key for node in control.nodes() if node.is_online}
    except LinkError:
        return None


def _config(folder: Path) -> Any:
    return read_server_config(CentrePaths(folder).config)


def _print_table(table: Table) -> None:
    """Prints a table without cutting a cell short: names are copied and keys read out."""
    for column in table.columns:
        column.overflow = "fold"
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def main() -> None:
    """The console script ``flower-server``."""
    run_cli(app, exit_codes={FederationError: EXIT_FAILED, ProcessError: EXIT_FAILED})
