package ingest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/internal/telemetry"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// Group is the consumer group of the service.
const Group = "ctrloop-ingest"

// maxDeadBytes is where a dead letter's original bytes are cut, see event.proto.
const maxDeadBytes = 1 << 20

// Service makes imp.v1 and clk.v1 of the raw topics.
type Service struct {
	cfg      Config
	kafka    stream.Config
	instance string
	log      zerolog.Logger
	metrics  *serviceMetrics
	decoder  decoder
	now      func() time.Time
	work     *telemetry.Work

	topics map[string]string               // ids of the raw topics, as the last session found them
	left   map[stream.TopicPartition]int64 // records of what it read that were there and not taken yet
}

// New builds the service.
func New(cfg Config, kafka stream.Config, log zerolog.Logger, reg prometheus.Registerer) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("ingest configuration: %w", err)
	}
	instance := cfg.Instance
	if instance == "" {
		host, err := os.Hostname()
		if err != nil {
			return nil, fmt.Errorf("ingest: name this instance: %w", err)
		}
		instance = host
	}
	return &Service{
		cfg: cfg, kafka: kafka, instance: instance, log: log, metrics: newServiceMetrics(reg),
		decoder: decoder{[]byte(cfg.UserSalt.Reveal()), cfg.MaxEventBytes}, now: time.Now, left: map[stream.TopicPartition]int64{},
	}, nil
}

// Reports has the service say whether it can do its work. Call it before Run.
func (s *Service) Reports(w *telemetry.Work) { s.work = w }

// wayOut of raw events that are gone.
const wayOut = "their partition is not skipped without your word: stop ingest and set the group " + Group +
	" to the start of that partition to go on without them"

// Run works until ctx is done. A failed transaction client is replaced by a new one, which fences the old
// and goes on at the last commit; only lost input data, or topics that do not fit, end the service.
func (s *Service) Run(ctx context.Context) error {
	const longest = 5 * time.Second
	wait := 100 * time.Millisecond
	for {
		started := s.now()
		s.work.Begin()
		err := s.session(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case stream.FateOf(err) == stream.Refused:
			return fmt.Errorf("ingest: %w", err)
		case stream.FateOf(err) == stream.Lost:
			return stream.Final(fmt.Errorf("ingest: raw events were deleted before they were read, "+
				"or the committed offset was set by hand beyond what is there: %w", err), wayOut)
		}
		if s.now().Sub(started) > longest {
			wait = 100 * time.Millisecond
		}
		s.work.Failed(err)
		s.log.Warn().Err(stream.Explain(err)).Dur("retry_in", wait).Msg("ingest: starting over at the last commit")
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
			wait = min(2*wait, longest)
		}
	}
}

// session is one life of a transaction client.
type session struct {
	*Service
	tx         *stream.Tx
	merge      *merger
	partitions map[string]int32                // of imp.v1 and clk.v1
	parts      map[string]int32                // of the raw topics
	sent       map[stream.TopicPartition]int64 // promises of the last committed punctuation
	sentAt     time.Time
	began      time.Time
	announced  bool  // the join has heard how many raw partitions there are
	repeated   bool  // what was promised has been said a second time
	failed     error // of a rebalance callback
	slab       []stream.Record

	mu   sync.Mutex
	news map[stream.TopicPartition]news // of watchEnds, to be taken by gather
}

// news is where a partition ended at some time after the broker was asked.
type news struct {
	end   int64
	asked time.Time
}

// repeatAfter is when a session says again what it has promised. The join starts anew with promises when raw partitions
// were added, and what another instance said before it had seen that counts for nothing: it looks within seconds.
const repeatAfter = 15 * time.Second

// errRecut makes the session start over: promises name raw partitions by numbers that have changed.
var errRecut = errors.New("the raw topics have other partitions than before")

// errAnew makes the session start over: what it holds is of a topic that is gone.
var errAnew = errors.New("a raw topic was deleted and made anew")

// compare looks whether the raw topics are those of the last session. One that was deleted and made anew is read from its start: the
// broker has forgotten the offsets with the topic. What was unread of the old one is gone, which nobody may overlook.
func (s *Service) compare(ids map[string]string) {
	for topic, id := range ids {
		if was := s.topics[topic]; was == "" || was == id {
			continue
		}
		n := int64(0)
		for tp, left := range s.left {
			if tp.Topic == topic {
				n += left
				delete(s.left, tp)
			}
		}
		s.metrics.lost.WithLabelValues(topic).Add(float64(n))
		s.log.Error().Str("topic", topic).Int64("records", n).
			Msg("ingest: the topic was deleted and made anew: it is read from its start, what this instance had not taken of the old one is lost")
	}
	s.topics = ids
}

