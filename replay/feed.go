package replay

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"ctrloop/app"
	"ctrloop/internal/eventlog"
	"ctrloop/internal/progress"
	"ctrloop/schemas"
)

// Bounds of a request to the edge.
const (
	batchEvents = 5000
	batchBytes  = 4 << 20
)

// Disorder is how far a log's events may be out of order: what the join waits for. What a promise lacks, the next has.
func Disorder() time.Duration { return app.Default().Joiner.Lateness }

// feeder posts events in order, behind every batch the promise that nothing older follows. The promises keep the raw
// partitions together: one batch is hours of a log's time, and its events reach their partitions one after the other,
// or, when this process is killed, some of them only.
type feeder struct {
	run     *run
	body    bytes.Buffer
	batch   []sentEvent
	sent    int64
	share   func() float64 // of the logs that is read, 0 to 1, negative where it is not known
	bar     *progress.Bar
	through []int64 // times of events that the edge took and that no promise has passed yet; with KeepOpen

	newest           int64 // time of what the edge has taken
	newestImpression int64
	promisable       int64 // events that the edge took, up to the last promise
}

// sentEvent is an event of the batch: where it stands in the body, and in the log.
type sentEvent struct {
	file     string
	row      int64
	timeMS   int64
	click    bool
	from, to int // bytes of the body
}

func newFeeder(r *run, share func() float64) *feeder {
	return &feeder{run: r, share: share, bar: progress.Start(r.opt.Progress, "replay", "events")}
}

// feed sends the whole log and, unless windows stay open, the promise that closes the last.
func (f *feeder) feed(ctx context.Context, next func() (eventlog.Line, error)) error {
	for {
		line, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err := f.add(ctx, line, err); err != nil {
			return err
		}
	}
	if err := f.flush(ctx); err != nil {
		return err
	}
	f.bar.Done(f.sent, "")
	switch {
	case f.newest == 0 && f.run.res.Rejected == 0:
		return errNoRows
	case f.newest == 0:
		return nil // the count of rejected rows says it all
	case f.run.opt.KeepOpen:
		return f.promise(ctx, f.newestImpression)
	}
	// The last impression's window, the disorder that the join waits for, and a bucket.
	return f.promise(ctx, f.newest+(f.run.opt.Window+2*time.Minute).Milliseconds())
}

// add takes one answer of the log.
func (f *feeder) add(ctx context.Context, line eventlog.Line, err error) error {
	var bad *eventlog.RowError
	switch {
	case errors.As(err, &bad):
		return f.run.badRow(bad)
	case err != nil:
		return fmt.Errorf("%w (%d events were sent before)", err, f.sent)
	}
	if f.run.oldest == 0 {
		if err := f.begin(ctx, line); err != nil {
			return err
		}
	}
	if line.Click {
		f.run.res.Clicks++
	} else {
		f.run.res.Impressions++
	}
	from := f.body.Len()
	f.body.Write(line.JSON)
	f.batch = append(f.batch, sentEvent{line.File, line.Row, line.TimeMS, line.Click, from, f.body.Len()})
	f.body.WriteByte('\n')
	if len(f.batch) >= batchEvents || f.body.Len() >= batchBytes {
		return f.flush(ctx)
	}
	return nil
}

func (f *feeder) begin(ctx context.Context, first eventlog.Line) error {
	if err := f.run.check(ctx, first); err != nil {
		return err
	}
	f.run.oldest = first.TimeMS
	return f.promise(ctx, first.TimeMS-Disorder().Milliseconds())
}

// flush sends the batch and promises that nothing older follows.
func (f *feeder) flush(ctx context.Context) error {
	if len(f.batch) == 0 {
		return nil
	}
	refused, err := f.post(ctx)
	if err != nil {
		return err
	}
	for i, e := range f.batch {
		if why, ok := refused[i]; ok {
			text := f.body.Bytes()[e.from:e.to]
			f.run.refused(Refusal{e.file, e.row, why.Reason, why.Detail, string(text[:min(len(text), 2048)])})
			continue
		}
		f.newest = max(f.newest, e.timeMS)
		if !e.click {
			f.newestImpression = max(f.newestImpression, e.timeMS)
		}
		if f.run.opt.KeepOpen {
			f.through = append(f.through, e.timeMS)
		}
	}
	f.sent += int64(len(f.batch))
	f.batch = f.batch[:0]
	f.body.Reset()
	f.run.newest = f.newest
	f.bar.Set(f.sent, f.share(), "")
	if f.newest == 0 {
		return nil
	}
	return f.promise(ctx, f.newest-Disorder().Milliseconds())
}

// promise tells the edge that nothing before ms follows.
func (f *feeder) promise(ctx context.Context, ms int64) error {
	// With open windows a promise goes no further than the last impression: of a log whose clicks are drawn, the last
	// clicks lie in the time of the next log.
	if f.run.opt.KeepOpen && f.newestImpression > 0 {
		ms = min(ms, f.newestImpression)
	}
	open := f.through[:0]
	for _, t := range f.through {
		if t > ms {
			open = append(open, t)
			continue
		}
		f.promisable++
	}
	f.through = open
	refused, err := f.send(ctx, fmt.Appendf(nil, `{"type":"watermark","time_ms":%d}`, ms))
	if err != nil {
		return err
	}
	for _, why := range refused {
		return fmt.Errorf("the edge refused the promise that nothing before %d follows: %s: %s (a bug)", ms, why.Reason, why.Detail)
	}
	return nil
}

// rejection is what the edge says of an event.
type rejection struct {
	Index  int                      `json:"index"`
	Reason schemas.DeadLetterReason `json:"reason"`
	Detail string                   `json:"detail"`
}

func (f *feeder) post(ctx context.Context) (map[int]rejection, error) {
	return f.send(ctx, f.body.Bytes())
}

// send posts one body of JSON lines and returns what was rejected, by its place. It tries again while the edge is full
// or Kafka slow: ids make that harmless.
func (f *feeder) send(ctx context.Context, body []byte) (map[int]rejection, error) {
	for {
		status, raw, err := f.exchange(ctx, body)
		if err != nil {
			return nil, fmt.Errorf("send events: %w", err)
		}
		switch status {
		case http.StatusOK:
			return nil, nil
		case http.StatusMultiStatus, http.StatusBadRequest:
			return readRejections(raw)
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case err := <-f.run.app.Failed():
				return nil, err
			case <-time.After(200 * time.Millisecond):
			}
		default:
			return nil, fmt.Errorf("send events: status %d: %s", status, raw)
		}
	}
}

func (f *feeder) exchange(ctx context.Context, body []byte) (status int, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+f.run.app.Addresses().Edge+"/v1/events", bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	req.Header.Set("Content-Type", "application/x-ndjson")
	resp, err := f.run.app.Client(0).Do(req) // it waits as long as the edge does
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, 4<<20))
	return resp.StatusCode, answer, err
}

func readRejections(raw []byte) (map[int]rejection, error) {
	var answer struct {
		Rejected      []rejection `json:"rejected"`
		RejectedTotal int         `json:"rejected_total"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil || len(answer.Rejected) == 0 {
		return nil, fmt.Errorf("the edge refused the events: %s", raw)
	}
	if len(answer.Rejected) < answer.RejectedTotal {
		return nil, fmt.Errorf("the edge names %d of %d rejected events: a batch is larger than what it spells out (a bug)",
			len(answer.Rejected), answer.RejectedTotal)
	}
	out := make(map[int]rejection, len(answer.Rejected))
	for _, r := range answer.Rejected {
		out[r.Index] = r
	}
	return out, nil
}
