import { h, s } from "./dom";
import { clock, count, interval, percent, stamp } from "./format";
import { around, ticks } from "./whisker";
import type { CTRPoint, Mark } from "./types";

const H = 236, L = 50, R = 10, T = 22, B = 22;

// ctrChart draws the click-through rate of all traffic over event time: a line in its 95 % band, marks for what
// changed, and a cursor (mouse or arrow keys) that reads one bucket out.
export function ctrChart(points: CTRPoint[], marks: Mark[], width: number, cursor: number | null): HTMLElement {
  const pts = points.filter((p) => p.ctr !== null);
  const t0 = Date.parse(points[0]!.time), t1 = Date.parse(points[points.length - 1]!.time);
  const W = Math.max(320, width);
  const y = around(pts.flatMap((p) => [p.ctr_low, p.ctr_high]));
  y.min = Math.max(0, y.min);
  const X = (t: number): number => L + ((W - L - R) * (t - t0)) / Math.max(1, t1 - t0);
  const Y = (v: number): number => T + (H - T - B) * (1 - (v - y.min) / (y.max - y.min));
  const xs = pts.map((p) => X(Date.parse(p.time)).toFixed(1));
  const band = pts.length > 1 ? "M" + pts.map((p, i) => `${xs[i]} ${Y(p.ctr_high!).toFixed(1)}`).join("L") + "L" +
    pts.map((p, i) => `${xs[i]} ${Y(p.ctr_low!).toFixed(1)}`).reverse().join("L") + "Z" : "";
  const line = pts.length > 1 ? "M" + pts.map((p, i) => `${xs[i]} ${Y(p.ctr!).toFixed(1)}`).join("L") : "";
  const yTicks = ticks(y, 4), tTicks = timeTicks(t0, t1, Math.floor(W / 110));
  const inside = marks.filter((m) => Date.parse(m.time) >= t0 && Date.parse(m.time) <= t1);
  let free = -1e9; // right end of the last mark's text
  const i = cursor === null ? null : Math.max(0, Math.min(pts.length - 1, cursor));
  const sel = i === null ? null : pts[i] ?? null;
  return h("div", { class: "chart", tabindex: 0, role: "group", "aria-label": "Click-through rate over event time; arrow keys read single buckets", "data-chart": pts.length, "data-left": L, "data-right": R },
    s("svg", { viewBox: `0 0 ${W} ${H}`, width: W, height: H, "aria-hidden": "true" },
      ...yTicks.map((v) => s("g", { class: "grid" }, s("line", { x1: L, x2: W - R, y1: Y(v), y2: Y(v) }), s("text", { x: L - 8, y: Y(v) + 4, "text-anchor": "end" }, `${percent(v, 1)} %`))),
      ...tTicks.map((t) => s("text", { class: "tick", x: X(t), y: H - 6, "text-anchor": "middle" }, clock(new Date(t).toISOString()))),
      s("path", { class: "band", d: band }), s("path", { class: "ctr", d: line }),
      ...inside.map((m, n) => {
        // The text stands right of its mark, or left of it where the next mark or the edge is too near.
        const x = X(Date.parse(m.time)), wide = m.label.length * 7, next = inside[n + 1] ? X(Date.parse(inside[n + 1]!.time)) : W - R;
        const left = x + wide + 10 > next;
        const show = (left ? x - wide - 7 : x) > free;
        free = show && !left ? x + wide + 10 : x + 6;
        return s("g", { class: `mark ${m.kind}` }, s("line", { x1: x, x2: x, y1: 6, y2: H - B }), s("path", { d: `M${x - 4} 6h8l-4 6z` }),
          show ? s("text", { x: left ? x - 7 : x + 7, y: 14, "text-anchor": left ? "end" : "start" }, m.label) : null, s("title", {}, `${m.label}, ${stamp(m.time)}`));
      }),
      sel === null ? null : s("g", { class: "cursor" }, s("line", { x1: xs[i!]!, x2: xs[i!]!, y1: T - 6, y2: H - B }), s("circle", { cx: xs[i!]!, cy: Y(sel.ctr!), r: 3.5 }))),
    h("p", { class: "readout", "aria-live": "polite" }, sel === null ? "" : `${stamp(sel.time)}: ${percent(sel.ctr)} % [${interval(sel)}], ${count(sel.clicks)} of ${count(sel.impressions)}`));
}

function timeTicks(t0: number, t1: number, n: number): number[] {
  const raw = (t1 - t0) / Math.max(1, n), minute = 60_000;
  const step = [1, 5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880, 10080].map((m) => m * minute).find((m) => m >= raw) ?? 30 * 1440 * minute;
  const out: number[] = [];
  for (let t = Math.ceil(t0 / step) * step; t <= t1; t += step) out.push(t);
  return out;
}
