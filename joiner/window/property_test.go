package window

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
	"strconv"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// oracle is the join written the slow, obvious way: maps, copied at each commit.
type oracle struct {
	cfg      Config
	wm       int64
	floor    int64
	max      [2]int64
	imps     map[schemas.ImpressionID]oracleImp
	waiting  []oracleClick
	out      []string
	impOrder []schemas.ImpressionID
}

type oracleImp struct {
	offset       int64 // of the impression
	clicks, late int
	lateDelay    int64
}

type oracleClick struct {
	id           schemas.ImpressionID
	time, offset int64
}

func (o oracle) clone() *oracle {
	o.imps = maps.Clone(o.imps)
	o.waiting, o.impOrder, o.out = slices.Clone(o.waiting), slices.Clone(o.impOrder), nil
	return &o
}

func (o *oracle) closeTime(id schemas.ImpressionID) int64 {
	return (id.UnixMilli()/o.cfg.BucketMS+1)*o.cfg.BucketMS + o.cfg.WindowMS
}

func (o *oracle) closed(id schemas.ImpressionID) bool { return o.closeTime(id) <= o.wm }

func (o *oracle) gone(id schemas.ImpressionID) bool { return o.closeTime(id)-o.cfg.WindowMS <= o.floor }

func (o *oracle) clicked(s oracleImp) bool {
	return s.clicks > 0 || s.late > 0 && s.lateDelay <= o.cfg.WindowMS+o.cfg.CorrectionMS
}

func (o *oracle) say(format string, args ...any) { o.out = append(o.out, fmt.Sprintf(format, args...)) }

func (o *oracle) impression(id schemas.ImpressionID, offset int64) {
	o.max[0] = max(o.max[0], id.UnixMilli())
	if o.gone(id) {
		o.say("late %s %x %d", schemas.LateImpression, id, offset)
		return
	}
	if _, ok := o.imps[id]; ok {
		return
	}
	o.imps[id] = oracleImp{offset: offset}
	o.impOrder = append(o.impOrder, id)
	mine := slices.DeleteFunc(slices.Clone(o.waiting), func(c oracleClick) bool { return c.id != id })
	o.waiting = slices.DeleteFunc(o.waiting, func(c oracleClick) bool { return c.id == id })
	inside := 0
	for _, c := range mine {
		if max(c.time-id.UnixMilli(), 0) <= o.cfg.WindowMS {
			inside++
		}
	}
	for _, c := range mine {
		o.apply(c, inside, true)
	}
	if o.closed(id) {
		o.verdict(id)
	}
}

func (o *oracle) first() int64 { return 1 + min(o.cfg.ObserveMS, 1) }

// verdict on an impression whose window is over.
func (o *oracle) verdict(id schemas.ImpressionID) {
	s := o.imps[id]
	if s.clicks > 0 {
		return
	}
	o.say("label %s %x of %d delay 0 clicks 0 v%d", eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, id, s.offset, o.first())
	if o.clicked(s) {
		o.correct(id, s.lateDelay, s.late)
	}
}

func (o *oracle) correct(id schemas.ImpressionID, delay int64, clicks int) {
	kind := eventpb.LabelKind_LABEL_KIND_CORRECTED
	o.say("label %s %x of %d delay %d clicks %d v%d", kind, id, o.imps[id].offset, delay, clicks, o.first()+1)
}

// apply adds a click to an impression; waited: it was there before.
func (o *oracle) apply(c oracleClick, count int, waited bool) {
	was := o.imps[c.id]
	s := was
	delay := max(c.time-c.id.UnixMilli(), 0)
	inside := delay <= o.cfg.WindowMS
	if inside {
		s.clicks++
	} else {
		if s.late == 0 || delay < s.lateDelay {
			s.lateDelay = delay
		}
		s.late++
	}
	o.imps[c.id] = s
	switch {
	case inside && (waited || !o.closed(c.id)):
		if s.clicks == 1 {
			o.say("label %s %x of %d delay %d clicks %d v%d", eventpb.LabelKind_LABEL_KIND_POSITIVE, c.id, s.offset, delay, count, o.first())
		}
		return
	case waited && o.closed(c.id):
		return
	case inside:
		o.say("late %s %x %d", schemas.LateClickAfterClose, c.id, c.offset)
	default:
		o.say("late %s %x %d", schemas.LateClick, c.id, c.offset)
	}
	if o.closed(c.id) && !o.clicked(was) && delay <= o.cfg.WindowMS+o.cfg.CorrectionMS {
		o.correct(c.id, delay, 1)
	}
}

