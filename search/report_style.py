"""How the page of a report looks: dark on light, one column on a phone, colours as in the charts."""

STYLE = """
:root { --ink: #1c2733; --soft: #5d6975; --line: #dfe4e8; --wash: #f5f7f9; --blue: #0062be; --vermilion: #c24a00; }
* { box-sizing: border-box; }
body {
  margin: 0; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, "DejaVu Sans", sans-serif;
}
main { max-width: 1200px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 48px 0 12px; padding-top: 20px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 0 0 6px; }
p { margin: 0 0 12px; max-width: 78ch; }
.soft, figcaption, footer { color: var(--soft); font-size: .9rem; }
.cards {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px; margin: 24px 0 0;
  padding: 0;
}
.cards div { background: var(--wash); border-radius: 8px; padding: 14px 16px; }
.cards dt { color: var(--soft); font-size: .85rem; }
.cards dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.cards dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 32px 40px; align-items: start; }
.wide { grid-column: 1 / -1; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; width: 100%; }
caption { text-align: left; font-weight: 600; padding-bottom: 6px; }
th, td {
  padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom;
  white-space: nowrap;
}
th { font-weight: 600; color: var(--soft); font-size: .82rem; }
td.text, th.text { text-align: left; white-space: normal; }
td.reason { white-space: normal; min-width: 16rem; text-align: left; }
tr.strong td { font-weight: 650; }
tr.best td { background: #eaf2fb; }
td .up { color: var(--blue); } td .down { color: var(--vermilion); }
.dense th, .dense td { padding: 5px 8px; font-size: .82rem; }
.dot {
  display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .5em;
  vertical-align: -.05em; box-shadow: inset 0 0 0 1px rgba(0,0,0,.25);
}
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { margin-top: 6px; }
.frame { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: 8px; margin-bottom: 18px; }
.frame p { grid-column: 1 / -1; margin: 0; }
.frame img { border-radius: 4px; }
.frame .changed img { box-shadow: 0 0 0 1px var(--line); }
.frame figcaption { margin-top: 2px; font-size: .82rem; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: .88rem; margin: 0 0 16px; }
footer { margin-top: 56px; border-top: 1px solid var(--line); padding-top: 16px; }
code {
  font-family: ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .92em;
  overflow-wrap: anywhere;
}
@media (max-width: 800px) {
  main { padding: 24px 16px 48px; }
  .pair { grid-template-columns: minmax(0, 1fr); }
  .frame { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .frame figure:first-of-type { grid-column: 1 / -1; }
  table { font-size: .86rem; }
  th, td { padding: 6px 5px; }
  .wide .scroll img { width: 820px; max-width: none; }
}
"""
