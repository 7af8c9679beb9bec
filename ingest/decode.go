package ingest

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

// jsonEvent is the JSON form of every kind of event.
type jsonEvent struct {
	Type         string          `json:"type"`
	ID           string          `json:"id"`
	RequestID    string          `json:"request_id"`
	User         json.RawMessage `json:"user"`
	Product      string          `json:"product"`
	Creative     string          `json:"creative"`
	Placement    string          `json:"placement"`
	Position     uint32          `json:"position"`
	Campaign     string          `json:"campaign"`
	Category     string          `json:"category"`
	Experiment   string          `json:"experiment"`
	Variant      string          `json:"variant"`
	ModelVersion string          `json:"model_version"`
	Policy       string          `json:"policy"`
	Propensity   *float64        `json:"propensity"`
	ArmShare     *float64        `json:"arm_share"`
	Schema       uint32          `json:"schema"`
	Bot          bool            `json:"bot"`
	UserAgent    string          `json:"user_agent"` // judged by IsBot and not kept
	ImpressionID string          `json:"impression_id"`
	TimeMS       int64           `json:"time_ms"`
}

// decoder turns bytes into events. It is safe for concurrent use.
type decoder struct {
	salt     []byte
	maxBytes int
}

// json reads one JSON object; strict refuses unknown fields, fallback is the type of an event without one.
func (d decoder) json(b []byte, strict bool, fallback string) (event, *problem) {
	if len(b) > d.maxBytes {
		return event{}, d.oversized(b)
	}
	if p := unchanged(b); p != nil {
		return event{}, p
	}
	var j jsonEvent
	dec := json.NewDecoder(bytes.NewReader(b))
	if strict {
		dec.DisallowUnknownFields()
	}
	if err := dec.Decode(&j); err != nil {
		return event{}, jsonProblem(err)
	}
	if rest := bytes.TrimSpace(b[dec.InputOffset():]); len(rest) > 0 {
		return event{}, reject(schemas.DeadMalformed, "something follows the object")
	}
	if p := exactNames(b); p != nil {
		return event{}, p
	}
	if j.Type == "" {
		j.Type = fallback
	}
	switch j.Type {
	case "impression":
		return d.jsonImpression(&j)
	case "click":
		return d.jsonClick(&j)
	case "watermark":
		return encode(watermark, &eventpb.Punctuation{LowWatermarkMs: j.TimeMS})
	}
	return event{}, reject(schemas.DeadUnknownSchema, "type is %q: want impression, click or watermark", j.Type)
}

// unchanged refuses text that the JSON decoder would change without a word: what is no UTF-8 and halves of characters
// become U+FFFD, and two names become one.
func unchanged(b []byte) *problem {
	if !utf8.Valid(b) {
		return reject(schemas.DeadMalformed, "not UTF-8: names in another encoding would become one another")
	}
	unit := func(at int) (rune, bool) { // of UTF-16, as an escape at b[at:]
		if at+6 > len(b) || b[at] != '\\' || b[at+1] != 'u' {
			return 0, false
		}
		n, err := strconv.ParseUint(string(b[at+2:at+6]), 16, 16)
		return rune(n), err == nil
	}
	for at := bytes.IndexByte(b, '\\'); at >= 0 && at < len(b); at++ {
		if b[at] != '\\' {
			continue
		}
		if r, ok := unit(at); ok && utf16.IsSurrogate(r) {
			second, _ := unit(at + 6)
			if utf16.DecodeRune(r, second) == utf8.RuneError {
				return reject(schemas.DeadMalformed, "half a character (%s): it would be changed", b[at:at+6])
			}
			at += 6
		}
		at++ // what is escaped
	}
	return nil
}

// names are those of jsonEvent, each with a bit.
var names = func() map[string]uint64 {
	out := map[string]uint64{}
	for f := range reflect.TypeFor[jsonEvent]().Fields() {
		out[f.Tag.Get("json")] = 1 << len(out)
	}
	return out
}()

// exactNames refuses an object with one of our names twice, or in another case: the decoder would take the last of them. b is
// an object that has been decoded.
func exactNames(b []byte) *problem {
	depth, expect := 0, false // whether a text is a name
	var seen uint64
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			depth++
			expect = depth == 1
		case '}', ']':
			depth--
		case ',':
			expect = depth == 1
		case '"':
			from := i
			for i++; b[i] != '"'; i++ {
				if b[i] == '\\' {
					i++
				}
			}
			if !expect {
				continue
			}
			expect = false
			bit, p := exactName(b[from : i+1])
			if p == nil && seen&bit != 0 {
				p = reject(schemas.DeadBadField, "%s is there twice", b[from:i+1])
			}
			if p != nil {
				return p
			}
			seen |= bit
		}
	}
	return nil
}

// exactName returns the bit of a name in quotes, 0 for one that is not ours.
func exactName(quoted []byte) (uint64, *problem) {
	name := quoted[1 : len(quoted)-1]
	if bytes.IndexByte(name, '\\') >= 0 {
		var s string
		if err := json.Unmarshal(quoted, &s); err != nil {
			return 0, reject(schemas.DeadMalformed, "%v", err)
		}
		name = []byte(s)
	}
	if bit, ours := names[string(name)]; ours {
		return bit, nil
	}
	for ours := range names {
		if strings.EqualFold(ours, string(name)) {
			return 0, reject(schemas.DeadBadField, "%q: the name is %q", name, ours)
		}
	}
	return 0, nil
}

