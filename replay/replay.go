package replay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rs/zerolog"

	"ctrloop/app"
	"ctrloop/ingest"
	"ctrloop/internal/eventlog"
	"ctrloop/internal/progress"
	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse/query"
	"ctrloop/joiner/window"
	"ctrloop/schemas"
)

// Options of a replay.
type Options struct {
	Dir        string // of the stores
	Throwaway  bool   // Dir is removed at the end: the broker is one in memory
	Home       string // of downloads
	Version    string // of this binary
	Window     time.Duration
	Partitions int32 // of a new store
	KeepOpen   bool  // leave the last windows open for the next log
	SkipBad    bool  // a row that cannot be read is counted and passed over
	Refused    func(Refusal)
	Progress   io.Writer
	Sort       bool // the log may stand in any order
	Log        zerolog.Logger
}

// Refusal is one event or row that was not taken.
type Refusal struct {
	File   string                   `json:"file"`
	Line   int64                    `json:"line"`
	Reason schemas.DeadLetterReason `json:"reason"`
	Detail string                   `json:"detail"`
	Text   string                   `json:"text"`
}

// Result accounts for a replay.
type Result struct {
	Rows          int64                              `json:"rows"`        // of the logs
	Impressions   int64                              `json:"impressions"` // sent
	Clicks        int64                              `json:"clicks"`      // sent
	Rejected      int64                              `json:"rejected"`    // rows and events that could not be used
	Rejects       map[schemas.DeadLetterReason]int64 `json:"rejects"`     // the same by reason
	Positive      int64                              `json:"positive"`
	FinalNegative int64                              `json:"final_negative"`
	Late          int64                              `json:"late"`      // came after their window had closed, harmless or not
	Duplicate     int64                              `json:"duplicate"` // impressions that the open windows held already
	Repeated      int64                              `json:"repeated"`  // events that the store had already, duplicates included
	Lost          int64                              `json:"lost"`      // late ones that are in no label
	Orphans       int64                              `json:"orphans"`   // clicks whose impression is not in the log
	Waiting       int64                              `json:"waiting"`   // events that wait for the next log, with KeepOpen
	CTR           float64                            `json:"ctr"`       // as the warehouse counts this log's time: corrected, without robots
	LedgerOK      bool                               `json:"ledger_ok"`
	WarehouseRows int64                              `json:"warehouse_rows"`
	AuditMismatch int64                              `json:"audit_mismatch"`
	Seconds       float64                            `json:"seconds"`
}

// RejectedShare is the share of what was read that could not be used.
func (r Result) RejectedShare() float64 {
	return float64(r.Rejected) / float64(max(1, r.Rows))
}

// run is a replay that is under way.
type run struct {
	opt    Options
	app    *app.App
	res    Result
	before window.Ledger                   // the counts are this replay's
	late   map[stream.TopicPartition]int64 // ends of late.v1 at the start
	oldest int64                           // event time of what was sent
	newest int64
}

// Run replays logs. A result comes with an error, too, where events were sent before it.
func Run(ctx context.Context, logs *eventlog.Reader, opt Options) (Result, error) {
	r := &run{opt: opt, res: Result{Rejects: map[schemas.DeadLetterReason]int64{}}}
	began := time.Now()
	next := logs.Next
	if opt.Sort {
		sorted, err := eventlog.Sort(func() (eventlog.Line, error) { return r.usable(logs) }, "")
		if err != nil {
			return r.res, err
		}
		defer func() { _ = sorted.Close() }() // its files are gone with their descriptors
		next = sorted.Next
	}
	a, err := app.Start(ctx, app.Options{
		Config: config(opt), Targets: []app.Target{app.Ingest, app.Joiner, app.Sink},
		Dir: opt.Dir, Throwaway: opt.Throwaway, Home: opt.Home, Version: opt.Version, Log: opt.Log,
	})
	if err != nil {
		return r.res, err
	}
	defer a.Stop()
	r.app = a
	if r.before, err = a.JoinReady(ctx); err != nil {
		return r.res, err
	}
	if r.late, err = stream.EndOffsets(ctx, a.Kafka(), schemas.TopicLate); err != nil {
		return r.res, err
	}
	f := newFeeder(r, logs.Progress)
	err = f.feed(ctx, next)
	r.res.Rows = logs.Rows()
	if err != nil {
		return r.res, err
	}
	if err := r.settle(ctx, f.promisable); err != nil {
		return r.res, err
	}
	err = r.account(ctx)
	r.res.Seconds = time.Since(began).Seconds()
	return r.res, err
}

func config(opt Options) app.Config {
	cfg := app.Default()
	cfg.Ingest.Clock = ingest.ClockEvent
	cfg.Joiner.Window = opt.Window
	cfg.Kafka.Partitions = opt.Partitions
	if opt.Throwaway {
		cfg.Kafka.Embedded = app.EmbeddedMemory
	}
	cfg.Kafka.Retention = -1 // records carry the log's times: a broker that judges age by them would delete them at once
	return cfg
}

// usable is the next event; rows that cannot be used are counted and passed over, see badRow.
func (r *run) usable(logs *eventlog.Reader) (eventlog.Line, error) {
	for {
		line, err := logs.Next()
		var bad *eventlog.RowError
		if !errors.As(err, &bad) {
			return line, err
		}
		if err := r.badRow(bad); err != nil {
			return line, err
		}
	}
}

// badRow counts a row that cannot be used. One that is not readable at all ends the replay, unless such rows are to be
// passed over: it may be the first of many.
func (r *run) badRow(bad *eventlog.RowError) error {
	if bad.Reason == schemas.DeadMalformed && !r.opt.SkipBad {
		return &badRowError{bad, r.res.Impressions + r.res.Clicks}
	}
	r.refused(Refusal{bad.File, bad.Line, bad.Reason, bad.Detail, bad.Text})
	return nil
}

