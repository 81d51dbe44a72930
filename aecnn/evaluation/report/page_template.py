"""The report's page as a Jinja template; a module, because Flower's bundles carry no other kind of text file."""

PAGE_TEMPLATE = """\
{% macro rail(title) %}
<div class="rail"><h2>{{ title }}</h2>{{ caller() }}</div>
{% endmacro %}
{% macro few(basis) %}
{% if basis and basis.is_small %}<strong class="few">Fewer than {{ small }} images: a small number.</strong>{% endif %}
{% endmacro %}
{% macro scale_head() %}
<th class="scale"><span class="axis" aria-hidden="true"><span style="left:{{ chance }}">0.5</span><span style="left:{{ 0.75|bar }}">0.75</span><span style="left:100%">1</span></span></th>
{%- endmacro %}
{% macro scale(row) %}
{% if row.auroc is none %}
<td class="scale muted"><div class="nowrap" style="margin-left:{{ chance }}">{{ row.why_undefined }}</div></td>
{% else %}
<td class="scale"><div class="track"><i class="chance" style="left:{{ chance }}"></i>
  {%- if row.auroc >= 0.5 %}<i class="length" style="left:{{ chance }};right:calc(100% - {{ row.auroc|bar }})"></i>
  {%- else %}<i class="length below" style="left:{{ row.auroc|bar }};right:calc(100% - {{ chance }})"></i>{% endif %}
  {%- if row.alone_auroc is not none %}<i class="alone" style="left:{{ row.alone_auroc|bar }}"></i>{% endif %}</div></td>
{% endif %}
{%- endmacro %}
{% set history = run.history %}
{% set end = history.end %}
{% set name = history.start.run or run.config.get("name") or run.folder %}
<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ name }} · AE-CNN report</title>
<link rel="icon" href="data:,">
<style>
{% include "style.css" %}
{% include "report.css" %}
</style>
</head>
<body>
<div class="page">
<header>
  <div>
    <div class="overline">Federated AE-CNN · report of a run</div>
    <h1>{{ name }}</h1>
    {% if end and end.status == "completed" %}
    <span class="status completed">Completed</span>
    {% elif end %}
    <span class="status failed">{{ end.status|capitalize }}{% if end.reason %}: {{ end.reason }}{% endif %}</span>
    {% else %}
    <span class="status unfinished">Not finished</span>
    {% endif %}
    <span class="muted nowrap">{{ history.start.started_at|date if history.start.started_at else "start not recorded" }}</span>
  </div>
  <div class="hero"><b>{{ headline.auroc|score }}</b><span>macro AUROC · {{ headline.model }}<br>{{ headline.basis or "not measured" }}</span>{{ few(headline.basis) }}</div>
</header>
<dl class="facts">
  <div><dt>Rounds</dt><dd>{{ history.rounds|length }}{% if end and end.released_round is not none %} <small>released: {{ end.released_round }}</small>{% endif %}</dd></div>
  <div><dt>Hospitals</dt><dd>{{ history.hospital_names|length or "–" }}</dd></div>
  {% if headline.basis %}
  <div><dt>{{ headline.basis.split|capitalize }} images</dt><dd>{{ headline.basis.num_images|count }}</dd></div>
  <div><dt>{{ headline.basis.split|capitalize }} patients</dt><dd>{{ headline.basis.num_patients|count }}</dd></div>
  {% endif %}
  {% if run.metrics and run.metrics.reconstruction %}
  <div><dt>Reconstruction</dt><dd>{{ "%.1f"|format(run.metrics.reconstruction.psnr_db) if run.metrics.reconstruction.psnr_db is not none else "–" }} dB <small>SSIM {{ run.metrics.reconstruction.ssim|score }}</small></dd></div>
  {% endif %}
  {% if model.get("backbone") %}
  <div><dt>Classifier</dt><dd>{{ model.backbone }}{% if images.get("crop_size_px") or images.get("size_px") %} <small>{{ images.get("crop_size_px") or images.size_px }} px</small>{% endif %}</dd></div>
  {% endif %}
  {% if end and end.seconds is not none %}
  <div><dt>Time</dt><dd>{{ end.seconds|duration }}{% if history.resumed_after %} <small>{{ history.resumed_after|resumptions }}</small>{% endif %}</dd></div>
  {% elif history.resumed_after %}
  <div><dt>Time</dt><dd>– <small>{{ history.resumed_after|resumptions }}</small></dd></div>
  {% endif %}
</dl>
<div class="intent"><span><strong>For research. Not for clinical use.</strong></span>
<nav>{% if findings %}<a href="#findings">Findings</a>{% endif %}
{% if roc %}<a href="#roc">ROC</a>{% endif %}
{% if curves %}<a href="#learning">Learning</a>{% endif %}
{% if history.hospitals %}<a href="#hospitals">Hospitals</a>{% endif %}
{% if rounds %}<a href="#rounds">Rounds</a>{% endif %}
{% if history.privacy or history.start.central_privacy %}<a href="#privacy">Privacy</a>{% endif %}
{% if history.incidents %}<a href="#incidents">Incidents</a>{% endif %}
{% if triptychs %}<a href="#examples">Examples</a>{% endif %}
{% if run.config_text %}<a href="#configuration">Configuration</a>{% endif %}
<a href="#files">Files</a></nav></div>

{% if run.notes %}
<div class="notes" role="note"><ul>{% for note in run.notes %}<li>{{ note }}</li>{% endfor %}</ul></div>
{% endif %}

<main>
{% if alone %}
<section id="alone">
  {% call rail("Together or alone") %}
  <p>The same hospitals, each training its own model without the others{% if run.alone.num_steps is not none %} for {{ run.alone.num_steps|count }} local steps{% endif %}, scored on the same images as the global model: {{ test_basis }}.</p>
  {{ few(test_basis) }}
  {% endcall %}
  <div class="content">
    <div class="compare"><div>{{ alone }}</div>
    {% if run.alone.mean_macro_auroc is not none %}
    {% set gain = run.metrics.macro_auroc - run.alone.mean_macro_auroc %}
    <div><b>{{ "+" if gain >= 0 else "−" }}{{ gain|abs|score }}</b><span class="muted">federated {{ "above" if gain >= 0 else "below" }} the mean of the hospitals alone: {{ run.metrics.macro_auroc|score }} against {{ run.alone.mean_macro_auroc|score }}</span></div>
    {% endif %}
    </div>
  </div>
</section>
{% endif %}

{% if findings and run.metrics %}
<section id="findings">
  {% call rail("Findings") %}
  <p>Area under the ROC curve, {{ headline.model }}: {{ test_basis }}. The line at 0.5 is chance.</p>
  {{ few(test_basis) }}
  {% if run.alone %}<p>The ring is the mean of the hospitals alone.</p>{% endif %}
  <p>AUPRC by chance equals the share of positive images.</p>
  {% endcall %}
  <div class="content">
  <table>
    <thead><tr><th>Finding</th>{{ scale_head() }}<th class="number">AUROC</th>{% if run.alone %}<th class="number">Alone, mean</th>{% endif %}<th class="number">AUPRC</th><th class="number">Share positive</th><th class="number">Positive</th><th class="number">Negative</th></tr></thead>
    <tbody>
    {% for row in findings %}
    <tr>
      <td class="name nowrap">{{ row.name|spaced }}</td>{{ scale(row) }}
      <td class="number strong">{{ row.auroc|score }}</td>{% if run.alone %}<td class="number muted">{{ row.alone_auroc|score }}</td>{% endif %}
      <td class="number">{{ row.auprc|score }}</td><td class="number muted">{{ row.share_positive|share }}</td><td class="number">{{ row.num_positive|count }}</td><td class="number">{{ row.num_negative|count }}</td>
    </tr>
    {% endfor %}
    </tbody>
    <tfoot><tr><td>Mean</td><td class="scale"></td><td class="number">{{ run.metrics.macro_auroc|score }}</td>{% if run.alone %}<td class="number">{{ run.alone.mean_macro_auroc|score }}</td>{% endif %}<td class="number">{{ run.metrics.macro_auprc|score }}</td><td></td><td></td><td></td></tr></tfoot>
  </table>
  {% set undefined = findings|selectattr("auroc", "none")|list %}
  {% if undefined %}
  <p class="after">Not in the mean: {% for row in undefined %}{{ row.name|spaced }} ({{ row.why_undefined }}){{ ", " if not loop.last }}{% endfor %}. A finding has an AUROC only where the {{ run.metrics.split }} split holds both positive and negative images.</p>
  {% endif %}
  </div>
</section>
{% elif findings %}
<section id="findings">
  {% call rail("Findings") %}
  <p>Area under the ROC curve, {{ headline.model }}: {{ validation_basis }}, pooled. The line at 0.5 is chance; bars end at 0.4.</p>
  {{ few(validation_basis) }}
  {% endcall %}
  <div class="content">
  <table class="broad">
    <thead><tr><th>Finding</th>{{ scale_head() }}<th class="number">Validation AUROC</th></tr></thead>
    <tbody>
    {% for row in findings %}
    <tr><td class="name nowrap">{{ row.name|spaced }}</td>{{ scale(row) }}<td class="number strong">{{ row.auroc|score }}</td></tr>
    {% endfor %}
    </tbody>
    <tfoot><tr><td>Mean</td><td class="scale"></td><td class="number">{% if validation.macro_auroc_error_bound is not none %}<small class="muted">± {{ validation.macro_auroc_error_bound|score }}</small> {% endif %}{{ validation.macro_auroc|score }}</td></tr></tfoot>
  </table>
  {% set undefined = findings|selectattr("auroc", "none")|list %}
  {% if undefined %}
  <p class="after">Not in the mean: {{ undefined|map(attribute="name")|map("spaced")|join(", ") }}. A finding has an AUROC only where validation holds both positive and negative images.</p>
  {% endif %}
  {% if validation.macro_auroc_error_bound is not none %}
  <p class="after">Hospitals tell how many scores fall in each bin, never a score: that can have moved the mean by up to {{ validation.macro_auroc_error_bound|score }}. The chance that lies in few images comes on top of it.</p>
  {% endif %}
  </div>
</section>
{% endif %}

{% if roc %}
<section id="roc">
  {% call rail("ROC curves") %}
  <p>Share of positive images found (vertical) over share of negative images called positive (horizontal), at every threshold.</p>
  {% if test_basis %}<p>{{ test_basis|string|capitalize }}.</p> {{ few(test_basis) }}{% endif %}
  {% endcall %}
  <div class="content">
  <div class="small">
    {% for panel in roc %}
    <figure{% if panel.is_macro %} class="macro"{% endif %}><figcaption><span>{{ panel.title|spaced }}</span><b>{{ panel.auroc|score }}</b></figcaption>
    {% if panel.drawing %}{{ panel.drawing }}{% else %}<div class="none">no curve: it takes predictions, positives and negatives</div>{% endif %}
    </figure>
    {% endfor %}
  </div>
  </div>
</section>
{% endif %}

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
  {% if privacy_curve %}<figure><figcaption>ε of the training patients, by round</figcaption>{{ privacy_curve }}</figure>{% endif %}
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
  {% endcall %}
  <div class="content">
  {% for triptych in triptychs %}
  <div class="triptych">
    {% for panel in triptych.panels %}
    <figure><img{% if panel.caption == "latent" %} class="latent"{% endif %} src="{{ panel.uri }}" alt="{{ panel.caption }} of {{ triptych.image }}"><figcaption>{{ panel.caption }}, {% if panel.caption == "reconstruction" and triptych.psnr_db is not none %}{{ "%.1f"|format(triptych.psnr_db) }} dB{% else %}{{ panel.side_px }} px{% endif %}</figcaption></figure>
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
  {% call rail("Files") %}
  <p>Beside this page, in the folder {{ run.folder }}.</p>
  {% endcall %}
  <div class="content">
  <table>
    <thead><tr><th>File</th><th>What it holds</th><th class="number">Size</th></tr></thead>
    <tbody>{% for file, num_bytes in run.files %}<tr><td class="name"><code>{{ file }}</code></td><td class="muted">{{ file_meanings.get(file, "") }}</td><td class="number">{{ num_bytes|size }}</td></tr>{% endfor %}</tbody>
  </table>
  {% for sentence in absences %}<p class="after">{{ sentence }}</p>{% endfor %}
  </div>
</section>
</main>
<footer>Made from the files of this folder alone; nothing is loaded from a network. For research, not for clinical use.</footer>
</div>
</body>
</html>
"""

REPORT_STYLE = """\
.few { display: block; color: var(--warn); font-size: 13px; font-weight: 600; margin-bottom: 8px; }
.hero .few { margin: 2px 0 0; }
.broad .scale { width: 64%; }
.wide { overflow-x: auto; }
.incidents { list-style: none; font-size: 14px; }
.incidents li { padding: 5.5px 0; border-bottom: 1px solid var(--hairline); overflow-wrap: anywhere; }
tfoot small { font-weight: 400; margin-right: 6px; }
@media print {
  .wide { overflow: visible; }
  .few, .incidents { font-size: 8.5pt; }
  .few { display: inline; margin: 0; } .hero .few { display: block; }
  .incidents li { padding: 2.5px 0; break-inside: avoid; }
  #rounds th, #rounds td { padding-left: 6px; } #rounds th:first-child, #rounds td:first-child { padding-left: 0; }
}
"""
