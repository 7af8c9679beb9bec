package sink

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ctrloop/internal/stream"
	"ctrloop/internal/warehouse"
	"ctrloop/schemas"
)

// Source is where labels come from and where it is kept how far they are in the warehouse.
type Source interface {
	// Poll waits so long for labels.
	Poll(ctx context.Context, wait time.Duration) (stream.Batch, error)
	// Read calls each for every label of a stretch of a partition, in order.
	Read(ctx context.Context, partition int32, from, to int64, each func(*stream.Record) error) error
	Commit(ctx context.Context, at map[stream.TopicPartition]stream.Committed) error
	Committed(ctx context.Context) (map[stream.TopicPartition]stream.Committed, error)
	Close()
}

// member is a source out of the group of sinks.
type member struct {
	*stream.Consumer
	cfg Config
}

func (s *Service) member(c stream.ConsumerConfig) (Source, error) {
	consumer, err := stream.NewConsumer(s.cfg.Kafka, c)
	return member{consumer, s.cfg}, err
}

// Read implements Source.
func (m member) Read(ctx context.Context, partition int32, from, to int64, each func(*stream.Record) error) error {
	return stream.ReadRange(ctx, m.cfg.Kafka, schemas.TopicLabels, partition, from, to, each)
}

// Committed implements Source.
func (m member) Committed(ctx context.Context) (map[stream.TopicPartition]stream.Committed, error) {
	return stream.CommittedOffsets(ctx, m.cfg.Kafka, m.cfg.Group)
}

// Session is one life of the labels' consumer. Everything belongs to the goroutine that polls.
type Session struct {
	*Service
	source   Source
	topicID  string
	parts    map[int32]*part
	arrived  []int32 // assigned and not looked at yet
	progress bool    // a block was finished
}

// part is one assigned partition.
type part struct {
	next  int64 // where the next block begins; -1: at the first record, nothing was ever committed
	epoch int32
	block warehouse.LabelBlock
	first time.Time // when the block's first row was read
	group time.Time // when the first row of the last watermark was read
}

// block is a range that is being inserted.
type block struct {
	partition int32
	from, to  int64
	epoch     int32
	rows      *warehouse.LabelBlock
	n         int // of the rows are the block's
}

// labels is one session.
func (s *Service) labels(ctx context.Context) (progress bool, err error) {
	ids, err := stream.TopicIDs(ctx, s.cfg.Kafka, schemas.TopicLabels)
	if err != nil {
		return false, err
	}
	w := s.Session(nil, ids[schemas.TopicLabels])
	w.source, err = s.connect(stream.ConsumerConfig{
		Group: s.cfg.Group, InstanceID: s.cfg.InstanceID, Topics: []string{schemas.TopicLabels}, MaxPoll: s.cfg.MaxRows,
		OnAssigned: func(_ context.Context, ps map[string][]int32) { w.Assign(ps[schemas.TopicLabels]...) },
		OnLost: func(_ context.Context, ps map[string][]int32) {
			for _, p := range ps[schemas.TopicLabels] {
				delete(w.parts, p)
			}
		},
	})
	if err != nil {
		return false, err
	}
	defer w.source.Close()
	defer w.metrics.buffered.Set(0)
	for {
		if err := w.Step(ctx); err != nil {
			return w.progress, err
		}
		if w.rows() == 0 { // nothing is to be done
			w.work[partLabels].Alive()
		}
	}
}

// Session returns a session over a source of labels.v1 of that topic id, with no partitions yet.
func (s *Service) Session(from Source, topicID string) *Session {
	return &Session{Service: s, source: from, topicID: topicID, parts: map[int32]*part{}}
}

// Assign gives partitions to the session. The next step looks where they stand.
func (w *Session) Assign(partitions ...int32) { w.arrived = append(w.arrived, partitions...) }

// rows that wait.
func (w *Session) rows() (n int) {
	for _, p := range w.parts {
		n += len(p.block.Rows)
	}
	return n
}

// Step polls once and inserts what is due.
func (w *Session) Step(ctx context.Context) error {
	batch, err := w.source.Poll(ctx, w.cfg.FlushInterval/4)
	if err != nil {
		return err
	}
	if err := w.takeOver(ctx); err != nil {
		return err
	}
	now := time.Now()
	for _, b := range batch.Partitions {
		w.take(b, now)
	}
	for {
		blocks := w.due(now)
		if len(blocks) == 0 {
			return nil
		}
		if err := w.flush(ctx, blocks); err != nil {
			return err
		}
	}
}

