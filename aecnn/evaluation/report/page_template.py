"""The report's page as Jinja templates; modules, because Flower's bundles carry no other kind of text file."""

MACROS = """\
{% macro rail(title) %}
<div class="rail"><h2>{{ title }}</h2>{{ caller() }}</div>
{% endmacro %}
{% macro few(basis) %}
{% if basis and basis.is_small %}<strong class="few">Fewer than {{ small }} images: a small number.</strong>{% endif %}
{% endmacro %}
{% macro scale_head() %}
<th class="scale"><span class="axis" aria-hidden="true"><span style="left:{{ 0.5|bar }}">0.5</span><span style="left:{{ 0.75|bar }}">0.75</span><span style="left:100%">1</span></span></th>
{%- endmacro %}
{% macro mark(auroc, ends, kind) %}
{% if auroc is not none %}{% if ends is not none %}<i class="whisker {{ kind }}" style="left:{{ ends[0]|bar }};right:calc(100% - {{ ends[1]|bar }})"></i>{% endif %}<i class="dot {{ kind }}{{ " below" if auroc < 0.5 }}" style="left:{{ auroc|bar }}"></i>{% endif %}
{%- endmacro %}
{% macro track(auroc, ends, second=none, second_ends=none, diamond=none) %}
<div class="track forest{{ " two" if second is not none }}"><i class="chance" style="left:{{ 0.5|bar }}"></i>{{ mark(second, second_ends, "second") }}{% if diamond is not none %}<i class="diamond" style="left:{{ diamond|bar }}"></i>{% endif %}{{ mark(auroc, ends, "first") }}</div>
{%- endmacro %}
{% macro heat_cell(auroc, look="", remark=none) %}
<td class="cell{{ " low" if auroc is not none and auroc < 0.5 }}{{ look }}"{% if auroc is not none %} style="--heat:{{ auroc|heat }}"{% endif %}{% if remark %} title="{{ remark }}"{% endif %}>{{ auroc|short }}</td>
{%- endmacro %}
{% macro panels(drawn, reason) %}
<div class="small">
  {% for panel in drawn %}
  <figure{% if panel.is_macro %} class="macro"{% endif %}><figcaption><span>{{ panel.title|spaced }}</span><b>{{ panel.figure|score }}</b></figcaption>
  {% if panel.drawing %}{{ panel.drawing }}{% else %}<div class="none">{{ reason }}</div>{% endif %}
  </figure>
  {% endfor %}
</div>
{% endmacro %}
"""

PAGE_TEMPLATE = """\
{% from "macros.html" import few with context %}
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
  <div class="hero"><b>{{ headline.auroc|score }}</b><span>macro AUROC · {{ headline.model }}<br>{{ headline.basis or "not measured" }}{% if headline.interval %}<br>{{ headline.interval }}{% endif %}</span>{{ few(headline.basis) }}</div>
</header>
<dl class="facts">
  <div><dt>Rounds</dt><dd>{{ history.rounds|length }}{% if end and end.released_round is not none %} <small>released: {{ end.released_round }}</small>{% endif %}</dd></div>
  <div><dt>Hospitals</dt><dd>{{ history.hospital_names|length or "–" }}</dd></div>
  {% if headline.basis %}
  <div><dt>{{ headline.basis.split|capitalize }} images</dt><dd>{{ headline.basis.num_images|count }}</dd></div>
  <div><dt>{{ headline.basis.split|capitalize }} patients</dt><dd>{{ headline.basis.num_patients|count }}</dd></div>
  {% endif %}
  {% for fact in privacy_facts %}
  <div><dt>{{ fact.title }}</dt><dd>{{ fact.epsilon|epsilon }} <small>{{ fact.remark }}</small></dd></div>
  {% endfor %}
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
{% if calibration %}<a href="#calibration">Calibration</a>{% endif %}
{% if subgroups or view_baseline %}<a href="#subgroups">Subgroups</a>{% endif %}
{% if hospital_rows %}<a href="#by-hospital">By hospital</a>{% endif %}
{% if curves %}<a href="#learning">Learning</a>{% endif %}
{% if history.hospitals %}<a href="#hospitals">Hospitals</a>{% endif %}
{% if rounds %}<a href="#rounds">Rounds</a>{% endif %}
{% if judged %}<a href="#withheld">Withheld</a>{% endif %}
{% if history.privacy or history.start.central_privacy %}<a href="#privacy">Privacy</a>{% endif %}
{% if history.incidents %}<a href="#incidents">Incidents</a>{% endif %}
{% if triptychs %}<a href="#examples">Examples</a>{% endif %}
{% if run.config_text %}<a href="#configuration">Configuration</a>{% endif %}
<a href="#files">{{ "Files" if run.files else "Left out" }}</a></nav></div>

{% if run.notes %}
<div class="notes" role="note"><ul>{% for note in run.notes %}<li>{{ note }}</li>{% endfor %}</ul></div>
{% endif %}

<main>
{% include "model.html" %}
{% include "run.html" %}
</main>
<footer>Made from the run's files alone; nothing is loaded from a network. For research, not for clinical use.</footer>
</div>
</body>
</html>
"""
