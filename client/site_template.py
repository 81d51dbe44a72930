"""The site file as ``aecnn-client init`` writes it: every key with a comment, defaults commented out."""

import json
from pathlib import Path

_TEMPLATE = """\
# The settings of one hospital. This file stays here: the centre never sees it.
#
# A key behind a "#" has the value that is shown; take the "#" away to set another. A key that does not exist is
# refused, and all faults are told at once by: aecnn-client check

name: @name@
  # As the centre enrols this hospital: letters, digits, ".", "_" and "-".
validation_key: @validation_key@
  # Decides which patients validate and never train. Made at random: keep it for the life of the data.
device: @device@
  # auto (a GPU where there is one), cpu, cuda, or cuda:1 for the second GPU.
local_port: @local_port@
  # Of a service on this machine's loopback, between the client's own two processes. Nothing outside reaches it.

data:
  root: @data@
    # The folder of radiographs. Layouts, tables, withdrawn patients and the cache: docs/data.md.
  # patients_file: null
    # Only these patients are this hospital's: a text file beside this one, one patient a line. null: all of the table.
  # excluded_patients: null
    # Withdrawn patients, one a line, relative to root. excluded_patients.txt in root counts whatever is said here.
  # on_unreadable: refuse
    # Or skip: an image that does not decode is left out, counted and told.
  # memory_limit_mb: 8192
    # For decoded images where there is no cache; beyond it files are decoded on each read.
  # use_cache: true
    # Read what `aecnn cache` decoded, where it is still true to the files.
  # cache_folder: null
    # Where that is. null: the folder aecnn-cache in root.
  # scanner: null
    # For simulations only: images shifted to look like another scanner's.
  # table:
    # A table of your own, one row an image. Without this section: the official ChestX-ray14 layout, or a labels.csv.
    # file: labels.csv
      # Relative to root.
    # images_folder: images
      # Relative to root; the image column may name files in folders below it.
    # image_column: image
    # patient_column: patient
    # age_column: null
      # Years, or 057Y, 013M, 001D.
    # sex_column: null
      # F or M.
    # view_column: null
      # PA or AP.
    # split_column: null
      # train_val or test; the federation never trains on test.
    # finding_columns: {}
      # Finding: column, such as {Effusion: pleural effusion}. Empty: columns are named as the findings.
      # Cells are 1, 0 or empty.
    # not_labelled: []
      # Cells that mean "nobody has said", besides empty ones, such as ["-1"].
  # files:
    # bits_stored: 16
      # Of 16-bit PNGs: 12 where values only go up to 4095.
    # dicom_modalities: [CR, DX, RG]
    # dicom_body_parts: [CHEST, PORT CHEST, THORAX]
    # dicom_views: [PA, AP]
      # DICOM files of another modality, body part or view are no chest radiographs, and refused.

policy:
  # What may leave and what may be asked. Without this section nothing leaves.
  min_patients: 10
    # With fewer patients in training, nothing leaves; with fewer in one round's batches, nothing of that round.
    # With fewer that validate, no validation sums or histograms leave.
  min_steps: 1
    # With fewer training steps in a round, its weights do not leave.
  working_hours: null
    # When to train, local time, such as "20:00-06:00"; outside them the centre is told to ask later. null: always.
  report:
    # What besides the weights may leave: sums, never a patient's figures. false keeps it here.
    training_sums: true
      # Losses and latent pixels, summed over the images of a round.
    validation_sums: true
    histograms: true
      # Of the validation scores by finding: the centre's AUROC comes from them. A finding leaves where both its classes
      # have min_patients patients. Once a run sums over these patients leave too, for intervals (docs/privacy.md).
    histogram_mode: fine
      # fine: counts of narrow bins, many of one image. floored: counts of ranges with images of min_patients patients
      # each, from which the centre knows AUROC less exactly; a finding then needs twice as many in both its classes.
    positives: true
      # Training images by finding, once, when the hospital joins: exact, and of few patients too.
  accept:
    # What the centre may ask for; anything else is refused.
    max_rounds: 100
      # Of one run.
    max_runs: 20
      # Different runs that are answered in the life of this folder. Each new one begins max_rounds anew.
    validation_fraction: null
      # Share of the patients who validate, the only one that is accepted. null: the first that the centre asks for
      # holds for the life of this folder. The difference of two shares' sums could tell of the few patients between.
    max_steps_per_round: 20000
    backbones: null
      # Such as [densenet121, resnet50]. null: every one this software has.
    released_files: true
      # Keep the released model, report and model card in models/.
    requires_privacy: false
      # true: nothing is trained without differential privacy.
  privacy:
    # Differential privacy of each patient, with all their radiographs (docs/privacy.md).
    patients: null
      # Patients in training, as may be told to the centre: round the number as you like. The weight of this hospital's
      # update, the noise and delta follow from it. null: no request with differential privacy is answered.
    max_epsilon: 8.0
      # Of the patient who has spent most, over all runs and the whole life of the data. What would go beyond it is
      # refused before it starts. What was spent: aecnn-client budget.
    delta: null
      # At which epsilon is counted; below 1/patients. null: min(1e-5, 1/(10 * patients)).
    min_noise_multiplier: null
      # Plans with less noise are refused. null: as little as the plan says, within max_epsilon.
    max_evaluation_epsilon: null
      # For noised histograms of the validation scores, in one run; they spend the validation patients' budget. Plans
      # that ask for more are refused. null: no noised histograms leave, and plans that ask for them are refused.
    ledger_folder: @ledger_folder@
      # The record of what every patient has spent, on a disk of this machine. One for all federations and clients that
      # use these data: keep it for the life of the data. null: no request with differential privacy is answered.
"""


def site_file_text(
    *, name: str, validation_key: str, device: str, local_port: int, data: Path, ledger_folder: Path | None = None
) -> str:
    """Gives the text of a site file; the values are quoted, so that a hospital named `null` stays a name."""
    text = _TEMPLATE
    values: dict[str, object] = {"name": name, "validation_key": validation_key, "device": device}
    values |= {"local_port": local_port, "data": str(data)}
    values |= {"ledger_folder": None if ledger_folder is None else str(ledger_folder)}
    for key, value in values.items():
        text = text.replace(f"@{key}@", json.dumps(value, ensure_ascii=False), 1)
    return text
