"""Everything a hospital can know before it joins: files, data, machine, the way to the centre, and what would leave."""

import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aecnn.config import load_config
from aecnn.contract import code_fingerprint
from aecnn.data.check.outcome import Outcome, Status
from aecnn.data.split import in_validation
from aecnn.enrolment import FederationFile
from aecnn.errors import AecnnError, FaultyInputError
from aecnn.findings import FINDINGS
from aecnn.processes import FolderLock
from aecnn.progress import OnProgress
from client.connection import another_centre, connect, node_environment, shake_hands, try_to_connect
from client.node_log import NodeState, node_state, supernode_log
from client.paths import SitePaths
from client.setup import public_key_of
from client.site import PrivacyPolicyConfig, SiteConfig, read_hospital
from client.words import counted

if TYPE_CHECKING:
    from aecnn.data.check.report import DataReport

LEAST_FREE_GB, GOOD_FREE_GB = 1.0, 5.0  # of disk: kept replies, a checkpoint and released models of up to 0.25 GB each
CERTIFICATE_NOTICE = timedelta(days=30)
USUAL_ROUNDS = 50  # of a run, where nobody knows yet
CLOCK_TOLERANCE = "within five minutes of the centre's"  # a request is signed with its time

WOULD_LEAVE = "would-leave"  # the check whose details are a file of its own


def check_files(paths: SitePaths) -> tuple[list[Outcome], SiteConfig | None, FederationFile | None]:
    """Reads the folder's own files; what is faulty is None."""
    faults: list[str] = []
    config, federation = None, None
    try:
        config = load_config(paths.site, SiteConfig)
        if config.policy is None:
            faults.append(
                f"{paths.site} has no section policy, so nothing leaves: add one (aecnn-client init shows it)"
            )
    except AecnnError as error:
        faults += _sentences(error)
    try:
        federation = load_config(paths.federation, FederationFile)
    except AecnnError as error:
        faults += _sentences(error)
    try:
        public_key_of(paths.key)
    except AecnnError as error:
        faults += _sentences(error)
    named = f"{config.name} in federation {federation.name}" if config and federation else ""
    return [_outcome("files", "Site file and key", faults, good=named)], config, federation


def check_data(
    config: SiteConfig, paths: SitePaths, *, labels_only: bool, on_progress: OnProgress
) -> tuple[list[Outcome], "DataReport"]:
    """Makes the data report of `aecnn check`, and holds the hospital's patients against its own floor."""
    from aecnn.data.check.report import check_dataset

    floor = config.policy.min_patients if config.policy else 1
    report = check_dataset(
        config.data,
        labels_only=labels_only,
        floor=floor,
        num_workers=os.cpu_count() or 1,
        on_progress=on_progress,
    )
    return [_data_outcome(report, paths, labels_only=labels_only), _patients_outcome(paths, floor)], report


def _data_outcome(report: "DataReport", paths: SitePaths, *, labels_only: bool) -> Outcome:
    found = [outcome for outcome in report.checks if outcome.status != "pass"]
    counts = f"{counted(report.num_images, 'image')} of {counted(report.num_patients, 'patient')}"
    counts += ", image files not opened" if labels_only else ""
    more = f"; aecnn check {paths.site} says more of" if found else ""
    return Outcome(
        check="data",
        title="Data",
        status=report.status,
        summary=counts + more,
        details=tuple(f"{o.title.lower()}: {o.status}, {o.summary}" for o in found),
    )


def _patients_outcome(paths: SitePaths, floor: int) -> Outcome:
    """Holds the hospital's patients against its own floor."""
    patients, faults = 0, []
    try:
        patients = len(read_hospital(paths.site).manifest.patients)
    except AecnnError as error:
        faults = _sentences(error)
    if not faults and patients < floor:
        faults = [f"{counted(patients, 'patient')}, and policy.min_patients is {floor}: nothing leaves"]
    good = f"{patients:,} of this hospital before the validation part is taken off, the policy wants at least {floor}"
    return _outcome("patients", "Patients", faults, good=good)


