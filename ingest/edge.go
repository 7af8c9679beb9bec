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
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"ctrloop/internal/stream"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// maxReported bounds the rejections that one answer spells out; the rest is in the total. A batch of a replay is no larger.
const maxReported = 5000

// Edge is the HTTP door for events.
type Edge struct {
	cfg      Config
	decoder  decoder
	producer *stream.Producer
	kafka    stream.Config
	log      zerolog.Logger
	metrics  *edgeMetrics
	now      func() time.Time
	inFlight atomic.Int64 // bytes
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
	e := &Edge{cfg: cfg, kafka: kafka, log: log, producer: p, now: time.Now, decoder: decoder{[]byte(cfg.UserSalt), cfg.MaxEventBytes}}
	e.metrics = newEdgeMetrics(reg, func() float64 { return float64(e.inFlight.Load()) })
	return e, nil
}

// Close stops the producer. Requests in progress fail with 503.
func (e *Edge) Close() { e.producer.Close() }

// Handler serves POST /v1/events.
func (e *Edge) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/events", e.events)
	return mux
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
	Error         string      `json:"error,omitempty"`
}

// refusal is the answer to a body that cannot be taken as a whole.
type refusal struct {
	status  int
	outcome string
	text    string
}

func (r *refusal) Error() string { return r.text }

func refuse(status int, outcome, format string, args ...any) *refusal {
	return &refusal{status, outcome, fmt.Sprintf(format, args...)}
}

func (e *Edge) events(w http.ResponseWriter, r *http.Request) {
	var reserved int64
	defer func() { e.inFlight.Add(-reserved) }()
	body, err := e.read(w, r, &reserved)
	var batch *batch
	if err == nil {
		batch, err = e.parse(r.Header.Get("Content-Type"), body)
	}
	if err != nil {
		e.refuse(w, err)
		return
	}
	if err := e.produce(r.Context(), batch); err != nil {
		e.log.Warn().Err(err).Int("events", batch.accepted()).Msg("edge: events were not acknowledged")
		e.refuse(w, refuse(http.StatusServiceUnavailable, outcomeUnacked,
			"the events were not acknowledged by Kafka (%v): some may have been written; send the same body again, ids make that harmless", err))
		return
	}
	e.respond(w, batch)
}

func (e *Edge) refuse(w http.ResponseWriter, err error) {
	var r *refusal
	if !errors.As(err, &r) {
		r = refuse(http.StatusBadRequest, outcomeBad, "the body could not be read: %v: send it again", err)
	}
	if r.status == http.StatusTooManyRequests || r.status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	e.metrics.requests.WithLabelValues(r.outcome).Inc()
	write(w, r.status, answer{Error: r.text})
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
	write(w, status, a)
}

func write(w http.ResponseWriter, status int, a answer) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(a) // a client that has gone needs no answer
}

// read takes the whole body, decompressed, counting it against the bound on all requests as it grows.
func (e *Edge) read(w http.ResponseWriter, r *http.Request, reserved *int64) ([]byte, error) {
	var src io.Reader = http.MaxBytesReader(w, r.Body, e.cfg.Edge.MaxBodyBytes)
	switch enc := r.Header.Get("Content-Encoding"); enc {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(src)
		if err != nil {
			return nil, e.readError(err)
		}
		defer func() { _ = z.Close() }() // it says again what a read has said
		src = z
	case "zstd":
		// One worker and a bounded window: a frame may ask for gigabytes.
		z, err := zstd.NewReader(src, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return nil, e.readError(err)
		}
		defer z.Close()
		src = z
	default:
		return nil, refuse(http.StatusUnsupportedMediaType, outcomeBad, "Content-Encoding %q is not supported: use gzip, zstd or none", enc)
	}
	return e.readAll(src, max(r.ContentLength, 0), reserved)
}

func (e *Edge) readAll(src io.Reader, hint int64, reserved *int64) ([]byte, error) {
	if hint > e.cfg.Edge.MaxBodyBytes {
		return nil, e.readError(&http.MaxBytesError{Limit: e.cfg.Edge.MaxBodyBytes})
	}
	reserve := func(n int64) error {
		*reserved += n
		if e.inFlight.Add(n) > e.cfg.Edge.MaxInFlightBytes {
			return refuse(
				http.StatusTooManyRequests,
				outcomeOverloaded,
				"more than %d bytes of events wait for Kafka: come back after Retry-After",
				e.cfg.Edge.MaxInFlightBytes,
			)
		}
		return nil
	}
	size := max(hint+1, 4<<10)
	if err := reserve(size); err != nil {
		return nil, err
	}
	buf := make([]byte, 0, size)
	for {
		n, err := src.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if int64(len(buf)) > e.cfg.Edge.MaxDecodedBytes {
			return nil, refuse(
				http.StatusRequestEntityTooLarge,
				outcomeTooLarge,
				"the decompressed body has more than %d bytes: send smaller bodies",
				e.cfg.Edge.MaxDecodedBytes,
			)
		}
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return nil, e.readError(err)
		}
		if len(buf) == cap(buf) {
			if err := reserve(int64(cap(buf))); err != nil {
				return nil, err
			}
			buf = append(make([]byte, 0, 2*cap(buf)), buf...)
		}
	}
}

func (e *Edge) readError(err error) error {
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return refuse(http.StatusRequestEntityTooLarge, outcomeTooLarge, "the body has more than %d bytes: send smaller bodies", large.Limit)
	case errors.Is(err, zstd.ErrWindowSizeExceeded), errors.Is(err, zstd.ErrDecoderSizeExceeded):
		return refuse(http.StatusRequestEntityTooLarge, outcomeTooLarge, "zstd window larger than 8 MiB: compress without --long")
	}
	return refuse(
		http.StatusBadRequest,
		outcomeBad,
		"the body could not be read or decompressed (%v): check Content-Encoding and send it again",
		err,
	)
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
		return nil, refuse(http.StatusUnsupportedMediaType, outcomeBad, "Content-Type %q: %v", contentType, err)
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
		return nil, refuse(http.StatusUnsupportedMediaType, outcomeBad,
			"Content-Type %q is not supported: use application/json, application/x-ndjson or application/x-protobuf", media)
	}
	if err != nil {
		return nil, err
	}
	if b.index == 0 {
		return nil, refuse(http.StatusBadRequest, outcomeBad, "the body holds no event: send at least one")
	}
	return b, nil
}

func (e *Edge) parseJSON(b *batch, body []byte) error {
	dec := json.NewDecoder(bytes.NewReader(body))
	broken := func(err error) error {
		return refuse(
			http.StatusBadRequest,
			outcomeBad,
			"the body is not JSON behind event %d, byte %d (%v); none of it was taken: correct it and send it again",
			b.index,
			dec.InputOffset(),
			err,
		)
	}
	array := bytes.HasPrefix(bytes.TrimLeft(body, " \t\r\n"), []byte("["))
	if array {
		if _, err := dec.Token(); err != nil {
			return broken(err)
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
			return broken(err)
		}
		values = append(values, raw)
	}
	if array {
		if _, err := dec.Token(); err != nil {
			return broken(err)
		}
		if rest := bytes.TrimSpace(body[dec.InputOffset():]); len(rest) > 0 {
			return broken(errors.New("something follows the array"))
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
				outcomeBad,
				"the body is broken at byte %d, behind event %d; none of it was taken: write it with eventpb.AppendBody",
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
