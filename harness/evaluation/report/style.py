"""The page's style sheet: light and dark, phone to desktop, print. Colours are Okabe and Ito's,"""

STYLE = """
:root{color-scheme:light;--paper:#fbfaf7;--card:#fff;--ink:#1a1f29;--soft:#5a6270;--line:#dedcd5;--grid:#ebe9e3;
--blue:#0072b2;--orange:#c27700;--green:#00805d;--red:#c24f00;--blue-wash:#e8f2f8;--green-wash:#e5f4ef;
--red-wash:#fbece3;--yellow:#8a6100;--yellow-wash:#fbf2dc;--shade:#1a1f2930}
@media screen and (prefers-color-scheme:dark){:root{color-scheme:dark;--paper:#12151a;--card:#1a1e25;--ink:#e8e9ec;
--soft:#a2a9b5;--line:#333945;--grid:#272c35;--blue:#56b4e9;--orange:#e69f00;--green:#3cc79c;--red:#ff8f4f;
--blue-wash:#162733;--green-wash:#12291f;--red-wash:#33201a;--yellow:#f0c75e;--yellow-wash:#2e2715;--shade:#000000b0}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,"Noto Sans",sans-serif;overflow-wrap:anywhere}
main,header,footer{max-width:1080px;margin:0 auto;padding:0 16px}
header{padding-top:28px}
h1{font-size:1.05rem;font-weight:600;margin:0;color:var(--soft)}
h2{font-size:1.35rem;line-height:1.25;margin:56px 0 4px;letter-spacing:-.01em}
h2+p{margin:0 0 16px;color:var(--soft);max-width:70ch}
p{margin:.5em 0}
a{color:var(--blue)}
.run{display:flex;flex-wrap:wrap;gap:4px 16px;justify-content:space-between;color:var(--soft);font-size:.9rem}
.verdict{border:1px solid var(--line);border-left:8px solid var(--soft);border-radius:10px;background:var(--card);
padding:18px 20px;margin:14px 0}
.verdict.reached{border-left-color:var(--green)}.verdict.missed{border-left-color:var(--red)}
.verdict.undecided{border-left-color:var(--yellow)}
.question{margin:0;color:var(--soft)}
.answer{margin:0;font-size:clamp(1.5rem,5vw,2.1rem);line-height:1.2;font-weight:700;letter-spacing:-.02em}
.answer small{font-size:.6em;font-weight:500;letter-spacing:0}
.reached .answer b,.reached .status{color:var(--green)}.missed .answer b,.missed .status{color:var(--red)}
.undecided .answer b,.undecided .status{color:var(--yellow)}
.notes{margin:10px 0 0;padding-left:1.1em;color:var(--soft);font-size:.93rem}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:14px 0;padding:0}
.tile{border:1px solid var(--line);border-radius:10px;background:var(--card);padding:12px 14px;margin:0}
.tile dt{color:var(--soft);font-size:.85rem;line-height:1.3}
.tile dd{margin:2px 0 0;font-size:1.5rem;font-weight:650;letter-spacing:-.02em;font-variant-numeric:tabular-nums}
.tile dd.more{font-size:.85rem;font-weight:400;color:var(--soft);letter-spacing:0}
.bars{list-style:none;margin:14px 0;padding:0;border:1px solid var(--line);border-radius:10px;background:var(--card)}
.bars li{display:grid;grid-template-columns:7.2em 1fr auto;gap:2px 12px;padding:9px 16px;align-items:baseline}
.bars li+li{border-top:1px solid var(--grid)}
.status{font-weight:650;white-space:nowrap}.what{text-wrap:pretty}
.bars .numbers{font-variant-numeric:tabular-nums;white-space:nowrap}
.bars .numbers{text-align:right}.bars .numbers span{color:var(--soft);font-size:.9em}
.warning{
border:1px solid var(--yellow);border-radius:10px;background:var(--yellow-wash);padding:10px 16px;margin:14px 0}
.warning p{margin:0}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:18px 0 0;font-size:.93rem}
figure{margin:0 0 20px;border:1px solid var(--line);border-radius:10px;background:var(--card);padding:16px}
figcaption{color:var(--soft);font-size:.9rem;margin-top:10px;max-width:80ch}
svg{display:block;max-width:100%;height:auto;margin:0 auto;color:var(--ink);
font:13px system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif;overflow:visible}
.wide{display:none}
@media (min-width:760px){.wide{display:block}.narrow{display:none}}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(176px,46%),1fr));gap:14px 12px}
.panels.large{grid-template-columns:repeat(auto-fit,minmax(min(260px,100%),1fr));gap:18px 24px}
.panels svg{width:100%;max-width:220px}.panels.large svg{max-width:400px}
svg text{fill:currentColor;font-variant-numeric:tabular-nums}
svg .tick{fill:var(--soft);font-size:11.5px}svg .small{font-size:9.5px}svg .strong{font-weight:650}
svg .value{font-size:12.5px}
svg line,svg polyline{fill:none;stroke-linecap:round;stroke-linejoin:round}
.grid{stroke:var(--grid)}.axis{stroke:var(--line)}
.reference{stroke:var(--orange);stroke-width:1.6;stroke-dasharray:5 4}
.bar{stroke:var(--soft);stroke-width:1.6;stroke-dasharray:1 4}
.whisker{stroke:var(--blue);stroke-width:2.4;opacity:.65}.mark{fill:var(--blue);stroke:var(--blue);stroke-width:2}
.whisker.summary{stroke:var(--ink);opacity:.8}.mark.summary{fill:var(--ink);stroke:var(--ink)}
.whisker.worst{stroke:var(--red)}.mark.worst{fill:var(--red);stroke:var(--red)}
.whisker.origin{stroke:var(--orange)}.mark.origin{fill:var(--orange);stroke:var(--orange)}
.whisker.other{stroke:var(--soft)}.mark.other{fill:var(--soft);stroke:var(--soft)}
.mark.hollow{fill:var(--card)}
.curve{stroke:var(--blue);stroke-width:2}.curve.summary{stroke-width:3}
.tables{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:0 20px}
.box{overflow:auto;max-height:36rem;border:1px solid var(--line);border-radius:10px;
background:linear-gradient(to left,var(--card) 40%,transparent) right/48px 100% no-repeat local,
linear-gradient(to left,var(--shade),transparent) right/18px 100% no-repeat scroll,var(--card)}
.box:focus-visible{outline:3px solid var(--blue)}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums;
overflow-wrap:normal}
th,td{padding:6px 12px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
tbody tr:last-child>*{border-bottom:0}
thead th{
white-space:normal;overflow-wrap:normal;position:sticky;top:0;background:var(--card);
color:var(--soft);font-weight:600;border-bottom:1px solid
var(--line);vertical-align:bottom;z-index:1}
tbody th{position:sticky;left:0;background:var(--card);font-weight:500}
.tables th,.tables td{padding:6px 8px}
.left{text-align:left}
tr.strong>*{background:var(--blue-wash);font-weight:650}
.tabletitle{margin:22px 0 8px;font-size:1rem;font-weight:650}
.note{color:var(--soft);font-size:.87rem;margin:6px 2px 0;max-width:90ch}
footer{margin-top:56px;padding-top:18px;padding-bottom:40px;color:var(--soft);font-size:.85rem}
footer dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 16px;margin:0;border-top:1px solid var(--line);
padding-top:16px}
footer dt{font-weight:600}footer dd{margin:0}
@media (max-width:560px){.bars li{grid-template-columns:1fr auto}.bars .what{grid-column:1/-1;grid-row:2}
.bars .numbers span{display:block}
.verdict{padding:14px 16px}figure{padding:12px 10px}h2{margin-top:44px}
.answer small{display:block;margin-top:6px;line-height:1.35;font-size:1rem}
.tiles{grid-template-columns:1fr 1fr;gap:8px}.tile{padding:10px 12px}.tile dd{font-size:1.25rem}}
@media print{body{font-size:10.5pt;background:#fff}main,header,footer{max-width:none;padding:0}nav{display:none}
.wide{display:block}.narrow{display:none}.box{overflow:visible;max-height:none}thead th,tbody th{position:static}
figure,.verdict,.tile,.bars,tr,.panels svg{break-inside:avoid}h2,h2+p,.tabletitle{break-after:avoid}
table{font-size:8pt}:is(th,td):is(th,td){padding:3px 6px;white-space:normal}.tables{display:block}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
