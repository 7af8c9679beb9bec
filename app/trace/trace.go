// Package trace answers where an impression is now and what happened to it, from the stores alone: the topics, by the
// stretch of time that its id names, and the warehouse. It changes nothing and asks no running service.
package trace

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/joiner"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// State says where an impression is. The list is closed.
type State string

// States, in the order of a life.
const (
	Unknown  State = "unknown"  // nowhere in what was searched
	Received State = "received" // taken by the edge or a producer, not ingested yet
	Rejected State = "rejected" // a dead letter
	Orphan   State = "orphan"   // clicks, and no impression
	Waiting  State = "waiting"  // ingested; the joiner has not come to it
	Open     State = "open"     // in the joiner's window, without a label for good
	Closed   State = "closed"   // its window has closed, and there is no label
	Labelled State = "labelled"
	Late     State = "late" // came after its window had closed: no label
)

// Step is one record about the impression.
type Step struct {
	What      string         `json:"what"`
	Topic     string         `json:"topic"`
	Partition int32          `json:"partition"`
	Offset    int64          `json:"offset"`
	Time      time.Time      `json:"time"` // of the record: event time, or of arrival in raw topics
	Detail    map[string]any `json:"detail,omitempty"`
}

// Row is a row of the warehouse's labels.
type Row = warehouse.TracedLabel

// Report is everything that is known about an impression.
type Report struct {
	ID        string    `json:"id"`
	EventTime time.Time `json:"event_time"`
	State     State     `json:"state"`
	// Explanation of the state, for people.
	Explanation string `json:"explanation"`
	// ClosesAt is when its window closes: a final negative is due once the watermark has passed it.
	ClosesAt time.Time `json:"closes_at"`
	// From and To are the record times that were searched; both zero where everything was.
	From time.Time `json:"from"`
	To   time.Time `json:"to"`
	// Steps in the order of a life.
	Steps []Step `json:"steps"`
	// Warehouse has its rows there; null where no warehouse was asked.
	Warehouse *[]Row `json:"warehouse"`
	// Refused are the events about it that the warehouse knows to have become no label of their own; it keeps them longer than
	// the topics.
	Refused []warehouse.Refused `json:"refused,omitempty"`
}

// Finder knows where to look.
type Finder struct {
	Kafka stream.Config
	// Group of the joiner, its window and the width of its buckets, and of how many negatives it keeps one.
	Group             string
	Window            time.Duration
	Bucket            time.Duration
	KeepOneNegativeIn int
	// Slack is how long after the window's end records are still looked for: corrections, re-sent events, backlogs.
	Slack time.Duration
	// Now is the wall clock: an impression dated ahead of it can only be a dead letter, whose record has the time of its
	// arrival, so dead letters are read whole then. The zero time: nothing is ahead.
	Now time.Time
	// Everywhere reads the topics whole, for logs whose record times have nothing to do with the events.
	Everywhere bool
}

// before is how far before the impression its records are looked for: a click may precede it by a clock's error.
const before = time.Minute

// search is one topic.
type search struct {
	topic string
	keyed bool // records about the impression lie in the partition of its id
	match func(*stream.Record) (*Step, error)
}

