package joiner

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"ctrloop/joiner/window"
)

// metadataVersion leads the text; another form gets another number. Brokers keep 4096 bytes of metadata
// (offset.metadata.max.bytes); this is about 300, and 3500 with the most sources that the window keeps apart.
const metadataVersion = "j4"

// beforeCorrection is the form of releases that forgot an impression with its window.
const beforeCorrection = "j3"

// metadata is what is committed with the offsets of a partition's inputs.
type metadata struct {
	Sequence int64 // +1 per committed transaction of the partition: the larger one of the two inputs is valid
	WindowMS int64
	BucketMS int64
	// ObserveMS decides how versions are counted.
	ObserveMS int64
	// Partitions of each input: with another count, ids are in other partitions.
	Partitions int64
	window.Snapshot
}

var errMetadata = errors.New("offset-commit metadata is not readable")

// ints lists the fields in their order on the wire.
func (m *metadata) ints() []*int64 {
	return []*int64{
		&m.Sequence, &m.WindowMS, &m.BucketMS, &m.ObserveMS, &m.Partitions, &m.WatermarkMS, &m.MaxTimeMS[0], &m.MaxTimeMS[1],
		&m.NextOffset[0], &m.NextOffset[1], &m.RewindOffset[0], &m.RewindOffset[1], &m.FloorMS,
	}
}

func (m *metadata) counts() []*uint64 {
	l := &m.Ledger
	return []*uint64{
		&l.ImpressionsIn, &l.Positive, &l.FinalNegative, &l.Duplicate, &l.LateImpressions, &l.Open,
		&l.ClicksIn, &l.Joined, &l.Repeated, &l.OrphanExpired, &l.LateClicks, &l.Pending, &l.Corrected, &l.Provisional, &l.SampledOut,
	}
}

// String is the compact form: "j4 <numbers> / <counts> / <sources> <sources> <hash>", an unknown time as "-", and so an
// input without sources.
func (m metadata) String() string {
	b := make([]byte, 0, 256)
	b = append(b, metadataVersion...)
	for _, v := range m.ints() {
		if *v == window.None {
			b = append(b, " -"...)
		} else {
			b = strconv.AppendInt(append(b, ' '), *v, 10)
		}
	}
	b = append(b, " /"...)
	for _, v := range m.counts() {
		b = strconv.AppendUint(append(b, ' '), *v, 10)
	}
	b = append(b, " / "...)
	for _, s := range m.Sources {
		if s == "" {
			s = "-"
		}
		b = append(append(b, s...), ' ')
	}
	return string(strconv.AppendUint(b, m.Hash, 16))
}

// parseMetadata reads String's form.
func parseMetadata(s string) (m metadata, err error) {
	f := strings.Fields(s)
	ints, counts := m.ints(), m.counts()
	switch {
	case len(f) > 0 && f[0] == metadataVersion:
	case len(f) > 0 && f[0] == beforeCorrection:
		ints = ints[:len(ints)-1]
	default:
		return m, fmt.Errorf("%w: %q does not begin with %q", errMetadata, s, metadataVersion)
	}
	if want := 1 + len(ints) + 1 + len(counts) + 4; len(f) != want {
		return m, fmt.Errorf("%w: %q has %d fields, want %d", errMetadata, s, len(f), want)
	}
	f = f[1:]
	for i, v := range ints {
		if f[i] == "-" {
			*v = window.None
		} else if *v, err = strconv.ParseInt(f[i], 10, 64); err != nil {
			return m, fmt.Errorf("%w: %w", errMetadata, err)
		}
	}
	f = f[len(ints)+1:]
	for i, v := range counts {
		if *v, err = strconv.ParseUint(f[i], 10, 64); err != nil {
			return m, fmt.Errorf("%w: %w", errMetadata, err)
		}
	}
	for in := range m.Sources {
		if s := f[len(counts)+1+in]; s != "-" {
			m.Sources[in] = s
		}
	}
	if len(ints) < len(m.ints()) {
		if m.FloorMS = window.None; m.WatermarkMS != window.None {
			m.FloorMS = m.WatermarkMS - m.WindowMS
		}
	}
	if m.Hash, err = strconv.ParseUint(f[len(f)-1], 16, 64); err != nil {
		return m, fmt.Errorf("%w: %w", errMetadata, err)
	}
	return m, nil
}

// WatermarkOf reads the watermark, Unix ms, out of what a joiner commits beside its offsets. ok is false for text of
// another program, and as long as the partition has no watermark.
func WatermarkOf(text string) (ms int64, ok bool) {
	m, err := parseMetadata(text)
	return m.WatermarkMS, err == nil && m.WatermarkMS != window.None
}

// EventTimeOf reads the time up to which impressions have come, Unix ms, out of what a joiner commits beside its offsets: of the
// newest one, or of a later promise. ok is false for text of another program, and before there is one.
func EventTimeOf(text string) (ms int64, ok bool) {
	m, err := parseMetadata(text)
	ms = m.MaxTimeMS[window.Impressions]
	return ms, err == nil && ms != window.None
}
