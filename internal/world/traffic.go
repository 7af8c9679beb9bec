package world

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"ctrloop/internal/catalogue"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// Visit is a shopper in front of a slot.
type Visit struct {
	// ID is an impression id drawn from the seed, at the visit's time. A decider that mints its own may
	// ignore it, as long as its id carries the same time.
	ID        schemas.ImpressionID
	TimeMS    int64  // event time, Unix milliseconds
	User      uint64 // salted hash
	Product   string
	Placement string
	Position  uint32 // 1 = first
}

// Decision is the creative that a visit gets to see. An empty Creative shows nothing: the visit leaves no trace.
type Decision struct {
	ImpressionID schemas.ImpressionID // zero takes the visit's
	Creative     string
	Experiment   string
	Variant      string
	ModelVersion string
	Policy       string
	Propensity   float64
	ArmShare     float64
}

// Decider is the system's side of a visit. It answers in the order of the visits. After a crash the same
// visits may be asked again.
type Decider interface {
	Decide(ctx context.Context, visits []Visit) ([]Decision, error)
}

// Event is an impression or a click; the other field is nil.
type Event struct {
	TimeMS     int64 // event time
	Impression *eventpb.Impression
	Click      *eventpb.Click
}

// Sender takes events in the order in which they would reach the log. When it returns nil the batch has
// arrived for good; after an error, or a crash, the same batch comes again.
type Sender interface {
	Send(ctx context.Context, batch []Event) error
}

// Until says when a run ends: at an event time, or after so many impressions since the journal began.
// Zero fields do not bind; at least one must be set.
type Until struct {
	TimeMS      int64
	Impressions int64
}

// Stats counts what the journal holds.
type Stats struct {
	NowMS       int64 // event time: every later visit is at or after this
	Batches     uint64
	Visits      int64
	Impressions int64
	Clicks      int64 // real ones: in time, repeated and late, not orphans
	Repeated    int64
	Late        int64
	Orphans     int64
	Duplicates  int64
	Disordered  int64 // impressions and clicks that are sent late
	Bots        int64 // impressions of bots
	Sent        int64 // events handed over, duplicates included
	Pending     int   // events that still wait for their time
}

// state is what the generator is between two batches, besides what follows from the births.
type state struct {
	seq    uint64 // batches so far
	nextUS int64  // event time of the next visit
	endMS  int64  // everything due before this has been sent
	visits int64
	rng    [20]byte
}

// Traffic generates shoppers and their events, one batch after another. It is not safe for concurrent use.
type Traffic struct {
	cfg     TrafficConfig
	shop    *shoppers
	decide  Decider
	send    Sender
	ctr     func(creative string) float64
	pcg     *rand.PCG
	rng     *rand.Rand
	st      state
	stats   Stats
	pending queue
	seqs    uint64 // order of events with the same sending time
	views   fatigue
	rates   map[string]float64
	journal *journal
	unsent  []Event // journaled, not acknowledged
	resumed bool
	broken  error // a journal that could not be written

	visits []Visit // scratch
	picks  []pick
	wall   time.Time // when Speed began to count, and the event time then
	wallMS int64
}

type pick struct {
	user                         uint32
	product, placement, position int
}

// Open starts traffic, or goes on with the journal in dir. ctr tells the true click-through rate of a
// creative that the decider may name; it is asked once per creative. An empty dir keeps no journal.
func Open(
	cfg TrafficConfig,
	cat *catalogue.Catalogue,
	d Decider,
	s Sender,
	ctr func(creative string) float64,
	dir string,
) (*Traffic, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	t := &Traffic{cfg: cfg, shop: newShoppers(cfg, cat.Products()), decide: d, send: s, ctr: ctr, rates: map[string]float64{}}
	t.pcg = rand.NewPCG(cfg.Seed, 0x7aff1c)
	t.rng = rand.New(t.pcg)
	t.st = state{nextUS: cfg.StartMS * 1000, endMS: cfg.StartMS}
	if dir == "" {
		return t, nil
	}
	j, err := openJournal(dir, digest(cfg, cat), cfg.SyncEvery)
	if err != nil {
		return nil, err
	}
	t.journal = j
	if err := t.replay(); err != nil {
		_ = j.close()
		return nil, err
	}
	return t, nil
}