// Trace looks the impression up in all topics. An impression that is nowhere has the state unknown, and is no error.
func (f Finder) Trace(ctx context.Context, id schemas.ImpressionID) (Report, error) {
	rep := Report{ID: id.String(), EventTime: id.Time(), ClosesAt: id.Time().Add(f.Window), Steps: []Step{}}
	if !f.Everywhere {
		rep.From, rep.To = id.Time().Add(-before), rep.ClosesAt.Add(f.Slack)
	}
	searches := f.searches(id)
	topics := make([]string, len(searches))
	for i, s := range searches {
		topics[i] = s.topic
	}
	start, err := stream.StartOffsets(ctx, f.Kafka, topics...)
	if err != nil {
		return rep, err
	}
	end, err := stream.EndOffsets(ctx, f.Kafka, topics...)
	if err != nil {
		return rep, err
	}
	partitions := map[string]int32{}
	for tp := range end {
		partitions[tp.Topic]++
	}
	found := make([][]Step, len(searches))
	var mu sync.Mutex
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4) // connections, not cores
	for i, s := range searches {
		for p := range partitions[s.topic] {
			if s.keyed && p != stream.PartitionOf(id[:], partitions[s.topic]) {
				continue
			}
			tp := stream.TopicPartition{Topic: s.topic, Partition: p}
			f := f
			if s.topic == schemas.TopicDeadLetters && !f.Now.IsZero() && id.Time().After(f.Now) {
				f.Everywhere = true
			}
			g.Go(func() error {
				steps, err := f.read(gctx, tp, start[tp], end[tp], rep, s.match)
				mu.Lock()
				defer mu.Unlock()
				found[i] = append(found[i], steps...)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return rep, err
	}
	for _, steps := range found {
		slices.SortFunc(steps, func(a, b Step) int {
			return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.Offset, b.Offset))
		})
		rep.Steps = append(rep.Steps, steps...)
	}
	return rep, f.judge(ctx, &rep)
}

// errPast ends the reading of a partition.
var errPast = errors.New("past the stretch of time that is searched")

// read looks through the stretch of a partition that the report names. Where it ends is seen by the records: asked for the
// first offset of a time, a broker counts the end markers of transactions, too, whose time is that of the clock on its
// wall, so that in a log of past events the answer is the first marker.
func (f Finder) read(
	ctx context.Context,
	tp stream.TopicPartition,
	from, to int64,
	rep Report,
	match func(*stream.Record) (*Step, error),
) (steps []Step, err error) {
	if !f.Everywhere {
		at, err := stream.OffsetForTime(ctx, f.Kafka, tp.Topic, tp.Partition, rep.From.UnixMilli())
		if err != nil {
			return nil, err
		}
		from = max(from, at)
	}
	err = stream.ReadRange(ctx, f.Kafka, tp.Topic, tp.Partition, from, to, func(r *stream.Record) error {
		if !f.Everywhere && r.Timestamp.After(rep.To) {
			return errPast
		}
		step, err := match(r)
		if err != nil {
			return fmt.Errorf("%s offset %d: %w", tp, r.Offset, err)
		}
		if step != nil {
			step.Topic, step.Partition, step.Offset, step.Time = r.Topic, r.Partition, r.Offset, r.Timestamp.UTC()
			steps = append(steps, *step)
		}
		return nil
	})
	if errors.Is(err, errPast) {
		err = nil
	}
	return steps, err
}

func (f Finder) searches(id schemas.ImpressionID) []search {
	text := []byte(id.String())
	mentions := func(b []byte) bool {
		return bytes.Contains(b, id[:]) || bytes.Contains(bytes.ToLower(b), text)
	}
	raw := func(what string) func(*stream.Record) (*Step, error) {
		return func(r *stream.Record) (*Step, error) {
			if !bytes.Equal(r.Key, id[:]) && !mentions(r.Value) {
				return nil, nil
			}
			step := &Step{What: what, Detail: map[string]any{"bytes": len(r.Value)}}
			if json.Valid(r.Value) {
				step.Detail["json"] = json.RawMessage(bytes.Clone(r.Value))
			}
			return step, nil
		}
	}
	keyed := func(f func(*stream.Record) (*Step, error)) func(*stream.Record) (*Step, error) {
		return func(r *stream.Record) (*Step, error) {
			if !bytes.Equal(r.Key, id[:]) {
				return nil, nil
			}
			return f(r)
		}
	}
	return []search{
		{schemas.TopicRawImpressions, false, raw("impression received")},
		{schemas.TopicRawClicks, false, raw("click received")},
		{schemas.TopicDeadLetters, false, func(r *stream.Record) (*Step, error) {
			if !bytes.Equal(r.Key, id[:]) && !mentions(r.Value) {
				return nil, nil
			}
			return deadLetter(r)
		}},
		{schemas.TopicImpressions, true, keyed(impression)},
		{schemas.TopicClicks, true, keyed(click)},
		{schemas.TopicLabels, true, keyed(label)},
		{schemas.TopicLate, true, keyed(late)},
	}
}

