"""The text of a new ``server.yaml``: every key with its meaning, those that are off as comments."""

import re
from string import Template


def server_yaml(*, name: str, address: str, listen: str, local_port: int) -> str:
    """Gives the file's text, its comments one below the other whatever the answers' lengths."""
    text = _SERVER_YAML.substitute(name=name, address=address, listen=listen, local_port=local_port)
    lines = [re.split(r"(?<=\S) +# ", line, maxsplit=1) for line in text.splitlines()]
    width = max(len(key) for key, *comment in lines if comment)
    return "".join(f"{key:<{width}}  # {comment[0]}\n" if comment else f"{key}\n" for key, *comment in lines)


_SERVER_YAML = Template("""\
# The federation `$name`, as the centre runs it. After a change: `flower-server start` (again). A run that has begun
# goes on as it began, but for the timeouts, min_hospitals, max_failed_rounds and accepted_fingerprints.
name: $name
seed: 0                           # of the first run; the next one has the next seed
address: $address                 # what hospitals connect to; the certificate names its host
listen: $listen                   # where this machine answers them: the one port to open in the firewall
local_port: $local_port           # of the services that stay on this machine's loopback
num_runs: 1                       # one after the other
accepted_fingerprints: []         # of other code that may take part besides this installation's, during an upgrade

federation:
  num_rounds: 20
  fraction: 1.0                   # of the hospitals train in a round, at least min_hospitals
  min_hospitals: 2                # fewer updates than these are not averaged
  join_timeout_s: 600             # before the first round: how long to wait for enrolled hospitals
  round_timeout_s: 14400          # how long a round waits for answers, and for hospitals where too few take part
  max_failed_rounds: 3            # tries of one round without min_hospitals, after which the run fails
  max_update_norm_ratio: 10       # of an update to the median norm of its round, or run; a larger one is refused
  validation_fraction: 0.15       # of each hospital's patients
  released_round: best            # by the validation AUROC pooled over the hospitals; or last
  strategy:
    name: fedavg                  # fedavgm, fedadam, fedyogi, fedadagrad, fedmedian, fedtrimmedavg, krum
    # server_learning_rate: 1.0   # fedavgm, fedadam, fedyogi, fedadagrad
    # server_momentum: 0.9        # fedavgm
    # trimmed_fraction: 0.2       # fedtrimmedavg: from either end
    # num_malicious: 1            # krum
  # Differential privacy of whole hospitals: the centre, which must be trusted, clips each hospital's update and adds
  # noise to their average. It takes many hospitals, strategy fedavg, and normalisation group or frozen.
  # central_privacy:
  #   noise_multiplier: 4.5       # in units of the clip; divided by the hospitals it is the noise on each weight
  #   delta: 1.0e-5
  #   clipping: fixed             # or adaptive: follows a quantile of the updates' norms
  #   clipping_norm: 1.0          # fixed
  #   initial_clipping_norm: 0.1  # adaptive
  #   target_clipped_quantile: 0.5  # adaptive: share of the updates that are to be clipped
  #   clip_norm_lr: 0.2           # adaptive: how fast the clip follows
  #   clipped_count_stddev: 3.0   # adaptive: noise on how many were clipped; unset: hospitals / 20

images:
  size_px: 256                    # the paper: 1024
  crop_size_px: 224               # null: no crop. The paper: 896
  rotation_deg: 5                 # drawn in ± this range
  horizontal_flip: true
  test_crops: centre              # or ten: their mean, as in the paper

model:
  backbone: densenet121           # resnet18 … resnet152, densenet121 … densenet201, inception_v3
  weights: none                   # imagenet downloads through torchvision, at the centre alone
  normalisation: batch            # or group; frozen with weights: imagenet
  train_normalisation_affine: true  # frozen only: whether scale and shift still train
  padding: replicate              # or zeros

training:                       # at each hospital, in each round
  optimizer: adam                 # or sgd
  learning_rate: 3.0e-4
  weight_decay: 1.0e-5
  batch_size: 16
  local_epochs: 1                 # give this or local_steps
  # local_steps: 100
  bce_weight: 0.9                 # λ of the paper's loss λ·BCE + (1−λ)·MSE
  precision: fp32                 # or bf16
  channels_last: false
  num_threads: 2
  # Differential privacy of each patient (add or remove one, with all radiographs): needs local_steps in place of
  # local_epochs, and normalisation group or frozen. `aecnn plan-privacy` tells what a plan costs.
  # privacy:
  #   epsilon: 8                  # of all local steps of the plan; give this or noise_multiplier
  #   noise_multiplier: 1.1       # in units of max_grad_norm
  #   delta: null                 # null: min(1e-5, 1/(10·patients)) at each hospital
  #   max_grad_norm: 1.0          # a patient's gradient is clipped to it
  #   sample_rate: 0.05           # of each patient, in each step
  #   images_per_patient: 1       # drawn of a sampled patient
  #   total_steps: null           # null: local_steps × num_rounds
  #   gradients: auto             # of each patient: loop or hooks
  #   accountant: prv             # or rdp: looser
  #   evaluation:                 # without it no validation figure leaves a hospital
  #     epsilon: 4                # of all evaluations together
  #     images_per_patient: 1     # counted at most, of each patient
  #     every_rounds: 5           # and after the last round
  #     total_evaluations: null   # null: as the rounds say

# A test set of the centre's own, scored after every round and at the end; never chosen by.
# test_data:
#   root: test-data               # a folder in one of the known layouts (docs/data.md), relative to this file
""")
