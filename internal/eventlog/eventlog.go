// Package eventlog reads recorded ad traffic as a stream of edge events in event-time order: Open Bandit
// logs (CSV) and the edge's own JSON, plain or compressed.
//
// An Open Bandit row says that an impression was clicked, not when. The delay is drawn from a log-normal
// distribution (Delay), truncated so that a logged click always falls inside the join window; the draw is
// seeded by the row's content, so that the same log gives the same events whenever it is replayed. Ids are
// drawn the same way: an impression replayed twice is the same impression.
//
// What cannot be used is a RowError, which names file, line and reason; reading goes on behind it. A log that is not
// in the order of its times is an UnsortedError: Sort brings it into order.
package eventlog

import (
	"container/heap"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"time"

	"ctrloop/schemas"
)

// Delay is the distribution of click delays for logs without click times: exp(N(ln Median, Sigma²)),
// drawn again while above Max.
type Delay struct {
	Median time.Duration
	Sigma  float64 // of the log
	Max    time.Duration
}

// DefaultDelay has its median at 20 s and 95 % below 2.5 min.
func DefaultDelay() Delay { return Delay{Median: 20 * time.Second, Sigma: 1.2, Max: 20 * time.Minute} }

// Validate says what is wrong with the distribution.
func (d Delay) Validate() error {
	if d.Median <= 0 || !(d.Sigma >= 0) || math.IsInf(d.Sigma, 0) || d.Max < d.Median {
		return fmt.Errorf("click delay: median %v, sigma %v, max %v: want median > 0, sigma >= 0 and max >= median", d.Median, d.Sigma, d.Max)
	}
	return nil
}

func (d Delay) draw(r *rand.Rand) time.Duration {
	for {
		v := float64(d.Median) * math.Exp(d.Sigma*r.NormFloat64())
		if v <= float64(d.Max) {
			return time.Duration(v).Truncate(time.Millisecond)
		}
	}
}

// Line is one event as the edge reads it.
type Line struct {
	JSON   []byte // without newline
	Click  bool
	TimeMS int64  // event time
	File   string // name of the log, without its folder
	Row    int64  // line in the log, from 1; of a JSON array, the element
}

// RowError says why a row of a log cannot be used. Next goes on behind it.
type RowError struct {
	File   string
	Line   int64 // as Line.Row
	Reason schemas.DeadLetterReason
	Detail string
	Text   string // the row, cut
}

// Error names the place and what is wrong there.
func (e *RowError) Error() string { return fmt.Sprintf("%s, line %d: %s", e.File, e.Line, e.Detail) }

// maxText bounds what a RowError keeps of its row, bytes.
const maxText = 2048

func clip(b []byte) string { return string(b[:min(len(b), maxText)]) }

// UnsortedError says that an event is older than what stands before it by more than Options.Disorder.
type UnsortedError struct {
	File string
	Line int64
	By   time.Duration
}

// Error names the line.
func (e *UnsortedError) Error() string {
	return fmt.Sprintf("%s, line %d: %v older than what stands before it: the log is not in the order of its times", e.File, e.Line, e.By)
}

// Hint says what to do.
func (e *UnsortedError) Hint() string {
	return "replay it with --sort, into a folder that has not seen a part of it"
}

// Options of reading.
type Options struct {
	Seed  uint64
	Delay Delay
	// Disorder is how much older than its predecessors an event may come out of Next. 0 takes any order.
	Disorder time.Duration
	// Latest is the newest time that a recorded event can have. Zero is no bound but the year 2100.
	Latest time.Time
	// Stdin is read for the path "-".
	Stdin io.Reader
}

// Reader merges logs into one stream in event-time order. Within a log, rows must be in order up to
// reorderRows rows; the merge corrects that much.
type Reader struct {
	opt     Options
	sources []*source
	heap    lineHeap
	rows    int64
	total   int64 // bytes of all files
	newest  int64 // time of what Next has given
}

