package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"ctrloop/app"
	"ctrloop/ingest"
	"ctrloop/internal/eventlog"
	"ctrloop/internal/progress"
	"ctrloop/internal/setup"
	"ctrloop/joiner/window"
)

// ReplayCmd is `ctrloop replay`.
type ReplayCmd struct {
	Logs       []string      `arg:"" name:"log" help:"Open Bandit logs (CSV) or JSON lines, plain or gzip. Several are merged by time." type:"existingfile"`
	JSON       string        `name:"json" help:"Write the result to this file; - is standard output." placeholder:"FILE"`
	Dir        string        `help:"Keep the stores in this folder, for ctrloop sql; without it they are thrown away." type:"path" placeholder:"DIR"`
	Seed       uint64        `help:"Seed of the click delays, for logs without click times." default:"1"`
	Delay      time.Duration `help:"Median of the click delays: log-normal, cut off at --delay-max." default:"20s"`
	DelaySigma float64       `help:"Standard deviation of the logarithm of the delay." default:"1.2"`
	DelayMax   time.Duration `help:"Longest delay. Must be inside the window, or logged clicks would come too late." default:"20m"`
	Window     time.Duration `help:"Join window." default:"30m"`
	Partitions int32         `help:"Partitions of a new store." default:"4"`
}

// replayResult is what replay --json writes.
type replayResult struct {
	Rows          int64   `json:"rows"`        // of the logs
	Impressions   int64   `json:"impressions"` // sent
	Clicks        int64   `json:"clicks"`      // sent
	Rejected      int64   `json:"rejected"`    // by the edge, with a reason each
	Positive      int64   `json:"positive"`
	FinalNegative int64   `json:"final_negative"`
	Late          int64   `json:"late"`
	Duplicate     int64   `json:"duplicate"`
	CTR           float64 `json:"ctr"`
	LedgerOK      bool    `json:"ledger_ok"`
	WarehouseRows int64   `json:"warehouse_rows"`
	AuditMismatch int64   `json:"audit_mismatch"`
	Seconds       float64 `json:"seconds"`
}

// Run replays the logs through edge, join and sink.
func (c *ReplayCmd) Run(ctx context.Context, g *Globals, out *output) (err error) {
	if c.DelayMax >= c.Window {
		return fmt.Errorf(
			"--delay-max %v is not inside the window of %v: clicks of the log would come too late; use a shorter delay or a longer window",
			c.DelayMax,
			c.Window,
		)
	}
	logs, err := eventlog.Open(
		c.Logs,
		eventlog.Options{Seed: c.Seed, Delay: eventlog.Delay{Median: c.Delay, Sigma: c.DelaySigma, Max: c.DelayMax}},
	)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, logs.Close()) }()

	dir := c.Dir
	if dir == "" {
		if dir, err = os.MkdirTemp("", "ctrloop-replay-*"); err != nil {
			return fmt.Errorf("folder for the stores: %w", err)
		}
		defer os.RemoveAll(dir)
	}
	a, err := c.start(ctx, g, out, dir)
	if err != nil {
		return err
	}
	defer a.Stop()
	began := time.Now()
	before, err := a.JoinReady(ctx)
	if err != nil {
		return err
	}
	var res replayResult
	if err := c.feed(ctx, a, logs, out, &res); err != nil {
		return err
	}
	if err := c.settle(ctx, a, before, out, &res); err != nil {
		return err
	}
	res.Seconds = time.Since(began).Seconds()
	res.print(out.stdout)
	if err := out.writeJSON(c.JSON, res); err != nil {
		return err
	}
	if !res.LedgerOK || res.AuditMismatch != 0 {
		return errors.New("the counts do not add up: a label is missing or there twice (a bug); --dir keeps the stores for a look")
	}
	return nil
}

func (c *ReplayCmd) start(ctx context.Context, g *Globals, out *output, dir string) (*app.App, error) {
	home, err := setup.Home(g.Home)
	if err != nil {
		return nil, err
	}
	cfg := app.Default()
	cfg.Ingest.Clock = ingest.ClockEvent
	cfg.Joiner.Window = c.Window
	cfg.Kafka.Partitions = c.Partitions
	cfg.Kafka.Retention = -1 // records carry the log's times: a broker that judges age by them would delete them at once
	log := out.quietLogger(g)
	return app.Start(ctx, app.Options{
		Config: cfg, Targets: []app.Target{app.Ingest, app.Joiner, app.Sink}, Dir: dir, Home: home, Version: version, Log: log,
	})
}

// Bounds of a request to the edge.
const (
	batchEvents = 5000
	batchBytes  = 4 << 20
)

