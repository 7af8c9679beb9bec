// Package eventlog reads recorded ad traffic as a stream of edge events in event-time order: Open Bandit
// logs (CSV) and the edge's own JSON lines, plain or gzip.
//
// An Open Bandit row says that an impression was clicked, not when. The delay is drawn from a log-normal
// distribution (Delay), truncated so that a logged click always falls inside the join window; the draw is
// seeded by the row's content, so that the same log gives the same events whenever it is replayed. Ids are
// drawn the same way: an impression replayed twice is the same impression.
package eventlog

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"container/heap"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"

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
	if d.Median <= 0 || d.Sigma < 0 || d.Max < d.Median {
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
	TimeMS int64 // event time
}

// Options of reading.
type Options struct {
	Seed  uint64
	Delay Delay
}

// Reader merges logs into one stream in event-time order. Within a log, rows must be in order up to
// reorderRows rows; the merge corrects that much.
type Reader struct {
	sources []*source
	heap    lineHeap
	rows    int64
	total   int64 // bytes of all files
}

// reorderRows is how far a row may be out of place in its log. It also bounds what is held in memory besides
// the clicks that are yet to come.
const reorderRows = 1024

// Open opens logs; the format of each is found from its first line.
func Open(paths []string, opt Options) (*Reader, error) {
	if err := opt.Delay.Validate(); err != nil {
		return nil, err
	}
	r := &Reader{}
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
		errs = append(errs, s.file.Close())
	}
	return errors.Join(errs...)
}

// Rows read so far, over all logs.
func (r *Reader) Rows() int64 { return r.rows }

// Progress is the share of all bytes that has been read, 0 to 1.
func (r *Reader) Progress() float64 {
	var read int64
	for _, s := range r.sources {
		read += s.counter.n
	}
	if r.total == 0 {
		return 1
	}
	return float64(read) / float64(r.total)
}

// Next returns the next event, io.EOF after the last.
func (r *Reader) Next() (Line, error) {
	for {
		behind := r.behind()
		if behind == nil {
			break
		}
		lines, err := behind.read()
		if errors.Is(err, io.EOF) {
			behind.done = true
			continue
		}
		if err != nil {
			return Line{}, fmt.Errorf("%s, line %d: %w", filepath.Base(behind.path), behind.line, err)
		}
		r.rows++
		behind.ahead++
		for i, l := range lines {
			heap.Push(&r.heap, entry{l, behind, i == 0, r.rows})
		}
	}
	if len(r.heap) == 0 {
		return Line{}, io.EOF
	}
	e := heap.Pop(&r.heap).(entry)
	if e.row {
		e.src.ahead--
	}
	return e.Line, nil
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
	src *source
	row bool  // the first event of its row
	seq int64 // ties in time keep the order of reading, so that an impression precedes its click
}

type lineHeap []entry

func (h lineHeap) Len() int { return len(h) }
func (h lineHeap) Less(i, j int) bool {
	if h[i].TimeMS != h[j].TimeMS {
		return h[i].TimeMS < h[j].TimeMS
	}
	if h[i].seq != h[j].seq {
		return h[i].seq < h[j].seq
	}
	return !h[i].Click && h[j].Click
}
func (h lineHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *lineHeap) Push(x any)   { *h = append(*h, x.(entry)) }
func (h *lineHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	*h = old[:len(old)-1]
	return e
}

type countingReader struct {
	io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// source is one log.
type source struct {
	path    string
	file    *os.File
	counter *countingReader
	size    int64
	line    int64
	ahead   int // rows of this source in the heap
	done    bool
	read    func() ([]Line, error) // events of the next row, the impression first
}

func openSource(path string, opt Options) (*source, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	s := &source{path: path, file: f}
	if fi, err := f.Stat(); err == nil {
		s.size = fi.Size()
	}
	s.counter = &countingReader{Reader: f}
	br := bufio.NewReaderSize(s.counter, 1<<16)
	if magic, _ := br.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s looks like gzip but is not: %w", path, err), f.Close())
		}
		br = bufio.NewReaderSize(z, 1<<16)
	}
	head, err := br.Peek(1)
	switch {
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("%s is empty", path)
	case err != nil:
		err = fmt.Errorf("read %s: %w", path, err)
	case head[0] == '{':
		s.read = jsonLines(s, br)
	default:
		s.read, err = openBandit(s, br, opt)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return s, nil
}

// maxLine bounds a JSON line, as the edge does.
const maxLine = 1 << 20

func jsonLines(s *source, r io.Reader) func() ([]Line, error) {
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, maxLine)
	return func() ([]Line, error) {
		for sc.Scan() {
			s.line++
			b := bytes.TrimSpace(sc.Bytes())
			if len(b) == 0 {
				continue
			}
			var e struct {
				Type   string `json:"type"`
				ID     string `json:"id"`
				TimeMS int64  `json:"time_ms"`
			}
			if err := json.Unmarshal(b, &e); err != nil {
				return nil, fmt.Errorf("not a JSON object: %w", err)
			}
			l := Line{JSON: bytes.Clone(b), Click: e.Type == "click", TimeMS: e.TimeMS}
			switch e.Type {
			case "impression":
				id, err := schemas.ParseImpressionID(e.ID)
				if err != nil {
					return nil, err
				}
				l.TimeMS = id.UnixMilli() // an impression's time is in its id
			case "click":
			default:
				return nil, fmt.Errorf(`type %q: want "impression" or "click"`, e.Type)
			}
			return []Line{l}, nil
		}
		if err := sc.Err(); err != nil {
			return nil, err
		}
		return nil, io.EOF
	}
}