// reorderRows is how far a row may be out of place in its log. It also bounds what is held in memory besides
// the clicks that are yet to come.
const reorderRows = 1024

// Open opens logs; the format of each is found from how it begins. A log without a byte has no rows.
func Open(paths []string, opt Options) (*Reader, error) {
	if err := opt.Delay.Validate(); err != nil {
		return nil, err
	}
	r := &Reader{opt: opt}
	for _, p := range paths {
		s, err := openSource(p, opt)
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		r.sources = append(r.sources, s)
		r.total += s.size
	}
	return r, nil
}

// Close closes the files.
func (r *Reader) Close() error {
	var errs []error
	for _, s := range r.sources {
		errs = append(errs, s.close())
	}
	return errors.Join(errs...)
}

// Rows read so far, over all logs, those that cannot be used included.
func (r *Reader) Rows() int64 { return r.rows }

// Empty lists the logs that had no row; complete after the last Next.
func (r *Reader) Empty() (names []string) {
	for _, s := range r.sources {
		if s.done && s.rows == 0 {
			names = append(names, s.name)
		}
	}
	return names
}

// Progress is the share of all bytes that has been read, 0 to 1; -1 where the size is not known.
func (r *Reader) Progress() float64 {
	var read int64
	for _, s := range r.sources {
		if s.size < 0 {
			return -1
		}
		read += s.counter.n
	}
	if r.total == 0 {
		return 1
	}
	return float64(read) / float64(r.total)
}

// Next returns the next event, io.EOF after the last. A *RowError is one row that cannot be used: the next call goes on
// behind it. Other errors are final.
func (r *Reader) Next() (Line, error) {
	for behind := r.behind(); behind != nil; behind = r.behind() {
		if err := r.read(behind); err != nil {
			return Line{}, err
		}
	}
	if len(r.heap) == 0 {
		return Line{}, io.EOF
	}
	e := heap.Pop(&r.heap).(entry)
	if e.ahead {
		e.src.ahead--
	}
	if by := time.Duration(r.newest-e.TimeMS) * time.Millisecond; r.opt.Disorder > 0 && by > r.opt.Disorder {
		return Line{}, &UnsortedError{File: e.File, Line: e.Row, By: by}
	}
	r.newest = max(r.newest, e.TimeMS)
	return e.Line, nil
}

// read takes one row of a source into the heap.
func (r *Reader) read(s *source) error {
	lines, err := s.read()
	if errors.Is(err, io.EOF) {
		s.done = true
		return nil
	}
	var bad *RowError
	if err != nil && !errors.As(err, &bad) {
		return fmt.Errorf("%s, line %d: %w", s.name, s.line, err)
	}
	r.rows++
	s.rows++
	if err != nil {
		bad.File = s.name
		return bad
	}
	for i, l := range lines {
		l.File = s.name
		ahead := s.counts(l, i)
		if ahead {
			s.ahead++
		}
		heap.Push(&r.heap, entry{l, s, ahead, r.rows})
	}
	return nil
}

// behind is the source that must be read before the earliest event is sure: one that has fewer than
// reorderRows rows in the heap.
func (r *Reader) behind() *source {
	for _, s := range r.sources {
		if !s.done && s.ahead < reorderRows {
			return s
		}
	}
	return nil
}

type entry struct {
	Line
	src   *source
	ahead bool  // counts towards reorderRows
	seq   int64 // ties in time keep the order of reading, so that an impression precedes its click
}

func (e entry) before(o entry) bool {
	if e.TimeMS != o.TimeMS {
		return e.TimeMS < o.TimeMS
	}
	if e.seq != o.seq {
		return e.seq < o.seq
	}
	return !e.Click && o.Click
}

type lineHeap []entry

func (h lineHeap) Len() int           { return len(h) }
func (h lineHeap) Less(i, j int) bool { return h[i].before(h[j]) }
func (h lineHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *lineHeap) Push(x any)        { *h = append(*h, x.(entry)) }
func (h *lineHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}
