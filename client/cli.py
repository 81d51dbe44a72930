"""``aecnn-client``: one hospital's part in a federation, from its folder to the models it gets back."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from aecnn.console import JsonOption, print_json, run_cli, say
from aecnn.errors import ConfigError, FederationError, PrivacyError
from aecnn.processes import ProcessError

if TYPE_CHECKING:  # a command imports what it needs when it runs: PyTorch takes seconds
    from client.state import SiteState

EXIT_FAILED = 1
FolderOption = Annotated[Path, typer.Option("--folder", "-f", help="The folder that `aecnn-client init` made.")]

app = typer.Typer(
    help="A hospital's part in a federation: make its folder (init), see what would leave (check), take part (start), "
    "read what left (audit) and what it cost the patients' privacy (budget). Radiographs never leave; weights, sums "
    "and histograms do, as site.yaml allows.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; only you can read it.")],
    federation: Annotated[Path | None, typer.Option(help="The centre's federation.yaml.", show_default=False)] = None,
    name: Annotated[
        str | None, typer.Option(help="This hospital's name in the federation, such as st-mary.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of radiographs, with its table.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda or cuda:1.")] = "auto",
    local_port: Annotated[
        int, typer.Option(min=1, max=65535, help="On loopback, between the client's own processes; one a hospital.")
    ] = 8100,
    ledger_folder: Annotated[
        Path | None,
        typer.Option(
            help="Of the record of what every patient's privacy has cost, on a disk of this machine; one that is there "
            "is used. Default: one for all clients of this account, in $XDG_DATA_HOME or ~/.local/share.",
            show_default=False,
        ),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Make this hospital's folder: site.yaml with every key explained, a key pair, and the request to be enrolled.

    The private key, hospital.key, is made here and never sent. The request holds its public half, this hospital's
    name, how many images and patients it has outside the test list (to train and to validate), and the installed code's
    fingerprint; no image is opened. What is not given is asked for at a terminal.

    A table with columns of its own needs a mapping: the folder is then made without a request. Mend `data:` in
    site.yaml and run `aecnn-client request`.

    Exit codes: 0 done, 1 the folder is made and the data cannot be read yet, 2 the input is faulty.
    """
    from client.dialogue import ask_for, show_made
    from client.setup import make_folder

    given = ask_for({"federation": federation, "name": name, "data": data})
    places = {"federation": Path(given["federation"]), "data": Path(given["data"])}
    made = make_folder(
        folder, name=given["name"], device=device, local_port=local_port, ledger_folder=ledger_folder, **places
    )
    show_made(made, folder, as_json=json_)
    if made.request is None:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def request(folder: FolderOption = Path(), json_: JsonOption = False) -> None:
    """Write enrolment-request.json anew, after the number of images or patients changed.

    The centre lets no hospital join that holds more images or patients than it declared. Send the request as the first
    time.
    """
    from client.dialogue import show_request
    from client.paths import site_paths
    from client.setup import write_request

    written = write_request(site_paths(folder))
    if json_:
        print_json(written.model_dump())
    else:
        show_request(written, folder, Console())


@app.command(name="rotate-key")
def rotate_key(folder: FolderOption = Path(), json_: JsonOption = False) -> None:
    """Make a new key pair and the request to have it enrolled in place of the old one.

    Stop the client first. The centre must enrol the new key before the client can connect again. The old key is kept
    as hospital.key.old until the new one has connected, then deleted; to go back before that, move it back.
    """
    from client.dialogue import show_request
    from client.paths import site_paths
    from client.setup import rotate_key as rotate
    from client.status import refuse_while_running

    paths = site_paths(folder)
    refuse_while_running(paths)
    written = rotate(paths)
    if json_:
        print_json(written.model_dump())
    else:
        show_request(written, folder, Console())


