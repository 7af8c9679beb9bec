package warehouse

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// NameColumn is a column of labels that holds names: some thousands of values, each in very many rows.
type NameColumn int

// The name columns.
const (
	Product NameColumn = iota
	Creative
	Placement
	Campaign
	Category
	Experiment
	Variant
	ModelVersion
	Policy
	nameColumns
)

func (c NameColumn) String() string {
	return [nameColumns]string{"product", "creative", "placement", "campaign", "category", "experiment", "variant", "model_version",
		"policy"}[c]
}

// Label is one row of labels without pointers, so that the garbage collector never looks at rows that wait:
// names are numbers in the dictionaries of its block (LabelBlock.Name); 0 is the empty name.
type Label struct {
	Impression   schemas.ImpressionID
	User         uint64
	Propensity   float64
	ArmShare     float64 // 0: not known
	Weight       float64
	ClickDelayMS int64
	WatermarkMS  int64
	Offset       int64 // in labels.v1
	Names        [nameColumns]uint32
	Version      uint32
	Clicks       uint32
	Position     uint16
	Partition    uint16 // of labels.v1
	Kind         int8   // eventpb.LabelKind
	Clicked, Bot bool
	Suspect      bool // made while the circuit breaker of its slice was open
}

// LabelBlock is a row of labels that are on their way to the warehouse, with the dictionaries of their names.
// The zero value is empty. It belongs to one goroutine at a time.
type LabelBlock struct {
	Rows  []Label
	names [nameColumns]dictionary
}

// Name returns the number of a name in one of the block's dictionaries. It keeps no part of v.
func (b *LabelBlock) Name(c NameColumn, v []byte) uint32 {
	if len(v) == 0 {
		return 0
	}
	return b.names[c].number(v)
}

// maxNames is the size from which a dictionary forgets names that no row has any more. Names may be a client's free text.
const maxNames = 1 << 16

// Drop removes the first n rows, and forgets names that no row has any more where there are many of them. It returns how many
// it has forgotten. So a block knows at most 65,536 names of a column more than it has rows, whatever clients send.
func (b *LabelBlock) Drop(n int) (forgotten int) {
	b.Rows = b.Rows[:copy(b.Rows, b.Rows[n:])]
	for c := range b.names {
		if d := &b.names[c]; len(d.values) > maxNames && len(d.values) > 2*len(b.Rows) {
			forgotten += b.forget(NameColumn(c))
		}
	}
	return forgotten
}

// Names is how many names the block knows, over all columns.
func (b *LabelBlock) Names() (n int) {
	for c := range b.names {
		n += len(b.names[c].values)
	}
	return n
}

// forget numbers the names of the rows that are there anew.
func (b *LabelBlock) forget(c NameColumn) int {
	old := b.names[c]
	b.names[c] = dictionary{}
	numbers := make(map[uint32]uint32, min(len(b.Rows), maxNames))
	for i := range b.Rows {
		was := b.Rows[i].Names[c]
		if was == 0 {
			continue
		}
		n, ok := numbers[was]
		if !ok {
			n = b.names[c].number([]byte(old.value(was)))
			numbers[was] = n
		}
		b.Rows[i].Names[c] = n
	}
	return len(old.values) - len(b.names[c].values)
}

// dictionary numbers strings from 1; 0 is the empty one.
type dictionary struct {
	numbers map[string]uint32
	values  []string // values[n-1] has the number n
	// recent holds numbers by a cheap hash: most look-ups end there, at a tenth of a map's cost.
	recent [1 << recentBits]uint32
}

const recentBits = 11

func (d *dictionary) number(v []byte) uint32 {
	// The ends of names differ, their beginnings often do not.
	h := uint64(len(v))
	if len(v) >= 8 {
		h ^= binary.LittleEndian.Uint64(v[len(v)-8:])
	} else {
		for _, c := range v {
			h = h<<8 | uint64(c)
		}
	}
	slot := &d.recent[h*0x9e3779b97f4a7c15>>(64-recentBits)]
	if n := *slot; n > 0 && d.values[n-1] == string(v) {
		return n
	}
	n, ok := d.numbers[string(v)]
	if !ok {
		if d.numbers == nil {
			d.numbers = map[string]uint32{}
		}
		s := string(v)
		d.values = append(d.values, s)
		n = uint32(len(d.values))
		d.numbers[s] = n
	}
	*slot = n
	return n
}

// value of a number.
func (d *dictionary) value(n uint32) string {
	if n == 0 {
		return ""
	}
	return d.values[n-1]
}