// takeOver looks at partitions that came: where they stand, and whether a block was begun.
func (w *Session) takeOver(ctx context.Context) error {
	if len(w.arrived) == 0 {
		return nil
	}
	committed, err := w.source.Committed(ctx)
	if err != nil {
		return err
	}
	for _, p := range w.arrived {
		at, ok := committed[stream.TopicPartition{Topic: schemas.TopicLabels, Partition: p}]
		if !ok {
			at = stream.Committed{Offset: -1, LeaderEpoch: -1} // from the first record that comes
		}
		w.parts[p] = &part{next: at.Offset, epoch: at.LeaderEpoch}
		to, pending, err := parsePending(at.Metadata)
		if err != nil {
			return fmt.Errorf("group %s, %s/%d: %w", w.cfg.Group, schemas.TopicLabels, p, err)
		}
		if pending {
			if err := w.recover(ctx, p, at, to); err != nil {
				return err
			}
		}
	}
	w.arrived = w.arrived[:0]
	return nil
}

// recover inserts again the block that an earlier session had begun. Its size is that of the earlier
// session's MaxRows at most.
func (w *Session) recover(ctx context.Context, p int32, at stream.Committed, to int64) error {
	b := block{partition: p, from: at.Offset, to: to, epoch: at.LeaderEpoch, rows: &warehouse.LabelBlock{}}
	err := w.source.Read(ctx, p, b.from, b.to, func(r *stream.Record) error {
		w.decode(r, b.rows)
		return nil
	})
	if err != nil {
		return fmt.Errorf("read the unfinished block [%d, %d) of %s/%d again: %w", b.from, b.to, schemas.TopicLabels, p, err)
	}
	b.n = len(b.rows.Rows)
	if w.refilled {
		err = w.insertMissing(ctx, b, &Refilled{})
		b.n = len(b.rows.Rows) // those that were missing
	} else {
		err = w.insert(ctx, b)
	}
	if err != nil {
		return err
	}
	w.metrics.recovered.Inc()
	return w.finish(ctx, []block{b})
}

// decode appends the row of a record. A record that is no label is left out, the same way each time the
// range is read; the audit shows it, and the log says where it is.
func (w *Session) decode(r *stream.Record, block *warehouse.LabelBlock) {
	n := len(block.Rows)
	block.Rows = append(block.Rows, warehouse.Label{Partition: uint16(r.Partition), Offset: r.Offset})
	if err := decodeLabel(r.Value, &block.Rows[n], block); err != nil {
		block.Rows = block.Rows[:n]
		w.metrics.undecodable.WithLabelValues(schemas.TopicLabels).Inc()
		w.log.Error().Err(err).Str("topic", r.Topic).Int32("partition", r.Partition).Int64("offset", r.Offset).Msg("record of labels.v1 left out")
	}
}

// take adds what was polled to its partition. Records before next were part of a recovered block.
func (w *Session) take(b stream.PartitionBatch, now time.Time) {
	p := w.parts[b.Partition]
	if p == nil {
		return // went while the batch was under way; its new owner reads it
	}
	for _, r := range b.Records {
		if r.Offset < p.next {
			continue
		}
		if p.next < 0 {
			p.next = r.Offset
		}
		p.epoch = r.LeaderEpoch
		n := len(p.block.Rows)
		w.decode(r, &p.block)
		rows := p.block.Rows
		if len(rows) == n {
			continue
		}
		if n == 0 {
			p.first = now
		}
		if n == 0 || rows[n].WatermarkMS != rows[n-1].WatermarkMS {
			p.group = now
		}
	}
}

// maxBlocksPerSecond bounds the blocks of one sink under light load. Each is a part of labels and of every table that is fed
// by it, which the engine has to merge: with a block a second of each of 256 partitions it would be 1,000 parts a second.
// So the more partitions, the longer each waits: 256 of them 13 s, up to 20 of them FlushInterval. Full blocks do not wait.
const maxBlocksPerSecond = 20

// pace is how long rows of a partition wait for others.
func (w *Session) pace() time.Duration {
	return max(w.cfg.FlushInterval, time.Duration(len(w.parts))*time.Second/maxBlocksPerSecond)
}

// due cuts the blocks that are to be inserted now: full ones, aged ones, and all when memory is full.
func (w *Session) due(now time.Time) []block {
	total, names := 0, 0
	for _, p := range w.parts {
		total, names = total+len(p.block.Rows), names+p.block.Names()
	}
	w.metrics.buffered.Set(float64(total))
	w.metrics.names.Set(float64(names))
	pace := w.pace()
	var out []block
	for id, p := range w.parts {
		rows := p.block.Rows
		full, aged := len(rows) >= w.cfg.MaxRows, now.Sub(p.first) >= pace
		if len(rows) == 0 || !full && !aged && total < w.cfg.MaxBufferedRows {
			continue
		}
		idle := now.Sub(p.group) >= w.cfg.FlushInterval || total >= 2*w.cfg.MaxBufferedRows
		if n := p.cut(w.cfg.MaxRows, idle); n > 0 {
			out = append(out, block{partition: id, from: p.next, to: rows[n-1].Offset + 1, epoch: p.epoch, rows: &p.block, n: n})
		}
	}
	return out
}

