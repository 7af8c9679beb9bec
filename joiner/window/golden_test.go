package window

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ctrloop/schemas"
)

var update = flag.Bool("update", false, "rewrite testdata with what the window does now")

// scenario runs the commands of a golden file:
//
//	config window=10000 lateness=0 bucket=1000
//	imp NAME@TIME            an impression
//	clk NAME@TIME CLICKTIME  a click on it
//	punctuate imp|clk TIME [SOURCE | PART,.../PARTS] [closed]
//	advance                  moves the watermark
//	commit, rollback
//	rebuild                  commits, then replaces the window by one rebuilt from its snapshot and the inputs
//	ledger, watermark
//	spill                    commits, then drops what is sealed from memory
//
// Everything that comes out is printed. The ledger and the state are checked after every command.
type scenario struct {
	t       *testing.T
	cfg     Config
	w       *Window
	names   map[schemas.ImpressionID]string
	log     [2][]logged // the whole history of each input
	next    [2]int64
	settled [2]int64 // next at the last commit
}

type logged struct {
	raw  []byte
	id   schemas.ImpressionID
	time int64
}

func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) {
			old, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			s := &scenario{t: t, names: map[schemas.ImpressionID]string{}}
			got := s.run(string(old))
			if *update {
				if err := os.WriteFile(f, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if d := cmp.Diff(string(old), got); d != "" {
				t.Errorf("%s (run with -update and review):\n%s", f, d)
			}
		})
	}
}

// run keeps comments and commands, and replaces what follows each "----" up to the next blank line.
func (s *scenario) run(text string) string {
	var out strings.Builder
	var block []string
	skipping := false
	for line := range strings.SplitSeq(strings.TrimRight(text, "\n"), "\n") {
		switch {
		case skipping && line != "":
			continue
		case skipping:
			skipping = false
			out.WriteString("\n")
			continue
		}
		out.WriteString(line + "\n")
		if line == "----" {
			for _, c := range block {
				out.WriteString(s.command(c))
			}
			block, skipping = nil, true
			continue
		}
		if c, _, _ := strings.Cut(line, "#"); strings.TrimSpace(c) != "" {
			block = append(block, strings.TrimSpace(c))
		}
	}
	if len(block) > 0 {
		s.t.Fatalf("commands without ---- at the end: %q", block)
	}
	return out.String()
}

func (s *scenario) command(line string) string {
	f := strings.Fields(line)
	switch f[0] {
	case "config":
		s.configure(f[1:])
	case "imp":
		id, t := s.id(f[1])
		s.event(Impressions, logged{raw: []byte("impression " + f[1]), id: id, time: t})
	case "clk":
		id, _ := s.id(f[1])
		s.event(Clicks, logged{raw: []byte("click " + f[1]), id: id, time: s.number(f[2])})
	case "punctuate":
		if err := s.w.Punctuate(map[string]Input{"imp": Impressions, "clk": Clicks}[f[1]], s.promise(f[2:])); err != nil {
			return fmt.Sprintf("refused: %v\n", err)
		}
	case "advance":
		if err := s.w.Advance(0); err != nil {
			s.t.Fatal(err)
		}
	case "commit":
		s.w.Commit()
		s.settled = s.next
	case "rollback":
		s.w.Rollback()
		s.next = s.settled
		s.log[0], s.log[1] = s.log[0][:s.next[0]], s.log[1][:s.next[1]]
	case "rebuild":
		s.w.Commit()
		s.settled = s.next
		return s.rebuild()
	case "ledger":
		return fmt.Sprintf("%+v\n", s.w.Ledger())
	case "watermark":
		return fmt.Sprintf("watermark=%s imp %q clk %q\n", when(s.w.Watermark()), s.w.sources[0], s.w.sources[1])
	case "spill":
		s.w.Commit()
		s.settled = s.next
		for _, n := range s.w.Unsaved(nil) {
			s.w.Saved(n, bytes.NewReader(s.w.AppendBase(nil, n)), 0)
		}
		return fmt.Sprintf("%d buckets spilled\n", s.w.Spill(0))
	default:
		s.t.Fatalf("unknown command %q", line)
	}
	if err := s.w.Check(); err != nil {
		s.t.Errorf("after %q: %v", line, err)
	}
	return s.output()
}