@app.command()
def check(
    folder: FolderOption = Path(),
    report: Annotated[
        Path | None,
        typer.Option(help="Also write the data report as an HTML page, which shows patients.", show_default=False),
    ] = None,
    labels_only: Annotated[
        bool, typer.Option("--labels-only", help="Do not open all image files to judge them; a rehearsal opens some.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """See whether this hospital can take part, and what would leave if it did. No radiograph, weight or figure leaves.

    Files, data (as `aecnn check`), patients, disk, code, the way to the centre (proxy, TLS, enrolment, clock), device
    (ten training steps, timed on your own images). Then the installed app joins, trains a round and gives the sums by
    patient, where histograms leave, in rehearsal and on some of the patients: all that its answers hold is shown, and
    kept in state/would-leave.json.

    It connects with this hospital's key for a moment. If a run is under way and the client is not running, the centre
    may hand it a message in that moment; the centre asks again.

    Exit codes: 0 everything passes (there may be warnings), 1 a check failed.
    """
    from client.check_command import check_progress, run_checks, show_checks

    with check_progress() as (on_progress, on_check):
        found = run_checks(folder, report=report, labels_only=labels_only, on_progress=on_progress, on_check=on_check)
    if json_:
        print_json(found.to_json())
    else:
        show_checks(found, Console())
    if found.status == "fail":
        raise typer.Exit(EXIT_FAILED)


@app.command()
def start(folder: FolderOption = Path()) -> None:
    """Take part: connect to the centre, train when asked, send what site.yaml allows. Runs until it is stopped.

    Two processes are kept running: Flower's SuperNode carries the messages, and our worker answers them with the code
    installed here; code that a centre might send is not run. When the centre or the network is gone, the client goes
    on trying. No port is opened to the outside; HTTPS_PROXY is honoured. Logs: state/logs.

    Exit codes: 0 stopped, 1 another client uses the folder or its port, 2 the folder is faulty.
    """
    from client.paths import site_paths
    from client.supervise import run_client

    raise typer.Exit(run_client(site_paths(folder), Console(stderr=True)))


@app.command()
def status(folder: FolderOption = Path(), json_: JsonOption = False) -> None:
    """Tell whether the client runs, is connected, what it works on, and whether it pauses or has withdrawn.

    Exit codes: 0 nothing is wrong with the folder, 1 its files are faulty, and no request is answered.
    """
    from client.dialogue import show_status
    from client.paths import site_paths
    from client.status import client_status

    found = client_status(site_paths(folder))
    if json_:
        print_json(found.to_json())
    else:
        show_status(found, Console())
    if found.faults:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def stop(folder: FolderOption = Path()) -> None:
    """Stop the client. A training under way goes on after the next start from the state it last kept.

    It is kept about once a minute, and with a large model less often: keeping takes at most 5 % of the time.
    """
    from client.paths import site_paths
    from client.status import stop_client

    say(Console(), "stopped" if stop_client(site_paths(folder)) else "no client runs in this folder")


@app.command()
def pause(folder: FolderOption = Path()) -> None:
    """Answer every request with "later" from now on; the client stays connected. A training under way is finished."""
    state = _state(folder)
    since = state.paused_since()
    state.pause()
    say(
        Console(),
        f"pauses {'from now on' if since is None else f'already, since {since}'}: aecnn-client resume ends it",
    )


@app.command()
def resume(
    folder: FolderOption = Path(),
    rejoin: Annotated[bool, typer.Option("--rejoin", help="Also undo every withdrawal.")] = False,
) -> None:
    """End a pause: requests are answered again. With --rejoin also those of runs from which you had withdrawn."""
    state = _state(folder)
    is_new = state.paused_since() is not None or (rejoin and state.withdrawn_runs())
    state.unpause()
    if rejoin:
        state.rejoin()
    kept = "; the withdrawal stays: resume --rejoin undoes it" if state.withdrawn_runs() else ""
    told = "requests are answered again" if is_new else "there was no pause to end"
    say(Console(), told + kept)


@app.command()
def withdraw(
    folder: FolderOption = Path(),
    run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="Only from this run: its id, or its name as audit tells it.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Take no further part in a run, or in any: the centre is told so, and nothing leaves.

    What already left cannot be called back: an update that was averaged stays in the model. To leave for good, have
    the centre revoke this hospital's key as well.
    """
    from client.dialogue import run_named
    from client.paths import site_paths
    from client.state import EVERY_RUN

    run_id = EVERY_RUN if run is None else run_named(run, site_paths(folder))
    what = "every run" if run is None else f"run {run_id}"
    if not yes and not (sys.stdin.isatty() and typer.confirm(f"Take no further part in {what}?")):
        raise ConfigError("aecnn-client withdraw", ["was not confirmed: answer y at a terminal, or give --yes"])
    _state(folder).withdraw(run_id)
    say(Console(), f"withdrawn from {escape(what)}: aecnn-client resume --rejoin undoes it")


@app.command()
def audit(
    folder: FolderOption = Path(),
    since: Annotated[
        str | None, typer.Option(metavar="DATE", help="Show from this UTC date or time on.", show_default=False)
    ] = None,
    begin_anew: Annotated[
        bool, typer.Option("--begin-anew", help="Put a log that was found broken aside and begin a new one.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Show what this hospital answered, when and to whom, and verify that the log was not edited or cut.

    Of each answer there is what it held: it left with the centre's next fetch. With --json each message is an object:
    records with names, digests and scalars, the decision, and the code where nothing but that was answered.

    Each line of audit.jsonl holds the hash of the line before; the last hash is also kept in state/ and told to the
    centre. Somebody who rewrites the log and the state is only found by comparing with what the centre was told.

    Exit codes: 0 the log is whole, 1 it is not.
    """
    from client.audit import entries, sentence_of
    from client.audit_log import begin_anew as put_aside
    from client.dialogue import show_audit
    from client.paths import site_paths
    from client.status import audit_problems, refuse_while_running

    paths, state = site_paths(folder), _state(folder)
    if begin_anew:
        refuse_while_running(paths)
        aside = put_aside(paths.audit_log, state)
        say(Console(stderr=True), f"a new log is begun; the old one is {escape(str(aside or 'missing'))}")
    problems = audit_problems(paths)
    found = entries(paths.audit_log, since=since or "")
    if json_:
        print_json({"problems": problems, "entries": found})
    else:
        show_audit([sentence_of(entry) for entry in found], problems, paths.audit_log, Console())
    if problems:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def budget(
    folder: FolderOption = Path(),
    plot: Annotated[
        Path | None, typer.Option(help="Also draw epsilon over the answers: a .svg, .png or .pdf.", show_default=False)
    ] = None,
    adopt_ledger: Annotated[
        bool,
        typer.Option(
            "--adopt-ledger",
            help="Use the ledger that lies in policy.privacy.ledger_folder from now on, or a new one where none is. "
            "What a lost one had is then counted no more: only for one that is lost for good, or for the first.",
        ),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --adopt-ledger: do not ask.")] = False,
    json_: JsonOption = False,
) -> None:
    """Tell what differential privacy has cost the patients: spent, reserved and left, by run and in total.

    Epsilon is that of the patient who has spent most, over all runs, clients and studies that used this ledger; two
    datasets are neighbours where one patient, with all radiographs, is added or removed. An answer that was begun
    counts as spent, whether it left or not. The cap is policy.privacy.max_epsilon.

    Patients are told apart by the pseudonyms in the table: whoever gets a new one has a new budget.

    Exit codes: 0 the ledger is whole, 1 it is missing, damaged, or not the one that this client saw, 2 the input is
    faulty.
    """
    from client.budget import adopt, budget_of, plot_budget, show_budget
    from client.paths import site_paths
    from client.status import refuse_while_running

    paths = site_paths(folder)
    if adopt_ledger:
        refuse_while_running(paths)
        question = "Count no longer what a ledger seen before had, and use the one that is there now?"
        if not yes and not (sys.stdin.isatty() and typer.confirm(question)):
            raise ConfigError("--adopt-ledger", ["was not confirmed: answer y at a terminal, or give --yes"])
        mark, is_new = adopt(paths)
        say(Console(stderr=True), f"ledger {mark.ledger[:8]} {'is made and used' if is_new else 'is used'} from now on")
    found = budget_of(paths)
    if plot is not None:
        plot_budget(found, plot)
    if json_:
        print_json(found.to_json())
    else:
        show_budget(found, Console())


@app.command()
def models(folder: FolderOption = Path(), json_: JsonOption = False) -> None:
    """List the released models, reports and model cards that the centre has delivered."""
    from client.dialogue import show_models
    from client.paths import site_paths

    delivered = sorted(path for path in site_paths(folder).models.glob("*") if path.is_dir())
    listed = {str(run): {file.name: file.stat().st_size for file in sorted(run.iterdir())} for run in delivered}
    if json_:
        print_json({"models": listed})
    else:
        show_models(listed, Console())


def _state(folder: Path) -> "SiteState":
    """The client's memory; a folder that is none of ours gets no file of it."""
    from client.paths import site_paths
    from client.state import SiteState

    return SiteState(site_paths(folder).database)


def main() -> None:
    """The console script ``aecnn-client``."""
    run_cli(app, exit_codes=dict.fromkeys((FederationError, PrivacyError, ProcessError), EXIT_FAILED))