// replay brings the generator to where the journal ends.
func (t *Traffic) replay() error {
	acked, err := t.journal.read(t.shop, func(b *batch) error {
		for i := range b.births {
			t.views.seen(&b.births[i])
		}
		t.unsent = t.apply(b)
		t.resumed = true
		return nil
	})
	if err != nil {
		return err
	}
	if t.st.seq == acked {
		t.unsent = nil
	} else if t.st.seq != acked+1 {
		return fmt.Errorf("world journal: %d batches but %d acknowledged: batches are sent one at a time, so the journal is damaged",
			t.st.seq, acked)
	}
	if t.resumed {
		if err := t.pcg.UnmarshalBinary(t.st.rng[:]); err != nil {
			return fmt.Errorf("world journal: state of the generator: %w", err)
		}
	}
	return nil
}

// Resumed says whether the journal already held batches when it was opened.
func (t *Traffic) Resumed() bool { return t.resumed }

// Stats returns the counters.
func (t *Traffic) Stats() Stats {
	s := t.stats
	s.NowMS, s.Batches, s.Visits, s.Pending = t.st.nextUS/1000, t.st.seq, t.st.visits, len(t.pending)
	return s
}

// Close syncs and closes the journal.
func (t *Traffic) Close() error {
	if t.journal == nil {
		return nil
	}
	return t.journal.close()
}

// Run generates and sends until the given end, the context's, or the first error. After an error it may be
// called again: nothing is lost or repeated, except that a batch whose sending failed is sent again.
func (t *Traffic) Run(ctx context.Context, until Until) error {
	if until.TimeMS <= 0 && until.Impressions <= 0 {
		return errors.New("world: a run needs an end: event time or impressions")
	}
	t.wall, t.wallMS = time.Now(), t.st.nextUS/1000
	for {
		if err := t.flush(ctx); err != nil {
			return err
		}
		limit := t.st.nextUS/1000 + max(t.cfg.MaxTick.Milliseconds(), 1)
		n := int64(t.cfg.BatchVisits)
		if until.TimeMS > 0 {
			limit = min(limit, until.TimeMS)
		}
		if until.Impressions > 0 {
			n = min(n, until.Impressions-t.stats.Impressions)
		}
		if n <= 0 || until.TimeMS > 0 && t.st.nextUS/1000 >= until.TimeMS {
			return nil
		}
		if err := t.pace(ctx); err != nil {
			return err
		}
		if err := t.tick(ctx, limit*1000, int(n)); err != nil {
			return err
		}
	}
}

// Drain sends what still waits (delayed events, clicks to come) without new visits. Event time moves on to
// the last of them.
func (t *Traffic) Drain(ctx context.Context) error {
	for {
		if err := t.flush(ctx); err != nil {
			return err
		}
		if len(t.pending) == 0 {
			return nil
		}
		b := &batch{state: t.st}
		b.seq++
		b.endMS = max(t.pending[0].send+t.cfg.MaxTick.Milliseconds(), b.endMS)
		b.nextUS = max(b.nextUS, b.endMS*1000)
		if err := t.commit(b); err != nil {
			return err
		}
	}
}

