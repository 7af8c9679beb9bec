package joiner

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/go-faster/city"
	"google.golang.org/protobuf/proto"

	"ctrloop/internal/stream"
	"ctrloop/joiner/window"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// slab hands out records and bytes that live for one transaction. The client holds on to both until the
// commit returns; then all of it is used again, so that the steady state makes no garbage.
type slab struct {
	records [][]stream.Record
	r, rn   int // chunk and record in it
	bytes   [][]byte
	b       int
}

const (
	recordChunk = 1024
	byteChunk   = 256 << 10
)

func (s *slab) reset() {
	s.r, s.rn, s.b = 0, 0, 0
	for i := range s.bytes {
		s.bytes[i] = s.bytes[i][:0]
	}
}

func (s *slab) record() *stream.Record {
	if s.rn == recordChunk {
		s.r, s.rn = s.r+1, 0
	}
	if s.r == len(s.records) {
		s.records = append(s.records, make([]stream.Record, recordChunk))
	}
	s.rn++
	return &s.records[s.r][s.rn-1]
}

// room returns a chunk with space for n more bytes; keep gives it back with them.
func (s *slab) room(n int) []byte {
	for s.b < len(s.bytes) && cap(s.bytes[s.b])-len(s.bytes[s.b]) < n {
		s.b++
	}
	if s.b == len(s.bytes) {
		s.bytes = append(s.bytes, make([]byte, 0, max(byteChunk, n)))
	}
	return s.bytes[s.b]
}

func (s *slab) keep(b []byte) { s.bytes[s.b] = b }

// labelRoom is more than nearly all labels take, their keys included. A longer one moves its chunk to a larger place;
// what was handed out of it stays where it was.
const labelRoom = 512

// label makes the record of a label: key and value lie side by side in the slab.
func (s *slab) label(l *window.Label, partition int32, suspect bool) *stream.Record {
	b := s.room(labelRoom)
	start := len(b)
	b = append(b, l.ID[:]...)
	value := len(b)
	b = appendLabel(b, l, suspect)
	s.keep(b)
	r := s.record()
	*r = stream.Record{
		Topic: schemas.TopicLabels, Partition: partition, Timestamp: time.UnixMilli(l.ID.UnixMilli()),
		Key: b[start:value:value], Value: b[value:len(b):len(b)],
	}
	return r
}

// marshal is for the rare records. Encoding a message of ours cannot fail: every string in it is a constant
// or came out of fmt.
func marshal(m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("joiner: encode %T: %v", m, err))
	}
	return b
}

func lateRecord(l *window.Late, partition int32) *stream.Record {
	topic := schemas.TopicImpressions
	if l.Input == window.Clicks {
		topic = schemas.TopicClicks
	}
	return &stream.Record{
		Topic: schemas.TopicLate, Key: l.ID[:], Timestamp: time.UnixMilli(l.TimeMS),
		Value: marshal(&eventpb.Late{
			Reason: string(l.Reason), ImpressionId: l.ID[:], TimeMs: l.TimeMS, WatermarkMs: knownTime(l.WatermarkMS),
			Topic: topic, Partition: partition, Offset: l.Offset, Value: l.Value,
		}),
	}
}

// audit sums what a transaction puts into one partition of labels.v1, by minute of impression time.
type audit struct {
	minutes map[int64]*eventpb.AuditMinute
	last    *eventpb.AuditMinute
}

const minuteMS = 60_000

func (a *audit) add(l *window.Label, partition int32) {
	minute := l.ID.UnixMilli() / minuteMS * minuteMS
	m := a.last
	if m == nil || m.MinuteMs != minute {
		if m = a.minutes[minute]; m == nil {
			m = &eventpb.AuditMinute{Partition: partition, MinuteMs: minute}
			if a.minutes == nil {
				a.minutes = map[int64]*eventpb.AuditMinute{}
			}
			a.minutes[minute] = m
		}
		a.last = m
	}
	m.Labels++
	if l.Clicked {
		m.Positive++
	}
	h := city.CH64(l.ID[:])
	m.HashXor ^= h
	m.HashSum += h
}

// records empties the audit, oldest minute first.
func (a *audit) records(partition int32) []*stream.Record {
	var out []*stream.Record
	for _, m := range a.minutes {
		out = append(out, &stream.Record{
			Topic: schemas.TopicAudit, Key: strconv.AppendInt(nil, int64(partition), 10),
			Timestamp: time.UnixMilli(m.MinuteMs), Value: marshal(m),
		})
	}
	slices.SortFunc(out, func(a, b *stream.Record) int { return cmp.Compare(a.Timestamp.UnixMilli(), b.Timestamp.UnixMilli()) })
	a.reset()
	return out
}

func (a *audit) reset() {
	clear(a.minutes)
	a.last = nil
}