func (o *oracle) click(id schemas.ImpressionID, t, offset int64) {
	o.max[1] = max(o.max[1], t)
	c := oracleClick{id, t, offset}
	switch _, known := o.imps[id]; {
	case o.gone(id):
		o.say("late %s %x %d", schemas.LateClickAfterClose, id, offset)
	case known:
		o.apply(c, 1, false)
	default:
		o.waiting = append(o.waiting, c)
		if o.closed(id) {
			o.say("late %s %x %d", schemas.LateOrphan, id, offset)
		}
	}
}

// allowed is where the watermark may go.
func (o *oracle) allowed() int64 {
	if o.max[0] == None || o.max[1] == None {
		return None
	}
	return max(o.wm, min(o.max[0], o.max[1])-o.cfg.LatenessMS)
}

// advance moves the watermark to wm.
func (o *oracle) advance(wm int64) {
	before, target := o.wm, o.allowed()
	o.wm = wm
	over := func(id schemas.ImpressionID) bool { return o.closed(id) && o.closeTime(id) > before }
	for _, id := range o.impOrder {
		if over(id) {
			o.verdict(id)
		}
		seen := o.closeTime(id) - o.cfg.WindowMS + o.cfg.ObserveMS
		if s := o.imps[id]; o.cfg.ObserveMS > 0 && s.clicks == 0 && before < seen && seen <= o.wm && o.closeTime(id) > target {
			o.say("label %s %x of %d delay 0 clicks 0 v1", eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE, id, s.offset)
		}
	}
	for _, c := range o.waiting {
		if over(c.id) {
			o.say("late %s %x %d", schemas.LateOrphan, c.id, c.offset)
		}
	}
	if wm > before {
		o.floor = max(o.floor, wm-o.cfg.WindowMS-o.cfg.CorrectionMS)
	}
	o.impOrder = slices.DeleteFunc(o.impOrder, o.gone)
	maps.DeleteFunc(o.imps, func(id schemas.ImpressionID, _ oracleImp) bool { return o.gone(id) })
	o.waiting = slices.DeleteFunc(o.waiting, func(c oracleClick) bool { return o.gone(c.id) })
}

// said is a window's output in the oracle's words. A label's bytes are found among the impressions' own.
func said(w *Window, imps []logged) (out []string) {
	for _, l := range w.Labels {
		raw := l.AppendRaw(nil)
		offset := slices.IndexFunc(imps, func(e logged) bool { return e.id == l.ID && bytes.Equal(e.raw, raw) })
		out = append(out, fmt.Sprintf("label %s %x of %d delay %d clicks %d v%d", l.Kind, l.ID, offset, l.DelayMS, l.Clicks, l.Version))
	}
	for _, l := range w.Lates {
		out = append(out, fmt.Sprintf("late %s %x %d", l.Reason, l.ID, l.Offset))
	}
	return out
}