func (s *Service) session(ctx context.Context) error {
	ids, err := stream.TopicIDs(ctx, s.kafka, rawTopics()...)
	if err != nil {
		return err
	}
	s.compare(ids)
	partitions, err := stream.PartitionCounts(ctx, s.kafka, schemas.TopicImpressions, schemas.TopicClicks)
	if err != nil {
		return err
	}
	if i, c := partitions[schemas.TopicImpressions], partitions[schemas.TopicClicks]; i != c {
		return fmt.Errorf(
			"%s has %d partitions, %s has %d: %w: the join needs the same",
			schemas.TopicImpressions,
			i,
			schemas.TopicClicks,
			c,
			stream.ErrPartitionCount,
		)
	}
	parts, err := stream.PartitionCounts(ctx, s.kafka, schemas.TopicRawImpressions, schemas.TopicRawClicks)
	if err != nil {
		return err
	}
	r := &session{
		Service:    s,
		partitions: partitions,
		parts:      parts,
		sent:       map[stream.TopicPartition]int64{},
		merge:      newMerger(s.cfg),
		began:      s.now(),
		news:       map[stream.TopicPartition]news{},
	}
	r.tx, err = stream.NewTx(s.kafka, stream.TxConfig{
		Group: Group, TransactionalID: "ctrloop-ingest-" + s.instance, InstanceID: s.instance,
		Topics:      []string{schemas.TopicRawImpressions, schemas.TopicRawClicks},
		KeepMarkers: true, // or the end of a partition that transactions were written to would never be reached
		MaxPoll:     0,    // everything fetched: a bounded poll would show some partitions empty that are not
		OnAssigned:  func(_ context.Context, parts map[string][]int32) { r.assigned(ctx, parts) },
		OnLost:      r.lost,
		// 64 partitions at their full megabyte, so that a partition that is missing in an answer of a
		// broker had nothing to give and was not just crowded out.
		FetchMaxPartitionBytes: 1 << 20,
		FetchMaxBytes:          64 << 20,
	})
	if err != nil {
		return err
	}
	defer r.tx.Close()
	watch, stop := context.WithCancel(ctx)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		r.watchEnds(watch)
	}()
	defer func() {
		stop()
		<-watching
	}()
	for {
		if err := r.step(ctx); err != nil {
			return err
		}
	}
}

// watchEnds asks again and again where the raw partitions end. It is a goroutine of its own, so that a broker that does not
// answer holds up nothing but the news of its partitions.
func (r *session) watchEnds(ctx context.Context) {
	const longest = 5 * time.Second // for one question
	const saltsEvery = time.Minute
	salts := time.Now()
	for {
		if time.Since(salts) >= saltsEvery {
			salts = time.Now()
			if committed, err := stream.CommittedOffsets(ctx, r.kafka, Group, rawTopics()...); err == nil {
				r.compareSalts(committed)
			}
		}
		asked := r.now()
		question, cancel := context.WithTimeout(ctx, longest)
		ends, err := r.tx.Ends(question, rawTopics()...)
		cancel()
		if err != nil && ctx.Err() == nil {
			r.log.Debug().Err(err).Msg("ingest: where do the raw partitions end?")
		}
		r.mu.Lock()
		for tp, end := range ends {
			r.news[tp] = news{end, asked}
		}
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(r.cfg.Merge.PunctuateEvery):
		}
	}
}

// hear takes what watchEnds has found out.
func (r *session) hear() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for tp, n := range r.news {
		if tp.Partition >= r.parts[tp.Topic] {
			return errRecut
		}
		if s := r.merge.sources[tp]; s != nil {
			r.merge.ended(s, n.end, n.asked)
		}
	}
	clear(r.news)
	return nil
}

func rawTopics() []string { return []string{schemas.TopicRawImpressions, schemas.TopicRawClicks} }

func (r *session) assigned(ctx context.Context, parts map[string][]int32) {
	topics := rawTopics()
	asked := r.now()
	ends, err := stream.WrittenOffsets(ctx, r.kafka, topics...)
	if err == nil {
		r.unchanged(ctx)
		var starts map[stream.TopicPartition]int64
		var committed map[stream.TopicPartition]stream.Committed
		if starts, err = stream.StartOffsets(ctx, r.kafka, topics...); err == nil {
			committed, err = stream.CommittedOffsets(ctx, r.kafka, Group, topics...)
			r.compareSalts(committed)
		}
		for topic, ps := range parts {
			for _, p := range ps {
				tp := stream.TopicPartition{Topic: topic, Partition: p}
				at, had := committed[tp]
				next, promised, position := starts[tp], int64(0), int64(0)
				if had {
					next = at.Offset
					promised, position = parsePlace(at.Metadata)
				}
				if p >= r.parts[topic] {
					err = errRecut
				}
				r.merge.assign(tp, next, ends[tp], asked, promised, position)
			}
		}
	}
	if err != nil {
		r.failed = fmt.Errorf("look at assigned partitions: %w", err)
	}
	r.log.Info().Interface("partitions", parts).Msg("ingest: partitions assigned")
}

