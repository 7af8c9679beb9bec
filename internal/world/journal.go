package world

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"

	"ctrloop/internal/catalogue"
	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// The journal is one file of frames: length (4 bytes, little-endian), CRC-32C of type and payload (4), type
// (1), payload. A batch frame holds what was born in a tick and the generator's state after it; an ack
// frame says that everything which that batch made due has been sent. Which events a batch sends follows
// from all births so far, so that events themselves are never written.
const (
	journalName  = "world.journal"
	journalMagic = "CTRLWRL1"
	headerBytes  = len(journalMagic) + sha256.Size
	frameHead    = 9
	maxFrame     = 1 << 30

	frameEarlier byte = 1 // a batch as earlier versions wrote it: without shares of arms, with propensities of another meaning
	frameAck     byte = 2
	frameBatch   byte = 3
)

var crcTable = crc32.MakeTable(crc32.Castagnoli)

type clickKind uint8

const (
	clickInTime clickKind = iota
	clickRepeat
	clickLate
	clickOrphan
)

// click is a click to come.
type click struct {
	kind    clickKind
	timeMS  int64
	delayMS int64                // of sending
	orphan  schemas.ImpressionID // what it names, for clickOrphan
}

// birth is an impression with all that follows from it.
type birth struct {
	id                           schemas.ImpressionID
	user                         uint32
	product, placement, position int
	bot                          bool
	creative, experiment         string
	variant, model, policy       string
	propensity, armShare         float64
	delayMS, dupMS               int64 // of sending; of the second sending, 0 if there is none
	clicks                       []click
}

// clickEvent builds the k-th click.
func (o *birth) clickEvent(k int) Event {
	c := &o.clicks[k]
	target := o.id
	if c.kind == clickOrphan {
		target = c.orphan
	}
	b := make([]byte, 24)
	copy(b, target[:])
	binary.BigEndian.PutUint64(b[16:], mix64(target.Lo()^uint64(k+1)))
	return Event{TimeMS: c.timeMS, Click: &eventpb.Click{ImpressionId: b[:16:16], Id: b[16:], TimeMs: c.timeMS, Schema: 1}}
}

// batch is one tick.
type batch struct {
	state
	births []birth
}

// digest ties a journal to the configuration and catalogue that it was made with.
func digest(cfg TrafficConfig, cat *catalogue.Catalogue) [sha256.Size]byte {
	h := sha256.New()
	_ = json.NewEncoder(h).Encode(cfg)
	for _, p := range cat.Products() {
		_, _ = fmt.Fprintln(h, p.ID, p.Category)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// journal is the open file. Strings (creatives, variants) are written once and then named by number.
type journal struct {
	f         *os.File
	size      int64
	strings   map[string]uint64
	names     []string
	buf       []byte
	syncEvery int
	unsynced  int
}

// ErrOtherWorld is returned for a journal that another configuration or catalogue made.
var ErrOtherWorld = errors.New("the journal belongs to another world")

// errEarlier is why a journal is not gone on with. Its propensities may be those within the arm, and would be sent and judged as if
// they were over everything random (ADR 37).
var errEarlier = errors.New("an earlier version wrote it, whose propensities meant something else: begin in another folder, " +
	"or finish with that version")

func openJournal(dir string, digest [sha256.Size]byte, syncEvery int) (*journal, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("world journal: %w", err)
	}
	path := filepath.Join(dir, journalName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("world journal: %w", err)
	}
	j := &journal{f: f, strings: map[string]uint64{}, syncEvery: syncEvery}
	want := append([]byte(journalMagic), digest[:]...)
	head := make([]byte, headerBytes)
	n, err := io.ReadFull(f, head)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF) && string(head[:n]) == string(want[:n]):
		_, err = f.WriteAt(want, 0) // new, or killed while it was made
	case err != nil:
	case string(head[:len(journalMagic)]) != journalMagic:
		err = fmt.Errorf("%s is not a world journal", path)
	case string(head) != string(want):
		err = fmt.Errorf(
			"%w: %s was made with another seed, traffic configuration or catalogue; use the same, or another folder",
			ErrOtherWorld,
			path,
		)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("world journal: %w", err)
	}
	return j, nil
}