// history draws both inputs: re-sent impressions, disorder, clicks before impressions, beyond the window,
// repeated, without impression, of the zero id.
func history(t *rapid.T, cfg Config) (log [2][]logged) {
	n := rapid.IntRange(1, 60).Draw(t, "impressions")
	span := cfg.WindowMS * 3
	var ids []schemas.ImpressionID
	for range n {
		var random [10]byte
		random[0] = rapid.Byte().Draw(t, "random") // few: ids may repeat on their own
		at := rapid.Int64Range(0, span).Draw(t, "at")
		ids = append(ids, schemas.NewImpressionID(time.UnixMilli(at), random))
	}
	ids = append(ids, schemas.ImpressionID{})
	if rapid.Bool().Draw(t, "roughly ordered") {
		sort.Slice(ids, func(i, j int) bool { return ids[i].UnixMilli() < ids[j].UnixMilli() })
	}
	for _, id := range ids {
		for range rapid.SampledFrom([]int{1, 1, 1, 1, 0, 2, 3}).Draw(t, "copies") {
			log[0] = append(log[0], logged{raw: rawImpression(id, len(log[0])), id: id, time: id.UnixMilli()})
		}
		for range rapid.SampledFrom([]int{0, 0, 1, 1, 2, 5}).Draw(t, "clicks") {
			at := id.UnixMilli() + rapid.Int64Range(-5, cfg.WindowMS*3/2).Draw(t, "delay")
			log[1] = append(log[1], logged{raw: fmt.Appendf(nil, "clk %x", id), id: id, time: at})
		}
	}
	if rapid.Bool().Draw(t, "clicks by time") {
		sort.SliceStable(log[1], func(i, j int) bool { return log[1][i].time < log[1][j].time })
	}
	return log
}

// rawImpression is sometimes a message of ours, and sometimes anything.
func rawImpression(id schemas.ImpressionID, n int) []byte {
	if n%3 == 0 {
		return fmt.Appendf(nil, "imp %x", id)
	}
	raw, err := proto.Marshal(
		&eventpb.Impression{
			Id:         id[:],
			User:       uint64(n),
			Product:    strconv.Itoa(n % 4),
			Campaign:   strconv.Itoa(n % 3),
			Variant:    id.String(),
			Propensity: 0.5,
			Schema:     1,
		},
	)
	if err != nil {
		panic(err)
	}
	return raw
}

// TestAgainstOracle drives a window and the oracle through random transactions, of which some abort and some
// are followed by a crash: outputs, ledger and state must never differ from the oracle's and the rebuild's.
func TestAgainstOracle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{
			WindowMS:   rapid.Int64Range(1, 200).Draw(t, "window"),
			LatenessMS: rapid.Int64Range(0, 20).Draw(t, "lateness"),
			BucketMS:   rapid.Int64Range(1, 40).Draw(t, "bucket"),
			Seed:       rapid.Uint64().Draw(t, "seed"),
		}
		cfg.CorrectionMS = rapid.Int64Range(0, 2*cfg.WindowMS).Draw(t, "correction")
		if rapid.Bool().Draw(t, "observe") {
			cfg.ObserveMS = rapid.Int64Range(0, cfg.WindowMS-1).Draw(t, "observation")
		}
		run := &crashing{t: t, cfg: cfg, log: history(t, cfg), w: New(cfg)}
		run.committed = &oracle{cfg: cfg, wm: None, floor: None, max: [2]int64{None, None}, imps: map[schemas.ImpressionID]oracleImp{}}
		for range 200 {
			if run.transaction() {
				break
			}
		}
	})
}

type crashing struct {
	t         *rapid.T
	cfg       Config
	log       [2][]logged
	w         *Window
	committed *oracle
	next      [2]int64 // at the last commit

	image   []byte // of some earlier commit
	imageAt [2]int64
	files   map[int64]io.ReaderAt // of the image
}

// disk saves and spills what it can, or some of it, and may take an image.
func (r *crashing) disk() {
	for _, n := range r.w.Unsaved(nil) {
		if rapid.Bool().Draw(r.t, "save") {
			before := []byte("something before it")
			r.w.Saved(n, bytes.NewReader(r.w.AppendBase(before, n)), int64(len(before)))
		}
	}
	if rapid.Bool().Draw(r.t, "spill what is closed") {
		r.w.SpillClosed()
	}
	if rapid.Bool().Draw(r.t, "spill") {
		r.w.Spill(rapid.SampledFrom([]int{0, r.w.Memory() - 100}).Draw(r.t, "limit"))
	}
	if rapid.IntRange(0, 2).Draw(r.t, "image") == 0 {
		r.image, r.imageAt, r.files = r.w.AppendImage(nil), r.next, map[int64]io.ReaderAt{}
		for _, b := range r.w.order {
			if b.base != nil && b.base.file != nil {
				r.files[b.number] = io.NewSectionReader(b.base.file, b.base.at, 1<<40)
			}
		}
	}
}

