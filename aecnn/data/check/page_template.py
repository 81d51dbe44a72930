"""The data-quality page as a template; a module, because Flower's bundles carry no other kind of text file."""

CHECK_STYLE = """\
.checks td { padding: 9px 0 9px 16px; } .checks td:first-child { padding-left: 0; width: 84px; }
.checks td.title { white-space: nowrap; font-weight: 600; } .checks details { margin-top: 4px; }
.checks details ul { margin: 6px 0 2px; padding-left: 18px; color: var(--muted); font-size: 13px; overflow-wrap: anywhere; }
.badge { display: inline-block; min-width: 44px; text-align: center; font-size: 11.5px; font-weight: 650; border-radius: 9px; padding: 0 9px; line-height: 19px; }
.badge.pass { color: var(--good); background: color-mix(in srgb, var(--good) 13%, transparent); }
.badge.warn { color: var(--warn); background: color-mix(in srgb, var(--warn) 16%, transparent); }
.badge.fail { color: var(--bad); background: color-mix(in srgb, var(--bad) 14%, transparent); }
.hero .pass { color: var(--good); } .hero .warn { color: var(--warn); } .hero .fail { color: var(--bad); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 18px 14px; margin-bottom: 26px; }
.gallery img { display: block; width: 100%; aspect-ratio: 1; background: #000; }
.gallery figcaption { font-weight: 400; font-size: 12px; line-height: 1.4; margin: 5px 0 0; overflow-wrap: anywhere; }
.gallery figcaption b { display: block; font-weight: 650; }
h3 { font-size: 14px; font-weight: 650; margin: 0 0 10px; } h3 + p { margin: -8px 0 10px; font-size: 13px; } a.jump { color: var(--accent); }
.groups { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 30px 44px; }
.groups table td:nth-child(2) { width: 45%; } .share { height: 9px; background: var(--accent); border-radius: 0 2px 2px 0; min-width: 1px; }
td .of { color: var(--muted); font-size: 12px; display: inline-block; min-width: 44px; } td.rare .of { color: var(--warn); font-weight: 650; }
@media screen and (max-width: 760px) {
  .groups { grid-template-columns: minmax(0, 1fr); }
  .checks td { display: block; padding: 0 0 2px; border: 0; } .checks td:first-child { padding-top: 10px; } .checks td:last-child { padding-bottom: 10px; border-bottom: 1px solid var(--hairline); }
}
"""

CHECK_TEMPLATE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>Data quality of {{ report.root.name }}</title>
<style>{% include "style.css" %}{% include "check.css" %}</style>
</head>
<body><div class="page">
<header>
  <div>
    <div class="overline">Data quality</div>
    <h1>{{ report.root.name }}</h1>
    <span class="muted">{{ report.root }}</span>
  </div>
  <div class="hero"><b class="{{ report.status }}">{{ report.status }}</b><span>{{ verdict }}</span></div>
</header>
<dl class="facts">
  <div><dt>Images</dt><dd>{{ report.num_images|count }}</dd></div>
  <div><dt>Patients</dt><dd>{{ report.num_patients|count }}</dd></div>
  {% for name, split in report.labels.splits.items() %}
  <div><dt>Split {{ name }}</dt><dd>{{ split.num_images|count }}<small>{{ split.num_patients|count }} patients</small></dd></div>
  {% endfor %}
  <div><dt>Checks</dt><dd>{{ report.checks|length }}<small>{{ numbers.fail }} fail, {{ numbers.warn }} warn</small></dd></div>
</dl>
<div class="intent"><span><strong>Made on this machine; nothing was sent.</strong> {% if pictures %}The page holds radiographs of patients: keep it in the hospital.{% else %}The page holds image names and patient ids: keep it in the hospital.{% endif %}</span></div>

