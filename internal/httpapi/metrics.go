package httpapi

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	reg         prometheus.Registerer
	refused     *prometheus.CounterVec
	connections *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		reg: reg,
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "ctrloop", Subsystem: "http", Name: "refused_total",
			Help: "Requests and connections refused before a service saw them, by listener and reason.",
		}, []string{"listener", "reason"}),
		connections: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "ctrloop", Subsystem: "http", Name: "open_connections", Help: "Open connections, by listener.",
		}, []string{"listener"}),
	}
	if reg != nil {
		reg.MustRegister(m.refused, m.connections)
	}
	return m
}

// bodies shows what a listener's bodies hold.
func (m *metrics) bodies(listener string, b *Budget) {
	if m.reg == nil {
		return
	}
	m.reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "ctrloop", Subsystem: "http", Name: "bodies_bytes", Help: "Bytes of bodies that are held, by listener.",
		ConstLabels: prometheus.Labels{"listener": listener},
	}, func() float64 { return float64(b.Used()) }))
}
