"""The style sheet of the report alone, after that of all our pages."""

REPORT_STYLE = """\
.few { display: block; color: var(--warn); font-size: 13px; font-weight: 600; margin-bottom: 8px; }
.hero .few { margin: 2px 0 0; }
.broad .scale { width: 64%; }
.wide { overflow-x: auto; }
.incidents { list-style: none; font-size: 14px; }
.incidents li { padding: 5.5px 0; border-bottom: 1px solid var(--hairline); overflow-wrap: anywhere; }
tfoot small { font-weight: 400; margin-right: 6px; }
h3 { font-size: 14px; font-weight: 650; margin: 0 0 10px; }
.track.forest { height: 12px; } .track.forest.two { height: 21px; }
.track.forest i { bottom: auto; }
.track.forest .chance { height: 100%; top: 0; box-shadow: 0 -6px var(--muted), 0 6px var(--muted); opacity: .4; }
.whisker { height: 2px; } .whisker.first { top: 5px; background: var(--accent); } .whisker.second { top: 16px; background: var(--muted); opacity: .7; }
.dot { border-radius: 50%; } .dot.first { width: 9px; height: 9px; margin-left: -4.5px; top: 1.5px; background: var(--accent); }
.dot.first.below { background: var(--warn); }
.dot.second { width: 8px; height: 8px; margin-left: -4px; top: 13px; background: var(--paper); border: 2px solid var(--muted); }
.track .diamond { width: 8px; height: 8px; margin-left: -4px; top: 2px; transform: rotate(45deg); background: var(--paper); border: 1.5px solid var(--ink); }
.key { display: inline-block; position: relative; width: 22px; height: 9px; margin-right: 7px; }
.key::before { content: ""; position: absolute; left: 7px; top: 0; width: 9px; height: 9px; border-radius: 50%; }
.key::after { content: ""; position: absolute; left: 0; right: 0; top: 3.5px; height: 2px; background: currentColor; }
.key.first { color: var(--accent); } .key.first::before { background: var(--accent); }
.key.second { color: var(--muted); } .key.second::before { background: var(--paper); border: 2px solid var(--muted); z-index: 1; }
.key.diamond::after { display: none; } .key.diamond::before { width: 8px; height: 8px; border-radius: 0; transform: rotate(45deg); border: 1.5px solid var(--ink); }
.square text { font-size: 11px; fill: var(--muted); }
.square path { fill: none; } .square .axis { stroke: var(--muted); stroke-width: .8; }
.square .chance { stroke: var(--muted); stroke-width: .8; stroke-dasharray: 1.5 3; }
.square .main { stroke: var(--accent); stroke-width: 1.8; } .square .second { stroke: var(--muted); stroke-width: 1.2; }
.square .fill { fill: var(--accent); opacity: .1; } .square circle.main { fill: var(--accent); stroke: none; }
.small figcaption span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
tr.head th { color: var(--ink); font-weight: 650; font-size: 13px; padding: 16px 0 5px; border-bottom: 1px solid var(--hairline); }
.baseline { margin-top: 36px; }
.heat th.tall { padding: 0 2px 7px; vertical-align: bottom; text-align: center; }
.heat th.tall span { display: inline-block; writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
.heat td.name { max-width: 190px; }
.heat td.cell { text-align: center; padding: 5.5px 1px; font-size: 13px; min-width: 34px; border: 1px solid var(--paper); background: color-mix(in srgb, var(--accent) var(--heat, 0%), var(--wash)); }
.heat td.cell.low { background: color-mix(in srgb, var(--warn) var(--heat, 0%), var(--wash)); }
.heat td.cell.faint { background: var(--wash); color: var(--muted); font-weight: 400; }
.heat tr.pooled td { border-top: 1px solid var(--ink); font-weight: 650; }
table.withheld { margin-top: 12px; } table.withheld td.name { width: 24%; }
.triptych.explained { grid-template-columns: repeat(4, minmax(0, 152px)) minmax(0, 1fr); }
.explained .told .bars { grid-template-columns: minmax(0, 112px) minmax(20px, 1fr) auto; }
@media screen and (max-width: 760px) { .triptych.explained { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 8px 10px; } }
@media print {
  .wide { overflow: visible; } .rail p.pointed { display: none; }
  .few, .incidents { font-size: 8.5pt; }
  .few { display: inline; margin: 0; } .hero .few { display: block; }
  .incidents li { padding: 2.5px 0; break-inside: avoid; }
  section p, .withheld { font-size: 8.5pt; } h3 { font-size: 9.5pt; break-after: avoid; } .baseline { margin-top: 16px; }
  #findings th, #findings td { padding-left: 7px; } #findings th:first-child, #findings td:first-child { padding-left: 0; }
  #findings .scale { min-width: 104px; width: 26%; } #findings .scale .nowrap { white-space: normal; } .track.forest { height: 9pt; } .track.forest.two { height: 21px; }
  .heat td.cell { font-size: 7.5pt; padding: 2.5px 0; min-width: 0; } .heat th.tall { font-size: 7.5pt; } .heat td.name { max-width: 100px; min-width: 60px; }
  tr.head { break-after: avoid; } tr.head th { font-size: 8.5pt; padding-top: 8px; }
  .baseline .compare, .small { break-inside: auto; } .square text { font-size: 13px; }
  .triptych.explained { grid-template-columns: repeat(4, minmax(0, 104px)) minmax(0, 1fr); }
  #rounds th, #rounds td { padding-left: 6px; } #rounds th:first-child, #rounds td:first-child { padding-left: 0; }
}
"""
