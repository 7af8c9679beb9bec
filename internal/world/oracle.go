package world

import (
	"cmp"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"ctrloop/internal/catalogue"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// Oracle knows the right label of every impression in a journal, 32 bytes each.
type Oracle struct {
	rows []verdict // by id
	// What was sent before ackedMS has arrived; between ackedMS and journalMS it may have.
	ackedMS, journalMS int64
}

// verdict is one impression: when it and its clicks were handed over, relative to its own time. The event
// time is in the id.
type verdict struct {
	hi, lo uint64
	sent   uint32 // ms after the impression's time
	click  uint32 // first click inside the window, handed over so many ms after the impression; 0: none
	late   uint32 // first click beyond the window, likewise
	state  uint32 // what Compare has seen of it
}

func (v *verdict) ms() int64 { return int64(v.hi >> 16) }

const (
	seenLabel uint32 = 1 << iota
	seenCorrection
)

// OpenOracle reads the journal in dir. It may be open for writing by a Traffic that pauses.
func OpenOracle(cfg TrafficConfig, cat *catalogue.Catalogue, dir string) (*Oracle, error) {
	path := filepath.Join(dir, journalName)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("oracle: %w", err)
	}
	defer f.Close()
	head := make([]byte, headerBytes)
	if _, err := f.ReadAt(head, 0); err != nil {
		return nil, fmt.Errorf("oracle: %s: %w", path, err)
	}
	if want := digest(cfg, cat); string(head) != journalMagic+string(want[:]) {
		return nil, fmt.Errorf("oracle: %w: %s", ErrOtherWorld, path)
	}
	o := &Oracle{ackedMS: cfg.StartMS, journalMS: cfg.StartMS}
	j := &journal{strings: map[string]uint64{}}
	var seq uint64
	var before int64 // end of the batch before the last
	_, acked, err := j.scan(f, &shoppers{cfg: cfg, products: cat.Products()}, func(b *batch) error {
		seq, before, o.journalMS = b.seq, o.journalMS, b.endMS
		for i := range b.births {
			o.rows = append(o.rows, judge(&b.births[i]))
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if o.ackedMS = o.journalMS; acked < seq {
		o.ackedMS = before
	}
	slices.SortFunc(o.rows, compareIDs)
	for i := 1; i < len(o.rows); i++ {
		if compareIDs(o.rows[i-1], o.rows[i]) == 0 {
			return nil, fmt.Errorf("oracle: two impressions have the id %016x%016x: the decider minted it twice", o.rows[i].hi, o.rows[i].lo)
		}
	}
	return o, nil
}

func compareIDs(a, b verdict) int {
	if c := cmp.Compare(a.hi, b.hi); c != 0 {
		return c
	}
	return cmp.Compare(a.lo, b.lo)
}

func judge(b *birth) verdict {
	at := b.id.UnixMilli()
	v := verdict{hi: b.id.Hi(), lo: b.id.Lo(), sent: uint32(b.delayMS)}
	if b.dupMS > 0 { // whichever sending comes first
		v.sent = uint32(min(b.delayMS, b.dupMS))
	}
	first := func(old uint32, c *click) uint32 {
		sent := uint32(c.timeMS + c.delayMS - at)
		if old == 0 {
			return sent
		}
		return min(old, sent)
	}
	for k := range b.clicks {
		switch c := &b.clicks[k]; c.kind {
		case clickInTime, clickRepeat:
			v.click = first(v.click, c)
		case clickLate:
			v.late = first(v.late, c)
		default: // clickOrphan is of another impression, which nobody sent
		}
	}
	return v
}

// Label is one row of what a system says.
type Label struct {
	ID      schemas.ImpressionID
	Kind    eventpb.LabelKind
	Clicked bool
	Version uint32
}

// Report is the comparison of a system's labels with the right ones.
type Report struct {
	Expected    int64 // impressions that must have a label
	Labels      int64 // of these, how many have one
	Lost        int64 // Expected - Labels
	Duplicate   int64 // rows that say again what another row said
	Spurious    int64 // rows of impressions that nobody sent, and rows that say something wrong
	Wrong       int64 // the part of Spurious whose impression exists
	Early       int64 // right labels of impressions that were not yet due
	Corrected   int64 // right corrections, after a late click
	Provisional int64 // provisional negatives; not judged
	Examples    []string
}

// OK says whether every label is there once and right.
func (r Report) OK() bool { return r.Lost == 0 && r.Duplicate == 0 && r.Spurious == 0 }

const maxExamples = 10

func (r *Report) example(format string, args ...any) {
	if len(r.Examples) < maxExamples {
		r.Examples = append(r.Examples, fmt.Sprintf(format, args...))
	}
}

// Impressions is how many impressions have arrived for good.
func (o *Oracle) Impressions() (n int64) {
	for i := range o.rows {
		if o.rows[i].ms()+int64(o.rows[i].sent) < o.ackedMS {
			n++
		}
	}
	return n
}

// Compare judges rows in any order. Impressions with an event time up to matureMS must have a label; later
// ones may. The rule: a click inside the window makes the label positive; everything else is a final
// negative, once; a click beyond the window may add a correction (version above 1, clicked) and nothing
// but such a click may. An error of the rows ends the comparison.
func (o *Oracle) Compare(rows iter.Seq2[Label, error], matureMS int64) (Report, error) {
	var r Report
	for i := range o.rows {
		o.rows[i].state = 0
	}
	for l, err := range rows {
		if err != nil {
			return r, fmt.Errorf("oracle: reading labels: %w", err)
		}
		o.row(&r, l, matureMS)
	}
	for i := range o.rows {
		v := &o.rows[i]
		if !o.due(v, matureMS) {
			continue
		}
		r.Expected++
		if v.state&seenLabel != 0 {
			r.Labels++
		} else {
			r.Lost++
			r.example("lost: %v", v.id())
		}
	}
	if r.Labels+r.Lost != r.Expected {
		return r, errors.New("oracle: labels and lost do not add up (a bug)")
	}
	return r, nil
}

func (v *verdict) id() schemas.ImpressionID {
	var id schemas.ImpressionID
	for i := range 8 {
		id[i], id[8+i] = byte(v.hi>>(56-8*i)), byte(v.lo>>(56-8*i))
	}
	return id
}

// due says whether the impression must have a label.
func (o *Oracle) due(v *verdict, matureMS int64) bool {
	return v.ms() <= matureMS && v.ms()+int64(v.sent) < o.ackedMS
}

func (o *Oracle) find(id schemas.ImpressionID) *verdict {
	i, ok := slices.BinarySearchFunc(o.rows, verdict{hi: id.Hi(), lo: id.Lo()}, compareIDs)
	if !ok || o.rows[i].ms()+int64(o.rows[i].sent) >= o.journalMS { // unknown, or not handed to anybody yet
		return nil
	}
	return &o.rows[i]
}

func (o *Oracle) row(r *Report, l Label, matureMS int64) {
	v := o.find(l.ID)
	switch {
	case v == nil:
		r.Spurious++
		r.example("spurious: nobody sent %v", l.ID)
	case l.Kind == eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE:
		r.Provisional++
	case l.Kind == eventpb.LabelKind_LABEL_KIND_CORRECTED || l.Version > 1:
		o.correction(r, v, l)
	case v.state&seenLabel != 0:
		r.Duplicate++
		r.example("duplicate: %v", l.ID)
	default:
		v.state |= seenLabel
		if why := o.wrong(v, l); why != "" {
			r.Spurious++
			r.Wrong++
			r.example("wrong: %v is %v, clicked %v: %s", l.ID, l.Kind, l.Clicked, why)
		} else if !o.due(v, matureMS) {
			r.Early++
		}
	}
}

func (o *Oracle) correction(r *Report, v *verdict, l Label) {
	switch {
	case l.Kind != eventpb.LabelKind_LABEL_KIND_CORRECTED || l.Version < 2 || !l.Clicked || v.click != 0 || v.late == 0 ||
		v.ms()+int64(v.late) >= o.journalMS:
		r.Spurious++
		r.Wrong++
		r.example("wrong: %v has version %d, %v, clicked %v without a late click that calls for it", l.ID, l.Version, l.Kind, l.Clicked)
	case v.state&seenCorrection != 0:
		r.Duplicate++
		r.example("duplicate: correction of %v", l.ID)
	default:
		v.state |= seenCorrection
		r.Corrected++
	}
}

// wrong says what is wrong with a first label, if anything.
func (o *Oracle) wrong(v *verdict, l Label) string {
	positive := v.click != 0 && v.ms()+int64(v.click) < o.journalMS
	negative := v.click == 0 || v.ms()+int64(v.click) >= o.ackedMS // both: the click is on its way
	switch {
	case l.Kind == eventpb.LabelKind_LABEL_KIND_POSITIVE && l.Clicked:
		if !positive {
			return "no click inside the window"
		}
	case l.Kind == eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE && !l.Clicked:
		if !negative {
			return "a click inside the window"
		}
	default:
		return "kind and clicked contradict each other"
	}
	return ""
}
