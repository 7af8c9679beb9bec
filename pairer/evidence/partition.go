package evidence

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// Config of a Partition. Times are milliseconds of event time, as the join has them.
type Config struct {
	WindowMS     int64 // after its impression, in which a click counts
	CorrectionMS int64 // after its window, in which a click corrects
	LatenessMS   int64
	BucketMS     int64 // by which a final negative may come later than its window ends
	MaxBytes     int   // bound of Bytes at a commit; 0: none
}

// matureAfter is how far the watermark must be beyond a time for all its negatives to have come.
func (c Config) matureAfter() int64 { return c.WindowMS + c.BucketMS }

// horizonMS is how far the watermark must be beyond a time for nothing of it to change any more.
func (c Config) horizonMS() int64 {
	return c.WindowMS + c.CorrectionMS + c.LatenessMS + 2*c.BucketMS + minuteMS
}

// State is what a Partition is besides its cells; it travels with the commit of the offsets.
type State struct {
	Sequence    int64 // of the last transaction
	Start       int64 // first offset of labels.v1 that was ever read; what was before it is not known
	Next        int64 // first offset of labels.v1 that was not read
	WatermarkMS int64 // of the newest label; 0: none yet
	SinceMS     int64 // impressions before it may be missing, because labels before Start had been deleted; 0: none
	FloorMS     int64 // hours before it are closed
	DoubtMS     int64 // suspect negatives before it are forgotten
	Rewind      int64 // offset of evidence.v1 from which on all records of this state lie
	Ledger      Ledger
	Hash        uint64 // of cells and suspect negatives
}

// Partition folds one partition of labels.v1. It is used by one goroutine at a time.
//
// A transaction is any number of Add, then Close, then Commit or Rollback.
type Partition struct {
	cfg   Config
	cells map[string]*cell
	hours map[int64]*hour // of the cells in memory
	doubt map[int64]*minute
	state State
	end   int64 // of the partition of evidence.v1, as far as it is known: what is written next lies there or behind

	cellBytes, doubtBytes int
	names                 map[string]string // categories: few, and named again and again

	tx    transaction
	key   []byte
	label eventpb.LabelView
	seen  eventpb.ImpressionView
}

// hour lists the cells of one hour.
type hour struct {
	cells []*cell
	bytes int
	born  int64 // all records of the hour lie at this offset of evidence.v1 or behind it
}

// minute are the suspect negatives of one minute of impression time.
type minute struct {
	ids    map[schemas.ImpressionID]struct{}
	chunks []chunk // records that hold them
	born   int64   // as in hour
}

// chunk names a record of suspect negatives of a minute: the transaction that wrote it, and which of its records it was.
type chunk struct {
	sequence int64
	part     uint16
}

// chunkIDs bounds the ids of one record, so that it stays far below what brokers take.
const chunkIDs = 1 << 14

// transaction undoes what has happened since the last commit.
type transaction struct {
	state   State
	saved   []saved
	early   []Early // copies for saved
	doubted []schemas.ImpressionID
	chunks  []minuteChunk // written by Close
}

type minuteChunk struct {
	at int64
	chunk
}

// saved is a cell as it was before the transaction.
type saved struct {
	cell    *cell
	fresh   bool // it was not there
	value   Value
	hash    uint64
	written uint64 // hash of the record that the transaction writes
}

// Memory that is counted for each cell and each id besides what varies: the structures, their places in maps and lists, and what
// the allocator rounds up. TestBytes holds them against the runtime.
const (
	cellBytes  = 384
	earlyBytes = 128
	idBytes    = 48
	nameRounds = 16
)

// New returns the fold of a partition whose first label is at next.
func New(cfg Config, next int64) *Partition { return Restore(cfg, State{Next: next, Start: next}) }

// Restore returns a fold whose cells are to be loaded: Load every record of the partition of evidence.v1 from State.Rewind on,
// then Loaded.
func Restore(cfg Config, s State) *Partition {
	p := &Partition{
		cfg: cfg, cells: map[string]*cell{}, hours: map[int64]*hour{}, doubt: map[int64]*minute{}, state: s, end: s.Rewind,
		names: map[string]string{},
	}
	p.begin()
	return p
}

