import { h } from "./dom";

// A scale maps values to per cent of a track's width.
export interface Scale { min: number; max: number }

export const at = (sc: Scale, x: number): string => `${Math.max(0, Math.min(100, (100 * (x - sc.min)) / (sc.max - sc.min)))}%`;

// around is a scale that holds the values with some air, and zero if asked.
export function around(values: (number | null)[], zero = false): Scale {
  const v = values.filter((x): x is number => x !== null && Number.isFinite(x));
  if (zero) v.push(0);
  if (v.length === 0) return { min: 0, max: 1 };
  let min = Math.min(...v), max = Math.max(...v);
  const air = (max - min) * 0.08 || Math.abs(max) * 0.1 || 0.01;
  min -= air; max += air;
  return { min, max };
}

// ticks at round values inside the scale, about n of them.
export function ticks(sc: Scale, n: number): number[] {
  const raw = (sc.max - sc.min) / n, mag = 10 ** Math.floor(Math.log10(raw));
  const step = mag * ([1, 2, 5, 10].find((m) => m * mag >= raw) ?? 10);
  const out: number[] = [];
  for (let x = Math.ceil(sc.min / step) * step; x <= sc.max; x += step) out.push(Math.abs(x) < step / 1e6 ? 0 : x);
  return out;
}

// whisker draws an interval with its estimate. An end that is not known (null) runs off the scale with an arrow.
export function whisker(sc: Scale, low: number | null, mid: number | null, high: number | null, cls: string, label: string): HTMLElement {
  const l = low ?? sc.min, r = high ?? sc.max;
  return h("span", { class: `whisker ${cls}`, role: "img", "aria-label": label, title: label },
    h("i", { class: `line${low === null || low < sc.min ? " open-l" : ""}${high === null || high > sc.max ? " open-r" : ""}`, style: { left: at(sc, l), right: `calc(100% - ${at(sc, r)})` } }),
    mid === null ? null : h("i", { class: "dot", style: { left: at(sc, mid) } }));
}