def check_validation(config: SiteConfig, paths: SitePaths) -> list[Outcome]:
    """Counts the findings whose exact histograms would leave, and names those with too few validation patients."""
    policy = config.policy
    if policy is None or not policy.report.histograms or policy.accept.requires_privacy:
        return []
    from aecnn.evaluation.floored import findings_told  # Flower and PyTorch behind these take seconds
    from client.judging import validation_floor
    from client.rehearsal import validation_fraction
    from client.state import SiteState

    check, title = "validation", "Validation figures"
    share = SiteState(paths.database).validation_fraction() or validation_fraction(config)
    try:
        manifest = read_hospital(paths.site).manifest
    except AecnnError as error:
        return [_outcome(check, title, _sentences(error))]
    patients = manifest.table["patient"].tolist()
    own = in_validation(patients, fraction=share, key=config.validation_key)
    names, needed = [patient for patient, is_own in zip(patients, own, strict=True) if is_own], validation_floor(policy)
    told = findings_told(manifest.targets[own], names, min_patients=needed)
    lacking = [finding for finding, is_told in zip(FINDINGS, told, strict=True) if not is_told]
    summary = f"if {share:.0%} validate ({counted(len(set(names)), 'patient')}), those of {told.sum()} of {len(told)} "
    summary += f"findings leave: each needs {needed} patients with it and {needed} without"
    if lacking and told.any():
        summary += f"; too few for {', '.join(lacking)}"
    return [Outcome(check=check, title=title, status="pass" if told.any() else "warn", summary=summary)]


def check_disk(folder: Path) -> Outcome:
    """Looks at the free disk."""
    free_gb = shutil.disk_usage(folder).free / 1e9
    status: Status = "fail" if free_gb < LEAST_FREE_GB else "warn" if free_gb < GOOD_FREE_GB else "pass"
    wanted = "" if status == "pass" else f": {GOOD_FREE_GB:.0f} GB are wanted"
    return Outcome(check="disk", title="Disk", status=status, summary=f"{free_gb:,.1f} GB free{wanted}")


def check_budget(config: SiteConfig, paths: SitePaths, *, num_patients: int) -> list[Outcome]:
    """Looks at the privacy ledger, where the site file names one: what is left, and what noised figures would tell."""
    if config.policy is None or config.policy.privacy.ledger_folder is None:
        return []
    return [_ledger_outcome(paths), _noised_outcome(config, num_patients)]


def _ledger_outcome(paths: SitePaths) -> Outcome:
    """Whether the ledger can be trusted, and what is left."""
    from client.budget import budget_of  # Opacus behind it takes seconds

    title = "Privacy budget"
    try:
        budget = budget_of(paths)
    except AecnnError as error:
        return _outcome("budget", title, _sentences(error))
    spent = f"ε {budget.epsilon:.2f} of {budget.limit.max_epsilon:g} spent by the patient who has spent most"
    if budget.left > 0.0:
        return _outcome("budget", title, [], good=spent)
    nothing = f"{spent}: no round with differential privacy will be answered"
    return Outcome(check="budget", title=title, status="warn", summary=nothing)


def _noised_outcome(config: SiteConfig, num_patients: int) -> Outcome:
    """How far noise would put this hospital's AUROC off, before it agrees to noised histograms."""
    from aecnn.evaluation.noised_outlook import PREVALENCE, evaluation_outlook, evaluations_of
    from client.rehearsal import validation_fraction
    from client.spending import limit_of

    check, title = "noised-figures", "Figures with noise"
    policy = config.policy.privacy if config.policy else PrivacyPolicyConfig()
    epsilon = policy.max_evaluation_epsilon
    if epsilon is None:
        kept = "policy.privacy.max_evaluation_epsilon is null: no figure of a model leaves with differential privacy"
        return _outcome(check, title, [], good=kept)
    patients, delta = round(validation_fraction(config) * num_patients), limit_of(policy, otherwise=num_patients).delta
    told = []
    for evaluations in (1, evaluations_of(USUAL_ROUNDS)):
        try:
            found = evaluation_outlook(
                epsilon=epsilon, delta=delta, evaluations=evaluations, validation_patients=patients
            )
        except AecnnError as error:
            return _outcome(check, title, _sentences(error))
        many = "judged once" if evaluations == 1 else f"judged {evaluations} times, as in {USUAL_ROUNDS} rounds"
        worth = f"is not told: {found.fewest_images:,.0f} images of each class would be needed"
        if found.auroc_error is not None:
            worth = f"is off by ±{found.auroc_error:.3f} (one standard deviation)"
        told.append(f"{many}, it {worth}")
    share = f"{PREVALENCE:.0%} of {counted(patients, 'validation patient')}"
    summary = f"at ε {epsilon:g} for all of a run, the AUROC of a finding of {share}: {'; '.join(told)}"
    return _outcome(check, title, [], good=summary)