// transaction runs one and says whether the history is used up.
func (r *crashing) transaction() bool {
	before, ledger, o, next := r.w.Hash(), r.w.Ledger(), r.committed.clone(), r.next
	for range rapid.IntRange(1, 3).Draw(r.t, "batches") {
		in := Input(rapid.IntRange(0, 1).Draw(r.t, "input"))
		for range rapid.IntRange(0, 30).Draw(r.t, "records") {
			if next[in] == int64(len(r.log[in])) {
				break
			}
			e := r.log[in][next[in]]
			if err := feed(r.w, in, e, next[in]); err != nil {
				r.t.Fatal(err)
			}
			if in == Impressions {
				o.impression(e.id, next[in])
			} else {
				o.click(e.id, e.time, next[in])
			}
			next[in]++
		}
		if rapid.Bool().Draw(r.t, "advance") {
			limit := rapid.SampledFrom([]int{0, 0, 1, 2, 5, 20}).Draw(r.t, "limit of the advance")
			if err := r.w.Advance(limit); err != nil {
				r.t.Fatal(err)
			}
			was, wm, allowed := o.wm, r.w.Watermark(), o.allowed()
			switch {
			case wm > allowed, wm < was, wm == was && was < allowed, limit == 0 && wm < allowed, r.w.Behind() != (wm < allowed):
				r.t.Fatalf("watermark %d after %d and a limit of %d, allowed is %d; behind %v", wm, was, limit, allowed, r.w.Behind())
			}
			o.advance(wm)
		}
		if err := r.w.Check(); err != nil {
			r.t.Fatal(err)
		}
	}
	got, want := said(r.w, r.log[0]), slices.Clone(o.out)
	sort.Strings(got) // the window keeps labels and lates apart, so only their sets compare
	sort.Strings(want)
	if d := cmp.Diff(want, got); d != "" {
		r.t.Fatalf("oracle -, window +:\n%s", d)
	}
	switch rapid.SampledFrom([]string{"commit", "commit", "abort", "crash before", "crash after"}).Draw(r.t, "end") {
	case "abort":
		r.w.Rollback()
		if h := r.w.Hash(); h != before || r.w.Ledger() != ledger {
			r.t.Fatalf("after the abort: hash %x, ledger %+v; before the transaction: %x, %+v", h, r.w.Ledger(), before, ledger)
		}
		if err := r.w.counts(); err != nil {
			r.t.Fatalf("after the abort: %v", err)
		}
		r.rebuild(false)
		return false
	case "crash before":
		r.w.Rollback()
		r.rebuild(true)
		return false
	case "crash after":
		r.commit(o, next)
		r.rebuild(true)
	default:
		r.commit(o, next)
	}
	return next[0] == int64(len(r.log[0])) && next[1] == int64(len(r.log[1]))
}

func (r *crashing) commit(o *oracle, next [2]int64) {
	r.w.Commit()
	r.committed, r.next = o, next
	for id, s := range o.imps {
		b := r.w.buckets[id.UnixMilli()/r.cfg.BucketMS]
		found := false
		if b != nil {
			var err error
			if _, found, err = r.w.find(b, r.w.hashID(id.Hi(), id.Lo()), recordIDOf(id, id.UnixMilli()-b.startMS)); err != nil {
				r.t.Fatal(err)
			}
		}
		if !found {
			r.t.Fatalf("impression %x %+v is open in the oracle, not in the window", id, s)
		}
	}
	if err := r.w.counts(); err != nil {
		r.t.Fatal(err)
	}
	if n := r.w.Known(); n != len(o.imps) {
		r.t.Fatalf("window knows %d impressions, oracle %d", n, len(o.imps))
	}
	r.disk()
}