func jsonProblem(err error) *problem {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case errors.As(err, &typ):
		return reject(schemas.DeadBadField, "%s: a JSON %s, want %s", typ.Field, typ.Value, typ.Type)
	case strings.HasPrefix(err.Error(), "json: unknown field"):
		return reject(schemas.DeadBadField, "%s: event.proto has the names", strings.TrimPrefix(err.Error(), "json: "))
	case errors.As(err, &syntax):
		return reject(schemas.DeadMalformed, "not JSON at byte %d: %v", syntax.Offset, err)
	}
	return reject(schemas.DeadMalformed, "not a JSON object: %v", err)
}

func (d decoder) jsonImpression(j *jsonEvent) (event, *problem) {
	id, err := schemas.ParseImpressionID(j.ID)
	if err != nil {
		return event{}, reject(schemas.DeadBadID, "id: %v", err)
	}
	user, p := d.user(j.User)
	if p != nil {
		return event{}, p
	}
	propensity, p := given(j.Propensity, badPropensity)
	if p != nil {
		return event{}, p
	}
	share, p := given(j.ArmShare, badArmShare)
	if p != nil {
		return event{}, p
	}
	return encode(impression, &eventpb.Impression{
		Id: id[:], RequestId: []byte(j.RequestID), User: user, Product: j.Product, Creative: j.Creative,
		Placement: j.Placement, Position: j.Position, Campaign: j.Campaign, Category: j.Category,
		Experiment: j.Experiment, Variant: j.Variant, ModelVersion: j.ModelVersion, Policy: j.Policy,
		Propensity: propensity, ArmShare: share, Schema: orOne(j.Schema), Bot: j.Bot || IsBot(j.UserAgent),
	})
}

// given is a number that may be left out and cannot be 0: on the wire 0 is the same as left out.
func given(v *float64, bad func(float64) *problem) (float64, *problem) {
	switch {
	case v == nil:
		return 0, nil
	case *v == 0:
		return 0, bad(0)
	}
	return *v, nil
}

func (d decoder) jsonClick(j *jsonEvent) (event, *problem) {
	id, err := schemas.ParseImpressionID(j.ImpressionID)
	if err != nil {
		return event{}, reject(schemas.DeadBadID, "impression_id: %v", err)
	}
	return encode(click, &eventpb.Click{ImpressionId: id[:], Id: []byte(j.ID), TimeMs: j.TimeMS, Schema: orOne(j.Schema),
		Bot: j.Bot || IsBot(j.UserAgent)})
}

func orOne(schema uint32) uint32 { return max(schema, 1) }

func encode(k kind, m proto.Message) (event, *problem) {
	b, err := proto.Marshal(m)
	if err != nil {
		return event{}, reject(schemas.DeadBadField, "%v", err)
	}
	return checkMessage(k, b)
}

// HashUser is how a user who is given as text appears in events: the first 8 bytes, big endian, of
// HMAC-SHA256 under the salt (Config.UserSalt).
func HashUser(salt, user string) uint64 {
	h := hmac.New(sha256.New, []byte(salt))
	h.Write([]byte(user))
	return binary.BigEndian.Uint64(h.Sum(nil))
}

// SaltCheck tells whether two salts are the same, and nothing else of them.
func SaltCheck(salt string) int64 { return int64(HashUser(salt, "ctrloop: which salt is this?")) }

// user is the number given, or the salted hash of the string given. The empty string is nobody, as null is: hashed, it would
// make one user of all those without a name.
func (d decoder) user(raw json.RawMessage) (uint64, *problem) {
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return 0, nil
	case raw[0] == '"':
		var s string
		if err := json.Unmarshal(raw, &s); err != nil {
			return 0, reject(schemas.DeadBadField, "user: %v", err)
		}
		if s == "" {
			return 0, nil
		}
		return HashUser(string(d.salt), s), nil
	}
	n, err := strconv.ParseUint(string(raw), 10, 64)
	if err != nil {
		return 0, reject(schemas.DeadBadField, "user: %s: want a string or a whole number below 2^64", raw)
	}
	return n, nil
}

func (d decoder) oversized(b []byte) *problem {
	return reject(schemas.DeadOversized, "%d bytes: at most %d", len(b), d.maxBytes)
}

// Confluent wire format.
const (
	confluentMagic = 0x00
	schemaID       = 1 // of event.proto; the only one there is
)

// rawHeaders stand before a message in the raw topics, by kind: magic, schema id, message index (zigzag
// varints: how many indexes, then each; a lone 0 stands for the first message of the file).
var rawHeaders = [...][]byte{
	impression: {confluentMagic, 0, 0, 0, schemaID, 0},
	click:      {confluentMagic, 0, 0, 0, schemaID, 2, 2},
	watermark:  {confluentMagic, 0, 0, 0, schemaID, 2, 4},
}

// raw reads the value of a record of a raw topic.
func (d decoder) raw(topic string, b []byte) (event, *problem) {
	if len(b) > d.maxBytes {
		return event{}, d.oversized(b)
	}
	if len(b) == 0 {
		return event{}, reject(schemas.DeadMalformed, "empty record")
	}
	if b[0] != confluentMagic {
		fallback := "impression"
		if topic == schemas.TopicRawClicks {
			fallback = "click"
		}
		return d.json(b, false, fallback)
	}
	if len(b) < 6 {
		return event{}, reject(schemas.DeadMalformed, "%d bytes are too short for a Confluent header", len(b))
	}
	if id := binary.BigEndian.Uint32(b[1:]); id != schemaID {
		return event{}, reject(schemas.DeadUnknownSchema, "schema id %d, want %d (event.proto)", id, schemaID)
	}
	if b[5] == 0 {
		return checkMessage(impression, b[6:])
	}
	if b[5] == 2 && len(b) > 6 && (b[6] == 2 || b[6] == 4) {
		return checkMessage(kind(b[6]/2), b[7:])
	}
	return event{}, reject(schemas.DeadUnknownSchema, "message index % x names no event of event.proto", b[5:min(len(b), 8)])
}