// InsertLabelBlock inserts the first n rows of a block as one block of the table, exactly once by token:
// after an error, send the same rows with the same token again. 10,000 to 500,000 rows are a good size.
func (db *DB) InsertLabelBlock(ctx context.Context, token string, b *LabelBlock, n int) error {
	if n == 0 {
		return nil
	}
	if token == "" {
		return errors.New("insert into labels: a token is required, without it a retry counts twice")
	}
	e, _ := labelEncoders.Get().(*labelEncoder)
	if e == nil {
		e = newLabelEncoder()
	}
	defer labelEncoders.Put(e)
	e.encode(b, n)
	return db.native.insert(ctx, "labels", token, e.columns)
}

// InsertLabels is InsertLabelBlock for rows that hold their names.
func (db *DB) InsertLabels(ctx context.Context, token string, rows []LabelRow) error {
	b := &LabelBlock{Rows: make([]Label, 0, len(rows))}
	for i := range rows {
		r := &rows[i]
		l := Label{
			Impression: r.Impression, User: r.User, Propensity: r.Propensity, ArmShare: r.ArmShare, Weight: r.Weight, ClickDelayMS: r.ClickDelayMS,
			WatermarkMS: r.WatermarkMS, Offset: r.Offset,
			Version: r.Version, Clicks: r.Clicks, Position: ClampPosition(uint64(r.Position)), Partition: uint16(r.Partition), Kind: int8(r.Kind),
			Clicked: r.Clicked, Bot: r.Bot, Suspect: r.Suspect,
		}
		for c, v := range [nameColumns]string{r.Product, r.Creative, r.Placement, r.Campaign, r.Category, r.Experiment, r.Variant, r.ModelVersion,
			r.Policy} {
			l.Names[c] = b.Name(NameColumn(c), []byte(v))
		}
		b.Rows = append(b.Rows, l)
	}
	return db.InsertLabelBlock(ctx, token, b, len(rows))
}

// LabelRow is one row of labels. Its event time is that of the id.
type LabelRow struct {
	Impression   schemas.ImpressionID
	Version      uint32
	User         uint64
	Product      string
	Creative     string
	Placement    string
	Position     uint32
	Campaign     string
	Category     string
	Experiment   string
	Variant      string
	ModelVersion string
	Policy       string
	Propensity   float64
	ArmShare     float64 // of the arm in the experiment; 0: not known
	Bot          bool
	Kind         eventpb.LabelKind
	Clicked      bool
	ClickDelayMS int64
	Clicks       uint32
	Weight       float64
	Suspect      bool // made while the circuit breaker of its slice was open
	WatermarkMS  int64
	Partition    int32 // of labels.v1
	Offset       int64 // in labels.v1
}

// ClampPosition keeps a position inside of what its column holds.
func ClampPosition(p uint64) uint16 { return uint16(min(p, 65535)) }

// labelEncoder turns rows into the columns of the native protocol, sorted as the table is. Names go as
// dictionaries and numbers: as plain strings the server would hash each of them again, at more than its
// whole remaining cost. Sorted, because here the order of two names costs a comparison of numbers.
type labelEncoder struct {
	columns proto.Input

	impression          proto.ColUUID
	event, watermark    proto.ColDateTime64
	version, clicks     proto.ColUInt32
	user                proto.ColUInt64
	position, partition proto.ColUInt16
	propensity, weight  proto.ColFloat64
	armShare            *proto.ColNullable[float64]
	bot, clicked        proto.ColUInt8
	suspect             proto.ColUInt8
	kind                proto.ColInt8
	delay, offset       proto.ColInt64
	names               [nameColumns]nameEncoder

	order  []sortKey
	counts []uint32
}

// labelEncoders keeps the buffers: 100,000 rows take about 10 MB.
var labelEncoders sync.Pool

// typed gives a column the type that the table's has, where the library's would be another.
type typed struct {
	proto.ColInput
	as proto.ColumnType
}

func (c typed) Type() proto.ColumnType { return c.as }

// kindType is the type of labels.kind; a server whose enum has more values converts by name.
const kindType proto.ColumnType = "Enum8('unspecified' = 0, 'positive' = 1, 'final_negative' = 2, 'provisional_negative' = 3, " +
	"'corrected' = 4)"

