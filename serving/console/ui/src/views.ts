import { h } from "./dom";
import { ctrChart } from "./chart";
import { clock, count, duration, interval, none, p, percent, rate, seconds, short, signed, stamp } from "./format";
import { around, at, ticks, whisker } from "./whisker";
import type { Arm, Creative, Overview, Rollout, Stage } from "./types";

export interface View { width: number; cursor: number | null }

const label: Record<string, string> = { ingest: "Ingest", join: "Join", pair: "Pair", train: "Train", serve: "Serve" };
const does: Record<string, string> = { ingest: "events in", join: "clicks to labels", pair: "labels to preferences", train: "preferences to models", serve: "models to ads" };
// The shape says the state as well as the colour does.
const shape: Record<string, string> = { starting: "◌", running: "●", idle: "○", degraded: "▲", stopped: "■" };

function panel(id: string, title: string, note: string | null, ...body: (HTMLElement | null)[]): HTMLElement {
  return h("section", { class: "panel", id, "data-key": id, "aria-labelledby": `${id}-h` },
    h("div", { class: "head" }, h("h2", { id: `${id}-h` }, title), note ? h("span", { class: "note" }, note) : null), ...body);
}

const empty = (what: string, command: string): HTMLElement => h("div", { class: "empty" }, h("p", {}, what), h("code", {}, command));

export function overview(o: Overview, v: View): HTMLElement {
  return h("main", { id: "main", tabindex: -1 }, headline(o), alerts(o), strip(o), h("div", { class: "cols" },
    h("div", { class: "col wide" }, rollout(o), ctr(o, v)),
    h("div", { class: "col" }, champion(o), ledger(o), events(o))), creatives(o));
}

function headline(o: Overview): HTMLElement {
  const f = o.freshness;
  if (f.age_seconds === null || f.newest_click === null)
    return h("section", { class: "headline", "data-key": "headline", "aria-label": "Freshness" },
      h("p", { class: "big" }, "The live model has not learned from a click yet"),
      h("p", { class: "under" }, f.why || "No version that was trained on clicks is champion.", " The first cycle begins when enough labels have come."));
  return h("section", { class: "headline", "data-key": "headline", "aria-label": "Freshness" },
    h("p", { class: "big" }, "Newest click the live model has learned from: ", h("b", { "data-live": true, id: "freshness" }, `${duration(f.age_seconds)} ago`)),
    h("p", { class: "under" }, `clicked ${stamp(f.newest_click)}`, o.event_time ? `, newest event ${seconds(o.event_time)}` : "", " (event time)"));
}

function alerts(o: Overview): HTMLElement | null {
  if (!o.alerts?.length) return null;
  return h("ul", { class: "alerts", "data-key": "alerts", role: "alert" }, ...o.alerts.map((a) =>
    h("li", { class: a.severity }, h("b", {}, a.severity === "page" ? "■ Act now" : "▲ Look"), h("span", {}, a.title), h("time", { datetime: a.since }, `since ${clock(a.since)}`),
      a.runbook ? h("a", { href: a.runbook }, "Runbook") : null)));
}

function strip(o: Overview): HTMLElement {
  return h("section", { class: "strip", "data-key": "strip", "aria-label": "The loop" }, h("ol", {}, ...o.stages.map(stage)));
}

function stage(st: Stage): HTMLElement {
  const old = st.age_seconds > 30;
  return h("li", { class: `stage ${st.state}${old ? " stale" : ""}`, "data-key": st.name, id: `stage-${st.name}` },
    h("div", { class: "name" }, h("b", {}, label[st.name] ?? st.name), h("span", {}, does[st.name] ?? "")),
    h("div", { class: "state" }, h("i", { "aria-hidden": "true" }, shape[st.state] ?? "?"), st.state),
    h("div", { class: "rate" }, h("b", { "data-live": true }, rate(st.rate_per_second)), h("span", {}, `${st.rate_of || "events"}/s`)),
    h("dl", {},
      h("div", {}, h("dt", {}, "total"), h("dd", {}, short(st.total))),
      h("div", { title: st.lag_of || null }, h("dt", {}, "lag"), h("dd", {}, duration(st.lag_seconds))),
      h("div", { class: st.dropped > 0 && st.state === "degraded" ? "bad" : "" }, h("dt", {}, "dropped"), h("dd", { "data-live": true }, short(st.dropped)))),
    h("p", { class: "detail", title: st.detail || null }, old ? `figures are ${duration(st.age_seconds)} old` : st.detail || " "));
}

