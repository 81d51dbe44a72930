"""``aecnn``: the model and the data, for anyone who has either."""

import typer

from aecnn.commands import (
    compare,
    compression,
    data,
    evaluate,
    explain,
    export,
    models,
    predict,
    privacy,
    privacy_audit,
)
from aecnn.console import run_cli

app = typer.Typer(
    help="The joint AE-CNN on chest X-rays: make phantom data, check and cache datasets, evaluate, compare, describe, "
    "explain and export models, predict with them, compress and rebuild radiographs, plan differential privacy.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    data.phantom,
    data.check,
    data.cache,
    evaluate.evaluate,
    compare.compare,
    models.describe,
    predict.predict,
    compression.compress,
    compression.decompress,
    explain.explain,
    export.export,
    privacy.plan_privacy,
    privacy_audit.audit_privacy,
):
    app.command()(command)


def main() -> None:
    """The console script ``aecnn``."""
    run_cli(app, exit_codes={})