def check_code(federation: FederationFile) -> Outcome:
    """Compares the installed code with what the centre accepts."""
    own = code_fingerprint()
    faults = []
    if own not in federation.code_fingerprints:
        accepted = ", ".join(f"{other[:12]}…" for other in federation.code_fingerprints)
        faults = [
            f"{own[:12]}… is installed here, and the federation accepts {accepted}: install the centre's version, or "
            "replace federation.yaml by the centre's newest"
        ]
    return _outcome("code", "Code", faults, good=f"{own[:12]}… is among those the federation accepts")


def check_centre(paths: SitePaths, federation: FederationFile) -> Outcome:
    """Tells a federation's file of another centre than the one this folder belongs to."""
    odd = another_centre(paths, federation)
    if odd is not None:
        return Outcome(check="centre", title="Centre", status="warn", summary=odd)
    return _outcome("centre", "Centre", [], good=f"federation {federation.name}, the one this folder belongs to")


def check_connection(paths: SitePaths, federation: FederationFile) -> list[Outcome]:
    """Goes to the centre: TCP (through the proxy, where there is one), TLS, enrolment, and with it the clock."""
    address = federation.address
    try:
        connection = connect(address, node_environment(paths.flower_home))
    except OSError as error:
        fault = f"{address} cannot be reached ({error}): ask the centre whether it runs, and your firewall for TCP out"
        return [_outcome("address", "Address", [fault])]
    outcomes = [_outcome("address", "Address", [], good=f"{address} answers")]
    with connection:
        outcomes.append(_tls_outcome(connection, federation))
    if outcomes[-1].status == "fail":
        return outcomes
    state = _enrolment_state(paths, federation)
    outcomes.append(_enrolment_outcome(state))
    outcomes.append(_clock_outcome(is_proven=state == "connected"))
    return outcomes


def _tls_outcome(connection: Any, federation: FederationFile) -> Outcome:
    try:
        shown = shake_hands(connection, federation)
    except ssl.SSLCertVerificationError as error:
        fault = (
            f"the certificate is refused ({error.verify_message}): another machine answers there, the certificate "
            "ended, or federation.yaml is old; ask the centre before you go on"
        )
        return _outcome("tls", "TLS", [fault])
    except OSError as error:
        fault = f"the other end speaks no TLS of ours ({error}): another service answers there, or a proxy cuts in"
        return _outcome("tls", "TLS", [fault])
    good = f"{shown.tls_version}, certificate of {federation.address} valid until {shown.expires:%Y-%m-%d}"
    if shown.protocol != "h2":
        return _outcome("tls", "TLS", [f"HTTP/2 was not agreed on ({shown.protocol}): a proxy opens the connection"])
    if shown.expires - datetime.now(UTC) < CERTIFICATE_NOTICE:
        return Outcome(check="tls", title="TLS", status="warn", summary=f"{good}: tell the centre")
    return _outcome("tls", "TLS", [], good=good)


def _enrolment_state(paths: SitePaths, federation: FederationFile) -> NodeState:
    """As the running client has it, else as a SuperNode that is started for the purpose."""
    if FolderLock(paths.lock).holder() is None:
        return try_to_connect(paths, federation)
    return node_state(supernode_log(paths))