function rollout(o: Overview): HTMLElement {
  const r = o.rollout;
  if (!r) return panel("rollout", "Rollout", null, empty("No model has been tested against another yet. A version that passes its gates starts one by itself, once there are enough labels to learn from.", "ctrloop experiment create --help"));
  return panel("rollout", r.running ? "Rollout" : "Latest rollout", r.id,
    h("div", { class: "verdict" }, h("span", { class: `pill ${r.action}` }, `${pill[r.action] ?? "○"} ${r.action}`), h("p", {}, h("b", {}, r.rule.replaceAll("_", " ")), r.why ? `: ${r.why}` : "")),
    steps(r), arms(r), lift(r), health(r));
}

const pill: Record<string, string> = { promote: "▲", rollback: "▼", hold: "●", step: "▶", inconclusive: "◆" };

function steps(r: Rollout): HTMLElement {
  return h("ol", { class: "steps", "aria-label": "Steps of the ramp, share of the treatment" }, ...r.steps.map((share, i) => {
    const state = i < r.index || !r.running && i === r.index && r.action === "promote" ? "done" : i === r.index ? "now" : "ahead";
    return h("li", { class: state, "data-key": `s${i}`, "aria-current": i === r.index ? "step" : null, title: state === "now" ? `since ${stamp(r.stepped)}` : null }, h("i", { "aria-hidden": "true" }), h("span", {}, `${percent(share, share < 0.01 ? 1 : 0)} %`));
  }));
}

function arms(r: Rollout): HTMLElement {
  const sc = around([r.control.ctr_low, r.control.ctr_high, r.treatment.ctr_low, r.treatment.ctr_high].map((x) => x));
  const row = (name: string, version: string, a: Arm): HTMLElement => h("tr", { class: name },
    h("th", { scope: "row" }, h("i", { class: "swatch", "aria-hidden": "true" }), name), h("td", { class: "version" }, version),
    h("td", {}, count(a.units)), h("td", {}, count(a.impressions)), h("td", {}, count(a.clicks)),
    h("td", { "data-live": true }, h("b", {}, percent(a.ctr))), h("td", { class: "ci" }, interval(a)),
    h("td", { class: "plot" }, a.ctr === null ? none : whisker(sc, a.ctr_low, a.ctr, a.ctr_high, name, `${name}: ${percent(a.ctr)} %, ${interval(a)}`)));
  return h("div", { class: "scroll" }, h("table", { class: "arms" },
    h("thead", {}, h("tr", {}, h("th", {}, "arm"), h("th", { class: "version" }, "model version"), h("th", {}, `${r.unit}s`), h("th", {}, "impressions"), h("th", {}, "clicked"),
      h("th", {}, "CTR %"), h("th", { class: "ci" }, `${percent(1 - r.alpha, 0)} % interval`), h("th", { class: "plot" }, ""))),
    h("tbody", {}, row("control", r.control_version, r.control), row("treatment", r.treatment_version, r.treatment))));
}

function lift(r: Rollout): HTMLElement {
  const { lift_relative: mid, lift_relative_low: low, lift_relative_high: high } = r;
  if (mid === null || low === null) return h("p", { class: "quiet" }, "No lift yet: both arms need clicks. The first ones count once their click window has closed.");
  // An interval wider than the estimate deserves is cut at the axis and drawn open.
  const reach = Math.max(0.1, Math.min(2, Math.max(Math.abs(low), Math.abs(high ?? 2))), Math.abs(mid) * 1.2);
  const sc = around([Math.max(low, -reach), Math.min(high ?? reach, reach), -r.guard_margin], true);
  const marks = ticks(sc, 6);
  const text = `${signed(mid)} % [${signed(low)}, ${high === null ? "no bound" : signed(high)}]`;
  return h("div", { class: "lift" },
    h("p", {}, h("span", {}, "Lift of the treatment, relative"), h("b", { id: "lift", "data-live": true, class: low > 0 ? "good" : high !== null && high < 0 ? "bad" : "" }, `${signed(mid)} %`),
      h("span", { class: "ci" }, `${signed(low)} to ${high === null ? "no upper bound" : `${signed(high)} %`}`), h("span", { class: "quiet" }, `at step ${percent(r.steps[r.figures_step] ?? 0, 0)} %, valid at every look`)),
    h("div", { class: "axis", role: "img", "aria-label": `Relative lift ${text}` },
      h("i", { class: "guard", style: { left: "0", width: at(sc, -r.guard_margin) }, title: `a loss of more than ${percent(r.guard_margin, 0)} % rolls back` }),
      h("i", { class: "zero", style: { left: at(sc, 0) } }),
      whisker(sc, low, mid, high, "treatment tall", text),
      ...(marks.some((t) => Math.abs(t + r.guard_margin) < (sc.max - sc.min) * 0.08) ? [] : [h("span", { class: "t g", style: { left: at(sc, -r.guard_margin) } }, `guard ${signed(-r.guard_margin, 0)} %`)]),
      ...marks.map((t) => h("span", { class: `t${t === 0 ? " z" : ""}`, style: { left: at(sc, t) } }, t === 0 ? "0" : `${signed(t, 0)} %`))));
}

