package ingest

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/access"
	"ctrloop/internal/httpapi"
	"ctrloop/internal/stream"
	"ctrloop/internal/telemetry"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// maxReported bounds the rejections that one answer spells out; the rest is in the total. A batch of a replay is no larger.
const maxReported = 5000

// logEvery is the pace of lines about a fault that repeats, askEvery that of questions to a Kafka that takes no events.
const (
	logEvery = 10 * time.Second
	askEvery = 2 * time.Second
)

// Edge is the HTTP door for events.
type Edge struct {
	cfg      Config
	decoder  decoder
	producer *stream.Producer
	kafka    stream.Config
	log      zerolog.Logger
	limited  *telemetry.Throttle // of log
	metrics  *edgeMetrics
	now      func() time.Time
	inFlight *httpapi.Budget
	health   *telemetry.Gate
}

// NewEdge builds the edge; it owns a producer of its own until Close.
func NewEdge(cfg Config, kafka stream.Config, log zerolog.Logger, reg prometheus.Registerer) (*Edge, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("ingest configuration: %w", err)
	}
	p, err := stream.NewProducer(kafka, stream.ProducerConfig{MaxBufferedRecords: 500_000, MaxBufferedBytes: int(cfg.Edge.MaxInFlightBytes)})
	if err != nil {
		return nil, fmt.Errorf("edge: %w", err)
	}
	e := &Edge{
		cfg: cfg, kafka: kafka, log: log, producer: p, decoder: decoder{[]byte(cfg.UserSalt.Reveal()), cfg.MaxEventBytes}, now: time.Now,
		limited: telemetry.NewThrottle(log, logEvery, time.Now), inFlight: httpapi.NewBudget(cfg.Edge.MaxInFlightBytes),
	}
	e.metrics = newEdgeMetrics(reg, func() float64 { return float64(e.inFlight.Used()) })
	return e, nil
}

// Reports has the edge say whether Kafka takes its events. Call it before the first request.
func (e *Edge) Reports(health *telemetry.Gate) { e.health = health }

// Run asks Kafka again and again while it takes no events, until ctx is done: a balancer that believes /readyz sends none
// that could show that it does.
func (e *Edge) Run(ctx context.Context) error {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			e.askKafka(ctx)
		}
	}
}

func (e *Edge) askKafka(ctx context.Context) {
	if e.health.Ready() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, askEvery)
	defer cancel()
	if _, err := stream.PartitionCounts(ctx, e.kafka, schemas.TopicRawImpressions, schemas.TopicRawClicks); err == nil {
		e.health.Healthy() // the next events may say otherwise
	}
}

// Close stops the producer. Requests in progress fail with 503.
func (e *Edge) Close() { e.producer.Close() }

// Routes are the edge's calls.
func (e *Edge) Routes() []httpapi.Route {
	return []httpapi.Route{{Method: http.MethodPost, Path: "/v1/events", Scope: access.EventsWrite, Handle: e.events}}
}

type rejection struct {
	Index  int                      `json:"index"`
	Reason schemas.DeadLetterReason `json:"reason"`
	Detail string                   `json:"detail"`
}

type answer struct {
	Accepted      int         `json:"accepted"`
	Rejected      []rejection `json:"rejected,omitempty"`
	RejectedTotal int         `json:"rejected_total,omitempty"`
}

// refuse makes the answer to a body that cannot be taken as a whole.
func refuse(status int, hint, format string, args ...any) error {
	return httpapi.Refuse(status, hint, format, args...)
}

func (e *Edge) events(w http.ResponseWriter, r *http.Request) {
	hold := e.inFlight.Hold()
	defer hold.Release()
	body, err := e.read(w, r, hold)
	var batch *batch
	if err == nil {
		batch, err = e.parse(r.Header.Get("Content-Type"), body)
	}
	if err == nil {
		err = e.deliver(r.Context(), batch)
	}
	if err != nil {
		e.metrics.requests.WithLabelValues(outcomeOf(err)).Inc()
		httpapi.Fail(w, err)
		return
	}
	e.respond(w, batch)
}

// outcomeOf names a refusal in the metrics.
func outcomeOf(err error) string {
	refused, _ := errors.AsType[*httpapi.Error](err)
	switch {
	case refused == nil:
		return outcomeBad
	case refused.Status == http.StatusRequestEntityTooLarge:
		return outcomeTooLarge
	case refused.Status == http.StatusTooManyRequests:
		return outcomeOverloaded
	case refused.Status == http.StatusServiceUnavailable:
		return outcomeUnacked
	}
	return outcomeBad
}