func newLabelEncoder() *labelEncoder {
	e := &labelEncoder{armShare: new(proto.ColFloat64).Nullable()}
	e.event.WithPrecision(proto.PrecisionMilli).WithLocation(time.UTC)
	e.watermark.WithPrecision(proto.PrecisionMilli).WithLocation(time.UTC)
	e.columns = proto.Input{
		{
			Name: "impression_id",
			Data: &e.impression,
		}, {Name: "event_time", Data: &e.event}, {Name: "version", Data: &e.version}, {Name: "user", Data: &e.user},
		{
			Name: "position",
			Data: &e.position,
		}, {Name: "propensity", Data: &e.propensity}, {Name: "arm_share", Data: e.armShare},
		{Name: "bot", Data: &e.bot}, {Name: "suspect", Data: &e.suspect},
		{Name: "kind", Data: typed{&e.kind, kindType}},
		{
			Name: "clicked",
			Data: &e.clicked,
		}, {Name: "click_delay_ms", Data: &e.delay}, {Name: "clicks", Data: &e.clicks}, {Name: "weight", Data: &e.weight},
		{Name: "watermark", Data: &e.watermark}, {Name: "partition", Data: &e.partition}, {Name: "offset", Data: &e.offset},
	}
	for c := range nameColumns {
		n := &e.names[c]
		n.col.Index = &n.values
		e.columns = append(e.columns, proto.InputColumn{Name: c.String(), Data: &n.col})
	}
	return e
}

// nameEncoder is one column of names: the values that occur, sorted, and their numbers.
type nameEncoder struct {
	col    proto.ColLowCardinalityRaw
	values proto.ColStr
	wire   []uint32 // by number in the block's dictionary: number on the wire
	used   []uint32
}

// prepare numbers the names of the column that occur in rows, in their order.
func (n *nameEncoder) prepare(rows []Label, c NameColumn, d *dictionary) {
	n.col.Reset()
	n.wire = slices.Grow(n.wire[:0], len(d.values)+1)[:len(d.values)+1]
	clear(n.wire)
	n.used = n.used[:0]
	for i := range rows {
		if v := rows[i].Names[c]; n.wire[v] == 0 {
			n.wire[v] = 1
			n.used = append(n.used, v)
		}
	}
	slices.SortFunc(n.used, func(a, b uint32) int { return cmp.Compare(d.value(a), d.value(b)) })
	// Place 0 of a dictionary on the wire is the default value's, the empty name.
	n.values.Append("")
	at := uint32(1)
	for _, v := range n.used {
		if v == 0 {
			n.wire[v] = 0
			continue
		}
		n.wire[v] = at
		n.values.Append(d.value(v))
		at++
	}
	switch {
	case at <= 1<<8:
		n.col.Key = proto.KeyUInt8
		n.col.Keys8 = slices.Grow(n.col.Keys8, len(rows))
	case at <= 1<<16:
		n.col.Key = proto.KeyUInt16
		n.col.Keys16 = slices.Grow(n.col.Keys16, len(rows))
	default:
		n.col.Key = proto.KeyUInt32
		n.col.Keys32 = slices.Grow(n.col.Keys32, len(rows))
	}
}

// fill appends the numbers of the column in the given order.
func (n *nameEncoder) fill(rows []Label, c NameColumn, order []sortKey) {
	switch n.col.Key {
	case proto.KeyUInt8:
		for _, k := range order {
			n.col.Keys8 = append(n.col.Keys8, uint8(n.wire[rows[k.row].Names[c]]))
		}
	case proto.KeyUInt16:
		for _, k := range order {
			n.col.Keys16 = append(n.col.Keys16, uint16(n.wire[rows[k.row].Names[c]]))
		}
	default:
		for _, k := range order {
			n.col.Keys32 = append(n.col.Keys32, n.wire[rows[k.row].Names[c]])
		}
	}
}

// sortKey is a row with what it is sorted by most often.
type sortKey struct {
	ms  int64
	row uint32
}