// feed posts the events in order, behind every batch the promise that nothing older follows, and one in the end that
// closes every window. The promises keep the raw partitions together: one batch is hours of a log's time, and its events
// reach their partitions one after the other, or, when this process is killed, some of them only.
func (c *ReplayCmd) feed(ctx context.Context, a *app.App, logs *eventlog.Reader, out *output, res *replayResult) error {
	bar := progress.Start(out.stderr, "replay", "events")
	var body bytes.Buffer
	n, sent, newest := 0, int64(0), int64(0)
	promise := func(ms int64) error {
		_, err := postEvents(ctx, a.Addresses().Edge, fmt.Appendf(nil, `{"type":"watermark","time_ms":%d}`, ms))
		return err
	}
	// Logs are not always in perfect order; what a promise lacks, the next one has.
	disorder := app.Default().Joiner.Lateness.Milliseconds()
	flush := func() error {
		if n == 0 {
			return nil
		}
		rejected, err := postEvents(ctx, a.Addresses().Edge, body.Bytes())
		if err != nil {
			return err
		}
		res.Rejected += rejected
		sent += int64(n)
		n = 0
		body.Reset()
		bar.Set(sent, logs.Progress(), "")
		return promise(newest - disorder)
	}
	for {
		line, err := logs.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("%w (%d events were sent before; mend the line and replay again: events that were sent are recognised)", err, sent)
		}
		if newest == 0 {
			if err := promise(line.TimeMS - disorder); err != nil {
				return err
			}
		}
		if line.Click {
			res.Clicks++
		} else {
			res.Impressions++
		}
		newest = max(newest, line.TimeMS)
		body.Write(line.JSON)
		body.WriteByte('\n')
		if n++; n >= batchEvents || body.Len() >= batchBytes {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if err := flush(); err != nil {
		return err
	}
	res.Rows = logs.Rows()
	bar.Done(sent, "")
	// The last impression's window, the disorder that the join waits for, and a bucket.
	return promise(newest + (c.Window + 2*time.Minute).Milliseconds())
}

// postEvents sends one body of JSON lines and returns how many events were rejected. It tries again while
// the edge is full or Kafka slow: ids make that harmless.
func postEvents(ctx context.Context, edge string, body []byte) (rejected int64, err error) {
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+edge+"/v1/events", bytes.NewReader(body))
		if err != nil {
			return 0, err
		}
		req.Header.Set("Content-Type", "application/x-ndjson")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, fmt.Errorf("send events: %w", err)
		}
		raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		_ = resp.Body.Close()
		if err != nil {
			return 0, fmt.Errorf("send events: %w", err)
		}
		switch resp.StatusCode {
		case http.StatusOK:
			return 0, nil
		case http.StatusMultiStatus, http.StatusBadRequest:
			var answer struct {
				Rejected      []json.RawMessage `json:"rejected"`
				RejectedTotal int64             `json:"rejected_total"`
				Error         string            `json:"error"`
			}
			if err := json.Unmarshal(raw, &answer); err != nil || answer.Error != "" {
				return 0, fmt.Errorf("the edge refused the events: %s", raw)
			}
			return max(answer.RejectedTotal, int64(len(answer.Rejected))), nil
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			select {
			case <-ctx.Done():
				return 0, ctx.Err()
			case <-time.After(200 * time.Millisecond):
			}
		default:
			return 0, fmt.Errorf("send events: %s: %s", resp.Status, raw)
		}
	}
}

// settle waits until every event that was sent has been through the join and every label is in the
// warehouse, and reads what came of them. before is the ledger at the start: the counts are this replay's.
func (c *ReplayCmd) settle(ctx context.Context, a *app.App, before window.Ledger, out *output, res *replayResult) error {
	bar := progress.Start(out.stderr, "label", "labels")
	want := res.Impressions + res.Clicks - res.Rejected
	for {
		l := a.Ledger().Total
		in := int64(l.ImpressionsIn + l.ClicksIn - before.ImpressionsIn - before.ClicksIn)
		labels := int64(l.Positive + l.FinalNegative - before.Positive - before.FinalNegative)
		settled := in >= want && l.Open == 0 && l.Pending == 0
		if settled {
			lag, err := a.SinkLag(ctx)
			if err != nil {
				return err
			}
			if lag == 0 {
				bar.Done(labels, "")
				break
			}
		}
		bar.Set(labels, float64(labels)/float64(max(1, res.Impressions)), "")
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-a.Failed():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
	ledger := a.Ledger()
	l := ledger.Total
	res.Positive = int64(l.Positive - before.Positive)
	res.FinalNegative = int64(l.FinalNegative - before.FinalNegative)
	res.Late = int64(l.LateImpressions + l.LateClicks - before.LateImpressions - before.LateClicks)
	res.Duplicate = int64(l.Duplicate - before.Duplicate)
	res.LedgerOK = ledger.Balanced
	if n := res.Positive + res.FinalNegative; n > 0 {
		res.CTR = float64(res.Positive) / float64(n)
	}
	var err error
	if res.WarehouseRows, err = a.Count(ctx, "SELECT count() FROM labels_latest"); err != nil {
		return err
	}
	res.AuditMismatch, err = a.Count(ctx, "SELECT count() FROM audit_mismatch")
	return err
}

func (r replayResult) print(w io.Writer) {
	fmt.Fprintf(w, "%d rows: %d impressions, %d clicks; %d rejected\n", r.Rows, r.Impressions, r.Clicks, r.Rejected)
	fmt.Fprintf(
		w,
		"labels: %d positive, %d final negative, CTR %.4f %%; %d duplicate, %d late\n",
		r.Positive,
		r.FinalNegative,
		100*r.CTR,
		r.Duplicate,
		r.Late,
	)
	ledger := "closed"
	if !r.LedgerOK {
		ledger = "OPEN"
	}
	fmt.Fprintf(w, "ledger %s; warehouse %d impressions, audit mismatches %d; %.1f s\n", ledger, r.WarehouseRows, r.AuditMismatch, r.Seconds)
}