// deliver produces a batch, and tells health and log how that went.
func (e *Edge) deliver(ctx context.Context, b *batch) error {
	err := e.produce(ctx, b)
	if err == nil {
		e.health.Healthy()
		return nil
	}
	if ctx.Err() == nil { // a client that leaves says nothing about Kafka
		e.health.Unhealthy("events are not acknowledged by Kafka: " + err.Error())
	}
	e.limited.Event(zerolog.WarnLevel, "unacked").Err(err).Int("events", b.accepted()).Msg("edge: events were not acknowledged")
	return refuse(http.StatusServiceUnavailable, "send the same body again: ids make that harmless",
		"the events were not acknowledged by Kafka (%v): some may have been written", err)
}

func (e *Edge) respond(w http.ResponseWriter, b *batch) {
	a := answer{Accepted: b.accepted(), Rejected: b.rejected, RejectedTotal: b.rejectedTotal}
	status, outcome := http.StatusOK, outcomeOK
	switch {
	case a.RejectedTotal > 0 && a.Accepted == 0:
		status, outcome = http.StatusBadRequest, outcomeBad
	case a.RejectedTotal > 0:
		status, outcome = http.StatusMultiStatus, outcomePartial
	}
	e.metrics.requests.WithLabelValues(outcome).Inc()
	for k, n := range b.kinds {
		e.metrics.accepted.WithLabelValues(kind(k).String()).Add(float64(n))
	}
	for reason, n := range b.reasons {
		e.metrics.rejected.WithLabelValues(string(reason)).Add(float64(n))
	}
	httpapi.Reply(w, status, a)
}

// read takes the whole body, decompressed, counting it against the bound on all requests as it grows.
func (e *Edge) read(w http.ResponseWriter, r *http.Request, hold *httpapi.Hold) ([]byte, error) {
	if r.ContentLength > e.cfg.Edge.MaxBodyBytes {
		return nil, refuse(http.StatusRequestEntityTooLarge, "send smaller bodies", "the body has more than %d bytes", e.cfg.Edge.MaxBodyBytes)
	}
	src := http.MaxBytesReader(w, r.Body, e.cfg.Edge.MaxBodyBytes)
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
		return hold.Read(src, r.ContentLength, e.cfg.Edge.MaxDecodedBytes)
	case "gzip":
		z, err := gzip.NewReader(src)
		if err != nil {
			return nil, broken(err)
		}
		defer func() { _ = z.Close() }() // it says again what a read has said
		return hold.Read(decompressed{z}, -1, e.cfg.Edge.MaxDecodedBytes)
	case "zstd":
		// One worker and a bounded window: a frame may ask for gigabytes.
		z, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, broken(err)
		}
		defer z.Close()
		return hold.Read(decompressed{z}, -1, e.cfg.Edge.MaxDecodedBytes)
	default:
		return nil, refuse(http.StatusUnsupportedMediaType, "use gzip, zstd or none", "Content-Encoding %q is not supported", enc)
	}
}

// decompressed says of a body that does not decompress what is wrong with it.
type decompressed struct{ io.Reader }

// Read implements io.Reader.
func (d decompressed) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		err = broken(err)
	}
	return n, err
}

func broken(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large), errors.Is(err, os.ErrDeadlineExceeded):
		return err // httpapi has words for both
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return refuse(http.StatusRequestEntityTooLarge, "compress without --long", "zstd window larger than 8 MiB")
	}
	return refuse(http.StatusBadRequest, "check Content-Encoding and send it again", "the body could not be read or decompressed: %v", err)
}

// batch gathers the events of one request as records of the raw topics.
type batch struct {
	index         int       // of the next event
	latest        time.Time // an event may be; zero: at any time
	records       []stream.Record
	kinds         [3]int
	watermark     []byte // the last one; it goes behind the records
	rejected      []rejection
	rejectedTotal int
	reasons       map[schemas.DeadLetterReason]int
	arena         []byte // values, so that an event costs no allocation of its own
}

func (b *batch) accepted() int { return b.kinds[0] + b.kinds[1] + b.kinds[2] }

func (b *batch) add(e event, p *problem) {
	i := b.index
	b.index++
	if p == nil && !b.latest.IsZero() && e.kind != click { // a click is set back behind the raw topics
		e, p = limitFuture(e, b.latest)
	}
	if p == nil && b.watermark != nil && e.kind != watermark {
		p = reject(schemas.DeadBadField, "an event behind a watermark in the same body: the watermark promises that none follows")
	}
	if p != nil {
		b.reasons[p.reason]++
		b.rejectedTotal++
		if len(b.rejected) < maxReported {
			b.rejected = append(b.rejected, rejection{i, p.reason, p.detail})
		}
		return
	}
	b.kinds[e.kind]++
	header := rawHeaders[e.kind]
	if need := len(header) + len(e.value); cap(b.arena)-len(b.arena) < need {
		b.arena = make([]byte, 0, max(256<<10, need)) // what was handed out keeps the old one alive
	}
	from := len(b.arena)
	b.arena = append(append(b.arena, header...), e.value...)
	value := b.arena[from:len(b.arena):len(b.arena)]
	if e.kind == watermark {
		b.watermark = value
		return
	}
	topic := schemas.TopicRawImpressions
	if e.kind == click {
		topic = schemas.TopicRawClicks
	}
	b.records = append(b.records, stream.Record{Topic: topic, Key: bytes.Clone(e.id), Value: value})
}

