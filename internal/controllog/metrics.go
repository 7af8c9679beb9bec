package controllog

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	commands *prometheus.CounterVec
	offset   prometheus.Gauge
	behind   prometheus.Gauge
	// snapshots by result
	snapshots *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) metrics {
	m := metrics{
		commands: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ctrloop_controllog_commands_total",
			Help: "Commands read from control.v1, by outcome of the fold: applied, repeated, rejected, unreadable.",
		}, []string{"outcome"}),
		offset: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ctrloop_controllog_offset_records",
			Help: "Offset of the last command folded.",
		}),
		behind: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "ctrloop_controllog_newer_commands",
			Help: "Commands of a format that this release does not know; above 0 it holds no role and decides nothing: upgrade it.",
		}),
		snapshots: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "ctrloop_controllog_snapshots_total",
			Help: "Snapshots of the control plane that this process wrote, by result: written, failed.",
		}, []string{"result"}),
	}
	if reg != nil {
		reg.MustRegister(m.commands, m.offset, m.behind, m.snapshots)
	}
	return m
}