func deadLetter(r *stream.Record) (*Step, error) {
	d := new(eventpb.DeadLetter)
	if err := proto.Unmarshal(r.Value, d); err != nil {
		return nil, fmt.Errorf("dead letter: %w", err)
	}
	return &Step{What: "dead letter", Detail: map[string]any{
		"reason": d.Reason, "detail": d.Detail, "from": fmt.Sprintf("%s/%d@%d", d.Topic, d.Partition, d.Offset),
	}}, nil
}

// The next two read what anybody may have written there: what does not decode is shown as such.
func impression(r *stream.Record) (*Step, error) {
	m := new(eventpb.Impression)
	if err := proto.Unmarshal(r.Value, m); err != nil {
		return &Step{What: "impression, not readable", Detail: map[string]any{"error": err.Error()}}, nil
	}
	detail := map[string]any{
		"product": m.Product, "creative": m.Creative, "placement": m.Placement, "position": m.Position, "experiment": m.Experiment,
		"variant": m.Variant, "model_version": m.ModelVersion, "propensity": m.Propensity,
	}
	if m.ArmShare != 0 {
		detail["arm_share"] = m.ArmShare
	}
	return &Step{What: "impression", Detail: detail}, nil
}

func click(r *stream.Record) (*Step, error) {
	m := new(eventpb.Click)
	if err := proto.Unmarshal(r.Value, m); err != nil {
		return &Step{What: "click, not readable", Detail: map[string]any{"error": err.Error()}}, nil
	}
	id, err := schemas.ImpressionIDFromBytes(m.ImpressionId)
	if err != nil {
		return &Step{What: "click, not readable", Detail: map[string]any{"error": err.Error()}}, nil
	}
	return &Step{What: "click", Detail: map[string]any{"click_id": fmt.Sprintf("%q", m.Id), "delay_ms": m.TimeMs - id.UnixMilli()}}, nil
}

func label(r *stream.Record) (*Step, error) {
	m := new(eventpb.Label)
	if err := proto.Unmarshal(r.Value, m); err != nil {
		return nil, fmt.Errorf("label: %w", err)
	}
	kind := strings.ToLower(strings.TrimPrefix(m.Kind.String(), "LABEL_KIND_"))
	d := map[string]any{"kind": kind, "version": m.Version, "clicked": m.Clicked, "clicks": m.Clicks, "click_delay_ms": m.ClickDelayMs}
	if m.WatermarkMs > 0 {
		d["watermark"] = time.UnixMilli(m.WatermarkMs).UTC()
	}
	if m.Weight != 1 && m.Weight != 0 {
		d["weight"] = m.Weight
	}
	if m.Suspect {
		d["suspect"] = true
	}
	return &Step{What: "label " + strings.ReplaceAll(kind, "_", " "), Detail: d}, nil
}

func late(r *stream.Record) (*Step, error) {
	m := new(eventpb.Late)
	if err := proto.Unmarshal(r.Value, m); err != nil {
		return nil, fmt.Errorf("late event: %w", err)
	}
	d := map[string]any{"reason": m.Reason, "from": fmt.Sprintf("%s/%d@%d", m.Topic, m.Partition, m.Offset)}
	if m.WatermarkMs > 0 {
		d["watermark"] = time.UnixMilli(m.WatermarkMs).UTC()
	}
	return &Step{What: "late: " + strings.ReplaceAll(m.Reason, "_", " "), Detail: d}, nil
}