func (p *Partition) begin() {
	t := &p.tx
	t.state = p.state
	clear(t.saved)
	t.saved, t.early, t.doubted, t.chunks = t.saved[:0], t.early[:0], t.doubted[:0], t.chunks[:0]
}

// State is that of the last commit; after Close that of the transaction.
func (p *Partition) State() State { return p.state }

// Bytes is the memory of the cells and of the suspect negatives.
func (p *Partition) Bytes() int { return p.cellBytes + p.doubtBytes }

// Cells is how many cells are in memory, and Doubted how many suspect negatives.
func (p *Partition) Cells() int { return len(p.cells) }

// Doubted is how many suspect negatives are remembered.
func (p *Partition) Doubted() (n int) {
	for _, m := range p.doubt {
		n += len(m.ids)
	}
	return n
}

// Reasons for which a Partition cannot go on.
var (
	// ErrOrder means that an offset came twice, or that one was left out of order.
	ErrOrder = errors.New("labels do not go on where the evidence stands")
	// ErrAgain means that the join has made its labels anew: to count them would count their impressions twice.
	ErrAgain = errors.New("labels are older than those before them: the join has begun anew")
)

// Add folds the label at an offset. What is no label of ours is counted and nothing else; an error is one of the above, and
// leaves the transaction to be rolled back.
func (p *Partition) Add(offset int64, value []byte) error {
	if offset < p.state.Next {
		return fmt.Errorf("%w: offset %d, everything before %d is in it", ErrOrder, offset, p.state.Next)
	}
	p.state.Next = offset + 1
	g := &p.state.Ledger
	g.In++
	l, v := &p.label, &p.seen
	if l.Read(value) != nil || v.Read(l.Impression) != nil {
		g.Unreadable++
		return nil
	}
	id, err := schemas.ImpressionIDFromBytes(v.ID)
	if err != nil {
		g.Unreadable++
		return nil
	}
	if l.WatermarkMS != 0 {
		if l.WatermarkMS < p.state.WatermarkMS {
			return fmt.Errorf("%w: the one at offset %d has watermark %d ms, those before it %d ms",
				ErrAgain, offset, l.WatermarkMS, p.state.WatermarkMS)
		}
		if p.state.WatermarkMS == 0 && p.state.Start > 0 {
			// Labels before the first one have been deleted: what corrects one of them must not count as a click without an impression.
			p.state.DoubtMS = (l.WatermarkMS/minuteMS + 1) * minuteMS
			p.state.SinceMS = p.state.DoubtMS
		}
		p.state.WatermarkMS = l.WatermarkMS
	}
	if l.Weight != 1 {
		g.Weighted++
	}
	switch l.Kind {
	case eventpb.LabelKind_LABEL_KIND_POSITIVE, eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE, eventpb.LabelKind_LABEL_KIND_CORRECTED:
		if v.Bot || l.Bot && l.Kind != eventpb.LabelKind_LABEL_KIND_CORRECTED {
			g.Robots++
			return nil
		}
		p.count(offset, id)
	case eventpb.LabelKind_LABEL_KIND_PROVISIONAL_NEGATIVE:
		g.Provisional++
	default:
		g.Unreadable++
	}
	return nil
}