// read replays the file, cuts off a torn tail, and returns the number of the last acknowledged batch.
func (j *journal) read(shop *shoppers, each func(*batch) error) (acked uint64, err error) {
	size, acked, err := j.scan(j.f, shop, each)
	if err != nil {
		return 0, err
	}
	if err := j.f.Truncate(size); err != nil {
		return 0, fmt.Errorf("world journal: cutting the torn tail: %w", err)
	}
	j.size = size
	return acked, nil
}

// scan reads frames from the start and returns the end of the last whole one. A broken frame at the very
// end is a torn tail, the mark of a killed writer; one with data after it is damage, and an error.
func (j *journal) scan(f *os.File, shop *shoppers, each func(*batch) error) (size int64, acked uint64, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, 0, fmt.Errorf("world journal: %w", err)
	}
	at, end := int64(headerBytes), info.Size()
	r := bufio.NewReaderSize(io.NewSectionReader(f, at, max(end-at, 0)), 1<<20)
	head := make([]byte, frameHead)
	var payload []byte
	for at+frameHead <= end {
		if _, err := io.ReadFull(r, head); err != nil {
			return 0, 0, fmt.Errorf("world journal at %d: %w", at, err)
		}
		n := int64(binary.LittleEndian.Uint32(head))
		if at+frameHead+n > end {
			break
		}
		if n > maxFrame {
			return 0, 0, fmt.Errorf("world journal at %d: frame of %d bytes: the file is damaged", at, n)
		}
		payload = append(payload[:0], make([]byte, n)...)
		if _, err := io.ReadFull(r, payload); err != nil {
			return 0, 0, fmt.Errorf("world journal at %d: %w", at, err)
		}
		if crc32.Update(crc32.Checksum(head[8:9], crcTable), crcTable, payload) != binary.LittleEndian.Uint32(head[4:]) {
			if at+frameHead+n == end {
				break
			}
			return 0, 0, fmt.Errorf(
				"world journal at %d: checksum differs in the middle of the file: it is damaged; restore it or start in another folder",
				at,
			)
		}
		switch head[8] {
		case frameAck:
			acked, _ = binary.Uvarint(payload)
		case frameEarlier:
			return 0, 0, fmt.Errorf("world journal at %d: %w", at, errEarlier)
		case frameBatch:
			b, err := j.decode(payload, shop)
			if err != nil {
				return 0, 0, fmt.Errorf("world journal at %d: %w", at, err)
			}
			if err := each(b); err != nil {
				return 0, 0, err
			}
		default:
			return 0, 0, fmt.Errorf("world journal at %d: unknown frame type %d", at, head[8])
		}
		at += frameHead + n
	}
	return at, acked, nil
}

// append writes a batch; when it returns, a killed process cannot lose it any more.
func (j *journal) append(b *batch) error {
	j.buf = j.encode(append(j.buf[:0], make([]byte, frameHead)...), b)
	return j.write(frameBatch)
}

// ack marks a batch as sent.
func (j *journal) ack(seq uint64) error {
	j.buf = binary.AppendUvarint(append(j.buf[:0], make([]byte, frameHead)...), seq)
	return j.write(frameAck)
}

// write completes the frame in buf and writes it in one call.
func (j *journal) write(kind byte) error {
	j.buf[8] = kind
	binary.LittleEndian.PutUint32(j.buf, uint32(len(j.buf)-frameHead))
	binary.LittleEndian.PutUint32(j.buf[4:], crc32.Checksum(j.buf[8:], crcTable))
	if _, err := j.f.WriteAt(j.buf, j.size); err != nil {
		return fmt.Errorf("world journal: %w", err)
	}
	j.size += int64(len(j.buf))
	if j.unsynced++; j.unsynced >= 2*j.syncEvery { // a batch and its ack
		j.unsynced = 0
		if err := j.f.Sync(); err != nil {
			return fmt.Errorf("world journal: %w", err)
		}
	}
	return nil
}

func (j *journal) close() error {
	if err := errors.Join(j.f.Sync(), j.f.Close()); err != nil {
		return fmt.Errorf("world journal: %w", err)
	}
	return nil
}