// unchanged fails the session where the raw topics are no longer those that it began with. If they are, what is left of them is
// that of the partitions that are assigned now.
func (r *session) unchanged(ctx context.Context) {
	ids, err := stream.TopicIDs(ctx, r.kafka, rawTopics()...)
	switch {
	case err != nil:
		r.failed = err
	case !maps.Equal(ids, r.topics):
		r.failed = errAnew
	default:
		clear(r.left)
	}
}

func (r *session) lost(_ context.Context, parts map[string][]int32) {
	for topic, ps := range parts {
		for _, p := range ps {
			tp := stream.TopicPartition{Topic: topic, Partition: p}
			r.merge.drop(tp)
			delete(r.sent, tp)
		}
	}
}

// place is what is committed beside an offset: what a restart, or another instance, cannot find out otherwise.
func (s *Service) place(promised, position int64) string {
	return fmt.Sprintf("v1 promised=%d position=%d salt=%s", promised, position, s.salt())
}

// salt tells this instance's salt from others, and nothing else of it.
func (s *Service) salt() string {
	return fmt.Sprintf("%08x", uint32(SaltCheck(string(s.decoder.salt))))
}

// compareSalts looks whether all raw partitions were committed last by instances with this one's salt. Under two salts each user is
// two, in two arms.
func (s *Service) compareSalts(committed map[stream.TopicPartition]stream.Committed) {
	var foreign []string
	for tp, c := range committed {
		if _, salt, ok := strings.Cut(c.Metadata, " salt="); ok && salt != s.salt() {
			foreign = append(foreign, tp.String())
		}
	}
	s.metrics.foreignSalt.Set(float64(len(foreign)))
	if len(foreign) > 0 {
		slices.Sort(foreign)
		s.log.Error().Strs("partitions", foreign).
			Msg("ingest: users were hashed under another ingest.user_salt there: every instance needs the same, or each user becomes two. " +
				"Was it changed, or does another instance have its own?")
	}
}

func parsePlace(s string) (promised, position int64) {
	if _, err := fmt.Sscanf(s, "v1 promised=%d position=%d", &promised, &position); err != nil {
		return 0, 0 // nothing there: the watermark starts with the first event
	}
	return promised, position
}

// step gathers for one commit interval, then commits one transaction of what the merge gives.
func (r *session) step(ctx context.Context) error {
	if err := r.gather(ctx); err != nil {
		return err
	}
	now := r.now()
	if err := r.hear(); err != nil {
		return err
	}
	r.merge.tick(now)
	for tp, s := range r.merge.sources {
		r.left[tp] = max(0, s.end-s.position)
	}
	source, it, ok := r.merge.take()
	if !ok && !r.punctuationDue(now) {
		r.work.Alive()
		return nil
	}
	return r.transaction(ctx, now, source, it)
}

// gather polls until there is a transaction's worth that the merge can give, or the interval is over. It
// polls at least once: what is buffered may have to wait for a partition that is not.
func (r *session) gather(ctx context.Context) error {
	interval := r.cfg.Merge.CommitInterval
	if r.enough() {
		interval = time.Millisecond // a look at what is there already
	}
	deadline := time.Now().Add(interval)
	for first := true; first || !r.enough(); first = false {
		b, err := r.tx.Poll(ctx, time.Until(deadline))
		if err != nil {
			return err
		}
		if r.failed != nil {
			return r.failed
		}
		now := r.now()
		r.merge.tick(now)
		if b.Len() == 0 {
			break
		}
		for _, p := range b.Partitions {
			r.read(p, now)
		}
		r.balance()
	}
	r.balance()
	r.metrics.buffered.Set(float64(r.merge.buffered))
	return nil
}

// enough says whether a full transaction is at hand.
func (r *session) enough() bool {
	return r.merge.buffered >= r.cfg.Merge.TransactionEvents && !r.merge.blocked()
}