function health(r: Rollout): HTMLElement {
  const item = (name: string, value: string, hint: string, bad = false): HTMLElement => h("div", { class: bad ? "bad" : "", title: hint }, h("dt", {}, name), h("dd", {}, value));
  return h("dl", { class: "health" },
    item("always-valid p", p(r.p_always_valid), "of no difference; may be read at every look"),
    item("sample ratio p", p(r.srm_p), "of units falling into the arms as planned, this step", r.srm_p !== null && r.srm_p < 0.01),
    item("detectable now", r.mde_relative === null ? none : `±${percent(r.mde_relative, 1)} %`, "true relative lift that is found with probability 0.8 at this size"),
    item("failed generations", r.generations ? `${count(r.generations_failed)} of ${count(r.generations)}` : none, "of the treatment's version", r.generations > 0 && r.generations_failed / r.generations > 0.05));
}

function ctr(o: Overview, v: View): HTMLElement {
  const pts = (o.ctr ?? []).filter((x) => x.ctr !== null);
  const body = pts.length < 2 ? empty("No impressions whose click window has closed yet, so no rate that would be fair to show.", "POST /v1/events on the edge: ctrloop status has its address")
    : ctrChart(o.ctr!, o.marks ?? [], v.width, v.cursor);
  const imp = pts.reduce((n, x) => n + x.impressions, 0), clk = pts.reduce((n, x) => n + x.clicks, 0);
  return panel("ctr", "Click-through rate", pts.length ? `% of mature impressions, event time, 95 % band · ${short(clk)} of ${short(imp)}` : null, body);
}

function champion(o: Overview): HTMLElement {
  const c = o.champion;
  if (!c) return panel("champion", "Champion", null, empty("No model answers yet: the model server starts, or does not answer.", "ctrloop status"));
  const row = (k: string, val: string | HTMLElement, t?: string): HTMLElement => h("div", { title: t ?? null }, h("dt", {}, k), h("dd", {}, val));
  return panel("champion", "Champion", null, h("p", { class: "who" }, c.version),
    h("dl", { class: "rows" }, row("since", stamp(c.since)), row("trained on", c.pairs ? `${count(c.pairs)} pairs` : "no pairs: the base model"),
      row("CTR", h("span", {}, h("b", {}, `${percent(c.ctr)} %`), ` [${interval(c)}], ${short(c.clicks)} of ${short(c.impressions)}`), "95 % interval of one look; mature impressions since it became champion"),
      row("way back", c.previous || "none"), c.note ? row("why", c.note) : h("div", { hidden: true })));
}

function ledger(o: Overview): HTMLElement {
  const l = o.ledger;
  if (!l.received) return panel("ledger", "Ledger", null, empty("No impression has reached the join yet.", "POST /v1/events on the edge: ctrloop status has its address"));
  const parts: [string, number, string][] = [["clicked", l.positive, "pos"], ["not clicked", l.negative, "neg"], ["window open", l.open, "open"], ["duplicate", l.duplicate, "dup"], ["late", l.late, "late"]];
  const total = Math.max(l.received, parts.reduce((n, x) => n + x[1], 0));
  const ok = l.difference === 0;
  return panel("ledger", "Ledger", "every impression is accounted for once",
    h("p", { class: `sum ${ok ? "good" : "bad"}`, id: "ledger-sum" }, ok ? "● closed" : `■ ${count(Math.abs(l.difference))} ${l.difference > 0 ? "missing" : "too many"}`, h("span", {}, `${count(l.received)} received`)),
    h("div", { class: "meter", role: "img", "aria-label": parts.map(([n, x]) => `${n} ${count(x)}`).join(", ") }, ...parts.map(([n, x, cls]) => x ? h("i", { class: cls, title: `${n}: ${count(x)}`, style: { flexGrow: String(x / total) } }) : null),
      ok ? null : h("i", { class: "gap", style: { flexGrow: String(Math.abs(l.difference) / total) } })),
    h("dl", { class: "legend" }, ...parts.map(([n, x, cls]) => h("div", {}, h("dt", {}, h("i", { class: cls, "aria-hidden": "true" }), n), h("dd", { "data-live": true }, count(x))))));
}

