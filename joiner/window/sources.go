package window

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Promise is what a punctuation says: its source sends no more events before LowMS.
//
// A source is a name, or parts of a whole whose size is known. Parts are the better way to promise for inputs that move
// between writers: whoever reads raw partition 3 promises for it, so that what is left of it holds the time even
// while it belongs to nobody, and a writer that has not been heard of yet is missed from the start.
//
// A source holds the time until it promises more, for however long that takes: nobody can tell one that has died from one
// that is slow. A part is never orphaned for long, because its partition moves to another reader; a name that will never
// speak again has to be closed.
type Promise struct {
	Source string   // a name; without a name and without parts it counts as an event at LowMS
	Covers []uint32 // parts, each less than Parts; none: it only says how many there are
	Parts  uint32
	LowMS  int64
	Closed bool // the name has gone for good and holds nothing up; parts do not close
}

// Bounds of what one input may have, so that a commit's metadata (4096 bytes on a broker) can name it.
const (
	maxNamed = 16
	maxParts = 4096
	maxRuns  = 40 // stretches of parts with one time, i.e. writers
	maxName  = 16 // bytes of a name that are kept
)

// ErrSources says that a promise cannot be kept account of.
var ErrSources = errors.New("punctuation of unknown form or of too many sources")

// source is one of them: a part, or a name.
type source struct {
	part uint32
	name string // "" for parts
	low  int64  // its greatest promise; of one that has not promised yet, that of whoever made it known
	mute bool   // it has not promised yet: nothing is known of its events, so the time of the input stands still
}

// sources of an input: parts by number, then names in order; while there are none, events count. Lists are never
// changed, only replaced.
type sources []source

func order(a, b source) int {
	switch {
	case (a.name == "") != (b.name == ""):
		if a.name == "" {
			return -1
		}
		return 1
	case a.name == "":
		return int(a.part) - int(b.part)
	}
	return strings.Compare(a.name, b.name)
}

// with returns the list after a promise. Promises of one source do not fall.
func (s sources) with(p Promise) (sources, error) {
	out := slices.Clone(s)
	put := func(x source) {
		i, found := slices.BinarySearchFunc(out, x, order)
		switch {
		case found && p.Closed:
			out = slices.Delete(out, i, i+1)
		case p.Closed:
		case found:
			if out[i].mute {
				out[i] = x
			}
			out[i].low = max(out[i].low, x.low)
		default:
			out = slices.Insert(out, i, x)
		}
	}
	if p.Parts == 0 && len(p.Covers) == 0 {
		put(source{name: shorten(p.Source), low: p.LowMS})
		if n := slices.IndexFunc(out, func(x source) bool { return x.name != "" }); n >= 0 && len(out)-n > maxNamed {
			return s, fmt.Errorf("%w: more than %d names", ErrSources, maxNamed)
		}
		return out, nil
	}
	if p.Parts > maxParts || p.Closed || slices.ContainsFunc(p.Covers, func(part uint32) bool { return part >= p.Parts }) {
		return s, fmt.Errorf("%w: parts %v of %d, at most %d, closed %v", ErrSources, p.Covers, p.Parts, maxParts, p.Closed)
	}
	// Where the whole is cut anew, numbers mean other partitions: everybody has to speak again.
	if n := slices.IndexFunc(append(out, source{name: "end"}), func(x source) bool { return x.name != "" }); n != int(p.Parts) {
		out = slices.Delete(out, 0, n)
		for i := range p.Parts {
			out = slices.Insert(out, int(i), source{part: i, low: p.LowMS, mute: true})
		}
	}
	for _, part := range p.Covers {
		put(source{part: part, low: p.LowMS})
	}
	return out.flat(), nil
}

// shorten keeps names printable and short. Two sources whose names agree so far count as one, which only holds the time
// back.
func shorten(name string) string {
	clean := strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' || strings.ContainsRune("=,-", r) {
			return '_'
		}
		return r
	}, name)
	return clean[:min(len(clean), maxName)]
}

// flat gives all parts the smallest promise when there are too many different ones, and makes all of them mute if some are.
// That holds the time back until they promise more and does no other harm: the watermark itself never falls.
func (s sources) flat() sources {
	if s.runs() <= maxRuns {
		return s
	}
	low, mute := s[0].low, false
	for _, x := range s {
		if x.name == "" {
			low, mute = min(low, x.low), mute || x.mute
		}
	}
	for i := range s {
		if s[i].name == "" {
			s[i].low, s[i].mute = low, mute
		}
	}
	return s
}

// runs counts the stretches of parts that are alike.
func (s sources) runs() (n int) {
	for i, x := range s {
		if x.name == "" && (i == 0 || !x.follows(s[i-1])) {
			n++
		}
	}
	return n
}

// follows says whether x is the next part and says the same.
func (x source) follows(before source) bool {
	return x.name == "" && before.name == "" && x.part == before.part+1 && x.low == before.low && x.mute == before.mute
}

// low is the smallest promise, None if somebody has not promised yet. It does not look at how far the others are: what is
// late must not depend on how fast the process is that reads a partition.
func (s sources) low() int64 {
	low := int64(math.MaxInt64)
	for _, x := range s {
		if x.mute {
			return None
		}
		low = min(low, x.low)
	}
	return low
}

func (s sources) hash(in uint64) (h uint64) {
	for _, x := range s {
		if x.mute {
			h++
		}
		n := mix(uint64(x.low) ^ mix(uint64(x.part)<<1|in))
		for _, c := range []byte(x.name) {
			n = mix(n ^ uint64(c))
		}
		h += n
	}
	return h
}

// String is "first-last=low,first-last=low?,name=low,...", the question mark for mute ones, "" without sources.
func (s sources) String() string {
	var b strings.Builder
	for i := 0; i < len(s); {
		x, j := s[i], i+1
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		if x.name != "" {
			b.WriteString(x.name)
		} else {
			for j < len(s) && s[j].follows(s[j-1]) {
				j++
			}
			fmt.Fprintf(&b, "%d-%d", x.part, s[j-1].part)
		}
		b.WriteByte('=')
		b.WriteString(strconv.FormatInt(x.low, 10))
		if x.mute {
			b.WriteByte('?')
		}
		i = j
	}
	return b.String()
}

// parseSources reads String's form and leaves out what is not of it.
func parseSources(text string) (s sources) {
	for item := range strings.SplitSeq(text, ",") {
		name, value, ok := strings.Cut(item, "=")
		value, mute := strings.CutSuffix(value, "?")
		low, err := strconv.ParseInt(value, 10, 64)
		if !ok || err != nil {
			continue
		}
		first, last, isRun := strings.Cut(name, "-")
		if !isRun {
			s = append(s, source{name: name, low: low})
			continue
		}
		a, errA := strconv.ParseUint(first, 10, 32)
		z, errZ := strconv.ParseUint(last, 10, 32)
		if errA != nil || errZ != nil || z >= maxParts {
			continue
		}
		for ; a <= z; a++ {
			s = append(s, source{part: uint32(a), low: low, mute: mute})
		}
	}
	return s
}
