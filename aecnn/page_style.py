"""The style sheet of all our pages; a module, because Flower's bundles carry no other kind of text file."""

PAGE_STYLE = """\
:root {
  color-scheme: light dark;
  --ink: #17202a; --muted: #5b6672; --hairline: #dfe4e9; --paper: #ffffff; --wash: #f5f7f9;
  --accent: #0b5fa5; --accent-wash: #e4eff8; --warn: #8f4b00; --warn-wash: #fdf3e3; --bad: #a3261c; --good: #14703f;
  --hospital-1: #e08a00; --hospital-2: #006b50; --hospital-3: #d070b0; --hospital-4: #56b4e9;
  --hospital-5: #a02c1c; --hospital-6: #4a2f7a; --hospital-other: #b4bdc6;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ink: #e8ecf0; --muted: #9aa6b2; --hairline: #2c353e; --paper: #12171c; --wash: #1a2128;
    --accent: #63b1f2; --accent-wash: #17324a; --warn: #f2b45f; --warn-wash: #33270f; --bad: #f08a80; --good: #67c995;
    --hospital-1: #f2a93b; --hospital-2: #1f8f6a; --hospital-3: #e58fcb; --hospital-4: #bfe6f2;
    --hospital-5: #d9553f; --hospital-6: #8a6ad6; --hospital-other: #5a656f;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body {
  margin: 0; background: var(--paper); color: var(--ink); font-size: 15px; line-height: 1.5;
  font-family: -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; print-color-adjust: exact; -webkit-print-color-adjust: exact;
}
.page { max-width: 1240px; margin: 0 auto; padding: 0 40px 72px; }
h1, h2, h3, p, figure, dl, dd, ul { margin: 0; padding: 0; }
code, pre { font-family: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size: 12.5px; }
a { color: inherit; text-decoration: none; }
.muted { color: var(--muted); }
.nowrap { white-space: nowrap; }

header { padding: 44px 0 28px; display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 28px 48px; align-items: end; }
.overline { color: var(--muted); font-size: 12px; letter-spacing: .09em; text-transform: uppercase; }
h1 { font-size: 36px; line-height: 1.15; font-weight: 650; letter-spacing: -.015em; overflow-wrap: anywhere; margin: 6px 0 12px; }
.status { display: inline-block; font-size: 13px; font-weight: 600; margin-right: 14px; }
.status::before { content: ""; display: inline-block; width: 8px; height: 8px; border-radius: 50%; margin-right: 7px; background: currentColor; }
.status.completed { color: var(--good); } .status.failed { color: var(--bad); } .status.unfinished { color: var(--warn); }
.hero { text-align: right; }
.hero b { display: block; font-size: 68px; line-height: 1; font-weight: 650; letter-spacing: -.035em; color: var(--accent); }
.hero span { color: var(--muted); font-size: 13px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(104px, 1fr)); border-top: 1px solid var(--hairline); border-bottom: 1px solid var(--hairline); padding: 18px 0 16px; gap: 16px; }
.facts dt { color: var(--muted); font-size: 12px; }
.facts dd { font-size: 18px; font-weight: 600; letter-spacing: -.01em; overflow-wrap: anywhere; }
.facts dd small { display: block; font-size: 12px; font-weight: 400; color: var(--muted); letter-spacing: 0; }
.intent { padding: 12px 0 0; font-size: 13px; color: var(--muted); display: flex; flex-wrap: wrap; gap: 4px 28px; justify-content: space-between; }
.intent strong { color: var(--ink); font-weight: 600; }
nav a { margin-left: 18px; } nav a:hover { color: var(--accent); }

.notes { margin-top: 24px; padding: 12px 18px; background: var(--warn-wash); border-left: 3px solid var(--warn); font-size: 14px; overflow-wrap: anywhere; }
.notes ul { padding-left: 18px; }
section { display: grid; grid-template-columns: 212px minmax(0, 1fr); gap: 0 44px; padding-top: 52px; }
section > .rail h2 { font-size: 19px; line-height: 1.25; font-weight: 650; letter-spacing: -.01em; margin-bottom: 8px; }
section > .rail p { color: var(--muted); font-size: 13px; line-height: 1.5; margin-bottom: 8px; }
.absent { color: var(--muted); font-style: italic; padding-top: 2px; }
.after { color: var(--muted); font-size: 13px; margin-top: 12px; }

table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 400; font-size: 12px; color: var(--muted); padding: 0 0 7px 16px; border-bottom: 1px solid var(--ink); vertical-align: bottom; }
td { padding: 5.5px 0 5.5px 16px; border-bottom: 1px solid var(--hairline); vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0; }
.number { text-align: right; white-space: nowrap; }
td.name { overflow-wrap: anywhere; min-width: 104px; }
td.remarks { min-width: 172px; overflow-wrap: anywhere; }
tfoot td { border-bottom: 0; border-top: 1px solid var(--ink); font-weight: 650; padding-top: 8px; }
.strong { font-weight: 650; }
.scale { width: 32%; min-width: 130px; }
.track { position: relative; height: 12px; top: 1px; }
.track i { position: absolute; top: 0; bottom: 0; display: block; }
.track .chance { width: 1px; background: var(--muted); opacity: .55; top: -5px; bottom: -5px; }
.track .length { background: var(--accent); margin: 3px 0; border-radius: 0 2px 2px 0; }
.track .length.below { background: var(--warn); border-radius: 2px 0 0 2px; }
.track .alone { width: 10px; height: 10px; margin: 1px 0 0 -5px; border-radius: 50%; background: var(--paper); border: 2px solid var(--ink); }
th .axis { position: relative; display: block; height: 17px; }
th .axis span { position: absolute; transform: translateX(-50%); }
th .axis span:last-child { transform: translateX(-100%); }
.tag { display: inline-block; font-size: 11.5px; font-weight: 600; color: var(--accent); background: var(--accent-wash); border-radius: 9px; padding: 0 8px; margin-left: 8px; line-height: 18px; }
.swatch { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 8px; }

svg.drawing { display: block; width: 100%; height: auto; overflow: visible; }
svg.drawing * { stroke-linejoin: round; stroke-linecap: butt; }
svg.drawing text { font-family: inherit; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13px; color: var(--muted); margin-bottom: 14px; }
.legend .line { display: inline-block; width: 22px; height: 0; border-top: 2px solid; vertical-align: middle; margin-right: 7px; }
.legend .thick { border-top-width: 3.5px; border-color: var(--accent); } .legend .dashed { border-top-style: dashed; }
.trio { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 24px 28px; }
figcaption { font-size: 13px; font-weight: 600; margin-bottom: 6px; }
.compare { display: grid; grid-template-columns: minmax(0, 1fr) 190px; gap: 40px; align-items: center; }
.compare span { font-size: 13px; display: block; margin-top: 4px; }
.compare b { display: block; font-size: 40px; line-height: 1.1; font-weight: 650; letter-spacing: -.025em; }
.small { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 22px 18px; }
.small figcaption { display: flex; justify-content: space-between; gap: 8px; font-weight: 400; margin: 0; font-size: 12.5px; }
.small figcaption b { font-weight: 650; }
.small .macro figcaption { color: var(--accent); }
.small .none { aspect-ratio: 1; display: grid; place-content: center; text-align: center; color: var(--muted); font-size: 12.5px; border: 1px dashed var(--hairline); margin-top: 6px; padding: 12px; }
.hospitals { display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 44px; align-items: start; }

.triptych { display: grid; grid-template-columns: repeat(3, minmax(0, 192px)) minmax(0, 1fr); gap: 0 10px; padding-bottom: 26px; }
.triptych img { display: block; width: 100%; aspect-ratio: 1; background: #000; }
.triptych img.latent { image-rendering: pixelated; }
.triptych figcaption { font-weight: 400; color: var(--muted); font-size: 12px; margin: 5px 0 0; }
.triptych .told { padding-left: 22px; font-size: 13px; min-width: 0; }
.told p { overflow-wrap: anywhere; line-height: 1.4; margin-bottom: 10px; }
.told .bars { display: grid; grid-template-columns: 124px minmax(40px, 1fr) auto; gap: 3px 10px; align-items: center; }
.told .bars i { display: block; height: 8px; background: var(--hospital-other); border-radius: 0 2px 2px 0; min-width: 1px; }
.told .bars .present { font-weight: 650; } .told .bars i.present { background: var(--accent); }

details > summary { cursor: pointer; color: var(--accent); font-size: 14px; }
pre { background: var(--wash); padding: 16px 20px; margin: 12px 0 0; overflow-x: auto; line-height: 1.5; white-space: pre-wrap; overflow-wrap: anywhere; }
footer { margin-top: 56px; padding-top: 14px; border-top: 1px solid var(--hairline); font-size: 12px; color: var(--muted); }

@media screen and (max-width: 1180px) {
  section { grid-template-columns: minmax(0, 1fr); }
  section > .rail { max-width: 88ch; margin-bottom: 16px; } section > .rail p { display: inline; }
}
@media screen and (max-width: 760px) {
  .page { padding: 0 18px 48px; }
  header, .compare, .hospitals, .trio { grid-template-columns: minmax(0, 1fr); }
  .hero { text-align: left; } .small { grid-template-columns: repeat(2, minmax(0, 1fr)); } nav { display: none; }
  .triptych { grid-template-columns: repeat(3, minmax(0, 1fr)); } .triptych .told { grid-column: 1 / -1; padding: 10px 0 0; }
  .content { overflow-x: auto; }
}
@page { size: A4; margin: 15mm 14mm 16mm; }
@media print {
  body { font-size: 9.5pt; } .page { max-width: none; padding: 0; } nav, summary { display: none; }
  header { padding: 0 0 14px; } h1 { font-size: 23pt; margin: 2px 0 8px; } .hero b { font-size: 42pt; }
  .facts { grid-template-columns: repeat(auto-fit, minmax(80px, 1fr)); gap: 8px 10px; padding: 10px 0; }
  .facts dd { font-size: 10.5pt; } .facts dt, .facts dd small { font-size: 8pt; } .intent { padding-top: 8px; }
  section { display: block; padding-top: 24px; }
  section > .rail { margin-bottom: 10px; break-after: avoid; break-inside: avoid; } section > .rail p { display: inline; font-size: 8.5pt; }
  section > .rail h2 { font-size: 13pt; margin-bottom: 3px; }
  table { font-size: 8.5pt; } th { font-size: 8pt; padding-left: 10px; } td { padding: 2.5px 0 2.5px 10px; }
  thead { display: table-header-group; } tfoot { display: table-row-group; }
  tr, figure, .triptych, .compare, .notes, .hospitals, pre { break-inside: avoid; }
  .triptych figure { break-inside: auto; } #alone, #learning, #configuration { break-inside: avoid; } h2, figcaption, .legend { break-after: avoid; }
  .compare { grid-template-columns: minmax(0, 1fr) 130px; gap: 24px; } .compare b { font-size: 24pt; }
  .trio { gap: 12px 16px; } .small { gap: 10px; } .small figcaption, .small .none { font-size: 7.5pt; line-height: 1.4; }
  .small .none { padding: 4px; }
  .hospitals { grid-template-columns: minmax(0, 9fr) minmax(0, 10fr); gap: 24px; } td.name { min-width: 76px; }
  .triptych { grid-template-columns: repeat(3, minmax(0, 124px)) minmax(0, 1fr); padding-bottom: 12px; }
  .triptych figcaption { font-size: 7.5pt; margin-top: 3px; } .triptych .told { font-size: 8.5pt; }
  .told .bars { grid-template-columns: 112px minmax(30px, 1fr) auto; gap: 1px 8px; } .told p { margin-bottom: 6px; }
  .legend, figcaption, .after, .compare span, .notes { font-size: 8.5pt; } .legend { margin-bottom: 8px; } .after { margin-top: 6px; }
  details::details-content { content-visibility: visible; block-size: auto; }
  pre { font-size: 7pt; margin: 0; columns: 2; padding: 10px 14px; } pre code { font-size: inherit; } code { font-size: 8pt; }
  footer { margin-top: 24px; }
}
"""