// rebuild makes a second window from the snapshot and the inputs, holds it against the first and, after a
// crash, goes on with it.
func (r *crashing) rebuild(keep bool) {
	if keep && rapid.IntRange(0, 3).Draw(r.t, "another correction") == 0 { // it may be changed in a restart
		r.cfg.CorrectionMS = rapid.Int64Range(0, 2*r.cfg.WindowMS).Draw(r.t, "correction from now on")
		r.committed.cfg.CorrectionMS = r.cfg.CorrectionMS
	}
	snap := r.w.Snapshot(r.next)
	w, from := Restore(r.cfg, snap), snap.RewindOffset
	if r.image != nil && rapid.Bool().Draw(r.t, "from the image") {
		var err error
		if w, err = Load(r.cfg, snap, r.image, r.open, rapid.Bool().Draw(r.t, "keep")); err != nil {
			r.t.Fatal(err)
		}
		from = r.imageAt
	}
	order := []Input{Impressions, Clicks}
	if rapid.Bool().Draw(r.t, "clicks first") {
		order = []Input{Clicks, Impressions}
	}
	for _, in := range order {
		for o := from[in]; o < snap.NextOffset[in]; o++ {
			if err := feed(w, in, r.log[in][o], o); err != nil {
				r.t.Fatal(err)
			}
			if o%7 == 6 {
				w.Commit() // as a long rebuild does, to seal as it goes
			}
		}
	}
	if len(w.Labels)+len(w.Lates) > 0 {
		r.t.Fatalf("the rebuild emitted %v", said(w, r.log[0]))
	}
	if err := w.Restored(snap); err != nil {
		r.t.Fatal(err)
	}
	if err := w.counts(); err != nil {
		r.t.Fatalf("after the rebuild: %v", err)
	}
	if w.Ledger() != r.w.Ledger() || w.Watermark() != r.w.Watermark() {
		r.t.Fatalf("rebuilt ledger %+v, want %+v", w.Ledger(), r.w.Ledger())
	}
	if keep {
		r.w = w
	}
}

func (r *crashing) open(number int64, _ int) (io.ReaderAt, int64, error) {
	if f := r.files[number]; f != nil {
		return f, 0, nil
	}
	return nil, 0, fmt.Errorf("no file for bucket %d", number)
}

// TestAdvanceInSlices: a watermark that goes its way in slices settles what it settles in one go, no more than the limit
// or one bucket at a time, and what is rebuilt halfway goes on to the same end.
func TestAdvanceInSlices(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cfg := Config{
			WindowMS: rapid.Int64Range(1, 200).Draw(t, "window"), LatenessMS: rapid.Int64Range(0, 20).Draw(t, "lateness"),
			BucketMS: rapid.Int64Range(1, 40).Draw(t, "bucket"), Seed: 7,
		}
		if rapid.Bool().Draw(t, "observe") {
			cfg.ObserveMS = rapid.Int64Range(0, cfg.WindowMS-1).Draw(t, "observation")
		}
		log := history(t, cfg)
		end := Promise{LowMS: cfg.WindowMS * rapid.Int64Range(1, 8).Draw(t, "end")}
		fill := func(w *Window) *Window {
			for in := range log {
				for offset, e := range log[in] {
					if err := feed(w, Input(in), e, int64(offset)); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Punctuate(Input(in), end); err != nil {
					t.Fatal(err)
				}
			}
			return w
		}
		whole, sliced := fill(New(cfg)), fill(New(cfg))
		if err := whole.Advance(0); err != nil {
			t.Fatal(err)
		}
		want, got := said(whole, log[0]), said(sliced, log[0])
		next := [2]int64{int64(len(log[0])), int64(len(log[1]))}
		widest := 0 // what one bucket can settle
		for _, b := range sliced.order {
			widest = max(widest, b.open+b.waiting)
		}
		sliced.Commit()
		for sliced.Behind() {
			limit := rapid.IntRange(1, 40).Draw(t, "limit")
			if err := sliced.Advance(limit); err != nil {
				t.Fatal(err)
			}
			if n := len(sliced.Labels) + len(sliced.Lates); n > 2*max(limit, widest) { // a negative may bring its correction
				t.Fatalf("%d come out at a limit of %d, and no bucket has more than %d", n, limit, widest)
			}
			got = append(got, said(sliced, log[0])...)
			sliced.Commit()
			if rapid.Bool().Draw(t, "restart") {
				snap := sliced.Snapshot(next)
				w := Restore(cfg, snap)
				for in := range log {
					for offset := snap.RewindOffset[in]; offset < next[in]; offset++ {
						if err := feed(w, Input(in), log[in][offset], offset); err != nil {
							t.Fatal(err)
						}
					}
				}
				if err := w.Restored(snap); err != nil {
					t.Fatal(err)
				}
				sliced = w
			}
		}
		sort.Strings(want)
		sort.Strings(got)
		if d := cmp.Diff(want, got); d != "" || sliced.Hash() != whole.Hash() || sliced.Ledger() != whole.Ledger() {
			t.Fatalf("in one go -, in slices +:\n%s\nledgers %+v, %+v", d, whole.Ledger(), sliced.Ledger())
		}
	})
}