// count changes the cell of the label that was read.
func (p *Partition) count(offset int64, id schemas.ImpressionID) {
	l, v := &p.label, &p.seen
	g := &p.state.Ledger
	ms := id.UnixMilli()
	c := p.touch(offset, ms/hourMS)
	impression := shown(v.Propensity)
	switch l.Kind {
	case eventpb.LabelKind_LABEL_KIND_POSITIVE:
		g.Positive++
		click := clicked(v.Propensity)
		trusted, suspect := &c.Trusted, &c.Suspect
		if (ms/minuteMS+1)*minuteMS+p.cfg.matureAfter() > p.state.WatermarkMS {
			before := cap(c.Early)
			e := c.early(uint8(ms % hourMS / minuteMS))
			p.grow(c, (cap(c.Early)-before)*earlyBytes)
			trusted, suspect = &e.Trusted, &e.Suspect
		}
		if l.Suspect {
			trusted = suspect
		}
		trusted.add(&impression, 1)
		trusted.add(&click, 1)
		g.Impressions, g.Clicks = g.Impressions+1, g.Clicks+1
	case eventpb.LabelKind_LABEL_KIND_FINAL_NEGATIVE:
		g.Negative++
		c.of(l.Suspect).add(&impression, 1)
		g.Impressions++
		if l.Suspect {
			p.remember(id)
		}
	case eventpb.LabelKind_LABEL_KIND_CORRECTED:
		p.correct(c, id, &impression)
	default:
	}
	if l.Suspect {
		g.Suspect++
	}
	c.widen(ms, ms)
	if string(v.Category) > c.Category {
		c.Category = p.name(v.Category)
	}
}

// of are the sums that a label goes to.
func (v *Value) of(suspect bool) *Sums {
	if suspect {
		return &v.Suspect
	}
	return &v.Trusted
}

// correct takes a negative back: it becomes an impression with a click, or a robot's.
func (p *Partition) correct(c *cell, id schemas.ImpressionID, impression *Sums) {
	l, g := &p.label, &p.state.Ledger
	wasSuspect, known := p.doubted(id)
	if l.Bot {
		// Where it is not known which of the two sums has the impression, it leaves those that are learned from: less evidence is
		// the safe side.
		g.Withdrawn++
		if !known {
			g.Unsure++
		}
		c.of(wasSuspect).add(impression, -1)
		g.Impressions--
		return
	}
	g.Corrected++
	g.Clicks++
	click := clicked(p.seen.Propensity)
	switch {
	case !known:
		// The impression stays where it is, and the click is suspect.
		g.Unsure++
		c.Suspect.add(&click, 1)
	case wasSuspect == l.Suspect:
		c.of(l.Suspect).add(&click, 1)
	default:
		g.Flipped++
		c.of(wasSuspect).add(impression, -1)
		now := c.of(l.Suspect)
		now.add(impression, 1)
		now.add(&click, 1)
	}
}

// touch returns the cell of the impression that was read, as one that the transaction changes.
func (p *Partition) touch(offset, at int64) *cell {
	v := &p.seen
	p.key = appendCell(p.key[:0], at, clampPosition(v.Position), v.Product, v.Placement, v.Creative)
	c := p.cells[string(p.key)]
	fresh := c == nil
	if fresh {
		c = &cell{key: string(p.key), generation: offset, hour: at}
		p.insert(c, p.end)
		if at*hourMS < p.state.FloorMS {
			p.state.Ledger.Reopened++
		}
	}
	if c.saved == 0 {
		p.save(c, fresh)
	}
	return c
}

func (p *Partition) save(c *cell, fresh bool) {
	s := saved{cell: c, fresh: fresh, value: c.Value, hash: c.hash}
	if n := len(c.Early); n > 0 {
		at := len(p.tx.early)
		p.tx.early = append(p.tx.early, c.Early...)
		s.value.Early = p.tx.early[at : at+n : at+n]
	}
	p.tx.saved = append(p.tx.saved, s)
	c.saved = len(p.tx.saved)
}

func (p *Partition) insert(c *cell, born int64) {
	p.cells[c.key] = c
	h := p.hours[c.hour]
	if h == nil {
		h = &hour{born: born}
		p.hours[c.hour] = h
	}
	h.cells = append(h.cells, c)
	p.grow(c, cellBytes+len(c.key)+nameRounds+cap(c.Early)*earlyBytes)
}

// grow counts memory of a cell.
func (p *Partition) grow(c *cell, n int) {
	p.hours[c.hour].bytes += n
	p.cellBytes += n
}

// name is one string for equal texts.
func (p *Partition) name(text []byte) string {
	if s, ok := p.names[string(text)]; ok {
		return s
	}
	const most = 10_000 // categories are the client's text: what is beyond this is not shared
	s := string(text)
	if len(p.names) < most {
		p.names[s] = s
	}
	return s
}