// pace holds event time back to Speed times wall time.
func (t *Traffic) pace(ctx context.Context) error {
	if t.cfg.Speed <= 0 {
		return ctx.Err()
	}
	due := time.Duration(float64(t.st.nextUS/1000-t.wallMS) * float64(time.Millisecond) / t.cfg.Speed)
	wait := due - time.Since(t.wall)
	if wait <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// flush sends the batch that is journaled but not acknowledged, if there is one.
func (t *Traffic) flush(ctx context.Context) error {
	if t.broken != nil {
		return t.broken
	}
	if t.unsent == nil {
		return ctx.Err()
	}
	if len(t.unsent) > 0 {
		if err := t.send.Send(ctx, t.unsent); err != nil {
			return fmt.Errorf("world: sending batch %d (%d events): %w", t.st.seq, len(t.unsent), err)
		}
	}
	if t.journal != nil {
		if err := t.journal.ack(t.st.seq); err != nil {
			return err
		}
	}
	t.unsent = nil
	return ctx.Err()
}

// tick makes one batch: visits, decisions, what follows from them. On an error the generator is as before.
func (t *Traffic) tick(ctx context.Context, limitUS int64, n int) error {
	saved, err := t.pcg.MarshalBinary()
	if err != nil {
		return err
	}
	b := &batch{state: t.st}
	b.seq++
	t.draw(b, limitUS, n)
	var decisions []Decision
	if len(t.visits) > 0 {
		decisions, err = t.decide.Decide(ctx, t.visits)
	}
	if err == nil && len(decisions) != len(t.visits) {
		err = fmt.Errorf("%d decisions for %d visits", len(decisions), len(t.visits))
	}
	if err == nil {
		err = t.check(decisions)
	}
	if err != nil {
		_ = t.pcg.UnmarshalBinary(saved)
		return fmt.Errorf("world: deciding on %d visits: %w", len(t.visits), err)
	}
	t.bear(b, decisions)
	return t.commit(b)
}

// commit writes a batch down and makes its events the next to send.
func (t *Traffic) commit(b *batch) error {
	rng, err := t.pcg.MarshalBinary()
	if err != nil {
		return err
	}
	copy(b.rng[:], rng)
	if t.journal != nil {
		if err := t.journal.append(b); err != nil {
			// The file and what we hold in memory may differ now; only reading it again makes them one.
			t.broken = fmt.Errorf("%w (close and open this traffic again to go on)", err)
			return t.broken
		}
	}
	t.unsent = t.apply(b)
	return nil
}

// draw fills t.visits and moves b's time on.
func (t *Traffic) draw(b *batch, limitUS int64, n int) {
	t.visits, t.picks = t.visits[:0], t.picks[:0]
	for len(t.visits) < n && b.nextUS < limitUS {
		var p pick
		p.user, p.product, p.placement, p.position = t.shop.visitor(t.rng)
		ms := b.nextUS / 1000
		var random [10]byte
		binary.LittleEndian.PutUint64(random[:], t.rng.Uint64())
		binary.LittleEndian.PutUint16(random[8:], uint16(t.rng.Uint64()))
		t.picks = append(t.picks, p)
		t.visits = append(t.visits, Visit{
			ID: schemas.NewImpressionID(time.UnixMilli(ms), random), TimeMS: ms, User: t.shop.userHash(p.user),
			Product: t.shop.products[p.product].ID, Placement: t.cfg.Placements[p.placement].Name, Position: uint32(p.position + 1),
		})
		b.nextUS += max(int64(t.rng.ExpFloat64()/t.shop.rate(b.nextUS)), 1)
	}
	b.visits += int64(len(t.visits))
	b.endMS = max(b.endMS, min(b.nextUS, limitUS)/1000)
}

// check looks at decisions before anything is drawn from them.
func (t *Traffic) check(decisions []Decision) error {
	for i := range decisions {
		d := &decisions[i]
		if d.Creative == "" {
			continue
		}
		if d.ImpressionID == (schemas.ImpressionID{}) {
			d.ImpressionID = t.visits[i].ID
		}
		if got := d.ImpressionID.UnixMilli(); got != t.visits[i].TimeMS {
			return fmt.Errorf(
				"impression id %v carries time %d, its visit is at %d: ids must be minted at the visit's event time",
				d.ImpressionID,
				got,
				t.visits[i].TimeMS,
			)
		}
		if _, ok := t.rates[d.Creative]; !ok {
			r := t.ctr(d.Creative)
			if !(r > 0 && r < 1) { // also catches NaN
				return fmt.Errorf("creative %q: true click-through rate %v is not within (0,1): its pixels are not known to the world", d.Creative, r)
			}
			t.rates[d.Creative] = r
		}
	}
	return nil
}

// bear turns decided visits into impressions and draws all that will follow from each.
func (t *Traffic) bear(b *batch, decisions []Decision) {
	b.births = make([]birth, 0, len(decisions))
	for i := range decisions {
		if decisions[i].Creative == "" {
			continue
		}
		p := t.picks[i]
		b.births = append(b.births, birth{
			id: decisions[i].ImpressionID, user: p.user, product: p.product, placement: p.placement, position: p.position,
			bot:      int(p.user) < t.shop.bots,
			creative: decisions[i].Creative, experiment: decisions[i].Experiment, variant: decisions[i].Variant,
			model: decisions[i].ModelVersion, policy: decisions[i].Policy, propensity: decisions[i].Propensity,
			armShare: decisions[i].ArmShare,
		})
		t.fate(&b.births[len(b.births)-1])
	}
}

// fate draws dirt and clicks of one impression.
func (t *Traffic) fate(b *birth) {
	r, s := t.rng, t.shop
	b.delayMS = s.disorder(r)
	if r.Float64() < t.cfg.DuplicateShare {
		b.dupMS = s.someDisorder(r)
	}
	p := t.cfg.BotCTR
	if views := t.views.seen(b); !b.bot {
		p = t.rates[b.creative] * float64(
			s.userMult[b.user],
		) * s.placeMult[b.placement] * s.posMult[b.position] * math.Pow(
			t.cfg.Fatigue,
			float64(views),
		)
	}
	if r.Float64() >= min(p, 0.9) {
		return
	}
	at := b.id.UnixMilli()
	if r.Float64() < t.cfg.LateShare {
		d := t.cfg.Window + edge + time.Duration(r.Int64N(int64(t.cfg.Window/2)))
		b.clicks = append(b.clicks, click{kind: clickLate, timeMS: at + d.Milliseconds(), delayMS: s.disorder(r)})
	} else {
		d := s.delay(r)
		b.clicks = append(b.clicks, click{kind: clickInTime, timeMS: at + d.Milliseconds(), delayMS: s.disorder(r)})
		if r.Float64() < t.cfg.RepeatShare {
			more := d + time.Duration(r.Int64N(int64(min(3*time.Second, edge))))
			b.clicks = append(b.clicks, click{kind: clickRepeat, timeMS: at + more.Milliseconds(), delayMS: s.disorder(r)})
		}
	}
	if r.Float64() < t.cfg.OrphanShare {
		ms := at + s.delay(r).Milliseconds()
		var random [10]byte
		binary.LittleEndian.PutUint64(random[:], r.Uint64())
		binary.LittleEndian.PutUint16(random[8:], uint16(r.Uint64()))
		b.clicks = append(
			b.clicks,
			click{kind: clickOrphan, orphan: schemas.NewImpressionID(time.UnixMilli(at), random), timeMS: ms, delayMS: s.disorder(r)},
		)
	}
}

// fatigue counts how often a user saw a product on the current day, in a table that may confuse two
// pairs: one pair in some hundred then tires of something it has not seen.
type fatigue struct {
	day   int64
	table []uint8
}

const (
	fatigueBits = 21
	maxViews    = 5
)

// seen returns the earlier views and counts this one.
func (f *fatigue) seen(b *birth) int {
	if f.table == nil {
		f.table = make([]uint8, 1<<fatigueBits)
	}
	if day := b.id.UnixMilli() / (24 * 3600 * 1000); day != f.day {
		clear(f.table)
		f.day = day
	}
	v := &f.table[mix64(uint64(b.user)<<20|uint64(b.product))>>(64-fatigueBits)]
	n := *v
	if n < maxViews {
		*v++
	}
	return int(n)
}

// apply puts a batch's births into the queue, takes out what is due before its end, in the order of
// sending, and moves the state on. Live batches and replayed ones go through here alike, which is why a
// resumed run continues exactly.
func (t *Traffic) apply(b *batch) []Event {
	t.st = b.state
	imps := make([]eventpb.Impression, len(b.births))
	ids := make([]byte, 24*len(b.births))
	direct := make([]item, 0, len(b.births))
	for i := range b.births {
		o := &b.births[i]
		e := Event{TimeMS: o.id.UnixMilli(), Impression: t.impression(&imps[i], o, ids[24*i:24*i+24:24*i+24])}
		first := item{send: e.TimeMS + o.delayMS, seq: t.nextSeq(), ev: e}
		if o.delayMS == 0 && first.send < b.endMS {
			direct = append(direct, first) // births are in the order of time
		} else {
			t.pending.push(first)
		}
		if o.dupMS > 0 {
			t.pending.push(item{send: e.TimeMS + o.dupMS, seq: t.nextSeq(), ev: e})
		}
		for k := range o.clicks {
			c := o.clickEvent(k)
			t.pending.push(item{send: c.TimeMS + o.clicks[k].delayMS, seq: t.nextSeq(), ev: c})
		}
		t.count(o)
	}
	out := t.merge(direct, b.endMS)
	t.stats.Sent += int64(len(out))
	return out
}

func (t *Traffic) nextSeq() uint64 { t.seqs++; return t.seqs }

// merge takes what is due from the queue and from the births that are sent in order.
func (t *Traffic) merge(direct []item, endMS int64) []Event {
	out := make([]Event, 0, len(direct)+len(direct)/8)
	for {
		due := len(t.pending) > 0 && t.pending[0].send < endMS
		switch {
		case len(direct) > 0 && (!due || direct[0].before(&t.pending[0])):
			out = append(out, direct[0].ev)
			direct = direct[1:]
		case due:
			out = append(out, t.pending.pop().ev)
		default:
			return out
		}
	}
}

func (t *Traffic) count(o *birth) {
	s := &t.stats
	s.Impressions++
	if o.bot {
		s.Bots++
	}
	if o.delayMS > 0 {
		s.Disordered++
	}
	if o.dupMS > 0 {
		s.Duplicates++
	}
	for _, c := range o.clicks {
		if c.kind == clickOrphan {
			s.Orphans++
			continue
		}
		s.Clicks++
		if c.delayMS > 0 {
			s.Disordered++
		}
		switch c.kind {
		case clickLate:
			s.Late++
		case clickRepeat:
			s.Repeated++
		default: // clickInTime is the usual case; orphans are counted above
		}
	}
}

// campaign is the only one there is.
const campaign = "shop"

func (t *Traffic) impression(m *eventpb.Impression, o *birth, ids []byte) *eventpb.Impression {
	copy(ids, o.id[:])
	binary.BigEndian.PutUint64(ids[16:], mix64(o.id.Lo()))
	m.Id, m.RequestId = ids[:16:16], ids[16:]
	m.User = t.shop.userHash(o.user)
	m.Product, m.Category = t.shop.products[o.product].ID, t.shop.products[o.product].Category
	m.Creative, m.Placement, m.Position, m.Campaign = o.creative, t.cfg.Placements[o.placement].Name, uint32(o.position+1), campaign
	m.Experiment, m.Variant, m.ModelVersion, m.Policy = o.experiment, o.variant, o.model, o.policy
	m.Propensity, m.ArmShare, m.Schema, m.Bot = o.propensity, o.armShare, 1, o.bot
	return m
}

// item is an event and when it is handed over.
type item struct {
	send int64
	seq  uint64
	ev   Event
}

func (a *item) before(b *item) bool { return a.send < b.send || a.send == b.send && a.seq < b.seq }

// queue is a binary heap by (send, seq); container/heap would box every item.
type queue []item

func (q *queue) push(it item) {
	h := append(*q, it)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if !it.before(&h[up]) {
			break
		}
		h[i] = h[up]
		i = up
	}
	h[i] = it
	*q = h
}

func (q *queue) pop() item {
	h := *q
	top, last := h[0], h[len(h)-1]
	h[len(h)-1] = item{}
	h = h[:len(h)-1]
	i := 0
	for {
		c := 2*i + 1
		if c >= len(h) {
			break
		}
		if c+1 < len(h) && h[c+1].before(&h[c]) {
			c++
		}
		if !h[c].before(&last) {
			break
		}
		h[i] = h[c]
		i = c
	}
	if len(h) > 0 {
		h[i] = last
	}
	*q = h
	return top
}
