"""The worker: takes the centre's messages from this hospital's SuperNode and answers them with the installed app.

``python -P -m client.worker DIR``. It stays warm: model, decoded images and GPU are kept from round to round. The
bundle of code that the centre sends with a run is dropped unread. SIGTERM ends it at once: a training goes on from its
checkpoint when the centre asks again.
"""

import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from aecnn.config import load_config
from aecnn.errors import AecnnError
from client.app import app
from client.desk import Desk
from client.inventory import printable
from client.paths import SitePaths
from client.progress import STOPPED, Progress
from client.site import SiteConfig

if TYPE_CHECKING:
    from client.flower import TaskSource

log = logging.getLogger(__name__)

NODE_LOST_WAIT_S = 1.0
EXIT_FAULTY = 1


def main(folder: Path) -> int:
    """Answers messages until the process is ended.

    Returns:
        `EXIT_FAULTY` when it cannot begin; the log says why.
    """
    paths = SitePaths(folder)
    try:
        source = _task_source(paths)
        desk = Desk(paths, app)
    except (AecnnError, OSError) as error:
        log.error("%s", error)
        return EXIT_FAULTY
    signal.signal(signal.SIGTERM, _end)
    idle = Progress(paths.status, None)
    log.info("The worker of %s is ready", paths.folder)
    try:
        idle.tell("idle")
        while True:
            if _answer_next(source, desk):
                idle.tell("idle")
    finally:
        idle.tell(STOPPED)


def _answer_next(source: "TaskSource", desk: Desk) -> bool:
    """Answers the next message, where there is one; gives whether there was."""
    from client.flower import NodeLostError

    try:
        with source.next_task() as task:
            if task is None:
                source.wait()
                return False
            kind = task.message.metadata.message_type
            begin = time.monotonic()
            log.info("A message of type %s came", printable(kind))
            reply = desk.answer(task.message)
            task.answer(reply)
            said = "an answer" if reply.has_content() else f"code {reply.error.code}"
            log.info("%s went out after %.1f s", said.capitalize(), time.monotonic() - begin)
    except NodeLostError as error:
        log.warning("%s", error)
        time.sleep(NODE_LOST_WAIT_S)
    return True


def _task_source(paths: SitePaths) -> "TaskSource":
    """Gives the way to the SuperNode.

    Raises:
        AecnnError: This version of Flower has another inside than the one this software was made for, or the site
            file is faulty.
    """
    try:
        from client.flower import LocalNode, TaskSource
    except ImportError as error:
        raise AecnnError(
            f"the installed Flower is not the one this software was made for ({error}): install flwr 1.39 again; until "
            "then nothing is answered"
        ) from error
    config = load_config(paths.site, SiteConfig)
    return TaskSource(LocalNode(port=config.local_port, secret=paths.secret.read_bytes()))


def _end(_number: int, _frame: object) -> NoReturn:
    raise SystemExit(0)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it has a line for every call
    sys.exit(main(Path(sys.argv[1])))