// remember keeps the id of a suspect negative.
func (p *Partition) remember(id schemas.ImpressionID) {
	if at := id.UnixMilli() / minuteMS; at*minuteMS >= p.state.DoubtMS && p.doubtful(at, id, p.end) {
		p.tx.doubted = append(p.tx.doubted, id)
	}
}

// doubtful adds an id to its minute; false: it was there.
func (p *Partition) doubtful(at int64, id schemas.ImpressionID, born int64) bool {
	m := p.doubt[at]
	if m == nil {
		m = &minute{ids: map[schemas.ImpressionID]struct{}{}, born: born}
		p.doubt[at] = m
	}
	n := len(m.ids)
	m.ids[id] = struct{}{}
	if len(m.ids) == n {
		return false
	}
	p.doubtBytes += idBytes
	p.state.Hash += hashID(id)
	return true
}

// doubted says whether the negative of an impression was suspect, and whether that is known.
func (p *Partition) doubted(id schemas.ImpressionID) (suspect, known bool) {
	at := id.UnixMilli() / minuteMS
	if at*minuteMS < p.state.DoubtMS {
		return false, false
	}
	if m := p.doubt[at]; m != nil {
		_, suspect = m.ids[id]
	}
	return suspect, true
}

// hashID mixes an id; sums of it tell one set of ids from another.
func hashID(id schemas.ImpressionID) uint64 {
	return mix(id.Hi()*0x9e3779b97f4a7c15 ^ id.Lo())
}

// mix spreads the bits of a number.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}

// Close ends the reading of a transaction: it hands over the records to write, keys and values, the progress last. A nil value
// is a tombstone. From then on State is that of the transaction.
func (p *Partition) Close(produce func(key, value []byte)) {
	p.state.Sequence++
	p.close()
	for i := range p.tx.saved {
		s := &p.tx.saved[i]
		c := s.cell
		before := cap(c.Early)
		c.settle(c.hour*hourMS, p.state.WatermarkMS-p.cfg.matureAfter())
		if len(c.Early) == 0 {
			c.Early = nil
			p.grow(c, -before*earlyBytes)
		}
		key := appendGeneration(append(make([]byte, 0, len(c.key)+generationSize), c.key...), c.generation)
		value := c.encode()
		produce(key, value)
		s.written = digest(key, value)
	}
	p.closeHours()
	p.produceDoubt(produce)
	p.state.Rewind = p.rewind()
	produce(progressKey, marshal(&eventpb.EvidenceProgress{
		Sequence: p.state.Sequence, NextOffset: p.state.Next, WatermarkMs: p.state.WatermarkMS, FloorMs: p.state.FloorMS,
		WindowMs: p.cfg.matureAfter(), SinceMs: p.state.SinceMS,
	}))
}

// close moves the floors: by the watermark, and further where memory is short.
func (p *Partition) close() {
	if w := p.state.WatermarkMS; w > 0 {
		p.state.FloorMS = max(p.state.FloorMS, (w-p.cfg.horizonMS())/hourMS*hourMS)
		p.state.DoubtMS = max(p.state.DoubtMS, (w-p.cfg.horizonMS())/minuteMS*minuteMS)
	}
	if p.cfg.MaxBytes <= 0 || p.Bytes() <= p.cfg.MaxBytes {
		return
	}
	cells, doubt := p.cellBytes, p.doubtBytes
	hours, minutes := slices.Sorted(maps.Keys(p.hours)), slices.Sorted(maps.Keys(p.doubt))
	for cells+doubt > p.cfg.MaxBytes && len(hours)+len(minutes) > 0 {
		if len(minutes) > 0 && (doubt >= cells || len(hours) == 0) {
			at := minutes[0]
			minutes, doubt = minutes[1:], doubt-len(p.doubt[at].ids)*idBytes
			p.state.DoubtMS = max(p.state.DoubtMS, (at+1)*minuteMS)
			continue
		}
		at := hours[0]
		hours, cells = hours[1:], cells-p.hours[at].bytes
		if p.state.FloorMS < (at+1)*hourMS {
			p.state.FloorMS = (at + 1) * hourMS
			p.state.Ledger.Forced++
		}
	}
}