// badRowError ends a replay at a row that cannot be read.
type badRowError struct {
	*eventlog.RowError
	read int64
}

func (e *badRowError) Unwrap() error { return e.RowError }

func (e *badRowError) Error() string {
	return fmt.Sprintf("%s (the log gave %d events before)", e.RowError.Error(), e.read)
}

// Hint says what to do.
func (e *badRowError) Hint() string {
	return "mend the line and replay again (events that were sent are recognised), or pass over such lines with --skip-bad"
}

// refused counts a row or an event that was not taken.
func (r *run) refused(v Refusal) {
	r.res.Rejected++
	r.res.Rejects[v.Reason]++
	if r.opt.Refused != nil {
		r.opt.Refused(v)
	}
}

// settleEvery is how often the stores are asked whether everything has arrived.
const settleEvery = 100 * time.Millisecond

// settle waits until every event that was sent has been through the join and every label is in the warehouse. With
// KeepOpen the last windows stay open, and events after the last promise wait before the join: due is how many are not.
func (r *run) settle(ctx context.Context, due int64) error {
	bar := progress.Start(r.opt.Progress, "label", "labels")
	for {
		l := r.app.Ledger().Total
		labels := int64(l.Positive + l.FinalNegative - r.before.Positive - r.before.FinalNegative)
		settled, err := r.settled(ctx, l, due)
		if err != nil {
			return err
		}
		if settled {
			bar.Done(labels, "")
			return nil
		}
		bar.Set(labels, float64(labels)/float64(max(1, r.res.Impressions)), "")
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-r.app.Failed():
			return err
		case <-time.After(settleEvery):
		}
	}
}

func (r *run) settled(ctx context.Context, l window.Ledger, due int64) (bool, error) {
	if r.opt.KeepOpen {
		if in := int64(l.ImpressionsIn + l.ClicksIn - r.before.ImpressionsIn - r.before.ClicksIn); in < due {
			return false, nil
		}
		lag, err := r.app.SinkLag(ctx)
		return lag == 0, err
	}
	if l.Open > 0 || l.Pending > 0 {
		return false, nil
	}
	return r.app.Drained(ctx)
}

// account reads what came of the events.
func (r *run) account(ctx context.Context) error {
	ledger := r.app.Ledger()
	l, res := ledger.Total, &r.res
	res.Positive = int64(l.Positive - r.before.Positive)
	res.FinalNegative = int64(l.FinalNegative - r.before.FinalNegative)
	res.Late = int64(l.LateImpressions + l.LateClicks - r.before.LateImpressions - r.before.LateClicks)
	res.Duplicate = int64(l.Duplicate - r.before.Duplicate)
	res.Repeated = res.Duplicate + int64(l.Repeated-r.before.Repeated)
	res.Orphans = int64(l.OrphanExpired - r.before.OrphanExpired)
	res.Waiting = max(0, res.Impressions+res.Clicks-res.Rejected-int64(l.ImpressionsIn+l.ClicksIn-r.before.ImpressionsIn-r.before.ClicksIn))
	res.LedgerOK = ledger.Balanced
	if err := r.judgeLate(ctx); err != nil {
		return err
	}
	db := r.app.Warehouse()
	rows, clicked, err := db.MatureBetween(ctx, r.oldest, r.newest)
	if err != nil {
		return err
	}
	if rows > 0 {
		res.CTR = float64(clicked) / float64(rows)
	}
	if res.WarehouseRows, err = db.Count(ctx, query.Text("labels_latest")); err != nil {
		return err
	}
	res.AuditMismatch, err = db.Count(ctx, query.Text("audit"))
	return err
}

// check holds the beginning of a log against what the store has promised to its join: an impression whose window is
// closed can become no label. A log that the store knows is a repetition and harmless.
func (r *run) check(ctx context.Context, first eventlog.Line) error {
	var watermark int64
	for _, p := range r.app.Ledger().Partitions {
		watermark = max(watermark, p.WatermarkMS)
	}
	closed := watermark - r.opt.Window.Milliseconds()
	if watermark == 0 || first.TimeMS >= closed {
		return nil
	}
	for {
		lag, err := r.app.SinkLag(ctx)
		if err != nil {
			return err
		}
		if lag == 0 {
			break
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-r.app.Failed():
			return err
		case <-time.After(settleEvery):
		}
	}
	id, err := eventlog.ImpressionOf(first)
	if err != nil {
		return err
	}
	known, err := r.app.Warehouse().ClickedAmong(ctx, []schemas.ImpressionID{id})
	if err != nil {
		return err
	}
	if _, ok := known[id]; ok {
		return nil
	}
	return &TooOldError{File: first.File, Begins: time.UnixMilli(first.TimeMS).UTC(), Closed: time.UnixMilli(closed).UTC(), Dir: r.opt.Dir}
}

// TooOldError says that a log begins before what its store has closed.
type TooOldError struct {
	File   string
	Begins time.Time
	Closed time.Time // windows of impressions before it
	Dir    string
}

// Error names the times.
func (e *TooOldError) Error() string {
	return fmt.Sprintf("%s begins at %s, and %s has closed the windows of all impressions before %s: they could become no labels; "+
		"nothing was sent",
		e.File, e.Begins.Format(time.RFC3339), e.Dir, e.Closed.Format(time.RFC3339))
}

// Hint says what to do.
func (e *TooOldError) Hint() string {
	return "replay it into a folder of its own; or all logs into a new folder in the order of their times, all but the last with --keep-open"
}

// errNoRows is a replay of nothing.
var errNoRows = errors.New("the logs hold no row: nothing was sent")
