package eventlog

import (
	"bufio"
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"

	"ctrloop/schemas"
)

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

// bandit is an Open Bandit log that is being read (Saito et al., arXiv 2008.07146).
type bandit struct {
	csv      *csv.Reader
	before   int64 // lines of the file above the header
	row      int64 // the header is 1
	col      map[string]int
	features []int
	campaign string
	opt      Options
}

// banditColumns are what a log must have, in lower case.
var banditColumns = []string{"timestamp", "item_id", "position", "click", "propensity_score"}

func openBandit(s *source, r *bufio.Reader, opt Options) (func() ([]Line, error), error) {
	cr := csv.NewReader(r)
	cr.ReuseRecord = true
	cr.Comma = delimiter(r)
	header, err := cr.Read()
	if err != nil {
		return nil, fmt.Errorf("is neither JSON nor CSV: header: %w", err)
	}
	b := &bandit{csv: cr, before: s.line, row: 1, col: map[string]int{}, campaign: campaignOf(s.path), opt: opt}
	for i, h := range header {
		h = strings.ToLower(strings.TrimSpace(h))
		b.col[h] = i
		if strings.HasPrefix(h, "user_feature_") {
			b.features = append(b.features, i)
		}
	}
	var missing []string
	for _, h := range banditColumns {
		if _, ok := b.col[h]; !ok {
			missing = append(missing, h)
		}
	}
	if missing != nil {
		return nil, fmt.Errorf("is neither JSON lines nor an Open Bandit log: its header lacks %s", strings.Join(missing, ", "))
	}
	return func() ([]Line, error) {
		lines, err := b.next()
		s.line = b.line()
		return lines, err
	}, nil
}

// delimiter is what stands most often in the first line, of comma, semicolon, tab and bar.
func delimiter(r *bufio.Reader) rune {
	head, _ := r.Peek(4096)
	head, _, _ = bytes.Cut(head, []byte{'\n'})
	best := ','
	for _, d := range ",;\t|" {
		if bytes.Count(head, []byte(string(d))) > bytes.Count(head, []byte(string(best))) {
			best = d
		}
	}
	return best
}

// line is where the row that was read last begins in the file.
func (b *bandit) line() int64 {
	line, _ := b.csv.FieldPos(0)
	return b.before + int64(line)
}

func (b *bandit) next() ([]Line, error) {
	rec, err := b.csv.Read()
	if errors.Is(err, io.EOF) {
		return nil, err
	}
	b.row++
	var broken *csv.ParseError
	switch {
	case errors.As(err, &broken):
		return nil, &RowError{Line: b.before + int64(broken.StartLine), Reason: schemas.DeadMalformed, Detail: broken.Err.Error(),
			Text: clip([]byte(strings.Join(rec, string(b.csv.Comma))))}
	case err != nil:
		return nil, err
	}
	return b.events(rec)
}

// campaignOf names a log by its folder ("random-women/log.csv.gz") or, without one, by its file.
func campaignOf(path string) string {
	if d := filepath.Base(filepath.Dir(path)); d != "." && d != string(filepath.Separator) {
		return d
	}
	name, _, _ := strings.Cut(filepath.Base(path), ".")
	return name
}