// event is the edge's JSON form, see package ingest.
type event struct {
	Type         string  `json:"type"`
	ID           string  `json:"id"`
	User         string  `json:"user,omitempty"`
	Product      string  `json:"product,omitempty"`
	Creative     string  `json:"creative,omitempty"`
	Placement    string  `json:"placement,omitempty"`
	Position     int     `json:"position,omitempty"`
	Campaign     string  `json:"campaign,omitempty"`
	Category     string  `json:"category,omitempty"`
	Policy       string  `json:"policy,omitempty"`
	Propensity   float64 `json:"propensity,omitempty"`
	ImpressionID string  `json:"impression_id,omitempty"`
	TimeMS       int64   `json:"time_ms,omitempty"`
}

// openBandit reads the Open Bandit Dataset's log form (Saito et al., arXiv 2008.07146).
func openBandit(s *source, r io.Reader, opt Options) (func() ([]Line, error), error) {
	cr := csv.NewReader(r)
	cr.ReuseRecord = true
	header, err := cr.Read()
	if err != nil {
		return nil, fmt.Errorf("%s: header: %w", s.path, err)
	}
	s.line = 1
	col := map[string]int{}
	for i, h := range header {
		col[h] = i
	}
	var missing []string
	for _, h := range []string{"timestamp", "item_id", "position", "click", "propensity_score"} {
		if _, ok := col[h]; !ok {
			missing = append(missing, h)
		}
	}
	if missing != nil {
		return nil, fmt.Errorf("%s is neither JSON lines nor an Open Bandit log: its header lacks %s", s.path, strings.Join(missing, ", "))
	}
	var features []int
	for i, h := range header {
		if strings.HasPrefix(h, "user_feature_") {
			features = append(features, i)
		}
	}
	campaign := campaignOf(s.path)
	return func() ([]Line, error) {
		rec, err := cr.Read()
		if err != nil {
			return nil, err
		}
		s.line++
		return banditRow(rec, col, features, campaign, s.line, opt)
	}, nil
}

// campaignOf names a log by its folder ("random-women/log.csv.gz") or, without one, by its file.
func campaignOf(path string) string {
	if d := filepath.Base(filepath.Dir(path)); d != "." && d != string(filepath.Separator) {
		return d
	}
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	return name
}

func banditRow(rec []string, col map[string]int, features []int, campaign string, line int64, opt Options) ([]Line, error) {
	field := func(name string) string { return rec[col[name]] }
	at, err := time.Parse("2006-01-02 15:04:05.999999-07:00", field("timestamp"))
	if err != nil {
		return nil, fmt.Errorf("timestamp %q: want like 2019-11-24 00:03:24.688993+00:00", field("timestamp"))
	}
	position, err := strconv.Atoi(field("position"))
	if err != nil || position < 1 {
		return nil, fmt.Errorf("position %q: want a whole number from 1", field("position"))
	}
	propensity, err := strconv.ParseFloat(field("propensity_score"), 64)
	if err != nil || !(propensity > 0 && propensity <= 1) {
		return nil, fmt.Errorf("propensity_score %q: want above 0, at most 1", field("propensity_score"))
	}
	clicked := field("click")
	if clicked != "0" && clicked != "1" {
		return nil, fmt.Errorf("click %q: want 0 or 1", clicked)
	}
	// The row's content and its place draw its randomness, so that a log replayed again, under whatever
	// name, is the same events.
	h := xxhash.New()
	for _, v := range rec {
		_, _ = h.WriteString(v)
		_, _ = h.Write([]byte{0})
	}
	rng := rand.New(rand.NewPCG(h.Sum64(), opt.Seed^uint64(line)))
	id := schemas.NewImpressionID(at, randomBytes(rng))
	u := xxhash.New()
	for _, i := range features {
		_, _ = u.WriteString(rec[i])
		_, _ = u.Write([]byte{0})
	}
	item := "item-" + field("item_id")
	imp := Line{TimeMS: id.UnixMilli()}
	imp.JSON, err = json.Marshal(event{
		Type: "impression", ID: id.String(), User: strconv.FormatUint(u.Sum64(), 16), Product: item, Creative: item,
		Placement: "recommendation", Position: position, Campaign: campaign, Category: campaign, Policy: campaign, Propensity: propensity,
	})
	if err != nil {
		return nil, err
	}
	lines := []Line{imp}
	if clicked == "1" {
		clk := Line{Click: true, TimeMS: id.UnixMilli() + opt.Delay.draw(rng).Milliseconds()}
		clk.JSON, err = json.Marshal(event{Type: "click", ID: clickID(rng), ImpressionID: id.String(), TimeMS: clk.TimeMS})
		lines = append(lines, clk)
	}
	return lines, err
}

func randomBytes(r *rand.Rand) (b [10]byte) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func clickID(r *rand.Rand) string { return strconv.FormatUint(r.Uint64(), 16) }