func (e *Edge) parse(contentType string, body []byte) (*batch, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil && contentType != "" {
		return nil, refuse(http.StatusUnsupportedMediaType, "use application/json, application/x-ndjson or application/x-protobuf",
			"Content-Type %q: %v", contentType, err)
	}
	b := &batch{reasons: map[schemas.DeadLetterReason]int{}}
	if e.cfg.Clock == ClockWall {
		b.latest = e.now().Add(e.cfg.AllowedSkew)
	}
	switch media {
	case "application/x-protobuf", "application/protobuf":
		err = e.parseProtobuf(b, body)
	case "application/x-ndjson", "application/jsonl":
		for line := range bytes.Lines(body) {
			if line = bytes.TrimSpace(line); len(line) > 0 {
				b.add(e.decoder.json(line, true, ""))
			}
		}
	case "application/json", "":
		err = e.parseJSON(b, body)
	default:
		return nil, refuse(http.StatusUnsupportedMediaType, "use application/json, application/x-ndjson or application/x-protobuf",
			"Content-Type %q is not supported", media)
	}
	if err != nil {
		return nil, err
	}
	if b.index == 0 {
		return nil, refuse(http.StatusBadRequest, "send at least one", "the body holds no event")
	}
	return b, nil
}

func (e *Edge) parseJSON(b *batch, body []byte) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	notJSON := func(err error) error {
		return refuse(
			http.StatusBadRequest,
			"correct it and send it again",
			"the body is not JSON behind event %d, byte %d (%v); none of it was taken",
			b.index,
			dec.InputOffset(),
			err,
		)
	}
	array := bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("["))
	if array {
		if _, err := dec.Token(); err != nil {
			return notJSON(err)
		}
	}
	// First the whole body, then the events: a broken body must leave nothing behind, metrics included.
	var values []json.RawMessage
	for !array || dec.More() {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err == io.EOF && !array {
			break
		} else if err != nil {
			b.index = len(values)
			return notJSON(err)
		}
		values = append(values, raw)
	}
	if array {
		if _, err := dec.Token(); err != nil {
			return notJSON(err)
		}
		if rest := bytes.TrimSpace(body[dec.InputOffset():]); len(rest) > 0 {
			return notJSON(errors.New("something follows the array"))
		}
	}
	for _, raw := range values {
		b.add(e.decoder.json(raw, true, ""))
	}
	return nil
}

// bodyKind is the kind of an event in a protobuf body, by the tag in front of it.
var bodyKind = map[uint64]kind{eventpb.BodyImpression: impression, eventpb.BodyClick: click, eventpb.BodyWatermark: watermark}

func (e *Edge) parseProtobuf(b *batch, body []byte) error {
	b.records = make([]stream.Record, 0, len(body)/96+1)
	b.arena = make([]byte, 0, len(body)+len(body)/16+64)
	var f eventpb.Field
	for at := 0; at < len(body); {
		n := eventpb.Next(body[at:], &f)
		k, known := bodyKind[f.Tag]
		if n == 0 || !known {
			return refuse(
				http.StatusBadRequest,
				"write it with eventpb.AppendBody",
				"the body is broken at byte %d, behind event %d; none of it was taken",
				at,
				b.index,
			)
		}
		at += n
		if len(f.Bytes) > e.decoder.maxBytes {
			b.add(event{}, e.decoder.oversized(f.Bytes))
			continue
		}
		b.add(checkMessage(k, f.Bytes))
	}
	return nil
}

// produce writes the records and waits; a watermark goes out when everything before it is acknowledged.
func (e *Edge) produce(ctx context.Context, b *batch) error {
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Edge.AckTimeout)
	defer cancel()
	if len(b.records) > 0 {
		rs := make([]*stream.Record, len(b.records))
		for i := range b.records {
			rs[i] = &b.records[i]
		}
		if err := e.producer.Produce(ctx, rs...); err != nil {
			return err
		}
	}
	if b.watermark == nil {
		return nil
	}
	// Asked for each watermark: one that misses a partition that was added holds up all that follow it.
	counts, err := stream.PartitionCounts(ctx, e.kafka, rawTopics()...)
	if err != nil {
		return err
	}
	var rs []*stream.Record
	for topic, n := range counts {
		for p := range n {
			rs = append(rs, &stream.Record{Topic: topic, Partition: p, Value: b.watermark})
		}
	}
	return e.producer.Produce(ctx, rs...)
}
