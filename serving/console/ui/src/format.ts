import type { Interval } from "./types";

const whole = new Intl.NumberFormat("en-GB", { maximumFractionDigits: 0 });
const compact = new Intl.NumberFormat("en-GB", { notation: "compact", maximumSignificantDigits: 3 });

export const none = "–";

export const count = (n: number): string => whole.format(n);
export const short = (n: number): string => (Math.abs(n) < 100_000 ? whole.format(n) : compact.format(n));

export function rate(n: number | null): string {
  if (n === null) return none;
  if (n === 0) return "0";
  return n < 10 ? n.toPrecision(2) : short(n);
}

// percent of a fraction, with as many digits as a click-through rate needs.
export const percent = (x: number | null, digits = 2): string => (x === null ? none : (100 * x).toFixed(digits));

export function signed(x: number | null, digits = 1): string {
  if (x === null) return none;
  const s = (100 * Math.abs(x)).toFixed(digits);
  return (Number(s) === 0 ? "±" : x < 0 ? "−" : "+") + s;
}

export const interval = (v: Interval): string => (v.ctr_low === null || v.ctr_high === null ? none : `${percent(v.ctr_low)} to ${percent(v.ctr_high)}`);

// duration of seconds, in at most two units.
export function duration(s: number | null): string {
  if (s === null) return none;
  if (s < 0) return `−${duration(-s)}`;
  if (s < 0.0995) return `${Math.round(s * 1000)} ms`;
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 90) return `${Math.round(s)} s`;
  const min = Math.round(s / 60);
  if (min < 120) return `${min} min`;
  if (min < 48 * 60) return min % 60 ? `${Math.floor(min / 60)} h ${min % 60} min` : `${min / 60} h`;
  return `${Math.round(min / 1440)} days`;
}

export function p(x: number | null): string {
  if (x === null) return none;
  if (x < 0.0001) return "< 0.0001";
  return x.toFixed(x < 0.01 ? 4 : x > 0.995 ? 0 : 3);
}

const two = (n: number): string => String(n).padStart(2, "0");

// clock in UTC, as everything here: event time has no zone of the viewer's.
export const clock = (t: string): string => { const d = new Date(t); return `${two(d.getUTCHours())}:${two(d.getUTCMinutes())}`; };
export const seconds = (t: string): string => `${clock(t)}:${two(new Date(t).getUTCSeconds())}`;
export const stamp = (t: string): string => `${t.slice(0, 10)} ${seconds(t)} UTC`;