// closeHours takes what is below the floor out of the hash, and the transaction's own changes into it.
func (p *Partition) closeHours() {
	for _, s := range p.tx.saved {
		p.state.Hash -= s.hash
		if s.cell.hour*hourMS >= p.state.FloorMS {
			p.state.Hash += s.written
		}
	}
	for at, h := range p.hours {
		if at*hourMS >= p.state.FloorMS {
			continue
		}
		for _, c := range h.cells {
			if c.saved == 0 {
				p.state.Hash -= c.hash
			}
		}
	}
	for at, m := range p.doubt {
		if at*minuteMS >= p.state.DoubtMS {
			continue
		}
		for id := range m.ids {
			p.state.Hash -= hashID(id)
		}
	}
}

// produceDoubt writes the suspect negatives of the transaction, and tombstones of those that are forgotten.
func (p *Partition) produceDoubt(produce func(key, value []byte)) {
	for _, at := range slices.Sorted(maps.Keys(p.doubt)) {
		if at*minuteMS < p.state.DoubtMS {
			for _, c := range p.doubt[at].chunks {
				produce(doubtKey(at, c), nil)
			}
		}
	}
	ids := slices.DeleteFunc(slices.Clone(p.tx.doubted), func(id schemas.ImpressionID) bool { return id.UnixMilli() < p.state.DoubtMS })
	slices.SortFunc(ids, func(a, b schemas.ImpressionID) int { return bytes.Compare(a[:], b[:]) })
	for part := uint16(0); len(ids) > 0; part++ {
		at := ids[0].UnixMilli() / minuteMS
		n := 0
		var text []byte
		for ; n < min(len(ids), chunkIDs) && ids[n].UnixMilli()/minuteMS == at; n++ {
			text = append(text, ids[n][:]...)
		}
		c := chunk{p.state.Sequence, part}
		produce(doubtKey(at, c), marshal(&eventpb.EvidenceDoubt{Ids: text}))
		p.tx.chunks = append(p.tx.chunks, minuteChunk{at, c})
		ids = ids[n:]
	}
}

// rewind is where all records begin that a rebuild needs.
func (p *Partition) rewind() int64 {
	from := p.end
	for at, h := range p.hours {
		if at*hourMS >= p.state.FloorMS {
			from = min(from, h.born)
		}
	}
	for at, m := range p.doubt {
		if at*minuteMS >= p.state.DoubtMS {
			from = min(from, m.born)
		}
	}
	return from
}

// Commit follows a committed transaction, end is the offset behind its last record in evidence.v1.
func (p *Partition) Commit(end int64) {
	for i := range p.tx.saved {
		s := &p.tx.saved[i]
		s.cell.saved, s.cell.hash = 0, s.written
	}
	for _, c := range p.tx.chunks {
		m := p.doubt[c.at]
		m.chunks = append(m.chunks, c.chunk)
	}
	for at, h := range p.hours {
		if at*hourMS < p.state.FloorMS {
			for _, c := range h.cells {
				delete(p.cells, c.key)
			}
			p.cellBytes -= h.bytes
			delete(p.hours, at)
		}
	}
	for at, m := range p.doubt {
		if at*minuteMS < p.state.DoubtMS {
			p.doubtBytes -= len(m.ids) * idBytes
			delete(p.doubt, at)
		}
	}
	p.end = max(p.end, end)
	p.begin()
}

// Rollback follows an aborted transaction: everything is as it was at the last commit.
func (p *Partition) Rollback() {
	for i := len(p.tx.saved) - 1; i >= 0; i-- { // backwards: those that are fresh are the last of their hours
		s := &p.tx.saved[i]
		c := s.cell
		c.saved = 0
		if s.fresh {
			p.remove(c)
			continue
		}
		p.grow(c, -cap(c.Early)*earlyBytes)
		early := slices.Clone(s.value.Early)
		c.Value, c.hash = s.value, s.hash
		c.Early = early
		p.grow(c, cap(c.Early)*earlyBytes)
	}
	for _, id := range p.tx.doubted {
		at := id.UnixMilli() / minuteMS
		m := p.doubt[at]
		delete(m.ids, id)
		p.doubtBytes -= idBytes
		if len(m.ids) == 0 {
			delete(p.doubt, at)
		}
	}
	p.state = p.tx.state
	p.begin()
}

