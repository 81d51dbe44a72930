"""The folder of one hospital's client: where everything of it lies."""

from pathlib import Path

from aecnn.enrolment import FEDERATION_FILE, REQUEST_FILE, SITE_FILE
from aecnn.errors import ConfigError


class SitePaths:
    """The folder that ``aecnn-client init`` makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder = folder.absolute()
        self.site = folder / SITE_FILE
        self.federation = folder / FEDERATION_FILE
        self.request = folder / REQUEST_FILE
        self.key = folder / "hospital.key"  # private, 0600, never sent
        self.old_key = folder / "hospital.key.old"  # after a rotation, until the new key has connected
        self.ca_certificate = folder / "ca.pem"  # of the centre that this folder is made for, or connected to last
        self.models = folder / "models"  # released models, by run
        self.audit_log = folder / "audit.jsonl"
        self.state = folder / "state"
        self.database = self.state / "state.sqlite"  # replies kept, head of the audit log, pause and withdrawal
        self.replies = self.state / "replies"
        self.judged = self.state / "judged"  # where the scores of judged models lie, for sums by patient
        self.checkpoint = self.state / "checkpoint.safetensors"  # of a local training that is under way
        self.trusted = self.state / "ca.pem"  # what the SuperNode is given: the authority in federation.yaml
        self.secret = self.state / "secret"
        self.lock = self.state / "lock"
        self.status = self.state / "status.json"
        self.would_leave = self.state / "would-leave.json"  # what `aecnn-client check` showed
        self.logs = self.state / "logs"
        self.flower_home = self.state / "flower"


def site_paths(folder: Path) -> SitePaths:
    """Gives the paths of a folder that is there.

    Raises:
        ConfigError: It is no hospital's folder.
    """
    paths = SitePaths(folder)
    if not paths.site.is_file():
        raise ConfigError(
            paths.folder,
            ["is no folder of aecnn-client, it has no site.yaml: make one with aecnn-client init, or name it with -f"],
        )
    return paths
