// Package overview gathers what the console's page of that name shows, from the parts of the process that shows it. It works only while
// somebody looks: what is in memory is read at each call, what has to be asked for (warehouse, broker) comes from the background.
// A part that cannot be read leaves its place empty and says so in a stage or an alert; the page itself never fails.
//
// The services of the loop do not know each other, so what is not of serving comes as plain figures, see Parts.
package overview

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"ctrloop/internal/catalogue"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
	"ctrloop/schemas/control"
	"ctrloop/serving"
	"ctrloop/serving/console"
	"ctrloop/serving/experiment"
)

// Part is a service that a process may run.
type Part string

// Parts of the loop.
const (
	Ingest  Part = "ingest"
	Joiner  Part = "joiner"
	Sink    Part = "sink"
	Pairer  Part = "pairer"
	Trainer Part = "trainer"
	Serving Part = "serving"
)

// Presence says whether a process runs a part.
type Presence int

// Presences. The page is there before all parts have started: what they are built of may be asked only when they are up.
const (
	Elsewhere Presence = iota // not in this process
	Starting                  // in this process, and not started yet
	Up                        // started
)

// Parts are what the page is made of: the process that shows it gives them. A function of a part is called only while the part is Up;
// Warehouse and Experiments may be nil.
type Parts struct {
	Instance    console.Instance // without the uptime
	Started     time.Time        // of the process
	EventClock  bool             // event time is not the time of this machine
	Partitions  int              // of the topics
	Window      time.Duration    // of the join
	PairEvery   time.Duration    // between two looks of the pairer
	GuardMargin float64          // relative loss that a rollout's guard tolerates

	Presence    func(Part) Presence
	Control     func() *control.State
	Creatives   func() []schemas.Creative
	Catalogue   *catalogue.Catalogue
	Warehouse   *warehouse.DB
	Counters    prometheus.Gatherer // of the process
	Join        func() Join
	Pairing     func() Pairing
	Jobs        Jobs
	RawLag      func(context.Context) (int64, error)                   // records that ingest has not read
	SinkLag     func(context.Context) (int64, error)                   // records that are not in the warehouse
	Audit       func(ctx context.Context, before int64) (int64, error) // minutes before a time (Unix seconds) in which labels differ
	Serving     *serving.Service
	Experiments *experiment.Service
}

// Join is the account of the join's partitions that this process has.
type Join struct {
	Partitions []Partition
	Ledger     console.Ledger
	Labels     int64 // made
	Dropped    int64 // events that took no further part
	Balanced   bool  // every equation of every partition closes
}

// Partition is one of the join's. Times are event time, Unix ms; 0: none yet.
type Partition struct {
	Number                int32
	WatermarkMS, NewestMS int64
	Problem               string // an equation that does not close
}

// Pairing is the pairer's last look.
type Pairing struct {
	At     time.Time // zero: none yet
	ToMS   int64     // newest evidence, event time; 0: it did not ask for any
	Reason string    // why it made no data set
	// Problem of the evidence: a ledger that does not close, or hours that differ from the warehouse's; "" for none.
	Problem string
}

// Jobs know the training jobs of this process.
type Jobs interface {
	Progress(job string) string // the last point of its curve; "" before the first
	JobDir(job string) string
}
