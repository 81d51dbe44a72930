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

from flwr.app import Message

from aecnn import contract
from aecnn.config import load_config
from aecnn.errors import AecnnError
from client.app import app
from client.delivery import released_folder
from client.desk import Desk
from client.inventory import printable
from client.log_lines import log_to_standard_error
from client.paths import SitePaths
from client.progress import IDLE, STOPPED, Progress
from client.site import SiteConfig
from client.wire import request_of

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
        idle.tell(IDLE)
        while True:
            if _answer_next(source, desk, paths=paths, idle=idle):
                idle.tell(IDLE)
    finally:
        idle.tell(STOPPED)


def _answer_next(source: "TaskSource", desk: Desk, *, paths: SitePaths, idle: Progress) -> bool:
    """Answers the next message, where there is one; gives whether there was.

    Args:
        source: Where messages come from.
        desk: Who answers them.
        paths: The hospital's folder.
        idle: Is told of a run that the answer completes.
    """
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
            idle.completed = completed_run(task.message, reply, paths)
            task.answer(reply)
            said = "an answer" if reply.has_content() else f"code {reply.error.code}"
            log.info("%s went out after %.1f s", said.capitalize(), time.monotonic() - begin)
    except NodeLostError as error:
        log.warning("%s", error)
        time.sleep(NODE_LOST_WAIT_S)
    return True


def completed_run(message: Message, reply: Message, paths: SitePaths) -> dict[str, str | None] | None:
    """Gives the run that an answered message ends: name, id and where its released files lie. None: it goes on."""
    if message.metadata.message_type != contract.DELIVER or not reply.has_content():
        return None
    request = request_of(message)
    folder = released_folder(paths.models, request)
    models = f"{folder.parent.name}/{folder.name}" if folder.is_dir() else None
    return {"run": request.run, "run_id": request.run_id, "models": models}


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
    log_to_standard_error()
    sys.exit(main(Path(sys.argv[1])))