// events of a row. What is wrong with it is a RowError.
func (b *bandit) events(rec []string) ([]Line, error) {
	field := func(name string) string { return rec[b.col[name]] }
	bad := func(reason schemas.DeadLetterReason, format string, args ...any) ([]Line, error) {
		return nil, &RowError{Line: b.line(), Reason: reason, Detail: fmt.Sprintf(format, args...),
			Text: clip([]byte(strings.Join(rec, string(b.csv.Comma))))}
	}
	for _, v := range rec {
		if !utf8.ValidString(v) {
			return bad(schemas.DeadBadField, "the row is not UTF-8: convert the log, for example with iconv -f LATIN1 -t UTF-8")
		}
	}
	at, err := parseTime(field("timestamp"))
	if err != nil {
		return bad(schemas.DeadBadTime, "timestamp %q: want like 2019-11-24 00:03:24.688993+00:00", field("timestamp"))
	}
	if detail := checkTime(at.UnixMilli(), b.opt.Latest); detail != "" {
		return bad(schemas.DeadBadTime, "timestamp %q: %s", field("timestamp"), detail)
	}
	if item := strings.TrimSpace(field("item_id")); absent(item) {
		return bad(schemas.DeadBadField, "item_id %q names no item", item)
	}
	position, err := strconv.Atoi(field("position"))
	if err != nil || position < 1 {
		return bad(schemas.DeadBadField, "position %q: want a whole number from 1", field("position"))
	}
	propensity, err := strconv.ParseFloat(field("propensity_score"), 64)
	if err != nil || !(propensity > 0 && propensity <= 1) {
		return bad(schemas.DeadBadField, "propensity_score %q: want above 0, at most 1", field("propensity_score"))
	}
	clicked, ok := parseClick(field("click"))
	if !ok {
		return bad(schemas.DeadBadField, "click %q: want 0 or 1", field("click"))
	}
	return b.draw(rec, at, "item-"+field("item_id"), position, propensity, clicked)
}

// draw makes the events of a row. The row's content and its place draw its randomness, so that a log replayed again,
// under whatever name, is the same events.
func (b *bandit) draw(rec []string, at time.Time, item string, position int, propensity float64, clicked bool) ([]Line, error) {
	h := xxhash.New()
	for _, v := range rec {
		_, _ = h.WriteString(v)
		_, _ = h.Write([]byte{0})
	}
	rng := rand.New(rand.NewPCG(h.Sum64(), b.opt.Seed^uint64(b.row)))
	id := schemas.NewImpressionID(at, randomBytes(rng))
	u := xxhash.New()
	for _, i := range b.features {
		_, _ = u.WriteString(rec[i])
		_, _ = u.Write([]byte{0})
	}
	var err error
	imp := Line{TimeMS: id.UnixMilli(), Row: b.line()}
	imp.JSON, err = json.Marshal(event{
		Type: "impression", ID: id.String(), User: strconv.FormatUint(u.Sum64(), 16), Product: item, Creative: item,
		Placement: "recommendation", Position: position, Campaign: b.campaign, Category: b.campaign, Policy: b.campaign, Propensity: propensity,
	})
	if err != nil {
		return nil, err
	}
	lines := []Line{imp}
	if clicked {
		clk := Line{Click: true, TimeMS: id.UnixMilli() + b.opt.Delay.draw(rng).Milliseconds(), Row: imp.Row}
		clk.JSON, err = json.Marshal(event{Type: "click", ID: clickID(rng), ImpressionID: id.String(), TimeMS: clk.TimeMS})
		lines = append(lines, clk)
	}
	return lines, err
}

// timeForms are how the data set's own tools and others write a time, each with its zone.
var timeForms = []string{"2006-01-02 15:04:05.999999999-07:00", "2006-01-02 15:04:05.999999999Z07:00", time.RFC3339Nano}

func parseTime(s string) (at time.Time, err error) {
	for _, form := range timeForms {
		if at, err = time.Parse(form, s); err == nil {
			return at, nil
		}
	}
	return at, err
}

// absent reports whether a text is one of those that tools write where there is no value.
func absent(s string) bool {
	switch strings.ToLower(s) {
	case "", "null", "nan", "none", "na", "n/a":
		return true
	}
	return false
}

func parseClick(s string) (clicked, ok bool) {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "0", "0.0", "false":
		return false, true
	case "1", "1.0", "true":
		return true, true
	}
	return false, false
}

func randomBytes(r *rand.Rand) (b [10]byte) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func clickID(r *rand.Rand) string { return strconv.FormatUint(r.Uint64(), 16) }