// cut says how many rows make the next block: at most limit, and if possible whole groups of the same
// watermark. The mature horizon of the warehouse is taken from the newest watermark in the table: with
// half of a group there, clicks of its minutes would be complete and negatives would not. The last group
// may grow, so it waits, unless it has not for a while (idle) or is all there is.
func (p *part) cut(limit int, idle bool) int {
	rows := p.block.Rows
	n := min(len(rows), limit)
	if n == len(rows) && idle {
		return n
	}
	for i := n; i > 0; i-- {
		if i < len(rows) && rows[i].WatermarkMS != rows[i-1].WatermarkMS {
			return i
		}
	}
	if len(rows) >= limit || idle {
		return n
	}
	return 0
}

// flush carries blocks of different partitions through the three steps.
func (w *Session) flush(ctx context.Context, blocks []block) error {
	intent := map[stream.TopicPartition]stream.Committed{}
	for _, b := range blocks {
		intent[b.topicPartition()] = stream.Committed{Offset: b.from, LeaderEpoch: b.epoch, Metadata: pendingMetadata(b.to)}
	}
	if err := w.source.Commit(ctx, intent); err != nil {
		return fmt.Errorf("commit the intent: %w", err)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(w.cfg.Inserts)
	for _, b := range blocks {
		g.Go(func() error { return w.insert(gctx, b) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return w.finish(ctx, blocks)
}

// insert sends a block until it is acknowledged or w.giveUp has passed; the session then ends, and with it
// this member's hold on its partitions.
func (w *Session) insert(ctx context.Context, b block) error {
	return w.insertAs(ctx, token(w.topicID, b), b)
}

// insertAs is insert under another token.
func (w *Session) insertAs(ctx context.Context, token string, b block) error {
	deadline := time.Now().Add(w.giveUp)
	for wait := minBackoff; ; wait *= 2 {
		began := time.Now()
		ictx, cancel := context.WithTimeout(ctx, w.cfg.InsertTimeout)
		err := w.db.InsertLabelBlock(ictx, token, b.rows, b.n)
		cancel()
		if err == nil {
			w.metrics.seconds.Observe(time.Since(began).Seconds())
			w.metrics.inserts.Inc()
			w.metrics.rows.Add(float64(b.n))
			return nil
		}
		if ctx.Err() != nil || warehouse.Permanent(err) || time.Now().Add(wait).After(deadline) {
			return fmt.Errorf("insert %d labels of partition %d: %w", b.n, b.partition, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// finish commits the ends of blocks that are in the warehouse and drops their rows.
func (w *Session) finish(ctx context.Context, blocks []block) error {
	done := map[stream.TopicPartition]stream.Committed{}
	for _, b := range blocks {
		done[b.topicPartition()] = stream.Committed{Offset: b.to, LeaderEpoch: b.epoch}
	}
	if err := w.source.Commit(ctx, done); err != nil {
		return fmt.Errorf("commit the end: %w", err)
	}
	w.progress = true
	w.work[partLabels].Worked()
	now := time.Now()
	for _, b := range blocks {
		p := w.parts[b.partition]
		p.next = b.to
		if b.n > 0 {
			w.metrics.watermark.Set(float64(b.rows.Rows[b.n-1].WatermarkMS) / 1000)
		}
		if b.rows == &p.block { // not a recovered one
			w.metrics.forgotten.Add(float64(p.block.Drop(b.n)))
			p.first = now // the rest is younger than this; it waits one interval more at most
		}
	}
	return nil
}

func (b block) topicPartition() stream.TopicPartition {
	return stream.TopicPartition{Topic: schemas.TopicLabels, Partition: b.partition}
}

// token names the block for ClickHouse. The topic's id is in it: offsets of a topic that was made anew
// would otherwise meet tokens of its predecessor, and its rows would be dropped as repetitions.
func token(topicID string, b block) string {
	return fmt.Sprintf("%s/%s/%d/%d-%d", schemas.TopicLabels, topicID, b.partition, b.from, b.to)
}

const pendingPrefix = "pending="

func pendingMetadata(to int64) string { return pendingPrefix + strconv.FormatInt(to, 10) }

var errMetadata = errors.New("offset metadata is not the sink's: this group was used by something else; give the sink a group of its own")

func parsePending(metadata string) (to int64, pending bool, err error) {
	if metadata == "" {
		return 0, false, nil
	}
	text, ok := strings.CutPrefix(metadata, pendingPrefix)
	if to, err = strconv.ParseInt(text, 10, 64); !ok || err != nil {
		return 0, false, fmt.Errorf("%w: %q", errMetadata, metadata)
	}
	return to, true, nil
}
