package window

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"ctrloop/schemas"
)

// What is kept for corrections only is on disk but for its index: a sixth of an open impression.
func TestClosedImpressionsAreSmall(t *testing.T) {
	const n, perSecond = 200_000, 2_000
	w := New(Config{WindowMS: 1000, BucketMS: 1000, CorrectionMS: 1 << 40})
	id := func(i int) schemas.ImpressionID {
		var random [10]byte
		binary.BigEndian.PutUint64(random[2:], mix(uint64(i)))
		return schemas.NewImpressionID(time.UnixMilli(int64(i)*1000/perSecond), random)
	}
	for i := range n {
		if err := w.Impression(rawImpression(id(i), 3*i+1), id(i), int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	w.saw(Impressions, 1<<30)
	w.saw(Clicks, 1<<30)
	if err := w.Advance(0); err != nil {
		t.Fatal(err)
	}
	w.Commit()
	for _, number := range w.Unsaved(nil) {
		w.Saved(number, bytes.NewReader(w.AppendBase(nil, number)), 0)
	}
	before := w.Memory()
	if got := w.SpillClosed(); got != n/perSecond {
		t.Errorf("%d buckets of %d are on disk only", got, n/perSecond)
	}
	_, spilled := w.Spilled()
	if left := w.Memory() - w.names.memory() - w.freeBytes; left > 13*n || spilled == 0 {
		t.Errorf("%d bytes an impression are left of %d, %d are on disk", left/n, before/n, spilled/n)
	}
	if w.Ledger().FinalNegative != n || w.Known() != n {
		t.Fatal(fmt.Sprintf("%+v", w.Ledger()), w.Known())
	}
	w.ResetOutput()
	if err := w.Click([]byte("click"), id(77), 1<<30, 0); err != nil {
		t.Fatal(err)
	}
	if len(w.Labels) != 1 || !bytes.Equal(w.Labels[0].AppendRaw(nil), rawImpression(id(77), 3*77+1)) {
		t.Errorf("a late click made %+v", w.Labels)
	}
}