func (s *scenario) configure(args []string) {
	for _, a := range args {
		k, v, _ := strings.Cut(a, "=")
		switch k {
		case "window":
			s.cfg.WindowMS = s.number(v)
		case "lateness":
			s.cfg.LatenessMS = s.number(v)
		case "bucket":
			s.cfg.BucketMS = s.number(v)
		case "observe":
			s.cfg.ObserveMS = s.number(v)
		case "negatives":
			s.cfg.NegativeRate = s.number(v)
		default:
			s.t.Fatalf("unknown setting %q", a)
		}
	}
	s.w = New(s.cfg)
}

// promise reads TIME [NAME | PART,PART/PARTS] [closed].
func (s *scenario) promise(f []string) Promise {
	p := Promise{LowMS: s.number(f[0])}
	for _, word := range f[1:] {
		list, parts, ok := strings.Cut(word, "/")
		switch {
		case word == "closed":
			p.Closed = true
		case ok:
			p.Parts = uint32(s.number(parts))
			for part := range strings.SplitSeq(list, ",") {
				if part == "" {
					continue // /PARTS says only how many there are
				}
				p.Covers = append(p.Covers, uint32(s.number(part)))
			}
		default:
			p.Source = word
		}
	}
	return p
}

func (s *scenario) event(in Input, e logged) {
	s.log[in] = append(s.log[in], e)
	if err := feed(s.w, in, e, s.next[in]); err != nil {
		s.t.Fatal(err)
	}
	s.next[in]++
}

func feed(w *Window, in Input, e logged, offset int64) error {
	if in == Impressions {
		return w.Impression(e.raw, e.id, offset)
	}
	return w.Click(e.raw, e.id, e.time, offset)
}

func (s *scenario) rebuild() string {
	snap := s.w.Snapshot(s.next)
	w := Restore(s.cfg, snap)
	for _, in := range []Input{Clicks, Impressions} {
		for o := snap.RewindOffset[in]; o < snap.NextOffset[in]; o++ {
			if err := feed(w, in, s.log[in][o], o); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	if err := w.Restored(snap); err != nil {
		s.t.Error(err)
	}
	s.w = w
	return fmt.Sprintf(
		"rebuilt from impressions %d of %d, clicks %d of %d\n",
		snap.RewindOffset[0],
		snap.NextOffset[0],
		snap.RewindOffset[1],
		snap.NextOffset[1],
	)
}

func (s *scenario) output() string {
	var b strings.Builder
	for _, l := range s.w.Labels {
		kind := strings.ToLower(strings.TrimPrefix(l.Kind.String(), "LABEL_KIND_"))
		if l.Weight != 1 {
			kind += fmt.Sprintf(" weight=%g", l.Weight)
		}
		fmt.Fprintf(
			&b,
			"%s %s v%d clicked=%v delay=%d clicks=%d watermark=%s raw=%q\n",
			kind,
			s.names[l.ID],
			l.Version,
			l.Clicked,
			l.DelayMS,
			l.Clicks,
			when(l.WatermarkMS),
			l.AppendRaw(nil),
		)
	}
	for _, l := range s.w.Lates {
		fmt.Fprintf(
			&b,
			"late %s: %s of %s time=%d watermark=%s offset=%d raw=%q\n",
			l.Reason,
			l.Input,
			s.names[l.ID],
			l.TimeMS,
			when(l.WatermarkMS),
			l.Offset,
			l.Value,
		)
	}
	s.w.ResetOutput()
	return b.String()
}

func when(t int64) string {
	if t == None {
		return "none"
	}
	return strconv.FormatInt(t, 10)
}

// id turns NAME@TIME into an id; random bits come from the name.
func (s *scenario) id(text string) (schemas.ImpressionID, int64) {
	name, at, ok := strings.Cut(text, "@")
	if !ok {
		s.t.Fatalf("%q: want NAME@TIME", text)
	}
	var random [10]byte
	copy(random[:], name)
	t := s.number(at)
	id := schemas.NewImpressionID(time.UnixMilli(t), random)
	s.names[id] = text
	return id, t
}

func (s *scenario) number(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	return n
}