<section id="checks">
  <div class="rail"><h2>Checks</h2><p>fail: mend it before joining. warn: look at it. Opened lists name what was found.</p>
  {% if report.labels_only %}<p>The images were not opened.</p>{% endif %}</div>
  <div class="content"><table class="checks"><tbody>
  {% for check in report.checks %}
  <tr><td><span class="badge {{ check.status }}">{{ check.status }}</span></td><td class="title">{{ check.title }}</td>
    <td>{{ check.summary }}{% if check.details %}<details{{ " open" if check.status == "fail" and check.details|length <= 5 }}><summary>{{ check.details|length|count }} {{ "entry" if check.details|length == 1 else "entries" }}</summary><ul>
    {% for line in check.details[:most] %}<li>{{ line }}</li>{% endfor %}
    {% if check.details|length > most %}<li>… and {{ (check.details|length - most)|count }} more: see --json</li>{% endif %}</ul></details>{% endif %}
    {%- if check.suspects %} · <a class="jump" href="#{{ check.check }}">pictures</a>{% endif %}</td></tr>
  {% endfor %}
  </tbody></table></div>
</section>

{% if pictures %}
<section id="suspects">
  <div class="rail"><h2>Suspects</h2><p>What the checks think of single radiographs, the surest first. The number in brackets is how sure they are. How often they err is in docs/data-checks.md.</p></div>
  <div class="content">
  {% for check in report.checks if check.suspects %}
    <h3 id="{{ check.check }}">{{ check.title }}</h3><p class="muted">{{ check.summary }}{% if check.suspects|length > shown %}; the {{ shown }} surest are shown, --json lists all{% endif %}</p>
    <div class="gallery">
    {% for suspect in check.suspects if suspect.picture %}
      <figure><img src="{{ suspect.picture|png }}" alt="{{ suspect.image }}"><figcaption><b>{{ suspect.image }}</b>patient {{ suspect.patient }}<br>{{ suspect.sentence }}{% if suspect.sureness is not none %} <span class="muted">({{ "%.2f"|format(suspect.sureness) }})</span>{% endif %}</figcaption></figure>
    {% endfor %}
    </div>
  {% endfor %}
  </div>
</section>
{% endif %}

{% if report.labels.findings %}
<section id="findings">
  <div class="rail"><h2>Findings</h2><p>Images with the finding, and in grey the patients they are of. Fewer than {{ evaluable }} patients are marked: an AUROC there says little.</p></div>
  <div class="content"><table>
    <thead><tr><th>Finding</th><th class="scale">Share of all images</th>{% for split in report.labels.findings %}<th class="number">{{ split }}</th>{% endfor %}<th class="number">not labelled</th></tr></thead>
    <tbody>
    {% for name, count in report.labels.findings.all.items() %}
    <tr><td class="name nowrap">{{ name|spaced }}</td><td class="scale"><div class="share" style="width:{{ count.positive.num_images|of(largest) }}"></div></td>
    {% for split in report.labels.findings.values() %}{% set part = split[name].positive %}<td class="number{{ " rare" if part.num_patients < evaluable }}">{{ part.num_images|count }} <span class="of">{{ part.num_patients|count }}</span></td>{% endfor %}
    <td class="number muted">{{ count.not_labelled.num_images|count }}</td></tr>
    {% endfor %}
    <tr><td class="name nowrap">No finding</td><td class="scale"><div class="share" style="width:{{ report.findings["No Finding"]|of(largest) }}"></div></td><td class="number">{{ report.findings["No Finding"]|count }}</td><td colspan="{{ report.labels.findings|length }}"></td></tr>
    </tbody>
  </table></div>
</section>

<section id="patients">
  <div class="rail"><h2>Patients</h2><p>Images, and in grey the patients they are of.</p></div>
  <div class="content groups">
  {% for title, group in groups.items() %}
  <div><h3>{{ title }}</h3><table><tbody>
    {% for value, count in group.items() %}
    <tr><td class="nowrap">{{ value }}</td><td><div class="share" style="width:{{ count.num_images|of(report.num_images) }}"></div></td><td class="number">{{ count.num_images|count }} <span class="of">{{ count.num_patients|count }}</span></td></tr>
    {% endfor %}
  </tbody></table></div>
  {% endfor %}
  </div>
</section>
{% endif %}
<footer>Not a medical device, not for clinical use.</footer>
</div></body></html>
"""
