"""The report's sections on the released model: findings, curves, calibration, subgroups and hospitals, as Jinja."""

MODEL_SECTIONS = """\
{% from "macros.html" import few, heat_cell, panels, rail, scale_head, track with context %}
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

{% if findings %}
{% set is_test = run.metrics is not none %}
{% set basis = test_basis if is_test else validation_basis %}
{% set bound = judged.macro_auroc_error_bound if judged else (validation.macro_auroc_error_bound if validation else none) %}
{% set has = columns %}
<section id="findings">
  {% call rail("Findings") %}
  <p>Area under the ROC curve, {{ headline.model }}: {{ basis }}{{ "" if is_test else ", pooled" }}. {% if has.interval or has.validation_interval %}Lines are {{ level|percent }} intervals. {% endif %}The line at 0.5 is chance; the scale ends at 0.4.</p>
  {{ few(basis) }}
  {% if is_test and validation_basis and has.validation %}<p>Beside it the same model on {{ validation_basis }}, pooled.</p> {{ few(validation_basis) }}{% endif %}
  {% if has.auprc %}<p>AUPRC by chance equals the share of positive images.</p>{% endif %}
  {% endcall %}
  <div class="content wide">
  {% if is_test and (has.validation or has.alone) %}
  <div class="legend"><span><i class="key first"></i>test</span>{% if has.validation %}<span><i class="key second"></i>validation, pooled over the hospitals</span>{% endif %}{% if has.alone %}<span><i class="key diamond"></i>mean of the hospitals alone, test</span>{% endif %}</div>
  {% endif %}
  <table{% if not is_test and not has.auprc %} class="broad"{% endif %}>
    <thead><tr><th>Finding</th>{{ scale_head() }}<th class="number">{{ "Test" if is_test else "Validation" }}<br>AUROC</th>{% if has.interval %}<th class="number">{{ level|percent }}<br>interval</th>{% endif %}{% if is_test and has.validation %}<th class="number">Validation<br>AUROC</th>{% endif %}{% if has.alone %}<th class="number">Alone,<br>mean</th>{% endif %}{% if has.auprc %}<th class="number">AUPRC</th>{% endif %}{% if has.sensitivity %}<th class="number">Sensitivity at<br>{{ specificity|percent }} specificity</th>{% endif %}{% if has.counts %}<th class="number">Positive<br>images</th><th class="number"><br>share</th>{% endif %}</tr></thead>
    <tbody>
    {% for row in findings %}
    {% set scores = row.scores %}
    <tr>
      <td class="name nowrap">{{ row.name|spaced }}</td>
      {% set second = row.validation if is_test and row.validation else none %}
      {% if scores.auroc is none and (second is none or second.auroc is none) %}
      <td class="scale muted"><div class="nowrap" style="margin-left:{{ 0.5|bar }}">{{ row.why_undefined }}</div></td>
      {% else %}
      <td class="scale">{{ track(scores.auroc, scores.auroc_ci, second.auroc if second else none, second.auroc_ci if second else none, row.alone_auroc) }}</td>
      {% endif %}
      <td class="number strong">{{ scores.auroc|score }}</td>{% if has.interval %}<td class="number muted">{{ scores.auroc_ci|interval }}</td>{% endif %}
      {% if is_test and has.validation %}<td class="number">{{ (row.validation.auroc if row.validation else none)|score }}</td>{% endif %}
      {% if has.alone %}<td class="number muted">{{ row.alone_auroc|score }}</td>{% endif %}
      {% if has.auprc %}<td class="number">{{ scores.auprc|score }}</td>{% endif %}
      {% if has.sensitivity %}<td class="number">{{ (scores.sensitivity_at_specificity.sensitivity if scores.sensitivity_at_specificity else none)|score }}</td>{% endif %}
      {% if has.counts %}<td class="number">{{ scores.num_positive|count }}</td><td class="number muted">{{ scores.share_positive|share }}</td>{% endif %}
    </tr>
    {% endfor %}
    </tbody>
    {% set all = run.metrics or judged or validation %}
    <tfoot><tr><td>Mean</td><td class="scale">{% if all.macro_auroc is not none and has.interval %}{{ track(all.macro_auroc, all.macro_auroc_ci, (judged or validation).macro_auroc if is_test and has.validation else none, judged.macro_auroc_ci if is_test and judged else none, run.alone.mean_macro_auroc if has.alone else none) }}{% endif %}</td><td class="number">{% if not is_test and bound is not none and bound >= 0.0005 %}<small class="muted">± {{ bound|score }}</small> {% endif %}{{ all.macro_auroc|score }}</td>{% if has.interval %}<td class="number">{{ all.macro_auroc_ci|interval }}</td>{% endif %}{% if is_test and has.validation %}<td class="number">{{ (judged or validation).macro_auroc|score }}</td>{% endif %}{% if has.alone %}<td class="number">{{ run.alone.mean_macro_auroc|score }}</td>{% endif %}{% if has.auprc %}<td class="number">{{ run.metrics.macro_auprc|score if is_test else "" }}</td>{% endif %}{% if has.sensitivity %}<td></td>{% endif %}{% if has.counts %}<td></td><td></td>{% endif %}</tr></tfoot>
  </table>
  {% if is_test %}
  {% set undefined = findings|selectattr("scores.auroc", "none")|list %}
  {% if undefined %}
  <p class="after">Not in the mean: {% for row in undefined %}{{ row.name|spaced }} ({{ row.why_undefined }}){{ ", " if not loop.last }}{% endfor %}. A finding has an AUROC only where the {{ run.metrics.split }} split holds both positive and negative images.</p>
  {% endif %}
  {% else %}
  {% endif %}
  {% set unpooled = findings|selectattr("why_not_pooled")|list %}
  {% if unpooled and (has.validation or not is_test) %}
  <p class="after">Not in the mean{{ " of validation" if is_test }}: {% for row in unpooled %}{{ row.name|spaced }} ({{ row.why_not_pooled }}){{ ", " if not loop.last }}{% endfor %}.{% if not (validation and validation.is_noised) %} A finding has an AUROC only where hospitals told of both positive and negative images.{% endif %}</p>
  {% endif %}
  {% if run.metrics and run.metrics.macro_auroc_ci and run.metrics.interval and run.metrics.interval.num_resamples %}<p class="after">Intervals of the {{ run.metrics.split }} split: {{ run.metrics.interval.method or "resampling" }}, {{ run.metrics.interval.num_resamples|count }} resamples; a patient's images stay together.{% if run.metrics.interval.often_undefined %} So few patients have, or have not, a finding that resamples often lack one side: {% for name, part in run.metrics.interval.often_undefined.items() %}{{ name|spaced }} ({{ part|share }} of them){{ ", " if not loop.last }}{% endfor %}. Read {{ "that interval" if run.metrics.interval.often_undefined|length == 1 else "those intervals" }} with care.{% endif %}</p>{% endif %}
  {% if judged and judged.interval %}<p class="after">Intervals of validation: {{ judged.interval }}, from {{ "sums that the hospitals computed at home" if judged.interval == "by patient" else "the histograms alone" }}.{% if judged.interval == "by image" %} Images of one patient resemble each other, so these intervals are too short.{% endif %}{% if judged.macro_auroc is not none and judged.macro_auroc_ci is none %} The mean has none: {{ "of some finding all images with it, or without it, are of one patient, or all are in order" if judged.interval == "by patient" else "not every hospital gave its sums by patient" }}.{% endif %}</p>{% endif %}
  {% if bound is not none %}
  <p class="after">Hospitals tell how many scores fall in each bin, not the scores: that can have moved the mean{{ " of validation" if is_test }} by {{ bound|bound }}. The chance that lies in few images comes on top of it.</p>
  {% endif %}
  </div>
</section>
{% endif %}

{% if roc %}
<section id="roc">
  {% call rail("ROC curves") %}
  <p>Share of positive images found (vertical) over share of negative images called positive (horizontal), at every threshold.</p>
  {% if curve_basis %}<p>{{ curve_basis|string|capitalize }}.</p> {{ few(curve_basis) }}{% endif %}
  {% if has_both_curves %}<p>Thin: validation, pooled over the hospitals.</p>{% endif %}
  {% endcall %}
  <div class="content">
  {{ panels(roc, "no curve: it takes predictions, positives and negatives") }}
  </div>
</section>
{% endif %}

{% if pr %}
<section id="pr">
  {% call rail("Precision and recall") %}
  <p>Share of called images that are positive (vertical) over share of positive images found (horizontal). The figure is the area, AUPRC.</p>
  {% if has_both_curves %}<p>Thin: validation, pooled over the hospitals.</p>{% endif %}
  {% endcall %}
  <div class="content">
  {{ panels(pr, "no curve: it takes predictions, positives and negatives") }}
  </div>
</section>
{% endif %}

{% if calibration %}
<section id="calibration">
  {% call rail("Calibration") %}
  <p>Share of images that are positive (vertical) over the predicted probability (horizontal), in groups of images with nearly the same prediction. On the dotted line a probability means what it says. Axes end where the predictions do.</p>
  {% if has_both_calibrations %}<p>Thin: validation, pooled over the hospitals.</p>{% endif %}
  <p>The figure is the expected calibration error, ECE: how far the two are apart, on the mean{% if run.metrics and run.metrics.ece is not none %}; over all findings {{ run.metrics.ece|score }}{% endif %}.</p>
  {% endcall %}
  <div class="content">
  {{ panels(calibration, "not known for this finding") }}
  </div>
</section>
{% endif %}

{% if subgroups or view_baseline %}
<section id="subgroups">
  {% call rail("Subgroups") %}
  <p>Macro AUROC of the {{ run.metrics.split }} split by group of patients. Means are over the findings defined in a group, so that groups of unlike findings do not compare.</p>
  <p>Groups of too few patients are named, without figures.</p>
  {% endcall %}
  <div class="content">
  {% if subgroups %}
  <div class="wide"><table class="groups">
    <thead><tr><th>Group</th><th class="number">Patients</th><th class="number">Images</th>{{ scale_head() }}<th class="number">Macro<br>AUROC</th><th class="number">{{ level|percent }}<br>interval</th><th class="number">ECE</th></tr></thead>
    {% for attribute in subgroups %}
    <tbody>
    <tr class="head"><th colspan="7" scope="colgroup">{{ attribute.title }}</th></tr>
    {% for group in attribute.groups %}
    {% if group.is_suppressed %}
    <tr class="muted"><td class="name">{{ group.group }}</td><td colspan="6">too few patients: withheld</td></tr>
    {% else %}
    <tr><td class="name">{{ group.group }}</td><td class="number">{{ group.num_patients|count }}</td><td class="number">{{ group.num_images|count }}</td><td class="scale">{% if group.macro_auroc is not none %}{{ track(group.macro_auroc, group.macro_auroc_ci) }}{% endif %}</td><td class="number strong">{{ group.macro_auroc|score }}</td><td class="number muted">{{ group.macro_auroc_ci|interval }}</td><td class="number">{{ group.ece|score }}</td></tr>
    {% endif %}
    {% endfor %}
    </tbody>
    {% endfor %}
  </table></div>
  {% endif %}
  {% if view_baseline %}
  <div class="baseline">
  <h3>What the view position alone would tell</h3>
  <div class="compare">
  <table>
    <thead><tr><th>Finding</th>{{ scale_head() }}<th class="number">View alone</th><th class="number">Model</th></tr></thead>
    <tbody>
    {% for row in findings if row.view_auroc is not none %}
    <tr><td class="name nowrap">{{ row.name|spaced }}</td><td class="scale">{{ track(row.scores.auroc, none, diamond=row.view_auroc) }}</td><td class="number">{{ row.view_auroc|score }}</td><td class="number muted">{{ row.scores.auroc|score }}</td></tr>
    {% endfor %}
    </tbody>
    <tfoot><tr><td>Mean</td><td class="scale"></td><td class="number">{{ view_baseline.macro_auroc|score }}</td><td class="number">{{ run.metrics.macro_auroc|score }}</td></tr></tfoot>
  </table>
  <div><b>{{ view_baseline.macro_auroc|score }}</b><span class="muted">macro AUROC of a guess from PA or AP alone, without the radiograph{% if view_baseline.macro_auroc_ci %} ({{ view_baseline.macro_auroc_ci|interval }}){% endif %}. Patients too ill to stand are imaged AP: a model that comes no further than the diamond may have learnt the view, not the finding.</span></div>
  </div>
  </div>
  {% endif %}
  </div>
</section>
{% endif %}

{% if hospital_rows %}
<section id="by-hospital">
  {% call rail("By hospital") %}
  <p>AUROC of the released model on each hospital's own validation images, from its histograms. A dash: the hospital has too few patients with or without the finding, or keeps it to itself.</p>
  <p>Beside a mean: over how many findings it is. Means over different findings do not compare.</p>
  {% set cells = hospital_rows|map(attribute="cells")|sum(start=()) %}
  {% if cells|selectattr("is_of_few")|list %}<p>Grey: fewer than {{ few_images }} images with the finding, or without it. There, chance moves a figure by tenths.</p>{% endif %}
  {% if cells|selectattr("remark")|list %}<p class="pointed">Rest the pointer on a cell for its interval and its numbers of images.</p>{% endif %}
  {% endcall %}
  <div class="content wide">
  <table class="heat">
    <thead><tr><th>Hospital</th><th class="tall"><span>Mean</span></th><th class="tall"><span>of findings</span></th>{% for finding in hospital_findings %}<th class="tall"><span>{{ finding|spaced }}</span></th>{% endfor %}</tr></thead>
    <tbody>
    {% for row in hospital_rows %}
    <tr{% if row.is_pooled %} class="pooled"{% endif %}><td class="name">{% if row.name in colours and not row.is_pooled %}<i class="swatch" style="background:{{ colours[row.name] }}"></i>{% endif %}{{ row.name }}</td>{{ heat_cell(row.macro_auroc, " strong") }}<td class="cell muted">{{ row.num_findings }}</td>{% for cell in row.cells %}{{ heat_cell(cell.auroc, " faint" if cell.is_of_few else "", cell.remark) }}{% endfor %}</tr>
    {% endfor %}
    </tbody>
  </table>
  </div>
</section>
{% endif %}
"""