func (e *labelEncoder) encode(b *LabelBlock, n int) {
	rows := b.Rows[:n]
	for c := range nameColumns {
		e.names[c].prepare(rows, c, &b.names[c])
	}
	e.sort(rows)
	e.impression, e.version, e.clicks, e.user = e.impression[:0], e.version[:0], e.clicks[:0], e.user[:0]
	e.event.Reset()
	e.watermark.Reset()
	e.armShare.Reset()
	e.position, e.partition, e.propensity, e.weight = e.position[:0], e.partition[:0], e.propensity[:0], e.weight[:0]
	e.bot, e.suspect, e.clicked, e.kind, e.delay, e.offset = e.bot[:0], e.suspect[:0], e.clicked[:0], e.kind[:0], e.delay[:0], e.offset[:0]
	for _, k := range e.order {
		r := &rows[k.row]
		e.impression = append(e.impression, uuid.UUID(r.Impression))
		e.event.Data = append(e.event.Data, proto.DateTime64(clampMS(k.ms)))
		e.version = append(e.version, r.Version)
		e.user = append(e.user, r.User)
		e.position = append(e.position, r.Position)
		e.propensity = append(e.propensity, r.Propensity)
		e.armShare.Append(proto.Nullable[float64]{Set: r.ArmShare != 0, Value: r.ArmShare})
		e.bot = append(e.bot, bit(r.Bot))
		e.suspect = append(e.suspect, bit(r.Suspect))
		e.kind = append(e.kind, r.Kind)
		e.clicked = append(e.clicked, bit(r.Clicked))
		e.delay = append(e.delay, r.ClickDelayMS)
		e.clicks = append(e.clicks, r.Clicks)
		e.weight = append(e.weight, r.Weight)
		e.watermark.Data = append(e.watermark.Data, proto.DateTime64(clampMS(r.WatermarkMS)))
		e.partition = append(e.partition, r.Partition)
		e.offset = append(e.offset, r.Offset)
	}
	for c := range nameColumns {
		e.names[c].fill(rows, c, e.order)
	}
}

// maxGroups bounds the counting sort by experiment and product.
const maxGroups = 1 << 20

// sort puts the rows into the table's order (experiment, product, event_time, impression_id, version): by
// counting over the names, then by time inside of each product, where labels come nearly in order.
func (e *labelEncoder) sort(rows []Label) {
	x, p := &e.names[Experiment], &e.names[Product]
	products := p.values.Rows()
	group := func(r *Label) int { return int(x.wire[r.Names[Experiment]])*products + int(p.wire[r.Names[Product]]) }
	byTime := func(a, b sortKey) int {
		if c := cmp.Compare(a.ms, b.ms); c != 0 {
			return c
		}
		// ClickHouse compares the second half of a UUID first.
		q, r := &rows[a.row], &rows[b.row]
		if c := bytes.Compare(q.Impression[8:], r.Impression[8:]); c != 0 {
			return c
		}
		if c := bytes.Compare(q.Impression[:8], r.Impression[:8]); c != 0 {
			return c
		}
		return cmp.Compare(q.Version, r.Version)
	}
	e.order = slices.Grow(e.order[:0], len(rows))[:len(rows)]
	groups := x.values.Rows() * products
	if groups > maxGroups {
		for i := range rows {
			e.order[i] = sortKey{rows[i].Impression.UnixMilli(), uint32(i)}
		}
		slices.SortFunc(e.order, func(a, b sortKey) int {
			if c := cmp.Compare(group(&rows[a.row]), group(&rows[b.row])); c != 0 {
				return c
			}
			return byTime(a, b)
		})
		return
	}
	e.counts = slices.Grow(e.counts[:0], groups+1)[:groups+1]
	clear(e.counts)
	for i := range rows {
		e.counts[group(&rows[i])+1]++
	}
	for g := range groups {
		e.counts[g+1] += e.counts[g]
	}
	for i := range rows {
		at := &e.counts[group(&rows[i])]
		e.order[*at] = sortKey{rows[i].Impression.UnixMilli(), uint32(i)}
		*at++
	}
	from := uint32(0)
	for _, to := range e.counts[:groups] { // each is now where its group ends
		slices.SortFunc(e.order[from:to], byTime)
		from = to
	}
}

// LabelKey tells the rows of labels apart.
type LabelKey struct {
	Impression schemas.ImpressionID
	Version    uint32
}

// LabelKeys returns the rows that are there of a range of offsets, [from, to), of one partition of labels.v1. It reads
// the offsets of the whole table.
func (db *DB) LabelKeys(ctx context.Context, partition int32, from, to int64) (map[LabelKey]struct{}, error) {
	rows, err := db.Query(
		ctx,
		"SELECT impression_id, version FROM labels WHERE partition = ? AND offset >= ? AND offset < ?",
		uint16(partition),
		from,
		to,
	)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	out := map[LabelKey]struct{}{}
	for rows.Next() {
		var id uuid.UUID
		var version uint32
		if err := rows.Scan(&id, &version); err != nil {
			return nil, fmt.Errorf("labels of partition %d, offsets %d to %d: %w", partition, from, to, err)
		}
		out[LabelKey{schemas.ImpressionID(id), version}] = struct{}{}
	}
	return out, rows.Err()
}
