package ingest

import (
	"github.com/prometheus/client_golang/prometheus"

	"ctrloop/schemas"
)

// outcomes of requests to the edge.
const (
	outcomeOK         = "ok"
	outcomePartial    = "partial"
	outcomeBad        = "bad"
	outcomeTooLarge   = "too_large"
	outcomeOverloaded = "overloaded"
	outcomeUnacked    = "unacknowledged"
)

func deadReasons() []schemas.DeadLetterReason {
	return []schemas.DeadLetterReason{
		schemas.DeadMalformed, schemas.DeadUnknownSchema, schemas.DeadOversized,
		schemas.DeadBadID, schemas.DeadBadTime, schemas.DeadBadField,
	}
}

type edgeMetrics struct {
	requests *prometheus.CounterVec
	accepted *prometheus.CounterVec
	rejected *prometheus.CounterVec
	inFlight prometheus.GaugeFunc
}

func newEdgeMetrics(reg prometheus.Registerer, inFlight func() float64) *edgeMetrics {
	m := &edgeMetrics{
		requests: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "ctrloop_edge_requests_total", Help: "Requests to POST /v1/events, by outcome."},
			[]string{"outcome"},
		),
		accepted: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "ctrloop_edge_accepted_events_total", Help: "Events acknowledged by Kafka, by kind."},
			[]string{"kind"},
		),
		rejected: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "ctrloop_edge_rejected_events_total", Help: "Events refused and reported to the sender, by reason."},
			[]string{"reason"},
		),
		inFlight: prometheus.NewGaugeFunc(
			prometheus.GaugeOpts{
				Name: "ctrloop_edge_in_flight_bytes",
				Help: "Decoded bodies that wait for Kafka; bounded by edge.max_in_flight_bytes.",
			},
			inFlight,
		),
	}
	for _, r := range deadReasons() {
		m.rejected.WithLabelValues(string(r))
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.accepted, m.rejected, m.inFlight)
	}
	return m
}

type serviceMetrics struct {
	read         *prometheus.CounterVec // committed reads of the raw topics, by topic
	routed       *prometheus.CounterVec // by kind; a watermark counts as routed
	dropped      *prometheus.CounterVec // to dlq.v1, by reason
	clamped      prometheus.Counter
	lost         *prometheus.CounterVec // by topic
	transactions *prometheus.CounterVec
	punctuations prometheus.Counter
	lowWatermark prometheus.Gauge
	buffered     prometheus.Gauge
	paused       prometheus.Gauge
	owned        prometheus.Gauge
	unproven     prometheus.Gauge
	foreignSalt  prometheus.Gauge
}

func newServiceMetrics(reg prometheus.Registerer) *serviceMetrics {
	m := &serviceMetrics{
		read: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Name: "ctrloop_ingest_read_records_total",
				Help: "Raw records whose transaction was committed. Equals routed plus dropped.",
			},
			[]string{"topic"},
		),
		routed: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Name: "ctrloop_ingest_routed_events_total",
				Help: "Events committed to imp.v1 and clk.v1, and watermarks taken, by kind.",
			},
			[]string{"kind"},
		),
		dropped: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "ctrloop_ingest_dropped_records_total", Help: "Records committed to dlq.v1, by reason."},
			[]string{"reason"},
		),
		clamped: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "ctrloop_ingest_clamped_clicks_total", Help: "Clicks from the future whose time was set back."},
		),
		lost: prometheus.NewCounterVec(
			prometheus.CounterOpts{
				Name: "ctrloop_ingest_lost_records_total",
				Help: "Raw records, ends of transactions included, that were there and not taken when their topic was deleted, by topic.",
			},
			[]string{"topic"},
		),
		transactions: prometheus.NewCounterVec(
			prometheus.CounterOpts{Name: "ctrloop_ingest_transactions_total", Help: "Transactions, by outcome."},
			[]string{"outcome"},
		),
		punctuations: prometheus.NewCounter(
			prometheus.CounterOpts{Name: "ctrloop_ingest_punctuations_total", Help: "Low watermarks sent, each into every partition."},
		),
		lowWatermark: prometheus.NewGauge(
			prometheus.GaugeOpts{Name: "ctrloop_ingest_low_watermark_seconds", Help: "Low watermark sent last, Unix seconds of event time."},
		),
		buffered: prometheus.NewGauge(
			prometheus.GaugeOpts{Name: "ctrloop_ingest_buffered_events", Help: "Events read and held back by the merge."},
		),
		paused: prometheus.NewGauge(
			prometheus.GaugeOpts{Name: "ctrloop_ingest_paused_partitions", Help: "Raw partitions paused because they are ahead of the merge."},
		),
		owned: prometheus.NewGauge(
			prometheus.GaugeOpts{Name: "ctrloop_ingest_partitions", Help: "Raw partitions that this instance reads."},
		),
		unproven: prometheus.NewGauge(
			prometheus.GaugeOpts{
				Name: "ctrloop_ingest_unproven_partitions",
				Help: "Raw partitions that give nothing and of which no broker says that they end there: they hold up the others.",
			},
		),
	}
	m.foreignSalt = prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "ctrloop_ingest_foreign_salt_partitions",
		Help: "Raw partitions that an instance with another ingest.user_salt has committed last: users are two there.",
	})
	for _, r := range deadReasons() {
		m.dropped.WithLabelValues(string(r))
	}
	for _, topic := range rawTopics() {
		m.lost.WithLabelValues(topic)
	}
	if reg != nil {
		reg.MustRegister(m.read, m.routed, m.dropped, m.clamped, m.transactions, m.punctuations, m.lowWatermark, m.buffered, m.paused, m.owned,
			m.unproven, m.lost, m.foreignSalt)
	}
	return m
}
