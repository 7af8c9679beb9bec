package evidence

import (
	"crypto/sha256"
	"fmt"

	"google.golang.org/protobuf/proto"

	"ctrloop/schemas"
	"ctrloop/schemas/eventpb"
)

func sequenceOf(value []byte) (int64, error) {
	var m eventpb.EvidenceProgress
	if err := proto.Unmarshal(value, &m); err != nil {
		return 0, fmt.Errorf("progress of evidence: %w: %w", eventpb.ErrWire, err)
	}
	return m.Sequence, nil
}

func idsOf(value []byte) ([]schemas.ImpressionID, error) {
	var m eventpb.EvidenceDoubt
	if err := proto.Unmarshal(value, &m); err != nil {
		return nil, fmt.Errorf("suspect negatives: %w: %w", eventpb.ErrWire, err)
	}
	if len(m.Ids)%len(schemas.ImpressionID{}) != 0 {
		return nil, fmt.Errorf("suspect negatives: %w: %d bytes", eventpb.ErrWire, len(m.Ids))
	}
	var out []schemas.ImpressionID
	for b := m.Ids; len(b) > 0; b = b[16:] {
		out = append(out, schemas.ImpressionID(b[:16]))
	}
	return out, nil
}

// IsProgress says whether a record with this key says how far its partition goes, which only the stage writes.
func IsProgress(key []byte) bool { return len(key) == 1 && key[0] == kindProgress }

// Record is a record of evidence.v1 that others than the stage write.
type Record struct {
	Partition  int32
	Key, Value []byte
}

// Review is a person's last word on suspect labels: open, cleared or confirmed. Only cleared ones count.
func Review(k ReviewKey, verdict string) Record {
	return Record{k.Partition, k.append(nil), marshal(&eventpb.EvidenceReview{Verdict: verdict})}
}

// Erasure takes labels of a person out of a cell: trusted and suspect are what the person's labels in it add up to. The same name
// and cell again is the same record, so that an erasure may be repeated. The name must not be the person's.
func Erasure(name string, partition int32, cell Key, trusted, suspect Sums) Record {
	var none Sums
	v := Value{Trusted: none, Suspect: none}
	v.Trusted.add(&trusted, -1)
	v.Suspect.add(&suspect, -1)
	sum := sha256.Sum256([]byte(name))
	return Record{partition, cell.append(append([]byte{kindErasure}, sum[:erasureName]...)), v.encode()}
}
