package stage

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"ctrloop/pairer/evidence"
)

// metadataVersion leads the text; another form gets another number. Brokers keep 4096 bytes of metadata; this is about 300.
const metadataVersion = "e1"

// metadata is what is committed with the offset of a partition of labels.v1.
type metadata struct {
	Partitions int64 // of labels.v1: with another count, labels of an impression are in another partition
	// Labels and Evidence are the broker's ids of the topics: a topic that is made anew has another one, and its offsets mean
	// something else.
	Labels, Evidence string
	evidence.State
}

var errMetadata = errors.New("offset-commit metadata is not readable")

// ints lists the numbers in their order on the wire, State.Ledger and State.Hash behind them.
func (m *metadata) ints() []*int64 {
	return []*int64{&m.Partitions, &m.Sequence, &m.Start, &m.Next, &m.WatermarkMS, &m.SinceMS, &m.FloorMS, &m.DoubtMS, &m.Rewind}
}

// String is the compact form: "e1 <id> <id> <numbers> <counts> <hash>".
func (m metadata) String() string {
	b := append(make([]byte, 0, 320), metadataVersion...)
	b = append(append(append(append(b, ' '), m.Labels...), ' '), m.Evidence...)
	for _, v := range m.ints() {
		b = strconv.AppendInt(append(b, ' '), *v, 10)
	}
	for _, v := range m.Ledger.Counts() {
		b = strconv.AppendUint(append(b, ' '), *v, 10)
	}
	return string(strconv.AppendUint(append(b, ' '), m.Hash, 16))
}

// parseMetadata reads String's form.
func parseMetadata(s string) (m metadata, err error) {
	f := strings.Fields(s)
	if len(f) == 0 || f[0] != metadataVersion {
		return m, fmt.Errorf("%w: %q does not begin with %q", errMetadata, s, metadataVersion)
	}
	ints, counts := m.ints(), m.Ledger.Counts()
	if want := 3 + len(ints) + len(counts) + 1; len(f) != want {
		return m, fmt.Errorf("%w: %q has %d fields, want %d", errMetadata, s, len(f), want)
	}
	m.Labels, m.Evidence, f = f[1], f[2], f[3:]
	for i, v := range ints {
		if *v, err = strconv.ParseInt(f[i], 10, 64); err != nil {
			return m, fmt.Errorf("%w: %w", errMetadata, err)
		}
	}
	f = f[len(ints):]
	for i, v := range counts {
		if *v, err = strconv.ParseUint(f[i], 10, 64); err != nil {
			return m, fmt.Errorf("%w: %w", errMetadata, err)
		}
	}
	if m.Hash, err = strconv.ParseUint(f[len(counts)], 16, 64); err != nil {
		return m, fmt.Errorf("%w: %w", errMetadata, err)
	}
	return m, nil
}