// read checks the records of one partition and gives them to the merger.
func (r *session) read(p stream.PartitionBatch, now time.Time) {
	s := r.merge.sources[stream.TopicPartition{Topic: p.Topic, Partition: p.Partition}]
	if s == nil {
		return // cannot happen: OnAssigned runs first
	}
	latest := now.Add(r.cfg.AllowedSkew)
	items := make([]item, 0, len(p.Records))
	for _, rec := range p.Records {
		if rec.Attrs.IsControl() {
			continue // the end of somebody's transaction
		}
		e, problem := r.decoder.raw(rec.Topic, rec.Value)
		if problem == nil && r.cfg.Clock == ClockWall {
			before := e.timeMS
			if e, problem = limitFuture(e, latest); problem == nil && e.timeMS != before {
				r.metrics.clamped.Inc()
			}
		}
		it := item{event: e, problem: problem, offset: rec.Offset}
		if problem != nil {
			it.record = rec
		}
		items = append(items, it)
	}
	r.merge.add(s, items, p.Records[len(p.Records)-1].Offset+1, p.HighWatermark)
}

// balance pauses partitions that are far ahead of the merge and resumes those that no longer are.
func (r *session) balance() {
	n := 0
	for tp, s := range r.merge.sources {
		switch {
		case !s.paused && s.len() >= r.cfg.Merge.BufferEvents:
			r.tx.Pause(tp.Topic, tp.Partition)
			s.paused = true
		case s.paused && s.len() < r.cfg.Merge.BufferEvents/2:
			r.tx.Resume(tp.Topic, tp.Partition)
			s.paused = false
		}
		if s.paused {
			n++
		}
	}
	r.metrics.paused.Set(float64(n))
	r.metrics.owned.Set(float64(len(r.merge.sources)))
	r.metrics.unproven.Set(float64(r.merge.unproven()))
}

func (r *session) punctuationDue(now time.Time) bool {
	return now.Sub(r.sentAt) >= r.cfg.Merge.PunctuateEvery && r.advanced() || r.repeatDue(now)
}

func (r *session) repeatDue(now time.Time) bool {
	return !r.repeated && len(r.sent) > 0 && now.Sub(r.began) >= repeatAfter
}

// advanced says whether some promise is greater than the last one that was sent.
func (r *session) advanced() bool {
	for tp, s := range r.merge.sources {
		if r.merge.promise(s) > r.sent[tp] {
			return true
		}
	}
	return false
}

// counts of one transaction, added to the metrics when it commits.
type counts struct {
	read    map[string]int
	kinds   [3]int
	dropped map[schemas.DeadLetterReason]int
}

// transaction routes what the merge gives, beginning with an item already taken, if there is one.
func (r *session) transaction(ctx context.Context, now time.Time, from *source, it *item) error {
	if err := r.tx.Begin(); err != nil {
		return err
	}
	c := counts{read: map[string]int{}, dropped: map[schemas.DeadLetterReason]int{}}
	if err := r.announce(now, it); err != nil {
		return err
	}
	promise := false
	for n := 0; it != nil; n++ {
		c.read[from.at.Topic]++
		switch {
		case it.problem != nil:
			c.dropped[it.problem.reason]++
			r.tx.Produce(deadLetter(from.at, it))
		default:
			c.kinds[it.kind]++
			promise = promise || it.kind == watermark
			if it.kind != watermark {
				r.tx.Produce(r.routed(it))
			}
		}
		if it = nil; n+1 < r.cfg.Merge.TransactionEvents {
			from, it, _ = r.merge.take()
		}
	}
	var sent map[stream.TopicPartition]int64
	if promise && r.advanced() || r.punctuationDue(now) {
		var err error
		if sent, err = r.punctuate(); err != nil {
			return err
		}
	}
	ok, err := r.commit(ctx)
	if err != nil {
		return err
	}
	if !ok {
		r.metrics.transactions.WithLabelValues("aborted").Inc()
		// The client is back at the last commit; what we hold was read after it.
		return errAborted
	}
	r.announced = true
	r.work.Worked()
	if sent != nil {
		r.sent, r.sentAt, r.repeated = sent, now, r.repeated || r.repeatDue(now)
		r.metrics.punctuations.Inc()
		r.metrics.lowWatermark.Set(float64(r.merge.low()) / 1000)
	}
	r.count(c)
	return nil
}

// errAborted makes the session start over: its merge state belongs to the aborted transaction.
var errAborted = errors.New("transaction aborted (a rebalance, or Kafka refused it)")