func (j *journal) encode(w []byte, b *batch) []byte {
	u := func(v uint64) { w = binary.AppendUvarint(w, v) }
	s := func(v string) { // 0 announces a new string, n names the n-th
		n, ok := j.strings[v]
		u(n)
		if !ok {
			j.names = append(j.names, v)
			j.strings[v] = uint64(len(j.names))
			u(uint64(len(v)))
			w = append(w, v...)
		}
	}
	u(b.seq)
	u(uint64(b.nextUS))
	u(uint64(b.endMS))
	u(uint64(b.visits))
	w = append(w, b.rng[:]...)
	u(uint64(len(b.births)))
	for i := range b.births {
		o := &b.births[i]
		at := o.id.UnixMilli()
		w = append(w, o.id[:]...)
		u(uint64(o.user))
		u(uint64(o.product))
		u(uint64(o.placement))
		u(uint64(o.position))
		s(o.creative)
		s(o.experiment)
		s(o.variant)
		s(o.model)
		s(o.policy)
		w = binary.LittleEndian.AppendUint64(w, math.Float64bits(o.propensity))
		w = binary.LittleEndian.AppendUint64(w, math.Float64bits(o.armShare))
		u(uint64(o.delayMS))
		u(uint64(o.dupMS))
		u(uint64(len(o.clicks)))
		for _, c := range o.clicks {
			u(uint64(c.kind))
			u(uint64(c.timeMS - at))
			u(uint64(c.delayMS))
			if c.kind == clickOrphan {
				w = append(w, c.orphan[:]...)
			}
		}
	}
	return w
}

// decoder reads a payload; the first problem sticks.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) u() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

// below reads a number that must be less than n.
func (d *decoder) below(n int) int {
	v := d.u()
	if v >= uint64(n) {
		d.bad = true
		return 0
	}
	return int(v)
}

var zeros [64]byte

func (d *decoder) bytes(n int) []byte {
	if n > len(d.b) {
		d.bad, d.b = true, nil
		return zeros[:min(n, len(zeros))]
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

// decode reads a batch.
func (j *journal) decode(payload []byte, shop *shoppers) (*batch, error) {
	d := &decoder{b: payload}
	s := func() string {
		n := d.u()
		if n == 0 && !d.bad {
			size := d.below(1 << 16)
			if size > len(d.b) {
				d.bad = true
				return ""
			}
			v := string(d.bytes(size))
			j.names = append(j.names, v)
			j.strings[v] = uint64(len(j.names))
			return v
		}
		if n == 0 || n > uint64(len(j.names)) {
			d.bad = true
			return ""
		}
		return j.names[n-1]
	}
	b := new(batch)
	b.seq, b.nextUS, b.endMS, b.visits = d.u(), int64(d.u()), int64(d.u()), int64(d.u())
	copy(b.rng[:], d.bytes(len(b.rng)))
	b.births = make([]birth, d.below(1<<20+1))
	for i := range b.births {
		o := &b.births[i]
		o.id = schemas.ImpressionID(d.bytes(16))
		at := o.id.UnixMilli()
		o.user = uint32(d.below(shop.cfg.Users))
		o.product, o.placement, o.position = d.below(len(shop.products)), d.below(len(shop.cfg.Placements)), d.below(shop.cfg.Positions)
		o.bot = int(o.user) < shop.bots
		o.creative, o.experiment, o.variant, o.model, o.policy = s(), s(), s(), s(), s()
		o.propensity = math.Float64frombits(binary.LittleEndian.Uint64(d.bytes(8)))
		o.armShare = math.Float64frombits(binary.LittleEndian.Uint64(d.bytes(8)))
		o.delayMS, o.dupMS = int64(d.u()), int64(d.u())
		if n := d.below(16); n > 0 {
			o.clicks = make([]click, n)
		}
		for k := range o.clicks {
			c := &o.clicks[k]
			c.kind, c.timeMS, c.delayMS = clickKind(d.below(int(clickOrphan)+1)), at+int64(d.u()), int64(d.u())
			if c.kind == clickOrphan {
				c.orphan = schemas.ImpressionID(d.bytes(16))
			}
		}
		if d.bad {
			break
		}
	}
	if d.bad || len(d.b) != 0 {
		return nil, errors.New("a batch with a right checksum does not decode: it was written by another version")
	}
	return b, nil
}
