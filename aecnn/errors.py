"""Every error this project raises on purpose: what was found, where, and what to do about it."""

from collections.abc import Sequence

MAX_FAULTS_SHOWN = 20


class AecnnError(Exception):
    """Base of all errors a user can act on; the command line prints its text without a traceback."""


class FaultyInputError(AecnnError):
    """One input with one or more faults, all of them reported at once.

    Args:
        subject: What was read, usually a file's path.
        faults: One sentence a fault: the value found, where, and the remedy.
    """

    def __init__(self, subject: object, faults: Sequence[str]) -> None:
        self.subject = str(subject)
        self.faults = tuple(faults)
        shown = [f"  - {fault}" for fault in self.faults[:MAX_FAULTS_SHOWN]]
        if len(self.faults) > MAX_FAULTS_SHOWN:
            shown.append(f"  - … and {len(self.faults) - MAX_FAULTS_SHOWN} more")
        count = "1 fault" if len(self.faults) == 1 else f"{len(self.faults)} faults"
        super().__init__("\n".join([f"{self.subject}: {count}", *shown]))


class ConfigError(FaultyInputError):
    """A YAML file or a ``--set`` override that does not describe a run."""


class ManifestError(FaultyInputError):
    """A dataset's tables that contradict themselves, or rows whose images are missing or unreadable."""


class PredictionsError(FaultyInputError):
    """A predictions or targets table that cannot be scored."""


class CheckpointError(FaultyInputError):
    """A checkpoint that cannot be loaded into the model it is asked for."""


class CompressedFileError(FaultyInputError):
    """A compressed file that cannot be written, is damaged, or is another decoder's."""


class UnknownFindingError(AecnnError):
    """A spelling that is none of the fourteen findings."""


class ImageError(AecnnError):
    """A radiograph that cannot be decoded."""


class CacheError(AecnnError):
    """A cache of decoded radiographs that cannot be written, or a part of one that is damaged."""


class ModelError(AecnnError):
    """A model that cannot be built as asked, or an input it cannot take."""


class FederationError(AecnnError):
    """A run that cannot start or go on: hospitals missing, code that differs, every update refused."""


class PrivacyError(AecnnError):
    """A promise of differential privacy that cannot be kept, or a ledger that cannot be trusted."""
