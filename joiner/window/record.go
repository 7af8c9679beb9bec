package window

import (
	"encoding/binary"
	"math"
	"slices"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// A record is one impression in a bucket's arena, without pointers and unaligned:
//
//	[0:4)   state: clicks so far, or where more about them is (see bucket.state)
//	[4:8)   milliseconds since the start of the bucket << 16 | bits 48 to 64 of the id
//	[8:16)  the last 8 bytes of the id
//	[16]    length of the record, 0 if it is longer than 255 bytes
//	[17]    mask: which of the parts below are there
//	        one reference for each group of fields that repeat, as varints (see dictionary)
//	        in the order of the wire, what is not in the dictionary: request id (length and bytes),
//	        user (8 bytes), groups (length and bytes), propensity (8 bytes), the rest (length and bytes)
//
// An encoded impression is cut, not decoded: every part is the bytes of the wire as they came, and what does not fit
// the expected order (fields of a later schema, fields out of order, bytes that are no protobuf at all) is kept
// as the rest. So the impression of a label is the impression received, byte for byte, whatever it was.
const recordHead = 16

// Bits of a record's mask.
const (
	hasID         byte = 1 << iota // field 1 leads and is the id: it is not stored again
	hasRequest                     // field 2, at most 127 bytes
	hasUser                        // field 3
	hasPropensity                  // field 14
	hasRest
)

// groups of fields that repeat together: an ad (product, creative), a place (placement, position), a campaign
// (campaign, category), an arm (experiment, variant, model version, policy), and the form (schema, bot, share of the arm). Few
// references a record, and few distinct values a group.
const groups = 5

// Steps of an impression in the order of the wire.
const (
	stepID = iota
	stepRequest
	stepUser
	stepAd
	stepPlace
	stepCampaign
	stepArm
	stepPropensity
	stepForm
	stepRest
)

// stepOf a field number.
var stepOf = [18]uint8{
	0: stepRest, 1: stepID, 2: stepRequest, 3: stepUser, 4: stepAd, 5: stepAd, 6: stepPlace, 7: stepPlace, 8: stepCampaign, 9: stepCampaign,
	10: stepArm, 11: stepArm, 12: stepArm, 13: stepArm, 14: stepPropensity, 15: stepForm, 16: stepForm,
	17: stepForm,
}

var groupOf = [stepRest + 1]int{stepAd: 0, stepPlace: 1, stepCampaign: 2, stepArm: 3, stepForm: 4}

// Tags of the fields that are stored without one.
const (
	tagID         = byte(eventpb.ImpressionID)
	tagRequest    = byte(eventpb.ImpressionRequestID)
	tagUser       = byte(eventpb.ImpressionUser)
	tagPropensity = byte(eventpb.ImpressionPropensity)
)

// Tags of the fields that are looked for one after the other, see Cut.
const (
	tagProduct      = byte(eventpb.ImpressionProduct)
	tagCreative     = byte(eventpb.ImpressionCreative)
	tagPlacement    = byte(eventpb.ImpressionPlacement)
	tagPosition     = byte(eventpb.ImpressionPosition)
	tagCampaign     = byte(eventpb.ImpressionCampaign)
	tagCategory     = byte(eventpb.ImpressionCategory)
	tagExperiment   = byte(eventpb.ImpressionExperiment)
	tagVariant      = byte(eventpb.ImpressionVariant)
	tagModelVersion = byte(eventpb.ImpressionModelVersion)
	tagPolicy       = byte(eventpb.ImpressionPolicy)
	tagSchema       = byte(eventpb.ImpressionSchema)
	tagBot          = eventpb.ImpressionBot      // in two bytes
	tagArmShare     = eventpb.ImpressionArmShare // in two bytes
)

// Parts is an encoded impression, cut. It points into the bytes it was made of.
type Parts struct {
	raw        []byte
	mask       byte
	request    int // where the length begins, one byte, that the bytes follow
	user       int // where the 8 bytes begin
	propensity int
	group      [groups]span
	rest       int // up to the end
}

// span is a stretch of an encoded impression.
type span struct{ from, to int }

// Cut takes apart an encoded impression of the usual form: all fields known, in the order of their numbers, none longer
// than 127 bytes, and in front an id that is not zero. ok says that raw is of it and so well formed to its end; nearly
// all impressions are, and for them this is the only look at their fields.
func (p *Parts) Cut(raw []byte) (id schemas.ImpressionID, ok bool) {
	if len(raw) < 18 || raw[0] != tagID || raw[1] != 16 {
		return id, false
	}
	id = schemas.ImpressionID(raw[2:18])
	p.raw, p.mask = raw, hasID
	at := eventpb.SkipShort(raw, 18, tagRequest)
	if at > 18 {
		p.request, p.mask = 19, p.mask|hasRequest
	}
	if at < len(raw) && raw[at] == tagUser {
		p.user, p.mask = at+1, p.mask|hasUser
		at += 9
	}
	p.group[0].from = at
	at = eventpb.SkipShort(raw, eventpb.SkipShort(raw, at, tagProduct), tagCreative)
	p.group[0].to, p.group[1].from = at, at
	at = eventpb.SkipShort(raw, at, tagPlacement)
	if at+1 < len(raw) && raw[at] == tagPosition && raw[at+1] < 0x80 {
		at += 2
	}
	p.group[1].to, p.group[2].from = at, at
	at = eventpb.SkipShort(raw, eventpb.SkipShort(raw, at, tagCampaign), tagCategory)
	p.group[2].to, p.group[3].from = at, at
	at = eventpb.SkipShort(raw, eventpb.SkipShort(raw, at, tagExperiment), tagVariant)
	at = eventpb.SkipShort(raw, eventpb.SkipShort(raw, at, tagModelVersion), tagPolicy)
	p.group[3].to = at
	if at < len(raw) && raw[at] == tagPropensity {
		p.propensity, p.mask = at+1, p.mask|hasPropensity
		at += 9
	}
	p.group[4].from = at
	if at+1 < len(raw) && raw[at] == tagSchema && raw[at+1] < 0x80 {
		at += 2
	}
	if at+2 < len(raw) && raw[at] == byte(tagBot|0x80) && raw[at+1] == byte(tagBot>>7) && raw[at+2] < 0x80 {
		at += 3
	}
	if at+9 < len(raw) && raw[at] == byte(tagArmShare|0x80) && raw[at+1] == byte(tagArmShare>>7) {
		at += 10
	}
	p.group[4].to = at
	return id, at == len(raw) && id != schemas.ImpressionID{}
}

// Category is the impression's field of that name, nil if it has none or is not in the order of our schema: as that of
// its label.
func (p *Parts) Category() []byte {
	g := p.group[groupOf[stepCampaign]]
	return categoryIn(p.raw[g.from:g.to])
}

// CutAny finds the parts of raw, whatever it is, with the id that it was found to have. Joined again they are raw.
func (p *Parts) CutAny(raw []byte, id schemas.ImpressionID) {
	*p = Parts{raw: raw}
	at := 0
	if len(raw) >= 18 && raw[0] == tagID && raw[1] == 16 && schemas.ImpressionID(raw[2:18]) == id {
		p.mask, at = hasID, 18
	}
	step := uint8(stepRequest)
	var f eventpb.Field
	for at < len(raw) {
		n := eventpb.Next(raw[at:], &f)
		s := uint8(stepRest)
		if num := f.Tag >> 3; n > 0 && num < uint64(len(stepOf)) {
			s = stepOf[num]
		}
		if s < step || s == stepRest || p.mask&hasID == 0 {
			break
		}
		switch s {
		case stepRequest:
			if f.Tag != eventpb.ImpressionRequestID || n != 2+len(f.Bytes) { // its tag and its length, a byte each
				s = stepRest
				break
			}
			p.request, p.mask = at+1, p.mask|hasRequest
			step = stepUser
		case stepUser, stepPropensity:
			if f.Tag&7 != eventpb.ImpressionUser&7 || n != 1+8 {
				s = stepRest
				break
			}
			if s == stepUser {
				p.user, p.mask = at+1, p.mask|hasUser
			} else {
				p.propensity, p.mask = at+1, p.mask|hasPropensity
			}
			step = s + 1
		default:
			g := &p.group[groupOf[s]]
			if s != step || g.from == g.to {
				g.from = at
			}
			g.to = at + n // raw goes on behind what is there already
			step = s
		}
		if s == stepRest {
			break
		}
		at += n
	}
	if p.rest = at; at < len(raw) {
		p.mask |= hasRest
	}
}

// appendRecord appends the record of an impression. Its groups are taken into the dictionary.
func (d *dictionary) appendRecord(b []byte, id recordID, p *Parts) []byte {
	// The longest that it can be: references of 5 bytes, lengths of 5 in front of what is kept inline.
	b = slices.Grow(b, recordHead+2+10*groups+8+5+len(p.raw))
	rec := b[len(b):cap(b)]
	binary.LittleEndian.PutUint32(rec, 0)
	binary.LittleEndian.PutUint32(rec[4:], id.head)
	binary.LittleEndian.PutUint64(rec[8:], id.tail)
	rec[recordHead+1] = p.mask
	at := recordHead + 2
	inline := 0
	for g, c := range p.group {
		r := d.take(g, p.raw[c.from:c.to])
		if r == refInline {
			inline |= 1 << g
		}
		for ; r >= 0x80; r >>= 7 {
			rec[at] = byte(r) | 0x80
			at++
		}
		rec[at] = byte(r)
		at++
	}
	if p.mask&hasRequest != 0 {
		at += copy(rec[at:], p.raw[p.request:p.request+1+int(p.raw[p.request])])
	}
	if p.mask&hasUser != 0 {
		at += copy(rec[at:], p.raw[p.user:p.user+8])
	}
	sized := func(part []byte) {
		at += binary.PutUvarint(rec[at:], uint64(len(part)))
		at += copy(rec[at:], part)
	}
	for g, c := range p.group {
		if g == groups-1 && p.mask&hasPropensity != 0 {
			at += copy(rec[at:], p.raw[p.propensity:p.propensity+8])
		}
		if inline>>g&1 != 0 {
			sized(p.raw[c.from:c.to])
		}
	}
	if p.mask&hasRest != 0 {
		sized(p.raw[p.rest:])
	}
	rec[recordHead] = 0
	if at <= math.MaxUint8 {
		rec[recordHead] = byte(at)
	}
	return b[:len(b)+at]
}

// recordID is an id as a record of a bucket has it.
type recordID struct {
	head uint32
	tail uint64
}

func recordIDOf(id schemas.ImpressionID, offsetMS int64) recordID {
	return recordID{uint32(offsetMS)<<16 | uint32(id.Hi()&0xffff), id.Lo()}
}

func (r recordID) of(startMS int64) (id schemas.ImpressionID) {
	binary.BigEndian.PutUint64(id[:], uint64(startMS+int64(r.head>>16))<<16|uint64(r.head&0xffff))
	binary.BigEndian.PutUint64(id[8:], r.tail)
	return id
}

func idAt(rec []byte) recordID {
	return recordID{binary.LittleEndian.Uint32(rec[4:]), binary.LittleEndian.Uint64(rec[8:])}
}

// walk takes a record apart.
type walk struct {
	mask       byte
	ref        [groups]reference
	request    []byte
	user       []byte
	propensity []byte
	group      [groups][]byte // those kept inline
	rest       []byte
	size       int // of the record
}

// read says whether rec begins with a whole record.
func (x *walk) read(rec []byte) bool {
	at := recordHead + 2
	if len(rec) < at {
		return false
	}
	x.mask = rec[recordHead+1]
	for g := range x.ref {
		if at >= len(rec) {
			return false
		}
		r := uint64(rec[at])
		if at++; r >= 0x80 {
			var n int
			if r, n = binary.Uvarint(rec[at-1:]); n <= 0 {
				return false
			}
			at += n - 1
		}
		x.ref[g] = reference(r)
	}
	ok := true
	take := func(n int) []byte {
		if n < 0 || at+n > len(rec) {
			ok = false
			return nil
		}
		at += n
		return rec[at-n : at]
	}
	sized := func() []byte {
		n, w := binary.Uvarint(rec[at:])
		at += max(w, 0)
		if w <= 0 || n > uint64(len(rec)) {
			ok = false
			return nil
		}
		return take(int(n))
	}
	if x.mask&hasRequest != 0 {
		x.request = sized()
	}
	if x.mask&hasUser != 0 {
		x.user = take(8)
	}
	for g, r := range x.ref {
		if g == groups-1 && x.mask&hasPropensity != 0 {
			x.propensity = take(8)
		}
		if r == refInline {
			x.group[g] = sized()
		}
	}
	if x.mask&hasRest != 0 {
		x.rest = sized()
	}
	x.size = at
	return ok
}

// must is read for records of our own arenas.
func (x *walk) must(rec []byte) {
	if !x.read(rec) {
		panic("window: an arena ends inside a record")
	}
}

// recordSize is the length of the record that rec begins with.
func recordSize(rec []byte) int {
	if n := int(rec[recordHead]); n != 0 {
		return n
	}
	var x walk
	x.must(rec)
	return x.size
}

// references reads the references of a record, and where what follows them begins.
func references(rec []byte) (refs [groups]reference, at int) {
	at = recordHead + 2
	for g := range refs {
		r := uint64(rec[at])
		if at++; r >= 0x80 {
			var n int
			r, n = binary.Uvarint(rec[at-1:])
			at += n - 1
		}
		refs[g] = reference(r)
	}
	return refs, at
}

// categoryOf finds field 9 of the impression that rec was made of, in the group of its campaign.
func (d *dictionary) categoryOf(rec []byte) []byte {
	refs, _ := references(rec)
	r := refs[groupOf[stepCampaign]]
	if r == refEmpty {
		return nil
	}
	if r == refInline {
		var x walk
		x.must(rec)
		return categoryIn(x.group[groupOf[stepCampaign]])
	}
	if r != d.campaign {
		d.campaign, d.category = r, categoryIn(d.bytes(r))
	}
	return d.category
}

func categoryIn(b []byte) []byte {
	var f eventpb.Field
	for at := 0; at < len(b); {
		n := eventpb.Next(b[at:], &f)
		if n == 0 {
			break
		}
		if f.Tag == eventpb.ImpressionCategory {
			return f.Bytes
		}
		at += n
	}
	return nil
}

// releaseRecord gives back what the record at the start of rec holds in the dictionary, and returns its length.
func (d *dictionary) releaseRecord(rec []byte) int {
	refs, _ := references(rec)
	for _, r := range refs {
		d.release(r)
	}
	return recordSize(rec)
}

// appendRaw appends the impression that rec was made of, byte for byte. It runs once a label, so it reads a record
// as it goes instead of taking it apart first.
func (d *dictionary) appendRaw(b []byte, rec []byte, id *schemas.ImpressionID) []byte {
	mask := rec[recordHead+1]
	refs, at := references(rec)
	if mask&hasID != 0 {
		b = append(b, tagID, 16)
		b = append(b, id[:]...)
	}
	if mask&hasRequest != 0 {
		n := 1 + int(rec[at])
		b = append(b, tagRequest)
		b = append(b, rec[at:at+n]...)
		at += n
	}
	if mask&hasUser != 0 {
		b = append(b, tagUser)
		b = append(b, rec[at:at+8]...)
		at += 8
	}
	for g, r := range refs {
		if g == groups-1 && mask&hasPropensity != 0 {
			b = append(b, tagPropensity)
			b = append(b, rec[at:at+8]...)
			at += 8
		}
		switch r {
		case refEmpty:
		case refInline:
			n, w := binary.Uvarint(rec[at:])
			at += w
			b = append(b, rec[at:at+int(n)]...)
			at += int(n)
		default:
			b = append(b, d.bytes(r)...)
		}
	}
	if mask&hasRest != 0 {
		n, w := binary.Uvarint(rec[at:])
		at += w
		b = append(b, rec[at:at+int(n)]...)
	}
	return b
}
