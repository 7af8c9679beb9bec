package joiner

import (
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"ctrloop/internal/stream"
	"ctrloop/joiner/breaker"
	"ctrloop/joiner/window"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// shop feeds one shard and its guard with minutes of event time, in the order in which the labels really come: positive
// at once, negative when the window closes.
type shop struct {
	t       *testing.T
	cfg     Config
	g       *guard
	sh      *Shard
	from    int // the first minute whose impressions are read; clicks of earlier ones come all the same
	minute  int // the next
	pending map[int][]*stream.Record
	offset  [2]int64
	depts   func(m int) []string
	lost    func(m int, dept string) bool // clicks made in this minute get lost
	slow    time.Duration                 // clicks come up to this long after their impression
}

func newShop(t *testing.T, from int) *shop {
	cfg := Default()
	s := &shop{
		t: t, cfg: cfg, from: from, pending: map[int][]*stream.Record{}, slow: 3 * time.Minute,
		depts: func(int) []string { return []string{"home", "garden"} }, lost: func(int, string) bool { return false },
	}
	s.restart(nil)
	return s
}

// restart begins with a state that was rebuilt, and a breaker that remembers nothing.
func (s *shop) restart(w *window.Window) {
	if w == nil {
		w = window.New(s.cfg.WindowConfig(1))
	}
	s.g = newGuard(s.cfg, testLog(s.t))
	s.sh = NewShard(s.g.suspicion(), 0, w, s.offset, 1)
}

// feed reads minutes up to one, so many in a transaction, and returns the first one after which a slice was open.
func (s *shop) feed(to, at int) (opened int) {
	s.t.Helper()
	opened = -1
	for s.minute < to {
		var rs [2][]*stream.Record
		for n := 0; n < at && s.minute < to; n++ {
			s.make(&rs)
			s.minute++
		}
		until := int64(epochMS) + int64(s.minute)*minuteMS + s.cfg.Lateness.Milliseconds()
		var batches []stream.PartitionBatch
		for in := range rs {
			rs[in] = append(rs[in], &stream.Record{
				Topic: inputTopic[in], Timestamp: time.UnixMilli(until), Headers: []stream.RecordHeader{{Key: schemas.HeaderPunctuation}},
				Value: marshal(&eventpb.Punctuation{Source: "edge", LowWatermarkMs: until}),
			})
			for _, r := range rs[in] {
				r.Offset = s.offset[in]
				s.offset[in]++
			}
			batches = append(batches, stream.PartitionBatch{Topic: inputTopic[in], Records: rs[in]})
		}
		must(s.t, s.sh.Process(batches, new(allowance), func(*stream.Record) {}))
		s.sh.Commit()
		s.g.judge(map[int32]*Shard{0: s.sh})
		if len(s.g.breaker.Tripped()) > 0 && opened < 0 {
			opened = s.minute
		}
	}
	return opened
}

// again goes back to a minute: what was read from there on is sent once more, as by somebody who was killed and starts over.
func (s *shop) again(from int) {
	s.minute = from
	clear(s.pending)
}

// make adds a minute: 300 impressions of each department, every tenth with a click.
func (s *shop) make(rs *[2][]*stream.Record) {
	const n = 300
	m := s.minute
	for j, dept := range s.depts(m) {
		for i := range n {
			at := int64(epochMS) + int64(m)*minuteMS + int64(i)*minuteMS/n
			var rest [10]byte
			binary.BigEndian.PutUint32(rest[4:], uint32(m*n+i))
			rest[8], rest[9] = byte(j), dept[0]
			id := schemas.NewImpressionID(time.UnixMilli(at), rest)
			if m >= s.from {
				rs[window.Impressions] = append(rs[window.Impressions], &stream.Record{
					Topic: schemas.TopicImpressions, Key: id[:], Timestamp: id.Time(),
					Value: marshal(&eventpb.Impression{Id: id[:], Category: dept + "/lamps", Schema: 1}),
				})
			}
			clicked := at + int64(i%50)*s.slow.Milliseconds()/50
			if minute := int((clicked - epochMS) / minuteMS); i%10 == 0 && !s.lost(minute, dept) {
				s.pending[minute] = append(s.pending[minute], &stream.Record{
					Topic: schemas.TopicClicks, Key: id[:], Timestamp: time.UnixMilli(clicked),
					Value: marshal(&eventpb.Click{ImpressionId: id[:], Id: []byte("c"), TimeMs: clicked, Schema: 1}),
				})
			}
		}
	}
	if m < s.from {
		return
	}
	clicks := s.pending[m]
	delete(s.pending, m)
	slices.SortStableFunc(clicks, func(a, b *stream.Record) int { return a.Timestamp.Compare(b.Timestamp) })
	rs[window.Clicks] = append(rs[window.Clicks], clicks...)
}

// TestBreakerHealthy: nothing trips it that is only the order in which labels come. A collapse after that does, as
// fast as ever, of all clicks and of those of one department.
func TestBreakerHealthy(t *testing.T) {
	for _, c := range []struct {
		name  string
		begin func(t *testing.T) (*shop, int) // also what opened it
	}{
		{"cold start", func(t *testing.T) (*shop, int) {
			s := newShop(t, 0)
			return s, s.feed(150, 1)
		}},
		{"restart", func(t *testing.T) (*shop, int) {
			s := newShop(t, 0)
			opened := s.feed(45, 1)
			s.restart(s.sh.w)
			return s, max(opened, s.feed(150, 1))
		}},
		{"restart in the first window", func(t *testing.T) (*shop, int) {
			s := newShop(t, 0)
			opened := s.feed(12, 1)
			s.restart(s.sh.w)
			return s, max(opened, s.feed(150, 1))
		}},
		{"backlog", func(t *testing.T) (*shop, int) {
			s := newShop(t, 0)
			return s, max(s.feed(400, 17), s.feed(410, 1))
		}},
		{"backlog after a restart", func(t *testing.T) (*shop, int) {
			s := newShop(t, 0)
			opened := s.feed(100, 1)
			s.restart(s.sh.w)
			return s, max(opened, s.feed(300, 40), s.feed(310, 1))
		}},
		{"an hour without traffic", func(t *testing.T) (*shop, int) {
			s := newShop(t, 0)
			s.depts = func(m int) []string {
				if m >= 120 && m < 180 {
					return nil
				}
				return []string{"home", "garden"}
			}
			return s, s.feed(300, 1)
		}},
		{"a new department", func(t *testing.T) (*shop, int) {
			s := newShop(t, 0)
			s.depts = func(m int) []string {
				if m < 90 {
					return []string{"garden"}
				}
				return []string{"garden", "home"}
			}
			return s, s.feed(220, 1)
		}},
		{"four times the traffic of a department", func(t *testing.T) (*shop, int) {
			s := newShop(t, 0)
			s.depts = func(m int) []string {
				if m < 100 {
					return []string{"garden", "home"}
				}
				return []string{"garden", "home", "home", "home", "home"}
			}
			return s, s.feed(220, 1)
		}},
		{"impressions are sent again and again, their clicks are not", func(t *testing.T) (*shop, int) {
			s := newShop(t, 0)
			opened := s.feed(120, 1)
			s.lost = func(int, string) bool { return true }
			for range 4 {
				s.again(0)
				opened = max(opened, s.feed(120, 10))
			}
			s.lost = func(int, string) bool { return false }
			return s, max(opened, s.feed(220, 1))
		}},
		{"what was read is sent again", func(t *testing.T) (*shop, int) {
			s := newShop(t, 0)
			opened := s.feed(120, 1)
			s.again(0)
			return s, max(opened, s.feed(260, 7))
		}},
		{"what is still open is sent again and again", func(t *testing.T) (*shop, int) {
			s := newShop(t, 0)
			opened := s.feed(120, 1)
			for range 4 {
				s.again(100)
				opened = max(opened, s.feed(120, 1))
			}
			return s, max(opened, s.feed(220, 1))
		}},
		{"the first impression was missed, of a window of 2 h", func(t *testing.T) (*shop, int) {
			s := newShop(t, 60)
			s.cfg.Window, s.slow = 2*time.Hour, 20*time.Minute
			s.restart(nil)
			return s, s.feed(330, 1)
		}},
	} {
		for _, lost := range []string{"", "home"} {
			name := c.name + ", then all clicks get lost"
			if lost != "" {
				name = c.name + ", then those of one department"
			}
			t.Run(name, func(t *testing.T) {
				s, opened := c.begin(t)
				if opened >= 0 {
					t.Fatalf("open at minute %d: %+v", opened, s.g.breaker.Tripped())
				}
				from := s.minute
				s.lost = func(m int, dept string) bool { return m >= from && (lost == "" || dept == lost) }
				for m, clicks := range s.pending { // those that were on their way
					s.pending[m] = slices.DeleteFunc(clicks, func(r *stream.Record) bool { return lost == "" || r.Key[15] == lost[0] })
				}
				opened = s.feed(from+20, 1)
				if opened < 0 || opened > from+6 {
					t.Errorf("clicks lost from minute %d: open at %d", from, opened)
				}
				if lost != "" {
					// With most of the traffic in it, its clicks may be missed in all.
					for _, got := range s.g.breaker.Tripped() {
						if got.Slice != lost && got.Slice != breaker.All {
							t.Errorf("open: %+v", got)
						}
					}
					if !s.g.Suspect([]byte(lost)) {
						t.Errorf("%s is closed", lost)
					}
				}
			})
		}
	}
}
