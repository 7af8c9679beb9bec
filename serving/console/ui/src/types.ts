// The document of GET /api/overview. serving/console/overview.go defines it and says what each field means; a Go test
// holds the two lists of names against each other.

export interface Interval { ctr: number | null; ctr_low: number | null; ctr_high: number | null }

export interface Instance { name: string; version: string; mode: string; uptime_seconds: number }

export type StageState = "starting" | "running" | "idle" | "degraded" | "stopped";

export interface Stage {
  name: string; state: StageState; rate_per_second: number | null; rate_of: string; total: number;
  lag_seconds: number | null; lag_of: string; dropped: number; detail: string; age_seconds: number;
}

export interface Freshness { newest_click: string | null; age_seconds: number | null; why: string }

export interface Champion extends Interval {
  version: string; since: string; previous: string; note: string; pairs: number; impressions: number; clicks: number;
}

export interface Arm extends Interval { units: number; impressions: number; clicks: number }

export interface Rollout {
  id: string; running: boolean; unit: string; control_version: string; treatment_version: string; steps: number[]; index: number;
  stepped: string; action: string; rule: string; why: string; figures_step: number; control: Arm; treatment: Arm;
  lift_relative: number | null; lift_relative_low: number | null; lift_relative_high: number | null;
  p_always_valid: number | null; srm_p: number | null; alpha: number; mde_relative: number | null; guard_margin: number;
  generations: number; generations_failed: number;
}

export interface CTRPoint extends Interval { time: string; impressions: number; clicks: number }

export interface Mark { time: string; kind: string; label: string }

export interface Creative extends Interval {
  id: string; product: string; title: string; category: string; model_version: string; variant: string; description: string;
  image: string; blocked: string; created: string; impressions: number; clicks: number;
}

export interface Ledger { received: number; positive: number; negative: number; open: number; duplicate: number; late: number; difference: number }

export interface LogEvent { time: string; type: string; entity: string; actor: string; note: string }

export interface Alert { severity: string; title: string; since: string; runbook: string }

export interface Stale { part: string; age_seconds: number; why: string }

export interface Overview {
  time: string; event_time: string | null; instance: Instance; stages: Stage[]; freshness: Freshness; champion: Champion | null;
  rollout: Rollout | null; ctr: CTRPoint[] | null; marks: Mark[] | null; creatives: Creative[] | null; ledger: Ledger;
  events: LogEvent[] | null; alerts: Alert[] | null; stale: Stale[] | null;
}
