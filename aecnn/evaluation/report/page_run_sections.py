"""The report's sections on the run: learning, hospitals, rounds, privacy, examples and files, as Jinja."""

RUN_SECTIONS = """\
{% from "macros.html" import few, rail with context %}
{% if curves %}
<section id="learning">
  {% call rail("Learning") %}
  <p>Validation is the global model after each round, on patients of the hospitals that no round trains on; round 0 is the initial model. Training is the mean over a round's local steps.</p>
  <p>Thin lines are single hospitals: validation AUROC, training losses.</p>
  {% if validation_basis %}<p>AUROC of round {{ validation.round }}: {{ validation_basis }}.</p> {{ few(validation_basis) }}{% endif %}
  {% endcall %}
  <div class="content">
  <div class="legend"><span><i class="line thick"></i>validation, all hospitals</span><span><i class="line dashed" style="color:var(--ink)"></i>training, all hospitals</span>{% for hospital, colour in colours.items() %}{% if loop.index <= num_colours %}<span><i class="line" style="color:{{ colour }}"></i>{{ hospital }}</span>{% endif %}{% endfor %}{% if colours|length > num_colours %}<span><i class="line" style="color:var(--hospital-other)"></i>{{ colours|length - num_colours }} more</span>{% endif %}</div>
  <div class="trio">
    {% for title, drawing in curves %}<figure><figcaption>{{ title }}</figcaption>{{ drawing }}</figure>{% endfor %}
  </div>
  {% if end and end.released_round is not none %}<p class="after">The ring marks the released round.</p>{% endif %}
  </div>
</section>
{% endif %}

{% if history.hospitals %}
<section id="hospitals">
  {% call rail("Hospitals") %}
  <p>What each hospital brings. A patient belongs to one hospital, and there to training or to validation.</p>
  {% endcall %}
  <div class="content">
  <div class="hospitals">
  <div><table>
    <thead><tr><th>Hospital</th><th class="number">Training<br>patients</th><th class="number"><br>images</th><th class="number">Validation<br>patients</th><th class="number"><br>images</th></tr></thead>
    <tbody>
    {% for hospital, counts in history.hospitals.items() %}
    <tr><td class="name"><i class="swatch" style="background:{{ colours[hospital] }}"></i>{{ hospital }}</td><td class="number">{{ counts.num_train_patients|count }}</td><td class="number">{{ counts.num_train_images|count }}</td><td class="number">{{ counts.num_validation_patients|count }}</td><td class="number">{{ counts.num_validation_images|count }}</td></tr>
    {% endfor %}
    </tbody>
    {% set all = history.hospitals.values()|list %}
    <tfoot><tr><td>All</td>{% for key in ("num_train_patients", "num_train_images", "num_validation_patients", "num_validation_images") %}<td class="number">{% if all|selectattr(key, "none")|list %}–{% else %}{{ all|sum(key)|count }}{% endif %}</td>{% endfor %}</tr></tfoot>
  </table></div>
  {% if partition %}<figure><figcaption>Training images with each finding, by hospital</figcaption>{{ partition }}</figure>{% endif %}
  </div>
  </div>
</section>
{% endif %}

{% if rounds %}
<section id="rounds">
  {% call rail("Rounds") %}
  <p>What came back each round. Latent alive is the share of latent pixels with a gradient, at the hospital where it is lowest.</p>
  {% endcall %}
  <div class="content wide">
  <table>
    <thead><tr><th>Round</th><th class="number">Time</th><th class="number">Hospitals</th><th class="number">{{ "Declared<br>patients"|safe if history.privacy else "Images" }}</th><th class="number">Training<br>BCE</th><th class="number">Training<br>MSE</th><th class="number">Latent<br>alive</th><th class="number">Received</th><th class="number">Validation<br>AUROC</th><th class="number"><br>on images</th>{% if history.tests %}<th class="number">Test AUROC</th>{% endif %}</tr></thead>
    <tbody>
    {% for row in rounds %}
    {% set training = row.training %}
    <tr><td class="nowrap">{{ row.round }}{% if row.is_released %}<span class="tag">released</span>{% endif %}{% if row.is_resumed and training %}<span class="tag">resumed</span>{% endif %}</td>
    {% if training %}
    {% set bce = training.mean("bce") %}{% set mse = training.mean("mse") %}
    <td class="number">{{ training.seconds|duration }}</td><td class="number">{{ training.hospitals|length }}</td><td class="number">{{ training.hospitals.values()|rejectattr("num_images", "none")|sum("num_images")|count }}</td><td class="number">{{ "%.4f"|format(bce) if bce is not none else "–" }}</td><td class="number">{{ "%.5f"|format(mse) if mse is not none else "–" }}</td><td class="number">{{ row.lowest_alive_fraction|share }}</td><td class="number">{{ training.bytes.values()|sum|size if training.bytes else "–" }}</td>
    {% else %}
    <td class="muted" colspan="7">{{ "initial model" if row.round == 0 else "no training recorded" }}</td>
    {% endif %}
    <td class="number strong">{{ row.macro_auroc|score }}</td><td class="number muted">{{ row.basis.num_images|count if row.basis else "–" }}</td>{% if history.tests %}<td class="number">{{ row.test_auroc|score }}</td>{% endif %}</tr>
    {% endfor %}
    </tbody>
  </table>
  {% if validation and validation.is_noised %}<p class="after">Validation AUROC is with noise of differential privacy. Each judgement costs some, so most rounds are not judged.</p>{% endif %}
  {% if rounds|selectattr("is_resumed")|selectattr("training")|list %}<p class="after">The time of a resumed round is counted from the resumption.</p>{% endif %}
  {% if history.tests and history.tests[-1].num_images is not none %}<p class="after">Test AUROC is on the centre's own {{ history.tests[-1].num_images|count }} images; nothing is chosen by it.{% if history.tests[-1].num_images < small %} Fewer than {{ small }} images are a small number.{% endif %}</p>{% endif %}
  {% if history.delivered is not none %}<p class="after">The released model was delivered to {{ history.delivered|join(", ") or "no hospital" }}.</p>{% endif %}
  </div>
</section>
{% endif %}

{% if judged %}
<section id="withheld">
  {% call rail("Withheld") %}
  <p>What hospitals kept to themselves in judging the released model, and why. No radiograph and no name leaves a hospital in any mode, and nothing tells whose a score is.</p>
  {% endcall %}
  <div class="content">
  <p>{{ modes.get(judged.mode, "Hospitals told histograms of their scores.") }}</p>
  {% if judged.withheld %}
  <table class="withheld">
    <thead><tr><th>Hospital</th><th>Kept at home</th></tr></thead>
    <tbody>{% for hospital, reasons in judged.withheld.items() %}<tr><td class="name">{% if hospital in colours %}<i class="swatch" style="background:{{ colours[hospital] }}"></i>{% endif %}{{ hospital }}</td><td class="remarks">{% for reason in reasons %}<div>{{ reason|spaced }}</div>{% endfor %}</td></tr>{% endfor %}</tbody>
  </table>
  {% else %}
  <p class="after">No hospital kept back a finding.</p>
  {% endif %}
  </div>
</section>
{% endif %}

{% if history.privacy or history.start.central_privacy %}
<section id="privacy">
  {% call rail("Privacy") %}
  {% if history.privacy %}
  <p>What differential privacy has cost each hospital's patients in this run, by all answers that came, averaged or not. ε is for one patient added or removed, with all radiographs.</p>
  <p>With noise: the weights{% if validation and validation.is_noised %} and the validation AUROC{% endif %}. Declared, not counted: numbers of patients. Nothing else of the patients was told.</p>
  {% endif %}
  {% if history.start.central_privacy %}
  <p>The centre added noise to the average of the hospitals. That ε is for one hospital added or removed, and covers the weights alone: counts, losses and AUROC of hospitals on this page are not covered.</p>
  {% endif %}
  {% endcall %}
  <div class="content">
  {% if history.privacy %}
  <div class="wide"><table>
    <thead><tr><th>Hospital</th><th class="number">ε</th><th class="number">δ</th><th class="number">Noise<br>multiplier</th><th class="number">Sample<br>rate</th><th class="number">Steps</th><th class="number">Validation<br>patients: ε</th><th class="number"><br>judgements</th></tr></thead>
    <tbody>
    {% for hospital, spent in history.privacy.items() %}
    <tr><td class="name"><i class="swatch" style="background:{{ colours[hospital] }}"></i>{{ hospital }}</td><td class="number strong">{{ spent.epsilon|epsilon }}</td><td class="number">{{ spent.delta|significant }}</td><td class="number">{{ spent.noise_multiplier|significant }}</td><td class="number">{{ spent.sample_rate|significant }}</td><td class="number">{{ spent.steps|count }}</td><td class="number">{{ spent.evaluation_epsilon|epsilon if spent.evaluations else "–" }}</td><td class="number">{{ spent.evaluations|count }}</td></tr>
    {% endfor %}
    </tbody>
  </table></div>
  {% if privacy_curve %}<figure class="after"><figcaption>ε of the training patients, by round</figcaption>{{ privacy_curve }}</figure>{% endif %}
  <p class="after">A patient trains or validates, never both. What a patient has spent in other runs is in the hospital's own ledger.</p>
  {% endif %}
  {% if history.start.central_privacy %}
  {% set plan = history.start.central_privacy %}
  <p class="after">Noise at the centre: {% if central %}ε {{ central.epsilon|epsilon }} at δ {{ central.delta|significant }} for each hospital after {{ rounds|selectattr("training")|list|length }} rounds (one hospital added or removed; the weights alone); {% endif %}of {{ plan.num_rounds|count }} rounds ε {{ plan.epsilon|epsilon }}. Noise multiplier {{ plan.noise_multiplier|significant }}, {{ plan.clipping }} clipping{% if central %} at {{ central.clipping_norm|significant }} in the last round, noise of {{ central.noise_to_clip|significant }} × the clip on every weight{% endif %}.</p>
  {% if plan.warning %}<p class="after"><strong class="few">{{ plan.warning }}.</strong></p>{% endif %}
  {% endif %}
  </div>
</section>
{% endif %}

{% if history.incidents %}
<section id="incidents">
  {% call rail("Incidents") %}
  <p>What did not go by itself, in order.</p>
  {% endcall %}
  <div class="content">
  <ul class="incidents">{% for incident in history.incidents %}<li>{{ incident }}</li>{% endfor %}</ul>
  </div>
</section>
{% endif %}

{% if triptychs %}
<section id="examples">
  {% call rail("Examples") %}
  <p>Each image, the latent code that the classifier sees with a sixteenth of the pixels, and what the decoder makes of it.</p>
  <p>Bars are the five most probable findings; blue and bold where the annotations name the finding.</p>
  {% if triptychs|selectattr("is_explained")|list %}<p>In colour: what the classifier looked at for one finding, by Grad-CAM. It shows where, not whether that is right.</p>{% endif %}
  {% endcall %}
  <div class="content">
  {% for triptych in triptychs %}
  <div class="triptych{{ " explained" if triptych.is_explained }}">
    {% for panel in triptych.panels %}
    <figure><img{% if panel.caption == "latent" %} class="latent"{% endif %} src="{{ panel.uri }}" alt="{{ panel.caption }} of {{ triptych.image }}"><figcaption>{{ panel.caption|spaced }}{% if panel.remark %}, {{ panel.remark }}{% endif %}</figcaption></figure>
    {% endfor %}
    <div class="told"><p><strong>{{ triptych.findings|map("replace", "_", " ")|join(", ") or "No finding" }}</strong><br><span class="muted">{{ triptych.image }}</span></p>
      <div class="bars">{% for bar in triptych.bars %}<span{% if bar.is_present %} class="present"{% endif %}>{{ bar.finding|spaced }}</span><span><i{% if bar.is_present %} class="present"{% endif %} style="width:{{ "%.1f"|format(100 * bar.probability) }}%"></i></span><span class="number">{{ "%.2f"|format(bar.probability) }}</span>{% endfor %}</div>
    </div>
  </div>
  {% endfor %}
  </div>
</section>
{% endif %}

{% if run.config_text %}
<section id="configuration">
  {% call rail("Configuration") %}
  <p>As the run resolved it, every default written out.</p>
  {% endcall %}
  <div class="content">
  <details><summary>Show config.yaml</summary><pre><code>{{ run.config_text }}</code></pre></details>
  </div>
</section>
{% endif %}

<section id="files">
  {% call rail("Files" if run.files else "Left out") %}
  {% if run.files %}<p>Beside this page, in the folder {{ run.folder }}.</p>{% endif %}
  {% endcall %}
  <div class="content">
  {% if run.files %}
  <table>
    <thead><tr><th>File</th><th>What it holds</th><th class="number">Size</th></tr></thead>
    <tbody>{% for file, num_bytes in run.files %}<tr><td class="name"><code>{{ file }}</code></td><td class="muted">{{ file_meanings.get(file, "") }}</td><td class="number">{{ num_bytes|size }}</td></tr>{% endfor %}</tbody>
  </table>
  {% endif %}
  {% for sentence in absences %}<p class="after">{{ sentence }}</p>{% endfor %}
  </div>
</section>
"""