func (r *session) count(c counts) {
	r.metrics.transactions.WithLabelValues("committed").Inc()
	for topic, n := range c.read {
		r.metrics.read.WithLabelValues(topic).Add(float64(n))
	}
	for k, n := range c.kinds {
		r.metrics.routed.WithLabelValues(kind(k).String()).Add(float64(n))
	}
	for reason, n := range c.dropped {
		r.metrics.dropped.WithLabelValues(string(reason)).Add(float64(n))
	}
}

func (r *session) commit(ctx context.Context) (bool, error) {
	upTo := make(map[stream.TopicPartition]int64, len(r.merge.sources))
	for tp, s := range r.merge.sources {
		upTo[tp] = s.position
	}
	ok, err := r.tx.CommitUpTo(ctx, upTo, func(topic string, p int32) (string, bool) {
		s := r.merge.sources[stream.TopicPartition{Topic: topic, Partition: p}]
		if s == nil || !s.dirty {
			return "", false
		}
		return r.place(s.promised, r.merge.position), true
	})
	if ok {
		for _, s := range r.merge.sources {
			s.dirty = false
		}
	}
	return ok, err
}

func (r *session) routed(it *item) *stream.Record {
	if len(r.slab) == 0 {
		r.slab = make([]stream.Record, 1024)
	}
	rec := &r.slab[0]
	r.slab = r.slab[1:]
	rec.Topic, rec.Key, rec.Value, rec.Timestamp = it.kind.topic(), it.id, it.value, time.UnixMilli(it.timeMS)
	return rec
}

// announce says how many raw partitions there are, before the first event of this session: the join must not take events of
// one that is read already for the time of those that nobody has read yet.
func (r *session) announce(now time.Time, first *item) error {
	if r.announced {
		return nil
	}
	if first != nil && first.timeMS > 0 {
		now = time.UnixMilli(first.timeMS) // record time is event time
	}
	return r.broadcast(&eventpb.Punctuation{Source: r.instance, Parts: r.all()}, now)
}

// all is the number of raw partitions.
func (r *session) all() uint32 {
	return uint32(r.parts[schemas.TopicRawImpressions] + r.parts[schemas.TopicRawClicks])
}

// broadcast writes a punctuation into every partition of both topics.
func (r *session) broadcast(p *eventpb.Punctuation, at time.Time) error {
	value, err := proto.Marshal(p)
	if err != nil {
		return fmt.Errorf("encode punctuation: %w", err)
	}
	for topic, n := range r.partitions {
		for p := range n {
			r.tx.Produce(&stream.Record{
				Topic: topic, Partition: p, Value: value, Timestamp: at,
				Headers: []stream.RecordHeader{{Key: schemas.HeaderPunctuation}},
			})
		}
	}
	return nil
}

// punctuate writes what this instance promises into every partition of both topics. A promise is for raw partitions, not
// for the instance: when they move to another one, nobody has to say good-bye and nobody is missed. Nearly always it
// is one promise for all that the instance reads.
func (r *session) punctuate() (map[stream.TopicPartition]int64, error) {
	sent := map[stream.TopicPartition]int64{}
	covers := map[int64][]uint32{}
	for tp, s := range r.merge.sources {
		low := r.merge.promise(s)
		sent[tp] = low
		if low <= 0 {
			continue // nothing is known of it yet
		}
		part := uint32(tp.Partition)
		if tp.Topic == schemas.TopicRawClicks {
			part += uint32(r.parts[schemas.TopicRawImpressions])
		}
		covers[low] = append(covers[low], part)
	}
	for _, low := range slices.Sorted(maps.Keys(covers)) {
		slices.Sort(covers[low])
		p := &eventpb.Punctuation{Source: r.instance, LowWatermarkMs: low, Covers: covers[low], Parts: r.all()}
		if err := r.broadcast(p, time.UnixMilli(low)); err != nil {
			return nil, err
		}
	}
	return sent, nil
}

func deadLetter(at stream.TopicPartition, it *item) *stream.Record {
	rec := it.record
	d := &eventpb.DeadLetter{
		Reason: string(it.problem.reason), Detail: it.problem.detail,
		Topic: at.Topic, Partition: at.Partition, Offset: rec.Offset,
		Key: rec.Key, Value: rec.Value[:min(len(rec.Value), maxDeadBytes-(64<<10))],
	}
	value, err := proto.Marshal(d)
	if err != nil { // a detail that is not UTF-8, quoted from the event
		d.Detail = fmt.Sprintf("%q", d.Detail)
		value, _ = proto.Marshal(d)
	}
	key := rec.Key
	if key == nil {
		key = []byte{} // keyed, though by nothing: the source has no key either
	}
	return &stream.Record{Topic: schemas.TopicDeadLetters, Key: key, Value: value, Timestamp: rec.Timestamp}
}