def _enrolment_outcome(state: NodeState) -> Outcome:
    faults = {
        "refused": "the centre does not let this key in: it is not enrolled, or was revoked. Ask the centre. Not "
        "enrolled: send enrolment-request.json. Revoked: aecnn-client rotate-key, and send the new request (an "
        "enrolled key is refused for a minute after a crash, and where the clock is wrong by five minutes)",
        "unreachable": "the connection did not last: try again, and see state/logs/check.log",
        "starting": "no answer in time: try again, and see state/logs/check.log",
        "ended": "the SuperNode ended: try again, and see state/logs/check.log",
    }
    fault = faults.get(state)
    return _outcome("enrolment", "Enrolment", [fault] if fault else [], good="the centre knows this hospital's key")


def _clock_outcome(*, is_proven: bool) -> Outcome:
    if is_proven:
        return _outcome("clock", "Clock", [], good=f"{CLOCK_TOLERANCE}, which has accepted our signature")
    program = shutil.which("timedatectl")
    answer = ""
    if program is not None:
        command = [program, "show", "--property=NTPSynchronized", "--value"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if answer == "yes":
        return _outcome("clock", "Clock", [], good="synchronised")
    found = "is not synchronised" if answer == "no" else "was not checked, no timedatectl answers here"
    summary = f"{found}: it must be {CLOCK_TOLERANCE}, now {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return Outcome(check="clock", title="Clock", status="warn", summary=summary)


def check_training(paths: SitePaths) -> tuple[list[Outcome], dict[str, Any] | None]:
    """Trains a little on this machine, and shows what a round would send.

    Returns:
        The outcomes, and what would leave; None where it could not be found out.
    """
    from client.rehearsal import measure_speed, rehearsal_site, rehearse, write_would_leave

    try:
        with rehearsal_site(paths) as site:
            speed = measure_speed(site)
            document = rehearse(site)
    except AecnnError as error:
        return [_outcome("device", "Device", _sentences(error))], None
    plan = speed.plan
    told = (
        f"{speed.device}: {speed.images_per_s:,.1f} images/s ({plan.model.backbone} at {plan.images.size_px} px, "
        f"ten steps of {counted(plan.training.batch_size, 'image')}; a run's own model and size are others)"
    )
    write_would_leave(document, paths.would_leave)
    refused = [
        f"asked for {message['asked']!r}, the answer is code {message['code']} alone: {message['decision']}"
        for message in document["messages"]
        if message["code"]
    ]
    good = f"nothing but what is listed in {paths.would_leave}; {num_bytes(document) / 1e6:,.1f} MB in the rehearsal"
    outcomes = [
        _outcome("device", "Device", [], good=told),
        _outcome(WOULD_LEAVE, "What would leave", refused, good=good),
    ]
    return outcomes, document


def num_bytes(document: dict[str, Any]) -> int:
    """Gives the bytes of all arrays that would leave."""
    records = [record for message in document["messages"] for record in message["records"].values()]
    return sum(array["bytes"] for record in records for array in record.get("arrays", ()))


def lines_of(document: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Gives what would leave in lines of message, record, key and value; the weights' tensors are counted."""
    for message in document["messages"]:
        for name, record in message["records"].items():
            for key, value in record.get("scalars", {}).items():
                yield message["asked"], name, key, str(value)
            for array in record.get("arrays", ()):
                tensors = f", {counted(len(array['tensors']), 'tensor')}" if "tensors" in array else ""
                what = f"{array['dtype']} {array['shape']}, {counted(array['bytes'], 'byte')}{tensors}"
                yield message["asked"], name, array["name"], what


def _sentences(error: AecnnError) -> list[str]:
    if isinstance(error, FaultyInputError):
        return [f"{error.subject}: {fault}" for fault in error.faults]
    return [str(error)]


def _outcome(check: str, title: str, faults: list[str], *, good: str = "") -> Outcome:
    """A check that passes with a sentence, or fails with one or more."""
    if not faults:
        return Outcome(check=check, title=title, status="pass", summary=good)
    return Outcome(check=check, title=title, status="fail", summary="; ".join(faults), details=tuple(faults))