function events(o: Overview): HTMLElement {
  const list = o.events ?? [];
  if (!list.length) return panel("events", "Control log", null, empty("Nothing has been decided yet.", "ctrloop status"));
  return panel("events", "Control log", "newest first", h("ol", { class: "log", tabindex: 0, "aria-label": "Recent control events" }, ...list.map((e) =>
    h("li", { "data-key": e.time + e.type + e.entity, class: e.type.replaceAll(".", "-") }, h("time", { datetime: e.time, title: stamp(e.time) }, seconds(e.time)),
      h("p", {}, h("b", {}, e.type.replaceAll(".", " ").replaceAll("_", " ")), " ", h("span", { class: "entity" }, e.entity.replace(/^[^/]*\//, "")), h("span", { class: "why" }, e.note ? `${e.note} · ${e.actor}` : e.actor))))));
}

function creatives(o: Overview): HTMLElement {
  const list = o.creatives ?? [];
  if (!list.length) return panel("creatives", "Latest creatives", null, empty("No ad image has been made yet: the first are made once a model answers.", "POST /v1/creatives {\"products\": \"all\"}"));
  const sc = around(list.flatMap((c) => [c.ctr_low, c.ctr_high]));
  sc.min = 0;
  sc.max = Math.min(sc.max, 4 * Math.max(0.01, ...list.map((c) => c.ctr ?? 0)));
  return panel("creatives", "Latest creatives", `not an A/B result: traffic between creatives is not randomised evenly · whiskers 0 to ${percent(sc.max, 1)} %, 95 %`,
    h("ul", { class: "grid" }, ...list.map((c) => creative(c, sc))));
}

function creative(c: Creative, sc: { min: number; max: number }): HTMLElement {
  return h("li", { "data-key": c.id, class: c.variant || "plain" }, h("a", { href: `/v1/creatives/${c.id}`, title: `${c.title} (${c.category})\n${c.description}\n${c.model_version}` },
    c.blocked ? h("span", { class: "stopped", title: c.blocked }, h("b", {}, "blocked"), h("span", {}, c.blocked))
      : h("img", { src: c.image, alt: `${c.title}: ${c.description}`, width: 256, height: 256, decoding: "async" }),
    h("span", { class: "title" }, c.title),
    c.ctr === null ? h("span", { class: "quiet" }, "nothing mature yet") : h("span", { class: "num" }, h("b", { "data-live": true }, `${percent(c.ctr)} %`), h("span", {}, `${short(c.clicks)} of ${short(c.impressions)}`)),
    c.ctr === null ? h("span", { class: "whisker" }) : whisker(sc, c.ctr_low, c.ctr, c.ctr_high, c.variant || "plain", `${percent(c.ctr)} %, ${interval(c)}`),
    c.variant ? h("span", { class: "variant" }, h("i", { class: "swatch", "aria-hidden": "true" }), c.variant) : null));
}

// bar is the head of every page: what is looked at, the time of the stream, and whether the figures are live.
export function bar(o: Overview | null, live: { state: "live" | "old" | "paused" | "lost"; age: number; problem: string }): HTMLElement {
  const stale = o?.stale ?? [];
  const text = { live: "● live", paused: `❙❙ paused, ${duration(live.age)} old`, old: `▲ ${duration(live.age)} old`, lost: "■ no data" }[live.state];
  return h("header", { id: "bar" }, h("span", { class: "logo" }, "ctrloop"), h("h1", {}, "Overview"),
    o ? h("span", { class: "sub" }, [o.instance.name, o.instance.mode, o.instance.version, `up ${duration(o.instance.uptime_seconds)}`].filter(Boolean).join(" · ")) : null,
    o?.event_time ? h("span", { class: "sub clock", title: "event time: newest event seen" }, `stream ${stamp(o.event_time)}`) : null,
    live.problem ? h("span", { class: "problem", role: "status" }, live.problem) : null,
    ...stale.map((x) => h("span", { class: "problem", role: "status", "data-key": `stale-${x.part}`, title: x.why || null },
      x.age_seconds > 0 ? `▲ ${x.part}: ${duration(x.age_seconds)} old` : `▲ ${x.part}: not read yet`)),
    h("span", { class: `status ${live.state}`, id: "live", role: "status" }, text),
    h("button", { id: "pause", type: "button", "aria-pressed": live.state === "paused" ? "true" : "false", title: "pause the refresh (P)" }, live.state === "paused" ? "Resume" : "Pause"),
    h("button", { id: "theme", type: "button", title: "dark or light (T)" }, "Theme"));
}