// judge says what the steps mean.
func (f Finder) judge(ctx context.Context, rep *Report) error {
	last := map[string]*Step{} // by topic
	first := map[string]*Step{}
	lateImpression := false
	var final *Step // label
	for i := range rep.Steps {
		s := &rep.Steps[i]
		last[s.Topic] = s
		if first[s.Topic] == nil {
			first[s.Topic] = s
		}
		if s.Topic == schemas.TopicLabels && s.What != provisional {
			final = s
		}
		lateImpression = lateImpression || s.Detail["reason"] == string(schemas.LateImpression)
	}
	imp := first[schemas.TopicImpressions]
	switch {
	case final != nil:
		rep.State, rep.Explanation = Labelled, fmt.Sprintf("%s, version %v", final.What, final.Detail["version"])
	case imp != nil && lateImpression:
		rep.State, rep.Explanation = Late, "it came after its window had closed, so it has no label"
	case imp != nil:
		return f.open(ctx, rep, imp, last[schemas.TopicLabels] != nil)
	case last[schemas.TopicDeadLetters] != nil:
		d := last[schemas.TopicDeadLetters]
		rep.State, rep.Explanation = Rejected, fmt.Sprintf("a dead letter: %v: %v", d.Detail["reason"], d.Detail["detail"])
	case last[schemas.TopicRawImpressions] != nil:
		rep.State, rep.Explanation = Received, "received, and not in "+schemas.TopicImpressions+": ingest has not come to it, or does not run"
	case last[schemas.TopicClicks] != nil || last[schemas.TopicRawClicks] != nil || last[schemas.TopicLate] != nil:
		rep.State, rep.Explanation = Orphan, "clicks on it came, and no impression"
	default:
		rep.State, rep.Explanation = Unknown,
			"nothing in the topics names it: it was never sent, it is older than their retention, or its records have other times"
	}
	return nil
}

// provisional is what label calls a verdict that another one follows.
const provisional = "label provisional negative"

// open tells an impression that the joiner holds from one that it has not read, and from one that it no longer holds. It
// asks what the joiner has committed, so it does not matter whether the joiner runs, nor where it keeps its windows.
func (f Finder) open(ctx context.Context, rep *Report, imp *Step, guessed bool) error {
	at, err := stream.CommittedOffsets(ctx, f.Kafka, f.Group)
	if err != nil {
		return err
	}
	commit := at[stream.TopicPartition{Topic: imp.Topic, Partition: imp.Partition}]
	if commit.Offset <= imp.Offset {
		rep.State = Waiting
		rep.Explanation = fmt.Sprintf(
			"the joiner (group %s) stands at offset %d of %s/%d and has not come to %d",
			f.Group,
			commit.Offset,
			imp.Topic,
			imp.Partition,
			imp.Offset,
		)
		return nil
	}
	rep.State = Open
	rep.Explanation = "the joiner holds it and waits for a click, until its watermark passes " + rep.ClosesAt.Format(time.RFC3339)
	if guessed {
		rep.Explanation = "it has a provisional negative; " + rep.Explanation
	}
	ms, ok := joiner.WatermarkOf(commit.Metadata)
	if !ok {
		return nil
	}
	watermark := time.UnixMilli(ms).UTC()
	switch {
	case watermark.Before(rep.ClosesAt.Add(f.Bucket)): // a bucket closes as a whole
		rep.Explanation += "; it stands at " + watermark.Format(time.RFC3339)
	case f.KeepOneNegativeIn > 1:
		rep.State = Closed
		rep.Explanation = fmt.Sprintf(
			"its window has closed without a click, and of negatives only one in %d gets a label (joiner.keep_one_negative_in)",
			f.KeepOneNegativeIn,
		)
	default:
		rep.State = Closed
		rep.Explanation = "its window has closed and no label is there: the retention of " + schemas.TopicLabels +
			" may be over, or the joiner had it left out of a sample of negatives then; the warehouse keeps labels longer"
	}
	return nil
}

// Ask adds what a warehouse knows. An impression of which the topics know nothing may be a dead letter there.
func (r *Report) Ask(ctx context.Context, db *warehouse.DB, id schemas.ImpressionID) error {
	rows, err := db.LabelsOf(ctx, id)
	if err != nil {
		return err
	}
	r.Warehouse = &rows
	if r.Refused, err = db.RefusedOf(ctx, id); err != nil {
		return err
	}
	if r.State == Unknown && len(rows) == 0 && len(r.Refused) > 0 {
		d := r.Refused[len(r.Refused)-1]
		r.State = Rejected
		r.Explanation = fmt.Sprintf("the topics do not have it any more; the warehouse knows a %s: %s: %s", d.Kind, d.Reason, d.Detail)
	}
	return nil
}

// ErrUnknown is for callers that need an impression to exist.
var ErrUnknown = errors.New("no such impression")
