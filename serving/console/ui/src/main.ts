import { morph } from "./dom";
import { bar, overview } from "./views";
import type { Overview } from "./types";

// After this long without a new document the figures are greyed, in milliseconds.
const OLD = 5000;

const root = document.documentElement;
const url = new URL(location.href);
let data: Overview | null = null;
let got = 0; // performance.now() of the last document
let problem = "";
let paused = url.searchParams.has("paused");
let cursor: number | null = null;
let stream: EventSource | null = null;

function draw(): void {
  const age = (performance.now() - got) / 1000;
  const state = data === null ? "lost" : paused ? "paused" : age * 1000 > OLD ? "old" : "live";
  morph(document.querySelector("#bar")!, bar(data, { state, age, problem }));
  root.classList.toggle("stale", state === "old" || state === "paused");
  const main = document.querySelector("#main")!;
  if (data) {
    morph(main, overview(data, { width: chartWidth(), cursor }));
    if (!root.dataset["painted"]) root.dataset["painted"] = String(Math.round(performance.now())); // ms from navigation to figures
  }
}

// chartWidth is measured, so that text in the chart keeps its size.
function chartWidth(): number {
  const e = document.querySelector(".col.wide");
  return e ? e.clientWidth - 34 : 900;
}

function take(text: string): void {
  if (paused && data) return;
  data = JSON.parse(text) as Overview;
  got = performance.now();
  problem = "";
  draw();
}

// said is the message of a refusal.
function said(text: string): string {
  return (JSON.parse(text) as { error: { message: string } }).error.message;
}

function connect(): void {
  stream?.close();
  stream = new EventSource("/api/live");
  stream.addEventListener("overview", (e) => take((e as MessageEvent<string>).data));
  stream.addEventListener("problem", (e) => {
    problem = said((e as MessageEvent<string>).data);
    draw();
  });
  stream.addEventListener("full", () => { // newer viewers have the places: poll until one is free
    stream?.close();
    setTimeout(connect, 10_000);
    void poll();
  });
  stream.onerror = () => {
    if (stream?.readyState === EventSource.CLOSED) { // refused: poll until a stream is free
      setTimeout(connect, 10_000);
      void poll();
    }
  };
}

async function poll(): Promise<void> {
  const r = await fetch("/api/overview");
  const text = await r.text();
  if (r.ok) take(text);
  else if (r.status === 401) location.assign("/login");
  else { problem = said(text); draw(); }
}

function theme(): void {
  const dark = root.dataset["theme"] ? root.dataset["theme"] === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset["theme"] = dark ? "light" : "dark";
  localStorage.setItem("theme", root.dataset["theme"]);
}

function pause(): void {
  paused = !paused;
  if (paused) url.searchParams.set("paused", "1");
  else url.searchParams.delete("paused");
  history.replaceState(null, "", url);
  draw();
}

function move(to: number | null): void {
  cursor = to;
  draw();
}

document.addEventListener("click", (e) => {
  const b = (e.target as Element).closest("button");
  if (b?.id === "theme") theme();
  if (b?.id === "pause") pause();
});
document.addEventListener("keydown", (e) => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (e.key === "t") theme();
  if (e.key === "p") pause();
  const chart = document.activeElement?.closest<HTMLElement>("[data-chart]");
  if (!chart) return;
  const n = Number(chart.dataset["chart"]);
  if (e.key === "ArrowLeft" || e.key === "ArrowRight") {
    e.preventDefault();
    move(Math.max(0, Math.min(n - 1, (cursor ?? n) + (e.key === "ArrowLeft" ? -1 : 1))));
  }
  if (e.key === "Escape") move(null);
});
document.addEventListener("mousemove", (e) => {
  const chart = (e.target as Element).closest<HTMLElement>("[data-chart]");
  if (!chart) { if (cursor !== null && !document.activeElement?.closest("[data-chart]")) move(null); return; }
  const box = chart.getBoundingClientRect(), l = Number(chart.dataset["left"]), r = Number(chart.dataset["right"]), n = Number(chart.dataset["chart"]);
  const to = Math.round(((e.clientX - box.left - l) / (box.width - l - r)) * (n - 1));
  if (to !== cursor) move(Math.max(0, Math.min(n - 1, to)));
});
addEventListener("resize", draw);

const saved = localStorage.getItem("theme");
if (saved) root.dataset["theme"] = saved;
setInterval(draw, 1000); // ages grow without new data
draw();
connect();
