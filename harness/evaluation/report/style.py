"""The page's style sheet: light and dark, phone to desktop, print.

Colours are Okabe and Ito's; whatever a colour says, a shape, a line's pattern or a word says too.
"""

STYLE = """
:root{color-scheme:light;--paper:#fbfaf7;--card:#fff;--ink:#1a1f29;--soft:#5a6270;--line:#dedcd5;--grid:#ebe9e3;
--blue:#0072b2;--orange:#c27700;--green:#007a58;--red:#b54a00;--blue-wash:#e8f2f8;--green-wash:#e5f4ef;
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
p{margin:.5em 0}main p{max-width:80ch}
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
.tile dd.status{font-size:1.2rem}
.tile dd.more{font-size:.85rem;font-weight:400;color:var(--soft);letter-spacing:0}
.bars{list-style:none;margin:14px 0;padding:0;border:1px solid var(--line);border-radius:10px;background:var(--card)}
.bars li{display:grid;grid-template-columns:7.2em 1fr 168px 12.5em;gap:2px 16px;padding:9px 16px;
align-items:center}
.picture svg{margin:0}
.bars li+li{border-top:1px solid var(--grid)}
.status{font-weight:650;white-space:nowrap}.what{text-wrap:pretty}
.bars .numbers{font-variant-numeric:tabular-nums;white-space:nowrap}
.bars .numbers{text-align:right}.bars .numbers span{color:var(--soft);font-size:.9em}
.bars .numbers .bound{display:block;white-space:normal;line-height:1.25}.brief,.bound i{display:none}
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
.narrow svg{width:100%;max-width:420px}
@media (min-width:900px){.wide{display:block}.narrow{display:none}}
.panels{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(176px,46%),1fr));gap:14px 12px}
.panels.large{grid-template-columns:repeat(auto-fit,minmax(min(260px,100%),1fr));gap:18px 24px}
.panels.two{grid-template-columns:repeat(auto-fit,minmax(min(330px,100%),1fr));gap:22px 28px}
.panels svg{width:100%;max-width:220px}.panels.two svg{max-width:390px}.panels.large svg{max-width:400px}
svg text{fill:currentColor;font-variant-numeric:tabular-nums}
svg .tick{fill:var(--soft);font-size:11.5px}svg .small{font-size:11.5px}svg .strong{font-weight:650}
svg .value{font-size:12.5px}svg .over{paint-order:stroke;stroke:var(--card);stroke-width:5px;stroke-linejoin:round}
svg line,svg polyline{fill:none;stroke-linecap:round;stroke-linejoin:round}
.grid{stroke:var(--grid)}.axis{stroke:var(--line)}
.reference{stroke:var(--orange);stroke-width:1.6;stroke-dasharray:5 4}
.bar{stroke:var(--soft);stroke-width:1.6;stroke-dasharray:1 4}
.thin{stroke:var(--blue);stroke-width:1;opacity:.8}.thin.worst{stroke:var(--red)}
.allowed{fill:var(--green-wash)}.threshold{stroke:var(--ink);stroke-width:2}
.joint{stroke:var(--soft);stroke-width:1;stroke-dasharray:2 3}.front{stroke:var(--green);stroke-width:10;opacity:.4}
.step{stroke-width:1.6}.step.gain{fill:var(--blue);stroke:var(--blue)}.step.loss{fill:var(--orange);stroke:var(--orange)}
.step.hollow{fill:var(--card);stroke-dasharray:4 3}
svg .stamp{fill:var(--yellow);font-size:14px;font-weight:650;letter-spacing:.02em}svg .soft{fill:var(--soft)}
.whisker{stroke:var(--blue);stroke-width:2.4;opacity:.65}.mark{fill:var(--blue);stroke:var(--blue);stroke-width:2}
.whisker.summary,.whisker.base{stroke:var(--ink);opacity:.8}
.mark.summary,.mark.base{fill:var(--ink);stroke:var(--ink)}
.whisker.worst{stroke:var(--red)}.mark.worst{fill:var(--red);stroke:var(--red)}
.whisker.origin{stroke:var(--orange)}.mark.origin{fill:var(--orange);stroke:var(--orange)}
.whisker.other{stroke:var(--soft)}.mark.other{fill:var(--soft);stroke:var(--soft)}
.whisker.few{stroke:var(--soft);stroke-width:1.6;stroke-dasharray:3 4}
.mark.few{fill:var(--card);stroke:var(--soft);stroke-dasharray:2 2}
.whisker.reached,.mark.reached{stroke:var(--green)}.mark.reached{fill:var(--green)}
.whisker.missed,.mark.missed{stroke:var(--red)}.mark.missed{fill:var(--red)}
.whisker.undecided,.mark.undecided{stroke:var(--yellow)}
.mark.hollow{fill:var(--card)}
.curve{stroke:var(--blue);stroke-width:2}.curve.summary{stroke-width:3}
.curve.origin{stroke:var(--orange);stroke-dasharray:6 4}.curve.other{stroke:var(--soft)}
details{margin:12px 0;border:1px solid var(--line);border-radius:10px;background:var(--card)}
summary{padding:9px 14px;cursor:pointer;font-weight:600;font-size:.95rem}
summary:focus-visible{outline:3px solid var(--blue);border-radius:10px}
details .box{border-width:1px 0 0;border-radius:0 0 10px 10px}details .note{margin:8px 14px 10px}
details .pairs{padding:0 12px 12px}
.pairs{display:grid;gap:14px;margin:0 0 14px}
.pair{border:1px solid var(--line);border-radius:10px;background:var(--card);padding:12px 16px;min-width:0}
.pair h3{margin:0;font-size:1.02rem;line-height:1.35}.pair .note{margin:2px 0 8px}
.sides{display:grid;grid-template-columns:1fr 1fr;gap:8px 28px}.sides>div{min-width:0}
.pair h4{margin:0 0 4px;font-size:.87rem;font-weight:650;border-bottom:1px solid var(--grid);padding-bottom:3px}
.pair h4 span{color:var(--soft);font-weight:400;font-variant-numeric:tabular-nums}
.pair ol{list-style:none;margin:0;padding:0;font-size:.92rem;line-height:1.4}
.pair li{display:grid;grid-template-columns:1.4em minmax(0,1fr);padding:2px 0}
.pair li>span{overflow:hidden;display:-webkit-box;-webkit-line-clamp:3;-webkit-box-orient:vertical}
.pair .relevant{font-weight:600}.yes{color:var(--green)}.no{color:var(--soft)}
.box{overflow:auto;max-height:36rem;border:1px solid var(--line);border-radius:10px;
background:linear-gradient(to left,var(--card) 40%,transparent) right/48px 100% no-repeat local,
linear-gradient(to left,var(--shade),transparent) right/18px 100% no-repeat scroll,var(--card)}
.box:focus-visible{outline:3px solid var(--blue)}
table{border-collapse:separate;border-spacing:0;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums;
overflow-wrap:normal}
th,td{padding:6px 11px;text-align:right;white-space:nowrap;border-bottom:1px solid var(--grid)}
tbody tr:last-child>*{border-bottom:0}
thead th{
min-width:3.4em;white-space:normal;overflow-wrap:normal;position:sticky;top:0;background:var(--card);
color:var(--soft);font-weight:600;border-bottom:1px solid
var(--line);vertical-align:bottom;z-index:1}
tbody th{position:sticky;left:0;background:var(--card);font-weight:500}
.dense{font-size:.82rem}.dense :is(th,td){padding:6px 7px}
.told{font-weight:600}.missed .told{color:var(--red)}.undecided .told{color:var(--yellow)}
.reached .told{color:var(--green)}
.left{text-align:left}
tr.strong>*{background:var(--blue-wash);font-weight:650}
.tabletitle{margin:22px 0 8px;font-size:1rem;font-weight:650}
.note{color:var(--soft);font-size:.87rem;margin:6px 2px 0;max-width:90ch}
footer{margin-top:56px;padding-top:18px;padding-bottom:40px;color:var(--soft);font-size:.85rem}
footer dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 16px;margin:0;border-top:1px solid var(--line);
padding-top:16px}
footer dt{font-weight:600}footer dd{margin:0}
@media print,(max-width:899px){
.bars li{grid-template:"what what what value" "status picture more more"/6.8em 120px 1fr auto;
gap:0 12px;padding:6px 16px;line-height:1.4;align-items:start}
.bars .numbers{display:contents}.bars .numbers :is(.bound,.bound i){display:inline}
.bars .what{grid-area:what}.bars .status{grid-area:status}
.bars b{grid-area:value}.bars .picture{grid-area:picture}.picture svg{width:108px;height:16px}
.bars .numbers .more{grid-area:more;text-align:right;white-space:normal;font-size:.82em}
.more span{font-size:1em!important}.notes{font-size:.87rem;line-height:1.4;margin-top:7px}}
@media screen and (max-width:620px){
.bars li{grid-template:"what what value" "status more more" "picture more more"/6.8em 1fr auto}
.full{display:none}.bars .brief{display:inline}}
@media screen and (max-width:560px){.sides{grid-template-columns:1fr}.verdict{padding:14px 16px}
figure{padding:12px 10px}
h2{margin-top:44px}.answer small{display:block;margin-top:6px;line-height:1.35;font-size:1rem}
.tiles{grid-template-columns:1fr 1fr;gap:8px}.tile{padding:10px 12px}.tile dd{font-size:1.25rem}
.tile:last-child:nth-child(odd){grid-column:span 2}
}
@media print{@page{margin:14mm}html{font-size:12.5px}
.panels.two{grid-template-columns:1fr 1fr}
.tiles{grid-template-columns:repeat(5,1fr)}body{font-size:10pt;background:#fff}main,header,footer{max-width:none;padding:0}
nav{display:none}h2{margin-top:28px}
.wide{display:block}.narrow{display:none}.box{overflow:visible;max-height:none}thead th,tbody th{position:static}
details::details-content{content-visibility:visible;height:auto;opacity:1}summary{list-style:none}
figure,.verdict,.tile,.bars,tr,.panels svg,.pair{break-inside:avoid}h2,h2+p,.tabletitle,summary{break-after:avoid}
table{font-size:8pt}:is(th,td):is(th,td){padding:3px 6px;white-space:normal}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""