// remove takes out the newest cell of its hour.
func (p *Partition) remove(c *cell) {
	delete(p.cells, c.key)
	h := p.hours[c.hour]
	p.grow(c, -(cellBytes + len(c.key) + nameRounds + cap(c.Early)*earlyBytes))
	n := len(h.cells) - 1
	h.cells[n] = nil
	h.cells = h.cells[:n]
	if n == 0 {
		delete(p.hours, c.hour)
	}
}

// ErrRebuild is wrapped by what Loaded returns where the records are not those of the state.
var ErrRebuild = errors.New("the records of evidence.v1 are not those of the committed state")

// ErrAhead means that records of a later transaction are there: somebody has gone on meanwhile.
var ErrAhead = errors.New("evidence.v1 is ahead of the committed state")

// Load takes a record of the partition's evidence.v1, in the order of offsets.
func (p *Partition) Load(key, value []byte, offset int64) error {
	p.end = offset + 1
	if len(key) == 0 {
		return fmt.Errorf("%w: empty", errKey)
	}
	switch key[0] {
	case kindCell:
		return p.loadCell(key, value, offset)
	case kindDoubt:
		return p.loadDoubt(key, value, offset)
	case kindProgress:
		sequence, err := sequenceOf(value)
		if err == nil && sequence > p.state.Sequence {
			err = fmt.Errorf("%w: transaction %d, the committed one is %d", ErrAhead, sequence, p.state.Sequence)
		}
		return err
	}
	return nil // reviews and erasures are for readers
}

func (p *Partition) loadCell(key, value []byte, offset int64) error {
	k, generation, err := cutGeneration(key)
	if err != nil {
		return err
	}
	at := int64(binary.BigEndian.Uint32(k[1:]))
	if at*hourMS < p.state.FloorMS {
		return nil
	}
	v, err := decodeValue(value)
	if err != nil {
		return err
	}
	v.Category = p.name([]byte(v.Category))
	c := p.cells[string(k)]
	if c == nil {
		c = &cell{key: string(k), generation: generation, hour: at, Value: v}
		p.insert(c, offset)
	} else {
		p.grow(c, (cap(v.Early)-cap(c.Early))*earlyBytes)
		c.generation, c.Value = generation, v
	}
	c.hash = digest(key, value)
	return nil
}

func (p *Partition) loadDoubt(key, value []byte, offset int64) error {
	at, c, err := parseDoubtKey(key)
	if err != nil || value == nil || at*minuteMS < p.state.DoubtMS {
		return err
	}
	ids, err := idsOf(value)
	if err != nil {
		return err
	}
	hash := p.state.Hash
	for _, id := range ids {
		p.doubtful(at, id, offset)
	}
	p.state.Hash = hash
	p.doubt[at].chunks = append(p.doubt[at].chunks, c)
	return nil
}

// Loaded ends the loading: it fails with ErrRebuild unless everything is as it was committed.
func (p *Partition) Loaded() error {
	var hash uint64
	for _, c := range p.cells {
		hash += c.hash
	}
	for _, m := range p.doubt {
		for id := range m.ids {
			hash += hashID(id)
		}
	}
	if err := p.state.Ledger.Check(); err != nil {
		return fmt.Errorf("%w: %w", ErrRebuild, err)
	}
	if hash != p.state.Hash {
		return fmt.Errorf("%w: hash %016x of %d cells and %d suspect negatives, committed %016x",
			ErrRebuild, hash, len(p.cells), p.Doubted(), p.state.Hash)
	}
	p.begin()
	return nil
}

// Limit sets the bound of Bytes from the next commit on; 0: none.
func (p *Partition) Limit(bytes int) { p.cfg.MaxBytes = bytes }