// TestIndex: entries are found in any order of putting, removing and growing, also where their hashes crowd.
func TestIndex(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var x index
		want := map[uint32]uint64{}
		crowd := rapid.Uint64Range(1, 1<<32-1).Draw(t, "crowd")
		for i := range uint32(rapid.IntRange(1, 200).Draw(t, "steps")) {
			if len(want) > 0 && rapid.IntRange(0, 2).Draw(t, "remove") == 0 {
				keys := slices.Sorted(maps.Keys(want))
				k := keys[rapid.IntRange(0, len(keys)-1).Draw(t, "which")]
				x.remove(want[k], k)
				delete(want, k)
				continue
			}
			if x.full() {
				x.grow(x.n + 1)
			}
			h := rapid.Uint64Range(crowd, min(crowd+crowd/8, 1<<32-1)).Draw(t, "tag") << 32
			x.put(h, i)
			want[i] = h
		}
		sealed := index{slots: make([]uint64, len(want)+len(want)/3+1)}
		sealed.addAll(x.slots, 7)
		for _, x := range []struct {
			index
			shift uint32
		}{{x, 0}, {sealed, 7}} {
			if x.n != len(want) {
				t.Fatalf("%d entries, want %d", x.n, len(want))
			}
			for i, h := range want {
				p := x.place(h)
				for n := 0; x.slots[p] != slot(h, i+x.shift); n++ {
					if x.slots[p] == 0 || n > len(x.slots) {
						t.Fatalf("entry %d is not found", i)
					}
					p = (p + 1) % uint64(len(x.slots))
				}
			}
		}
	})
}

// TestCollidingTags: ids whose hashes agree in every bit that the table looks at are still told apart.
func TestCollidingTags(t *testing.T) {
	var b bucket
	b.reset(0, 0)
	d := newDictionary(1)
	const hash = 7 << 32
	var at []uint32
	for i := range uint64(200) {
		if b.byImp.full() {
			b.byImp.grow(b.byImp.n + 1)
		}
		at = append(at, uint32(len(b.arena)))
		b.byImp.put(hash, at[i])
		b.arena = d.appendRecord(b.arena, recordID{1, i}, &Parts{})
	}
	for i := range uint64(200) {
		if got, ok, _ := b.findHot(hash, recordID{1, i}); !ok || got != at[i] {
			t.Fatalf("id %d found at %d, %v", i, got, ok)
		}
	}
	if got, ok, _ := b.findHot(hash, recordID{1, 200}); ok {
		t.Fatalf("unknown id found at %d", got)
	}
}

// TestImageThatIsCut: no prefix of an image is taken for one.
func TestImageThatIsCut(t *testing.T) {
	cfg := Config{WindowMS: 1000, BucketMS: 100, Seed: 1}
	w := New(cfg)
	for i := range int64(40) {
		id := schemas.NewImpressionID(time.UnixMilli(i*30), [10]byte{byte(i)})
		if err := errors.Join(
			w.Impression(rawImpression(id, int(i)), id, i),
			w.Click([]byte("c"), id, i*30+(i%3)*2000, 2*i),
			w.Click([]byte("d"), schemas.ImpressionID{15: byte(i)}, i*30, 2*i+1),
			w.Advance(0),
		); err != nil {
			t.Fatal(err)
		}
	}
	w.Commit()
	snap := w.Snapshot([2]int64{40, 80})
	image := w.AppendImage(nil)
	none := func(int64, int) (io.ReaderAt, int64, error) { return nil, 0, errors.New("no file") }
	for n := range image {
		if _, err := Load(cfg, snap, image[:n], none, true); err == nil {
			t.Fatalf("%d of %d bytes were taken for an image", n, len(image))
		}
	}
	l, err := Load(cfg, snap, image, none, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Restored(snap); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// brokenDisk fails when told to.
type brokenDisk struct {
	io.ReaderAt
	broken bool
}

func (d *brokenDisk) ReadAt(p []byte, at int64) (int, error) {
	if d.broken {
		return 0, errors.New("bad sector")
	}
	return d.ReaderAt.ReadAt(p, at)
}

// TestSpilledDiskFails: every use of what cannot be read is an error, not a wrong answer.
func TestSpilledDiskFails(t *testing.T) {
	cfg := Config{WindowMS: 1000, BucketMS: 100, Seed: 1}
	w := New(cfg)
	id := schemas.NewImpressionID(time.UnixMilli(50), [10]byte{1})
	if err := errors.Join(w.Impression(rawImpression(id, 1), id, 0), w.Click(nil, schemas.ImpressionID{15: 1}, 300, 0)); err != nil {
		t.Fatal(err)
	}
	must(t, w.Punctuate(Impressions, Promise{LowMS: 300}))
	if err := w.Advance(0); err != nil {
		t.Fatal(err)
	}
	w.Commit()
	disk := &brokenDisk{ReaderAt: bytes.NewReader(w.AppendBase(nil, 0))}
	w.Saved(0, disk, 0)
	if n := w.Spill(0); n != 1 || !w.Holds(0, disk) {
		t.Fatalf("%d buckets spilled", n)
	}
	disk.broken = true
	if err := w.Click(nil, id, 60, 1); !errors.Is(err, ErrSpill) {
		t.Errorf("click: %v", err)
	}
	if err := w.Impression(nil, id, 1); !errors.Is(err, ErrSpill) {
		t.Errorf("duplicate: %v", err)
	}
	w.Rollback()
	must(t, w.Punctuate(Impressions, Promise{LowMS: 5000}))
	must(t, w.Punctuate(Clicks, Promise{LowMS: 5000}))
	if err := w.Advance(0); !errors.Is(err, ErrSpill) {
		t.Errorf("close: %v", err)
	}
	w.Rollback()
	disk.broken = false
	must(t, w.Punctuate(Impressions, Promise{LowMS: 5000}))
	must(t, w.Punctuate(Clicks, Promise{LowMS: 5000}))
	if err := w.Advance(0); err != nil || len(w.Labels) != 1 || !bytes.Equal(w.Labels[0].AppendRaw(nil), rawImpression(id, 1)) {
		t.Errorf("after the disk came back: %v, %d labels", err, len(w.Labels))
	}
}

// TestRebuildNoticesChangedInput: an input that lost a record is not silently accepted.
func TestRebuildNoticesChangedInput(t *testing.T) {
	cfg := Config{WindowMS: 1000, BucketMS: 100}
	w := New(cfg)
	var ids []schemas.ImpressionID
	for i := range 3 {
		ids = append(ids, schemas.NewImpressionID(time.UnixMilli(int64(i)), [10]byte{byte(i)}))
		if err := w.Impression([]byte("x"), ids[i], int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	w.Commit()
	snap := w.Snapshot([2]int64{3, 0})
	r := Restore(cfg, snap)
	for i := range 2 {
		if err := r.Impression([]byte("x"), ids[i], int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Restored(snap); err == nil {
		t.Fatal("a rebuild without the third impression was accepted")
	}
}
